"""BLEU and chrF of one item, by the library sacrebleu. Both are scaled to 0 to 1; the library says 0 to 100.

The score of a suite is the mean over its items, which is not corpus BLEU: paired statistics need an outcome
for each item. Several references are given to the library together, as both metrics are defined for several.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from inlay.evals.metrics.rule import Metric

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU as SacreBleu
    from sacrebleu.metrics.chrf import CHRF as SacreChrf


@cache
def _bleu() -> SacreBleu:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize="13a", smooth_method="exp", effective_order=True)


@cache
def _chrf() -> SacreChrf:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(char_order=6, word_order=0, beta=2)


def bleu(prediction: str, *answers: str) -> float:
    """Sentence BLEU (Papineni et al. 2002), signature case:mixed|eff:yes|tok:13a|smooth:exp, over 100."""
    return _share(_bleu().sentence_score(prediction, list(answers)).score)


def chrf(prediction: str, *answers: str) -> float:
    """Sentence chrF2 (Popovic 2015), signature case:mixed|eff:yes|nc:6|nw:0|space:no, over 100."""
    return _share(_chrf().sentence_score(prediction, list(answers)).score)


def _share(score: Any) -> float:
    return min(1.0, max(0.0, float(score) / 100.0))


BLEU = Metric("bleu", 1, "generate", bleu, graded=True, together=True)
CHRF = Metric("chrf", 1, "generate", chrf, graded=True, together=True)
