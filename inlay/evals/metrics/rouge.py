"""ROUGE (Lin 2004) by the library rouge-score."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from inlay.evals.metrics.rule import Metric

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

_WORDS = re.compile(r"[^\W_]+")


class Words:
    """Lower-case runs of letters and digits of any script. The library's own tokeniser, with which this one
    agrees on ASCII, keeps a-z and 0-9 only, so that a text in another script is empty to it."""

    def tokenize(self, text: str) -> list[str]:
        return _WORDS.findall(text.lower())


@cache
def _scorer(kind: str) -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], use_stemmer=False, tokenizer=Words())


def _f(kind: str, prediction: str, answer: str) -> float:
    return float(_scorer(kind).score(answer, prediction)[kind].fmeasure)


def rouge1(prediction: str, answer: str) -> float:
    """F measure of common words, 0 to 1; no stemming."""
    return _f("rouge1", prediction, answer)


def rouge2(prediction: str, answer: str) -> float:
    """F measure of common pairs of neighbouring words, 0 to 1; no stemming."""
    return _f("rouge2", prediction, answer)


def rouge_l(prediction: str, answer: str) -> float:
    """F measure of the longest common subsequence of words, 0 to 1; no stemming, the text one sentence."""
    return _f("rougeL", prediction, answer)


ROUGE1 = Metric("rouge1", 1, "generate", rouge1, graded=True)
ROUGE2 = Metric("rouge2", 1, "generate", rouge2, graded=True)
ROUGE_L = Metric("rouge_l", 1, "generate", rouge_l, graded=True)
