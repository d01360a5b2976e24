"""Texts compared whole or in part: exact_match, contains, contains_not."""

from __future__ import annotations

from inlay.evals.metrics.rule import Metric


def exact_match(prediction: str, answer: str) -> bool:
    """Equal after stripping white space at both ends; case and inner spaces count."""
    return prediction.strip() == answer.strip()


def contains(prediction: str, answer: str) -> bool:
    """The stripped answer occurs in the prediction, whatever the case."""
    return answer.strip().casefold() in prediction.casefold()


def contains_not(prediction: str, answer: str) -> bool:
    """The stripped answer occurs nowhere in the prediction, whatever the case, and the prediction says
    something: silence avoids every word and is no answer."""
    return bool(prediction.strip()) and not contains(prediction, answer)


EXACT_MATCH = Metric("exact_match", 1, "match", exact_match)
CONTAINS = Metric("contains", 1, "generate", contains)
CONTAINS_NOT = Metric("contains_not", 1, "generate", contains_not, best=min)
