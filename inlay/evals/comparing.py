"""From two references to a Difference, by reading what the registry keeps. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from inlay.errors import InputError, IntegrityError
from inlay.evals.difference import Change, Difference, How, MemberChange, Said, Side, Standing
from inlay.evals.score_changes import score_changes
from inlay.registry.journal import Event
from inlay.registry.lookup import children
from inlay.registry.names import DEFAULT_ALIAS
from inlay.registry.records import Lock, Member, Version

if TYPE_CHECKING:
    from inlay.registry import Registry

T = TypeVar("T")

CONFIG = "adapter_config.json"
RUN_KEYS = ("dataset", "settings", "declared", "steps", "tokens", "general_prompts", "seconds", "versions")
"""What is compared of a training record: neither its curve nor the prompts kept for routers."""
LET_GO = ("retired", "purged")
"""States in which a version's bytes may be gone on purpose."""


def difference(a: str | Version | Lock, b: str | Version | Lock, *, store: Registry) -> Difference:
    """What differs from `a` to `b`, two versions or two locks, without the norms of their deltas.

    Raises InputError for a version against a lock, ReferenceNotFound, IntegrityError for bytes that are not
    what they were.
    """
    first, second = resolved(a, b, store)
    notes: list[str] = []
    journals = {name: store.journal(name) for name in dict.fromkeys((first.name, second.name))}
    known: dict[str, Any] = {
        "a": _side(store, first, journals[first.name]),
        "b": _side(store, second, journals[second.name]),
        "base": tuple(changes(_base(first), _base(second))),
        "standings": tuple(_standings(store, second, journals[second.name])),
        "said": tuple(_said({first.ref, second.ref}, journals.values())),
    }
    if isinstance(first, Version) and isinstance(second, Version):
        known |= _versions(store, first, second, notes)
    elif isinstance(first, Lock) and isinstance(second, Lock):
        known |= {
            "members": tuple(member_changes(first, second)),
            "recipe": tuple(recipe_changes(first, second)),
        }
    if first.digest != second.digest:
        compared, left = score_changes(store, first.digest, second.digest, labels=(first.ref, second.ref))
        known |= {"scores": compared, "not_comparable": left}
    return Difference(**known, notes=tuple(notes))


def resolved(
    a: str | Version | Lock, b: str | Version | Lock, store: Registry
) -> tuple[Version, Version] | tuple[Lock, Lock]:
    """Both sides, if they can be compared; InputError otherwise."""
    first = store.resolve(a) if isinstance(a, str) else a
    second = store.resolve(b) if isinstance(b, str) else b
    if isinstance(first, Version) and isinstance(second, Version):
        return first, second
    if isinstance(first, Lock) and isinstance(second, Lock):
        return first, second
    version, lock = (first, second) if isinstance(first, Version) else (second, first)
    raise InputError(
        f"two versions or two locks are compared, {version.ref} is a version and {lock.ref} a lock",
        fix=f"name a lock beside {lock.ref}, or one of its members beside {version.ref}",
    )


def changes(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> Iterator[Change]:
    """What differs between two JSON objects, key by key in alphabetical order, inner objects as "outer.key".

    Lists of texts are sets of names: their order says nothing. A key that is not there and one that holds
    null are the same, since PEFT writes null for what it does not use.
    """
    for key in sorted({*before, *after}):
        old, new, what = before.get(key), after.get(key), f"{prefix}{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from changes(old, new, f"{what}.")
        elif not _equal(old, new):
            if isinstance(old, Mapping | None) and isinstance(new, Mapping | None):
                yield from changes(old or {}, new or {}, f"{what}.")
            else:
                how: How = "added" if old is None else "removed" if new is None else "changed"
                yield Change(what, how, old, new)


def member_changes(first: Lock, second: Lock) -> list[MemberChange]:
    """Every member of either lock, those of both matched: by name, at the same place where there is one."""
    left = list(second.members)
    pairs: dict[str, Member] = {}
    for same_place in (True, False):
        for member in first.members:
            if member.path in pairs:
                continue
            match = next(
                (m for m in left if m.name == member.name and (m.path == member.path or not same_place)), None
            )
            if match is not None:
                left.remove(match)
                pairs[member.path] = match
    found = [MemberChange(m.name, m, pairs.get(m.path)) for m in first.members]
    return found + [MemberChange(m.name, None, m) for m in left]


def _equal(old: Any, new: Any) -> bool:
    if _names(old) and _names(new):
        return sorted(old) == sorted(new)
    if isinstance(old, bool) or isinstance(new, bool):
        return old is new
    return bool(old == new)


def _names(value: Any) -> bool:
    return (
        isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(x, str) for x in value)
    )


def _side(store: Registry, thing: Version | Lock, events: Sequence[Event]) -> Side:
    live = [alias for alias in _aliases(events) if _points_to(store, thing, alias)]
    return Side(
        ref=thing.ref,
        digest=thing.digest,
        kind="version" if isinstance(thing, Version) else "lock",
        state=thing.state,
        base=thing.base.name,
        created=thing.created,
        author=thing.author,
        why=thing.why,
        live_in=tuple(f"{thing.name}@{alias}" for alias in live),
        dataset=dataset_of(store, thing) if isinstance(thing, Version) else None,
    )


def _aliases(events: Sequence[Event]) -> list[str]:
    """Every alias of a name's journal, guarded or moved, in alphabetical order."""
    return sorted({event.alias for event in events if event.alias is not None})


def _points_to(store: Registry, thing: Version | Lock, alias: str) -> bool:
    current = store.current(thing.name, alias)
    return current is not None and current.ref == thing.ref


