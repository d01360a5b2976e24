"""Which version new requests get: what the registry says now, where that could be loaded.

One thread looks at the store five times a second. Where something changed, the references in use are
resolved anew; a new target is loaded beside serving, and then new requests get it, while those that run keep
what they have. Requests for what is known meet no store, so one that is gone for a while stops nobody.

A load that fails leaves what was served before, and `problems` says why; it is tried again after growing
pauses, and whenever the store changes. What was yanked is given to nobody new, not even until its successor
is there: whoever asks waits for that one.
"""

from __future__ import annotations

import copy
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from inlay.errors import InlayError, InputError, IntegrityError, ReferenceNotFound, StoreBusy
from inlay.registry import Lock, Registry, Version, parse_reference
from inlay.registry.kinds import ALONE
from inlay.registry.recipes import BASE
from inlay.serving.shelf import Loaded, MemoryFull, Observer, Shelf

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds until a failed load is tried again; each pause is twice the one before."""
KEPT = 4096
"""References that are followed; beyond, the one asked for longest ago is forgotten."""
LOADERS = 2
"""Successors that are loaded at once."""

_UNREADABLE = (StoreBusy, IntegrityError, sqlite3.Error, OSError)
_BAD = ("yanked", "purged")

Target = Lock | Version


@dataclass(frozen=True)
class ModelRow:
    """One line of a list of models: an alias, the digest it is served as now, and since when that exists
    (ISO 8601, UTC; "" for the base)."""

    ref: str
    digest: str
    created: str


@dataclass(eq=False)
class _Followed:
    """A reference in use. `newest`: what the registry says; `current`: what new requests get; `proven`: the
    last that could be loaded, to go back to; `refusal`: why requests get nothing. `failure`: of the last try
    to load the newest, not repeated before `again`, on the monotonic clock."""

    newest: Target
    current: Target
    proven: Target | None = None
    refusal: InlayError | None = None
    problem: str | None = None
    failure: Exception | None = None
    pause: float = 0.0
    again: float = 0.0
    loading: Target | None = None

    def failed(self, error: Exception) -> None:
        self.problem = f"{self.newest.ref} could not be loaded: {error}"
        self.failure = error
        self.pause = min(max(FIRST_PAUSE, 2 * self.pause), LONGEST_PAUSE)
        self.again = time.monotonic() + self.pause

    def well(self) -> None:
        self.problem, self.failure, self.pause = None, None, 0.0


class Following:
    """The references that requests name, as the store has them. Threads may share it."""

    def __init__(
        self, store: Registry, shelf: Shelf, *, every: float = 0.2, observer: Observer | None = None
    ) -> None:
        self.store = store
        self.shelf = shelf
        self.every = every
        self._observer = observer
        self._weights = shelf.base.fingerprint.weights
        self._lock = threading.RLock()
        self._known: OrderedDict[str, _Followed] = OrderedDict()  # asked for longest ago first
        self._head: tuple[int, str] | None = None
        self._began = time.monotonic()
        self._read: float | None = None
        self._rows: tuple[tuple[int, str] | None, list[ModelRow]] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="following", daemon=True)
        self._loaders = ThreadPoolExecutor(LOADERS, thread_name_prefix="successor")

    def start(self) -> None:
        self._look()
        self._thread.start()

    def stop(self) -> None:
        """Look no more; what was known goes on being served."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._loaders.shutdown(wait=False, cancel_futures=True)

    @property
    def ready(self) -> bool:
        """Was the store read since the start, and is somebody looking?"""
        return self._read is not None and self._thread.is_alive()

    def store_age(self) -> float:
        """Seconds since the store could last be read, or since this began where it never was."""
        return time.monotonic() - (self._began if self._read is None else self._read)

    def problems(self) -> dict[str, str]:
        """For each reference in use whose newest target is not served: why."""
        with self._lock:
            return {ref: known.problem for ref, known in self._known.items() if known.problem is not None}

    def take(self, ref: str) -> Loaded:
        """What a new request for `ref` gets; the shelf wants it back. Blocks where it must be loaded first.

        Raises ReferenceNotFound for what is unknown, disabled or made for another base, InputError for what
        was yanked, and as `Shelf.take` where nothing that could be loaded before is there to go back to.
        """
        if ref == BASE:
            return self.shelf.take(None)
        key = _canonical(ref)
        known = self._follow(key)
        while True:
            with self._lock:
                target = known.current
                if known.refusal is not None:
                    raise copy.copy(known.refusal)
                failed_lately = known.failure is not None and time.monotonic() < known.again
                if failed_lately and target is known.newest:
                    raise copy.copy(known.failure)  # type: ignore[misc]
            try:
                loaded = self.shelf.take(target)
            except InlayError as error:
                if self._go_back(key, known, target, error):
                    continue
                raise
            with self._lock:
                if known.current is target:
                    known.proven = target
                    if target is known.newest:
                        known.well()
                    return loaded
            self.shelf.give_back(loaded)  # it moved on while this was loaded

    def names(self) -> list[ModelRow]:
        """The base, and every alias that leads to something this server can serve, by name."""
        head = self._head
        if self._rows is None or head is None or self._rows[0] != head:
            try:
                self._rows = head, list(self._listed())
            except _UNREADABLE:
                self._rows = self._rows or (None, [])
        with self._lock:
            served = {ref: known.current for ref, known in self._known.items() if known.refusal is None}
        rows = [ModelRow(BASE, self._weights, "")]
        for row in self._rows[1]:
            current = served.get(row.ref)
            rows.append(row if current is None else ModelRow(row.ref, current.digest, current.created))
        return rows

    def _listed(self) -> Iterator[ModelRow]:
        versions, locks = self.store.made_for(self._weights)
        alone = {version.ref for version in versions if version.exactness == ALONE}
        targets: dict[str, Target] = {version.ref: version for version in versions}
        targets.update({lock.ref: lock for lock in locks})
        for name in self.store.names():
            for alias, points_to in name.aliases.items():
                target = targets.get(points_to)
                if target is None or target.state in _BAD:
                    continue
                members = target.members if isinstance(target, Lock) else (target,)
                if not any(member.ref in alone for member in members):
                    yield ModelRow(f"{name.name}@{alias}", target.digest, target.created)

    def _follow(self, key: str) -> _Followed:
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
                return known
        while True:
            head = self._head
            target = self.meaning(key)
            with self._lock:
                if self._head != head:
                    continue  # what was resolved may be older than what the watch has seen
                known = self._known.setdefault(key, _Followed(target, target))
                while len(self._known) > KEPT:
                    self._known.popitem(last=False)
                return known

    def meaning(self, key: str) -> Target:
        """What a reference means now, if that may be served."""
        target = self.store.resolve(key)
        if target.base.weights != self._weights:
            raise _OtherBase(f"{key} is {target.ref}, made for another base, {target.base.name}")
        if target.state in _BAD:
            raise InputError(
                f"{key} is {target.ref}, which was {target.state} and is not served",
                fix=f"roll {target.name} back, or ask for another version",
            )
        return target

    def _watch(self) -> None:
        while not self._stopping.wait(self.every):
            self._look()

    def _look(self) -> None:
        try:
            head, names = self.store.changed(self._head)
        except _UNREADABLE:
            return
        with self._lock:
            moved = head != self._head
            self._head = head
            known = list(self._known.items())
        try:
            for key, followed in known:
                if names is None or followed.newest.name in names:
                    self._renew(key, followed)
        except _UNREADABLE:
            self._head = None  # gone in the middle: everything is looked at again
            return
        self._read = time.monotonic()
        for key, followed in known:
            self._try_again(key, followed, at_once=moved)

    def _renew(self, key: str, known: _Followed) -> None:
        """The store changed around a reference in use."""
        try:
            newest = self.meaning(key)
        except InputError as error:
            with self._lock:
                if known.refusal is None:
                    self._tell(key, known.current, None)
                known.refusal, known.proven = error, None
                # Disabled was meant so, and a version that was yanked has no other that could be served.
                meant = type(error) is ReferenceNotFound or parse_reference(key).kind != "alias"
                known.problem = None if meant else error.message
            return
        current, proven = known.current, known.proven
        sound = _same(current, newest) or self._sound(current)
        proven_sound = proven is None or (sound if proven is current else self._sound(proven))
        with self._lock:
            refused, known.refusal = known.refusal is not None, None
            if not _same(known.newest, newest):
                known.newest = newest
                known.well()
            if refused:
                known.well()
            if not proven_sound:
                known.proven = None
            if _same(known.current, newest):
                known.newest = known.current
                if refused:
                    self._tell(key, None, newest)
            elif (
                refused
                or not sound
                or self.shelf.holds(newest)
                or (known.failure is None and not self.shelf.holds(known.current))
            ):
                # Nobody is to get the old one, or whoever asks next waits for the new one no longer than for
                # the old.
                self._tell(key, None if refused else known.current, known.newest)
                known.current = known.newest

    def _try_again(self, key: str, known: _Followed, *, at_once: bool) -> None:
        """Load a successor that is not served yet, where nobody does."""
        with self._lock:
            waits = known.failure is not None and time.monotonic() < known.again
            if known.current is known.newest or known.refusal is not None or known.loading is known.newest:
                return
            if waits and not at_once:
                return
            known.loading = known.newest
        self._loaders.submit(self._succeed, key, known, known.loading)

    def _succeed(self, key: str, known: _Followed, target: Target) -> None:
        loaded = None
        try:
            loaded = self.shelf.take(target)
        except Exception as error:
            with self._lock:
                if known.newest is target:
                    known.failed(error)
        with self._lock:
            if known.loading is target:
                known.loading = None
            if loaded is not None and known.newest is target and known.refusal is None:
                known.well()
                known.proven = target
                if known.current is not target:
                    self._tell(key, known.current, target)
                    known.current = target
        if loaded is not None:
            self.shelf.give_back(loaded)

    def _go_back(self, key: str, known: _Followed, target: Target, error: InlayError) -> bool:
        """A request could not have its target: whether there is another one to try."""
        if isinstance(error, MemoryFull | StoreBusy):
            return False  # the target may be sound
        if isinstance(error, IntegrityError):
            try:
                self.store.changed(self._head)
            except _UNREADABLE:
                raise StoreBusy("the store cannot be read now", fix="try again") from error
        with self._lock:
            if known.current is not target:
                return True
            if target is known.newest:
                known.failed(error)
                if known.proven is not None and known.proven is not target:
                    self._tell(key, target, known.proven)
                    known.current = known.proven
                    return True
        return False

    def _sound(self, target: Target) -> bool:
        try:
            found = self.store.resolve(target.ref)
        except ReferenceNotFound:
            return False
        return found.digest == target.digest and found.state not in _BAD

    def _tell(self, ref: str, before: Target | None, after: Target | None) -> None:
        if self._observer is not None:
            self._observer.swap(ref, *(None if target is None else target.ref for target in (before, after)))


class _OtherBase(ReferenceNotFound):
    """To whoever asks it is unknown; whoever looks after the server is told."""


def _canonical(ref: str) -> str:
    try:
        return str(parse_reference(ref))
    except InputError as error:
        raise ReferenceNotFound(error.message, fix=error.fix) from None


def _same(one: Target, other: Target) -> bool:
    return (one.ref, one.digest) == (other.ref, other.digest)
