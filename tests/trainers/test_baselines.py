"""Baselines: words alone against naive sums, scores from elsewhere, and what a run keeps of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inlay.builtin.tasks import rows
from inlay.errors import InputError
from inlay.evals import Suite
from inlay.evals.inference import Base, Chat
from inlay.evals.scoring import evaluate_model
from inlay.evals.statistics import wilson
from inlay.registry import Registry
from inlay.trainers.bag_of_words import (
    BagOfWords,
    most_frequent,
    not_classification,
    outcomes_of,
    unanswerable,
)
from inlay.trainers.baselines import BASE, KINDS, Baseline, Baselines, measure_baselines
from inlay.trainers.data import Example, read_dataset
from inlay.trainers.imported import Imported, read_imported

WORDS = {
    "fruit": ("apple", "pear", "plum"),
    "tool": ("hammer", "saw", "nail"),
    "sea": ("wave", "tide", "eel"),
}
CLASSED = [
    Example(f"the {word} of day {n}", answer)
    for n in range(8)
    for answer, group in WORDS.items()
    for word in group
]


def test_regression_stands_at_the_minimum_of_its_penalised_loss() -> None:
    """The gradient of ½‖W‖² + C Σ −log p, by hand from hand-made TF-IDF, is zero at the fitted weights."""
    fitted = BagOfWords.fit(CLASSED)
    names = fitted.words.get_feature_names_out().tolist()
    rows_by_hand = np.array([_tf_idf(e.messages, names) for e in CLASSED])  # type: ignore[arg-type]
    classes = fitted.regression.classes_.tolist()
    truth = np.array([[float(e.answer == c) for c in classes] for e in CLASSED])

    def gradient(weights: np.ndarray, shift: np.ndarray) -> np.ndarray:
        logits = rows_by_hand @ weights.T + shift
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        return np.concatenate(
            [weights + fitted.c * (p - truth).T @ rows_by_hand, fitted.c * (p - truth).sum(0)[:, None]], 1
        )

    there = np.abs(gradient(fitted.regression.coef_, fitted.regression.intercept_)).max()
    at_zero = np.abs(gradient(np.zeros((3, len(names))), np.zeros(3))).max()
    # The solver stops where the gradient of the mean loss, ours / (C n), is 1e-4.
    assert there <= 1e-4 * fitted.c * len(CLASSED) < 0.01 * at_zero


def _tf_idf(text: str, names: list[str]) -> list[float]:
    """(1 + log count) (1 + log((1 + n) / (1 + df))) of words and pairs, to length 1."""

    def terms(said: str) -> list[str]:
        words = said.split()
        return words + [" ".join(pair) for pair in pairwise(words)]

    documents = [set(terms(str(e.messages))) for e in CLASSED]
    own = terms(text)
    row = []
    for name in names:
        df = sum(name in document for document in documents)
        count = own.count(name)
        row.append((1 + math.log(count)) * (1 + math.log((1 + len(CLASSED)) / (1 + df))) if count else 0.0)
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


def test_penalty_is_chosen_on_dev_rows_and_answers_are_judged_by_the_suite() -> None:
    fitted = BagOfWords.fit(CLASSED)
    best = max(score for _, score in fitted.tried)
    assert fitted.dev == 18 and [c for c, _ in fitted.tried] == [0.1, 1.0, 10.0, 100.0]
    assert fitted.c == next(c for c, score in fitted.tried if score == best)
    asked = [("a pear", "fruit"), ("one saw", "tool"), ("the tide", "tool")]
    plain = Suite.of_rows("s", [{"prompt": p, "answer": a} for p, a in asked])
    assert fitted.outcomes(plain) == (True, True, False)
    graded = Suite.of_rows("g", [{"prompt": "a pear", "answer": "fruit salad"}], metric="token_f1")
    assert fitted.outcomes(graded) == (pytest.approx(2 / 3),)
    chosen = [
        {"prompt": "a pear", "answer": "fruit", "choices": ["tool", "fruit"]},
        {"prompt": "a pear", "answer": "tool", "choices": ["tool", "sea"]},  # the likelier of two unlikely
        {"prompt": "a pear", "answer": "stone", "choices": ["stone", "fruit"]},
        {"prompt": "a pear", "answer": "stone", "choices": ["stone", "moss"]},  # a tie of unknown classes
    ]
    choice = Suite.of_rows("c", chosen, metric="multiple_choice")
    chances = dict(
        zip(
            fitted.regression.classes_,
            *fitted.regression.predict_proba(fitted.words.transform(["a pear"])),
            strict=True,
        )
    )
    assert fitted.outcomes(choice) == (True, chances["tool"] > chances["sea"], False, False)


def test_what_is_a_classification_task() -> None:
    assert not_classification(CLASSED) == ""
    assert "fewer than two answers" in not_classification([Example(str(n), "yes") for n in range(50)])
    assert "fewer than two answers" in not_classification([Example(str(n), str(n)) for n in range(50)])
    almost = [Example(str(n), "yes" if n % 2 else "no") for n in range(95)]
    assert not_classification([*almost, *(Example("x", f"rare {n}") for n in range(5))]) == ""
    assert "94% of the rows" in not_classification([*almost, *(Example("x", f"rare {n}") for n in range(6))])
    few = [Example(str(n), "yes" if n < 4 else "no") for n in range(9)]
    assert "fewer than two answers" in not_classification(few)


def test_the_most_frequent_answer() -> None:
    assert most_frequent([Example("a", "x"), Example("b", "y"), Example("c", "y")]) == "y"
    suite = Suite.of_rows("s", [{"prompt": "p", "answer": "y"}, {"prompt": "q", "answer": "x"}])
    assert outcomes_of("y", suite) == (True, False)
    choice = Suite.of_rows(
        "c", [{"prompt": "p", "answer": "y", "choices": ["x", "y"]}], metric="multiple_choice"
    )
    assert outcomes_of("y", choice) == (True,)
    nats = Suite.of_rows("n", [{"prompt": "p", "answer": "y"}], metric="perplexity")
    assert "likelihoods" in unanswerable(nats) and unanswerable(suite) == ""


def test_imported_scores_from_pairs_files_and_objects(tmp_path: Path) -> None:
    one, lines = tmp_path / "one.json", tmp_path / "human.jsonl"
    one.write_text('{"name": "retrieval", "score": 0.7, "n": 200, "suite": "t", "source": "team wiki"}')
    lines.write_text('{"name": "first reader", "score": 0.9}\n\n{"name": "second reader", "score": 1}\n')
    found = read_imported(
        ["other=0.5:80", "plain=0.25", str(one), {"name": "given", "score": 0.1}, str(lines)]
    )
    assert found == (
        Imported("other", 0.5, 80, None, "command line"),
        Imported("plain", 0.25, None, None, "command line"),
        Imported("retrieval", 0.7, 200, "t", "team wiki"),
        Imported("given", 0.1, None, None, ""),
        Imported("first reader", 0.9, None, None, "human.jsonl"),
        Imported("second reader", 1.0, None, None, "human.jsonl"),
    )
    assert read_imported(None) == () and read_imported(lines) == found[4:]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("x=high", "must be NAME=SCORE or NAME=SCORE:N"),
        ("x=0.5:0", "of at least one item"),
        ("=0.5", "needs a name"),
        ("x=nan", "must be a number"),
        ("nowhere.json", "there is none at nowhere.json"),
        ({"name": "x"}, "of which name and score are needed"),
        ({"name": "x", "score": True}, "score must be a number"),
        ({"name": "x", "score": 1, "n": 1.5}, "n must be a whole number"),
        ({"name": "x", "score": 1, "suite": 3}, "suite must be a string"),
        ({"name": "x", "score": 1, "wrong": 3}, "of which name and score are needed"),
    ],
)
def test_malformed_imports_are_refused(given: str | Mapping[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_imported([given])


def test_a_percentage_is_no_share() -> None:
    suite = Suite.of_rows("t", [{"prompt": "p", "answer": "a"}])
    with pytest.raises(InputError, match=r"share between 0 and 1.*write 0.71 for 71%"):
        Baseline.imported(Imported("retrieval", 71.0), suite)
    row = Baseline.imported(Imported("retrieval", 0.71, 200), suite)
    assert (row.low, row.high) == wilson(142, 200) and row.outcomes is None


def test_baselines_of_a_task_are_measured_once_and_kept_whole(
    base: Base, store: Registry, tmp_path: Path
) -> None:
    data = list(read_dataset(rows("return-receipt", "train", 60, 0)))
    classes = [Example(e.text, "even" if len(e.text) % 2 else "odd") for e in data]
    suite = Suite.of_rows("sizes", [{"prompt": e.text, "answer": e.answer} for e in classes[:12]])
    other = Suite.of_rows("other", [{"prompt": "Copy the word: lamp", "answer": "lamp"}])
    asked: list[str] = []

    def measured() -> Baselines:
        return measure_baselines(
            Chat(base),
            classes,
            [suite, other],
            store=store,
            cache=tmp_path,
            imported=[Imported("people", 0.9, 40), Imported("rules", 0.5, suite="other")],
            say=lambda what, done, total: asked.append(what),
        )

    found = measured()
    assert [row.kind for row in found.on(suite.digest)] == list(KINDS)
    assert [row.name for row in found.on(other.digest)][-1] == "rules"
    alone, prompted, words, frequent, people = found.on(suite.digest)
    assert alone.outcomes == evaluate_model(Chat(base), suite).outcomes
    assert words.outcomes == BagOfWords.fit(classes).outcomes(suite)
    assert frequent.score == sum(e.answer == most_frequent(classes) for e in classes[:12]) / 12
    assert (people.n, people.low, people.high) == (40, *wilson(36, 40))
    kept = store.evals("base", suite.digest)
    assert sorted(record.protocol_detail["few_shot"] for record in kept) == [0, prompted.about["k"]]
    assert {record.protocol for record in kept} == {alone.protocol, prompted.protocol}
    assert asked and prompted.about["tried"]
    asked.clear()
    assert measured() == found and asked == []
    assert Baselines.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert found.to_dict()["rows"][0]["outcomes"] == "".join("01"[bool(x)] for x in alone.outcomes or ())


def test_what_cannot_be_measured_is_said(base: Base) -> None:
    free = [Example(f"say {n}", f"answer {n}") for n in range(8)]
    suite = Suite.of_rows("free", [{"prompt": "say 9", "answer": "answer 9"}])
    found = measure_baselines(Chat(base), free, [suite], with_few_shot=False)
    assert [row.kind for row in found] == [BASE]
    assert "switched off" in found.notes[0] and "no classification" in found.notes[1]
    assert measure_baselines(Chat(base), free, []) == Baselines()
    with pytest.raises(InputError, match="targets: free"):
        measure_baselines(Chat(base), free, [suite], imported=[Imported("x", 0.5, suite="paid")])
    with pytest.raises(InputError, match="declare a target suite"):
        measure_baselines(Chat(base), free, [], imported=[Imported("x", 0.5)])
    with pytest.raises(InputError, match="must have schema 1"):
        Baselines.from_dict({"schema": 9})


def test_graded_outcomes_are_kept_to_the_last_bit() -> None:
    row = Baseline("base", "base", "s", "sha256:0", "token_f1/1", 0.3, 3, 0.1, 0.5, (0.1, 1 / 3, 1.0))
    assert Baseline.from_dict(json.loads(json.dumps(row.to_dict()))) == row
