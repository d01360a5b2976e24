"""From references to records. Resolving is one indexed SELECT: the alias's newest move, joined with what it
names.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from inlay.errors import InputError, ReferenceNotFound
from inlay.registry import journal
from inlay.registry.canonical import moment
from inlay.registry.names import Reference, check_name, close_to, parse_reference
from inlay.registry.printable import printable
from inlay.registry.records import BaseRef, Lock, Member, State, Version
from inlay.registry.store import Files, Store

NEIGHBOURS = 200  # on either side, looked through for the name that somebody may have meant

_VERSION = (
    "id", "name", "number", "digest", "kind", "rank", "targets", "parameters", "exactness", "size",
    "trained_on", "mismatch", "run", "lineage", "notes", "author", "why", "created", "licence", "card",
)  # fmt: skip
_LOCK = (
    "id", "name", "number", "digest", "recipe", "tree", "guard", "provenance", "author", "why", "created",
)  # fmt: skip
_STATES: tuple[State, ...] = ("active", "yanked", "retired", "purged")
_BASE = ("weights", "prompt", "name", "revision", "source")

# Where these lie in a row. Asked for by name, sqlite3.Row compares its way through forty names each time,
# which was half of what a listing cost.
_AT_LOCK = len(_VERSION)
_AT_BASE = _AT_LOCK + len(_LOCK)
_AT_STATE = _AT_BASE + len(_BASE)

COLUMNS = ", ".join(
    [f"v.{c} AS v_{c}" for c in _VERSION]
    + [f"l.{c} AS l_{c}" for c in _LOCK]
    + [f"b.{c} AS b_{c}" for c in _BASE]
    + [
        "(SELECT max(CASE y.verb WHEN 'purge' THEN 3 WHEN 'retire' THEN 2 ELSE 1 END) FROM journal y"
        " WHERE y.verb IN ('yank', 'retire', 'purge') AND y.name = coalesce(v.name, l.name)"
        " AND y.from_number = coalesce(v.number, l.number)) AS state"
    ]
)
_BASES = "LEFT JOIN bases b ON b.id = coalesce(v.base, l.base)"
_BY_ALIAS = f"""
    SELECT {COLUMNS}, j.verb AS j_verb, j.at AS j_at, j.who AS j_who, j.why AS j_why
    FROM journal j
    LEFT JOIN versions v ON v.name = j.name AND v.number = j.to_number
    LEFT JOIN locks l ON l.name = j.name AND l.number = j.to_number
    {_BASES}
    WHERE j.moves = 1 AND j.name = ? AND j.alias = ?"""
_NEWEST = " ORDER BY j.seq DESC LIMIT 1"
_BY_NUMBER = f"""
    SELECT {COLUMNS} FROM names n
    LEFT JOIN versions v ON v.name = n.name AND v.number = ?
    LEFT JOIN locks l ON l.name = n.name AND l.number = ?
    {_BASES} WHERE n.name = ?"""
_VERSIONS = f"SELECT {COLUMNS} FROM versions v LEFT JOIN locks l ON l.id = NULL {_BASES}"
_LOCKS = f"SELECT {COLUMNS} FROM locks l LEFT JOIN versions v ON v.id = NULL {_BASES}"


def resolve(store: Store, ref: str, *, at: str | datetime | None = None) -> Version | Lock:
    """What `ref` means, now or at a past moment. ReferenceNotFound, with close names, if it means nothing."""
    reference = parse_reference(ref)
    when = moment(at) if at is not None else None
    if reference.kind == "digest":
        found = _by_digest(store, reference)
    elif reference.kind == "number":
        row = store.db.row(_BY_NUMBER, [reference.number, reference.number, reference.name])
        found = item(store, row) if row is not None else None
    else:
        return _by_alias(store, reference, when)
    if found is None or (when is not None and found.created > when):
        raise _not_found(store, reference, when)
    return found


def _by_alias(store: Store, reference: Reference, when: str | None) -> Version | Lock:
    if when is None:
        row = store.db.row(_BY_ALIAS + _NEWEST, [reference.name, reference.value])
    else:
        row = store.db.row(_BY_ALIAS + " AND j.at <= ?" + _NEWEST, [reference.name, reference.value, when])
    if row is None:
        raise _not_found(store, reference, when)
    found = item(store, row)
    if found is None:
        why = f": {row['j_why']}" if row["j_why"] else ""
        raise ReferenceNotFound(
            printable(f"{reference} was disabled by {row['j_who']} on {row['j_at'][:19]}{why}"),
            fix="promote a version to it",
        )
    return found


def _by_digest(store: Store, reference: Reference) -> Version | Lock | None:
    low, high = reference.value, reference.value + "g"  # "g" sorts right after the hexadecimal digits
    name = (" AND {0}.name = ?", [reference.name]) if reference.name else ("", [])
    found: list[Version | Lock] = []
    for select, table in ((_VERSIONS, "v"), (_LOCKS, "l")):
        where = f"{table}.digest >= ? AND {table}.digest < ?{name[0].format(table)}"
        sql = f"{select} WHERE {where} ORDER BY {table}.id DESC LIMIT 50"
        rows = store.db.rows(sql, [low, high, *name[1]])
        found += [thing for row in rows if (thing := item(store, row)) is not None]
    if len({thing.digest for thing in found}) > 1:
        raise ReferenceNotFound(
            f"the digest {reference.value} is short of telling {found[0].ref} from {found[1].ref}",
            fix="write more of its digits",
        )
    return found[0] if found else None


def _not_found(store: Store, reference: Reference, when: str | None) -> ReferenceNotFound:
    then = f" at {when}" if when else ""
    if not reference.name:
        return ReferenceNotFound(
            f"nothing in the registry has the digest {reference.value}{then}", fix="see `inlay ls`"
        )
    known = _neighbours(store, reference.name)
    if reference.name not in known:
        near = close_to(reference.name, known)
        return ReferenceNotFound(
            f"there is no {reference.name!r} in the registry", fix=near or "see `inlay ls`"
        )
    aliases = list(journal.live(store.db, [reference.name]).get(reference.name, {}))
    if reference.kind == "alias":
        near = close_to(reference.value, aliases) or (
            f"it has {', '.join(aliases)}"
            if aliases
            else f"promote a version: `inlay promote {reference.name}@v1`"
        )
        return ReferenceNotFound(f"{reference.name} has no alias {reference.value!r}{then}", fix=near)
    newest = latest(store, reference.name)
    return ReferenceNotFound(
        f"there is no {reference}{then}", fix=f"the newest is {reference.name}@v{newest}"
    )


def _neighbours(store: Store, name: str) -> list[str]:
    """`name` if it is there, and the names beside it in the alphabet: all of them in a store of a few
    hundred. Comparing with ten thousand took a quarter of a second for a slip of the pen.
    """
    rows = store.db.rows(
        "SELECT name FROM (SELECT name FROM names WHERE name < ?1 ORDER BY name DESC LIMIT ?2)"
        " UNION ALL SELECT name FROM (SELECT name FROM names WHERE name >= ?1 ORDER BY name LIMIT ?2)",
        [name, NEIGHBOURS],
    )
    return [row["name"] for row in rows]


def latest(store: Store, name: str) -> int:
    """The highest number under `name`, 0 if there is none."""
    row = store.db.row(
        "SELECT max(coalesce((SELECT max(number) FROM versions WHERE name = ?1), 0),"
        " coalesce((SELECT max(number) FROM locks WHERE name = ?1), 0)) AS n",
        [name],
    )
    return int(row["n"]) if row else 0


def versions(
    store: Store, name: str, *, limit: int | None, before: int | None, numbers: Collection[int] | None
) -> list[Version]:
    """Newest first; those below number `before`; those in `numbers`."""
    need_name(store, name, "adapter")
    where, parameters = _page("v", name, limit, before, numbers)
    return [version(store, row) for row in store.db.rows(f"{_VERSIONS} {where}", parameters)]


def locks(
    store: Store, name: str, *, limit: int | None, before: int | None, numbers: Collection[int] | None
) -> list[Lock]:
    """Newest first; those below number `before`; those in `numbers`."""
    need_name(store, name, "variant")
    where, parameters = _page("l", name, limit, before, numbers)
    return [lock(row) for row in store.db.rows(f"{_LOCKS} {where}", parameters)]


def bases(store: Store) -> list[BaseRef]:
    """Every base that a version or a lock is for, as it was found, the one seen last first."""
    columns = ", ".join(_BASE)
    return [_base(*row) for row in store.db.rows(f"SELECT {columns} FROM bases ORDER BY id DESC")]


def made_for(store: Store, weights: str) -> tuple[list[Version], list[Lock]]:
    """All versions and all locks for the base with these weights, by name and number."""
    versions, locks = (
        store.db.rows(f"{select} WHERE b.weights = ? ORDER BY {table}.name, {table}.number", [weights])
        for select, table in ((_VERSIONS, "v"), (_LOCKS, "l"))
    )
    return [version(store, row) for row in versions], [lock(row) for row in locks]


def _page(
    table: str, name: str, limit: int | None, before: int | None, numbers: Collection[int] | None
) -> tuple[str, list[Any]]:
    where, parameters = f"WHERE {table}.name = ?", [name, limit_of(limit)]
    if before is not None:
        where, parameters = f"{where} AND {table}.number < ?", [name, before, limit_of(limit)]
    if numbers is not None:
        where += f" AND {table}.number IN (SELECT value FROM json_each(?))"
        parameters.insert(-1, json.dumps(sorted(numbers)))
    return f"{where} ORDER BY {table}.number DESC LIMIT ?", parameters


def by_number(store: Store, name: str, number: int) -> Version | Lock | None:
    """`name@v<number>`, or None."""
    row = store.db.row(_BY_NUMBER, [number, number, name])
    return item(store, row) if row is not None else None


def current(store: Store, name: str, alias: str) -> Version | Lock | None:
    """What the alias points to; None if it never did, or is disabled."""
    row = store.db.row(_BY_ALIAS + _NEWEST, [name, alias])
    return item(store, row) if row is not None else None


def lock_by_id(store: Store, identity: int) -> Lock:
    """The lock with a row id that the database gave."""
    row = store.db.row(f"{_LOCKS} WHERE l.id = ?", [identity])
    assert row is not None
    return lock(row)


def need_name(store: Store, name: str, kind: str | None = None) -> str:
    """The kind of an existing name; ReferenceNotFound if there is none, InputError if it is not `kind`."""
    check_name(name)
    row = store.db.row("SELECT kind FROM names WHERE name = ?", [name])
    if row is None:
        raise _not_found(store, Reference(name, "alias", "prod"), None)
    if kind is not None and row["kind"] != kind:
        raise InputError(
            f"{name} is a name of {_plural(row['kind'])}, not of {_plural(kind)}", fix="see `inlay ls`"
        )
    return str(row["kind"])


def item(store: Store, row: sqlite3.Row) -> Version | Lock | None:
    """The record in a row with COLUMNS, None where neither side joined."""
    if row["v_id"] is not None:
        return version(store, row)
    return lock(row) if row["l_id"] is not None else None


def version(store: Store, row: sqlite3.Row) -> Version:
    """The version in a row with COLUMNS."""
    (
        _, name, number, digest, kind, rank, targets, parameters, exactness, size,
        trained_on, mismatch, run, lineage, notes, author, why, created, licence, card,
    ) = row[:_AT_LOCK]  # fmt: skip
    return Version(
        name=name,
        number=number,
        digest=digest,
        kind=kind,
        rank=rank,
        targets=_strings(targets),
        parameters=parameters,
        exactness=exactness,
        size=size,
        base=_base(*row[_AT_BASE:_AT_STATE]),
        created=created,
        author=author,
        why=why,
        state=_STATES[row[_AT_STATE] or 0],
        base_mismatch=bool(mismatch),
        trained_on=_json(trained_on),
        lineage=_json(lineage),
        notes=_strings(notes),
        licence=licence,
        card=_json(card) or {},
        run=run,
        folder=_files(store.path).folder,
    )


def lock(row: sqlite3.Row) -> Lock:
    """The lock in a row with COLUMNS."""
    _, name, number, digest, recipe, text, guard, provenance, author, why, created = row[_AT_LOCK:_AT_BASE]
    tree = json.loads(text)
    return Lock(
        name=name,
        number=number,
        digest=digest,
        recipe=recipe,
        tree=tree,
        base=_base(*row[_AT_BASE:_AT_STATE]),
        members=tuple(members(tree)),
        guard=_json(guard),
        created=created,
        author=author,
        why=why,
        state=_STATES[row[_AT_STATE] or 0],
        provenance=_json(provenance),
    )


def children(node: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(path step, child) of a pinned node: "stack.0", "merge.1", "route.0"."""
    if "stack" in node:
        return [(f"stack.{i}", child) for i, child in enumerate(node["stack"])]
    if "merge" in node:
        return [(f"merge.{i}", child) for i, child in enumerate(node["merge"])]
    if "route" in node:
        return [(f"route.{i}", child) for i, child in enumerate(node["route"]["experts"])]
    return []


def members(node: Mapping[str, Any], path: str = "") -> Iterator[Member]:
    """The adapters in a pinned tree, in the order they are written."""
    if "use" in node and node["use"] != "base":
        name, _, number = node["name"].rpartition("@v")
        yield Member(name, int(number), node["use"], float(node["weight"]), path)
    for step, child in children(node):
        yield from members(child, f"{path}.{step}" if path else step)


# A thousand versions of one adapter share a base and a handful of target lists: making those once takes a
# fifth off a listing.
@lru_cache(maxsize=1024)
def _base(weights: str, prompt: str, name: str, revision: str | None, source: str) -> BaseRef:
    return BaseRef(weights, prompt, name, revision, source)


@lru_cache(maxsize=64)
def _files(path: Path) -> Files:
    return Files(path)


@lru_cache(maxsize=1024)
def _strings(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


def _json(text: str | None) -> Any:
    return json.loads(text) if text is not None else None


def limit_of(limit: int | None) -> int:
    """`limit` as SQL's LIMIT has it."""
    return -1 if limit is None else max(0, limit)


def _plural(kind: str) -> str:
    return {"adapter": "adapters", "variant": "variants"}[kind]
