"""Ways through a bank that give the same numbers: y += B (g ⊙ (A x)), each row with its own gate.

Shapes: x (rows, length, in), y (rows, length, out), contiguous, changed in place; `down` A (R, in); `up` B
transposed, (R, out), so that an adapter's share of either is a run of whole rows. All have one floating
dtype. `project` is how A meets x: a product for linear layers, a look-up by ids for embeddings.

A row whose gate is zero gets y + 0: its own y, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

Project = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _add(y: torch.Tensor, h: torch.Tensor, up: torch.Tensor) -> None:
    """y += h @ up, in place: one call, and y is not copied."""
    y.view(-1, y.shape[-1]).addmm_(h.reshape(-1, h.shape[-1]), up)


@dataclass(frozen=True)
class Dense:
    """Every row meets columns lo to hi.

    y += (project(x, down[lo:hi]) * gate) @ up[lo:hi]

    gate: (hi - lo,) for the whole batch, (rows, 1, hi - lo) for each row; None where all of it is 1.
    """

    lo: int
    hi: int
    gate: torch.Tensor | None

    def __call__(
        self, y: torch.Tensor, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, project: Project
    ) -> None:
        h = project(x, down[self.lo : self.hi])
        _add(y, h if self.gate is None else h * self.gate, up[self.lo : self.hi])


@dataclass(frozen=True)
class Gathered:
    """Each row meets a copy of its own K columns, in one batched product (as Punica's BGMV does,
    arXiv:2310.18547); short rows are filled up with columns whose gate is 0.

    y[i] += (x[i] @ down[index[i]].T * gate[i]) @ up[index[i]]

    index: long (rows * K,); gate: (rows, 1, K). `lasting`: the same rows will come again and again, one token
    at a time, and a layer does well to hold on to the copies.
    """

    index: torch.Tensor
    gate: torch.Tensor
    lasting: bool = False

    def __call__(
        self, y: torch.Tensor, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, project: Project
    ) -> None:
        rows, _, width = self.gate.shape
        # No -1: a layer that tokens are dispatched to may get none.
        a = down.index_select(0, self.index).view(rows, width, down.shape[1])
        b = up.index_select(0, self.index).view(rows, width, up.shape[1])
        y.baddbmm_(torch.bmm(x, a.transpose(1, 2)) * self.gate, b)

    def kept(self, down: torch.Tensor, up: torch.Tensor) -> Kept:
        """The copies made once, for these factors."""
        rows, _, width = self.gate.shape
        a = down.index_select(0, self.index).view(rows, width, down.shape[1])
        b = up.index_select(0, self.index).view(rows, width, up.shape[1])
        return Kept(a, b * self.gate.transpose(1, 2))


@dataclass(frozen=True, eq=False)
class Kept:
    """What `Gathered` copies, held on to: a decode step copies nothing.

    y[i] += (x[i] @ a[i].T) @ b[i]

    a: (rows, K, in); b: (rows, K, out), the gate in it.
    """

    a: torch.Tensor
    b: torch.Tensor

    def __call__(
        self, y: torch.Tensor, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, project: Project
    ) -> None:
        y.baddbmm_(torch.bmm(x, self.a.transpose(1, 2)), self.b)


@dataclass(frozen=True)
class Piece:
    """One run of columns and the rows that meet it: a slice, a long tensor of them, or None for all.

    gate: (hi - lo,), or (rows of the piece, 1, 1); None where all of it is 1.
    """

    rows: slice | torch.Tensor | None
    lo: int
    hi: int
    gate: torch.Tensor | None

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """The rows of x that meet it."""
        if isinstance(self.rows, torch.Tensor):
            return x.index_select(0, self.rows)
        return x if self.rows is None else x[self.rows]


@dataclass(frozen=True)
class Segmented:
    """One product for each piece.

    for p in pieces: y[p.rows] += (project(x[p.rows], down[p.lo:p.hi]) * p.gate) @ up[p.lo:p.hi]
    """

    pieces: tuple[Piece, ...]

    def __call__(
        self, y: torch.Tensor, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, project: Project
    ) -> None:
        for piece in self.pieces:
            part = piece.of(x)
            h = project(part, down[piece.lo : piece.hi])
            if piece.gate is not None:
                h = h * piece.gate
            if isinstance(piece.rows, torch.Tensor):
                y.index_add_(0, piece.rows, h @ up[piece.lo : piece.hi])
            else:
                _add(y if piece.rows is None else y[piece.rows], h, up[piece.lo : piece.hi])


Still = Dense | Gathered | Kept | Segmented
"""What stands for whole rows, whatever their tokens are."""


def folded_weight(
    weight: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    gate: torch.Tensor,
    *,
    transposed: bool,
) -> torch.Tensor:
    """A copy of the weight with the delta in it: W + B diag(gate) A, summed in float32, W's dtype.

    gate: (R,). `transposed`: the layer keeps its weight as (in, out), as Conv1D and embeddings do.
    """
    delta = (up.float() * gate.float().unsqueeze(1)).T @ down.float()
    return (weight.float() + (delta.T if transposed else delta)).to(weight.dtype)


def multiplied(x: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """x (…, in), down (R, in) -> (…, R)."""
    return nn.functional.linear(x, down)


def looked_up(ids: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """ids long (rows, length), down (R, vocabulary) -> (rows, length, R): A times one-hot rows."""
    return nn.functional.embedding(ids, down.T)
