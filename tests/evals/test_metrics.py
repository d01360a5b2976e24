"""Metrics against figures worked out by hand, and against the libraries' own functions."""

from __future__ import annotations

import math

import pytest

from inlay.errors import InputError
from inlay.evals.metrics import METRICS, metric, unit_of
from inlay.evals.suites import Item, Suite


def item(answer: str = "a", **fields: object) -> Item:
    return Item("i", "p", answer, **fields)  # type: ignore[arg-type]


def said(name: str, prediction: str, answer: str, *references: str) -> bool | float:
    return metric(name).outcome(prediction, item(answer, references=references))


@pytest.mark.parametrize(
    ("name", "prediction", "answer", "right"),
    [
        ("exact_match", " Paris\n", "Paris", True),
        ("exact_match", "paris", "Paris", False),
        ("contains", "It is PARIS.", "Paris", True),
        ("contains", "It is Straße", "STRASSE", True),
        ("contains", "Par is", "Paris", False),
        ("contains_not", "The sky is wide.", "blue", True),
        ("contains_not", "A Blue sky", "blue", False),
        ("contains_not", "  ", "blue", False),
        ("regex", " 12 apples\n", r"\d+ apples", True),
        ("regex", "I have 12 apples", r"\d+ apples", False),
        ("regex", "one\ntwo", "one.two", True),
        ("regex", "YES", "(?i)yes|no", True),
        ("json_valid", ' {"a": [1, null]} ', "", True),
        ("json_valid", '{"a": NaN}', "", False),
        ("json_valid", "{'a': 1}", "", False),
        ("json_valid", "```json\n{}\n```", "", False),
        ("json_valid", "[" * 100_000, "", False),
        ("json_equals", '{"b": 2.0, "a": [true]}', '{"a": [true], "b": 2}', True),
        ("json_equals", '```json\n{"a": 1}\n```', '{"a": 1}', True),
        ("json_equals", '{"a": true}', '{"a": 1}', False),
        ("json_equals", "[1, 2]", "[2, 1]", False),
        ("json_equals", "[0]", "[false]", False),
        ("json_equals", "none", "null", False),
    ],
)
def test_right_or_wrong(name: str, prediction: str, answer: str, right: bool) -> None:
    assert said(name, prediction, answer) is right


def test_several_answers_are_as_good_and_several_forbidden_words_as_bad() -> None:
    assert said("exact_match", "6", "six", "6") is True
    assert said("contains", "the USA", "America", "usa") is True
    assert said("regex", "six", r"\d", "six") is True
    assert said("contains_not", "red sky", "blue", "red") is False
    assert said("contains_not", "grey sky", "blue", "red") is True
    assert said("token_f1", "the cat", "a dog", "cat") == 1.0


@pytest.mark.parametrize(
    ("prediction", "answer", "f1"),
    [
        # Precision 1/2 and recall 1: the F measure is 2/3.
        ("Denver Broncos", "The Broncos!", 2 / 3),
        # Articles and punctuation go, case too: nothing differs.
        ("Saint Bernadette Soubirous", "saint bernadette  soubirous.", 1.0),
        # One of "cat" counts once: precision 1/3, recall 1/2.
        ("cat cat cat", "cat dog", 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)),
        ("north", "south", 0.0),
        # Nothing is left of either, and only of one.
        ("the", "a", 1.0),
        ("the", "cat", 0.0),
    ],
)
def test_token_f1_as_worked_out_by_hand(prediction: str, answer: str, f1: float) -> None:
    assert said("token_f1", prediction, answer) == pytest.approx(f1, abs=1e-12)


PAIRS = [
    ("The cat sat on the mat.", "There is a cat on the mat."),
    ("the the the", "the cat"),
    ("", "something"),
    ("exactly the same words here", "exactly the same words here"),
]


