"""What every row that came from elsewhere is checked with: digests, times, canonical JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from inlay.errors import InputError
from inlay.registry.canonical import canonical, is_digest, moment, timestamp

Row = dict[str, Any]
Place = tuple[str, int]
"""A version or lock by name and number."""

AHEAD = timedelta(hours=1)
"""By how much the clocks of two machines may differ. What is written here later gets a later time than all
that was taken over, so a time from the far future would stand in the journal for ever.
"""


def need(true: bool, what: str) -> None:
    """InputError that it has `what`, unless `true`."""
    if not true:
        raise InputError(f"it has {what}")


def digests(row: Row, *columns: str) -> None:
    """InputError unless these columns hold whole digests."""
    for column in columns:
        need(is_digest(row[column]), f"{column} that is no digest")


def check_time(text: str) -> None:
    """InputError unless `text` is a `timestamp`, of the past as far as can be known here."""
    need(moment(text) == text, f"the time {ascii(text)[:40]}")
    need(text <= timestamp(datetime.now(UTC) + AHEAD), f"the time {text}, which is still to come")


def load(text: str, kind: type) -> Any:
    """The dict or list in a column; InputError where it is neither, or not written as it was."""
    value = json.loads(text)
    need(isinstance(value, kind), f"JSON that is no {kind.__name__}")
    need(canonical(value) == text, "JSON that is not canonical")
    return value


def texts(value: list[Any]) -> bool:
    """Whether all of `value` are texts."""
    return all(isinstance(v, str) for v in value)


def base_key(base: list[str]) -> tuple[str, ...]:
    """What a base is known by: the digests of its weights and its prompt, and its source."""
    return tuple(base)
