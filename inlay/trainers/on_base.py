"""What hangs on a base: which versions must be trained again when it is replaced, which of them a command
trains again, and which locks have to be made anew. By the base's weights, whatever it is called.

Reads the registry only; imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from inlay.errors import InputError
from inlay.registry import BaseRef, Lock, Registry, Version
from inlay.registry.fingerprint import BaseFingerprint
from inlay.trainers import kept_data

_DIGITS = 8
"""Hex digits of a base's digest that are enough to name it."""

How = Literal["done", "record", "by hand"]


@dataclass(frozen=True)
class Hanging:
    """A version for the base. `live`: its own aliases; `serving`: live aliases of variants that contain it;
    `locks`: locks in use that contain it.

    `needed`: something live is or contains it, it is the newest of its name, or one that is needed was
    trained on from it. `how`: trained again already (`again` names what came of it), by its record, or by
    hand. `parent`: what it was trained on from; `start`: what that is on another base, None where it is not
    there yet.
    """

    ref: str
    digest: str
    kind: str
    live: tuple[str, ...]
    serving: tuple[str, ...]
    locks: tuple[str, ...]
    needed: bool
    how: How
    again: str | None
    dataset: Mapping[str, Any] | None
    rows_kept: bool
    parent: str | None
    start: str | None

    def command(self, base: str = "NEW") -> str | None:
        """What trains it again on `base`; None where nothing has to, or can. DATA stands for the file,
        VERSION for what is not there yet."""
        if self.how != "record":
            return None
        data = [] if self.rows_kept else ["DATA"]
        start = [] if self.parent is None else ["--from", self.start or "VERSION"]
        return " ".join(["inlay train", *data, "--rebase", self.ref, "--base", base, *start])


@dataclass(frozen=True)
class HangingLock:
    """A variant's lock for the base, the aliases that point to it, and its members."""

    ref: str
    digest: str
    live: tuple[str, ...]
    members: tuple[str, ...]


@dataclass(frozen=True)
class OnBase:
    """All that is for one base, versions and locks that were not taken back."""

    base: BaseRef
    versions: tuple[Hanging, ...]
    locks: tuple[HangingLock, ...]

    @property
    def needed(self) -> tuple[Hanging, ...]:
        """The versions that must be trained again or are, in an order in which that can be done."""
        return tuple(version for version in self.versions if version.needed)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "base": {key: getattr(self.base, key) for key in ("name", "weights", "prompt", "source")},
            "versions": [{**asdict(v), "command": v.command()} for v in self.versions],
            "locks": [asdict(lock) for lock in self.locks],
        }


def base_in(store: Registry, named: str) -> BaseRef:
    """The base that is meant: a folder, `sha256:…` of its weights (8 digits or more), the name or hub id
    under which the registry knows it, or else a hub id.

    Raises InputError where a name or a few digits are those of several bases.
    """
    known = store.bases()
    if Path(named).expanduser().is_dir():
        return _seen(known, BaseFingerprint.of(named))
    if named.startswith("sha256:"):
        if len(named) < len("sha256:") + _DIGITS:
            raise InputError(f"a digest is named by {_DIGITS} digits or more, and {named} has fewer")
        found = [base for base in known if base.weights.startswith(named)]
        if not found:
            raise InputError(f"nothing here is for a base with the weights {named}", fix="see `inlay ls`")
    else:
        found = [base for base in known if named in (base.name, base.source)]
    if len({base.weights for base in found}) > 1:
        digests = ", ".join(sorted({base.weights[:19] for base in found}))
        raise InputError(f"{named} is the name of several bases", fix=f"name one of {digests}, or its folder")
    return found[0] if found else _seen(known, BaseFingerprint.of(named))


def _seen(known: Sequence[BaseRef], base: BaseFingerprint) -> BaseRef:
    made = BaseRef(base.weights, base.prompt, base.name, base.revision, base.source)
    return next((each for each in known if each.weights == base.weights), made)


def on_base(store: Registry, base: str | BaseRef) -> OnBase:
    """What hangs on `base`, named as for `base_in`."""
    found = base_in(store, base) if isinstance(base, str) else base
    made, locked = store.made_for(found.weights)
    versions = [version for version in made if version.state == "active"]
    locks = [lock for lock in locked if lock.state == "active"]
    names = {version.name for version in versions} | {lock.name for lock in locks}
    live = {name: store.aliases(name) for name in names}

    def live_as(thing: Version | Lock) -> tuple[str, ...]:
        return tuple(f"{thing.name}@{alias}" for alias, ref in live[thing.name].items() if ref == thing.ref)

    runs = {version.ref: store.run_of(version) or {} for version in versions}
    again = {old: new for name in names for old, new in _again(store, name).items()}
    newest = {version.name: version.ref for version in versions}
    serving = {v.ref: tuple(d.ref for d in store.dependents(v)) for v in versions}
    needed = {v.ref for v in versions if live_as(v) or serving[v.ref] or newest[v.name] == v.ref}
    needed |= {parent for ref in needed for parent in _parents(ref, runs)}
    hanging = []
    for version in sorted(versions, key=lambda version: len(_parents(version.ref, runs))):
        run, data = runs[version.ref], kept_data.kept(store, version)
        parent = next(iter(_parents(version.ref, runs)), None)
        hanging.append(
            Hanging(
                ref=version.ref,
                digest=version.digest,
                kind=version.kind,
                live=live_as(version),
                serving=serving[version.ref],
                locks=tuple(lock.ref for lock in locks if version.ref in {m.ref for m in lock.members}),
                needed=version.ref in needed,
                how="done" if version.ref in again else _how(version.ref, runs),
                again=again.get(version.ref),
                dataset=run.get("dataset"),
                rows_kept=data is not None and data.rows is not None,
                parent=parent,
                start=None if parent is None else again.get(parent),
            )
        )
    return OnBase(
        found,
        tuple(hanging),
        tuple(
            HangingLock(lock.ref, lock.digest, live_as(lock), tuple(m.ref for m in lock.members))
            for lock in locks
        ),
    )


def _again(store: Registry, name: str) -> dict[str, str]:
    """{a version: the newest that is it trained again}, of one name."""
    events = store.journal(name)[::-1]
    return {
        str(e.detail["rebased"]): str(e.to_ref) for e in events if e.verb == "add" and "rebased" in e.detail
    }


def _parents(ref: str, runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a version was trained on from, the nearest first, also where it is not among `runs`."""
    found: list[str] = []
    while (parent := (runs.get(ref, {}).get("parent") or {}).get("ref")) is not None and parent not in found:
        found.append(parent)
        ref = parent
    return found


def _how(ref: str, runs: Mapping[str, Mapping[str, Any]]) -> How:
    """By its record, where it and all that it was trained on from have one here."""
    recorded = all("settings" in runs.get(each, {}) for each in (ref, *_parents(ref, runs)))
    return "record" if recorded else "by hand"
