"""Multiple choice: which of the choices the model holds most likely, without generating."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inlay.evals.metrics.rule import Metric

if TYPE_CHECKING:
    from inlay.evals.suites import Item


def multiple_choice(nats: Sequence[float], item: Item) -> bool:
    """The right choice is likelier, as the whole answer and its end, than each of the others; a tie is
    wrong."""
    return _least(nats, item)


def multiple_choice_norm(nats: Sequence[float], item: Item) -> bool:
    """The same by log-likelihood per UTF-8 byte of the choice, so that long choices are not at a
    disadvantage (what lm-evaluation-harness calls acc_norm, here with the end of the turn counted in)."""
    return _least([n / len(c.encode()) for n, c in zip(nats, item.choices, strict=True)], item)


def _least(costs: Sequence[float], item: Item) -> bool:
    right = item.choices.index(item.answer)
    return all(costs[right] < cost for k, cost in enumerate(costs) if k != right)


def misfit(item: Item) -> str:
    """Why the choices are none."""
    if len(item.choices) < 2 or len(set(item.choices)) < len(item.choices):
        return "`choices` must be at least two different texts"
    if item.answer not in item.choices:
        return "`answer` must be one of `choices`, or its number counted from 0"
    if item.references:
        return "`references` are of no use beside `choices`"
    return ""


_NEEDS = ("answer", "choices")
MULTIPLE_CHOICE = Metric("multiple_choice", 1, "choices", multiple_choice, needs=_NEEDS, misfit=misfit)
MULTIPLE_CHOICE_NORM = Metric(
    "multiple_choice_norm", 1, "choices", multiple_choice_norm, needs=_NEEDS, misfit=misfit
)
