"""Keys and values of the rows that are being answered, in one buffer a layer that rows join and leave.

    column:      0   1   2   3   4   5   6   7 | 8
    row 0            ·   a   b   c   d   e   f |
    row 1                            g   h   i |
    row 2        ·   ·   j   k   l   m   n   o |

Rows end together, at the right: a step writes one column for all of them and reads a view from the first
column that any row has; nothing is copied that was there before. Where columns end, what is held moves to the
left; where it fills them, the buffer grows.

Knows tensors and transformers' `Cache`. Does not know requests, adapters or who may read what.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from inlay.composer.prefill import passed
from inlay.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FIRST_ROWS, FIRST_COLUMNS = 8, 128


@dataclass(frozen=True, eq=False)
class Span:
    """Keys and values of one row's first tokens: for each layer (heads, tokens, dim) of both."""

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    @property
    def tokens(self) -> int:
        return int(self.layers[0][0].shape[1])

    @property
    def nbytes(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)

    def first(self, tokens: int) -> Span:
        """A view of the first of them."""
        return Span(tuple((keys[:, :tokens], values[:, :tokens]) for keys, values in self.layers))


@dataclass(frozen=True)
class KvLayout:
    """What a model keeps: for each layer the heads and the dims of keys and of values, their dtype and
    device."""

    shapes: tuple[tuple[int, int, int], ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, model: PreTrainedModel) -> KvLayout:
        """InputError for a model that keeps something else than keys and values of all tokens: windows and
        the states of recurrent layers cannot be cut between two tokens, nor put side by side."""
        device = next(model.parameters()).device
        one = torch.ones((1, 1), dtype=torch.long, device=device)
        cache, _ = passed(model, one, one)
        if cache is None:
            raise InputError(
                "a base that is served must attend to all tokens in every layer, and "
                f"{model.config.model_type} has windows or states",
                fix="serve its exported variants with another engine",
            )
        keys = cache.layers[0].keys
        shapes = ((int(x.keys.shape[1]), int(x.keys.shape[3]), int(x.values.shape[3])) for x in cache.layers)
        return cls(tuple(shapes), keys.dtype, keys.device)


