"""How one answer is scored. A metric is one function and its line in `METRICS`; it knows no model or suite.

Every metric here is right-or-wrong, because the paired statistics (who was right before and is wrong
now) need an outcome per item.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from inlay.errors import InputError


@dataclass(frozen=True)
class Metric:
    """A named, versioned rule: `judge(prediction, answer)` says whether the prediction is right.

    `teacher_forced`: whether checking that each token of the expected answer (and the end) is the model's
    argmax gives the same outcome as generating greedily, which it does for exact match; one forward pass
    then replaces a generation. A change of the rule is a new `version`, so that old scores stay comparable
    with what they were.
    """

    name: str
    version: int
    judge: Callable[[str, str], bool]
    teacher_forced: bool = False

    @property
    def key(self) -> str:
        """`exact_match/1`: what an eval record is keyed by."""
        return f"{self.name}/{self.version}"


def exact_match(prediction: str, answer: str) -> bool:
    """Equal after stripping white space at both ends; case and inner spaces count."""
    return prediction.strip() == answer.strip()


def contains(prediction: str, answer: str) -> bool:
    """The stripped answer occurs in the prediction, whatever the case."""
    return answer.strip().casefold() in prediction.casefold()


METRICS: tuple[Metric, ...] = (
    Metric("exact_match", 1, exact_match, teacher_forced=True),
    Metric("contains", 1, contains),
)


def metric(name: str) -> Metric:
    """The metric called `exact_match` or `exact_match/1`; InputError lists what there is."""
    for known in METRICS:
        if name in (known.name, known.key):
            return known
    names = ", ".join(known.key for known in METRICS)
    raise InputError(f"there is no metric {name!r}", fix=f"known metrics: {names}")
