"""Whose words a row speaks: what each request's routes choose, and one gate for a batch of many targets.

Routers that read hidden states choose from a pass of the bare base over the prompt; where the answer is the
base's, that pass is its prefill.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from inlay.composer.bank import Bank
from inlay.composer.routers.seen import Seen, pool
from inlay.composer.routing import Ask, Turn
from inlay.errors import InputError
from inlay.evals.inference import Base
from inlay.serving.kv_rows import KvLayout, KvRows, Span
from inlay.serving.requests import Request

if TYPE_CHECKING:
    from inlay.serving.shelf import Loaded


KEPT_BYTES = 256 << 20
"""Most that all layers of the bank together hold on to for the rows that run."""


@dataclass(frozen=True, eq=False)
class Begun:
    """A prompt that has been read: its row of `rows`, and the logits (vocabulary,) after it."""

    rows: KvRows
    row: int
    logits: torch.Tensor


@dataclass(frozen=True, eq=False)
class Voice:
    """What one request gets of its target. `key`: requests of one target whose keys are equal are computed
    alike; `turn`: of one row, None for the bare base, and `gate` what it gives to which slots of the bank;
    `begun`: where choosing was reading the prompt."""

    key: bytes = b""
    turn: Turn | None = None
    gate: tuple[tuple[int, float], ...] = ()
    begun: Begun | None = None


class RowAdapters(Protocol):
    """How the rows of a batch get their adapters."""

    def turn(
        self, loaded: Loaded, requests: Sequence[Request], ids: Sequence[Sequence[int]]
    ) -> Sequence[Voice]:
        """What each of these requests for one target gets; InputError where one asks for what is not."""

    def speaking(self, rows: Sequence[tuple[Loaded, Voice]]) -> contextlib.AbstractContextManager[None]:
        """Inside, forwards are over these rows, in this order."""


class Reader:
    """Passes of a model over prompts and over single tokens, rows of unequal length side by side."""

    def __init__(self, base: Base) -> None:
        self.model = base.model
        self.layout = KvLayout.of(base.model)
        self.pad = int(base.tokenizer.pad_token_id or 0)
        self._positions = "position_ids" in inspect.signature(base.model.forward).parameters

    def read(
        self, ids: Sequence[Sequence[int]], spans: Sequence[Span | None], *, states: bool = False
    ) -> tuple[KvRows, torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor]:
        """Prompts, of which the spans hold the first tokens: their rows, the logits after each (rows,
        vocabulary), where asked the states of every layer (rows, length, hidden), and the mask of those."""
        left = [len(row) - (span.tokens if span else 0) for row, span in zip(ids, spans, strict=True)]
        rows = KvRows.begun(self.layout, [len(row) for row in ids], spans)
        padded = torch.full((len(ids), max(left)), self.pad, dtype=torch.long)
        for i, (row, n) in enumerate(zip(ids, left, strict=True)):
            padded[i, len(padded[i]) - n :] = torch.tensor(row[len(row) - n :])
        mask, positions = rows.open_new(left)
        logits, found = self._forward(rows, padded.to(self.layout.device), mask, positions, states)
        return rows, logits, found, mask

    def step(self, rows: KvRows, tokens: Sequence[int]) -> torch.Tensor:
        """One token more of each row: the logits after it, (rows, vocabulary)."""
        mask, positions = rows.open()
        ids = torch.tensor(tokens, device=self.layout.device)[:, None]
        return self._forward(rows, ids, mask, positions, False)[0]

    def _forward(
        self,
        rows: KvRows,
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        states: bool,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        given = {"position_ids": positions} if self._positions else {}
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=rows,
            use_cache=True,
            logits_to_keep=1,
            output_hidden_states=states,
            **given,
        )
        return out.logits[:, -1].float(), tuple(out.hidden_states or ())


class BankAdapters:
    """Through the bank's gate."""

    def __init__(self, bank: Bank, reader: Reader, base: Base) -> None:
        self._bank, self._reader, self._tokenizer = bank, reader, base.tokenizer

    def turn(self, loaded: Loaded, requests: Sequence[Request], ids: Sequence[Sequence[int]]) -> list[Voice]:
        if loaded.routing is None:
            for request in requests:
                _refuse_wishes(request)
            return [Voice() for _ in requests]
        routing, begun = loaded.routing, None
        asks = [Ask(_weights(loaded, request), request.expert) for request in requests]
        if routing.reads_states:
            with self._bank.gate.held_at(None):
                rows, logits, states, mask = self._reader.read(ids, [None] * len(ids), states=True)
            pools = pool(states, mask)
            begun = [Begun(rows, i, logits[i]) for i in range(len(ids))]
        seen = Seen(ids, self._tokenizer, lambda: pools)
        turn = routing.turn(routing.choices(seen, asks), asks)
        speaking = turn.speaking.tolist()
        voices = []
        for i in range(len(requests)):
            own = turn.only(torch.tensor([i]))
            if not bool(own.values.isfinite().all()):
                raise InputError("weights must be finite in float32, and these are not")
            key = b"".join(x.numpy().tobytes() for x in (own.values, *own.tokens))
            gate = tuple(zip(loaded.slots, own.values[0].tolist(), strict=True))
            voices.append(Voice(key, own, gate, begun[i] if begun is not None and not speaking[i] else None))
        return voices

    def speaking(self, rows: Sequence[tuple[Loaded, Voice]]) -> contextlib.AbstractContextManager[None]:
        self._bank.gate.kept_bytes = KEPT_BYTES // max(1, len(self._bank.layers))
        table = [[0.0] * self._bank.slots for _ in rows]
        routed: dict[Loaded, list[int]] = {}
        for i, (loaded, voice) in enumerate(rows):
            for slot, value in voice.gate:
                table[i][slot] = value
            if voice.turn is not None and voice.turn.tokens:
                routed.setdefault(loaded, []).append(i)
        values = torch.tensor(table).reshape(len(rows), -1)
        routes = []
        for loaded, own in routed.items():
            assert loaded.routing is not None
            turn = _spread([rows[i][1].turn for i in own], own, len(rows))
            routes += loaded.routing.gate(turn, loaded.slots, self._bank.slots)[1]
        # One row for all where all are alike: the bank has less to do.
        alike = bool((values == values[:1]).all())
        return self._bank.gate.held_at(values[0] if alike else values, routes)


