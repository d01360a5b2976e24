"""A hub repository becomes a version: pinned to a commit, bounded, verified, then checked like any other.

What `inlay push` sent comes back as it was: the same files, the same digest, by the manifest in inlay.json.
Anything else is registered with the files it has.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from inlay.errors import InputError, IntegrityError
from inlay.hub import record
from inlay.hub.fetching import LARGEST, PUBLIC, Remote, bars, endpoint, fetched, look
from inlay.registry import BaseFingerprint, Registry, Version, check_name
from inlay.registry.hub import is_repo_id
from inlay.registry.ingest import (
    CONFIG,
    CONVERT,
    MAX_CONFIG,
    MAX_TEXT,
    MAX_WEIGHTS,
    PICKLES,
    TAKEN,
    WEIGHTS,
)
from inlay.registry.printable import printable

CARD = "README.md"


def names_repo(text: str) -> bool:
    """Whether `text`, which is no folder, is rather meant as a repository of the hub: owner/name, where no
    folder of the owner's name is here."""
    path = Path(text)
    return "/" in text and is_repo_id(text) and not path.exists() and not path.parent.exists()


def pull(
    repo: str,
    name: str,
    *,
    base: BaseFingerprint | str | Path,
    store: Registry | str | Path | None = None,
    revision: str | None = None,
    why: str = "",
    run: Mapping[str, Any] | None = None,
    owner: str | None = None,
    allow_base_mismatch: bool = False,
    accept_prompt_change: bool = False,
    tag: Sequence[str] = (),
    description: str | None = None,
    progress: bool = False,
    announce: Callable[[str], None] | None = None,
) -> Version:
    """Register the adapter in the hub's repository `repo` as the next version of `name`.

    `revision` (branch, tag, commit; by default the main branch) is resolved to a commit first, which is kept
    in `lineage["hub"]`. Only a configuration, safetensors, a card and a licence are downloaded; a download
    that was cut goes on where it stopped. `announce` gets one line with the size before the first byte.
    Raises InputError (no such repository, pickles only, too large, what `Registry.add` refuses),
    BaseMismatch, IntegrityError (other bytes than stated or pushed), StoreBusy (network).
    """
    check_name(name)
    if not is_repo_id(repo):
        raise InputError(
            f"a hub repository is owner/name, got {ascii(repo)[:80]}", fix="write it like org/name"
        )
    registry = store if isinstance(store, Registry) else Registry.open(store)
    fingerprint = BaseFingerprint.of(base)
    with bars(progress):
        remote = look(repo, revision, (*TAKEN, record.FILE, record.ORIGINAL_CARD))
        _refuse(remote)
        if announce is not None:
            size = sum(file.size for file in remote.files.values())
            announce(f"{repo} at {remote.commit[:12]}: {len(remote.files)} files, {size:,} bytes")
        with fetched(remote) as folder:
            claim = record.read(folder / record.FILE) if record.FILE in remote.files else None
            lineage: dict[str, Any] = {
                "repo": repo,
                "commit": remote.commit,
                "revision": revision or "main",
            }
            if endpoint() != PUBLIC:
                lineage["endpoint"] = endpoint()
            trained: dict[str, Any] = dict(run or {})
            if claim is not None:
                lineage["pushed"] = {"ref": claim.ref, "digest": claim.digest}
                trained.setdefault("base", dict(claim.base))
            with tempfile.TemporaryDirectory(dir=folder.parent) as staged:
                _stage(remote, folder, claim, Path(staged))
                return registry.add(
                    name,
                    staged,
                    base=fingerprint,
                    why=why,
                    run=trained or None,
                    lineage={"hub": lineage},
                    owner=owner,
                    allow_base_mismatch=allow_base_mismatch,
                    accept_prompt_change=accept_prompt_change,
                    tag=tag,
                    description=description,
                )


def _refuse(remote: Remote) -> None:
    """InputError unless the commit holds an adapter that could be taken, by names and sizes alone."""
    where = f"{remote.repo} at {remote.commit[:12]}"
    if WEIGHTS not in remote.files:
        pickle = next((n for n in remote.names if n.endswith(PICKLES) and n != "training_args.bin"), None)
        if pickle is not None:
            raise InputError(
                f"weights must be safetensors, {where} has only {printable(pickle)[:80]}, "
                "and a pickle runs code when it is read",
                fix=f"download it with `hf download {remote.repo} --local-dir FOLDER`, "
                f"convert it in that folder: {CONVERT}; then `inlay add`",
            )
    for needed in (CONFIG, WEIGHTS):
        if needed not in remote.files:
            raise InputError(
                f"an adapter needs {needed}, {where} has none", fix="name an adapter's repository"
            )
    bounds = {CONFIG: MAX_CONFIG, WEIGHTS: min(MAX_WEIGHTS, LARGEST), record.FILE: record.MAX_BYTES}
    for file in remote.files.values():
        bound = bounds.get(file.name, MAX_TEXT)
        if file.size > bound:
            raise InputError(f"{file.name} must be at most {bound} bytes, that of {where} has {file.size}")


def _stage(remote: Remote, folder: Path, claim: record.Claim | None, staged: Path) -> None:
    """The files to register under their names in `staged`: those that were pushed where the claim is borne
    out, else those of the repository. IntegrityError where weights are not the ones that were pushed."""
    files = {name: name for name in TAKEN if name in remote.files}
    if claim is not None:
        here = {entry["path"]: entry for entry in record.manifest_of(folder)}
        stated = {entry["path"]: entry for entry in claim.manifest}
        for name in (CONFIG, WEIGHTS):
            if stated.get(name) != here[name]:
                raise IntegrityError(
                    f"{name} of {remote.repo} at {remote.commit[:12]} is not the one that "
                    f"{record.FILE} there says was pushed as {claim.ref}",
                    fix="pull a commit from before it was changed (--revision), or ask its owner",
                )
        kept = {name: record.ORIGINAL_CARD if name == CARD else name for name in stated}
        if not claim.variant and all(
            name in TAKEN and source in here and {**here[source], "path": name} == stated[name]
            for name, source in kept.items()
        ):
            files = kept
    for name, source in files.items():
        try:
            os.link(folder / source, staged / name)
        except OSError:  # a file system without hard links
            shutil.copyfile(folder / source, staged / name)
