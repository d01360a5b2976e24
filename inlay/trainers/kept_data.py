"""What the registry keeps of a version's training data: the digest of every row, so that a later run can say
which rows are others, and, where that was asked for, the rows themselves.

Both are a report of the version: a purge erases them with it, a bundle takes them along.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inlay.trainers.data import Dataset
from inlay.trainers.pairs import Pairs

if TYPE_CHECKING:
    from inlay.registry import Registry, Version
    from inlay.trainers.reading import Data

KIND = "data"
SCHEMA = 1


@dataclass(frozen=True)
class KeptData:
    """`digest`: of what was trained on, `digests` of its rows in their order. `rows`: all rows that the run
    was given, as its reader takes them; None where they were not kept."""

    digest: str
    digests: tuple[str, ...]
    rows: tuple[dict[str, Any], ...] | None


def keep(store: Registry, version: Version, trained: Data, given: Data | None = None) -> None:
    """Keep the digests of what was trained on and, with `given`, the rows that the run was given; once."""
    before = kept(store, version)
    if before is not None and before.digest == trained.digest and (given is None or before.rows is not None):
        return
    store.put_report(
        version.digest,
        KIND,
        {
            "schema": SCHEMA,
            "digest": trained.digest,
            "digests": trained.row_digests,
            "rows": None if given is None else rows_of(given),
        },
    )


def kept(store: Registry, version: Version) -> KeptData | None:
    """The newest that was kept of a version; None for one without."""
    for report in store.reports(version.digest, KIND, limit=1):
        rows = report["rows"]
        return KeptData(report["digest"], tuple(report["digests"]), None if rows is None else tuple(rows))
    return None


def rows_of(data: Data) -> list[dict[str, Any]]:
    """Rows that read back as `data`, with its digest."""
    if isinstance(data, Dataset):
        return [{"messages": [*_turns(e.messages), _turn("assistant", e.answer)]} for e in data]
    if isinstance(data, Pairs):
        return [{"prompt": p.messages, "chosen": p.chosen, "rejected": p.rejected} for p in data]
    return [{"text": document} for document in data]


def differing(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[int, int]:
    """How many rows are only in `one`, and how many only in `other`; copies count."""
    first, second = Counter(one), Counter(other)
    return (first - second).total(), (second - first).total()


def _turns(prompt: str | list[dict[str, str]]) -> list[dict[str, str]]:
    return [_turn("user", prompt)] if isinstance(prompt, str) else prompt


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
