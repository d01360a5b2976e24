"""How one answer is scored. A metric is one function, its `Metric` and its place in `METRICS`; it knows no
model and no suite.

    rule.py          what a metric is
    matching.py      exact_match, contains, contains_not
    patterns.py      regex
    json_forms.py    json_valid, json_equals
    choice.py        multiple_choice, multiple_choice_norm
    overlap.py       token_f1
    rouge.py         rouge1, rouge2, rouge_l
    translation.py   bleu, chrf
    similarity.py    cosine of embeddings
    likelihood.py    perplexity, bits_per_byte
    unit.py          in which unit a score is read out

Those that are right or wrong come first; the others are graded.
"""

from __future__ import annotations

from inlay.errors import InputError
from inlay.evals.metrics.choice import MULTIPLE_CHOICE, MULTIPLE_CHOICE_NORM
from inlay.evals.metrics.json_forms import JSON_EQUALS, JSON_VALID
from inlay.evals.metrics.likelihood import BITS_PER_BYTE, PERPLEXITY
from inlay.evals.metrics.matching import CONTAINS, CONTAINS_NOT, EXACT_MATCH, contains, exact_match
from inlay.evals.metrics.overlap import TOKEN_F1
from inlay.evals.metrics.patterns import REGEX
from inlay.evals.metrics.rouge import ROUGE1, ROUGE2, ROUGE_L
from inlay.evals.metrics.rule import Metric
from inlay.evals.metrics.similarity import SIMILARITY
from inlay.evals.metrics.translation import BLEU, CHRF
from inlay.evals.metrics.unit import Unit

__all__ = ["METRICS", "Metric", "Unit", "contains", "exact_match", "metric", "unit_of"]

METRICS: tuple[Metric, ...] = (
    EXACT_MATCH,
    CONTAINS,
    CONTAINS_NOT,
    REGEX,
    JSON_VALID,
    JSON_EQUALS,
    MULTIPLE_CHOICE,
    MULTIPLE_CHOICE_NORM,
    TOKEN_F1,
    ROUGE1,
    ROUGE2,
    ROUGE_L,
    BLEU,
    CHRF,
    SIMILARITY,
    PERPLEXITY,
    BITS_PER_BYTE,
)


def metric(name: str) -> Metric:
    """The metric called `exact_match` or `exact_match/1`; InputError lists what there is."""
    for known in METRICS:
        if name in (known.name, known.key):
            return known
    names = ", ".join(known.key for known in METRICS)
    raise InputError(f"there is no metric {name[:80]!r}", fix=f"known metrics: {names}")


def unit_of(key: str) -> Unit:
    """The unit of a score kept under `exact_match/1`, or under several keys joined by "+"."""
    known = {m.name: m for m in METRICS}
    names = [part.partition("/")[0] for part in key.split("+")]
    return Unit.of(tuple(known[name] for name in names if name in known))
