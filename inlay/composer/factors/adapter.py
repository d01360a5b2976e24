"""An adapter in the one canonical form: per module two factors whose product is the delta."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

    Pair = tuple[torch.Tensor, torch.Tensor]
    """A (r, in) and B (out, r), float32; their delta is B @ A."""


class Size(NamedTuple):
    """What a module's factors measure: r, in and out of A (r, in) and B (out, r).

    `looked_up`: on an embedding a column of A is taken by a token's number, and nothing multiplied.
    """

    rank: int
    inputs: int
    outputs: int
    looked_up: bool = False

    @property
    def flops(self) -> int:
        """What the factors cost a token, a multiplication and an addition counted as two."""
        return 2 * self.rank * (self.outputs if self.looked_up else self.inputs + self.outputs)


@dataclass(frozen=True)
class Adapter:
    """One adapter as factors.

    `factors`: module name -> (A (r, in), B (out, r)), float32, on the CPU. On an embedding of V rows of
    width d, in is V and out is d: B @ A is the delta of the weight, transposed. `embeddings` names those
    modules. `exactness` is "exact" where B @ A is the delta to rounding. Of a merge, `truncation` has the
    relative Frobenius error that cutting each module to its rank made, `notes` what its maker should know.
    """

    name: str
    factors: dict[str, Pair]
    exactness: str = "exact"
    embeddings: frozenset[str] = field(default=frozenset())
    truncation: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def ranks(self) -> dict[str, int]:
        return {module: int(a.shape[0]) for module, (a, _) in self.factors.items()}

    def delta(self, module: str) -> torch.Tensor:
        """B @ A, float32 (out, in)."""
        a, b = self.factors[module]
        return b.float() @ a.float()
