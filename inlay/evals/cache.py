"""What measuring may keep to be faster the next time: entries under a digest, bounded, verified when read.

    <cache>/<kind>/<name>.entry      64 hex digits (sha256 of the rest), a line break, the payload

Everything here can be made again, so nothing that goes wrong with it may stop a measurement: what is
damaged or cannot be read counts as absent, and what cannot be written is not kept. All processes of a
machine may share one: an entry is written beside and renamed, so a reader sees the old or the new one, whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from inlay.errors import InputError
from inlay.registry.fingerprint import cache_dir

LIMIT = 4 << 30
"""Bytes kept of all kinds together where INLAY_CACHE_BYTES does not say."""
SUFFIX = ".entry"
UNFINISHED = ".unfinished"
STALE = 3600.0
"""Seconds after which an unfinished entry has lost its writer."""
_DIGEST = 64


def limit_of_environment() -> int:
    """$INLAY_CACHE_BYTES, or `LIMIT`; 0 keeps nothing. InputError where it is no whole number of bytes."""
    text = os.environ.get("INLAY_CACHE_BYTES", "").strip()
    if not text:
        return LIMIT
    if not text.isdecimal():
        raise InputError(
            f"INLAY_CACHE_BYTES must be a whole number of bytes, and is {text[:40]!r}",
            fix=f"leave it away for {LIMIT}, or write 0 to keep nothing",
        )
    return int(text)


@dataclass(frozen=True)
class Cache:
    """Entries under `root`, at most `limit` bytes of them; those read or written longest ago go first."""

    root: Path
    limit: int

    @classmethod
    def of_environment(cls, root: Path | None = None) -> Cache:
        """The one under `root`, by default the registry's `cache_dir()`, within $INLAY_CACHE_BYTES."""
        return cls(root or cache_dir(), limit_of_environment())

    def path(self, kind: str, name: str) -> Path:
        """Where an entry stands: `kind` is a word, `name` a key's digest."""
        return self.root / kind / f"{name}{SUFFIX}"

    def read(self, kind: str, name: str) -> bytes | None:
        """What was written; None where there is nothing, or where a byte of it is not what was written."""
        path = self.path(kind, name)
        try:
            held = path.read_bytes()
        except OSError:
            return None
        payload = held[_DIGEST + 1 :]
        if held[: _DIGEST + 1] != _seal(payload):
            return None
        with contextlib.suppress(OSError):  # removed meanwhile, or another user's: then it is not refreshed
            os.utime(path)
        return payload

    def write(self, kind: str, name: str, payload: bytes) -> bool:
        """Keep `payload`, and remove what is too much then; whether it was kept. Larger than the limit is
        not kept."""
        size = _DIGEST + 1 + len(payload)
        if size > self.limit:
            return False
        path = self.path(kind, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, _seal(payload), payload)
        except OSError:
            return False
        self.prune(keep=path)
        return True

    def prune(self, *, keep: Path | None = None) -> int:
        """Remove what was not used for longest until the rest fits, `keep` never; how many went."""
        entries: list[tuple[int, int, Path]] = []
        for file in self.root.glob("*/*"):
            if file.suffix not in (SUFFIX, UNFINISHED):
                continue
            try:
                about = file.stat()
            except OSError:
                continue  # another process was faster
            if file.suffix == SUFFIX:
                entries.append((about.st_mtime_ns, about.st_size, file))
            elif time.time() - about.st_mtime > STALE:
                with contextlib.suppress(OSError):
                    file.unlink()
        total, removed = sum(size for _, size, _ in entries), 0
        for _, size, file in sorted(entries):
            if total <= self.limit:
                break
            if file != keep:
                with contextlib.suppress(OSError):
                    file.unlink()
                total -= size
                removed += 1
        return removed


def _seal(payload: bytes) -> bytes:
    return hashlib.sha256(payload).hexdigest().encode() + b"\n"


def _replace(path: Path, *parts: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=UNFINISHED)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
