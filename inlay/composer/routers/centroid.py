"""Centroids: a request goes where the mean of the examples is nearest, in the probe's features.

    s_c = −‖x − μ_c‖² / 2 + ‖x‖² / 2 = x · μ_c − ‖μ_c‖² / 2

Known since Fix and Hodges (1951) had something to compare with; here to say what the ridge regression adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from inlay.composer.routers.fitted import Solved, calibrated
from inlay.composer.routers.probe import Probe


@dataclass(frozen=True)
class Centroid(Probe):
    name: ClassVar[str] = "centroid"

    @classmethod
    def solve(
        cls,
        x: torch.Tensor,
        labels: torch.Tensor,
        share: torch.Tensor,
        groups: list[torch.Tensor],
        experts: int,
    ) -> Solved:
        classes = int(labels.max()) + 1
        counts = torch.bincount(labels, minlength=classes).double()
        sums = torch.zeros(classes, x.shape[1], dtype=torch.float64).index_add_(0, labels, x)
        means = sums / counts[:, None]
        index = torch.cat(groups)
        unseen = _scores(x[index], means)
        start = 0
        for group in groups:
            here, own = slice(start, start + len(group)), int(labels[group[0]])
            start += len(group)
            left = float(counts[own]) - len(group)
            if left:
                without = (sums[own] - x[group].sum(0)) / left
                unseen[here, own] = _scores(x[group], without[None]).flatten()
            else:
                unseen[here, own] = -torch.inf
        return Solved(means.T, -(means**2).sum(1) / 2, calibrated(unseen, labels[index], experts))


def _scores(x: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    return x @ means.T - (means**2).sum(1) / 2
