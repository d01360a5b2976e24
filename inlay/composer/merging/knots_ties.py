"""KnOTS-TIES: TIES on the deltas written in one left basis that all of them share.

    [Δ_1 | … | Δ_T] = U Σ [V_1ᵀ | … | V_Tᵀ];  M == scale * U @ ties(Σ V_1ᵀ, …, Σ V_Tᵀ)
    ties: each block keeps the share `density` of its entries, the largest; a place takes the sign of its
    sum, and the mean of the entries that have it

Σ V_tᵀ is Uᵀ Δ_t. The columns stay the inputs of the layer, so nothing is lost by working on Uᵀ Δ_t from the
start. Stoica et al., Model merging with SVD to tie the KnOTS, arXiv:2410.19735; Yadav et al., TIES-Merging,
arXiv:2306.01708, here module by module.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from inlay.composer.merging.core import significant
from inlay.composer.merging.methods import Settings


def merged(deltas: torch.Tensor, weights: Sequence[float], settings: Settings) -> torch.Tensor:
    """deltas (T, m, n), float64 -> (m, n)."""
    u, s, _ = torch.linalg.svd(torch.cat(list(deltas), dim=1), full_matrices=False)
    u = u[:, : significant(s, max(deltas.shape[1], deltas.shape[0] * deltas.shape[2]))]
    return settings.params["scale"] * u @ _ties(u.T @ deltas, settings.params["density"])


def _ties(blocks: torch.Tensor, density: float) -> torch.Tensor:
    trimmed = torch.stack([_trimmed(block, density) for block in blocks])
    sign = torch.where(trimmed.sum(dim=0) >= 0, 1.0, -1.0)
    agree = trimmed * sign > 0
    return (trimmed * agree).sum(dim=0) / agree.sum(dim=0).clamp(min=1)


def _trimmed(block: torch.Tensor, density: float) -> torch.Tensor:
    """Entries as large as the k-th largest stay, so that the order of equal ones does not matter."""
    if density >= 1.0 or not block.numel():
        return block
    if density <= 0.0:
        return torch.zeros_like(block)
    magnitudes = block.abs().flatten()
    least = magnitudes.kthvalue(len(magnitudes) - max(1, int(density * len(magnitudes))) + 1).values
    return block * (block.abs() >= least)
