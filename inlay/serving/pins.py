"""From a reference to a name that never moves, as the registry says it now: acme@prod -> acme@sha256:….

For engines that keep what a name meant: they are given pinned names only. No torch.
"""

from __future__ import annotations

import logging
import re
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path

from inlay.errors import InlayError, InputError, ReferenceNotFound, StoreBusy
from inlay.registry import Lock, Registry, Version, parse_reference
from inlay.registry.store import FILE, find

KNOWN = 10_000  # references whose last meaning is kept for the time that the store cannot be read

_PINNED = re.compile(r"[^@]+@sha256:[0-9a-f]{64}")

logger = logging.getLogger("vllm.inlay")  # below vLLM's own, whose handlers it needs to be seen


def is_pinned(name: str) -> bool:
    """Is it a name that means one set of bytes for good?"""
    return _PINNED.fullmatch(name) is not None


@dataclass(frozen=True)
class Pin:
    """What a reference means. `refused`: why it is not to be served, None where it is."""

    target: Version | Lock
    refused: str | None = None

    @property
    def name(self) -> str:
        """`name@sha256:…` with all 64 digits."""
        return f"{self.target.name}@{self.target.digest}"


class Pins:
    """The registry in the folder `store` (None: $INLAY_STORE, else the nearest upward), read anew for every
    reference. Threads may share it. It is opened when first asked, and again where another file took its
    place, as copying a store or a backup does. InputError where there is none.
    """

    def __init__(self, store: str | Path | None = None) -> None:
        self.store = find(store, create=False)
        self._lock = threading.Lock()
        self._registry: Registry | None = None
        self._identity: tuple[int, int] | None = None
        self._known: dict[str, Pin] = {}
        self._readable = True

    def of(self, ref: str) -> Pin | None:
        """What `ref` means now; None where it is no reference, or means nothing.

        While the store cannot be read, what it meant last; for a reference that was not asked before, the
        error is raised: StoreBusy, IntegrityError, or InputError for a newer schema.
        """
        try:
            parse_reference(ref)
        except InputError:
            return None
        try:
            target = self.registry().resolve(ref)
        except ReferenceNotFound:
            self._remember(ref, None)
            return None
        except (InlayError, sqlite3.Error) as error:
            return self._last(ref, error)
        pin = Pin(target, _refusal(target))
        self._remember(ref, pin)
        return pin

    def registry(self) -> Registry:
        """The store as it lies there now. StoreBusy where it is out of reach."""
        file = self.store / FILE
        with self._lock:
            try:
                status = file.stat()
            except OSError as error:
                raise StoreBusy(
                    f"the registry {str(file)!r} cannot be read now: {error.strerror}", fix="try again"
                ) from None
            identity = (status.st_dev, status.st_ino)
            if self._registry is None or self._identity != identity:
                # The one before is let go, not closed: another thread may be reading from it.
                self._registry, self._identity = Registry.open(self.store), identity
            return self._registry

    def _remember(self, ref: str, pin: Pin | None) -> None:
        with self._lock:
            before = self._known.pop(ref, None)
            if pin is not None:
                self._known[ref] = pin
                if len(self._known) > KNOWN:
                    del self._known[next(iter(self._known))]
            readable, self._readable = self._readable, True
        if not readable:
            logger.info("the registry can be read again")
        if before is not None and pin != before:
            logger.info("%s was %s, is %s now", ref, _said(before), _said(pin))

    def _last(self, ref: str, error: Exception) -> Pin:
        with self._lock:
            pin = self._known.get(ref)
            readable, self._readable = self._readable, False
        if readable:
            logger.warning("the registry cannot be read, so names mean what they meant: %s", error)
        if pin is not None:
            return pin
        if isinstance(error, InlayError):
            raise error
        raise StoreBusy(f"the registry cannot be read now: {error}", fix="try again")


def _refusal(target: Version | Lock) -> str | None:
    if target.state == "active":
        return None
    return f"{target.ref} was {target.state}; `inlay log {target.name}` says why"


def _said(pin: Pin | None) -> str:
    if pin is None:
        return "nothing"
    return f"{pin.target.ref} ({pin.target.digest[:19]}…)" + (", refused" if pin.refused else "")
