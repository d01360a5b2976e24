"""Checkpoints of a run: what it takes to go on bit for bit, kept so that no kill can spoil it.

    <run>/lock              held (flock) by the process that trains
    <run>/step-00000120/    weights.safetensors  optimizer.pt  scheduler.pt  rng_state.pth
                            trainer_state.json  run.json  sha256.json
    <run>/writing-00000120/ on its way in, or what a kill left of it

A checkpoint is written aside, flushed to the disk and renamed, so that a name is there only with all of its
bytes; every file is hashed again before it is believed. Only the newest two are kept: should one be damaged,
the one before it serves. Knows files, not models.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inlay.errors import StoreBusy
from inlay.registry.canonical import digest_of_file, digest_of_json

KEPT = 2
"""Checkpoints of a run that are kept, the newest."""
SECONDS = 60.0
"""Between two checkpoints where no number of steps was asked for."""
SHARE = 0.02
"""Most of the time that writing them may take then."""
STALE_DAYS = 30
"""A run that nobody went on with for so long is given up."""
_BESIDE = ("declared", "examples", "started")
"""What a run's declaration says that no weight depends on."""
_DIGESTS = "sha256.json"
_RECORD = "run.json"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint. `record`: plain JSON of the run so far."""

    folder: Path
    step: int
    record: dict[str, Any]


class Checkpoints:
    """The checkpoints of the run in `folder`; `every`: steps between two, 0 by time (see `SECONDS`)."""

    def __init__(self, folder: Path, *, every: int = 0) -> None:
        self.folder = folder
        self.every = every
        self._last = time.monotonic()
        self._took = 0.0

    @classmethod
    def of(cls, parent: Path, run: Mapping[str, Any], prompts: Sequence[str], device: str) -> Checkpoints:
        """Those in `parent` of the run that is declared as `run`, under a digest of all that its weights
        depend on: whoever declares the same again finds them, whatever its name and suites."""
        what = {name: value for name, value in run.items() if name not in _BESIDE}
        what["dataset"] = run["dataset"]["digest"]
        what["settings"] = {k: v for k, v in run["settings"].items() if k != "save_steps"}
        identity = digest_of_json({"run": what, "prompts": list(prompts), "device": device})
        return cls(parent / identity.partition(":")[2][:32], every=run["settings"]["save_steps"])

    @contextlib.contextmanager
    def held(self, *, fresh: bool = False) -> Iterator[None]:
        """Inside, no other process trains this run. Raises StoreBusy where one does already.

        `fresh` forgets what there was. Runs beside it that were left for `STALE_DAYS` are removed.
        """
        descriptor = self._locked()
        try:
            _remove_stale(self.folder.parent)
            for folder in self.folder.glob("step-*") if fresh else ():
                shutil.rmtree(folder)
            for left in self.folder.glob("writing-*"):
                shutil.rmtree(left, ignore_errors=True)
            yield
        finally:
            if not any(self.folder.glob("step-*")):
                self.discard()
            os.close(descriptor)

    def newest(self) -> Checkpoint | None:
        """The newest that is whole; None where there is none."""
        for folder in sorted(self.folder.glob("step-*"), reverse=True):
            if _whole(folder):
                record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
                return Checkpoint(folder, int(folder.name.partition("-")[2]), record)
        return None

    def due(self, step: int) -> bool:
        """Whether one should be written after this step."""
        if self.every:
            return step % self.every == 0
        return time.monotonic() - self._last >= max(SECONDS, self._took / SHARE)

    def save(self, step: int, record: dict[str, Any], write: Callable[[Path], None]) -> None:
        """Keep a checkpoint: `write` puts the tensors' files into the folder that it is given."""
        start = time.monotonic()
        aside = self.folder / f"writing-{step:08}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        write(aside)
        (aside / _RECORD).write_text(json.dumps(record), encoding="utf-8")
        digests = {path.name: digest_of_file(path)[0] for path in sorted(aside.iterdir())}
        (aside / _DIGESTS).write_text(json.dumps(digests), encoding="utf-8")
        for path in [*aside.iterdir(), aside]:
            _flush(path)
        there = self.folder / f"step-{step:08}"
        if there.exists():  # a damaged one: newest() would have taken it up otherwise
            shutil.rmtree(there)
        os.rename(aside, there)
        _flush(self.folder)
        for old in sorted(self.folder.glob("step-*"), reverse=True)[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
        self._last = time.monotonic()
        self._took = self._last - start

    def discard(self) -> None:
        """Remove everything, the run being finished."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # other runs are there
            self.folder.parent.rmdir()

    def _locked(self) -> int:
        """The descriptor of the lock, held; again where a run that finished took the folder along."""
        while True:
            path = self.folder / "lock"
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = os.fstat(descriptor)
                there = os.stat(path)
            except BlockingIOError:
                pid = os.read(descriptor, 20).decode(errors="replace").strip()
                os.close(descriptor)
                raise StoreBusy(
                    f"a run is trained by one process at a time, this one by process {pid or '(unknown)'}",
                    fix="wait for it, or stop it: the same command then goes on from its checkpoint",
                ) from None
            except FileNotFoundError:
                os.close(descriptor)
                continue
            if (held.st_ino, held.st_dev) == (there.st_ino, there.st_dev):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
                return descriptor
            os.close(descriptor)


def _whole(folder: Path) -> bool:
    """Whether every file of a checkpoint is there with the bytes that were written."""
    try:
        digests = json.loads((folder / _DIGESTS).read_text(encoding="utf-8"))
        return _RECORD in digests and all(
            digest_of_file(folder / name)[0] == digest for name, digest in digests.items()
        )
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _remove_stale(parent: Path) -> None:
    oldest = time.time() - STALE_DAYS * 86400
    for folder in parent.iterdir():
        with contextlib.suppress(OSError):
            newest = max(path.stat().st_mtime for path in [folder, *folder.iterdir()])
            if newest < oldest:
                shutil.rmtree(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
