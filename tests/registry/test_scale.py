"""What a look-up costs does not grow with the store: counted in SQLite's instructions and read off its plans,
so that no clock is involved.
"""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from registry_fakes import make_adapter, make_base

from inlay.errors import ReferenceNotFound
from inlay.registry import Registry, digest_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FEW, MANY, PAGE = 300, 1_500, 15

# Sorting is allowed where what is sorted is the answer itself and does not grow with the store.
SORTS_ITS_ANSWER = {
    "dependents": "the live aliases that contain it",
    "resolve sha256:…": "the versions with these bytes",
    "suite by name": "the contents that one name had",
    "suite by digest": "the names that one content had",
    "reports of a subject": "the reports about one version",
    "evals of a subject": "the scores of one version",
    "evals of a subject on a suite": "the scores of one version",
}
# Tables of a query's own making, as big as what was asked for: the aliases of the names on a page, which
# `journal.live` steps through and sorts.
OF_ITS_OWN = {"step", "s", "CONSTANT"}


@pytest.fixture(scope="module")
def measuring() -> Iterator[ModuleType]:
    """benchmarks/look_ups.py, which asks a store for everything that the registry can look up."""
    sys.path.append(str(BENCHMARKS))
    yield importlib.import_module("look_ups")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def made(measuring: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Any]]:
    """[(closed store, its layout)]: one with 300 versions, one with five times as many."""
    folder, layouts = (
        tmp_path_factory.mktemp("made"),
        [measuring.Layout(n, evals_each=4) for n in (FEW, MANY)],
    )
    for layout in layouts:
        measuring.make(folder / str(layout.versions), layout)
    return [(folder / str(layout.versions), layout) for layout in layouts]


@pytest.fixture
def stores(made: list[tuple[Path, Any]], tmp_path: Path) -> Iterator[list[tuple[Registry, Any]]]:
    """[(registry, its layout)]: copies of what was made, open."""
    copies = [(shutil.copytree(store, tmp_path / store.name), layout) for store, layout in made]
    opened = [(Registry.open(store), layout) for store, layout in copies]
    yield opened
    for registry, _ in opened:
        registry.close()


def test_the_stores_are_as_the_registry_would_have_written_them(stores: list[tuple[Registry, Any]]) -> None:
    registry, layout = stores[0]
    assert [p for p in registry.fsck() if "missing from the store" not in p] == []
    names = registry.names()
    assert sum(row.latest for row in names if row.kind == "adapter") == layout.versions == FEW
    assert len(registry.evals()) == 4 * FEW
    assert {row.name for row in names if row.yanked} == set(layout.tasks[::10])


def test_no_look_up_or_page_takes_more_in_a_larger_store(
    stores: list[tuple[Registry, Any]], measuring: ModuleType
) -> None:
    (few, small), (many, large) = stores
    pairs = zip(
        measuring.look_ups(few, small, page=PAGE), measuring.look_ups(many, large, page=PAGE), strict=True
    )
    for there, here in pairs:
        found, cost = _ask(few, there)
        found_here, cost_here = _ask(many, here)
        assert found_here == found, here.what
        # A fifth for what differs between the names on one page and another; a scan would be five times it.
        assert cost_here <= 1.2 * cost, f"{here.what}: {cost} instructions, with 5 times the rows {cost_here}"


def _ask(registry: Registry, asked: Any) -> tuple[list[int], int]:
    """What ten calls find, and the instructions that all of them take."""
    counted = importlib.import_module("look_ups").instructions
    found: list[int] = []
    cost = counted(registry, lambda: found.extend(asked.call(i) for i in range(10)))
    return found, cost


def test_no_look_up_or_page_scans_or_sorts_a_table(
    stores: list[tuple[Registry, Any]], measuring: ModuleType
) -> None:
    registry, layout = stores[0]
    bad = []
    for asked in measuring.look_ups(registry, layout, page=PAGE):
        statements = _statements(registry, lambda asked=asked: asked.call(1))
        assert statements, asked.what
        for statement in statements:
            for step in _plan(registry, statement):
                scanned = re.match(r"SCAN (\w+)\b(?! VIRTUAL TABLE)", step)
                sorts = "B-TREE" in step and not statement.lstrip().startswith("WITH RECURSIVE step")
                scans = scanned is not None and scanned[1] not in OF_ITS_OWN
                if scans or (sorts and asked.what not in SORTS_ITS_ANSWER):
                    bad.append((asked.what, step, statement))
    assert bad == []


