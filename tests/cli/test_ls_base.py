"""`inlay ls --base`: what hangs on a base by its weights, what a command trains again, and what must be by
hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from registry_fakes import make_adapter, make_base

import inlay
from inlay.cli import run
from inlay.registry import Registry
from inlay.trainers.on_base import on_base


def record(ref: str | None = None, **more: Any) -> dict[str, Any]:
    """A training record; `ref`: what it was trained on from."""
    parent = {} if ref is None else {"parent": {"ref": ref, "digest": "sha256:" + "0" * 64}}
    return {
        "settings": {"rank": 2},
        "dataset": {"name": "clauses", "rows": 40, "digest": "x"},
        **parent,
        **more,
    }


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """On base a: legal v1 (went live and was left), v2 (live, trained on from v1), v3 (not live, the newest),
    imported style v1 inside the live variant acme; on base b: legal v4, which is v2 trained again."""
    store = tmp_path / "adapters_store"
    a, b = make_base(tmp_path / "base-a"), make_base(tmp_path / "base-b", seed=9)
    with inlay.Registry.open(store, create=True) as registry:

        def add(name: str, base: Path, seed: int, run: dict[str, Any] | None = None) -> None:
            registry.add(name, make_adapter(tmp_path / f"made{seed}", seed=seed), base=base, run=run)

        add("legal", a, 1, record())
        add("legal", a, 2, record("legal@v1"))
        add("legal", a, 3, record())
        add("style", a, 4)
        add("bad", a, 5, record())
        registry.promote("legal@v1", "prod")
        registry.promote("legal@v2", "prod")
        registry.lock("acme", {"compose": {"stack": ["legal@v2", "style@v1"]}})
        registry.lock("beta", {"compose": {"stack": ["style@v1"]}})
        registry.promote("acme@v1", "prod")
        registry.yank("bad@v1", why="wrong")
        add("other", b, 6, record())
    return store


class Ask:
    """A verb on the shelf as a user meets it: (exit code, output, errors)."""

    def __init__(self, store: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.patch = patch
        self.capsys = capsys
        patch.setenv("INLAY_STORE", str(store))

    def __call__(self, *arguments: str, columns: int = 80) -> tuple[int, str, str]:
        self.patch.setenv("COLUMNS", str(columns))
        self.capsys.readouterr()
        code = run(list(arguments))
        return code, *self.capsys.readouterr()

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json")[1])["result"]


@pytest.fixture
def ask(shelf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    return Ask(shelf, monkeypatch, capsys)


def test_what_must_be_trained_again_and_how(shelf: Path, tmp_path: Path) -> None:
    with Registry.open(shelf) as registry:
        found = {v.ref: v for v in on_base(registry, str(tmp_path / "base-a")).versions}
    assert set(found) == {"legal@v1", "legal@v2", "legal@v3", "style@v1"}
    assert {ref: v.needed for ref, v in found.items()} == dict.fromkeys(found, True)
    assert {ref: v.how for ref, v in found.items()} == {
        "legal@v1": "record",
        "legal@v2": "record",
        "legal@v3": "record",
        "style@v1": "by hand",
    }
    assert found["legal@v2"].live == ("legal@prod",) and found["legal@v2"].serving == ("acme@prod",)
    assert found["legal@v2"].locks == ("acme@v1",) and found["style@v1"].locks == ("acme@v1", "beta@v1")
    assert found["legal@v1"].live == () == found["legal@v1"].serving  # needed, as legal@v2 began there
    assert found["legal@v1"].command() == "inlay train DATA --rebase legal@v1 --base NEW"
    assert found["legal@v2"].command() == "inlay train DATA --rebase legal@v2 --base NEW --from VERSION"
    assert found["style@v1"].command() is None


def test_an_old_version_that_nothing_needs_is_counted_only(ask: Ask, shelf: Path, tmp_path: Path) -> None:
    with Registry.open(shelf) as registry:
        registry.add("legal", make_adapter(tmp_path / "m7", seed=7), base=tmp_path / "base-a", run=record())
    _, said, _ = ask("ls", "--base", str(tmp_path / "base-a"))
    assert "legal@v4" in said and "legal@v3" not in said
    assert "and 1 version that nothing live uses" in said


def test_what_was_trained_again_is_done(shelf: Path, tmp_path: Path) -> None:
    again = record(rebased={"ref": "legal@v1", "digest": "sha256:" + "1" * 64})
    with Registry.open(shelf) as registry:
        registry.add("legal", make_adapter(tmp_path / "m8", seed=8), base=tmp_path / "base-b", run=again)
        found = {v.ref: v for v in on_base(registry, str(tmp_path / "base-a")).versions}
    assert (found["legal@v1"].how, found["legal@v1"].again, found["legal@v1"].command()) == (
        "done",
        "legal@v4",
        None,
    )
    assert found["legal@v2"].command() == "inlay train DATA --rebase legal@v2 --base NEW --from legal@v4"


def test_kept_rows_need_no_file(shelf: Path, tmp_path: Path) -> None:
    with Registry.open(shelf) as registry:
        report = {"schema": 1, "digest": "x", "digests": [], "rows": [{"messages": []}]}
        registry.put_report("legal@v3", "data", report)
        found = {v.ref: v for v in on_base(registry, str(tmp_path / "base-a")).versions}
    assert found["legal@v3"].command() == "inlay train --rebase legal@v3 --base NEW"


def test_a_base_is_known_by_its_weights_not_its_name(ask: Ask, shelf: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "renamed"
    shutil.copytree(tmp_path / "base-a", moved)
    result = ask.json("ls", "--base", str(moved))
    assert result["base"]["name"] == "base-a"
    assert [v["ref"] for v in result["versions"]] == ["legal@v1", "legal@v3", "style@v1", "legal@v2"]
    assert [(lock["ref"], lock["live"]) for lock in result["locks"]] == [
        ("acme@v1", ["acme@prod"]),
        ("beta@v1", []),
    ]
    weights = result["base"]["weights"]
    for named in (weights, weights[: len("sha256:") + 8], "base-a"):
        assert ask.json("ls", "--base", named) == result
    # The folder may be gone by the time its base is replaced.
    shutil.rmtree(tmp_path / "base-a")
    assert ask.json("ls", "--base", "base-a") == result


def test_names_that_mean_no_base_or_several(ask: Ask, shelf: Path, tmp_path: Path) -> None:
    twin = make_base(tmp_path / "twin" / "base-a", seed=5)
    with Registry.open(shelf) as registry:
        registry.add("twin", make_adapter(tmp_path / "m9", seed=9), base=twin)
    assert "base-a is the name of several bases" in ask("ls", "--base", "base-a")[2]
    assert "named by 8 digits or more" in ask("ls", "--base", "sha256:12")[2]
    assert "nothing here is for a base with the weights" in ask("ls", "--base", "sha256:00000000")[2]
    unused = make_base(tmp_path / "unused", seed=77)
    assert "nothing hangs on it" in ask("ls", "--base", str(unused))[1]
    assert ask("ls", "legal", "--base", "base-a")[0] == 2
    assert ask("ls", "--base", "base-a", "--kind", "adapter")[0] == 2


@pytest.mark.parametrize("columns", [40, 80])
def test_text_fits_the_terminal_and_its_commands_can_be_pasted(
    ask: Ask, tmp_path: Path, columns: int
) -> None:
    code, said, _ = ask("ls", "--base", str(tmp_path / "base-a"), columns=columns)
    assert code == 0
    assert max(map(len, said.splitlines())) <= columns
    assert "to be trained again" in said and "by hand" in said
    assert "inlay train DATA --rebase legal@v1 --base NEW" in " ".join(said.replace(" \\\n", " ").split())


def test_show_and_log_say_where_a_version_came_from(ask: Ask) -> None:
    assert "from      trained on from legal@v1" in ask("show", "legal@v2")[1]
    assert "registered legal@v2, trained on from legal@v1" in ask("log", "legal")[1]
