"""What an interrupted evaluation had found: a file that is written as it goes and removed at its end.

Each line is a piece of the answers under its own digest, so a line torn by a crash, or damaged later, is
skipped and its questions are asked again. The file's name is the digest of everything that the answers depend
on; where that changed, there is no such file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inlay.registry.canonical import digest_of_json

KEPT_DAYS = 30
"""An evaluation that nobody went on with for so long is given up."""


class Partial:
    """Answers by the number of their question. `key` is plain JSON. A cache that cannot be written costs the
    resuming and nothing else."""

    def __init__(self, folder: Path, key: Any) -> None:
        self.path = folder / f"{digest_of_json(key).partition(':')[2]}.jsonl"
        self.held = _read(self.path)
        _forget_old(folder)

    def add(self, found: Mapping[int, Any]) -> None:
        """Append answers, and hand them to the system before going on."""
        self.held.update(found)
        text = json.dumps([[number, value] for number, value in found.items()])
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:
                file.write(f"\n{_digest(text)} {text}\n".encode())

    def finish(self) -> None:
        """The answers are kept elsewhere now."""
        with contextlib.suppress(OSError):
            self.path.unlink()


def _forget_old(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for path in folder.glob("*.jsonl"):
            if path.stat().st_mtime < time.time() - KEPT_DAYS * 86_400:
                path.unlink(missing_ok=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path) -> dict[int, Any]:
    held: dict[int, Any] = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return held
    for line in lines:
        digest, _, text = line.decode("utf-8", "replace").partition(" ")
        if digest and digest == _digest(text):
            held.update(json.loads(text))
    return held
