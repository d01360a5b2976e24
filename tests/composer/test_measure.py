"""Rigidity and overhead of a composed model, through the registry."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from composer_fakes import write_lora

from inlay.composer import compose, forgetting
from inlay.errors import InputError
from inlay.evals import Suite
from inlay.evals.inference import Base
from inlay.evals.overhead import Overhead, measure_overhead
from inlay.evals.perturbing import KINDS, Given, perturbed
from inlay.evals.rigidity import ALL, Rigidity
from inlay.registry import Registry


def test_rigidity_and_overhead_are_in_the_report_and_kept(
    store: Registry, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = functools.partial(measure_overhead, rounds=6, new_tokens=3)
    monkeypatch.setattr("inlay.evals.ledger.measure_overhead", quick)
    whole = Suite.load("general-v1")
    items = [item for item in whole.items if whole.metric_of(item).name == "exact_match"]
    small = Suite("small", tuple(items[::150]))
    target = Suite("aim", tuple(item for item in items[30::150] if item.held_out))
    store.add("queue", write_lora(tmp_path / "a", base, seed=1, strength=0.1), base=base.fingerprint)
    model = compose("queue@v1", store=store, base=base)
    said = next(item for item in target.items)
    given = Given(variants={said.id: (("scots", f"Gonnae {said.text}"),)})
    try:
        report = forgetting(model, general=[small], target=[target], rigidity=given, overhead=True)
        again = forgetting(model, general=[small], target=[target], rigidity=given)
        with pytest.raises(InputError, match="'nobody' is in none"):
            forgetting(model, general=[small], rigidity=Given(variants={"nobody": (("scots", "?"),)}))
    finally:
        model.detach()
    assert report.rigidity is not None and again.rigidity is not None and again.overhead is None
    found = Rigidity.from_dict(report.rigidity)
    assert found.subject == "queue@v1" and found.parts == Rigidity.from_dict(again.rigidity).parts
    general, aim = found.parts
    assert (general.role, general.suites, aim.role, aim.suites) == ("general", ("small",), "target", ("aim",))
    counted = [item for item in small.items if item.held_out and item.skill not in report.unreached]
    assert report.unreached and general.sources == len(counted)  # what the base cannot do is not asked again
    assert [row.kind for row in general.rows] == [ALL, *KINDS]
    assert {row.kind for row in aim.rows} == {ALL, *KINDS, "scots"}
    # The same outcomes as asking the base by hand.
    clean = dict(
        zip(
            (i.id for i in target.items),
            model.base_chat.matches(target.prompts(), target.answers()),
            strict=True,
        )
    )
    noisy = perturbed(target, given=given)
    right = model.base_chat.matches(noisy.prompts(), noisy.answers())
    asked = [
        (clean[item.id.rpartition("~")[0]], after) for item, after in zip(noisy.items, right, strict=True)
    ]
    row = next(row for row in aim.rows if row.kind == ALL)
    assert (row.base.n, row.base.lost) == (len(asked), sum(a and not b for a, b in asked))
    digest = store.resolve("queue@v1").digest
    assert {e.suite_name for e in store.evals(subject=digest)} == {
        "small",
        "aim",
        "small--rigid",
        "aim--rigid",
    }
    assert report.overhead is not None and store.reports(digest, "overhead") == [report.overhead]
    times = Overhead.from_dict(report.overhead)
    assert [cell.batch for cell in times.cells] == [1] and times.dtype == "float32"
    assert all(
        0 < cell.step_ratio.low <= cell.step_ratio.estimate <= cell.step_ratio.high for cell in times.cells
    )
