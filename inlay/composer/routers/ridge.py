"""Ridge regression in closed form (Hoerl and Kennard 1970), and what it would have said of unseen rows.

    W = argmin ‖S½ (Y − X W)‖² + λ ‖W‖²,   S the rows' shares, X and Y centred under them

With S½ X = U diag(s) Vᵀ and H = U diag(s² / (s² + λ)) Uᵀ, the residuals of a group of rows G under a fit
without G are (I − H_GG)⁻¹ (S½ (Y − H Y))_G: exact, for the price of one fit (Allen 1974; groups as in Cawley
and Talbot 2003). The centring is kept.

The novelty of a row is ℓ = xᵀ (Xᵀ S X + λ I)⁻¹ x, its leverage: the variance of what the fit says of it, in
units of the noise's (Cook 1977). It grows without end where nothing like the row was in the fit; without a
group, ℓ_G = diag(H_GG (I − H_GG)⁻¹) / share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ridge:
    """The decomposition from which the fit for any λ follows.

    `x` (n, d) weighted and centred, float64; `u` (n, r) left singular vectors, `squares` (r,) squared
    singular values; `targets` (r, c) = Uᵀ S½ (Y − offset); `root` (n,) square roots of the shares; `offset`
    (c,) weighted means of Y; `labels` long (n,).
    """

    x: torch.Tensor
    u: torch.Tensor
    squares: torch.Tensor
    targets: torch.Tensor
    root: torch.Tensor
    offset: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def of(cls, x: torch.Tensor, labels: torch.Tensor, share: torch.Tensor) -> Ridge:
        """x (n, d) centred under `share` (n,), which sums to one; labels long (n,), one-hot targets."""
        root = share.double().sqrt()
        offset = torch.zeros(int(labels.max()) + 1, dtype=torch.float64).index_add_(0, labels, share.double())
        weighed = root[:, None] * x.double()
        n, d = weighed.shape
        if n <= d:
            squares, u = torch.linalg.eigh(weighed @ weighed.T)
        else:
            squares, v = torch.linalg.eigh(weighed.T @ weighed)
            u = weighed @ v
        floor = float(squares.max()) * max(n, d) * torch.finfo(torch.float64).eps
        kept = squares > floor
        squares, u = squares[kept], u[:, kept]
        if n > d:
            u = u / squares.sqrt()
        # Uᵀ S½ Y without Y: a column is the sum of its rows of U, each by its root.
        sums = torch.zeros(len(offset), len(squares), dtype=torch.float64)
        sums.index_add_(0, labels, root[:, None] * u)
        targets = sums.T - (root @ u)[:, None] * offset
        return cls(weighed, u, squares, targets, root, offset, labels)

    @property
    def directions(self) -> torch.Tensor:
        """V (d, r)."""
        return self.x.T @ (self.u / self.squares.sqrt())

    def weights(self, ridge: float) -> torch.Tensor:
        """W (d, c) for λ = `ridge`."""
        return self.x.T @ (self.u @ (self.targets / (self.squares + ridge)[:, None]))

    def unseen(self, ridge: float, groups: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """What a fit without its group would have said of each row: one row for each index of `groups` (long
        tensors, none in two of them), in their order: scores (rows, c) and novelties (rows,)."""
        shrink = self.squares / (self.squares + ridge)
        index = torch.cat(list(groups))
        u, root = self.u[index], self.root[index, None]
        wanted = torch.nn.functional.one_hot(self.labels[index], len(self.offset)).double() - self.offset
        residual = root * wanted - (u * shrink) @ self.targets
        leverage = ((u * shrink) * u).sum(1)
        start = 0
        for group in groups:
            here = slice(start, start + len(group))
            if len(group) == 1:
                residual[here] /= 1 - leverage[here]
                leverage[here] /= 1 - leverage[here]
            else:
                hat = (u[here] * shrink) @ u[here].T
                others = torch.eye(len(group), dtype=torch.float64) - hat
                residual[here] = torch.linalg.solve(others, residual[here])
                leverage[here] = torch.linalg.solve(others, hat).diagonal()
            start += len(group)
        return wanted - residual / root + self.offset, leverage / root.flatten() ** 2


def novelty(x: torch.Tensor, directions: torch.Tensor, squares: torch.Tensor, ridge: float) -> torch.Tensor:
    """ℓ (rows,) of rows x (rows, d), from `Ridge.directions` (d, r) and `Ridge.squares` (r,)."""
    along = x @ directions
    inside = (along**2 / (squares + ridge)).sum(1)
    return inside + ((x**2).sum(1) - (along**2).sum(1)).clamp_min(0) / ridge
