"""How much of each other's directions two adapters use, module by module.

    overlap = ‖Q₁ᵀ Q₂‖² / min(r₁, r₂)        the mean squared cosine of the principal angles

Q₁ (n, r₁) and Q₂ (n, r₂) are orthonormal bases of what two deltas read (their row spaces, n = in) or write
(their column spaces, n = out): 0 where they are orthogonal, 1 where one lies in the other. Two random
subspaces come to max(r₁, r₂) / n, which stands beside each figure.

The bases come from QR of the factors and the SVD of the small core, in float64; no dense delta is made:
with B = Q_B R_B and Aᵀ = Q_A R_A, the singular vectors of B A are Q_B U and Q_A V for U S Vᵀ = R_B R_Aᵀ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from inlay.composer.factors import Adapter, read_adapter
from inlay.composer.plan import Plan
from inlay.registry import Registry, Version

if TYPE_CHECKING:
    import torch

    Spaces = tuple[torch.Tensor, torch.Tensor]
    """Orthonormal columns: what a delta reads (in, r), what it writes (out, r); float64."""

STRONG = 0.5
"""At least halfway from what random subspaces have to one within the other, read and written."""
RELATIVE = 1e-6
"""Singular values below this part of the largest are the rounding of float32 factors."""


@dataclass(frozen=True)
class ModuleOverlap:
    """One module's overlaps, from 0 to 1, and what random subspaces of these ranks would have."""

    module: str
    read: float
    written: float
    chance_read: float
    chance_written: float


@dataclass(frozen=True)
class Overlap:
    """Two members over the modules that both adapt. `together`: one request may get both."""

    a: str
    b: str
    modules: tuple[ModuleOverlap, ...]
    together: bool = True

    @property
    def read(self) -> float:
        """The mean over the modules of what the inputs share."""
        return _mean([m.read for m in self.modules])

    @property
    def written(self) -> float:
        """The mean over the modules of what the outputs share."""
        return _mean([m.written for m in self.modules])

    @property
    def strong(self) -> bool:
        """Do both come, on average over the modules, at least halfway from chance to identity?"""
        if not self.modules:
            return False
        return (
            _mean([_above(m.read, m.chance_read) for m in self.modules]) >= STRONG
            and _mean([_above(m.written, m.chance_written) for m in self.modules]) >= STRONG
        )

    def warning(self) -> str:
        """What a strong overlap means, as a sentence."""
        return (
            f"{self.a} and {self.b} overlap strongly: {self.read:.0%} of what they read and "
            f"{self.written:.0%} of what they write is shared, where together they add up or cancel"
        )

    def to_dict(self) -> dict[str, Any]:
        """As `inlay plan --overlaps --json` prints it."""
        return {
            "a": self.a,
            "b": self.b,
            "read": self.read,
            "written": self.written,
            "strong": self.strong,
            "together": self.together,
            "modules": {
                m.module: {
                    "read": m.read,
                    "written": m.written,
                    "chance_read": m.chance_read,
                    "chance_written": m.chance_written,
                }
                for m in self.modules
            },
        }


def overlaps(store: Registry, plan: Plan) -> tuple[Overlap, ...]:
    """Every two versions that `plan` uses, inside its merges as well. Reads their factors.

    Raises as `read_adapter` does.
    """
    if plan.alone is not None:
        return ()
    slots: dict[str, set[int]] = {}
    versions: dict[str, Version] = {}
    for number, slot in enumerate(plan.slots):
        for version in slot.versions:
            versions[version.ref] = version
            slots.setdefault(version.ref, set()).add(number)
    adapters = {ref: read_adapter(version, store=store) for ref, version in versions.items()}
    meeting = set(_meeting(plan))
    found: dict[tuple[str, str], list[ModuleOverlap]] = {pair: [] for pair in combinations(adapters, 2)}
    for module in sorted({module for adapter in adapters.values() for module in adapter.factors}):
        spaces = {ref: spaces_of(a, module) for ref, a in adapters.items() if module in a.factors}
        for one, other in combinations(spaces, 2):
            overlap = module_overlap(module, spaces[one], spaces[other])
            if overlap is not None:
                found[one, other].append(overlap)
    return tuple(
        Overlap(
            one,
            other,
            tuple(modules),
            any((min(i, j), max(i, j)) in meeting for i in slots[one] for j in slots[other]),
        )
        for (one, other), modules in found.items()
        if modules
    )


def spaces_of(adapter: Adapter, module: str) -> Spaces:
    """What the delta of a module reads and writes; without a column where it is zero."""
    import torch

    a, b = adapter.factors[module]
    right, left = torch.linalg.qr(a.double().T), torch.linalg.qr(b.double())
    u, s, vt = torch.linalg.svd(left.R @ right.R.T, full_matrices=False)
    rank = int((s > RELATIVE * s.max()).sum()) if s.numel() and float(s.max()) > 0 else 0
    return right.Q @ vt.T[:, :rank], left.Q @ u[:, :rank]


def module_overlap(module: str, one: Spaces, other: Spaces) -> ModuleOverlap | None:
    """The overlaps of two deltas; None where one of them is zero."""
    ranks = (one[0].shape[1], other[0].shape[1])
    if min(ranks) == 0:
        return None
    read, written = (float((p.T @ q).square().sum()) / min(ranks) for p, q in zip(one, other, strict=True))
    return ModuleOverlap(module, read, written, max(ranks) / one[0].shape[0], max(ranks) / one[1].shape[0])


def _meeting(plan: Plan) -> Iterator[tuple[int, int]]:
    """Slots (the lower first, or one and itself) that one request may get together."""
    for one in plan.leaves:
        for other in plan.leaves:
            chosen: Mapping[int, int] = dict(one.conditions)
            if all(chosen.get(route, expert) == expert for route, expert in other.conditions):
                yield min(one.slot, other.slot), max(one.slot, other.slot)


def _above(value: float, chance: float) -> float:
    """0 at chance, 1 at identity; 0 where chance leaves no room."""
    return (value - chance) / (1 - chance) if chance < 1 else 0.0


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
