"""What is asked of a model, how an interrupted evaluation goes on, and which answers are kept."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evals_fakes import FakeModel, suite_of

from inlay import Registry
from inlay.errors import InputError
from inlay.evals.asking import CHUNK, Question, questions
from inlay.evals.decoding import Decoding
from inlay.evals.ledger import How, answers_of, paired, scored
from inlay.evals.partial import Partial
from inlay.evals.scoring import ANSWERS_KEPT, evaluate_model
from inlay.evals.suites import Suite

SUBJECT = "sha256:" + "c" * 64
MIXED = [
    {"id": "m", "prompt": "q0", "answer": "six", "references": ["6"]},
    {"id": "g", "prompt": "q1", "answer": "blue", "metric": "contains"},
    {"id": "c", "prompt": "q2", "choices": ["x", "yy"], "answer": "yy", "metric": "multiple_choice"},
]


class Counting(FakeModel):
    """Counts the prompts of every call, and stops as Ctrl-C does once `stop` of them were answered."""

    asked: int = 0
    stop: int | None = None

    def _counted(self, prompts: Sequence[Any]) -> None:
        if self.stop is not None and self.asked >= self.stop:
            raise KeyboardInterrupt
        self.asked += len(prompts)

    def matches(self, prompts: Sequence[Any], answers: Sequence[str], **settings: Any) -> list[bool]:
        self._counted(prompts)
        return super().matches(prompts, answers, **settings)

    def generate(self, prompts: Sequence[Any], **settings: Any) -> list[str]:
        self._counted(prompts)
        return super().generate(prompts, **settings)


def right_but(n: int, wrong: dict[int, str]) -> Counting:
    return Counting({f"q{k}": wrong.get(k, f"a{k}") for k in range(n)})


def test_questions_by_metric() -> None:
    suite = Suite.of_rows("s", MIXED)
    assert questions(suite, Decoding()) == (
        Question(0, "match", "six"),
        Question(0, "match", "6"),
        Question(1, "generate"),
        Question(2, "likelihood", "x"),
        Question(2, "likelihood", "yy"),
    )
    assert questions(suite, Decoding(temperature=1.0))[0] == Question(0, "generate")


def test_outcomes_and_answers_by_metric() -> None:
    suite = Suite.of_rows("s", MIXED)
    # The fake gives "yy" 0.5 nats a character and "x" one nat: 1.0 each, a tie, which is wrong.
    result = evaluate_model(FakeModel({"q0": "6", "q1": "It is Blue.", "q2": "yy"}), suite)
    assert result.outcomes == (True, True, False)
    assert result.answers == {"g": "It is Blue.", "c": "x"}
    result = evaluate_model(FakeModel({"q0": "seven", "q1": "red", "q2": "x"}), suite)
    assert result.outcomes == (False, False, False) and result.answers == {"g": "red", "c": "x"}


@pytest.mark.parametrize("metric", ["exact_match", "contains"])
def test_an_interrupted_evaluation_goes_on_and_asks_nothing_twice(tmp_path: Path, metric: str) -> None:
    n = 600
    suite = replace(suite_of(n), metric=metric)
    wrong = dict.fromkeys(range(0, n, 7), "no")
    whole = evaluate_model(right_but(n, wrong), suite)
    size = CHUNK["match" if metric == "exact_match" else "generate"]
    first = right_but(n, wrong)
    first.stop = 2 * size
    with pytest.raises(KeyboardInterrupt):
        evaluate_model(first, suite, partial=Partial(tmp_path, "key"))
    second, seen = right_but(n, wrong), []
    partial = Partial(tmp_path, "key")
    result = evaluate_model(
        second, suite, partial=partial, progress=lambda done, total: seen.append((done, total))
    )
    assert result == whole
    assert first.asked == 2 * size and second.asked == n - 2 * size
    assert seen == sorted(seen) and seen[0] == (2 * size, n) and seen[-1] == (n, n)
    partial.finish()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["torn", "flipped", "rubbish", "another key"])
def test_what_is_damaged_is_asked_again(tmp_path: Path, damage: str) -> None:
    suite = replace(suite_of(128), metric="contains")
    partial = Partial(tmp_path, "key")
    evaluate_model(right_but(128, {}), suite, partial=partial)
    data = partial.path.read_bytes()
    lines = data.count(b"\n") // 2
    assert lines == 2
    lost = {"torn": 64, "flipped": 64, "rubbish": 128, "another key": 128}[damage]
    if damage == "torn":
        partial.path.write_bytes(data[:-20])
    elif damage == "flipped":
        place = data.rindex(b'"a')
        partial.path.write_bytes(data[:place] + b'"b' + data[place + 2 :])
    elif damage == "rubbish":
        partial.path.write_bytes(b"\xff\x00" * 1000)
    again = right_but(128, {})
    resumed = Partial(tmp_path, "other" if damage == "another key" else "key")
    result = evaluate_model(again, suite, partial=resumed)
    assert again.asked == lost and result.score == 1.0
    # What was appended after a torn line is whole.
    assert len(Partial(tmp_path, "other" if damage == "another key" else "key").held) == 128


def test_a_cache_that_cannot_be_written_costs_only_the_resuming(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    partial = Partial(tmp_path / "file" / "partial", "key")
    assert evaluate_model(right_but(8, {}), suite_of(8), partial=partial).score == 1.0
    partial.finish()


def test_what_nobody_went_on_with_is_given_up(tmp_path: Path) -> None:
    for name in ("old", "new"):
        Partial(tmp_path, name).add({0: True})
    old, new = Partial(tmp_path, "old").path, Partial(tmp_path, "new").path
    month = time.time() - 31 * 86_400
    os.utime(old, (month, month))
    Partial(tmp_path, "another")
    assert new.exists() and not old.exists()


def test_scored_resumes_by_itself_and_leaves_nothing(store: Registry) -> None:
    from inlay.registry.fingerprint import cache_dir

    folder = cache_dir() / "partial"
    before = set(folder.glob("*")) if folder.exists() else set()
    suite = suite_of(600, name="interrupted")
    first = right_but(600, {3: "no"})
    first.stop = CHUNK["match"]
    with pytest.raises(KeyboardInterrupt):
        scored(first, suite, subject=SUBJECT, label="acme@v1", store=store)
    assert len(set(folder.glob("*")) - before) == 1
    assert store.evals(SUBJECT) == [], "nothing is kept before all is known"
    other = right_but(600, {3: "no"})
    scored(other, suite, subject="base", label="base", store=store)
    assert other.asked == 600, "another subject is another evaluation"
    second = right_but(600, {3: "no"})
    result = scored(second, suite, subject=SUBJECT, label="acme@v1", store=store)
    assert second.asked == 600 - CHUNK["match"] and [k for k, x in enumerate(result.outcomes) if not x] == [3]
    assert set(folder.glob("*")) == before


def test_answers_of_both_sides_survive_in_the_store(store: Registry) -> None:
    suite = suite_of(200)
    base = right_but(200, {0: "base nil", 1: "base one"})
    model = right_but(200, {k: f"model {k}" for k in range(1, 120)})
    before, after = paired(base, model, suite, subject=SUBJECT, label="acme@v1", store=store)
    kept = [k for k in range(2, 120) if k % 4 < 2][:ANSWERS_KEPT]
    assert len(kept) == ANSWERS_KEPT, "enough held-out items are lost"
    assert after.answers == {"i0": "a0", **{f"i{k}": f"model {k}" for k in kept}}
    assert before.answers == {"i0": "base nil", **{f"i{k}": f"a{k}" for k in kept}}, "i1: wrong both times"
    assert base.generated == 1 and model.generated == ANSWERS_KEPT, "what was right needs no generating"

    silent_base, silent = Counting({}), Counting({})
    again = paired(silent_base, silent, suite, subject=SUBJECT, label="acme@v1", store=store)
    assert again == (before, after) and silent.asked == silent_base.asked == 0
    record = store.evals(SUBJECT)[0]
    assert answers_of(store, record) == answers_of(store, after) == dict(after.answers)
    # The base against another model: only what is new is generated, and all of it is kept.
    other = right_but(200, dict.fromkeys((0, 1, 199), "x"))
    base.generated = 0
    before, _ = paired(base, other, suite, subject="sha256:" + "d" * 64, label="b@v1", store=store)
    assert base.generated == 0 and before.answers["i199"] == "a199"
    assert answers_of(store, before).keys() >= {"i0", "i199"}
    assert store.fsck() == []


def test_answers_are_those_of_one_protocol(store: Registry) -> None:
    suite = Suite.of_rows("s", [{"id": "x", "prompt": "q0", "answer": "a", "metric": "contains"}])
    greedy = scored(FakeModel({"q0": "a!"}), suite, subject=SUBJECT, label="l", store=store)
    how = How(Decoding(temperature=0.5, seed=3))
    drawn = scored(FakeModel({"q0": "b"}), suite, subject=SUBJECT, label="l", store=store, how=how)
    assert answers_of(store, greedy) == {"x": "a!"} and answers_of(store, drawn) == {"x": "b"}
    assert (greedy.score, drawn.score) == (1.0, 0.0) and len(store.evals(SUBJECT)) == 2
    sampled = {"decoding": "sampled", "temperature": 0.5, "top_p": 1.0, "seed": 3}
    assert drawn.protocol == {**greedy.protocol, **sampled}


def test_a_guard_counts_greedy_scores_only_unless_it_asks(store: Registry) -> None:
    from inlay.evals.scoring import to_record
    from inlay.registry.guards import Guard

    suite = suite_of(8)
    drawn = to_record(evaluate_model(right_but(8, {}), suite, decoding=Decoding(temperature=0.5)))
    assert not Guard().admits(drawn) and Guard(protocol={"decoding": "sampled"}).admits(drawn)
    assert Guard().admits(to_record(evaluate_model(right_but(8, {}), suite)))


@pytest.mark.parametrize(
    ("sample", "says"),
    [
        ({"temperature": -1}, "temperature must lie between 0 and 100, got -1"),
        ({"temperature": float("nan")}, "temperature must be a number"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p must lie above 0"),
        ({"temperature": 1.0, "seed": -1}, "seed must be a whole number"),
        ({"temperature": 1.0, "seed": True}, "seed must be a whole number"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number above 0"),
        ({"top_k": 5}, "no setting 'top_k'"),
        ({"top_p": 0.9}, "the temperature is 0"),
    ],
)
def test_a_decoding_that_is_none(sample: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Decoding.of(sample)


def test_graded_results() -> None:
    from scipy import stats

    says = {f"q{k}": "a b" for k in range(30)}
    rows = [{"prompt": f"q{k}", "answer": "b c", "skill": f"s{k % 2}"} for k in range(30)]
    result = evaluate_model(FakeModel(says), Suite.of_rows("s", rows, metric="token_f1"))
    expected = [2 / 3] * 30  # "a" is an article: one word of two is left
    assert result.outcomes == pytest.approx(expected) and result.graded
    says["q0"] = "b c"
    result = evaluate_model(FakeModel(says), Suite.of_rows("s", rows, metric="token_f1"))
    values = [1.0, *expected[1:]]
    oracle = stats.t.interval(0.95, 29, loc=result.score, scale=stats.sem(values))
    assert result.score == pytest.approx(sum(values) / 30) and result.interval == pytest.approx(oracle)
    assert result.skill_scores["s1"] == (pytest.approx(2 / 3), 15)
    with pytest.raises(InputError, match="read skill_scores"):
        _ = result.by_skill
    nats = evaluate_model(FakeModel(says), Suite.of_rows("s", rows, metric="perplexity"))
    assert nats.outcomes == (0.5, *[1.0] * 29)  # by the fake's rule
    low, high = nats.interval
    assert nats.score == pytest.approx(math.exp(29.5 / 30)) and low < nats.score < high
    single = evaluate_model(FakeModel(says), Suite.of_rows("s", rows[:1], metric="perplexity"))
    assert single.interval == (single.score, single.score)


def test_graded_scores_and_their_answers_are_kept(store: Registry) -> None:
    rows = [{"id": f"i{k}", "prompt": f"q{k}", "answer": "red blue"} for k in range(20)]
    suite = Suite.of_rows("s", rows, metric="rouge_l")
    base, model = FakeModel({f"q{k}": "red" for k in range(20)}), FakeModel({"q3": "red blue"})
    before, after = paired(base, model, suite, subject=SUBJECT, label="acme@v1", store=store)
    assert before.score == pytest.approx(2 / 3) and after.score == pytest.approx(1 / 20)
    assert paired(Counting({}), Counting({}), suite, subject=SUBJECT, label="acme@v1", store=store) == (
        before,
        after,
    )
    record = store.evals(SUBJECT)[0]
    assert record.splits["held_out"] == {"n": 20} and json.dumps(record.protocol_detail)
    assert store.fsck() == []


def test_where_less_is_better_a_difference_says_so(store: Registry) -> None:
    from inlay.evals.difference_text import change_words
    from inlay.evals.score_changes import score_changes

    rows = [{"id": f"i{k}", "prompt": f"q{k}", "answer": "red"} for k in range(20)]
    suite = Suite.of_rows("s", rows, metric="perplexity")
    # By the fake's rule one nat a token where it says something else, half a nat where it says "red".
    base, model = FakeModel({"q0": "red"}), FakeModel({f"q{k}": "red" for k in range(1, 16)})
    paired(base, model, suite, subject=SUBJECT, label="acme@v1", store=store)
    (found,), _ = score_changes(store, "base", SUBJECT)
    assert (found.before, found.after) == (pytest.approx(0.975), pytest.approx(0.625))
    assert found.delta == pytest.approx(found.after - found.before) and found.base == found.before
    assert (found.won, found.lost) == (15, 1) and found.to_dict()["higher_is_better"] is False
    words = change_words(found)
    assert words.startswith("down 0.35 (95% ") and words.endswith(", which is better")
