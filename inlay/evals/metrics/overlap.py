"""Token F1 as SQuAD defines it (Rajpurkar et al. 2016, arXiv 1606.05250; evaluation script 1.1)."""

from __future__ import annotations

import re
import string
from collections import Counter

from inlay.evals.metrics.rule import Metric

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised(text: str) -> list[str]:
    """The words of a text: lower case, without ASCII punctuation, without a, an, the."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def token_f1(prediction: str, answer: str) -> float:
    """Harmonic mean of the share of the prediction's words that the answer has and the share of the answer's
    that the prediction has, repeated words counted, 0 to 1. Where one of the two has no words: 1 if neither
    has, else 0."""
    said, wanted = normalised(prediction), normalised(answer)
    if not said or not wanted:
        return float(said == wanted)
    common = (Counter(said) & Counter(wanted)).total()
    return 2.0 * common / (len(said) + len(wanted))


TOKEN_F1 = Metric("token_f1", 1, "generate", token_f1, graded=True)
