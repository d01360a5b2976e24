"""What a router says of one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Choice:
    """`expert`: its number, None for the base. `confidence`: the router's probability that the choice is
    right, None where nobody decided but the caller. `scores`: the probability of each expert and, last, of
    the base; of a router of tokens, the share that each expert had."""

    expert: int | None
    confidence: float | None = None
    scores: tuple[float, ...] = ()


def chosen(probabilities: torch.Tensor, allowed: Sequence[Sequence[bool]] | None = None) -> list[Choice]:
    """The likeliest class of each row, (rows, experts + 1), the base's last. Experts that are not `allowed`
    (rows, experts) do not exist for their row: what is left is made to sum to one again."""
    if allowed is not None:
        open_to = torch.tensor([[*row, True] for row in allowed])
        probabilities = probabilities.double() * open_to
        # The base is always left; where nothing is left even of it, it is the base's all the same.
        total = probabilities.sum(1, keepdim=True)
        probabilities[:, -1:] = torch.where(total > 0, probabilities[:, -1:], torch.ones_like(total))
        probabilities = probabilities / probabilities.sum(1, keepdim=True)
    best = probabilities.argmax(1).tolist()
    rows = probabilities.tolist()
    last = probabilities.shape[1] - 1
    return [
        Choice(None if number == last else number, row[number], tuple(row))
        for number, row in zip(best, rows, strict=True)
    ]
