"""Canonical JSON and sha256 digests: the one place that turns values into identities.

A digest is always the string ``sha256:<64 hex>``. Canonical JSON has sorted keys, no white space,
UTF-8 without escapes, and neither NaN nor infinity, so that equal values have equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from inlay.errors import InputError

PREFIX = "sha256:"
CHUNK = 1 << 20


def canonical(value: Any) -> str:
    """`value` as canonical JSON.

    Raises InputError if it cannot be written as JSON (NaN, infinity, bytes, objects).
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"records must be plain JSON, got {error}",
            fix="use strings, finite numbers, booleans, None, lists and dicts only",
        ) from None


def digest_of(data: Any) -> str:
    """`sha256:<hex>` of bytes, of a text's UTF-8 bytes (lone surrogates kept, so that any text has one), or
    of the canonical JSON of anything else. For a text as JSON, say `digest_of_json`.
    """
    if not isinstance(data, bytes | bytearray | memoryview | str):
        data = canonical(data)
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogatepass")
    return PREFIX + hashlib.sha256(data).hexdigest()


def digest_of_json(value: Any) -> str:
    """The digest of `value`'s canonical JSON."""
    return digest_of(canonical(value))


def digest_of_file(
    source: Path | IO[bytes], sink: Callable[[bytes], object] | None = None
) -> tuple[str, int]:
    """(digest, size) of a file read in chunks; every chunk also goes to `sink` where one is given."""
    if isinstance(source, Path):
        with open(source, "rb") as file:
            return digest_of_file(file, sink)
    state, size = hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        state.update(chunk)
        size += len(chunk)
        if sink is not None:
            sink(chunk)
    return PREFIX + state.hexdigest(), size


def is_digest(text: str) -> bool:
    """Whether `text` is a whole digest, not a shortened one."""
    return (
        text.startswith(PREFIX)
        and len(text) == len(PREFIX) + 64
        and all(c in "0123456789abcdef" for c in text[len(PREFIX) :])
    )


def timestamp(moment: datetime) -> str:
    """ISO 8601 in UTC with microseconds, which sorts as text. A time without a zone is taken as UTC."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def now() -> str:
    """The present as a `timestamp`."""
    return timestamp(datetime.now(UTC))


def moment(text: str | datetime) -> str:
    """A `timestamp` out of what people write: `2026-03-04`, `2026-03-04T12:00`, with or without a zone.

    Raises InputError for anything else. Without a zone it is UTC; a date alone is its midnight.
    """
    if isinstance(text, datetime):
        return timestamp(text)
    try:
        return timestamp(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        raise InputError(
            f"a time must be ISO 8601, got {text!r}", fix="write it like 2026-03-04T12:00 (UTC)"
        ) from None


def whoami() -> str:
    """Who is acting: $INLAY_USER, else the account's name. Advisory: whoever can write the file can lie."""
    named = os.environ.get("INLAY_USER")
    if named:
        return named
    import getpass  # pulls in more than a listing needs

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in some containers
        return f"uid {os.getuid()}"
