"""Letting bytes go: retire what never was live, purge what the law says must go. Numbers are never reused.

Both are journal rows; the record of a version or lock, its number and its scores stay for ever. What was
retired loses its claim on its objects and `gc` takes them in its time. What was purged loses its bytes now.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from inlay.errors import Conflict, InputError, StoreBusy
from inlay.registry import journal, locking, lookup
from inlay.registry.canonical import PREFIX
from inlay.registry.ingest import WEIGHTS
from inlay.registry.names import parse_reference
from inlay.registry.records import Lock, Version
from inlay.registry.store import Store

_KEPT = "(name, number) NOT IN (SELECT name, from_number FROM journal WHERE verb IN ('retire', 'purge'))"
_CLAIMS = f"""
    WITH asked (digest) AS (SELECT value FROM json_each(?1)), kept AS (SELECT * FROM versions WHERE {_KEPT})
    SELECT digest, name || '@v' || number AS ref FROM kept WHERE digest IN asked
    UNION ALL SELECT run, name || '@v' || number FROM kept WHERE run IN asked
    UNION ALL SELECT f.digest, v.name || '@v' || v.number FROM version_files f
        JOIN kept v ON v.id = f.version WHERE f.digest IN asked
    UNION ALL SELECT tensors, 'the base ' || name FROM bases WHERE tensors IN asked
    UNION ALL SELECT items, 'the suite ' || name FROM suites WHERE items IN asked"""

_PURGED = "(SELECT from_digest FROM journal WHERE verb IN ('yank', 'retire', 'purge') AND verb = 'purge')"
_OWN_REPORTS = f"""
    SELECT object FROM reports WHERE subject = ?1 AND object NOT IN
        (SELECT object FROM reports WHERE subject <> ?1 AND subject NOT IN {_PURGED})"""
_OTHERS_WITH_RUN = f"SELECT 1 FROM versions WHERE run = ? AND digest <> ? AND digest NOT IN {_PURGED} LIMIT 1"


def retire(store: Store, refs: Sequence[str], *, why: str, dry_run: bool, who: str) -> list[journal.Event]:
    """See `Registry.retire`."""
    _need(refs, why, "retired")
    events = []
    with store.db.transaction(dry_run=dry_run):
        things = [_exact(store, ref) for ref in dict.fromkeys(refs)]
        leaving = {(thing.name, thing.number) for thing in things}
        for thing in things:
            if thing.state in ("retired", "purged"):
                continue
            lived = store.db.row(
                "SELECT alias, at FROM journal WHERE moves = 1 AND name = ? AND to_number = ? LIMIT 1",
                [thing.name, thing.number],
            )
            if lived is not None:
                raise Conflict(
                    f"{thing.ref} was live as {thing.name}@{lived['alias']} on {lived['at'][:10]}, "
                    "and what was live is kept",
                    fix="yank it, so that it never is again; `inlay purge` erases what the law says must go",
                )
            _refuse_needed(store, thing, leaving)
            events.append(_append(store, "retire", thing, why, who, {}))
    return events


def purge(store: Store, refs: Sequence[str], *, why: str, dry_run: bool, who: str) -> list[journal.Event]:
    """See `Registry.purge`."""
    _need(refs, why, "purged")
    events, gone = [], []
    with store.db.transaction(dry_run=dry_run):
        things = [_exact(store, ref) for ref in dict.fromkeys(refs)]
        leaving = {(thing.name, thing.number) for thing in things}
        for thing in things:
            if thing.state == "purged":
                gone.append(thing)
                continue
            _refuse_live(store, thing)
            if isinstance(thing, Version):
                _refuse_shared(store, thing, leaving)
            detail = {"erased": _own_objects(store, thing)}
            events.append(_append(store, "purge", thing, why, who, detail))
            gone.append(thing)
    if not dry_run:  # the tombstone is written: what a kill leaves lying now, `gc` finds and takes
        erase(store, gone)
    return events


def refuse_needed_here(store: Store, things: Sequence[Version | Lock], needed: Mapping[str, str]) -> None:
    """Conflict where things that were retired or purged in another store are needed by something of this one:
    what `retire` and `purge` refuse. `needed` is what was `referenced` before. Inside a transaction that has
    written their rows already.
    """
    for thing in things:
        if thing.state != "purged":
            _refuse_needed(store, thing, set())
            continue
        _refuse_live(store, thing)
        if isinstance(thing, Version):
            _refuse_shared(store, thing, set())
    gone = erased(store)
    claims = _claims(store, [d for d in gone if d in needed])
    for digest, ref in claims.items():
        if gone[digest] in {thing.ref for thing in things}:
            raise Conflict(
                f"{ref} needs bytes that were purged as {gone[digest]} ({digest})",
                fix=f"purge {ref} first, if the law says so here as well",
            )


def erased(store: Store) -> dict[str, str]:
    """Digest -> ref, of the bytes that were purged and must not be in the store."""
    found = {}
    # In the words of the index journal_states, and with +seq, so that it is that which is gone through.
    for row in store.db.rows(
        "SELECT from_ref, detail FROM journal WHERE verb IN ('yank', 'retire', 'purge') AND verb = 'purge'"
        " ORDER BY +seq"
    ):
        found.update(dict.fromkeys(json.loads(row["detail"])["erased"], row["from_ref"]))
    return found


def refuse_erased(store: Store, digests: Sequence[str]) -> None:
    """InputError if one of `digests` was purged: such bytes stay out, under any name."""
    gone = erased(store)
    ref = next((gone[digest] for digest in digests if digest in gone), None)
    if ref is not None:
        name, _, number = ref.rpartition("@v")
        row = store.db.row(
            "SELECT who, at, why FROM journal WHERE verb = 'purge' AND name = ? AND from_number = ?",
            [name, int(number)],
        )
        assert row is not None
        raise InputError(
            f"these bytes were purged as {ref} by {row['who']} on {row['at'][:10]} ({row['why'][:200]}), "
            "they may not come back",
            fix="train it again without what had to go",
        )


def _exact(store: Store, ref: str) -> Version | Lock:
    if parse_reference(ref).kind == "alias":
        raise InputError(f"an exact version is meant here, {ref!r} is an alias", fix="write name@v3")
    return lookup.resolve(store, ref)


def _append(
    store: Store, verb: str, thing: Version | Lock, why: str, who: str, detail: dict[str, Any]
) -> journal.Event:
    target = journal.Target(thing.number, thing.ref, thing.digest)
    return journal.append(
        store.db, who=who, verb=verb, name=thing.name, before=target, why=why, detail=detail
    )


def _refuse_needed(store: Store, thing: Version | Lock, leaving: set[tuple[str, int]]) -> None:
    for lock in _locks_with(store, thing):
        if lock.state not in ("retired", "purged") and (lock.name, lock.number) not in leaving:
            raise Conflict(
                f"{thing.ref} is in {lock.ref}, which could not be loaded without it",
                fix=f"retire {lock.ref} with it",
            )


def _refuse_live(store: Store, thing: Version | Lock) -> None:
    moves = journal.live(store.db, [thing.name]).get(thing.name, {})
    live = [f"{thing.name}@{alias}" for alias, move in moves.items() if move.to_number == thing.number]
    live += [dependent.ref for dependent in locking.dependents(store, thing)]
    if live:
        raise Conflict(
            f"{thing.ref} is live in {', '.join(live[:8])}{' …' if len(live) > 8 else ''}",
            fix=f"take it out first: `inlay yank {thing.ref} --rollback-dependents --why …`",
        )


def _refuse_shared(store: Store, thing: Version, leaving: set[tuple[str, int]]) -> None:
    """The weights must be gone for good, so everything that has them must go together."""
    others = store.db.rows(
        "SELECT DISTINCT v.name, v.number FROM version_files f JOIN version_files g ON g.digest = f.digest"
        " JOIN versions v ON v.id = g.version WHERE f.path = ? AND f.version ="
        " (SELECT id FROM versions WHERE name = ? AND number = ?)",
        [WEIGHTS, thing.name, thing.number],
    )
    for row in others:
        other = lookup.by_number(store, row["name"], row["number"])
        if (row["name"], row["number"]) not in leaving and other is not None and other.state != "purged":
            raise Conflict(
                f"{other.ref} has the weights of {thing.ref} too, which would stay in the store",
                fix=f"purge both: `inlay purge {thing.ref} {other.ref} --why …`",
            )


def _own_objects(store: Store, thing: Version | Lock) -> list[str]:
    """The objects that are this thing and nobody else's: weights, manifest, training record, reports. What
    only others have that were purged before is nobody else's.
    """
    own = {row["object"] for row in store.db.rows(_OWN_REPORTS, [thing.digest])}
    if isinstance(thing, Version):
        own.add(thing.digest)
        own.update(row["digest"] for row in _files(store, thing) if row["path"] == WEIGHTS)
        run = thing.run
        if run is not None and store.db.row(_OTHERS_WITH_RUN, [run, thing.digest]) is None:
            own.add(run)
    return sorted(own)


def erase(store: Store, things: Sequence[Version | Lock]) -> None:
    """Unlink what the purged things had and nothing else needs, and every folder made from them."""
    from inlay.registry.upkeep import referenced

    with store.db.transaction():  # no registration may come to need one of these files meanwhile
        wanted = referenced(store)
        for thing in things:
            digests = set(_own_objects(store, thing))
            if isinstance(thing, Version):
                digests.update(row["digest"] for row in _files(store, thing))
            else:
                digests.update(locking.routers_of(thing.tree))
            folders = [thing.digest, *(lock.digest for lock in _locks_with(store, thing))]
            try:
                for digest in digests - wanted.keys():
                    store.objects.path(digest).unlink(missing_ok=True)
                for digest in folders:
                    folder = store.path / "exports" / digest[len(PREFIX) :]
                    if folder.exists():
                        shutil.rmtree(folder)
            except OSError as error:
                raise StoreBusy(
                    f"{thing.ref} is purged, but a file of it could not be removed: {error.strerror}",
                    fix="mend that and run `inlay gc`, which removes it",
                ) from None


def _claims(store: Store, digests: Sequence[str]) -> dict[str, str]:
    """Digest -> what needs it, of those of `digests` that something needs which was neither retired nor
    purged.
    """
    wanted = [json.dumps(list(digests))]
    claims = {row["digest"]: row["ref"] for row in store.db.rows(_CLAIMS, wanted)}
    routed = f"SELECT name, number, tree FROM locks WHERE tree LIKE '%\"router\"%' AND {_KEPT}"
    for row in store.db.rows(routed):
        for digest in locking.routers_of(json.loads(row["tree"])):
            if digest in digests:
                claims[digest] = f"{row['name']}@v{row['number']}"
    return claims


def _files(store: Store, thing: Version) -> list[Any]:
    return store.db.rows(
        "SELECT f.path, f.digest FROM version_files f JOIN versions v ON v.id = f.version"
        " WHERE v.name = ? AND v.number = ?",
        [thing.name, thing.number],
    )


def _locks_with(store: Store, thing: Version | Lock) -> list[Lock]:
    """Every lock that contains `thing`, at any depth."""
    column, table = ("version", "versions") if isinstance(thing, Version) else ("used_lock", "locks")
    rows = store.db.rows(
        f"SELECT DISTINCT m.lock FROM lock_members m JOIN {table} t ON t.id = m.{column}"
        " WHERE t.name = ? AND t.number = ? ORDER BY m.lock",
        [thing.name, thing.number],
    )
    return [lookup.lock_by_id(store, row["lock"]) for row in rows]


def _need(refs: Sequence[str], why: str, what: str) -> None:
    if not refs:
        raise InputError(f"nothing was named to be {what}", fix="name one or more exact versions")
    if not why.strip():
        raise InputError("a reason that others can read later is needed", fix="give why")
