"""A version, or a variant's export, becomes a commit on the hub, with a card that says what it scored.

The hub's own client sends: what it has already is not sent again, and a commit that would change nothing is
not made.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inlay.errors import InputError, IntegrityError
from inlay.evals.forgetting import ForgettingReport
from inlay.hub import card, record
from inlay.hub.fetching import TIMEOUT, bars, endpoint
from inlay.registry import Lock, Registry, Version, canonical, digest_of
from inlay.registry.hub import explained, is_repo_id
from inlay.registry.ingest import CONFIG, TAKEN
from inlay.registry.printable import printable

_MESSAGE = 200  # characters of a commit's first line


@dataclass(frozen=True)
class Pushed:
    """What is on the hub now. `changed` is False where it was there already and no commit was made; `files`
    are the names in the repository; `notes` what its owner should know."""

    ref: str
    repo: str
    commit: str
    url: str
    files: tuple[str, ...]
    nbytes: int
    changed: bool
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As `inlay push --json` prints it."""
        return asdict(self)


def push(
    ref: str | Version | Lock,
    repo: str,
    *,
    store: Registry | str | Path | None = None,
    private: bool = False,
    message: str | None = None,
    revision: str = "main",
    progress: bool = False,
) -> Pushed:
    """Send what `ref` means to the hub's repository `repo` (owner/name), made where it is missing.

    A version goes as it is: its verified files, byte for byte. A variant is exported first (`inlay.export`),
    so a route is refused by name. Beside it go a model card (README.md; a version's own becomes
    ORIGINAL_CARD.md) and inlay.json. `private` applies to a repository that is made by this call. A push
    that was cut goes on: what the hub has is not sent again. Raises ReferenceNotFound, InputError (yanked,
    no right, not logged in), IntegrityError, StoreBusy (network, somebody else's commit at the same time).
    """
    if "/" not in repo or not is_repo_id(repo):
        raise InputError(f"a push needs owner/name, got {ascii(repo)[:80]}", fix="write it like org/name")
    registry = store if isinstance(store, Registry) else Registry.open(store)
    target = registry.resolve(ref) if isinstance(ref, str) else ref
    if target.state in ("yanked", "purged"):
        raise InputError(f"{target.ref} is {target.state} and is not handed on", fix="push another version")
    with _adapter(target, registry) as folder:
        files = _composed(target, registry, repo, folder)
        said = message or f"{target.ref}: {target.why}" if target.why else message or target.ref
        said = printable(" ".join(said.split()))[:_MESSAGE] or target.ref
        with bars(progress):
            commit, changed, notes = _send(repo, files, said, revision, private)
        return Pushed(
            ref=target.ref,
            repo=repo,
            commit=commit,
            url=f"{endpoint()}/{repo}/commit/{commit}",
            files=tuple(sorted(files)),
            nbytes=sum(len(f) if isinstance(f, bytes) else f.stat().st_size for f in files.values()),
            changed=changed,
            notes=(*_telling(folder / CONFIG), *notes),
        )


@contextmanager
def _adapter(target: Version | Lock, registry: Registry) -> Iterator[Path]:
    """A folder with the adapter's files: the version's own, verified, or the variant's export."""
    if isinstance(target, Version):
        yield target.path
        return
    from inlay.composer.export import export

    with tempfile.TemporaryDirectory(prefix="inlay-push-") as temporary:
        yield export(target, Path(temporary) / "adapter", store=registry).folder


def _composed(target: Version | Lock, registry: Registry, repo: str, folder: Path) -> dict[str, Path | bytes]:
    """Everything to send: name in the repository -> file, or the bytes we wrote."""
    manifest = record.manifest_of(folder)
    if isinstance(target, Version) and digest_of(canonical(manifest)) != target.digest:
        raise IntegrityError(f"the files of {target.ref} are not those of its digest", fix="run `inlay fsck`")
    evals = card.newest_per_suite(registry.evals(target.digest, base_weights=target.base.weights))
    kept = next(iter(registry.reports(target.digest, "forgetting", limit=1)), None)
    report = ForgettingReport.from_dict(kept) if kept is not None else None
    files: dict[str, Path | bytes] = {entry["path"]: folder / entry["path"] for entry in manifest}
    own_card = files.pop("README.md", None)
    if own_card is not None:
        files[record.ORIGINAL_CARD] = own_card
    readme = card.render(
        target,
        registry,
        repo=repo,
        config=json.loads((folder / CONFIG).read_bytes()),
        manifest=manifest,
        evals=evals,
        report=report,
        original_card=record.ORIGINAL_CARD if own_card is not None else None,
    )
    files["README.md"] = readme.encode()
    files[record.FILE] = record.write(target, manifest, evals, report).encode()
    return files


def _send(
    repo: str, files: dict[str, Path | bytes], message: str, revision: str, private: bool
) -> tuple[str, bool, list[str]]:
    """(commit, whether it is new, the hub's warnings)."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, what = HfApi(library_name="inlay"), f"cannot push to {repo} on the hub"
    ours = {*TAKEN, record.FILE, record.ORIGINAL_CARD}
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            api.create_repo(repo, private=private or None, exist_ok=True)
            if revision != "main":
                api.create_branch(repo, branch=revision, exist_ok=True)
            before = api.model_info(repo, revision=revision, timeout=TIMEOUT)
            there = {sibling.rfilename for sibling in before.siblings or ()}
            made = api.create_commit(
                repo,
                [
                    *(CommitOperationAdd(name, source) for name, source in sorted(files.items())),
                    *(CommitOperationDelete(name) for name in sorted((there & ours) - files.keys())),
                ],
                commit_message=message,
                revision=revision,
                parent_commit=before.sha,
            )
        except Exception as error:
            raise explained(error, what) from None
    notes = [printable(" ".join(str(w.message).split()))[:300] for w in heard if w.category is UserWarning]
    return made.oid, made.oid != before.sha, notes


def _telling(config: Path) -> list[str]:
    """A note where the configuration, which goes as it is, names a folder of the machine it was made on."""
    base = json.loads(config.read_bytes()).get("base_model_name_or_path")
    if isinstance(base, str) and (base.startswith(("/", "~", ".")) or "\\" in base):
        return [f"{CONFIG} goes as it is, and names the folder of the base: {printable(base)[:120]}"]
    return []
