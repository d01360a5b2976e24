"""The report at load, on the tiny random Llama of the drift tests: which items count, and what is a flip."""

from __future__ import annotations

from pathlib import Path

import pytest
from evals_fakes import suite_of
from test_drift import PROMPTS, TinyChat, tiny

from inlay.errors import InputError
from inlay.evals.forgetting import ForgettingReport
from inlay.evals.load_time import PROBE_ITEMS, at_load, probe_items, probe_prompts
from inlay.evals.suites import Suite


def test_the_probe_is_dealt_from_held_out_skills_in_turn() -> None:
    suite = suite_of(400, skills=5, held_out=3)
    items = [item for _, item in probe_items([suite])]
    assert len(items) == PROBE_ITEMS == 96 and all(item.held_out for item in items)
    assert [item.skill for item in items[:6]] == ["skill0", "skill1", "skill2"] * 2
    assert [item.id for item in items[:3]] == ["i0", "i1", "i2"]
    assert probe_prompts([suite])[0] == "q0"
    assert len(probe_items([suite_of(8, skills=4, held_out=2)])) == 4


def tiny_suite(base: TinyChat) -> Suite:
    """Two items that the base answers right, one that it answers wrong, one that another metric scores."""
    answers = base.generate(PROMPTS)
    answers[1] = "wrong"
    rows = [
        {"id": f"i{k}", "prompt": prompt, "answer": answer, "skill": f"s{k}"}
        for k, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True))
    ]
    rows[2]["metric"] = "contains"
    return Suite.of_rows("tiny", rows)


def test_flips_are_right_answers_that_no_longer_come(tmp_path: Path) -> None:
    base = TinyChat(tiny(0))
    suite = tiny_suite(base)
    same = at_load(base, TinyChat(tiny(0)), label="m@v1", general=[suite], cache=tmp_path)
    assert same.drift is not None and (same.drift.scored, same.drift.flips, same.drift.disagreement) == (
        2,
        0,
        0,
    )
    assert same.alarm is not None and same.alarm["raised"] is False

    model = TinyChat(tiny(0, nudge=0.003))
    report = at_load(base, model, label="m@v1", general=[suite], cache=tmp_path)
    expected = [
        item.id
        for item in (suite.items[0], suite.items[3])
        if model.generate([item.chat], max_new_tokens=6) != [item.answer]
    ]
    assert [flip.id for flip in report.flips] == expected == ["i0"]
    assert report.flips[0].base_answer == suite.items[0].answer
    assert report.drift is not None and report.drift.base_from_cache
    assert (report.drift.scored, report.drift.flips, report.drift.items) == (2, 1, 4)
    assert base.passes == 1 and model.passes == 1


def test_it_is_a_report_of_one_level_without_a_verdict_on_skills(tmp_path: Path) -> None:
    base = TinyChat(tiny(0))
    report = at_load(
        base, TinyChat(tiny(0, nudge=0.05)), label="m@v1", general=[tiny_suite(base)], cache=tmp_path
    )
    assert report.levels == {"weights": (), "load": ("drift", "alarm"), "registration": ()}
    assert report.held_out.n == 0 and report.alarm is not None and report.alarm["raised"]
    assert report.verdict == f"m@v1: measured at load only. {report.alarm['said']}"
    assert report.verdict.endswith("an alarm asks for the full measurement.")
    assert ForgettingReport.from_dict(report.to_dict()) == report


def test_nothing_held_out_is_nothing_to_probe(tmp_path: Path) -> None:
    base = TinyChat(tiny(0))
    with pytest.raises(InputError, match="held-out item"):
        at_load(base, base, label="m", general=[suite_of(4, held_out=0)], cache=tmp_path)
