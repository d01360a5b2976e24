"""The gate: how much of each adapter of a bank a row gets, and which routers choose for its tokens.

One object, seen by all layers of a bank. For each layer it prepares once what a forward needs (which path,
which columns, which rows), and keeps that until it is set again: a decode step finds it ready, and only what
hangs on the tokens themselves is left to do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from inlay.composer.costs import Costs, Shape, TokenShape, choose
from inlay.composer.observed import Observed
from inlay.composer.paths import Dense, Gathered, Piece, Segmented, Still
from inlay.composer.site import Site
from inlay.composer.token_paths import Routed
from inlay.composer.token_routes import CheckedRoute, TokenRoute
from inlay.errors import InputError

Work = Still | Routed

KEPT_BYTES = 1 << 20
"""Most that one layer holds on to for a decode, unless its gate says otherwise: of a model with 200 layers
200 MiB."""


@dataclass(eq=False)
class State:
    """A value with its token routes, and what was prepared from them.

    `rows`: float32 on the CPU, (n, slots); one row speaks for every row of a batch where `constant`.
    `uniform`: so does all else that speaks. `closed`: nothing speaks.
    """

    value: torch.Tensor | None
    rows: torch.Tensor | None = None
    constant: bool = True
    tokens: tuple[CheckedRoute, ...] = ()
    folded: bool = False
    stills: dict[Site, Still | None] = field(default_factory=dict)
    routed: dict[tuple[str, Site], Work | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.closed = self.rows is None and not self.tokens
        self.uniform = self.constant and all(route.constant for route in self.tokens)

    def uses(self, slot: int) -> bool:
        still = self.rows is not None and slot < self.rows.shape[1] and bool(self.rows[:, slot].any())
        return still or any(route.uses(slot) for route in self.tokens)


class Gate:
    """How much of each slot a row gets.

    Values are None (nothing loaded speaks: the bare base), a tensor (slots,) for the whole batch, or
    (rows, slots) for each row of it. Slots beyond the last one given get nothing. Token routes add to that
    what each token chooses by itself. `loaded` is the bank's own list of what is in its slots, None where one
    is free; `path` forces one path wherever it exists, for tests and measurements; `kept_bytes`: most that a
    layer holds on to for a decode, `KEPT_BYTES` where it is None.
    """

    def __init__(self, loaded: Sequence[object | None]) -> None:
        self.loaded = loaded
        self.path: str | None = None
        self.kept_bytes: int | None = None
        self._states = [State(None)]
        self._observers: list[Observed] = []

    @property
    def value(self) -> torch.Tensor | None:
        return self._states[-1].value

    @property
    def state(self) -> State:
        return self._states[-1]

    def uses(self, slot: int) -> bool:
        """Does the gate, now or once a `held_at` ends, give anything to this slot?"""
        return any(state.uses(slot) for state in self._states)

    def set(self, value: torch.Tensor | None, tokens: Sequence[TokenRoute] = ()) -> None:
        """Raises InputError for a weight that is not finite or belongs to a slot without an adapter, and for
        a token route that is not whole."""
        self._states[-1] = self._checked(value, tokens)

    def reset(self) -> None:
        """Closed, now and once a `held_at` ends."""
        self._states = [State(None) for _ in self._states]

    def unfold(self) -> None:
        for state in self._states:
            state.folded = False

    @contextlib.contextmanager
    def held_at(self, value: torch.Tensor | None, tokens: Sequence[TokenRoute] = ()) -> Iterator[None]:
        """Inside, the gate has this value and these token routes; afterwards what it had."""
        self._states.append(self._checked(value, tokens))
        try:
            yield
        finally:
            self._states.pop()

    @contextlib.contextmanager
    def observed(self) -> Iterator[Observed]:
        """Inside, every layer tells what its tokens choose."""
        seen = Observed()
        self._observers.append(seen)
        try:
            yield seen
        finally:
            self._observers.remove(seen)

    def _checked(self, value: torch.Tensor | None, tokens: Sequence[TokenRoute]) -> State:
        # A gate that is zero everywhere costs nothing and leaves the base's output untouched to the bit.
        with torch.inference_mode(False), torch.no_grad():
            rows, constant = self._checked_rows(value)
            routes = tuple(CheckedRoute.of(route, self.loaded) for route in tokens)
            if all(route.silent for route in routes):
                routes = ()
            return State(None if rows is None else value, rows, constant, routes)

    def _checked_rows(self, value: torch.Tensor | None) -> tuple[torch.Tensor | None, bool]:
        if value is None:
            return None, True
        rows = value.detach().to("cpu", torch.float32).clone()
        if rows.ndim not in (1, 2) or not bool(rows.isfinite().all()):
            raise InputError(
                "a gate must be finite, (slots,) or (rows, slots), "
                f"and this one is {'not finite' if rows.ndim in (1, 2) else tuple(rows.shape)}"
            )
        constant = rows.ndim == 1
        rows = rows.reshape(1, -1) if constant else rows
        for slot in rows.any(0).nonzero().flatten().tolist():
            if slot >= len(self.loaded) or self.loaded[slot] is None:
                raise InputError(f"a weight must belong to a loaded adapter, and slot {slot} holds none")
        return (rows, constant) if bool(rows.any()) else (None, True)

    def work(self, site: Site, module: str) -> Work | None:
        """What this layer has to do for a batch of this shape; None where nothing speaks there."""
        state = self._states[-1]
        known = (module, site) in state.routed if state.tokens else site in state.stills
        if not known:
            with torch.inference_mode(False), torch.no_grad():
                if site not in state.stills:
                    state.stills[site] = self._prepare(site)
                if state.tokens:
                    state.routed[module, site] = self._with_tokens(site, module)
        return state.routed[module, site] if state.tokens else state.stills[site]

    def _with_tokens(self, site: Site, module: str) -> Work | None:
        state = self._states[-1]
        works = [
            route.work(site, module, number, partial(self._choose, site), self._observers)
            for number, route in enumerate(state.tokens)
        ]
        speaking = tuple(work for work in works if work is not None)
        return Routed(state.stills[site], speaking) if speaking else state.stills[site]

    def _prepare(self, site: Site) -> Still | None:
        state = self._states[-1]
        if state.rows is None:
            return None
        weights, spans = state.rows, site.layout.spans
        active = [
            slot
            for slot in weights.any(0).nonzero().flatten().tolist()
            if slot < len(spans) and spans[slot][1]
        ]
        if not active:
            return None
        if state.constant:
            return self._prepare_constant(site, weights[0], sorted(spans[slot] + (slot,) for slot in active))
        return self._prepare_rows(site, site.repeated(weights), active)

    def _prepare_constant(
        self, site: Site, weights: torch.Tensor, active: Sequence[tuple[int, int, int]]
    ) -> Still:
        """One run of columns that holds every slot that speaks, or the runs between which others lie."""
        runs: list[tuple[int, int, list[float]]] = []
        for start, rank, slot in active:
            gate = [float(weights[slot])] * rank
            if runs and runs[-1][1] == start:
                first, _, before = runs.pop()
                runs.append((first, start + rank, before + gate))
            else:
                runs.append((start, start + rank, gate))
        lo, hi = runs[0][0], runs[-1][1]
        tokens = site.rows * site.length
        shape = Shape(
            rows=site.rows,
            length=site.length,
            features=site.features_in + site.features_out,
            columns=hi - lo,
            gathered=0,
            pieces=tuple((tokens, stop - start, False) for start, stop, _ in runs),
        )
        if self._choose(site, shape) == "segmented":
            return Segmented(
                tuple(Piece(None, start, stop, self._vector(site, gate)) for start, stop, gate in runs)
            )
        spread = [0.0] * (hi - lo)
        for start, stop, gate in runs:
            spread[start - lo : stop - lo] = gate
        return Dense(lo, hi, self._vector(site, spread))

    def _prepare_rows(self, site: Site, weights: torch.Tensor, active: Sequence[int]) -> Still:
        spans = site.layout.spans
        lo = min(spans[slot][0] for slot in active)
        hi = max(sum(spans[slot]) for slot in active)
        members: dict[int, list[int]] = {slot: [] for slot in active}
        for row, slot in weights.nonzero().tolist():
            if slot in members:
                members[slot].append(row)
        ranks = [0] * site.rows
        for slot, rows in members.items():
            for row in rows:
                ranks[row] += spans[slot][1]
        most = KEPT_BYTES if self.kept_bytes is None else self.kept_bytes
        copied = site.rows * max(ranks) * (site.features_in + site.features_out) * site.dtype.itemsize
        shape = Shape(
            rows=site.rows,
            length=site.length,
            features=site.features_in + site.features_out,
            columns=hi - lo,
            gathered=0 if site.lookup else max(ranks),
            lasting=site.length == 1 and not self.state.tokens and copied <= most,
            pieces=tuple(
                (len(rows) * site.length, spans[slot][1], rows[-1] - rows[0] + 1 != len(rows))
                for slot, rows in members.items()
            ),
        )
        path = self._choose(site, shape)
        if path == "segmented":
            return Segmented(
                tuple(self._piece(site, weights, slot, members[slot]) for slot in sorted(active))
            )
        if path in ("gathered", "kept"):
            # Lists first: rows change often where requests come and go, and small tensors take their time.
            columns: list[list[int]] = [[] for _ in ranks]
            gates: list[list[float]] = [[] for _ in ranks]
            given = weights.tolist()
            for slot in active:
                start, rank = spans[slot]
                for row in members[slot]:
                    columns[row] += range(start, start + rank)
                    gates[row] += [given[row][slot]] * rank
            missing = [max(ranks) - rank for rank in ranks]
            index = torch.tensor([held + [0] * n for held, n in zip(columns, missing, strict=True)])
            gate = torch.tensor([held + [0.0] * n for held, n in zip(gates, missing, strict=True)])[:, None]
            return Gathered(
                index.flatten().to(site.device), gate.to(site.device, site.dtype), lasting=path == "kept"
            )
        gate = torch.zeros(site.rows, 1, hi - lo)
        for slot in active:
            start, rank = spans[slot]
            gate[:, 0, start - lo : start - lo + rank] = weights[:, slot, None]
        return Dense(lo, hi, gate.to(site.device, site.dtype))

    def _piece(self, site: Site, weights: torch.Tensor, slot: int, rows: list[int]) -> Piece:
        start, rank = site.layout.spans[slot]
        together = rows[-1] - rows[0] + 1 == len(rows)
        where = slice(rows[0], rows[-1] + 1) if together else torch.tensor(rows, device=site.device)
        gate = weights[rows, slot]
        if bool((gate == 1).all()):
            return Piece(where, start, start + rank, None)
        return Piece(where, start, start + rank, gate.view(-1, 1, 1).to(site.device, site.dtype))

    def _vector(self, site: Site, gate: list[float]) -> torch.Tensor | None:
        if all(g == 1 for g in gate):
            return None
        return torch.tensor(gate).to(site.device, site.dtype)

    def _choose(self, site: Site, shape: Shape | TokenShape) -> str:
        gathers = isinstance(shape, TokenShape) or shape.gathered > 0
        keeps = isinstance(shape, Shape) and gathers and shape.lasting
        exists = {"gathered": gathers, "kept": keeps}
        if self.path and exists.get(self.path, True):
            return self.path
        return choose(shape, Costs.on(site.device.type))
