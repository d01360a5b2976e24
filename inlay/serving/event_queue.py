"""What the scheduler's thread says of one HTTP request's rows, carried into the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque

from inlay.serving.requests import Event, Failed, Hear, Token


class EventQueue:
    """Rows of one request. `eager`: every token is wanted as it comes; otherwise the loop is woken at the end
    of the last row only, since a wake-up costs a batch more than a token does."""

    def __init__(self, rows: int, *, eager: bool) -> None:
        self.first: float | None = None
        """When the first token came, in seconds of the monotonic clock."""
        self._rows = rows
        self._ends: list[int] = []
        self._eager = eager
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._said: deque[tuple[int, Event]] = deque()
        self._stirred = False

    @property
    def open(self) -> int:
        """Rows that the scheduler has not ended yet, whether or not that was heard."""
        return self._rows - len(self._ends)

    def ear(self, row: int) -> Hear:
        """What the scheduler calls for this row."""

        def hear(event: Event) -> None:
            if isinstance(event, Token):
                if self.first is None:
                    self.first = time.monotonic()
                self._said.append((row, event))
                stir = self._eager
            else:
                self._said.append((row, event))
                self._ends.append(row)
                stir = self._eager or not self.open or isinstance(event, Failed)
            if stir and not self._stirred:
                self._stirred = True
                with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever listened
                    self._loop.call_soon_threadsafe(self._wake.set)

        return hear

    async def more(self) -> list[tuple[int, Event]]:
        """What was said since the last call, in its order; waits until something was."""
        await self._wake.wait()
        self._wake.clear()
        self._stirred = False  # before the deque is emptied: what comes from now on stirs again
        said: list[tuple[int, Event]] = []
        while self._said:
            said.append(self._said.popleft())
        return said
