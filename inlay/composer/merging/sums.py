"""Methods that give a sum of the deltas, Σ c_t Δ_t: by their coefficients alone, where nothing is cut.

    G_st = ⟨Δ_s, Δ_t⟩ = Σ (B_sᵀ B_t) ⊙ (A_s A_tᵀ),  L Lᵀ = G,  f(L_1, …, L_T) = Σ c_t L_t
    A = [A_1; …; A_T],  B = [c_1 B_1, …, c_T B_T]

Such a method sees lengths and angles at most, so it gives the deltas the coefficients that it gives T short
vectors with the same Gram matrix. No basis and no decomposition of a factor is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from inlay.composer.merging.methods import Settings

Pair = tuple[torch.Tensor, torch.Tensor]
Combine = Callable[[torch.Tensor], torch.Tensor]
"""A method with its settings: deltas (T, m, n), float64 -> (m, n)."""

RESIDUAL = 1e-9
"""How far the result may be from the span of the vectors, relative to it."""


def summed(
    pairs: Sequence[Pair | None], scales: Sequence[float], settings: Settings, combine: Combine
) -> Pair | None:
    """A and B (float32) of one module; None where the rank would be larger than the dense delta's, or where
    the vectors are too nearly dependent to tell the coefficients from.

    `scales`: what each delta is multiplied with before the method sees it.
    """
    held = [(t, pair) for t, pair in enumerate(pairs) if pair is not None]
    shape = (int(held[0][1][1].shape[0]), int(held[0][1][0].shape[1]))
    if sum(int(a.shape[0]) for _, (a, _) in held) > min(shape):
        return None
    factor = torch.tensor(scales, dtype=torch.float64)
    if settings.method.sums == "fixed":
        vectors = torch.eye(len(pairs), dtype=torch.float64)
    else:
        vectors = _vectors(held, len(pairs)) * factor[:, None]
    result = combine(vectors[:, None, :])[0]
    if settings.method.sums == "fixed":
        coefficients = result
    else:
        coefficients = torch.linalg.pinv(vectors.T) @ result
        missed = float((coefficients @ vectors - result).norm())
        if not missed <= RESIDUAL * float(result.norm()):
            return None
    found = (coefficients * factor).tolist()
    kept = [(found[t], a, b) for t, (a, b) in held if found[t] != 0.0 and bool(a.any()) and bool(b.any())]
    if not kept:
        return torch.zeros(0, shape[1]), torch.zeros(shape[0], 0)
    down = torch.cat([a.float() for _, a, _ in kept])
    return down, torch.cat([(c * b.double()).float() for c, _, b in kept], dim=1)


def _vectors(held: Sequence[tuple[int, Pair]], count: int) -> torch.Tensor:
    """A row for each delta, (T, T) float64, with the deltas' lengths and angles; zero for those not held."""
    outs = torch.cat([b.T for _, (_, b) in held]).double()
    ins = torch.cat([a for _, (a, _) in held]).double()
    product = (outs @ outs.T) * (ins @ ins.T)
    ranks = [int(a.shape[0]) for _, (a, _) in held]
    gram = torch.zeros(count, count, dtype=torch.float64)
    for (s, _), rows in zip(held, product.split(ranks), strict=True):
        for (t, _), block in zip(held, rows.split(ranks, dim=1), strict=True):
            gram[s, t] = block.sum()
    values, turned = torch.linalg.eigh(gram)
    return turned * values.clamp(min=0.0).sqrt()
