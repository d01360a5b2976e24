"""When to abstain, and how sure a choice is: found on what a router says of prompts it was not fitted on.

    p = softmax([s_1, …, s_k, max(s_base, floor)] / temperature)

The choice is the class of the largest p, and p is its confidence. The floor is what a request must reach to
go to an expert at all, however little the base resembles it: the one that loses least when a missed request
and a general prompt sent to an expert count alike, each as a share of its kind. The temperature is that of
the least cross-entropy (Guo et al. 2017, On Calibration of Modern Neural Networks) against targets of
(n + 1) / (n + 2), without which n prompts that are all right would make it sure of everything (Platt 1999).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

TEMPERATURES = torch.logspace(-5, 1, 241, dtype=torch.float64)
CAUTION = 0.1
"""Where several floors lose as little, how far from the lowest to the highest the one taken lies. Not
halfway: requests left out one by one resemble what is left more than the next, in words of its own, will."""


@dataclass(frozen=True)
class Calibration:
    """`floor` in units of the scores; `missed`: share of experts' requests not sent to their expert,
    `strayed`: of general prompts sent to one, of prompts that the fit had not seen."""

    floor: float | None = None
    temperature: float = 1.0
    missed: float | None = None
    strayed: float | None = None

    @classmethod
    def of(cls, scores: torch.Tensor, labels: torch.Tensor) -> Calibration:
        """scores (n, k + 1), the base's last, of unseen prompts; labels long (n,), k for general ones."""
        k = scores.shape[1] - 1
        scores, general = scores.double(), labels == k
        best = scores[:, :k].amax(1)
        won = best > scores[:, k]
        right = best[won & ~general & (scores[:, :k].argmax(1) == labels)]
        floor, missed, strayed = _floor(
            right, int((~general).sum()), best[won & general], int(general.sum()), best[general]
        )
        raised = torch.cat([scores[:, :k], scores[:, k:].clamp_min(floor)], 1)
        # Each kind weighs a half, however many prompts it has.
        count = torch.where(general, general.sum(), (~general).sum()).double()
        target = (count + 1) / (count + 2)
        costs = []
        for t in TEMPERATURES:
            log_p = (raised / t).log_softmax(1)
            own = log_p.gather(1, labels[:, None]).squeeze(1)
            rest = log_p.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
            costs.append(float((-(target * own + (1 - target) * rest) / count).sum()))
        temperature = float(TEMPERATURES[min(range(len(costs)), key=costs.__getitem__)])
        return cls(floor, temperature, missed, strayed)

    def probabilities(self, scores: torch.Tensor) -> torch.Tensor:
        """(rows, k + 1) scores, the base's last -> float32 (rows, k + 1)."""
        scores = scores.double().clone()
        if self.floor is not None:
            scores[:, -1].clamp_(min=self.floor)
        return (scores / self.temperature).softmax(1).float()


def _floor(
    right: torch.Tensor, requests: int, stray: torch.Tensor, general: int, seen: torch.Tensor
) -> tuple[float, float, float]:
    """(floor, share missed, share strayed). Scores of requests that their expert wins, how many requests
    there are; scores of general prompts that an expert wins, how many there are; the best expert's score of
    every general prompt."""
    edges = torch.cat([right, stray, torch.zeros(1, dtype=torch.float64)]).unique()
    missed = 1 - _above(right, edges) / requests
    strayed = _above(stray, edges) / max(1, general)
    loss = missed + strayed
    best = (loss <= loss.min() + 1e-12).nonzero().flatten()
    low, last = float(edges[best[0]]), int(best[-1])
    high = float(edges[last + 1]) if last + 1 < len(edges) else low
    if len(seen) and low < float(seen.max()) < high:
        low = float(seen.max())  # what the base won by its own score alone, it may not win the next time
    return low + CAUTION * (high - low), float(missed[best[0]]), float(strayed[best[0]])


def _above(values: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """How many of `values` exceed each of `limits`."""
    ordered = values.sort().values
    return (len(ordered) - torch.searchsorted(ordered, limits, right=True)).double()
