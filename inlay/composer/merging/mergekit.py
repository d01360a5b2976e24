"""mergekit's methods, on whatever matrices: cores, or dense deltas with a zero tensor for the base.

    merged(Δ, w, s) == merge_tensors([0, Δ_1, …, Δ_T], s.method, base_index=0, weight=w, …)

linear, karcher, multislerp and nuslerp know no base; slerp and nearswap go from their first input to their
second, and the first takes the base's place. Weights are normalised where and as mergekit does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from inlay.composer.merging.methods import Settings

_WITHOUT_BASE = ("linear", "karcher", "multislerp", "nuslerp")
_FROM_FIRST = ("slerp", "nearswap")


def merged(deltas: torch.Tensor, weights: Sequence[float], settings: Settings) -> torch.Tensor:
    """deltas (T, m, n), float64 -> (m, n). Draws from torch's generator where the method is random.

    Raises ValueError or RuntimeError where mergekit cannot merge these tensors.
    """
    from mergekit.merge_methods import merge_tensors

    name = settings.method.name
    parameters: dict[str, Any] = dict(settings.params)
    if settings.method.weighted:
        parameters["weight"] = list(weights)
    tensors, base_index = list(deltas), None
    if name in _FROM_FIRST:
        base_index = 0
    elif name not in _WITHOUT_BASE:
        tensors, base_index = [torch.zeros_like(deltas[0]), *tensors], 0
    return merge_tensors(tensors, name, parameters=parameters, base_index=base_index, out_dtype=deltas.dtype)