def _statements(registry: Registry, call: Callable[[], object]) -> list[str]:
    """The SELECTs that `call` runs, with their values."""
    statements: list[str] = []
    connection = registry._store.db.connection
    connection.set_trace_callback(statements.append)
    call()
    connection.set_trace_callback(None)
    return [s for s in statements if s.lstrip().startswith(("SELECT", "WITH"))]


def _plan(registry: Registry, statement: str) -> list[str]:
    return [row["detail"] for row in registry._store.db.rows(f"EXPLAIN QUERY PLAN {statement}")]


def test_the_check_sees_a_scan_and_a_sort(stores: list[tuple[Registry, Any]], measuring: ModuleType) -> None:
    (few, _), (many, _) = stores
    by_author = "SELECT * FROM versions WHERE author = 'berta' ORDER BY why"
    assert any(step.startswith("SCAN versions") for step in _plan(few, by_author))
    assert any("TEMP B-TREE FOR ORDER BY" in step for step in _plan(few, by_author))
    cost, cost_here = (
        measuring.instructions(r, lambda r=r: r._store.db.rows(by_author)) for r in (few, many)
    )
    assert cost_here > 4 * cost


def test_a_name_that_is_not_there_is_looked_for_beside_its_place_only(
    stores: list[tuple[Registry, Any]], measuring: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inlay.registry.lookup.NEIGHBOURS", 10)
    costs = []
    for registry, _ in stores:

        def slip(registry: Registry = registry) -> None:
            with pytest.raises(ReferenceNotFound, match="did you mean team-3/task-00010"):
                registry.resolve("team-3/task-00010x")

        costs.append(measuring.instructions(registry, slip))
    assert 0 < costs[1] <= 1.2 * costs[0]


DEEDS: dict[str, Callable[[Registry, Path], object]] = {
    "promote": lambda r, _: r.promote("team-0/task-00007@v7", "prod"),
    "a promotion that is live already": lambda r, _: r.promote("team-0/task-00007@v9", "prod"),
    "rollback": lambda r, _: r.rollback("team-0/task-00007@prod", why="slow"),
    "rollback with dependents": lambda r, _: r.rollback(
        "team-0/task-00007@prod", why="slow", dependents=True
    ),
    "yank": lambda r, _: r.yank("team-5/task-00005@v8", why="bad", rollback_dependents=True),
    "retire": lambda r, _: r.retire("team-0/task-00007@v2", why="old"),
    "describe": lambda r, _: r.describe("team-0/task-00007", tag=["pilot"]),
    "guard": lambda r, _: r.set_guard("team-0/task-00007@prod", None),
    "lock": lambda r, _: r.lock("acme", {"compose": {"stack": ["team-0/task-00007@prod", "tone@v1"]}}),
    "suite": lambda r, _: r.put_suite("new", digest_of(b"{}\n"), b"{}\n", metric="m/1", skills={}),
    "eval": lambda r, _: r.put_eval(replace(r.evals(limit=1)[0], protocol=digest_of("another"))),
    "report": lambda r, _: r.put_report("team-0/task-00007@v7", "forgetting", {}),
    "add": lambda r, folder: r.add("legal", make_adapter(folder / "adapter"), base=folder / "base"),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_no_deed_takes_more_in_a_larger_store(
    deed: str, stores: list[tuple[Registry, Any]], measuring: ModuleType, tmp_path: Path
) -> None:
    make_base(tmp_path / "base")
    (few, _), (many, _) = stores
    costs = [measuring.instructions(r, lambda r=r: DEEDS[deed](r, tmp_path)) for r in (few, many)]
    assert costs[0] > 0
    assert costs[1] <= 1.2 * costs[0], f"{costs[0]} instructions, with five times the rows {costs[1]}"
