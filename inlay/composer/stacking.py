"""A stack as one adapter.

A = [A₁; …; A_k], B = [w₁B₁, …, w_kB_k] per module, so that B @ A == Σ wᵢ Bᵢ Aᵢ, exactly
"""

from __future__ import annotations

from collections.abc import Sequence

from inlay.composer.factors import Adapter


def stacked(members: Sequence[tuple[Adapter, float]], name: str) -> Adapter:
    """The weighted sum of the members: ranks, modules and signs may differ. float32."""
    import torch

    rows: dict[str, list[torch.Tensor]] = {}
    columns: dict[str, list[torch.Tensor]] = {}
    for adapter, weight in members:
        for module, (a, b) in adapter.factors.items():
            rows.setdefault(module, []).append(a.float())
            columns.setdefault(module, []).append(b.float() * weight)
    factors = {
        module: (torch.cat(rows[module]), torch.cat(columns[module], dim=1)) for module in sorted(rows)
    }
    embeddings = frozenset[str]().union(*(adapter.embeddings for adapter, _ in members))
    return Adapter(name, factors, embeddings=embeddings)
