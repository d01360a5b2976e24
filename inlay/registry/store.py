"""One store on the disk: where it is, its database, its objects, and the folders it makes of them."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from inlay.errors import InputError, IntegrityError, StoreBusy
from inlay.registry.canonical import PREFIX, digest_of
from inlay.registry.database import Database
from inlay.registry.fingerprint import cache_dir
from inlay.registry.objects import Objects

FOLDER = "adapters_store"
FILE = "registry.db"
STALE_SECONDS = 3600.0
_NOT_MINE_TO_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class Files:
    """The files of a store's versions. Needs no database, so that a record can carry it wherever it goes."""

    path: Path

    @property
    def objects(self) -> Objects:
        """The content-addressed folder."""
        return Objects(self.path)

    def manifest(self, digest: str) -> list[dict[str, str | int]]:
        """The files of a version: [{"path", "sha256", "size"}, …], verified."""
        return json.loads(self.objects.read(digest, what="manifest"))

    def folder(self, digest: str) -> Path:
        """`exports/<hex>/` with the version's files under their own names, as relative links into the
        objects; where the store can only be read, a folder of whole links in the cache.

        Every file is hashed again before the folder is handed out. A cache: it may be deleted at any time.
        """
        files = {str(f["path"]): self._sound(str(f["path"]), str(f["sha256"])) for f in self.manifest(digest)}
        folder = self.path / "exports" / digest[len(PREFIX) :]
        try:
            return _folder_of_links(folder, {n: os.path.relpath(p, folder) for n, p in files.items()})
        except OSError as error:
            if error.errno not in _NOT_MINE_TO_WRITE:
                raise _unwritable(folder, error) from None
        store = self.path.resolve()
        folder = cache_dir() / "exports" / digest_of(str(store))[len(PREFIX) :][:16] / folder.name
        try:
            return _folder_of_links(folder, {n: str(p.resolve()) for n, p in files.items()})
        except OSError as error:
            raise _unwritable(folder, error) from None

    def _sound(self, name: str, digest: str) -> Path:
        return self.objects.verify(digest, what=f"file {name!r}")

    def read_file(self, digest: str, path: str) -> bytes:
        """The bytes of one file of the version with `digest`, verified; InputError if it has no such file."""
        for file in self.manifest(digest):
            if file["path"] == path:
                return self.objects.read(str(file["sha256"]), what=f"file {path!r}")
        raise InputError(
            f"the version has no file {path[:120]!r}",
            fix=f"it has {', '.join(str(f['path']) for f in self.manifest(digest))}",
        )


@dataclass(frozen=True)
class Store(Files):
    """What the files of the registry work on: one store on the disk, opened."""

    db: Database


def _folder_of_links(folder: Path, links: dict[str, str]) -> Path:
    """`folder` holding these links and nothing else, made in one step; OSError where it cannot be."""
    if _holds(folder, links):
        return folder
    temporary = folder.with_name(f"tmp-{secrets.token_hex(8)}")
    try:
        temporary.mkdir(parents=True)
        for name, link in links.items():
            os.symlink(link, temporary / name)
        if folder.exists():  # somebody changed the cache: out of the way with it, in one step
            os.replace(folder, stale := temporary.with_name(f"{temporary.name}-stale"))
            shutil.rmtree(stale, ignore_errors=True)
        os.replace(temporary, folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if _holds(folder, links):
            return folder  # another process was quicker
        raise
    _remove_stale(folder.parent)
    return folder


def _holds(folder: Path, links: dict[str, str]) -> bool:
    try:
        return {entry.name: _link(entry) for entry in folder.iterdir()} == links
    except (FileNotFoundError, NotADirectoryError):
        return False


def _link(path: Path) -> str | None:
    return os.readlink(path) if path.is_symlink() else None


def _remove_stale(exports: Path) -> None:
    """Remove what processes killed in the middle of making a folder left here, when nobody can be at it."""
    for left in exports.glob("tmp-*"):
        try:
            old = left.stat().st_mtime < time.time() - STALE_SECONDS
        except FileNotFoundError:
            continue  # its maker has finished
        if old:
            shutil.rmtree(left, ignore_errors=True)


def _unwritable(folder: Path, error: OSError) -> StoreBusy:
    return StoreBusy(
        f"cannot write {str(folder.parent)!r}: {error.strerror}", fix="check the disk and its permissions"
    )


def find(path: str | Path | None, *, create: bool) -> Path:
    """The store's folder: `path`, else $INLAY_STORE, else the nearest `adapters_store` with a registry
    upward.

    Raises InputError where there is none and `create` is false. With `create`, a store that is nowhere is
    `adapters_store` in the working folder.
    """
    named = path if path is not None else os.environ.get("INLAY_STORE") or None
    if named is not None:
        folder = Path(named).expanduser().absolute()
        if not create and not (folder / FILE).is_file():
            raise InputError(f"there is no registry in {str(folder)!r}", fix=f"run `inlay init {folder}`")
    else:
        here = Path.cwd()
        found = next((p / FOLDER for p in (here, *here.parents) if (p / FOLDER / FILE).is_file()), None)
        if found is None and not create:
            raise InputError(
                f"there is no {FOLDER} in {str(here)!r} or above it",
                fix="run `inlay init`, or set INLAY_STORE",
            )
        folder = found or here / FOLDER
    if create:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise InputError(f"a store is a folder, {str(folder)!r} is a file", fix="name another") from None
        except OSError as error:
            raise StoreBusy(
                f"cannot make {str(folder)!r}: {error.strerror}", fix="check its permissions"
            ) from None
    return folder


def open_store(path: str | Path | None, *, create: bool, check: bool) -> Store:
    """The store at `path` (see `find`), its schema current, its triggers asserted if `check`."""
    folder = find(path, create=create)
    file = folder / FILE
    if file.exists() and not file.is_file():
        raise IntegrityError(f"{str(file)!r} is no file", fix="remove it")
    # Objects come after the schema, so that what is seen here in this order holds among many processes.
    used = Objects(folder).used()
    return Store(folder, Database(file, create=create, check=check, used=used))
