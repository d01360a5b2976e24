"""The core space: small matrices that are the deltas, in bases that all of them share.

    U S_U W_U = [B_1 … B_T],  V S_V W_V = [A_1; …; A_T]ᵀ  (singular value decompositions)
    M_t = Uᵀ (B_t A_t) V,  B_t A_t == U M_t Vᵀ

By QR and the decomposition of the small factor: O(R² (in + out)) with R = Σ r_t, and no dense product. The
columns are ordered by singular value and each has its largest entry positive, so that the basis, and with it
the result of a method that works element by element, is the same in whatever order the adapters come. What
is equivariant under rotations gives the same in any orthonormal basis, and there QR alone does it: by
Cholesky where the columns are far enough from dependent that squaring their condition costs nothing that
float32 would show, else by Householder's reflections.
Panariello et al., Accurate and Efficient Low-Rank Model Merging in Core Space, arXiv:2509.17786.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from inlay.composer.merging.methods import Basis

Pair = tuple[torch.Tensor, torch.Tensor]
Back = Callable[[torch.Tensor], torch.Tensor]
"""Coordinates (k, r) in a basis (n, k) -> the vectors (n, r)."""

CLOSE = 1e-5
"""Singular values nearer than this (relatively) leave their vectors free to turn into one another."""


CONDITION = 1e4
"""Up to here QR goes by Cholesky: its basis is orthonormal to about eps κ², 2e-8 in float64."""


@dataclass(frozen=True)
class Core:
    """cores (T, k, l), float64; `left`, `right` lead back out of the bases U (out, k) and V (in, l). `free`:
    neighbouring singular values agree, so that a singular basis is one of many.
    """

    cores: torch.Tensor
    left: Back
    right: Back
    free: bool


def core_of(pairs: Sequence[Pair | None], basis: Basis) -> Core:
    """The core space of one module; None where an adapter leaves the module alone, its core is then zero.

    pairs: (A_t (r_t, in), B_t (out, r_t)), any floating dtype; at least one is not None. `basis` is that of
    the method: "bound" takes the singular bases, "free" any, "left" keeps the columns of the deltas (V = 1).
    """
    held = [pair for pair in pairs if pair is not None]
    ranks = [0 if pair is None else int(pair[0].shape[0]) for pair in pairs]
    columns = torch.cat([b.T for _, b in held]).double().T  # by columns in memory, as LAPACK wants them
    rows = torch.cat([a for a, _ in held]).double()
    if basis == "bound":
        lefts, left, values = _singular(columns)
        rights, right, others = _singular(rows.T)
        free = close_together(values) or close_together(others)
        return Core(_products(lefts, rights.T, ranks), left, right, free)
    lefts, left = _orthonormal(columns)
    if basis == "left":
        return Core(_products(lefts, rows, ranks), left, unit, False)
    rights, right = _orthonormal(rows.T)
    return Core(_products(lefts, rights.T, ranks), left, right, False)


def unit(coordinates: torch.Tensor) -> torch.Tensor:
    """The way back out of the unit basis."""
    return coordinates


def _products(lefts: torch.Tensor, rights: torch.Tensor, ranks: list[int]) -> torch.Tensor:
    """(Uᵀ B_t)(A_t V) for each t: (T, k, l) out of (k, R) and (R, l)."""
    parts = zip(lefts.split(ranks, dim=1), rights.split(ranks), strict=True)
    return torch.stack([one @ other for one, other in parts])


def dense_of(pairs: Sequence[Pair | None]) -> torch.Tensor:
    """The deltas themselves: (T, out, in), float64."""
    a, b = next(pair for pair in pairs if pair is not None)
    zero = torch.zeros(int(b.shape[0]), int(a.shape[1]), dtype=torch.float64)
    return torch.stack([zero if pair is None else pair[1].double() @ pair[0].double() for pair in pairs])


def lift(
    merged: torch.Tensor, left: Back, right: Back, *, rank: int | None, energy: float | None
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """U M Vᵀ as factors A (r, in), B (out, r), float32, with the relative Frobenius error of what was cut.

    The cut is the exact decomposition of M (k, l), hence the best of its rank. Numerically zero directions
    go in any case; a zero matrix has rank 0.
    """
    outer, values, inner = torch.linalg.svd(merged, full_matrices=False)
    kept = significant(values, max(merged.shape))
    squares = values.square()
    total = squares.sum()
    if energy is not None and kept:
        reached = squares.cumsum(0) >= energy * total * (1 - 1e-12)
        kept = min(kept, int(reached.nonzero()[0]) + 1)
    if rank is not None:
        kept = min(kept, rank)
    error = float((squares[kept:].sum() / total).sqrt()) if float(total) else 0.0
    # Half of each singular value on either side: both factors are then of one size.
    roots = values[:kept].sqrt()
    b, a = left(outer[:, :kept] * roots), right(inner[:kept].T * roots)
    signs = _signs(b)
    return (a * signs).T.float().contiguous(), (b * signs).float().contiguous(), error


def _orthonormal(stacked: torch.Tensor) -> tuple[torch.Tensor, Back]:
    """Qᵀ S (k, R) of S (n, R), and the way back to the vectors; Q itself is never formed."""
    if stacked.shape[1] == 0:
        return stacked.new_zeros(0, 0), lambda coordinates: stacked @ coordinates
    root = _cholesky(stacked)
    if root is not None:
        upper, inverse = root
        # Few rows times many columns in memory: three times as fast as the other way round.
        return upper, lambda coordinates: ((inverse @ coordinates).T @ stacked.T).T
    size = min(stacked.shape)
    reflections, scales = torch.geqrf(stacked)

    def back(coordinates: torch.Tensor) -> torch.Tensor:
        whole = pad(coordinates, (0, 0, 0, stacked.shape[0] - size))
        return torch.ormqr(reflections[:, :size], scales, whole)

    return reflections[:size].triu(), back


def _cholesky(stacked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """R (R, R), upper triangular, and its inverse, of S = Q R with R = chol(Sᵀ S); None where the columns of
    S, each at length 1, may be conditioned worse than CONDITION (κ ≤ ‖R‖ ‖R⁻¹‖ in Frobenius norms)."""
    if stacked.shape[1] > stacked.shape[0]:
        return None
    gram = stacked.T @ stacked
    lengths = gram.diagonal().sqrt()
    if not bool((lengths > 0).all()):
        return None
    root, failed = torch.linalg.cholesky_ex(gram / lengths / lengths[:, None], upper=True)
    if int(failed):
        return None
    unit_columns = torch.eye(len(root), dtype=root.dtype)
    inverse = torch.linalg.solve_triangular(root, unit_columns, upper=True)
    if not float(root.norm() * inverse.norm()) <= CONDITION:
        return None
    return root * lengths, inverse / lengths[:, None]


def _singular(stacked: torch.Tensor) -> tuple[torch.Tensor, Back, torch.Tensor]:
    """Uᵀ S (k, R) of S (n, R), the way back, and the singular values (k,), without its zero directions."""
    if stacked.shape[1] == 0:
        return stacked.new_zeros(0, 0), lambda coordinates: stacked @ coordinates, stacked.new_zeros(0)
    q, r = torch.linalg.qr(stacked)
    u, values, _ = torch.linalg.svd(r, full_matrices=False)
    u = u[:, : significant(values, max(stacked.shape))]
    basis = q @ u
    signs = _signs(basis)
    basis = basis * signs
    return (u * signs).T @ r, lambda coordinates: basis @ coordinates, values[: u.shape[1]]


def significant(values: torch.Tensor, size: int) -> int:
    """How many of the singular values (descending) are more than rounding."""
    if not len(values) or float(values[0]) == 0.0:
        return 0
    return int((values > values[0] * size * torch.finfo(values.dtype).eps).sum())


def _signs(columns: torch.Tensor) -> torch.Tensor:
    """±1 for each column, so that its largest entry becomes positive."""
    if not columns.numel():
        return columns.new_ones(columns.shape[1])
    largest = columns.gather(0, columns.abs().argmax(dim=0, keepdim=True)).squeeze(0)
    return torch.where(largest < 0, -1.0, 1.0).to(columns.dtype)


def close_together(values: torch.Tensor) -> bool:
    """Whether two neighbours of the singular values (descending) agree, rounding left out."""
    values = values[: significant(values, len(values))]
    return bool(((values[:-1] - values[1:]) < CLOSE * values[:-1]).any())
