"""What tokens chose, seen from outside while a model runs."""

from __future__ import annotations

import torch

from inlay.errors import InputError


class Observed:
    """Shares of experts, added up over layers and tokens as `Gate.observed` sees them.

    `mask`: bool or numbers (rows, length), which tokens count; with it, only calls of its very shape are
    counted, so that the steps of decoding are left out. Inputs that have lost their rows never are.
    """

    def __init__(self) -> None:
        self.mask: torch.Tensor | None = None
        self._sums: dict[int, torch.Tensor] = {}

    def add(self, route: int, shares: torch.Tensor) -> None:
        """shares (rows, length, experts): of one layer; all zero where a token has no expert there."""
        if shares.ndim != 3 or (self.mask is not None and self.mask.shape != shares.shape[:2]):
            return
        whole = shares.float()
        if self.mask is not None:
            whole = whole * self.mask.to(whole.device).bool().unsqueeze(-1)
        found = whole.sum(1).cpu()
        before = self._sums.get(route)
        if before is not None and before.shape != found.shape:
            raise InputError(
                f"what is observed must be one batch, and after {len(before)} rows came {len(found)}",
                fix="observe each batch by itself, or set the mask of the one that is meant",
            )
        self._sums[route] = found if before is None else before + found

    def shares(self, route: int) -> torch.Tensor | None:
        """Mean over layers and tokens of what each expert got where a token had one to choose from: float32
        (rows, experts); rows sum to 1, or are 0 where nothing could be chosen. None where no token of the
        batch had an expert. `route`: its number in the gate."""
        sums = self._sums.get(route)
        if sums is None:
            return None
        # The shares of a token in a layer sum to 1, so that their sum counts the choices made.
        return sums / sums.sum(-1, keepdim=True).clamp_min(torch.finfo(sums.dtype).tiny)