@pytest.mark.parametrize(("prediction", "answer"), PAIRS)
def test_rouge_is_that_of_the_library_on_ascii(prediction: str, answer: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    names = {"rouge1": "rouge1", "rouge2": "rouge2", "rouge_l": "rougeL"}
    scorer = RougeScorer(list(names.values()), use_stemmer=False)
    expected = scorer.score(answer, prediction)
    for ours, theirs in names.items():
        assert said(ours, prediction, answer) == pytest.approx(expected[theirs].fmeasure, abs=1e-12)


def test_rouge_reads_other_scripts() -> None:
    assert said("rouge1", "кот сидит", "кот спит") == pytest.approx(0.5)
    assert said("rouge_l", "a b c d", "a c d e") == pytest.approx(0.75)


@pytest.mark.parametrize(("prediction", "answer"), PAIRS)
def test_bleu_and_chrf_are_those_of_the_library(prediction: str, answer: str) -> None:
    import sacrebleu

    references = [answer, "A cat was on the mat"]
    bleu = sacrebleu.sentence_bleu(prediction, references, use_effective_order=True).score
    chrf = sacrebleu.sentence_chrf(prediction, references).score
    assert said("bleu", prediction, *references) == pytest.approx(min(1.0, bleu / 100), abs=1e-12)
    assert said("chrf", prediction, *references) == pytest.approx(min(1.0, chrf / 100), abs=1e-12)


def test_choices_by_likelihood_and_by_likelihood_a_byte() -> None:
    plain, norm = metric("multiple_choice"), metric("multiple_choice_norm")
    short = item("no", choices=("no", "certainly not"))
    # 2 and 13 bytes: 3/2 nats a byte against 4/13.
    assert plain.judge([3.0, 4.0], short) is True and norm.judge([3.0, 4.0], short) is False
    assert plain.judge([3.0, 3.0], short) is False  # a tie is no choice
    wide = item("ñ", choices=("ñ", "no"))
    assert norm.judge([3.0, 3.1], wide) is True  # ñ has two bytes


def test_likelihoods_in_nats_and_in_bits() -> None:
    two = item("äb")  # three bytes
    assert metric("perplexity").judge(6.0, 4, two) == 1.5
    assert metric("bits_per_byte").judge(6.0, 4, two) == pytest.approx(6.0 / math.log(2) / 3)
    assert metric("perplexity").total([1.0, 3.0]) == pytest.approx(math.exp(2.0))
    assert metric("perplexity").total([1e4]) == math.inf
    assert metric("bits_per_byte").total([1.0, 3.0]) == 2.0


def test_every_metric_has_a_key_of_its_own_and_is_found_by_it() -> None:
    assert len({m.key for m in METRICS}) == len({m.name for m in METRICS}) == len(METRICS)
    assert all(metric(m.name) is metric(m.key) is m for m in METRICS)
    assert [m.name for m in METRICS if not m.higher_is_better] == ["perplexity", "bits_per_byte"]
    with pytest.raises(InputError, match=r"no metric 'rouge'.*rouge1/1"):
        metric("rouge")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"metric": "regex", "answer": "(a"}, "must be a regular expression"),
        ({"metric": "json_equals", "answer": "{a}"}, "must be JSON text"),
        ({"metric": "multiple_choice", "answer": "a"}, "`choices` is missing, which multiple_choice needs"),
        ({"metric": "multiple_choice", "answer": "c", "choices": ["a", "b"]}, "must be one of `choices`"),
        ({"metric": "multiple_choice", "answer": 2, "choices": ["a", "b"]}, "counted from 0, not 2"),
        ({"metric": "multiple_choice", "answer": True, "choices": ["a", "b"]}, "must be text, not bool"),
        ({"metric": "multiple_choice", "answer": "a", "choices": ["a", "a"]}, "at least two different"),
        ({"metric": "multiple_choice", "answer": "a", "choices": []}, "a list of at least one text"),
        ({"metric": "contains"}, "`answer` is missing, which contains needs"),
        ({"metric": "perplexity", "answer": "a", "references": ["b"]}, "`references` are of no use"),
        ({"metric": "accuracy", "answer": "a"}, "there is no metric 'accuracy'"),
        ({"metric": "contains", "answer": "a", "references": "b"}, "`references` must be a list"),
        ({"answer": "a", "slice": 3}, "`slice` must be text, not int"),
    ],
)
def test_a_metric_that_does_not_fit_is_named_with_its_line(row: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=r"s, line 2: ") as caught:
        Suite.of_rows("s", [{"prompt": "p", "answer": "a"}, {"prompt": "p", **row}])
    assert says in str(caught.value)


def test_units() -> None:
    assert unit_of("exact_match/1").score(0.545) == "54.5%"
    assert unit_of("token_f1/1").score(0.545) == "54.5%"
    assert unit_of("contains/1+exact_match/1").change("3.2") == "3.2 points"
    perplexity = unit_of("perplexity/1")
    assert (perplexity.score(3.21748), perplexity.change("0.3")) == ("3.217", "0.3")
    assert perplexity.mean == "perplexity: nats a token" and not perplexity.higher_is_better
    assert unit_of("somebody-elses/3").score(1.0) == "100.0%"
