"""How much may still be asked of a model in the time that is left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

MARGIN = 1.25
"""What is left to do may take so much longer than the same took until now."""


class Budget:
    """`seconds` from now on, by `clock`. `reserve`: rows that must still be asked at the end, and for which
    time is kept."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self.seconds, self.clock = seconds, clock
        self.started = clock()
        self.reserve = 0
        self._rows, self._spent = 0, 0.0

    @property
    def elapsed(self) -> float:
        return self.clock() - self.started

    def over(self, share: float) -> bool:
        """Is more than this share of the time gone?"""
        return self.elapsed > share * self.seconds

    def allows(self, rows: int) -> bool:
        """Can so many rows be asked, at the pace of those asked until now, and the reserve after them?"""
        pace = self._spent / self._rows if self._rows else 0.0
        return self.elapsed + MARGIN * pace * (rows + self.reserve) <= self.seconds

    @contextlib.contextmanager
    def asking(self, rows: int) -> Iterator[None]:
        """Inside, so many rows are asked."""
        start = self.clock()
        yield
        self._rows += rows
        self._spent += self.clock() - start
