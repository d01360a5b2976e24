"""The bank: the one layer that runs composed adapters.

    y = W x + B (g ⊙ (A x))

A (R, in) and B (out, R) hold the factors of every loaded adapter side by side, R the sum of their ranks;
g is the gate: how much of each adapter a row of the batch gets. The base's modules stay what they are,
inside; taking the bank off puts the very same objects back, so the base is bit-exact by construction.

Knows tensors and modules. Does not know recipes, routers or the registry.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from inlay.composer.factors import Adapter
from inlay.errors import InputError

Layout = tuple[int, ...]
"""The rank of each slot in one module; 0 where an adapter leaves the module alone."""


class Gate:
    """How much of each slot a row gets; one object, seen by all layers of a bank.

    Values are None (nothing loaded speaks: the bare base), a tensor (slots,) for the whole batch, or
    (rows, slots) for each row of it.
    """

    def __init__(self) -> None:
        self._value: torch.Tensor | None = None
        self._columns: dict[Layout, torch.Tensor] = {}

    @property
    def value(self) -> torch.Tensor | None:
        return self._value

    def set(self, value: torch.Tensor | None) -> None:
        # A gate that is zero everywhere costs nothing and leaves the base's output untouched to the bit.
        self._value = value if value is not None and bool(value.any()) else None
        self._columns.clear()

    @contextlib.contextmanager
    def held_at(self, value: torch.Tensor | None) -> Iterator[None]:
        """Inside, the gate has this value; afterwards the one it had."""
        before = self._value
        self.set(value)
        try:
            yield
        finally:
            self.set(before)

    def columns(self, layout: Layout) -> torch.Tensor | None:
        """The gate spread over the R columns of a layer: (R,) or (rows, 1, R)."""
        if self._value is None:
            return None
        if layout not in self._columns:
            ranks = torch.tensor(layout, device=self._value.device)
            spread = self._value.repeat_interleave(ranks, dim=-1)
            self._columns[layout] = spread if spread.ndim == 1 else spread.unsqueeze(1)
        return self._columns[layout]


class BankLinear(nn.Module):
    """A linear layer of the base with the bank's factors beside it.

    `down`: A (R, in); `up`: B (out, R); both in the layer's dtype, not trained, not saved.
    """

    def __init__(
        self, inner: nn.Module, down: torch.Tensor, up: torch.Tensor, layout: Layout, gate: Gate
    ) -> None:
        super().__init__()
        self.inner = inner
        self.layout = layout
        self.gate = gate
        self.register_buffer("down", down, persistent=False)
        self.register_buffer("up", up, persistent=False)
        self.down: torch.Tensor
        self.up: torch.Tensor

    @property
    def weight(self) -> torch.Tensor:
        """The base's weight; some architectures look at it."""
        return self.inner.weight  # type: ignore[return-value]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (rows, length, in) -> (rows, length, out)."""
        y = self.inner(x)
        gate = self.gate.columns(self.layout)
        if gate is None:
            return y
        if gate.ndim == 3 and gate.shape[0] != x.shape[0]:
            # Beam search and several samples a prompt repeat each row in place.
            gate = gate.repeat_interleave(x.shape[0] // gate.shape[0], dim=0)
        return y + (nn.functional.linear(x, self.down) * gate.to(x.dtype)) @ self.up.T


class Bank:
    """Adapters side by side on one model.

    `attach` replaces the layers that any adapter touches; `detach` puts the originals back. Raises
    InputError, before anything is replaced, where a factor does not fit its layer.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.gate = Gate()
        self.layers: dict[str, BankLinear] = {}

    @property
    def slots(self) -> int:
        return len(next(iter(self.layers.values())).layout) if self.layers else 0

    @property
    def nbytes(self) -> int:
        return sum(layer.down.nbytes + layer.up.nbytes for layer in self.layers.values())

    def attach(self, adapters: Sequence[Adapter]) -> None:
        """Load `adapters` into slots 0, 1, … in their order; the gate starts closed."""
        if self.layers:
            raise InputError(
                "a bank must be empty before it is attached, and this one is not", fix="detach it first"
            )
        made: dict[str, BankLinear] = {}
        for module in sorted({m for adapter in adapters for m in adapter.factors}):
            inner = self._linear(module, adapters)
            weight: torch.Tensor = inner.weight  # type: ignore[assignment]
            pairs = [adapter.factors.get(module) for adapter in adapters]
            held = [pair for pair in pairs if pair is not None]
            layout = tuple(int(pair[0].shape[0]) if pair else 0 for pair in pairs)
            down = torch.cat([a for a, _ in held]).to(weight.device, weight.dtype)
            up = torch.cat([b for _, b in held], dim=1).to(weight.device, weight.dtype)
            made[module] = BankLinear(inner, down, up, layout, self.gate)
        for module, layer in made.items():
            self._put(module, layer)
        self.layers = made
        self.gate.set(None)

    def detach(self) -> None:
        """Put the base's own modules back."""
        for module, layer in self.layers.items():
            self._put(module, layer.inner)
        self.layers = {}
        self.gate.set(None)

    def _linear(self, module: str, adapters: Sequence[Adapter]) -> nn.Module:
        owner = next(a for a in adapters if module in a.factors)
        try:
            inner = self.model.get_submodule(module)
        except AttributeError:
            raise InputError(f"{owner.name} adapts {module}, which the base does not have") from None
        if isinstance(inner, BankLinear):
            raise InputError(
                "this base carries another composed model", fix="detach that one, or load the base again"
            )
        shape = _in_out(inner)
        if shape is None:
            raise InputError(
                f"{owner.name} adapts {module}, a {type(inner).__name__}; only linear layers can be"
            )
        for adapter in adapters:
            pair = adapter.factors.get(module)
            if pair is not None and (pair[0].shape[1], pair[1].shape[0]) != shape:
                found = (int(pair[0].shape[1]), int(pair[1].shape[0]))
                raise InputError(f"{adapter.name}: {module} maps {shape[0]} to {shape[1]}, its delta {found}")
        return inner

    def _put(self, module: str, layer: nn.Module) -> None:
        parent, _, child = module.rpartition(".")
        setattr(self.model.get_submodule(parent), child, layer)


def _in_out(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear layer: torch's Linear, or GPT-2's Conv1D, which stores its weight (in, out)."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    return None
