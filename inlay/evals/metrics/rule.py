"""What a metric is: a named, versioned rule that makes one outcome of what a model did with one item."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inlay.evals.suites import Item

HOWS = ("match", "generate", "choices", "likelihood")
"""How a model is asked: teacher-forced in one pass, by generating, by the likelihood of each choice, or by
the likelihood of the answer."""


def mean(outcomes: Sequence[float]) -> float:
    """The arithmetic mean."""
    return math.fsum(outcomes) / len(outcomes)


def exp_of_mean(outcomes: Sequence[float]) -> float:
    """exp(mean): from nats a token to a perplexity; infinite where that is beyond a float."""
    try:
        return math.exp(mean(outcomes))
    except OverflowError:
        return math.inf


@dataclass(frozen=True)
class Metric:
    """A rule, known by name and version; a change of the rule is a new version, so that old scores stay
    comparable with what they were.

    `how` (one of `HOWS`) says what `judge` is given:

    - `match`, `generate`: judge(prediction, answer), the prediction without special tokens, stripped. `match`
      promises that the outcome is that of checking that each token of an answer, and the end of the turn, is
      the model's argmax; one forward pass then replaces a generation.
    - `choices`: judge(nats, item), the negative log-likelihood of each of the item's choices, in order.
    - `likelihood`: judge(nats, tokens, item), the answer's negative log-likelihood and its number of tokens.

    Likelihoods are of the whole answer and the end of the turn. `graded`: outcomes are numbers, not right or
    wrong; `lowest` and `highest` bound them where the metric does. `best` picks among the outcomes for an
    item's answer and its references; `together`: judge(prediction, *answers) sees them all at once. `embeds`:
    judge is given a cosine by an embedding model instead of texts. `total` makes the score of a suite out of
    its outcomes; `outcome_in` is their unit where it is not that of the score. `needs`: the fields an item
    must have; `misfit(item)` says what else is wrong with one.
    """

    name: str
    version: int
    how: str
    judge: Callable[..., Any]
    graded: bool = False
    higher_is_better: bool = True
    needs: tuple[str, ...] = ("answer",)
    best: Callable[[Sequence[Any]], Any] = max
    total: Callable[[Sequence[float]], float] = mean
    lowest: float | None = 0.0
    highest: float | None = 1.0
    misfit: Callable[[Item], str] | None = None
    together: bool = False
    embeds: bool = False
    outcome_in: str = ""

    @property
    def key(self) -> str:
        """`exact_match/1`: what an eval record is keyed by."""
        return f"{self.name}/{self.version}"

    @property
    def teacher_forced(self) -> bool:
        """Whether one forward pass can stand for a greedy generation."""
        return self.how == "match"

    def outcome(self, prediction: str, item: Item) -> bool | float:
        """The outcome of a predicted text: the best over the item's answer and its references."""
        if self.together:
            found = self.judge(prediction, *item.accepted)
        else:
            found = self.best([self.judge(prediction, answer) for answer in item.accepted])
        return float(found) if self.graded else bool(found)

    def unfit(self, item: Item) -> str:
        """Why the metric cannot score this item: a clause about it, or ""."""
        for field in self.needs:
            if not getattr(item, field):
                return f"`{field}` is missing, which {self.name} needs"
        return self.misfit(item) if self.misfit is not None else ""
