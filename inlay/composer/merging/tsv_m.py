"""TSV-M: the tasks' singular vectors side by side, made orthogonal, with their own singular values.

    Δ_t = U_t S_t V_tᵀ, cut to the share `keep` of its rank;  U = [U_1 …], S = diag(S_1 …), V = [V_1 …]
    M == scale * polar(U) @ S @ polar(V).T

polar(X) = P Qᵀ for X = P Σ Qᵀ: the nearest matrix with orthogonal columns. Gargiulo et al., Task Singular
Vectors, arXiv:2412.00081. The paper keeps 1/T of a full matrix's directions, so that all tasks fit into it;
low-rank deltas fit as they are, and `keep` is 1. Directions that several tasks share exactly (numerically
zero in Σ) stay shared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from inlay.composer.merging.core import significant
from inlay.composer.merging.methods import Settings


def merged(deltas: torch.Tensor, weights: Sequence[float], settings: Settings) -> torch.Tensor:
    """deltas (T, m, n), float64 -> (m, n)."""
    lefts, values, rights = [], [], []
    for delta in deltas:
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        rank = significant(s, max(delta.shape))
        kept = max(1, math.ceil(settings.params["keep"] * rank)) if rank else 0
        lefts.append(u[:, :kept])
        values.append(s[:kept])
        rights.append(vh[:kept].T)
    left, right = _polar(torch.cat(lefts, dim=1)), _polar(torch.cat(rights, dim=1))
    return settings.params["scale"] * (left * torch.cat(values)) @ right.T


def _polar(columns: torch.Tensor) -> torch.Tensor:
    p, s, qh = torch.linalg.svd(columns, full_matrices=False)
    rank = significant(s, max(columns.shape))
    return p[:, :rank] @ qh[:rank]
