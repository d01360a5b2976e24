"""Making a bundle: names with all that belongs to them, in one file that another store can take over.

A bundle of some names holds them whole, and with them every name whose versions their locks contain:
numbers, bytes, lineage, scores, reports, guards, tags, and every journal row about them. Bytes that were
retired or purged are not in it. The same store gives the same file, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from inlay.errors import InputError
from inlay.registry import journal, locking, lookup, removing
from inlay.registry.archive import Writer
from inlay.registry.records import Bundled
from inlay.registry.store import Store

_IN = "(SELECT value FROM json_each(?1))"
_GONE = "(SELECT name, from_number FROM journal WHERE verb IN ('retire', 'purge'))"
_SUBJECTS = f"""
    SELECT digest FROM versions WHERE name IN {_IN} UNION SELECT digest FROM locks WHERE name IN {_IN}"""
_BASE = "json_array(b.weights, b.prompt, b.source)"
_BASES = f"""SELECT id FROM bases WHERE id IN (SELECT base FROM versions WHERE name IN {_IN}
    UNION SELECT base FROM locks WHERE name IN {_IN})"""
_EVALS = f"""(e.subject IN ({_SUBJECTS}) OR (e.subject = 'base' AND e.base_weights IN
    (SELECT weights FROM bases WHERE id IN ({_BASES}))))"""

# In the order in which they are taken over: each refers only to rows of tables above it, or before it.
TABLES = {
    "bases": f"SELECT * FROM bases WHERE id IN ({_BASES}) ORDER BY id",
    "names": f"SELECT * FROM names WHERE name IN {_IN} ORDER BY name",
    "suites": f"""SELECT s.* FROM suites s WHERE s.digest IN (SELECT e.suite FROM evals e WHERE {_EVALS})
        OR s.digest IN (SELECT value FROM json_each(?2)) ORDER BY s.id""",
    "versions": f"""SELECT v.*, {_BASE} AS base_key, (SELECT json_group_array(json_array(path, size, digest))
            FROM (SELECT * FROM version_files WHERE version = v.id ORDER BY path)) AS files
        FROM versions v JOIN bases b ON b.id = v.base WHERE v.name IN {_IN} ORDER BY v.id""",
    "locks": f"""SELECT l.*, {_BASE} AS base_key FROM locks l JOIN bases b ON b.id = l.base
        WHERE l.name IN {_IN} ORDER BY l.id""",
    "evals": f"SELECT e.* FROM evals e WHERE {_EVALS} ORDER BY e.id",
    "reports": f"SELECT * FROM reports WHERE subject IN ({_SUBJECTS}) ORDER BY id",
    "journal": f"SELECT * FROM journal WHERE name IN {_IN} ORDER BY seq",
}


def bundle(store: Store, path: str | Path, names: Sequence[str] | None) -> Bundled:
    """See `Registry.bundle`."""
    target = Path(path).expanduser()
    if not target.parent.is_dir():
        raise InputError(f"there is no folder {str(target.parent)!r}", fix="make it first")
    with store.db.reading():
        whole = [row["name"] for row in store.db.rows("SELECT name FROM names ORDER BY name")]
        chosen = whole if names is None else closure(store, names)
        if not chosen:
            raise InputError("there is nothing in the registry to bundle", fix="register something first")
        head = journal.head(store.db)
        wanted = objects_of(store, chosen)
        with Writer(target) as writer:
            counts = {table: writer.rows(table, _rows(store, table, chosen)) for table in TABLES}
            for digest, what in sorted(wanted.items()):
                writer.object(digest, store.objects.path(digest), what=what)
            digest = writer.finish(
                {"names": chosen, "complete": chosen == whole, "head": list(head), "objects": len(wanted)}
            )
    return Bundled(
        path=target,
        digest=digest,
        names=tuple(chosen),
        versions=counts["versions"],
        locks=counts["locks"],
        evals=counts["evals"],
        events=counts["journal"],
        objects=len(wanted),
        bytes=target.stat().st_size,
    )


def closure(store: Store, names: Sequence[str]) -> list[str]:
    """`names` and every name that one of their locks contains something of, at any depth, sorted."""
    found: set[str] = set()
    pending = list(dict.fromkeys(names))
    while pending:
        name = pending.pop()
        if name in found:
            continue
        lookup.need_name(store, name)
        found.add(name)
        for row in store.db.rows("SELECT tree FROM locks WHERE name = ?", [name]):
            for _, node in locking.walk_tree(json.loads(row["tree"])):
                if "name" in node:
                    pending.append(locking.named(node)[0])
    return sorted(found)


def objects_of(store: Store, names: Sequence[str]) -> dict[str, str]:
    """Digest -> what it is, of the objects that the bundle of some names (with their closure) must hold."""
    chosen = [json.dumps(list(names))]
    wanted: dict[str, str] = {}
    erased = removing.erased(store)
    for row in store.db.stream(
        f"SELECT * FROM versions v WHERE name IN {_IN} AND (name, number) NOT IN {_GONE}", chosen
    ):
        ref = f"{row['name']}@v{row['number']}"
        wanted[row["digest"]] = f"manifest of {ref}"
        if row["run"] is not None:
            wanted[row["run"]] = f"training record of {ref}"
        for file in store.db.rows("SELECT path, digest FROM version_files WHERE version = ?", [row["id"]]):
            wanted[file["digest"]] = f"{file['path']} of {ref}"
    for row in store.db.stream(
        f"SELECT * FROM locks WHERE name IN {_IN} AND (name, number) NOT IN {_GONE}", chosen
    ):
        for digest in locking.routers_of(json.loads(row["tree"])):
            wanted[digest] = f"router of {row['name']}@v{row['number']}"
    for table, column in (("bases", "tensors"), ("suites", "items"), ("reports", "object")):
        for held in _rows(store, table, names):
            wanted[held[column]] = f"{column} of {table}"
    # Whoever names it: what was erased does not leave the store either.
    return {digest: what for digest, what in wanted.items() if digest not in erased}


def _rows(store: Store, table: str, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    sql, chosen = TABLES[table], [json.dumps(list(names))]
    if table == "suites":
        chosen.append(json.dumps(_guarded(store, names)))
    for row in store.db.stream(sql, chosen):
        found = {key: value for key, value in dict(row).items() if key not in ("id", "base_key")}
        if "base" in found:  # a row's id means nothing elsewhere
            found["base"] = json.loads(row["base_key"])
        if "files" in found:
            found["files"] = json.loads(row["files"])
        yield found


def _guarded(store: Store, names: Sequence[str]) -> list[str]:
    """Digests of the suites that guards of these names are pinned to."""
    rows = store.db.rows(
        f"SELECT detail AS held FROM journal WHERE verb = 'guard' AND name IN {_IN} UNION ALL"
        f" SELECT json_object('guard', json(guard)) FROM locks WHERE guard IS NOT NULL AND name IN {_IN}",
        [json.dumps(list(names))],
    )
    guards = [json.loads(row["held"]).get("guard") or {} for row in rows]
    return sorted({digest for guard in guards for digest in guard.get("pinned", {}).values()})
