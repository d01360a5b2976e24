"""What an adapter holds for one module, as its kind's reader sees it: shapes first, tensors when wanted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from inlay.composer.factors.adapter import Size
from inlay.errors import InputError
from inlay.registry.patterns import Patterns, TooCostly
from inlay.registry.peft_config import PeftConfig

if TYPE_CHECKING:
    import torch

    from inlay.composer.factors.adapter import Pair

Shape = tuple[int, ...]
Weights = Callable[[str], Shape | None]
"""The shape of a module's weight in the base, None if it has none."""


@dataclass(frozen=True)
class Held:
    """One adapted module. `shapes` and `shared_shapes` are of its own parts and of what all modules share;
    `keys` says what each of both is called in the file, and `tensors` has them, or nothing while only sizes
    are asked for. `weight` gives the shape of a module's weight in the base (None if it has none), and is
    None where the base is not known.
    """

    adapter: str
    module: str
    config: PeftConfig
    shapes: Mapping[str, Shape]
    shared_shapes: Mapping[str, Shape] = field(default_factory=dict)
    weight: Weights | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def with_tensors(self, tensors: Mapping[str, torch.Tensor]) -> Held:
        """The same with its tensors, out of all those of the file."""
        return replace(self, tensors={part: tensors[key] for part, key in self.keys.items()})

    def shape(self, part: str, ndim: int = 2) -> Shape:
        """The shape of a part that must be there with `ndim` axes; InputError otherwise."""
        return self._checked(part, self.shapes.get(part), ndim)

    def shared_shape(self, name: str, ndim: int = 2) -> Shape:
        return self._checked(name, self.shared_shapes.get(name), ndim)

    def _checked(self, part: str, shape: Shape | None, ndim: int) -> Shape:
        if shape is None:
            there = ", ".join(sorted(self.shapes)[:8])
            raise InputError(
                f"{self.adapter} must hold all factors of {self.module}, and {part} is not there "
                f"(only {there})",
                fix="save the trained adapter with PEFT again",
            )
        if len(shape) != ndim:
            raise InputError(
                f"{self.adapter}: {part} of {self.module} must have {ndim} axes, it is {list(shape)}"
            )
        return shape

    def get(self, part: str) -> torch.Tensor:
        """A part, or what is shared, in float32."""
        return self.tensors[part].float()

    def exactly(self, parts: Mapping[str, Shape]) -> None:
        """InputError unless the module holds these parts, of these shapes, and no other."""
        for part, shape in parts.items():
            if self.shape(part, len(shape)) != shape:
                raise InputError(
                    f"{self.adapter}: the factors of {self.module} do not fit: {part} must be {list(shape)}, "
                    f"it is {list(self.shapes[part])}"
                )
        stray = sorted(set(self.shapes) - set(parts))
        if stray:
            raise InputError(
                f"{self.adapter} holds {stray[0]} for {self.module}, which is no factor of its kind",
                fix="use it alone, through PEFT",
            )

    def rank(self, seen: int = 0) -> int:
        """r of the configuration, or what rank_pattern says for this module.

        `seen` is the rank that the tensors have, where they show it; InputError if the two differ.
        """
        declared = self.config.by_pattern("rank_pattern", self.module, self.config.count("r"), seen)
        if seen and declared != seen:
            raise InputError(
                f"{self.module} must have the rank its configuration says ({declared}), and has {seen}"
            )
        return declared

    def alpha(self, name: str) -> float:
        """The strength by the field `name` ("alpha", "lora_alpha"), or what alpha_pattern says."""
        alpha = self.config.number(name)
        assert alpha is not None  # the kinds table has PEFT's default for each
        values = self.config.numbers("alpha_pattern")
        if not values:
            return alpha
        patterns = self.config.once("patterns of alpha_pattern", lambda: Patterns(values))
        try:
            key = patterns.first(self.module)
        except TooCostly:
            raise InputError(
                f"{self.adapter}: the expressions of its alpha_pattern may take too long to match",
                fix="name its modules plainly",
            ) from None
        return alpha if key is None else values[key]

    def base_shape(self) -> tuple[int, int]:
        """The base's weight, (out, in) for a linear layer; InputError where it is not known."""
        shape = self.weight(self.module) if self.weight else None
        if shape is None or len(shape) != 2:
            raise InputError(
                f"{self.adapter}: how far {self.module} reaches is not in the adapter, only in its base",
                fix="name the base (base=)",
            )
        return shape[0], shape[1]


@dataclass(frozen=True)
class Reader:
    """How a kind is read. `size` looks at shapes alone and refuses what does not fit; `factors` computes."""

    peft_type: str
    size: Callable[[Held], Size]
    factors: Callable[[Held], Pair]


def at_most_dense(rank: int, inputs: int, outputs: int) -> Size:
    """The size of a product's factors: no more than the dense delta and an identity need."""
    return Size(min(rank, inputs, outputs), inputs, outputs)


def dense_pair(delta: torch.Tensor) -> Pair:
    """A dense delta (out, in) as factors, one of them the identity."""
    import torch

    out, inputs = delta.shape
    if out <= inputs:
        return delta, torch.eye(out)
    return torch.eye(inputs), delta


def over_root(alpha: float, rank: int, rooted: bool) -> float:
    """alpha / r, or alpha / √r (rsLoRA, arXiv:2312.03732)."""
    return alpha / (math.sqrt(rank) if rooted else rank)
