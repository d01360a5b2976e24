"""How likely the model holds the answer: perplexity and bits per byte. Lower is better."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from inlay.evals.metrics.rule import Metric, exp_of_mean

if TYPE_CHECKING:
    from inlay.evals.suites import Item


def nats_per_token(nats: float, tokens: int, item: Item) -> float:
    """Mean negative log-likelihood of the answer's tokens and the end of the turn, in nats."""
    return nats / tokens


def bits_per_byte(nats: float, tokens: int, item: Item) -> float:
    """Negative log-likelihood of the answer and the end of the turn in bits, over the UTF-8 bytes of the
    answer; unlike perplexity comparable between tokenizers."""
    return nats / math.log(2.0) / len(item.answer.encode())


def misfit(item: Item) -> str:
    """One text is weighed; the best of several would be another metric."""
    return "`references` are of no use to a likelihood" if item.references else ""


PERPLEXITY = Metric(
    "perplexity",
    1,
    "likelihood",
    nats_per_token,
    graded=True,
    higher_is_better=False,
    total=exp_of_mean,
    outcome_in="nats a token",
    highest=None,
    misfit=misfit,
)
"""The outcome of an item is in nats a token, the score of a suite exp(mean over its items)."""

BITS_PER_BYTE = Metric(
    "bits_per_byte",
    1,
    "likelihood",
    bits_per_byte,
    graded=True,
    higher_is_better=False,
    highest=None,
    misfit=misfit,
)
