"""Arrow: each token goes to the experts whose strongest direction it lies along.

    prototypes[m][e] = v, with B_e A_e = U diag(s) Vᵀ in module m, s descending, v the first column of V
    a token with input x takes the top_k experts of largest |x · v|

v is the direction that the expert's delta stretches most. No data and nothing to fit: v comes from the
factors alone, by the exact decomposition of their core (QR of both, SVD of the small product, float64) and
not by power iteration, which on a flat spectrum has not arrived after fifteen steps. Where the largest
singular values agree, v is one of many.
Ostapenko et al., Towards Modular LLMs by Building and Reusing a Library of LoRAs, arXiv:2405.11157.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from inlay.composer.factors import Adapter
from inlay.composer.merging.core import core_of
from inlay.composer.stacking import stacked
from inlay.errors import InputError


class Arrow:
    """A router of tokens. It keeps no weights: its prototypes are read off the experts it routes to."""

    name: ClassVar[str] = "arrow"

    @staticmethod
    def prototypes(experts: Sequence[Sequence[tuple[Adapter, float]]]) -> dict[str, torch.Tensor]:
        """Module -> (experts, in), float32 on the CPU: unit vectors, the largest entry of each positive; rows
        of zeros where an expert leaves the module alone, or its delta there is 0.

        An expert is a weighted sum of adapters, whose ranks and modules may differ. InputError for an adapter
        of an embedding, which reads ids and no vectors.
        """
        for adapter, _ in (member for expert in experts for member in expert):
            if adapter.embeddings:
                raise InputError(
                    f"tokens are routed by the vectors that a module reads, and {adapter.name} adapts "
                    f"{min(adapter.embeddings)}, which looks up ids",
                    fix="leave the embedding out of its target modules, or route whole requests",
                )
        sums = [stacked([(adapter, w) for adapter, w in expert if w], "expert").factors for expert in experts]
        found = {}
        for module in sorted({module for factors in sums for module in factors}):
            rows = [_strongest(*factors[module]) if module in factors else None for factors in sums]
            width = next(factors[module][0].shape[1] for factors in sums if module in factors)
            found[module] = torch.stack([torch.zeros(width) if row is None else row for row in rows])
        return found


def _strongest(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor | None:
    """The top right singular vector (in,) of B @ A, float32; None where nothing is left of B @ A but the
    rounding of its factors."""
    core = core_of([(a, b)], "free")
    _, values, rights = torch.linalg.svd(core.cores[0], full_matrices=False)
    if not len(values) or float(values[0]) <= float(a.norm() * b.norm()) * torch.finfo(a.dtype).eps:
        return None
    vector = core.right(rights[:1].T).squeeze(1)
    vector = vector / vector.norm()
    return (vector * vector[vector.abs().argmax()].sign()).float()
