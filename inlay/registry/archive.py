"""The file of a bundle: a zip of stored (never compressed) members, each known by its digest before it is
read.

    bundle.json             format, names, head of the journal, and {member: [sha256, size]} of the rows
    rows/<table>.jsonl      one row a line, canonical JSON, without the row ids of the store they came from
    objects/<64 hex>        the bytes with that sha256

Nothing is believed on the way in. Stored members cannot grow, so there are no decompression bombs; no
member is ever written under its own name, so there are no paths to climb; members that are not listed,
listed twice or of another kind (links, folders) are errors. Equal contents give equal bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from inlay.errors import InputError, IntegrityError, StoreBusy
from inlay.registry.canonical import PREFIX, canonical, digest_of_file, is_digest
from inlay.registry.objects import flush_folder

FORMAT = "inlay-bundle"
VERSION = 1
HEADER = "bundle.json"
MAX_HEADER = 16 << 20
MAX_LINE = 64 << 20
_OBJECT = re.compile(r"objects/([0-9a-f]{64})")
_ROWS = re.compile(r"rows/[a-z_]+\.jsonl")
_END = struct.Struct("<4s16sH")  # the end of a zip's directory: its signature, …, how long a comment follows
_EPOCH = (1980, 1, 1, 0, 0, 0)
_UNSOUND = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    ValueError,
    KeyError,
)


class Writer:
    """A bundle on its way to `path`: there whole or not at all."""

    def __init__(self, path: Path) -> None:
        if path.exists():
            raise InputError(f"{str(path)!r} is there already", fix="give another file")
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        self._members: dict[str, list[str | int]] = {}
        try:
            self._zip = zipfile.ZipFile(self._temporary, "x", zipfile.ZIP_STORED, allowZip64=True)
        except OSError as error:
            raise _cannot_write(path, error) from None

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _t: TracebackType | None
    ) -> None:
        if kind is not None:
            with contextlib.suppress(OSError, ValueError):
                self._zip.close()
            self._temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _cannot_write(self._path, error) from None

    def rows(self, table: str, rows: Iterator[Mapping[str, Any]]) -> int:
        """Write the rows of one table; how many they were."""
        name, count, state, size = f"rows/{table}.jsonl", 0, hashlib.sha256(), 0
        with self._zip.open(_info(name), "w", force_zip64=True) as member:
            for row in rows:
                line = canonical(row).encode("utf-8", "surrogatepass") + b"\n"
                if len(line) > MAX_LINE:
                    raise InputError(f"a row of {table} has {len(line)} bytes, a bundle's at most {MAX_LINE}")
                member.write(line)
                state.update(line)
                count, size = count + 1, size + len(line)
        self._members[name] = [PREFIX + state.hexdigest(), size]
        return count

    def object(self, digest: str, source: Path, *, what: str) -> None:
        """Copy in the object that lies in `source`; IntegrityError if it is gone or has other bytes."""
        try:
            with (
                open(source, "rb") as file,
                self._zip.open(_info(f"objects/{digest[len(PREFIX) :]}"), "w", force_zip64=True) as member,
            ):
                found, _ = digest_of_file(file, member.write)
        except FileNotFoundError:
            raise IntegrityError(
                f"{what} is missing from the store ({digest})", fix="run `inlay fsck`"
            ) from None
        if found != digest:
            raise IntegrityError(
                f"{what} no longer has the bytes it was registered with ({digest})", fix="run `inlay fsck`"
            )

    def finish(self, header: Mapping[str, Any]) -> str:
        """Write the header and put the file where it belongs; the digest of the header, which is the
        bundle's.
        """
        data = canonical({"format": FORMAT, "version": VERSION, **header, "members": self._members}).encode()
        if len(data) > MAX_HEADER:
            raise InputError(f"the names are too many for one bundle ({len(data)} bytes)", fix="bundle some")
        self._zip.writestr(_info(HEADER), data)
        self._zip.close()
        with open(self._temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self._temporary, self._path)
        flush_folder(self._path.parent)
        return PREFIX + hashlib.sha256(data).hexdigest()


class Reader:
    """A bundle that may come from anywhere. Raises InputError that says what is wrong with it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        try:
            self._file = open(self.path, "rb", opener=_without_waiting)  # noqa: SIM115 (`__exit__` closes it)
        except OSError as error:
            raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from None
        try:
            status = os.fstat(self._file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"a bundle is a file, {str(path)!r} is none")
            self._total = status.st_size
            self._infos: dict[str, zipfile.ZipInfo] = {}
            with self._unsound():
                self._zip = zipfile.ZipFile(self._file)
                for info in self._zip.infolist():
                    self._admit(info)
                if sum(info.file_size for info in self._infos.values()) > self._total:
                    raise self._bad("its members overlap")
                self._refuse_more()
                self.digest, self.header = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def objects(self) -> dict[str, int]:
        """Digest -> size, of every object in it, as its directory says; `open_object` finds out."""
        found = {}
        for name, info in self._infos.items():
            match = _OBJECT.fullmatch(name)
            if match is not None:
                found[PREFIX + match[1]] = info.file_size
        return found

    def rows(self, table: str) -> Iterator[dict[str, Any]]:
        """The rows of one table, one after the other; InputError where its bytes are not those listed."""
        name = f"rows/{table}.jsonl"
        listed = self.header["members"].get(name)
        if listed is None:
            return
        state, size = hashlib.sha256(), 0
        with self._unsound(), self._zip.open(self._infos[name]) as member:
            while line := member.readline(MAX_LINE):
                state.update(line)
                size += len(line)
                if not line.endswith(b"\n"):
                    raise self._bad(f"{name} has a line that does not end within {MAX_LINE} bytes")
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise self._bad(f"{name} has a line that is no object")
                if canonical(row).encode("utf-8", "surrogatepass") + b"\n" != line:
                    raise self._bad(f"{name} has a line that is not canonical JSON")
                yield row
        if [PREFIX + state.hexdigest(), size] != listed:
            raise self._bad(f"{name} is not what bundle.json says")

    @contextlib.contextmanager
    def open_object(self, digest: str) -> Iterator[IO[bytes]]:
        """The bytes of an object, to be read once. Who reads them checks their digest."""
        info = self._infos.get(f"objects/{digest[len(PREFIX) :]}") if is_digest(digest) else None
        if info is None:
            raise self._bad(f"it lacks the object {digest[:80]}")
        with self._unsound(), self._zip.open(info) as member:
            yield member

    def _admit(self, info: zipfile.ZipInfo) -> None:
        name = info.filename
        mode = info.external_attr >> 16
        if name in self._infos:
            raise self._bad(f"it has {ascii(name)[:80]} twice")
        if name != HEADER and not _ROWS.fullmatch(name) and not _OBJECT.fullmatch(name):
            raise self._bad(f"it has {ascii(name)[:80]}, which no bundle has")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise self._bad(f"{ascii(name)[:80]} is compressed")
        if info.flag_bits & 0x1:
            raise self._bad(f"{ascii(name)[:80]} is encrypted")
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise self._bad(f"{ascii(name)[:80]} is no regular file")
        if info.header_offset + info.file_size > self._total:
            raise self._bad(f"{ascii(name)[:80]} claims {info.file_size} bytes, the file has {self._total}")
        self._infos[name] = info

    def _refuse_more(self) -> None:
        """A zip may have anything before it and after it, and be something else at the same time."""
        self._file.seek(max(0, self._total - _END.size))
        end = self._file.read(_END.size)
        first = min((info.header_offset for info in self._infos.values()), default=0)
        if first != 0 or len(end) < _END.size or _END.unpack(end)[::2] != (b"PK\5\6", 0):
            raise self._bad("there is something before or after it")

    def _read_header(self) -> tuple[str, dict[str, Any]]:
        info = self._infos.get(HEADER)
        if info is None or info.file_size > MAX_HEADER:
            raise self._bad(f"it has no {HEADER} of at most {MAX_HEADER} bytes")
        data = self._zip.read(info)
        header = json.loads(data)
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise self._bad(f"{HEADER} says that it is something else")
        if canonical(header).encode() != data:
            raise self._bad(f"{HEADER} is not canonical JSON")
        version = header.get("version")
        if type(version) is not int or version < 1:
            raise self._bad(f"{HEADER} says no format")
        if version > VERSION:
            raise InputError(
                f"the bundle {self.path.name} has format {str(version)[:20]}, "
                f"this Inlay knows up to {VERSION}",
                fix="upgrade with `pip install -U inlay`",
            )
        members = header.get("members")
        listed = {name for name in self._infos if _ROWS.fullmatch(name)}
        if not isinstance(members, dict) or set(members) != listed:
            raise self._bad(f"its rows are not those that {HEADER} lists")
        return PREFIX + hashlib.sha256(data).hexdigest(), header

    @contextlib.contextmanager
    def _unsound(self) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except RecursionError:
            raise self._bad("it holds JSON that is nested too deeply") from None
        except _UNSOUND as error:
            raise self._bad(str(error)[:120] or type(error).__name__) from None
        except OSError as error:
            raise InputError(f"cannot read {str(self.path)!r}: {error.strerror}") from None

    def _bad(self, what: str) -> InputError:
        return InputError(
            f"{self.path.name} is not a sound bundle: {what}", fix="make or fetch it again (`inlay bundle`)"
        )


def _without_waiting(path: str, flags: int) -> int:
    """For `open`, which would wait at a pipe that nobody writes to."""
    return os.open(path, flags | os.O_NONBLOCK)


def _cannot_write(path: Path, error: OSError) -> StoreBusy:
    return StoreBusy(f"cannot write {str(path)!r}: {error.strerror}", fix="name another folder or make room")


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.compress_type = zipfile.ZIP_STORED
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    return info
