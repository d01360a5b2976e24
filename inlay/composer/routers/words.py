"""Words: the probe's regression on the words of a prompt instead of a model's states. Shipped because what
looks into the model must beat it. Features are TF-IDF, centred.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from inlay.composer.routers.fitted import Fitted, Solved
from inlay.composer.routers.probe import solve_ridge, standardised
from inlay.composer.routers.seen import Seen
from inlay.composer.routers.tfidf import counted, inverse_frequency, weighed


@dataclass(frozen=True)
class Words(Fitted):
    name: ClassVar[str] = "words"
    reads_states: ClassVar[bool] = False

    @classmethod
    def learn_features(
        cls, seen: Seen, share: torch.Tensor, seed: int
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        counts = counted(seen.texts)
        idf = inverse_frequency(counts)
        mean = (share[:, None] * weighed(counts, idf)).sum(0)
        return {"seed": seed}, {"idf": idf.float(), "mean": mean.float()}

    def features(self, seen: Seen) -> torch.Tensor:
        return (weighed(counted(seen.texts), self.tensors["idf"].double()) - self.tensors["mean"]).float()

    def raw(self, x: torch.Tensor) -> torch.Tensor:
        return standardised(super().raw(x), x, self)

    @classmethod
    def solve(
        cls,
        x: torch.Tensor,
        labels: torch.Tensor,
        share: torch.Tensor,
        groups: list[torch.Tensor],
        experts: int,
    ) -> Solved:
        return solve_ridge(x, labels, share, groups, experts)
