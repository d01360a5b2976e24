"""Whose key it is, what it may reach, how often.

A thread reads the keys when the store has others; requests are answered from memory and never wait for the
store. While it cannot be read, the keys last known hold. Limits are this server's own: two servers on one
store count apart. No secret is kept here, only what it hashes to.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from inlay.errors import InlayError, InputError
from inlay.registry import ApiKey, Registry, parse_reference
from inlay.registry.canonical import digest_of
from inlay.registry.keys import ALL, LOCAL

MINUTE = 60.0
ROUNDING = 1e-9
"""Seconds that float arithmetic may be off by."""


class Refused(InlayError):
    """A request that is not let in. `status`: 401 no such key, 403 not with this one, 429 too many;
    `retry_after`: seconds until another try may succeed."""

    exit_code = 1

    def __init__(
        self, message: str, *, status: int, retry_after: int | None = None, fix: str | None = None
    ) -> None:
        super().__init__(message, fix=fix)
        self.status = status
        self.retry_after = retry_after


class Limits:
    """What one key may use up: a bucket of `rate` requests that fills again within a minute, and `concurrent`
    requests at once; None is no limit. Threads may share it.

    The bucket is kept as the time at which it is full again (the generic cell rate algorithm, ITU-T I.371).
    """

    def __init__(
        self, rate: int | None, concurrent: int | None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.rate = rate
        self.concurrent = concurrent
        self._now = now
        self._full_at = -math.inf
        self._running = 0
        self._lock = threading.Lock()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A request is running. Refused(429) if it may not; what is refused uses nothing up."""
        with self._lock:
            if self.concurrent is not None and self._running >= self.concurrent:
                raise Refused(
                    f"this key may have {self.concurrent} requests running at once",
                    status=429,
                    retry_after=1,
                    fix="wait for one of them to end",
                )
            if self.rate is not None:
                self._take(self.rate)
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1

    def _take(self, rate: int) -> None:
        now, each = self._now(), MINUTE / rate
        wait = self._full_at - now - (rate - 1) * each
        if wait > ROUNDING:
            seconds = math.ceil(wait)
            raise Refused(
                f"this key may send {rate} requests a minute",
                status=429,
                retry_after=seconds,
                fix=f"try again in {seconds} s",
            )
        self._full_at = max(self._full_at, now) + each


@dataclass(frozen=True)
class Caller:
    """Who asks. `key` and `name` are those of the key, None for the tenant "local"."""

    tenant: str
    key: str | None
    name: str | None
    allow: frozenset[str]
    admin: bool
    limits: Limits = field(repr=False, compare=False)

    def may(self, ref: str, name: str) -> bool:
        """Whether `ref`, a reference of `name`, is allowed; "base" is both for the base. Whether it exists
        does not matter."""
        return not self.allow.isdisjoint((ALL, name, _whole(ref)))


class Tenants:
    """The keys of a store, followed. `required`: nobody is let in without one; else everybody is, as the
    tenant "local", until the store has its first key, and from then on nobody, even where all are revoked.
    """

    def __init__(
        self,
        store: Registry,
        *,
        required: bool,
        every: float = 0.5,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.problem: str | None = None
        """Why the keys could not be read when that was last tried."""
        self._store = store
        self._required = required
        self._now = now
        self._head: str | None = None
        self._callers: Mapping[str, Caller] = {}  # by the secret's digest; replaced whole, never changed
        self._local = Caller(LOCAL, None, None, frozenset({ALL}), True, Limits(None, None))
        self._looking = threading.Lock()
        self._closed = threading.Event()
        self._read()
        follow = (weakref.ref(self), self._closed, every)
        threading.Thread(target=_follow, args=follow, name="inlay-keys", daemon=True).start()

    def of(self, authorization: str | None) -> Caller:
        """Who sent this Authorization header. Refused(401), in the same words whether the key is missing,
        unknown or revoked."""
        digest = _digest(authorization)
        del authorization  # a traceback that shows locals shows no secret
        if not self._required:
            return self._local
        caller = self._callers.get(digest)
        if caller is None:
            raise Refused(
                "an API key that is valid here is needed",
                status=401,
                fix="send it as `Authorization: Bearer …`",
            )
        return caller

    def admitted(self, caller: Caller) -> AbstractContextManager[None]:
        """Within it the caller's request runs. Entering raises Refused(429) over the key's limits."""
        return caller.limits.admitted()

    def look(self) -> None:
        """Read the keys now, if there are others. While they cannot be read, those last known hold."""
        try:
            self._read()
            self.problem = None
        except Exception as error:  # whatever it was: a thread that ended would never hear of a revocation
            self.problem = str(error) if isinstance(error, InlayError) else f"{type(error).__name__}: {error}"

    def close(self) -> None:
        """Follow the store no more."""
        self._closed.set()

    def _read(self) -> None:
        with self._looking:
            head = self._store.keys_head()  # before the keys: what comes in between is read next time
            if head == self._head:
                return
            keys = self._store.keys()
            before = {caller.key: caller for caller in self._callers.values()}
            self._callers = {
                key.digest: before.get(key.id) or self._caller(key) for key in keys if key.active
            }
            self._required = self._required or bool(keys)
            self._head = head

    def _caller(self, key: ApiKey) -> Caller:
        limits = Limits(key.rate, key.concurrent, self._now)
        return Caller(key.tenant, key.id, key.name, frozenset(key.allow), key.admin, limits)


def _follow(tenants: weakref.ref[Tenants], closed: threading.Event, every: float) -> None:
    """Until they are closed or nobody has them any more."""
    while not closed.wait(every):
        here = tenants()
        if here is None:
            return
        here.look()
        del here


def _digest(authorization: str | None) -> str:
    scheme, _, secret = (authorization or "").partition(" ")
    return digest_of(secret.strip()) if scheme.lower() == "bearer" else ""


def _whole(ref: str) -> str:
    """`ref` as an allow-list writes it: "acme" is "acme@prod"."""
    try:
        return str(parse_reference(ref))
    except InputError:  # "base", and what is no reference at all
        return ref
