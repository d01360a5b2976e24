"""What words alone say: TF-IDF and logistic regression where the task is classification, and the most
frequent answer.

An adapter that does not beat these has learned nothing that a language model is needed for. scikit-learn
does both; the grid is chosen on the same dev rows as the few-shot prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inlay.evals.asking import needs_embedding
from inlay.evals.suites import Item, Suite
from inlay.trainers.data import Example
from inlay.trainers.few_shot import split, text_of

REPEATED = 5
"""A class is an answer that so many rows have."""
COVERED = 0.95
"""Share of the rows whose answer must be a class, where the task is classification."""
GRID = (0.1, 1.0, 10.0, 100.0)
"""Inverse strengths of the L2 penalty that are tried."""


def not_classification(examples: Sequence[Example]) -> str:
    """Why the rows are no classification task, or "".

    They are one where at least two answers are classes, an answer that at least `REPEATED` rows have, and
    at least `COVERED` of the rows have a class for an answer.
    """
    counts = Counter(example.answer for example in examples)
    classes = {answer: times for answer, times in counts.items() if times >= REPEATED}
    if len(classes) < 2:
        return f"fewer than two answers stand in {REPEATED} rows or more"
    share = sum(classes.values()) / len(examples)
    if share < COVERED:
        return f"{100 * share:.0f}% of the rows have an answer that {REPEATED} rows have, under {COVERED:.0%}"
    return ""


def most_frequent(examples: Sequence[Example]) -> str:
    """The answer that most rows have; of equals the one that comes first."""
    return Counter(example.answer for example in examples).most_common(1)[0][0]


@dataclass(frozen=True)
class BagOfWords:
    """A fitted classifier. `c`: the chosen of `GRID`; `tried`: (c, share right on `dev` rows held back)."""

    words: Any
    regression: Any
    c: float
    tried: tuple[tuple[float, float], ...]
    dev: int

    @classmethod
    def fit(cls, examples: Sequence[Example], *, seed: int = 0) -> BagOfWords:
        """Fit on all rows with the penalty that is best on the dev rows of `few_shot.split`; of equals the
        stronger one, and 1 where there are no dev rows or these leave one answer. Words and pairs of
        neighbouring words, 1 + log of their counts, by inverse document frequency."""
        rows, dev = split(examples, seed)
        tried: list[tuple[float, float]] = []
        if dev and len({row.answer for row in rows}) > 1:
            for c in GRID:
                words, regression = _fit(rows, c)
                said = regression.predict(words.transform([text_of(row.messages) for row in dev]))
                right = sum(a == row.answer for a, row in zip(said, dev, strict=True))
                tried.append((c, right / len(dev)))
        best = max(tried, key=lambda pair: pair[1])[0] if tried else 1.0
        return cls(*_fit(examples, best), best, tuple(tried), len(dev))

    def outcomes(self, suite: Suite) -> tuple[bool | float, ...]:
        """The outcome of the classifier's answer to each item, by the item's own metric; with choices the
        likeliest one of them is its answer. Call it only where `unanswerable` has no objection."""
        chances = self.regression.predict_proba(self.words.transform([text_of(i.chat) for i in suite.items]))
        known = [str(answer) for answer in self.regression.classes_]
        found: list[bool | float] = []
        for item, row in zip(suite.items, chances, strict=True):
            by_answer = dict(zip(known, row.tolist(), strict=True))
            if suite.metric_of(item).how == "choices":
                found.append(_right_choice(item, by_answer))
            else:
                found.append(suite.metric_of(item).outcome(max(by_answer, key=by_answer.__getitem__), item))
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """What a run keeps of the choice."""
        return {"c": self.c, "dev_rows": self.dev, "tried": [{"c": c, "score": s} for c, s in self.tried]}


def unanswerable(suite: Suite) -> str:
    """Why a suite cannot be answered with a text, or ""."""
    if any(metric.how == "likelihood" for metric in suite.metrics):
        return f"{suite.metric} asks for likelihoods, and a classifier has answers alone"
    return "its metric compares embeddings" if needs_embedding(suite) else ""


def outcomes_of(answer: str, suite: Suite) -> tuple[bool | float, ...]:
    """The outcomes of one answer to all items."""
    return tuple(
        item.answer == answer
        if suite.metric_of(item).how == "choices"
        else suite.metric_of(item).outcome(answer, item)
        for item in suite.items
    )


def _right_choice(item: Item, chances: dict[str, float]) -> bool:
    """Whether the right choice is likelier than each of the others; a tie is wrong."""
    own = chances.get(item.answer, 0.0)
    return all(own > chances.get(choice, 0.0) for choice in item.choices if choice != item.answer)


def _fit(examples: Sequence[Example], c: float) -> tuple[Any, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    words = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", ngram_range=(1, 2), sublinear_tf=True)
    rows = words.fit_transform([text_of(example.messages) for example in examples])
    regression = LogisticRegression(C=c, max_iter=1000)
    return words, regression.fit(rows, [example.answer for example in examples])
