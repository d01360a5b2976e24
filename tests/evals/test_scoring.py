"""Scoring: outcomes in item order, answers kept where they matter, records that come back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from evals_fakes import FakeModel, result_of, suite_of

from inlay.errors import InputError, IntegrityError
from inlay.evals.scoring import ANSWERS_KEPT, evaluate_model, from_record, to_record
from inlay.evals.suites import Suite


def right_but(n: int, wrong: dict[int, str]) -> FakeModel:
    return FakeModel({f"q{k}": wrong.get(k, f"a{k}") for k in range(n)})


def test_outcomes_score_and_skills() -> None:
    suite = suite_of(40)
    result = evaluate_model(right_but(40, {0: "no", 1: "no", 4: "no"}), suite)
    assert [k for k, right in enumerate(result.outcomes) if not right] == [0, 1, 4]
    assert result.score == pytest.approx(37 / 40) and result.n == 40
    assert result.interval[0] < result.score < result.interval[1]
    assert result.by_skill == {"skill0": (8, 10), "skill1": (9, 10), "skill2": (10, 10), "skill3": (10, 10)}
    assert (sum(result.split(True)), sum(result.split(False))) == (17, 20)
    assert (result.subject, result.label) == ("base", "base")


def test_only_lost_items_are_generated_and_held_out_ones_first() -> None:
    suite = suite_of(400)
    base = evaluate_model(right_but(400, {7: "base is wrong here"}), suite)
    model = right_but(400, {k: f"wrong {k}" for k in range(7, 400)})
    result = evaluate_model(model, suite, subject="sha256:x", label="acme@v2", against=base)
    assert model.generated == len(result.answers) == ANSWERS_KEPT
    assert "i7" not in result.answers  # wrong before: nothing was lost
    assert all(int(key[1:]) % 4 < 2 for key in result.answers)
    assert result.answers["i8"] == "wrong 8"


def test_nothing_lost_nothing_generated() -> None:
    suite = suite_of(20)
    base = evaluate_model(right_but(20, {}), suite)
    model = right_but(20, {})
    assert evaluate_model(model, suite, against=base).answers == {}
    assert model.generated == 0


def test_a_prompt_without_room_costs_the_answers_and_not_the_score() -> None:
    class Full(FakeModel):
        def generate(self, prompts: object, **_: object) -> list[str]:
            raise InputError("prompt and answer must fit")

    suite = suite_of(8)
    base = evaluate_model(right_but(8, {}), suite)
    result = evaluate_model(Full({"q0": "a0"}), suite, against=base)
    assert result.score == pytest.approx(1 / 8) and result.answers == {}


def test_a_metric_that_generates() -> None:
    suite = Suite.of_rows(
        "s", [{"prompt": "q0", "answer": "paris"}, {"prompt": "q1", "answer": "rome"}], metric="contains"
    )
    base = evaluate_model(FakeModel({"q0": "It is Paris.", "q1": "Rome!"}), suite)
    assert base.outcomes == (True, True) and base.metric == "contains/1"
    result = evaluate_model(FakeModel({"q0": "Paris", "q1": "Milan"}), suite, against=base)
    assert result.outcomes == (True, False) and result.answers == {"s-1": "Paris", "s-2": "Milan"}


def test_incomparable_results_are_refused() -> None:
    suite = suite_of(8)
    base = evaluate_model(right_but(8, {}), suite)
    with pytest.raises(InputError, match="one suite and metric"):
        evaluate_model(right_but(8, {}), suite_of(8, held_out=1), against=base)
    half = right_but(8, {})
    half.protocol = {"decoding": "greedy", "dtype": "bfloat16"}
    with pytest.raises(InputError, match="dtype was 'float32' for base and is 'bfloat16' here"):
        evaluate_model(half, suite, against=base)
    with pytest.raises(InputError, match="8 items, got 1 outcomes"):
        result_of(suite, [True])


def test_record_and_back() -> None:
    suite = suite_of(40)
    result = evaluate_model(right_but(40, {0: "no"}), suite, subject="sha256:" + "c" * 64, label="acme@v2")
    record = to_record(result)
    assert (record.n, record.score, record.suite, record.metric) == (
        40,
        39 / 40,
        suite.digest,
        "exact_match/1",
    )
    assert record.splits == {"held_out": {"n": 20, "right": 19}, "protected": {"n": 20, "right": 20}}
    assert record.protocol.startswith("sha256:") and record.protocol_detail == result.protocol
    assert record.versions["python"] and record.created.endswith("Z")
    assert from_record(record, suite, label="acme@v2") == replace(result, answers={})
    assert record.key == to_record(result).key
    renamed = replace(suite, metric="contains")  # the same items, which another score was by
    assert from_record(record, renamed, label="acme@v2").metric == "exact_match/1"
    with pytest.raises(IntegrityError, match="and general-v1 is"):
        from_record(record, suite_of(41))
