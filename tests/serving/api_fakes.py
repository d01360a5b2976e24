"""A scheduler that says what a script says, from threads as the real one does; names without a registry;
and any app behind uvicorn on a port of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from io import StringIO
from types import SimpleNamespace
from typing import Any

import uvicorn
from fastapi import FastAPI

from inlay.errors import ReferenceNotFound
from inlay.evals.inference import Base
from inlay.registry import Registry
from inlay.serving.admin import Health
from inlay.serving.app import make_app
from inlay.serving.following import ModelRow
from inlay.serving.logs import Logs
from inlay.serving.metrics import Metrics
from inlay.serving.requests import Ended, Failed, Hear, Request, Token
from inlay.serving.scheduler import QueueFull
from inlay.serving.settings import ServerSettings
from inlay.serving.shelf import Loaded
from inlay.serving.splitting import Splits
from inlay.serving.tenants import Caller, Limits, Refused


@dataclass
class ScriptedTicket:
    left: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        self.left.set()


@dataclass
class Script:
    """`reply`: what every request is answered; `pause`: seconds before each token; `fails`: what is raised
    after `fails_after` tokens; `room`: requests that are taken at all."""

    reply: str = "three blue chairs"
    pause: float = 0.0
    fails: Exception | None = None
    fails_after: int = 0
    room: int = 10**6
    reason: str = "stop"


class ScriptedScheduler:
    context = 512

    def __init__(self, base: Base) -> None:
        self.tokenizer = base.tokenizer
        self.script = Script()
        self.seen: list[Request] = []
        self.tickets: list[ScriptedTicket] = []
        self.ended = 0
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def submit(self, loaded: Loaded, request: Request, hear: Hear) -> ScriptedTicket:
        with self._lock:
            if len(self.seen) >= self.script.room:
                raise QueueFull("the queue is full")
            self.seen.append(request)
            ticket = ScriptedTicket()
            self.tickets.append(ticket)
            thread = threading.Thread(
                target=self._say, args=(request, hear, ticket, self.script), daemon=True
            )
            self._threads.append(thread)
            thread.start()
        return ticket

    def between_steps(self, deed: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()

        def later() -> None:
            for thread in [*self._threads]:
                thread.join()
            future.set_result(deed())

        threading.Thread(target=later, daemon=True).start()
        return future

    def _say(self, request: Request, hear: Hear, ticket: ScriptedTicket, script: Script) -> None:
        ids = self.tokenizer.encode(script.reply, add_special_tokens=False)
        shown = ""
        try:
            for number, token in enumerate(ids[: request.sampling.max_tokens]):
                if ticket.left.wait(script.pause):
                    return
                if script.fails is not None and number == script.fails_after:
                    hear(Failed(script.fails))
                    return
                text = self.tokenizer.decode(ids[: number + 1])
                most = request.sampling.logprobs
                top = tuple((other, -0.5 - other) for other in range(most or 0))
                hear(Token(token, text[len(shown) :], None if most is None else -0.25, top))
                shown = text
            said = min(len(ids), request.sampling.max_tokens)
            reason = script.reason if said == len(ids) else "length"
            hear(Ended(reason, "", len(request.ids), said, 3))  # type: ignore[arg-type]
        finally:
            self.ended += 1


class Names:
    """Stands for `Following` and its shelf: references and what they are, and how often they are out."""

    ready = True

    def __init__(self, known: dict[str, str], base: Base) -> None:
        self.shelf = self
        self.known = {
            ref: Loaded(None, None, None, (), 0, meant, f"sha256:{number:064x}")
            for number, (ref, meant) in enumerate(known.items())
        }
        self.known["base"] = Loaded(None, None, None, (), 0, "base", base.fingerprint.weights)
        self.asked: list[str] = []
        self.taken = self.given = 0
        self.fails: Exception | None = None
        self.pause = 0.0
        self._lock = threading.Lock()

    def take(self, ref: str) -> Loaded:
        self.asked.append(ref)
        time.sleep(self.pause)
        if self.fails is not None:
            raise self.fails
        if ref not in self.known:
            raise ReferenceNotFound(f"nothing is called {ref}")
        with self._lock:
            self.taken += 1
        return self.known[ref]

    def give_back(self, loaded: Loaded) -> None:
        with self._lock:
            self.given += 1

    def meaning(self, ref: str) -> Any:
        self.asked.append(ref)
        if ref not in self.known:
            raise ReferenceNotFound(f"nothing is called {ref}")
        return SimpleNamespace(digest=self.known[ref].digest, created="2026-01-02T03:04:05.000000Z")

    def names(self) -> list[ModelRow]:
        when = "2026-01-02T03:04:05.000000Z"
        return [
            ModelRow(ref, loaded.digest, "" if ref == "base" else when)
            for ref, loaded in self.known.items()
            if "@v" not in ref
        ]


class Keys:
    """Stands for `Tenants`: secrets and callers; without any, everybody is let in."""

    def __init__(self) -> None:
        self.callers: dict[str, Caller] = {}

    def add(
        self, secret: str, tenant: str, *allow: str, rate: int | None = None, concurrent: int | None = None
    ) -> None:
        limits = Limits(rate, concurrent)
        self.callers[secret] = Caller(tenant, tenant, None, frozenset(allow), False, limits)

    def of(self, authorization: str | None) -> Caller:
        if not self.callers:
            return Caller("local", None, None, frozenset({"*"}), True, Limits(None, None))
        caller = self.callers.get((authorization or "").removeprefix("Bearer "))
        if caller is None:
            raise Refused("an API key that is valid here is needed", status=401)
        return caller

    def admitted(self, caller: Caller) -> contextlib.AbstractContextManager[None]:
        return caller.limits.admitted()


@dataclass
class Fakes:
    """An app over fakes. `log`: what it logged so far."""

    app: FastAPI
    scheduler: ScriptedScheduler
    names: Names
    keys: Keys
    metrics: Metrics
    stream: StringIO

    @property
    def log(self) -> str:
        return self.stream.getvalue()

    @property
    def out(self) -> int:
        """Targets that were taken and not given back; below zero where one was given back twice."""
        return self.names.taken - self.names.given


KNOWN = {
    "acme@prod": "acme@v3",
    "acme@canary": "acme@v4",
    "acme@v3": "acme@v3",
    "team/bolt@prod": "team/bolt@v1",
}


def fake_app(
    base: Base, *, splits: Sequence[str] = (), health: Health | None = None, **settings: Any
) -> Fakes:
    scheduler, names, keys = ScriptedScheduler(base), Names(KNOWN, base), Keys()
    metrics, stream = Metrics(), StringIO()
    app = make_app(
        base=base,
        scheduler=scheduler,  # type: ignore[arg-type]
        following=names,  # type: ignore[arg-type]
        tenants=keys,  # type: ignore[arg-type]
        splits=Splits.parse(splits),
        settings=ServerSettings(base="builtin", **settings),
        metrics=metrics,
        logs=Logs("json", stream),
        health=health,
    )
    return Fakes(app, scheduler, names, keys, metrics, stream)


@contextlib.contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The app behind uvicorn in a thread; its address."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_config=None, access_log=False, timeout_graceful_shutdown=5)
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive() and time.monotonic() < until, "the server did not start"
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not end"


def soon(holds: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether something holds within some seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if holds():
            return True
        time.sleep(0.005)
    return holds()


@dataclass
class Parts:
    """A real server without its process: the API's address, and what is behind it."""

    url: str
    scheduler: Any
    shelf: Any
    following: Any
    stream: StringIO


@contextlib.contextmanager
def real_server(
    base: Base, store: Registry, *, splits: Sequence[str] = (), required: bool = False, **settings: Any
) -> Iterator[Parts]:
    """The app over the real scheduler, shelf, following and tenants; the base is bare again afterwards."""
    from inlay.serving.following import Following
    from inlay.serving.scheduler import Scheduler
    from inlay.serving.shelf import Shelf
    from inlay.serving.tenants import Tenants

    scheduler = Scheduler(base)
    shelf = Shelf(store, scheduler, base)
    following, tenants = Following(store, shelf), Tenants(store, required=required, every=0.05)
    stream = StringIO()
    app = make_app(
        base=base,
        scheduler=scheduler,
        following=following,
        tenants=tenants,
        splits=Splits.parse(splits),
        settings=ServerSettings(base="builtin", **settings),
        metrics=Metrics(),
        logs=Logs("json", stream),
    )
    scheduler.start()
    following.start()
    try:
        with listening(app) as url:
            yield Parts(url, scheduler, shelf, following, stream)
    finally:
        following.stop()
        tenants.close()
        scheduler.stop()
        scheduler.bank.detach()
