"""A layer of a bank as its gate needs to know it: where the slots' columns lie, and what comes in."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inlay.errors import InputError

Span = tuple[int, int]
"""(first column, rank) of a slot in one module; (0, 0) where the adapter leaves the module alone."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Where each slot's columns lie in a module. One object for all modules laid out alike."""

    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Site:
    """A layer with the shape of what comes in. Inputs without rows, (tokens, in), are one row."""

    layout: Layout
    rows: int
    length: int
    features_in: int
    features_out: int
    dtype: torch.dtype
    device: torch.device
    lookup: bool
    """An embedding: A is read by ids, not multiplied, the gathered path does not exist, and no token can be
    routed."""

    def repeated(self, rows: torch.Tensor) -> torch.Tensor:
        """A gate's rows (n, …) for the rows of this batch: beam search and several samples a prompt repeat
        each in place. InputError where the batch is no multiple of them."""
        if self.rows % len(rows):
            raise InputError(
                f"a gate with a row for each of {len(rows)} prompts must meet a batch of as many rows, "
                f"or a multiple, and meets {self.rows}"
            )
        return rows.repeat_interleave(self.rows // len(rows), dim=0)
