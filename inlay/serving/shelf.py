"""What is loaded: targets brought into the bank beside serving, the least recently used put away.

A target is read, verified and merged in the thread of whoever asks for it; only the copy into the bank runs
between two tokens. Adapters that two targets share have one slot. What a request uses is never put away.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import torch

from inlay.composer.bases import check_base
from inlay.composer.merging.loading import adapter_of
from inlay.composer.plan import Plan, make_plan
from inlay.composer.routing import Routing, load_routing
from inlay.errors import InlayError, InputError
from inlay.registry import Lock, Registry, Version
from inlay.registry.recipes import BASE

if TYPE_CHECKING:
    from inlay.composer.factors import Adapter
    from inlay.evals.inference import Base
    from inlay.serving.scheduler import Scheduler

READERS = 4
"""Targets that are read at once: bounds the memory of what is on its way."""
PATIENCE = 30.0
"""Seconds that a target waits for room while requests use all there is."""

Key = tuple[str, str]
"""Reference and digest of a target."""


class MemoryFull(InlayError):
    """There is no room for a target beside what requests are using."""

    exit_code = 3


class Observer(Protocol):
    """Who hears what happens to targets; `ref` is "acme@v3"."""

    def load(self, ref: str, seconds: float) -> None: ...
    def load_failed(self, ref: str, why: str) -> None: ...
    def put_away(self, ref: str) -> None: ...
    def swap(self, ref: str, before: str | None, after: str | None) -> None: ...


@dataclass(eq=False)
class Loaded:
    """One target in the bank. `target`, `plan` and `routing` are None for the bare base.

    `slots`: the bank's slots of `plan.slots`, in their order; `nbytes`: what their factors take in the bank,
    shared ones included; `ref`: "acme@v3", or "base"; `digest`: the target's, or that of the base's weights.
    """

    target: Lock | Version | None
    plan: Plan | None
    routing: Routing | None
    slots: tuple[int, ...]
    nbytes: int
    ref: str
    digest: str


@dataclass(eq=False)
class _Slot:
    """An adapter in the bank. `holders`: the targets, and loads under way, that have it."""

    number: int
    nbytes: int
    holders: int


@dataclass(eq=False)
class _Flight:
    """A load under way, and how many others wait for it."""

    landed: Future[Loaded] = field(default_factory=Future)
    waiting: int = 0


class Shelf:
    """Targets in the scheduler's bank, up to `budget` bytes of factors; the bank's buffers, which have room
    to grow, take twice that at most. All methods may be called from any thread but the scheduler's own, where
    `take` would wait for itself.
    """

    def __init__(
        self,
        store: Registry,
        scheduler: Scheduler,
        base: Base,
        *,
        budget: int = 1 << 30,
        accept_prompt_change: bool = False,
        patience: float = PATIENCE,
        observer: Observer | None = None,
    ) -> None:
        self.store = store
        self.base = base
        self.budget = budget
        self._scheduler = scheduler
        self._accept_prompt_change = accept_prompt_change
        self._patience = patience
        self._observer = observer
        self._bare = Loaded(None, None, None, (), 0, BASE, base.fingerprint.weights)
        self._changed = threading.Condition(threading.RLock())
        self._held: OrderedDict[Key, Loaded] = OrderedDict()  # the least recently used first
        self._uses: dict[Loaded, int] = {}
        self._slots: dict[str, _Slot] = {}
        self._flights: dict[Key, _Flight] = {}
        self._reading = threading.Semaphore(READERS)

    @property
    def nbytes(self) -> int:
        """Bytes of the factors in the bank, each adapter once."""
        with self._changed:
            return sum(slot.nbytes for slot in self._slots.values())

    def take(self, target: Lock | Version | None) -> Loaded:
        """The target in the bank, there until it is given back; None is the bare base. Blocks while it loads.

        A failure leaves what is loaded as it was. Raises InputError for what no bank can hold, BaseMismatch,
        IntegrityError, StoreBusy, and MemoryFull where what requests use leaves no room.
        """
        if target is None:
            return self._bare
        key = _key(target)
        with self._changed:
            loaded = self._held.get(key)
            if loaded is not None:
                self._held.move_to_end(key)
                self._uses[loaded] += 1
                return loaded
            flight = self._flights.get(key)
            if flight is not None:
                flight.waiting += 1
            else:
                own = self._flights[key] = _Flight()
        if flight is not None:
            return flight.landed.result()
        try:
            loaded = self._bring(target, own)
        except BaseException as error:
            with self._changed:
                self._flights.pop(key, None)
            own.landed.set_exception(error)
            if self._observer is not None:
                self._observer.load_failed(target.ref, str(error))
            raise
        own.landed.set_result(loaded)
        return loaded

    def give_back(self, loaded: Loaded) -> None:
        """A request that took it has ended."""
        if loaded is self._bare:
            return
        with self._changed:
            uses = self._uses[loaded] - 1
            assert uses >= 0, f"{loaded.ref} was given back more often than taken"
            self._uses[loaded] = uses
            if not uses:
                self._held.move_to_end(_key_of(loaded))
                self._changed.notify_all()

    def loaded(self) -> list[Loaded]:
        """What is in the bank, the least recently used first."""
        with self._changed:
            return list(self._held.values())

    def uses(self, loaded: Loaded) -> int:
        """How many requests have it now."""
        with self._changed:
            return self._uses.get(loaded, 0)

    def holds(self, target: Lock | Version) -> bool:
        """Is it there, so that `take` does not wait?"""
        with self._changed:
            return _key(target) in self._held

    def _bring(self, target: Lock | Version, flight: _Flight) -> Loaded:
        started = time.monotonic()
        check_base(target.base, self.base, target.ref, accept_prompt_change=self._accept_prompt_change)
        with self._reading:
            plan = make_plan(self.store, target)
            if plan.alone is not None:
                raise InputError(
                    f"a server's bank holds factors, and {target.ref} has none: {plan.alone.alone}",
                    fix="register what a rank keeps of it (`inlay add --truncate RANK`)",
                )
            shared = self._hold(plan)
            try:
                by_tokens = any(route.by_tokens for route in plan.routes)
                read = {
                    slot.digest: adapter_of(self.store, slot)
                    for slot in plan.slots
                    if by_tokens or slot.digest not in shared
                }
                routing = load_routing(self.store, plan, read)
                fresh = {
                    digest: self._fitted(adapter) for digest, adapter in read.items() if digest not in shared
                }
                loaded = self._placed(target, plan, routing, fresh, flight)
            finally:
                self._let_go(shared)
        if self._observer is not None:
            self._observer.load(target.ref, time.monotonic() - started)
        return loaded

    def _fitted(self, adapter: Adapter) -> Adapter:
        """In the bank's dtype and on its device, so that between two tokens it is only copied."""
        factors = {}
        with torch.no_grad():
            for module, pair in adapter.factors.items():
                try:
                    weight: torch.Tensor = self.base.model.get_submodule(module).weight
                except AttributeError:  # the bank says what is wrong with it
                    return adapter
                dtype = self._scheduler.bank.dtype_of(weight)
                a, b = (factor.detach().to(weight.device, dtype) for factor in pair)
                factors[module] = (a, b)
        return replace(adapter, factors=factors)

    def _hold(self, plan: Plan) -> set[str]:
        """Which of its adapters are there already; they stay until they are let go."""
        with self._changed:
            found = {slot.digest for slot in plan.slots if slot.digest in self._slots}
            for digest in found:
                self._slots[digest].holders += 1
        return found

    def _let_go(self, digests: Iterable[str]) -> None:
        with self._changed:
            for digest in digests:
                self._slots[digest].holders -= 1
            self._changed.notify_all()

    def _placed(
        self,
        target: Lock | Version,
        plan: Plan,
        routing: Routing,
        fresh: Mapping[str, Adapter],
        flight: _Flight,
    ) -> Loaded:
        """Waits for room, then copies; anew where the room was taken in between."""
        deadline = time.monotonic() + self._patience
        with self._changed:
            whole = sum(self._slots[s.digest].nbytes for s in plan.slots if s.digest not in fresh)
        whole += sum(_nbytes(adapter) for adapter in fresh.values())
        if whole > self.budget:
            raise MemoryFull(
                f"{target.ref} takes {whole} bytes of adapters, and there are {self.budget} for all",
                fix="raise the budget",
            )
        while True:
            with self._changed:
                while self._victims(self._missing(fresh)) is None:
                    if not self._changed.wait(deadline - time.monotonic()):
                        raise MemoryFull(
                            f"requests use the {self.budget} bytes of adapters there are, and {target.ref} "
                            f"waited {self._patience:g} s for room",
                            fix="try again, or raise the budget",
                        )
            deed = self._scheduler.between_steps(
                lambda: self._copied(target, plan, routing, fresh, flight, whole)
            )
            loaded = deed.result()
            if loaded is not None:
                return loaded

    def _copied(
        self,
        target: Lock | Version,
        plan: Plan,
        routing: Routing,
        fresh: Mapping[str, Adapter],
        flight: _Flight,
        nbytes: int,
    ) -> Loaded | None:
        """Between two tokens: what must go goes, what is missing comes. None where there is no room now."""
        bank = self._scheduler.bank
        with self._changed:
            missing = self._missing(fresh)
            victims = self._victims(missing)
            if victims is None:
                return None
            left = self._left_by(victims)
            leaving = [self._slots[digest].number for digest in left]
            try:
                numbers = bank.load_all(list(missing.values()), leaving=leaving)
            except BaseException as error:
                if any(bank.names[number] is None for number in leaving):
                    self._put_away(victims, left)
                if _memory_ended(error):
                    raise MemoryFull(f"memory ended while {target.ref} was loaded: {error}") from error
                raise
            self._put_away(victims, left)
            for (digest, adapter), number in zip(missing.items(), numbers, strict=True):
                self._slots[digest] = _Slot(number, _nbytes(adapter), 0)
            for slot in plan.slots:
                self._slots[slot.digest].holders += 1
            slots = tuple(self._slots[slot.digest].number for slot in plan.slots)
            loaded = Loaded(target, plan, routing, slots, nbytes, target.ref, target.digest)
            key = _key(target)
            self._held[key] = loaded
            self._uses[loaded] = 1 + flight.waiting
            del self._flights[key]
            # Different modules grow at different times, and what has grown does not shrink by itself.
            if bank.nbytes > 2 * self.budget:
                bank.shrink()
            return loaded

    def _missing(self, fresh: Mapping[str, Adapter]) -> dict[str, Adapter]:
        """Without what came for another target in the meantime."""
        return {digest: adapter for digest, adapter in fresh.items() if digest not in self._slots}

    def _victims(self, missing: Mapping[str, Adapter]) -> list[Loaded] | None:
        """What is put away for them, the least recently used first; None where that is not enough."""
        holders = {digest: slot.holders for digest, slot in self._slots.items()}
        total = sum(slot.nbytes for slot in self._slots.values() if slot.holders)
        total += sum(_nbytes(adapter) for adapter in missing.values())
        victims: list[Loaded] = []
        for loaded in self._held.values():
            if total <= self.budget:
                break
            if self._uses[loaded]:
                continue
            victims.append(loaded)
            for digest in _adapters_of(loaded):
                holders[digest] -= 1
                if not holders[digest]:
                    total -= self._slots[digest].nbytes
        return victims if total <= self.budget else None

    def _left_by(self, victims: Iterable[Loaded]) -> list[str]:
        """Adapters that nobody has once these are away."""
        holders = {digest: slot.holders for digest, slot in self._slots.items()}
        for loaded in victims:
            for digest in _adapters_of(loaded):
                holders[digest] -= 1
        return [digest for digest, count in holders.items() if not count]

    def _put_away(self, victims: Iterable[Loaded], left: Iterable[str]) -> None:
        for loaded in victims:
            del self._held[_key_of(loaded)], self._uses[loaded]
            for digest in _adapters_of(loaded):
                self._slots[digest].holders -= 1
            if all(other.digest != loaded.digest for other in self._held.values()):
                self._scheduler.forget_prefixes(loaded.digest)
            if self._observer is not None:
                self._observer.put_away(loaded.ref)
        for digest in left:
            del self._slots[digest]


def _key(target: Lock | Version) -> Key:
    return target.ref, target.digest


def _key_of(loaded: Loaded) -> Key:
    return loaded.ref, loaded.digest


def _adapters_of(loaded: Loaded) -> list[str]:
    return [slot.digest for slot in loaded.plan.slots] if loaded.plan is not None else []


def _nbytes(adapter: Adapter) -> int:
    return sum(a.nbytes + b.nbytes for a, b in adapter.factors.values())


def _memory_ended(error: BaseException) -> bool:
    """PyTorch's CPU allocator raises a RuntimeError that says so."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
