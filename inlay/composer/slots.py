"""What a plan puts into the bank: a version's factors, or several merged into one. Pure data, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inlay.composer.factors import Size
from inlay.composer.merging.methods import Settings
from inlay.errors import InputError
from inlay.registry import Version


@dataclass(frozen=True)
class Slot:
    """One adapter in the bank: its version, what its factors measure in each module, its bytes as stored.

    `alone`: why it has no factors and is run by PEFT, by itself; None for one that goes into the bank.
    """

    version: Version
    sizes: Mapping[str, Size]
    nbytes: int
    alone: str | None = None

    @property
    def ref(self) -> str:
        return self.version.ref

    @property
    def digest(self) -> str:
        return self.version.digest

    @property
    def exactness(self) -> str:
        """What the version is worth here; "truncated" where it was cut out of what is no product."""
        return "truncated" if "truncated_from" in (self.version.lineage or {}) else self.version.exactness

    @property
    def versions(self) -> tuple[Version, ...]:
        return (self.version,)

    @property
    def ranks(self) -> dict[str, int]:
        return {module: size.rank for module, size in self.sizes.items()}


@dataclass(frozen=True)
class MergeInput:
    """One input of a merge: the sum of `parts`, each with its weight; `weight` is what the method is told."""

    parts: tuple[tuple[Slot | MergedSlot, float], ...]
    weight: float

    @property
    def ref(self) -> str:
        """As reports call it: `0.8 (a@v1 + -1 b@v2)`."""
        named = [slot.ref if weight == 1.0 else f"{weight:g} {slot.ref}" for slot, weight in self.parts]
        joined = named[0] if len(named) == 1 else f"({' + '.join(named)})"
        return joined if self.weight == 1.0 else f"{self.weight:g} {joined}"


@dataclass(frozen=True)
class MergedSlot:
    """An adapter in the bank that is made when it is loaded: several merged into one.

    `sizes` has the most that each module can come to. `versions`: what is merged, in the order of the
    recipe. `truncation`: what the cut cost in each module (relative Frobenius error), and `notes`, as found
    when the lock was made; None where nobody has computed it yet.
    """

    digest: str
    settings: Settings
    inputs: tuple[MergeInput, ...]
    sizes: Mapping[str, Size]
    versions: tuple[Version, ...]
    path: str
    truncation: Mapping[str, float] | None = None
    notes: tuple[str, ...] = ()

    @property
    def ref(self) -> str:
        return f"{self.settings.method.name}({', '.join(part.ref for part in self.inputs)})"

    @property
    def exactness(self) -> str:
        return f"merged: {self.settings.space} space"

    @property
    def ranks(self) -> dict[str, int]:
        return {module: size.rank for module, size in self.sizes.items()}

    @property
    def nbytes(self) -> int:
        """Of the factors in float32, at most."""
        return sum(4 * size.rank * (size.inputs + size.outputs) for size in self.sizes.values())

    def to_dict(self) -> dict[str, Any]:
        """As `inlay plan --json` prints it, beside what every slot has."""
        settings = self.settings
        return {
            "path": self.path,
            "method": settings.method.name,
            "params": dict(settings.params),
            "space": settings.space,
            "rank": settings.rank,
            "energy": settings.energy,
            "seed": settings.seed,
            "inputs": [
                {
                    "weight": each.weight,
                    "parts": [{"ref": slot.ref, "weight": weight} for slot, weight in each.parts],
                }
                for each in self.inputs
            ],
            "truncation": None if self.truncation is None else dict(self.truncation),
        }


def merged_sizes(inputs: Sequence[MergeInput], settings: Settings, path: str) -> dict[str, Size]:
    """The most that a merge can come to in each module; InputError where its inputs do not fit together."""
    held: dict[str, list[tuple[Size, str]]] = {}
    for each in inputs:
        for slot, _ in each.parts:
            for module, size in slot.sizes.items():
                held.setdefault(module, []).append((size, slot.ref))
    found = {}
    for module in sorted(held):
        (first, owner), *others = held[module]
        for size, ref in others:
            if size[1:] != first[1:]:
                raise InputError(
                    f"the deltas of {module} must have one shape in the merge at {path or 'the root'}: "
                    f"{owner} maps {first.inputs} to {first.outputs}, {ref} {size.inputs} to {size.outputs}"
                )
        rank = min(first.inputs, first.outputs)
        if settings.space == "core" or settings.method.basis != "bound":
            rank = min(rank, sum(size.rank for size, _ in held[module]))
        if settings.rank is not None:
            rank = min(rank, settings.rank)
        found[module] = first._replace(rank=rank)
    return found
