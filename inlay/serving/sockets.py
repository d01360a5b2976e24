"""One app on one socket, run by uvicorn in the event loop that is there. Knows no models and no signals."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from fastapi import FastAPI

CONNECTIONS = 1024
"""Open at once; more get 503."""
KEEP_ALIVE = 30
"""Seconds that a connection may be idle between two requests."""
HEADERS = 10.0
"""Seconds in which a request's head must have come."""
HEADER_BYTES = 64 << 10


class InTime(H11Protocol):
    """HTTP/1.1 whose clients must send a request's head within `HEADERS` seconds; uvicorn waits for ever."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late = self.loop.call_later(HEADERS, self._close_late)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._in_time()
        elif self._late is None:
            self._late = self.loop.call_later(HEADERS, self._close_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        super().connection_lost(exc)

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close_late(self) -> None:
        self._late = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


class Listener(uvicorn.Server):
    """`longest`: seconds after `close` until whatever still runs is cancelled."""

    def __init__(self, app: FastAPI, made: socket.socket, longest: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=InTime,
                ws="none",
                loop="asyncio",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=CONNECTIONS,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=int(longest) + 1,
                h11_max_incomplete_event_size=HEADER_BYTES,
            )
        )
        self._socket = made
        self._up, self._down = asyncio.Event(), asyncio.Event()
        host, port = made.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the server's, which has two of these."""
        yield

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Until `close`."""
        try:
            await super().serve(sockets=[self._socket])
        finally:
            self._up.set()
            self._down.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._up.set()

    async def up(self) -> None:
        """Waits until it listens, or has failed to."""
        await self._up.wait()

    def close(self) -> None:
        """No new connections; those under way may end."""
        self.should_exit = True

    def cut(self) -> None:
        """Nobody is waited for any longer."""
        self.force_exit = True

    async def ended(self, seconds: float) -> bool:
        """Whether the last connection has gone, waiting for it."""
        try:
            await asyncio.wait_for(self._down.wait(), seconds)
        except TimeoutError:
            return False
        return True
