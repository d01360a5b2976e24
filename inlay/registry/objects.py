"""The content-addressed folder: bytes go in once, under the sha256 of what they are, and never change.

    objects/sha256/ab/abcd…     mode 0444
    objects/tmp/…               files on their way in; whatever a killed process left here, `gc` removes

A file is written under tmp, flushed to the disk, renamed into place, and its folder flushed, so that a
name is there only with all of its bytes. A mode is no proof: every read hashes again.

A file on its way in is locked (flock) by its writer, so that a leftover can be told from a file that is
being written, however young or old: the lock goes with the process. It is made and locked while the folder
is locked as well, shared among writers; whoever looks for leftovers locks the folder for itself, and so
never sees one made but not locked yet.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from inlay.errors import InputError, IntegrityError, StoreBusy
from inlay.registry.canonical import PREFIX, digest_of, digest_of_file, is_digest

MODE = 0o444


class Objects:
    """The objects of one store."""

    def __init__(self, store: Path) -> None:
        self.root = store / "objects"
        self.temporary = self.root / "tmp"

    def path(self, digest: str) -> Path:
        """Where the bytes with `digest` lie, or would; InputError if it is no digest."""
        if not is_digest(digest):
            raise InputError(f"an object is named by sha256: and 64 hex digits, got {digest[:80]!r}")
        hexadecimal = digest[len(PREFIX) :]
        return self.root / "sha256" / hexadecimal[:2] / hexadecimal

    def put_bytes(self, data: bytes) -> str:
        """Store `data`, return its digest. Storing what is there already changes nothing."""
        digest = digest_of(data)
        if not self._there(digest, len(data)):
            with _Incoming(self) as incoming:
                incoming.write(data)
                incoming.settle(digest)
        return digest

    def put_file(self, source: Path) -> tuple[str, int]:
        """Copy the file `source` in, return (digest, size). InputError if it is a link."""
        try:
            descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError as error:
            raise InputError(f"cannot read {str(source)!r}: {error.strerror}") from None
        with open(descriptor, "rb") as file, _Incoming(self) as incoming:
            digest, size = digest_of_file(file, incoming.write)
            if not self._there(digest, size):
                incoming.settle(digest)
        return digest, size

    def put_stream(self, source: IO[bytes], digest: str, *, what: str = "object") -> int:
        """Copy in what `source` reads, return its size; IntegrityError unless it has `digest`."""
        with _Incoming(self) as incoming:
            found, size = digest_of_file(source, incoming.write)
            if found != digest:
                raise IntegrityError(f"{what} does not have the bytes that its name says ({digest})")
            if not self._there(digest, size):
                incoming.settle(digest)
        return size

    def read(self, digest: str, *, what: str = "object") -> bytes:
        """The bytes with `digest`, hashed again; IntegrityError names `what` if they are gone or changed."""
        path = self.path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise IntegrityError(
                f"{what} is missing from the store ({digest})", fix="run `inlay fsck`"
            ) from None
        except OSError as error:
            raise StoreBusy(f"cannot read {what} ({digest}): {error.strerror}") from None
        if digest_of(data) != digest:
            raise IntegrityError(
                f"{what} no longer has the bytes it was registered with ({digest})", fix="run `inlay fsck`"
            )
        return data

    def verify(self, digest: str, *, what: str = "object") -> Path:
        """The path of the bytes with `digest` after hashing them; IntegrityError as in `read`."""
        path = self.path(digest)
        try:
            found, _ = digest_of_file(path)
        except FileNotFoundError:
            raise IntegrityError(
                f"{what} is missing from the store ({digest})", fix="run `inlay fsck`"
            ) from None
        except OSError as error:
            raise StoreBusy(f"cannot read {what} ({digest}): {error.strerror}") from None
        if found != digest:
            raise IntegrityError(
                f"{what} no longer has the bytes it was registered with ({digest})", fix="run `inlay fsck`"
            )
        return path

    def all(self) -> Iterator[tuple[str, Path]]:
        """(digest that the name claims, path) of every object; the claim is not checked here."""
        folder = self.root / "sha256"
        if folder.is_dir():
            for path in sorted(folder.glob("??/*")):
                yield PREFIX + path.name, path

    def used(self) -> bool:
        """Whether anything was ever stored here."""
        try:
            with os.scandir(self.root / "sha256") as entries:
                return any(True for _ in entries)
        except OSError:
            return False

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Those of `digests` without an object, once each, in their order. Looks at names, not at bytes."""
        return [digest for digest in dict.fromkeys(digests) if not self.path(digest).is_file()]

    def leftovers(self) -> list[Path]:
        """Files that a killed process left on their way in; none that somebody is writing now.

        Nobody opens one of them again, so they may be removed at any later time. Raises StoreBusy where they
        cannot be looked at.
        """
        try:
            with _locked(self.temporary, fcntl.LOCK_EX):
                return [path for path in sorted(self.temporary.iterdir()) if not _is_being_written(path)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreBusy(
                f"cannot look at {str(self.temporary)!r}: {error.strerror}", fix="check its permissions"
            ) from None

    def _there(self, digest: str, size: int) -> bool:
        """Whether the bytes are there, whole. A broken copy is not: storing the good bytes again heals it."""
        path = self.path(digest)
        try:
            if path.stat().st_size != size or digest_of_file(path)[0] != digest:
                return False
            os.utime(path)  # it is wanted again: the grace period of `gc` starts anew
        except OSError:
            return False
        return True


class _Incoming:
    """A file on its way in. Leaves nothing behind unless it was settled."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._path = objects.temporary / secrets.token_hex(16)
        self._descriptor = -1

    def __enter__(self) -> _Incoming:
        try:
            self._objects.temporary.mkdir(parents=True, exist_ok=True)
            with _locked(self._objects.temporary, fcntl.LOCK_SH):
                self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if self._descriptor >= 0:
                self.__exit__()
            raise StoreBusy(
                f"cannot write to the store: {error.strerror}", fix="check the disk, try again"
            ) from None
        return self

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            raise StoreBusy(
                f"cannot write to the store: {error.strerror}", fix="check the disk, try again"
            ) from None

    def settle(self, digest: str) -> None:
        """Make the written bytes durable under their digest."""
        target = self._objects.path(digest)
        try:
            os.fchmod(self._descriptor, MODE)
            os.fsync(self._descriptor)
            if not target.parent.is_dir():
                target.parent.mkdir(parents=True, exist_ok=True)
                flush_folder(target.parent.parent)
            os.replace(self._path, target)
            flush_folder(target.parent)
        except OSError as error:
            raise StoreBusy(
                f"cannot write to the store: {error.strerror}", fix="check the disk, try again"
            ) from None

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        self._path.unlink(missing_ok=True)  # gone already where it was settled


@contextlib.contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """`folder` locked among processes, for as long as this takes; waits for its turn."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def _is_being_written(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, PermissionError):
        return True  # settled a moment ago; another account's, so nothing can be known
    except OSError:
        return False  # a link or something else that no writer makes
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def flush_folder(folder: Path) -> None:
    """fsync a folder, so that a rename inside it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
