"""Files of one commit of a hub repository: bounded before a byte is asked for, resumed, verified.

huggingface_hub throws a partial download away when its process ends (so that two processes never write to
one file); here it is kept, under a lock, and the next attempt asks for the rest by a Range request. What has
arrived counts only once it has the size and the digest that the hub states: sha256 for files in its large
file storage, git's sha1 for the small ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit, urlunsplit

from inlay.errors import InlayError, InputError, IntegrityError, StoreBusy
from inlay.registry import cache_dir, digest_of_json
from inlay.registry.canonical import CHUNK, PREFIX
from inlay.registry.hub import explained
from inlay.registry.printable import printable

PUBLIC = "https://huggingface.co"
TIMEOUT = 30.0
"""Seconds that the hub has to answer a question about a repository."""
LARGEST = 50_000_000_000
"""Bytes of one file that the hub gives over HTTP."""

_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class RemoteFile:
    """One file as the hub states it. `sha256` (hex) for large files; `blob`, git's sha1 (hex), for small
    ones."""

    name: str
    size: int
    sha256: str | None
    blob: str | None


@dataclass(frozen=True)
class Remote:
    """A repository at one commit. `files` are those of the names asked for, small ones first; `names` all at
    its top."""

    repo: str
    commit: str
    files: Mapping[str, RemoteFile]
    names: tuple[str, ...]


def endpoint() -> str:
    """Where the hub is, without what a user may have put before an @."""
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


@contextlib.contextmanager
def bars(shown: bool) -> Iterator[None]:
    """The hub's progress bars on stderr, or silence; its warnings, which repeat our errors, are silenced."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )

    was_silent, verbosity = are_progress_bars_disabled(), logging.get_verbosity()
    logging.set_verbosity_error()
    if not shown:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if not shown and not was_silent:
            enable_progress_bars()


def look(repo: str, revision: str | None, wanted: Iterable[str]) -> Remote:
    """What `repo` holds at `revision` (branch, tag or commit; None for its main branch), pinned to a commit.

    Only exact names of `wanted` are considered, so that no name from outside becomes a path here. Raises
    InputError or StoreBusy.
    """
    from huggingface_hub import HfApi

    what = f"cannot pull {repo} from the hub"
    try:
        info = HfApi(library_name="inlay").model_info(
            repo, revision=revision, files_metadata=True, timeout=TIMEOUT
        )
    except Exception as error:
        raise explained(error, what) from None
    if not isinstance(info.sha, str) or not _SHA1.fullmatch(info.sha):
        raise InputError(f"{what}: it does not say at which commit it is", fix="check HF_ENDPOINT")
    names = [s.rfilename for s in info.siblings or () if isinstance(s.rfilename, str)]
    chosen = set(wanted)
    stated = [_stated(s, what) for s in info.siblings or () if s.rfilename in chosen]
    files = {file.name: file for file in sorted(stated, key=lambda file: (file.size, file.name))}
    return Remote(repo, info.sha, files, tuple(name for name in names if "/" not in name))


def _stated(sibling: Any, what: str) -> RemoteFile:
    sha256 = getattr(sibling.lfs, "sha256", None)
    size, blob = sibling.size, sibling.blob_id
    known = isinstance(sha256, str) and _SHA256.fullmatch(sha256)
    known = known or (sha256 is None and isinstance(blob, str) and _SHA1.fullmatch(blob))
    if not isinstance(size, int) or isinstance(size, bool) or size < 0 or not known:
        raise InputError(
            f"{what}: it does not state size and digest of {printable(sibling.rfilename)}",
            fix="check HF_ENDPOINT",
        )
    return RemoteFile(sibling.rfilename, size, sha256, blob)


@contextlib.contextmanager
def fetched(remote: Remote) -> Iterator[Path]:
    """A folder with the files of `remote`, each verified, for as long as the context lasts.

    What was downloaded is kept when anything fails, here or inside the context, and removed when all went
    well. Raises StoreBusy where another process is at it, or the connection is cut; IntegrityError where the
    hub gives other bytes than it states.
    """
    key = digest_of_json([endpoint(), remote.repo, remote.commit])[len(PREFIX) :]
    folder = cache_dir() / "hub" / key[:32]
    files = folder / "files"
    try:
        files.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "wb")  # noqa: SIM115 - closed below, after the folder is gone
    except OSError as error:
        raise StoreBusy(f"cannot write {str(folder)!r}: {error.strerror}", fix="set INLAY_CACHE") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StoreBusy(
                f"another process is pulling {remote.repo} at {remote.commit[:12]}", fix="wait for it"
            ) from None
        for file in remote.files.values():
            _fetch(remote, file, files)
        yield files
        shutil.rmtree(folder, ignore_errors=True)


def _fetch(remote: Remote, file: RemoteFile, folder: Path) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    target, partial = folder / file.name, folder / f"{file.name}.part"
    if target.is_file() and _is(target, file):
        return
    what = f"cannot pull {file.name} of {remote.repo} from the hub"
    try:
        with open(partial, "ab", buffering=0) as raw:
            have = raw.tell()
            if have > file.size:
                raw.truncate(have := 0)
            http_get(
                hf_hub_url(remote.repo, file.name, revision=remote.commit),
                _Bounded(raw, file, what),  # type: ignore[arg-type]
                resume_size=have,
                headers=build_hf_headers(library_name="inlay"),
                expected_size=file.size,
                displayed_filename=file.name,
            )
        if not _is(partial, file):
            raise _other(file, what)
    except IntegrityError:
        partial.unlink(missing_ok=True)
        raise
    except InlayError:
        raise
    except Exception as error:
        raise explained(error, what) from None
    os.replace(partial, target)


class _Bounded:
    """A file that takes no more than the hub said it would give."""

    def __init__(self, raw: IO[bytes], file: RemoteFile, what: str) -> None:
        self._raw, self._file, self._what = raw, file, what
        self.seek, self.tell, self.truncate = raw.seek, raw.tell, raw.truncate

    def write(self, data: bytes) -> int:
        if self._raw.tell() + len(data) > self._file.size:
            raise _other(self._file, self._what)
        view = memoryview(data)
        while view:
            view = view[self._raw.write(view) :]
        return len(data)


def _other(file: RemoteFile, what: str) -> IntegrityError:
    return IntegrityError(
        f"{what}: the bytes that came are not the {file.size} bytes it states by digest", fix="try again"
    )


def _is(path: Path, file: RemoteFile) -> bool:
    """Whether the file at `path` has the size and digest that the hub states."""
    size = path.stat().st_size
    if size != file.size:
        return False
    # git's name of a blob: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
    state = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with open(path, "rb") as opened:
        while chunk := opened.read(CHUNK):
            state.update(chunk)
    return state.hexdigest() == (file.sha256 or file.blob)
