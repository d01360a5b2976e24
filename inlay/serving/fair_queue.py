"""Who waits, and whose turn it is: one row of requests for each tenant, and the tenants take turns."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Waits(Protocol):
    @property
    def tenant(self) -> str: ...
    @property
    def tokens(self) -> int: ...


W = TypeVar("W", bound=Waits)


class FairQueue(Generic[W]):
    """First come, first served within a tenant; a tenant with a thousand requests delays another's by one.

    Not thread-safe: the scheduler holds its lock.
    """

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, deque[W]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._tenants.values()))

    def __iter__(self) -> Iterator[W]:
        for row in self._tenants.values():
            yield from row

    def put(self, item: W) -> None:
        self._tenants.setdefault(item.tenant, deque()).append(item)

    def remove(self, item: W) -> bool:
        """Whether it was there."""
        row = self._tenants.get(item.tenant)
        if row is None or item not in row:
            return False
        row.remove(item)
        if not row:
            del self._tenants[item.tenant]
        return True

    def take(self, most: int, tokens: int) -> list[W]:
        """The next ones, at most `most`, that padded to the longest hold `tokens` at most; the first whatever
        it holds, and beside it none that is less than half as long or more than twice. Who is passed over
        keeps the place."""
        taken: list[W] = []
        longest = shortest = 0
        for item in self._in_turn():
            if len(taken) == most:
                break
            long, short = max(longest, item.tokens), min(shortest or item.tokens, item.tokens)
            if not taken or (long * (len(taken) + 1) <= tokens and long <= 2 * short):
                taken.append(item)
                longest, shortest = long, short
        for item in taken:
            self.remove(item)
            if item.tenant in self._tenants:
                self._tenants.move_to_end(item.tenant)
        return taken

    def _in_turn(self) -> Iterator[W]:
        rows = [iter(row) for row in self._tenants.values()]
        while rows:
            for row in [*rows]:
                item = next(row, None)
                if item is None:
                    rows.remove(row)
                else:
                    yield item
