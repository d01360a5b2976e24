"""Iso-C: the sum of the deltas with all of its singular values made equal.

    Σ_t Δ_t = U S Vᵀ;  M == scale * S.mean() * U @ V.T

over the directions that the sum has: a sum of low-rank deltas has no others, and the zeros of its dense form
neither count in the mean nor get a share. Marczak et al., No Task Left Behind, arXiv:2502.04959.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from inlay.composer.merging.core import significant
from inlay.composer.merging.methods import Settings


def merged(deltas: torch.Tensor, weights: Sequence[float], settings: Settings) -> torch.Tensor:
    """deltas (T, m, n), float64 -> (m, n)."""
    u, s, vh = torch.linalg.svd(deltas.sum(dim=0), full_matrices=False)
    rank = significant(s, max(deltas.shape[1:]))
    if rank == 0:
        return torch.zeros_like(deltas[0])
    return settings.params["scale"] * s[:rank].mean() * (u[:, :rank] @ vh[:rank])
