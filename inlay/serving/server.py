"""`serve`: one process with a base, its bank and two addresses; listens, drains, ends.

Whatever can be refused is refused before the base is loaded: the extra, the host, the ports, the splits. The
API and the admin address run in one event loop of the main thread; the model runs in the scheduler's.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.util
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inlay.errors import InlayError, InputError, Interrupted
from inlay.serving.settings import ServerSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from inlay.registry import Registry
    from inlay.serving.admin import Health
    from inlay.serving.logs import Logs
    from inlay.serving.scheduler import Scheduler
    from inlay.serving.sockets import Listener

EXTRA = ("fastapi", "uvicorn", "prometheus_client")
GRACE = 5.0
"""Seconds after the drain in which requests that were failed say so to their clients."""


class PortTaken(InlayError):
    """Somebody else listens there."""

    exit_code = 3


@dataclass(frozen=True)
class Serving:
    """A server that is ready. `stop` asks it to drain and end, from any thread."""

    url: str
    admin: str
    base: str
    store: str
    stop: Callable[[], None]


@dataclass(frozen=True)
class _Parts:
    """What one server is made of."""

    base: str
    store: str
    scheduler: Scheduler
    health: Health
    logs: Logs
    app: FastAPI
    admin_app: FastAPI
    ending: _Ending


def serve(settings: ServerSettings, *, ready: Callable[[Serving], None] | None = None) -> None:
    """Serve a base's variants until SIGTERM, SIGINT or `stop`; returns when it has drained.

    `ready` is called once both addresses listen. A signal turns readiness to 503, closes the port, lets
    running requests end within `settings.drain` seconds and fails the rest; a second one ends the process at
    once. Raises Interrupted after SIGINT; InputError, PortTaken and what opening the store or loading the
    base raises.
    """
    require_extra()
    from inlay.registry import Registry

    ending = _Ending()
    with contextlib.ExitStack() as stack:
        stack.enter_context(ending.while_starting())
        store = stack.enter_context(Registry.open(settings.store))
        _refuse_strangers(settings, store)
        sockets = [
            stack.enter_context(bound(*address))
            for address in ((settings.host, settings.port), (settings.admin_host, settings.admin))
        ]
        parts = stack.enter_context(_made(settings, store, ending))
        asyncio.run(_until_drained(settings, parts, sockets, ready))
    if ending.signal == signal.SIGINT:
        raise Interrupted("interrupted; the server has drained")


def require_extra() -> None:
    """Raise InputError unless the extra `serve` is installed."""
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"serving needs {', '.join(missing)}, which the extra `serve` brings",
            fix="pip install 'inlay[serve]'",
        )


def _refuse_strangers(settings: ServerSettings, store: Registry) -> None:
    if settings.loopback or any(key.active for key in store.keys()):  # noqa: SIM118 - a method of the registry
        return
    raise InputError(
        f"a server that other machines reach needs API keys, and {str(store.path)!r} has none",
        fix="make one with `inlay keys add TENANT`, or serve on 127.0.0.1",
    )


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket with that address, which nobody listens on yet. Raises PortTaken, or InputError for an
    address that this machine or this user cannot have."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise InputError(f"a host must be an address or name of this machine, got {host!r}") from None
    with socket.socket(family, kind, protocol) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with _port_errors(host, port):
            made.bind(address)
        yield made


@contextlib.contextmanager
def _port_errors(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(f"port {port} of {host} is taken", fix="name another with --port") from None
        if error.errno in (errno.EACCES, errno.EADDRNOTAVAIL):
            raise InputError(f"cannot listen on port {port} of {host}: {os.strerror(error.errno)}") from None
        raise


@contextlib.contextmanager
def _made(settings: ServerSettings, store: Registry, ending: _Ending) -> Iterator[_Parts]:
    """All that serves, started; stopped afterwards, in the opposite order."""
    from inlay.evals.inference import load_base
    from inlay.serving.admin import Health, make_admin_app
    from inlay.serving.app import make_app
    from inlay.serving.following import Following
    from inlay.serving.logs import Logs, library_logs
    from inlay.serving.metrics import Metrics, Telling
    from inlay.serving.scheduler import Scheduler
    from inlay.serving.shelf import Shelf
    from inlay.serving.splitting import Splits
    from inlay.serving.tenants import Tenants

    splits = Splits.parse(settings.splits)
    logs, metrics = Logs(settings.log_format), Metrics()
    told = Telling(metrics, logs)
    with contextlib.ExitStack() as stack:
        stack.enter_context(library_logs(logs))
        logs.info("loading", base=str(settings.base), pid=os.getpid())
        began = time.monotonic()
        base = load_base(settings.base, device=settings.device)
        logs.info("base loaded", base=base.fingerprint.name, seconds=time.monotonic() - began)
        scheduler = Scheduler(
            base,
            rows=settings.rows,
            queue=settings.queue,
            prefix_bytes=settings.prefix_bytes,
        )
        shelf = Shelf(
            store,
            scheduler,
            base,
            budget=settings.budget,
            accept_prompt_change=settings.accept_prompt_change,
            observer=told,
        )
        following = Following(store, shelf, observer=told)
        tenants = Tenants(store, required=bool(store.keys()) or not settings.loopback)
        stack.callback(tenants.close)
        scheduler.start()
        stack.callback(scheduler.stop, drain=0.0)
        following.start()
        stack.callback(following.stop)
        metrics.watch(scheduler, shelf, following)
        health = Health(alive=lambda: scheduler.alive, known=lambda: following.ready)
        app = make_app(
            base=base,
            scheduler=scheduler,
            following=following,
            tenants=tenants,
            splits=splits,
            settings=settings,
            metrics=metrics,
            logs=logs,
            health=health,
        )
        admin_app = make_admin_app(
            scheduler=scheduler,
            shelf=shelf,
            following=following,
            tenants=tenants,
            metrics=metrics,
            health=health,
            drain=ending.ask,
        )
        yield _Parts(base.fingerprint.name, str(store.path), scheduler, health, logs, app, admin_app, ending)


async def _until_drained(
    settings: ServerSettings,
    parts: _Parts,
    sockets: list[socket.socket],
    ready: Callable[[Serving], None] | None,
) -> None:
    from inlay.serving.sockets import Listener

    logs, ending = parts.logs, parts.ending
    for made, host in zip(sockets, (settings.host, settings.admin_host), strict=True):
        with _port_errors(host, made.getsockname()[1]):
            made.listen()
    longest = settings.drain + 2 * GRACE
    api, admin = Listener(parts.app, sockets[0], longest), Listener(parts.admin_app, sockets[1], GRACE)
    with ending.while_serving():
        listening = {asyncio.create_task(each.serve()) for each in (api, admin)}
        await asyncio.gather(api.up(), admin.up())
        logs.info("ready", url=api.url, admin=admin.url, base=parts.base, store=parts.store, pid=os.getpid())
        if ready is not None:
            ready(Serving(api.url, admin.url, parts.base, parts.store, ending.ask))
        asked = asyncio.create_task(ending.asked())
        await asyncio.wait({asked, *listening}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        parts.health.draining = True
        began = time.monotonic()
        name = None if ending.signal is None else signal.Signals(ending.signal).name
        logs.info("draining", signal=name, running=parts.scheduler.running, waiting=parts.scheduler.waiting)
        await _drain(api, parts.scheduler, settings.drain, logs)
        admin.close()
        await asyncio.gather(*listening)
        logs.info("drained", seconds=time.monotonic() - began)


async def _drain(api: Listener, scheduler: Scheduler, seconds: float, logs: Logs) -> None:
    """Close the port, wait for those under way, fail what is left after `seconds`."""
    api.close()
    if await api.ended(seconds):
        return
    logs.warning("drain is over", running=scheduler.running, waiting=scheduler.waiting)
    await asyncio.to_thread(scheduler.stop, drain=0.0)
    if not await api.ended(GRACE):
        api.cut()


class _Ending:
    """Who asked the server to end: a signal, a caller, the admin address."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event: asyncio.Event | None = None

    @contextlib.contextmanager
    def while_starting(self) -> Iterator[None]:
        """SIGTERM before anything is served: nothing is under way that would have to end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    @contextlib.contextmanager
    def while_serving(self) -> Iterator[None]:
        """Signals are heard by the running loop; outside the main thread there are none to hear."""
        self._loop, self._event = asyncio.get_running_loop(), asyncio.Event()
        in_main = threading.current_thread() is threading.main_thread()
        numbers = [signal.SIGTERM, signal.SIGINT] if in_main else []
        for number in numbers:
            self._loop.add_signal_handler(number, self._hear, number)
        try:
            yield
        finally:
            for number in numbers:
                self._loop.remove_signal_handler(number)

    def _hear(self, number: int) -> None:
        assert self._event is not None
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number
        self._event.set()

    def ask(self) -> None:
        """From any thread, any number of times."""
        assert self._loop is not None and self._event is not None
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            self._loop.call_soon_threadsafe(self._event.set)

    async def asked(self) -> None:
        assert self._event is not None
        await self._event.wait()
