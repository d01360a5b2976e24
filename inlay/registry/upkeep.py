"""fsck and gc: is everything what it says it is, and what does nothing need any more."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

from inlay.errors import InputError, IntegrityError, StoreBusy
from inlay.registry import evidence, journal, keys, locking, removing
from inlay.registry.canonical import canonical, digest_of_file, digest_of_json
from inlay.registry.printable import printable
from inlay.registry.store import Store

DAMAGED = (ValueError, TypeError, KeyError, AttributeError)
"""What reading JSON raises that is not what was written."""

_REFERENCES = """
    WITH gone (name, number) AS (SELECT name, from_number FROM journal WHERE verb IN ('retire', 'purge')),
    kept AS (SELECT * FROM versions WHERE (name, number) NOT IN gone)
    SELECT digest, 'manifest of ' || name || '@v' || number AS what FROM kept
    UNION ALL SELECT f.digest, f.path || ' of ' || v.name || '@v' || v.number
        FROM version_files f JOIN kept v ON v.id = f.version
    UNION ALL SELECT run, 'training record of ' || name || '@v' || number FROM kept WHERE run IS NOT NULL
    UNION ALL SELECT tensors, 'tensor list of base ' || name FROM bases
    UNION ALL SELECT items, 'suite ' || name FROM suites
    UNION ALL SELECT object, kind || ' report ' || id FROM reports"""

_MEMBERS = """
    SELECT m.position, m.path, coalesce(v.name, l.name) || '@v' || coalesce(v.number, l.number) AS ref,
        m.digest, m.weight
    FROM lock_members m LEFT JOIN versions v ON v.id = m.version LEFT JOIN locks l ON l.id = m.used_lock
    WHERE m.lock = ? ORDER BY m.position"""


def fsck(store: Store, head: tuple[int, str] | None = None) -> list[str]:
    """What is wrong, one sentence each, safe to print; empty if nothing is. Reads every byte.

    `head` is a (seq, hash) exported earlier: with it a cut tail and a chain written anew are found as well.
    """
    return [printable(problem) for problem in _problems(store, head)]


def _problems(store: Store, head: tuple[int, str] | None) -> list[str]:
    found = [f"trigger {name} is missing or was changed" for name in store.db.missing_triggers()]
    found += [f"database: {row[0]}" for row in store.db.rows("PRAGMA integrity_check") if row[0] != "ok"]
    found += [
        f"database: row {row['rowid']} of {row['table']} refers to a missing row of {row['parent']}"
        for row in store.db.rows("PRAGMA foreign_key_check")
    ]
    found += journal.verify(store.db)
    found += _head(store, head)
    found += _against_journal(store)
    found += _locks(store)
    found += _kinds(store)
    found += keys.problems(store)
    try:
        wanted, erased = referenced(store), removing.erased(store)
    except (IntegrityError, *DAMAGED):
        return [*found, "objects: which of them are needed cannot be told while rows are damaged"]
    present = dict(store.objects.all())
    for digest, what in wanted.items():
        if digest not in present:
            found.append(f"{what} is missing from the store ({digest})")
    for digest, path in present.items():
        try:
            changed = digest_of_file(path)[0] != digest
        except OSError as error:
            found.append(f"{wanted.get(digest, 'an object')} cannot be read ({path.name}): {error.strerror}")
            continue
        if changed:
            found.append(f"{wanted.get(digest, 'an unused object')} has changed on the disk ({digest})")
    found += [
        f"{ref} was purged, its bytes are still in the store ({digest}): run `inlay gc`"
        for digest, ref in erased.items()
        if digest in present
    ]
    found += _manifests(store)
    found += _suites(store)
    found += _evals(store)
    return found


def gc(store: Store, *, dry_run: bool, grace: float) -> list[Path]:
    """Remove leftovers and objects that nothing refers to, older than `grace` seconds; returns what went (or
    would). What was purged goes at once.

    Under the lock that every registration takes, so that nothing becomes referenced in between; a
    registration whose objects went before its row stores them again. The grace period protects what has no
    row yet, such as a router's weights.
    """
    if grace < 0:
        raise InputError(f"grace must not be negative, got {grace}")
    gone: list[Path] = []
    with store.db.transaction():
        wanted, oldest, erased = referenced(store), time.time() - grace, removing.erased(store)
        candidates = {path: digest in erased for digest, path in store.objects.all() if digest not in wanted}
        candidates.update(dict.fromkeys(store.objects.leftovers(), False))
        for path, at_once in candidates.items():
            try:
                if at_once or path.stat().st_mtime <= oldest:
                    if not dry_run:
                        path.unlink()
                    gone.append(path)
            except FileNotFoundError:
                continue  # its writer has finished and moved it into place
            except OSError as error:
                raise StoreBusy(f"cannot remove {str(path)!r}: {error.strerror}") from None
    return gone


def referenced(store: Store) -> dict[str, str]:
    """Digest -> what it is, of every object that must be there: all that a row refers to, but for what was
    retired or purged.
    """
    wanted = {row["digest"]: row["what"] for row in store.db.rows(_REFERENCES)}
    for row in store.db.rows(
        "SELECT name, number, tree FROM locks WHERE tree LIKE '%\"router\"%' AND (name, number) NOT IN"
        " (SELECT name, from_number FROM journal WHERE verb IN ('retire', 'purge'))"
    ):
        ref = f"{row['name']}@v{row['number']}"
        try:
            routers = locking.routers_of(json.loads(row["tree"]))
        except DAMAGED:
            raise IntegrityError(f"the tree of {ref} cannot be read", fix="run `inlay fsck`") from None
        wanted.update(dict.fromkeys(routers, f"router of {ref}"))
    for digest in removing.erased(store):
        wanted.pop(digest, None)
    return wanted


def _head(store: Store, head: tuple[int, str] | None) -> list[str]:
    if head is None:
        return []
    row = store.db.row("SELECT hash FROM journal WHERE seq = ?", [head[0]])
    if head[0] > 0 and row is None:
        return [f"journal: row {head[0]}, which the exported head names, is gone: the tail was cut"]
    if row is not None and row["hash"] != head[1]:
        return [
            f"journal: row {head[0]} is not the one that the exported head names: the chain was written anew"
        ]
    return []


def _against_journal(store: Store) -> list[str]:
    """Versions and locks against the rows that announced them, whose digests the chain protects."""
    found = []
    for table, verb in (("versions", "add"), ("locks", "lock")):
        for row in store.db.rows(
            f"SELECT t.name, t.number, t.digest, j.to_digest FROM {table} t LEFT JOIN journal j"
            f" ON j.name = t.name AND j.verb = '{verb}' AND j.to_number = t.number"
            " WHERE j.to_digest IS NULL OR j.to_digest <> t.digest"
        ):
            said = "says another digest" if row["to_digest"] else "never mentions it"
            found.append(f"{row['name']}@v{row['number']}: the journal {said}")
        for row in store.db.rows(
            f"SELECT j.to_ref FROM journal j LEFT JOIN {table} t"
            " ON t.name = j.name AND t.number = j.to_number"
            f" WHERE j.verb = '{verb}' AND t.id IS NULL"
        ):
            found.append(f"{row['to_ref']}: the journal mentions it, its row is gone")
        for row in store.db.rows(
            f"SELECT t.id, j.to_ref, j.detail FROM {table} t JOIN bases b ON b.id = t.base"
            f" JOIN journal j ON j.name = t.name AND j.verb = '{verb}' AND j.to_number = t.number"
        ):
            try:
                sealed = json.loads(row["detail"]).get("record")  # rows of schema 1 have none
            except DAMAGED:
                continue  # the chain says so
            if sealed is not None and sealed != journal.seal(store.db, table, row["id"]):
                found.append(f"{row['to_ref']}: its record was edited after it was registered")
    return found


def _locks(store: Store) -> list[str]:
    found = []
    for row in store.db.rows("SELECT l.*, b.weights FROM locks l JOIN bases b ON b.id = l.base"):
        try:
            tree = json.loads(row["tree"])
            digest = locking.digest_of_lock(row["weights"], tree)
            said = [
                (path, node["name"], node.get("lock") or node.get("use"), float(node.get("weight", 1.0)))
                for path, node in locking.walk_tree(tree)
                if "name" in node
            ]
        except DAMAGED:
            found.append(f"{row['name']}@v{row['number']}: its tree cannot be read")
            continue
        if digest != row["digest"]:
            found.append(f"{row['name']}@v{row['number']}: its tree is not what its digest says")
        rows = store.db.rows(_MEMBERS, [row["id"]])
        if [tuple(member)[1:] for member in rows] != said or [m["position"] for m in rows] != [
            *range(len(rows))
        ]:
            found.append(f"{row['name']}@v{row['number']}: its rows of members are not those of its tree")
    return found


def _kinds(store: Store) -> list[str]:
    return [
        f"{row['name']}: it is kept as a name of {row['kind']}s, which is not what it holds"
        for row in store.db.rows(
            "SELECT name, kind FROM names n WHERE kind NOT IN ('adapter', 'variant')"
            " OR (kind = 'adapter' AND EXISTS (SELECT 1 FROM locks WHERE name = n.name))"
            " OR (kind = 'variant' AND EXISTS (SELECT 1 FROM versions WHERE name = n.name))"
        )
    ]


def _suites(store: Store) -> list[str]:
    """Suites against their items. What a suite is called and how it is scored, nothing protects."""
    found = []
    for row in store.db.rows("SELECT * FROM suites"):
        if row["digest"] != row["items"]:
            found.append(f"suite {row['name']}: its digest is not that of its items")
            continue
        try:
            items = store.objects.read(row["items"], what="suite")
        except (IntegrityError, StoreBusy):
            continue  # reported among the objects
        if sum(1 for line in items.split(b"\n") if line.strip()) != row["n"]:
            found.append(f"suite {row['name']}: it has another number of items than its n says")
    return found


def _evals(store: Store) -> list[str]:
    """Scores against their keys and their outcomes. No chain protects them: whoever rewrites all of a row
    consistently is not found here.
    """
    found = []
    for row in store.db.stream("SELECT * FROM evals ORDER BY id"):
        try:
            record = evidence.record_of(row)
        except (InputError, ValueError, TypeError):
            found.append(f"eval {row['id']} on {row['suite_name']}: its outcomes are not what its n says")
            continue
        if record.key != row["key"]:
            found.append(f"eval {row['id']} on {row['suite_name']}: its columns are not what its key says")
        elif digest_of_json(record.protocol_detail) != record.protocol:
            found.append(f"eval {row['id']} on {row['suite_name']}: its protocol is not what its digest says")
        elif not record.low <= record.score <= record.high:
            found.append(f"eval {row['id']} on {row['suite_name']}: its score lies outside its interval")
        elif all(isinstance(o, bool) for o in record.outcomes) and not math.isclose(
            record.score, sum(record.outcomes) / record.n, abs_tol=1e-9
        ):
            found.append(f"eval {row['id']} on {row['suite_name']}: its score is not that of its outcomes")
    return found


def _manifests(store: Store) -> list[str]:
    """The rows of files against the manifests, whose bytes the versions' digests protect."""
    found = []
    for row in store.db.rows(
        "SELECT id, name, number, digest FROM versions WHERE (name, number) NOT IN"
        " (SELECT name, from_number FROM journal WHERE verb IN ('retire', 'purge'))"
    ):
        files = store.db.rows(
            "SELECT path, digest AS sha256, size FROM version_files WHERE version = ? ORDER BY path",
            [row["id"]],
        )
        try:
            manifest = store.manifest(row["digest"])
        except (IntegrityError, InputError, StoreBusy, *DAMAGED):
            continue  # reported among the objects
        if canonical([dict(file) for file in files]) != canonical(manifest):
            found.append(f"{row['name']}@v{row['number']}: its rows of files are not those of its manifest")
    return found
