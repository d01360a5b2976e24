"""When to abstain, and how sure a choice is: found on what a router says of prompts it was not fitted on.

    p = softmax([s_1, …, s_k, s_base + threshold] / temperature)

The choice is the class of the largest p, and p is its confidence. The threshold is the margin that a request
must have over the base to go to an expert: the one that loses least when a missed request and a general
prompt sent to an expert count alike, each as a share of its kind. The temperature is that of the least
cross-entropy (Guo et al. 2017, On Calibration of Modern Neural Networks).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

TEMPERATURES = torch.logspace(-2.5, 1, 141, dtype=torch.float64)


@dataclass(frozen=True)
class Calibration:
    """`threshold` in units of the scores; `missed`: share of experts' requests not sent to their expert,
    `strayed`: of general prompts sent to one, of prompts that the fit had not seen."""

    threshold: float = 0.0
    temperature: float = 1.0
    missed: float | None = None
    strayed: float | None = None

    @classmethod
    def of(cls, scores: torch.Tensor, labels: torch.Tensor) -> Calibration:
        """scores (n, k + 1), the base's last, of unseen prompts; labels long (n,), k for general ones."""
        k = scores.shape[1] - 1
        scores, general = scores.double(), labels == k
        margin = scores[:, :k].amax(1) - scores[:, k]
        right = (scores[:, :k].argmax(1) == labels) & ~general
        threshold, missed, strayed = _threshold(margin[right], int((~general).sum()), margin[general])
        shifted = torch.cat([scores[:, :k], scores[:, k:] + threshold], 1)
        # Each kind weighs a half, however many prompts it has.
        weight = torch.where(general, 0.5 / general.sum(), 0.5 / (~general).sum()).double()
        costs = [
            float((weight * torch.nn.functional.cross_entropy(shifted / t, labels, reduction="none")).sum())
            for t in TEMPERATURES
        ]
        temperature = float(TEMPERATURES[min(range(len(costs)), key=costs.__getitem__)])
        return cls(threshold, temperature, missed, strayed)

    def probabilities(self, scores: torch.Tensor) -> torch.Tensor:
        """(rows, k + 1) scores, the base's last -> float32 (rows, k + 1)."""
        scores = scores.double().clone()
        scores[:, -1] += self.threshold
        return (scores / self.temperature).softmax(1).float()


def _threshold(right: torch.Tensor, requests: int, general: torch.Tensor) -> tuple[float, float, float]:
    """(threshold, share missed, share strayed): margins of requests whose best expert is right, how many
    requests there are, margins of general prompts. Of equally good ones the middle."""
    edges = torch.cat([right, general, torch.zeros(1, dtype=torch.float64)]).unique()
    reach = float(edges[-1] - edges[0]) or 1.0
    between = (edges[1:] + edges[:-1]) / 2
    candidates = torch.cat([edges[:1] - 0.05 * reach, between, edges[-1:] + 0.05 * reach])
    missed = 1 - _above(right, candidates) / requests
    strayed = _above(general, candidates) / max(1, len(general))
    loss = missed + strayed
    best = (loss <= loss.min() + 1e-12).nonzero().flatten()
    # Where nothing lies between, any is as good: the middle of the widest gap is the safest of them.
    low, high = float(candidates[best[0]]), float(candidates[best[-1]])
    middle = min(best.tolist(), key=lambda i: abs(float(candidates[i]) - (low + high) / 2))
    return float(candidates[middle]), float(missed[middle]), float(strayed[middle])


def _above(values: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """How many of `values` exceed each of `limits`."""
    ordered = values.sort().values
    return (len(ordered) - torch.searchsorted(ordered, limits, right=True)).double()
