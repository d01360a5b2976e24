"""Plain adapters for another engine, each made once, in a folder that is called by its digest."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path

from inlay.composer.export import CONFIG, WEIGHTS, export
from inlay.errors import StoreBusy
from inlay.registry import Lock, Registry, Version
from inlay.registry.canonical import PREFIX, canonical, digest_of_file

SEAL = "inlay.json"


class Exports:
    """`folder`/<64 hex>/ holds the adapter of what has that digest, as `engine` reads it, and inlay.json: its
    reference and the digests of its files.

    Processes and machines may share the folder: an adapter appears whole or not at all, under a name that
    always has the same bytes, and is verified whenever it is asked for.
    """

    def __init__(self, folder: Path, engine: str) -> None:
        self.folder = folder
        self.engine = engine

    def made(self, digest: str) -> Path | None:
        """The folder of what was exported before and is sound, else None."""
        folder = self.folder / digest.removeprefix(PREFIX)
        try:
            seal = json.loads((folder / SEAL).read_bytes())
            sound = all(digest_of_file(folder / name)[0] == seal["files"][name] for name in (CONFIG, WEIGHTS))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return folder if sound else None

    def make(self, target: Version | Lock, store: Registry) -> Path:
        """The folder of `target`, exported where it was not. InputError for what has no such form, by
        reason, IntegrityError, StoreBusy."""
        found = self.made(target.digest)
        if found is not None:
            return found
        folder = self.folder / target.digest.removeprefix(PREFIX)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".tmp-", dir=self.folder) as temporary:
                adapter = Path(temporary) / "adapter"
                export(target, adapter, store=store, engine=self.engine)
                files = {name: digest_of_file(adapter / name)[0] for name in (CONFIG, WEIGHTS)}
                (adapter / SEAL).write_text(
                    canonical({"ref": target.ref, "digest": target.digest, "files": files}), encoding="utf-8"
                )
                self._put(adapter, folder, Path(temporary) / "broken")
        except OSError as error:
            raise StoreBusy(
                f"cannot write {str(folder)!r}: {error.strerror}", fix="check the disk and its permissions"
            ) from None
        return folder

    def _put(self, made: Path, folder: Path, aside: Path) -> None:
        """Give the folder its name. Another process may have been quicker, and a broken one may be there."""
        try:
            os.rename(made, folder)
        except OSError:
            if self.made(f"{PREFIX}{folder.name}") is None:
                with contextlib.suppress(FileNotFoundError):
                    os.rename(folder, aside)
                os.rename(made, folder)


def rank_of(folder: Path) -> int:
    """The rank of an exported adapter, which is that of all its modules."""
    return int(json.loads((folder / CONFIG).read_bytes())["r"])