def _base(thing: Version | Lock) -> dict[str, Any]:
    base = thing.base
    return {"name": base.name, "weights": base.weights, "prompt": base.prompt, "revision": base.revision}


def _versions(store: Registry, first: Version, second: Version, notes: list[str]) -> dict[str, Any]:
    """The fields of a Difference that two versions have; what cannot be compared goes into `notes`."""
    both = (first, second)
    configurations = [kept(version, partial(_configuration, store, version)) for version in both]
    files = [kept(version, partial(_files, store, version)) for version in both]
    runs = [_run(store, version) for version in both]
    for version, held, run in zip(both, files, runs, strict=True):
        if held is None:
            notes.append(
                f"{version.ref} was {version.state}, its bytes are gone: its files cannot be compared"
            )
        elif run is None:
            notes.append(f"{version.ref} has no training record: its data cannot be compared")
    return {
        "adapter": tuple(changes(_adapter(first), _adapter(second))),
        "configuration": _both(configurations),
        "files": _both(files),
        "data": _both(runs),
        "lineage": tuple(changes(first.lineage or {}, second.lineage or {})),
    }


def _both(sides: Sequence[Mapping[str, Any] | None]) -> tuple[Change, ...]:
    """What differs between two sides; nothing where one is not known."""
    before, after = sides
    return tuple(changes(before, after)) if before is not None and after is not None else ()


def kept(version: Version | Lock, read: Callable[[], T]) -> T | None:
    """What `read` gives; None where the version's bytes were let go. IntegrityError if they should be
    there."""
    try:
        return read()
    except IntegrityError:
        if version.state in LET_GO:
            return None
        raise


def _configuration(store: Registry, version: Version) -> dict[str, Any]:
    return json.loads(store.read_file(version, CONFIG))


def dataset_of(store: Registry, version: Version) -> Mapping[str, Any] | None:
    """Name, rows and digest of what a version was trained on; None where no record says."""
    return (_run(store, version) or {}).get("dataset")


def _files(store: Registry, version: Version) -> dict[str, str]:
    """{path: digest}, out of the manifest, which is the object that a version's digest is of."""
    return {file["path"]: file["sha256"] for file in json.loads(store.get_object(version.digest))}


def _run(store: Registry, version: Version) -> dict[str, Any] | None:
    """What is compared of the training record; None where there is none."""
    run = kept(version, partial(store.run_of, version))
    if run is None:
        return None
    compared = {key: run[key] for key in RUN_KEYS if key in run}
    declared = compared.get("declared")
    if isinstance(declared, Mapping):
        compared["declared"] = {key: _by_name(value) for key, value in declared.items()}
    return compared


def _by_name(suites: Any) -> Any:
    """{name: digest} of a list of declared suites; anything else as it is."""
    if isinstance(suites, list) and all(
        isinstance(s, Mapping) and {"name", "digest"} <= s.keys() for s in suites
    ):
        return {str(suite["name"]): suite["digest"] for suite in suites}
    return suites


def _adapter(version: Version) -> dict[str, Any]:
    return {
        "kind": version.kind,
        "rank": version.rank,
        "exactness": version.exactness,
        "targets": list(version.targets),
        "parameters": version.parameters,
        "bytes": version.size,
        "licence": version.licence,
        "notes": list(version.notes),
        "base mismatch": version.base_mismatch,
    }


def recipe_changes(first: Lock, second: Lock) -> Iterator[Change]:
    """What differs in operators, methods, parameters and guards, by the place in the tree."""
    before, after = dict(_nodes(first.tree)), dict(_nodes(second.tree))
    for path in sorted({*before, *after}):
        yield from changes(before.get(path, {}), after.get(path, {}), f"at place {path}: " if path else "")
    yield from changes({"guard": first.guard or {}}, {"guard": second.guard or {}})


def _nodes(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, what the operator there does) of every node that is no member; operators are left out of the
    place, so that a stack that became a route is one change."""
    if "use" in node:
        return
    operator = next(key for key in ("stack", "merge", "route") if key in node)
    said = {key: value for key, value in node.items() if key not in (operator, "name", "lock")}
    if operator == "route":
        said |= {key: value for key, value in node["route"].items() if key != "experts"}
    yield path, {"operator": operator, "weight": 1.0, "variant": node.get("name"), **said}
    for step, child in children(node):
        index = step.rpartition(".")[2]
        yield from _nodes(child, f"{path}.{index}" if path else index)


def _standings(store: Registry, thing: Version | Lock, events: Sequence[Event]) -> Iterator[Standing]:
    """What the judge says now for every alias that asks something of `thing`; a lock's own guard asks it of
    all its aliases, of `prod` before it has any."""
    for alias in _aliases(events) or [DEFAULT_ALIAS]:
        guarded = store.guard(thing.name, alias) is not None or (isinstance(thing, Lock) and thing.guard)
        if not guarded:
            continue
        if thing.state != "active":
            yield Standing(alias, None, f"{thing.ref} is {thing.state} and cannot be promoted")
        else:
            yield Standing(alias, store.verdict(thing.ref, alias))


def _said(refs: set[str], journals: Iterable[Sequence[Event]]) -> Iterator[Said]:
    """The verdicts about `refs` that the journal keeps, newest first."""
    events = [event for events in journals for event in events]
    for event in sorted(events, key=lambda event: -event.seq):
        if event.verdict is not None and event.to_ref in refs:
            yield Said(
                seq=event.seq,
                at=event.at,
                alias=f"{event.name}@{event.alias}",
                ref=event.to_ref,
                passed=bool(event.verdict.get("passed")),
                forced=event.forced,
                reasons=tuple(map(str, event.verdict.get("reasons", ()))),
            )