def _spread(turns: Sequence[Turn | None], own: Sequence[int], rows: int) -> Turn:
    """The turns of some rows of a batch in a turn for all, nothing for the others."""
    found = [turn for turn in turns if turn is not None]
    first = found[0]
    tokens = []
    for number, weights in enumerate(first.tokens):
        tokens.append(torch.zeros(rows, weights.shape[1]))
        tokens[-1][list(own)] = torch.cat([turn.tokens[number] for turn in found])
    return Turn(torch.zeros(rows, first.values.shape[1]), tuple(tokens))


def _weights(loaded: Loaded, request: Request) -> tuple[float, ...] | None:
    """A value for each slot of the plan; None: as the recipe says."""
    if request.weights is None:
        return None
    assert loaded.plan is not None
    names = [slot.ref for slot in loaded.plan.slots]
    for name in request.weights:
        if name not in names:
            raise InputError(
                f"weights must be for members of {loaded.ref}, and {name[:60]!r} is none",
                fix=f"its members: {', '.join(names)}",
            )
    return tuple(float(request.weights.get(name, 0.0)) for name in names)


def _refuse_wishes(request: Request) -> None:
    if request.weights:
        raise InputError(
            f"weights must be for members of what is asked, and the base has none; got "
            f"{next(iter(request.weights))[:60]!r}",
            fix="leave them out, or ask for a variant",
        )
    if request.expert is not None:
        raise InputError(
            f"an expert can be named where a route goes by request, and the base has none; got "
            f"{request.expert[:60]!r}",
            fix="leave it out, or ask for a variant",
        )