class _Layer(CacheLayerMixin):
    """One layer's share; `rows` says which part of it a forward writes and reads."""

    is_sliding = False

    def __init__(self, rows: KvRows, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.rows, self.keys, self.values = rows, keys, values
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """It is there from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self.rows
        n, new, seen = len(rows.starts), slice(rows.end - rows.opened, rows.end), slice(rows.first, rows.end)
        if rows.written is None:
            self.keys[:n, :, new] = key_states
            self.values[:n, :, new] = value_states
        else:  # padding lies where a row's earlier tokens are, or where nothing may be
            self.keys[:n, :, new] = key_states.where(rows.written, self.keys[:n, :, new])
            self.values[:n, :, new] = value_states.where(rows.written, self.values[:n, :, new])
        return self.keys[:n, :, seen], self.values[:n, :, seen]

    def get_seq_length(self) -> int:
        return self.rows.end - self.rows.opened - self.rows.first

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


class KvRows(Cache):
    """`starts`: each row's first column; `end`: the column after all rows' last; `first`: the lowest start.

    A forward is announced by `open`, which gives it its mask and its positions, and must follow.
    """

    def __init__(self, layout: KvLayout, *, rows: int = FIRST_ROWS, columns: int = FIRST_COLUMNS) -> None:
        self.layout = layout
        self.starts: list[int] = []
        self.end = self.first = self.opened = 0
        self.written: torch.Tensor | None = None
        self._starts = torch.zeros((0, 1), dtype=torch.long, device=layout.device)
        super().__init__(layers=[_Layer(self, *pair) for pair in self._zeros(rows, columns)])

    @classmethod
    def begun(cls, layout: KvLayout, lengths: Sequence[int], spans: Sequence[Span | None]) -> KvRows:
        """Rows of so many tokens, the first of which are there already where a span is given; `open_new` is
        for what is left of them, at least one token each."""
        width = max(lengths)
        rows = cls(layout, rows=len(lengths), columns=width)
        rows.end = width
        rows._start([width - length for length in lengths])
        for i, span in enumerate(spans):
            if span is not None:
                rows._put(i, rows.starts[i], span)
        return rows

    @property
    def columns(self) -> int:
        return int(self.layers[0].keys.shape[2])

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in self._buffers())

    def length(self, row: int) -> int:
        return self.end - self.starts[row]

    def open_new(self, left: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """A forward over the last `left` tokens of each row of `begun`, padded on the left: its mask, long
        (rows, columns), and its positions, long (rows, max(left))."""
        length = max(left)
        columns = torch.arange(self.end, device=self.layout.device)
        if min(left) < length:
            begins = torch.tensor([self.end - n for n in left], device=self.layout.device)
            self.written = (columns[None, -length:] >= begins[:, None])[:, None, :, None]
        self.opened = length
        self.first = 0
        return (columns >= self._starts).long(), (columns[None, -length:] - self._starts).clamp_min(0)

    def open(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A forward over one token more of every row: its mask, long (rows, columns from `first` to `end`),
        and its positions, long (rows, 1)."""
        if self.end == self.columns:
            self._make_room()
        self.end += 1
        self.opened, self.written = 1, None
        columns = torch.arange(self.first, self.end, device=self.layout.device)
        return (columns >= self._starts).long(), self.end - 1 - self._starts

    def join(self, other: KvRows, chosen: Sequence[int]) -> None:
        """Rows of another one become the last of this."""
        lengths = [other.length(row) for row in chosen]
        if not self.starts:
            self.end = self.first = 0
        if max(lengths) > self.end:
            self._reach(max(lengths))
        kept = len(self.starts)
        self._room_for_rows(kept + len(chosen))
        for i, (row, length) in enumerate(zip(chosen, lengths, strict=True), kept):
            for mine, its in zip(self._buffers(), other._buffers(), strict=True):
                mine[i, :, : self.end - length] = 0  # 0 times what is not finite would not be 0
                mine[i, :, self.end - length : self.end] = its[row, :, other.end - length : other.end]
        self._start([*self.starts, *(self.end - length for length in lengths)])

    def leave(self, row: int) -> None:
        """Take a row out; the last one moves into its place."""
        last = len(self.starts) - 1
        if row != last:
            for buffer in self._buffers():
                buffer[row, :, : self.end] = buffer[last, :, : self.end]
        starts = [*self.starts]
        starts[row] = starts[last]
        self._start(starts[:last])

    def span(self, row: int) -> Span:
        """A copy of what a row has."""
        here = slice(self.starts[row], self.end)
        return Span(
            tuple((x.keys[row, :, here].clone(), x.values[row, :, here].clone()) for x in self.layers)
        )

    def _put(self, row: int, column: int, span: Span) -> None:
        here = slice(column, column + span.tokens)
        for layer, (keys, values) in zip(self.layers, span.layers, strict=True):
            layer.keys[row, :, here], layer.values[row, :, here] = keys, values

    def _start(self, starts: list[int]) -> None:
        self.starts = starts
        self.first = min(starts, default=0)
        self._starts = torch.tensor(starts, dtype=torch.long, device=self.layout.device).reshape(-1, 1)

    def _zeros(self, rows: int, columns: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        given: dict[str, Any] = {"dtype": self.layout.dtype, "device": self.layout.device}
        return [
            (torch.zeros(rows, heads, columns, k, **given), torch.zeros(rows, heads, columns, v, **given))
            for heads, k, v in self.layout.shapes
        ]

    def _buffers(self) -> list[torch.Tensor]:
        return [x for layer in self.layers for x in (layer.keys, layer.values)]

    def _reach(self, end: int) -> None:
        """Move what is held to the right until it ends there, for a longer row to stand beside it."""
        if end > self.columns:
            self._grow(int(self.layers[0].keys.shape[0]), max(2 * self.columns, end))
        if self.starts:
            self._move(end - (self.end - self.first))
        else:
            self.end = end

    def _make_room(self) -> None:
        """A column after the end: what is held moves to the left where that frees an eighth of all, else the
        buffer grows."""
        if (self.end - self.first) * 8 <= self.columns * 7:
            self._move(0)
        else:
            self._grow(int(self.layers[0].keys.shape[0]), 2 * self.columns)

    def _room_for_rows(self, rows: int) -> None:
        held = int(self.layers[0].keys.shape[0])
        if rows > held:
            self._grow(max(rows, 2 * held), self.columns)

    def _grow(self, rows: int, columns: int) -> None:
        n = len(self.starts)
        for layer, (keys, values) in zip(self.layers, self._zeros(rows, columns), strict=True):
            keys[:n, :, : self.end] = layer.keys[:n, :, : self.end]
            values[:n, :, : self.end] = layer.values[:n, :, : self.end]
            layer.keys, layer.values = keys, values

    def _move(self, to: int) -> None:
        """What is held, with its first column at `to`."""
        n, held, by = len(self.starts), self.end - self.first, to - self.first
        for buffer in self._buffers():
            buffer[:n, :, to : to + held] = buffer[:n, :, self.first : self.end].clone()
            if by > 0:
                buffer[:n, :, self.first : to] = 0
        self.end += by
        self._start([start + by for start in self.starts])
