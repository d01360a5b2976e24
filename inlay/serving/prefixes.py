"""Keys and values of requests that have ended, for those that begin with the same tokens.

What is kept belongs to a tenant, a digest and a gate, and is found by nothing else: how long an answer takes
must tell nobody what others asked. Within a byte budget; the least recently used goes first.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from inlay.serving.kv_rows import Span

BLOCK = 16
"""Tokens after which a beginning can be found; what follows is compared one by one."""


@dataclass(frozen=True)
class Whose:
    """`voice`: the gate's values, as bytes."""

    tenant: str
    digest: str
    voice: bytes


@dataclass(eq=False)
class _Kept:
    whose: Whose
    ids: tuple[int, ...]
    span: Span
    nbytes: int


class Prefixes:
    """Thread-safe."""

    def __init__(self, nbytes: int) -> None:
        self.budget = nbytes
        self.nbytes = 0
        self._kept: OrderedDict[_Kept, None] = OrderedDict()
        self._found: dict[tuple[Whose, int], _Kept] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, whose: Whose, ids: Sequence[int]) -> Span | None:
        """Of the longest beginning of `ids` that is known, all but its last token at most; None where less
        than a block is."""
        with self._lock:
            for length, mark in reversed(list(_marks(ids))):
                kept = self._found.get((whose, mark))
                # Marks are hashes, and what is not the same must not pass for it.
                if kept is not None and kept.ids[:length] == tuple(ids[:length]):
                    self._kept.move_to_end(kept)
                    shared = length
                    while shared < min(len(kept.ids), len(ids)) and kept.ids[shared] == ids[shared]:
                        shared += 1
                    shared = min(shared, len(ids) - 1)
                    return kept.span.first(shared) if shared else None
        return None

    def keep(self, whose: Whose, ids: Sequence[int], span: Callable[[], Span]) -> None:
        """`span`: makes that of all of `ids`; not called where they are known already, or too few. What they
        go on from is not kept twice."""
        ids = tuple(ids)
        marks = [(whose, mark) for _, mark in _marks(ids)]
        if not marks or not self.budget:
            return
        with self._lock:
            known = self._found.get(marks[-1])
            if known is not None and known.ids[: len(ids)] == ids:
                self._kept.move_to_end(known)
                return
        made = span()
        kept = _Kept(whose, ids, made, made.nbytes)
        with self._lock:
            if kept.nbytes > self.budget:
                return
            for mark in marks:
                before = self._found.get(mark)
                if before is not None and before.ids == ids[: len(before.ids)]:
                    self._drop(before)
                self._found[mark] = kept
            self._kept[kept] = None
            self.nbytes += kept.nbytes
            while self.nbytes > self.budget:
                self._drop(next(iter(self._kept)))

    def forget(self, digest: str) -> None:
        """Whatever was computed by it, of all tenants."""
        with self._lock:
            for kept in [kept for kept in self._kept if kept.whose.digest == digest]:
                self._drop(kept)

    def _drop(self, kept: _Kept) -> None:
        if kept in self._kept:
            del self._kept[kept]
            self.nbytes -= kept.nbytes
        for _, mark in _marks(kept.ids):
            if self._found.get((kept.whose, mark)) is kept:
                del self._found[kept.whose, mark]


def _marks(ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """For each whole number of blocks: how many tokens, and what they hash to."""
    mark = 0
    for end in range(BLOCK, len(ids) + 1, BLOCK):
        mark = hash((mark, *ids[end - BLOCK : end]))
        yield end, mark
