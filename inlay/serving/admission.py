"""Between the endpoints and the scheduler: what a caller may ask for, what is taken for it, its return."""

from __future__ import annotations

import asyncio
import concurrent.futures
import secrets
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from inlay.errors import InputError, ReferenceNotFound
from inlay.evals.inference import PromptError
from inlay.registry import parse_reference
from inlay.registry.names import RESERVED
from inlay.registry.printable import printable
from inlay.serving.endpoint import Endpoint, Room, Wanted
from inlay.serving.errors import SECONDS_TO_WAIT, ApiError, model_not_found, too_long
from inlay.serving.scheduler import QueueFull
from inlay.serving.tokenization import Tokenization

if TYPE_CHECKING:
    from inlay.evals.inference import Base
    from inlay.registry import Lock, Version
    from inlay.registry.names import Reference
    from inlay.serving.event_queue import EventQueue
    from inlay.serving.following import Following
    from inlay.serving.logs import Logs
    from inlay.serving.request_record import RequestRecord
    from inlay.serving.requests import Hear, Request
    from inlay.serving.scheduler import Scheduler, Ticket
    from inlay.serving.settings import ServerSettings
    from inlay.serving.shelf import Loaded
    from inlay.serving.splitting import Splits
    from inlay.serving.tenants import Caller, Tenants

THREADS = 32
"""Targets that may be loading at once without another one's requests having to wait."""
T = TypeVar("T")


class Admission:
    def __init__(
        self,
        *,
        base: Base,
        scheduler: Scheduler,
        following: Following,
        tenants: Tenants,
        splits: Splits,
        settings: ServerSettings,
        logs: Logs,
    ) -> None:
        self.scheduler = scheduler
        self.following = following
        self.tenants = tenants
        self.splits = splits
        self.settings = settings
        self.logs = logs
        self.tokenization = Tokenization(base)
        context = scheduler.context
        self.room = Room(context, min(context, settings.prompt_tokens or context))
        self._pool = concurrent.futures.ThreadPoolExecutor(THREADS, "inlay-admission")
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def in_thread(self, deed: Callable[[], T], *, lost: Callable[[T], None] | None = None) -> T:
        """What `deed` returns, or `lost` of it if by then nobody waits any more."""
        future = self._pool.submit(deed)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if lost is not None:
                future.add_done_callback(lambda done: _lost(done, lost))
            raise

    async def take(self, endpoint: Endpoint, visit: RequestRecord) -> tuple[list[Wanted], Loaded]:
        """The rows of a request, and what answers them, to be given back. ApiError (404) alike for a model
        that nobody has and for one that the caller may not reach."""
        assert visit.caller is not None
        model = endpoint.asked.model
        arm = self._arm(model, endpoint.asked.user, visit)
        ref = self._allowed(visit.caller, model, arm or model)

        def taken() -> tuple[list[Wanted], Loaded]:
            rows = endpoint.wanted()
            try:
                return rows, self.following.take(ref)
            except ReferenceNotFound:
                raise model_not_found(model) from None
            except InputError as error:
                raise ApiError(
                    400, printable(error.message), param="model", code="model_not_served"
                ) from error

        # One at a time for each reference: those who wait for a load do not hold the threads of others.
        async with self._turns.setdefault(ref, asyncio.Lock()):
            rows, loaded = await self.in_thread(taken, lost=lambda both: self.give_back(both[1]))
        visit.found(loaded, arm)
        return rows, loaded

    def submit(self, loaded: Loaded, request: Request, hear: Hear) -> Ticket:
        try:
            return self.scheduler.submit(loaded, request, hear)
        except QueueFull as error:
            raise ApiError(
                503,
                printable(error.message),
                code="queue_full",
                retry_after=SECONDS_TO_WAIT,
            ) from None
        except PromptError as error:
            raise too_long(printable(error.message), "prompt") from None

    def leave(self, loaded: Loaded, tickets: Sequence[Ticket], queue: EventQueue, rows: int) -> None:
        """The end of a request: rows that still run are called off, and once they have left the batch, what
        answered them is given back."""
        for ticket in tickets:
            ticket.cancel()
        if queue.open == rows - len(tickets):
            self.give_back(loaded)
        else:
            left = self.scheduler.between_steps(lambda: None)
            left.add_done_callback(lambda _done: self.give_back(loaded))

    def give_back(self, loaded: Loaded) -> None:
        self.following.shelf.give_back(loaded)

    def visible(self, caller: Caller, ref: str) -> bool:
        """Whether a caller may know that there is such a model."""
        return self._may(caller, ref, _parsed(ref))

    def meaning(self, caller: Caller, model: str) -> Lock | Version:
        """What a request for this model would get, without loading it. ApiError as in `take`."""
        try:
            return self.following.meaning(self._allowed(caller, model, model))
        except InputError:
            raise model_not_found(model) from None

    def _allowed(self, caller: Caller, model: str, ref: str) -> str:
        """`ref` whole; where the caller may not reach it, one that nobody has. ApiError for what is none."""
        reference = _parsed(ref)
        if reference is None:
            raise model_not_found(model)
        return str(reference if self._may(caller, model, reference) else _nobodys(reference))

    def _arm(self, model: str, user: str | None, visit: RequestRecord) -> str | None:
        """The arm of a split, None where there is none. Users of a tenant stay with theirs; who names no user
        falls anew each time, by the shares."""
        assert visit.caller is not None
        if model not in self.splits:
            return None
        return self.splits.arm(model, f"{visit.caller.tenant}/{user}" if user else visit.id)

    def _may(self, caller: Caller, model: str, reference: str | Reference | None) -> bool:
        """A split is allowed by its own name, or by the arm that was chosen."""
        if reference is None:
            return False
        name = reference if isinstance(reference, str) else reference.name
        return caller.may(str(reference), name) or (model in self.splits and caller.may(model, model))


def _parsed(model: str) -> str | Reference | None:
    if model in RESERVED:
        return model
    try:
        return parse_reference(model)
    except InputError:
        return None


def _nobodys(reference: str | Reference) -> Reference:
    """A reference of the same form that nobody has: looking for it is as much work as looking for any that
    is unknown, and finds as little."""
    name = f"x{secrets.token_hex(12)}"
    if isinstance(reference, str):
        return parse_reference(name)
    if reference.kind == "digest":
        value = f"sha256:{secrets.token_hex(32)}"
        return replace(reference, name=name if reference.name else "", value=value)
    return replace(reference, name=name)


def _lost(done: concurrent.futures.Future[T], lost: Callable[[T], None]) -> None:
    if not done.cancelled() and done.exception() is None:
        lost(done.result())
