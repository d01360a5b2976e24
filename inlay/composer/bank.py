"""The bank: the one layer that runs composed adapters.

    y = W x + B (g ⊙ (A x))

A (R, in) and B (out, R) hold the factors of every loaded adapter side by side; g is the gate: how much of
each adapter a row of the batch gets, or a token of it, where a router inside the layer chooses from x.
Adapters are loaded, unloaded and weighed anew while the model stays as it is: R is a capacity that grows
geometrically, and what one adapter leaves the next one takes. The base's modules stay what they are, inside;
taking the bank off puts the very same objects back, so the base is bit-exact by construction.

Knows tensors and modules. Does not know recipes, routers or the registry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from inlay.composer.gate import Gate, State, Work
from inlay.composer.paths import Gathered, folded_weight, looked_up, multiplied
from inlay.composer.site import Layout, Site, Span
from inlay.errors import InputError

if TYPE_CHECKING:
    from inlay.composer.factors import Adapter

NOWHERE: Span = (0, 0)


class BankLayer(nn.Module):
    """A linear layer or an embedding of the base with the bank's factors beside it.

    `down`: A (capacity, in); `up`: B transposed (capacity, out); both in the layer's dtype (the model's where
    the layer is quantised), not trained, not saved. `spans`: the columns of each slot. `module`: the layer's
    name in the model, by which token routes know it.
    """

    def __init__(
        self, module: str, inner: nn.Module, shape: tuple[int, int], dtype: torch.dtype, gate: Gate
    ) -> None:
        super().__init__()
        self.module = module
        weight: torch.Tensor = inner.weight  # type: ignore[assignment]
        self.inner = inner
        self.gate = gate
        self.lookup = isinstance(inner, nn.Embedding)
        self.features_in, self.features_out = shape
        self.spans: list[Span] = []
        self.layout = Layout(())
        self._prepared: tuple[State, torch.Size, Work | None] | None = None
        self.register_buffer("folded", None, persistent=False)
        self.folded: torch.Tensor | None
        self.register_buffer("down", weight.new_empty((0, shape[0]), dtype=dtype), persistent=False)
        self.register_buffer("up", weight.new_empty((0, shape[1]), dtype=dtype), persistent=False)
        self.down: torch.Tensor
        self.up: torch.Tensor

    @property
    def weight(self) -> torch.Tensor:
        """The base's weight; some architectures look at it."""
        return self.inner.weight  # type: ignore[return-value]

    @property
    def bias(self) -> torch.Tensor | None:
        return getattr(self.inner, "bias", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (rows, length, in) -> (rows, length, out); for an embedding x is ids (rows, length)."""
        state = self.gate.state
        if state.folded and self.folded is not None:
            return self._forward_folded(x, self.folded)
        y = self.inner(x)
        if state.closed:
            return y
        prepared = self._prepared
        if prepared is None or prepared[0] is not state or prepared[1] != x.shape:
            prepared = self._prepared = (state, x.shape, self._work(x))
        work = prepared[2]
        if work is None:
            return y
        project = looked_up if self.lookup else multiplied
        if y.dtype == self.down.dtype and (self.lookup or x.dtype == y.dtype) and y.is_contiguous():
            work(y, x, self.down, self.up, project)
            return y
        # Autocast, or a quantised base that answers in another precision than the model's.
        with torch.autocast(x.device.type, enabled=False):
            added = torch.zeros(y.shape, dtype=self.down.dtype, device=y.device)
            work(added, x if self.lookup else x.to(self.down.dtype), self.down, self.up, project)
        return y + added.to(y.dtype)

    def _work(self, x: torch.Tensor) -> Work | None:
        work = self.gate.work(self._site(x), self.module)
        if isinstance(work, Gathered) and work.lasting:
            with torch.inference_mode(False), torch.no_grad():
                return work.kept(self.down, self.up)
        return work

    def _apply(self, fn: Any, recurse: bool = True) -> BankLayer:
        self._prepared = None  # what was prepared lies on the device, in the dtype, that are left
        return super()._apply(fn, recurse)

    def _site(self, x: torch.Tensor) -> Site:
        batched = x.ndim == (2 if self.lookup else 3)
        if not (batched or self.gate.state.uniform):
            # Where tokens have been flattened or dispatched nobody knows any more whose they are.
            raise InputError(
                f"a gate for each row needs inputs (rows, length, in), and a layer got {tuple(x.shape)}",
                fix="give all rows of the batch the same weights, or leave that module out of the adapters",
            )
        return Site(
            layout=self.layout,
            rows=int(x.shape[0]) if batched else 1,
            length=int(x.shape[1]) if batched else x.numel() // (1 if self.lookup else self.features_in),
            features_in=self.features_in,
            features_out=self.features_out,
            dtype=self.down.dtype,
            device=self.down.device,
            lookup=self.lookup,
        )

    def _forward_folded(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if self.lookup:
            return nn.functional.embedding(x, weight)
        return nn.functional.linear(x, weight if not self._transposed else weight.T, self.bias)

    @property
    def plain(self) -> bool:
        """Is the layer nothing but its weight and bias? A quantised one, or one that does something of its
        own, is not."""
        from transformers.pytorch_utils import Conv1D

        return type(self.inner) in (nn.Linear, Conv1D, nn.Embedding) and self.weight.dtype == self.down.dtype

    @property
    def _transposed(self) -> bool:
        return self.lookup or not isinstance(self.inner, nn.Linear)

    def fold(self, rows: torch.Tensor) -> None:
        """Keep a copy of the weight with the gate's deltas in it; rows (1, slots)."""
        active = [s for s, (_, rank) in enumerate(self.spans) if rank and s < rows.shape[1] and rows[0, s]]
        self.folded = None
        if not active:
            return
        gate = torch.zeros(len(self.down), device=self.down.device)
        for slot in active:
            start, rank = self.spans[slot]
            gate[start : start + rank] = rows[0, slot]
        self.folded = folded_weight(self.weight, self.down, self.up, gate, transposed=self._transposed)

    def reserve(self, rank: int) -> None:
        """Room for so many columns more, as one allocation."""
        if sum(held for _, held in self.spans) + rank > len(self.down):
            self._move_together(rank)

    def place(self, slot: int, rank: int) -> Span:
        """Columns for a slot: the first gap that holds them, else what lies there is moved together, into
        larger buffers where even that does not do. Nothing that speaks is changed before all is copied."""
        self.spans.extend([NOWHERE] * (slot + 1 - len(self.spans)))
        end = 0
        for start, held in sorted(span for span in self.spans if span[1]):
            if start - end >= rank:
                break
            end = start + held
        if end + rank > len(self.down):
            end = self._move_together(rank)
        self.spans[slot] = (end, rank)
        return self.spans[slot]

    def shrink(self) -> None:
        """No room for more."""
        self._move_together(0, exactly=True)

    def _move_together(self, rank: int, *, exactly: bool = False) -> int:
        needed = sum(held for _, held in self.spans) + rank
        capacity = len(self.down)
        if exactly:
            capacity = needed
        elif needed > capacity:
            capacity = max(needed, 2 * capacity)
        down = self.down.new_zeros((capacity, self.features_in))
        up = self.up.new_zeros((capacity, self.features_out))
        end, spans = 0, list(self.spans)
        for start, held, slot in sorted((*span, s) for s, span in enumerate(self.spans) if span[1]):
            down[end : end + held] = self.down[start : start + held]
            up[end : end + held] = self.up[start : start + held]
            spans[slot] = (end, held)
            end += held
        self.down, self.up, self.spans = down, up, spans
        return end


class Bank:
    """Adapters side by side on one model, each in a slot with a number.

    `load` and `unload` change one slot; the layers that adapters touch are wrapped when first needed and
    stay so until `detach`. Raises InputError, before anything is changed, where a factor does not fit.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layers: dict[str, BankLayer] = {}
        self._names: list[str | None] = []
        self.gate = Gate(self._names)

    @property
    def slots(self) -> int:
        """How many slots there are, free ones included: what a gate may give weights to."""
        return len(self._names)

    @property
    def names(self) -> tuple[str | None, ...]:
        """The name of the adapter in each slot; None where it is free."""
        return tuple(self._names)

    @property
    def nbytes(self) -> int:
        """Bytes of the factors' buffers, room for more included."""
        return sum(layer.down.nbytes + layer.up.nbytes for layer in self.layers.values())

    @property
    def folded_nbytes(self) -> int:
        return sum(layer.folded.nbytes for layer in self.layers.values() if layer.folded is not None)

    def attach(self, adapters: Sequence[Adapter]) -> None:
        """Load `adapters` into slots 0, 1, … of an empty bank, in their order; the gate starts closed."""
        if self._names:
            raise InputError(
                "a bank must be empty before it is attached, and this one is not", fix="detach it first"
            )
        self.load_all(adapters)
        self.gate.set(None)

    def load(self, adapter: Adapter) -> int:
        """Load one adapter into the first free slot, whose number it returns. The gate stays as it is."""
        return self.load_all([adapter])[0]

    def load_all(self, adapters: Sequence[Adapter], *, leaving: Sequence[int] = ()) -> list[int]:
        """Load several at once: all, or where one does not fit or memory ends, none.

        The slots `leaving` are unloaded first, once all is known to fit; where memory ends they have left.
        """
        with torch.inference_mode(False), torch.no_grad():
            layers = self._layers_for(adapters)
            prepared = [
                {m: self._prepared(adapter, m, layers[m]) for m, rank in adapter.ranks.items() if rank}
                for adapter in adapters
            ]
            for slot in leaving:
                self._refuse_to_unload(slot)
            for slot in leaving:
                self.unload(slot)
            free = [slot for slot, name in enumerate(self._names) if name is None]
            slots = (free + list(range(len(self._names), len(self._names) + len(adapters))))[: len(adapters)]
            try:
                for module, layer in layers.items():
                    layer.reserve(sum(len(factors[module][0]) for factors in prepared if module in factors))
                for slot, factors in zip(slots, prepared, strict=True):
                    for module, (down, up) in factors.items():
                        layer = layers[module]
                        start, rank = layer.place(slot, len(down))
                        layer.down[start : start + rank] = down
                        layer.up[start : start + rank] = up
            except BaseException:
                self._clear(layers, slots)
                self._laid_out()
                raise
            for slot, adapter in zip(slots, adapters, strict=True):
                self._names.extend([None] * (slot + 1 - len(self._names)))
                self._names[slot] = adapter.name
            for module, layer in layers.items():
                if module not in self.layers:
                    self._put(module, layer)
                    self.layers[module] = layer
            self._laid_out()
        return slots

    def unload(self, slot: int) -> None:
        """Free a slot; the next adapter takes it. InputError while the gate gives it weight."""
        self._refuse_to_unload(slot)
        self._clear(self.layers, [slot])
        self._names[slot] = None
        self._laid_out()

    def _refuse_to_unload(self, slot: int) -> None:
        if not 0 <= slot < len(self._names) or self._names[slot] is None:
            raise InputError(f"slot {slot} holds no adapter")
        if self.gate.uses(slot):
            raise InputError(
                f"{self._names[slot]} speaks, and what speaks cannot be unloaded",
                fix="set a gate without it first",
            )

    def shrink(self) -> None:
        """Let go of the buffers' room for more."""
        with torch.inference_mode(False), torch.no_grad():
            for layer in self.layers.values():
                layer.shrink()
        self._laid_out()

    def refuse_others(self) -> None:
        """InputError where layers of another bank are in the model: they would speak beside this one."""
        for module in self.model.modules():
            if isinstance(module, BankLayer) and module.gate is not self.gate:
                raise _carries_another()

    def detach(self) -> None:
        """Put the base's own modules back; every slot is free."""
        for module, layer in self.layers.items():
            self._put(module, layer.inner)
        self.layers = {}
        self.gate.reset()
        self._names.clear()

    def fold(self) -> None:
        """Answer from copies of the weights that hold what the gate gives, wherever the gate has this value:
        nothing is added to a forward, and memory holds those weights twice until `unfold`, or until a slot
        changes. The base's own tensors stay where they are. Sums are rounded to the weights' dtype, so in
        half precision the numbers differ from the unfolded ones by its rounding.

        InputError for a gate that is closed, has rows or routes tokens, and for layers that are not `plain`.
        """
        state = self.gate.state
        if state.rows is None or not state.constant or state.tokens:
            raise InputError("only a gate that is open and the same for all rows and tokens can be folded")
        for module, layer in self.layers.items():
            if not layer.plain:
                raise InputError(
                    f"{module} must be a plain layer in {layer.down.dtype} to be folded, and is a "
                    f"{type(layer.inner).__name__} in {layer.weight.dtype}"
                )
        self.unfold()
        try:
            with torch.inference_mode(False), torch.no_grad():
                for layer in self.layers.values():
                    layer.fold(state.rows)
        except BaseException:
            self.unfold()
            raise
        state.folded = True

    def unfold(self) -> None:
        """Let go of the folded copies."""
        self.gate.unfold()
        for layer in self.layers.values():
            layer.folded = None

    def _laid_out(self) -> None:
        """Tell the layers where their columns are; those laid out alike share what the gate prepares."""
        self.unfold()
        known: dict[tuple[Span, ...], Layout] = {}
        for layer in self.layers.values():
            spans = tuple(layer.spans)
            layer.layout = known.setdefault(spans, Layout(spans))
            layer._prepared = None

    @staticmethod
    def _clear(layers: dict[str, BankLayer], slots: Sequence[int]) -> None:
        for layer in layers.values():
            for slot in slots:
                if slot < len(layer.spans):
                    layer.spans[slot] = NOWHERE

    def _layers_for(self, adapters: Sequence[Adapter]) -> dict[str, BankLayer]:
        """The layer of every module that `adapters` touch, new ones not yet in the model."""
        layers = dict(self.layers)
        for adapter in adapters:
            for module, (a, b) in adapter.factors.items():
                if module not in layers:
                    layers[module] = self._new_layer(module, adapter)
                layer = layers[module]
                found = (int(a.shape[1]), int(b.shape[0]))
                if found != (layer.features_in, layer.features_out) or a.shape[0] != b.shape[1]:
                    raise InputError(
                        f"{adapter.name}: {module} maps {layer.features_in} to {layer.features_out}, "
                        f"its delta {found}"
                    )
        return layers

    def _prepared(self, adapter: Adapter, module: str, layer: BankLayer) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B transposed, as the layer keeps them."""
        a, b = (f.detach().to(layer.down.device, layer.down.dtype) for f in adapter.factors[module])
        # One value that is not finite would reach the other rows of a batch: 0 * inf is not 0.
        if not bool(torch.maximum(a.abs().amax(), b.abs().amax()).isfinite()):
            raise InputError(
                f"{adapter.name}: the factors of {module} must be finite in {layer.down.dtype}, and are not"
            )
        return a, b.T

    def _new_layer(self, module: str, owner: Adapter) -> BankLayer:
        try:
            inner = self.model.get_submodule(module)
        except AttributeError:
            raise InputError(f"{owner.name} adapts {module}, which the base does not have") from None
        if isinstance(inner, BankLayer):
            raise _carries_another()
        shape = in_out(inner)
        if shape is None:
            raise InputError(
                f"{owner.name} adapts {module}, a {type(inner).__name__}; only linear layers and plain "
                "embeddings can be"
            )
        weight: torch.Tensor = inner.weight  # type: ignore[assignment]
        return BankLayer(module, inner, shape, self.dtype_of(weight), self.gate)

    def dtype_of(self, weight: torch.Tensor) -> torch.dtype:
        """What the factors beside a weight are kept in: its dtype, or the model's where it is quantised."""
        computed = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
        for parameter in (weight, *self.model.parameters()):
            if parameter.dtype in computed:
                return parameter.dtype
        return torch.float32

    def _put(self, module: str, layer: nn.Module) -> None:
        parent, _, child = module.rpartition(".")
        setattr(self.model.get_submodule(parent), child, layer)


def _carries_another() -> InputError:
    return InputError(
        "this base carries another composed model", fix="detach that one, or load the base again"
    )


def in_out(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of what a bank can adapt: torch's Linear and what derives from it, GPT-2's Conv1D, which
    stores its weight (in, out), and plain embeddings (vocabulary, features); None for everything else.

    An embedding that scales or renormalises what it looks up is none of them, nor is the output layer of
    torch's own attention, whose weight is used without calling it.
    """
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return None
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    if type(module) is nn.Embedding and module.max_norm is None:
        return module.num_embeddings, module.embedding_dim
    return None
