"""Taking a bundle over, and mending a store from one.

Taking over is a fast-forward, name by name: where this store's journal rows of a name are the first of the
bundle's, the rest is added; where they are the same or more, nothing is; where they differ, nothing at all
is taken over, because history is never merged. So it may be done again and again. Objects are stored
first, all rows follow in one transaction: killed anywhere, the store holds the old state or the new one.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inlay.errors import Conflict, InputError, IntegrityError, StoreBusy
from inlay.registry import adding, bundle_rows, ingest, journal, locking, lookup, migrations, removing, upkeep
from inlay.registry.archive import Reader
from inlay.registry.bundle_rows import Content
from inlay.registry.canonical import canonical, digest_of_file
from inlay.registry.fingerprint import BaseFingerprint
from inlay.registry.printable import printable
from inlay.registry.records import Lock, Unbundled, Version
from inlay.registry.rows import Place, Row
from inlay.registry.store import Store

Say = Callable[[str, int, int], None]
"""Called with (what is being done, how many are done, how many there are)."""
_SAME_REPORT = "SELECT 1 FROM reports WHERE subject = ? AND kind = ? AND object = ? AND created = ?"


def unbundle(store: Store, path: str | Path, *, dry_run: bool, say: Say | None = None) -> Unbundled:
    """See `Registry.unbundle`."""
    with Reader(path) as reader:
        content = bundle_rows.read(reader, store.db)
        wanted = content.objects(content.gone)
        surplus = reader.objects.keys() - wanted.keys()
        if surplus:
            raise InputError(
                f"{reader.path.name} carries {min(surplus)}, which nothing in it refers to",
                fix="make the bundle again",
            )
        ahead = _ahead(store, content)  # a conflict is found before anything is stored
        erased = removing.erased(store)
        _refuse_purged(store, content, ahead, erased)
        bring = [d for d in content.objects(content.gone | _gone(store)) if d not in erased]
        stored = _bring_objects(store, reader, wanted, set(bring), dry_run, say)
        if not dry_run:
            _check_contents(store, content, ahead)
        with store.db.transaction(dry_run=dry_run), _fitting(reader):
            ahead = _ahead(store, content)  # again: somebody may have been quicker
            if not dry_run:  # `gc` is kept out from here on
                for digest in store.objects.missing(bring):
                    with reader.open_object(digest) as source:
                        store.objects.put_stream(source, digest, what=wanted[digest])
            gone = [row for row in ahead if row["verb"] in ("retire", "purge")]
            needed = upkeep.referenced(store) if gone else {}
            done = _take_over(store, reader, content, ahead)
            things = [_thing(store, row) for row in gone]
            removing.refuse_needed_here(store, things, needed)
        if not dry_run and any(thing.state == "purged" for thing in things):
            removing.erase(store, [thing for thing in things if thing.state == "purged"])
    notes = list(done.notes)
    left = [d for d in wanted if d in erased]
    if left:
        notes.append(f"{len(left)} objects that were purged here were left out")
    return Unbundled(
        digest=reader.digest,
        names=tuple(content.names),
        versions=done.versions,
        locks=done.locks,
        events=done.events,
        evals=done.evals,
        objects=stored,
        notes=tuple(notes),
    )


def repair(store: Store, path: str | Path | None) -> list[str]:
    """See `Registry.repair`."""
    said = []
    missing = store.db.missing_triggers()
    if missing:
        with store.db.transaction():
            for name in missing:
                store.db.execute(f'DROP TRIGGER IF EXISTS "{name}"')
                store.db.execute(migrations.triggers()[name])
                said.append(f"put the trigger {name} back")
    if path is None:
        return said
    with Reader(path) as reader, store.db.transaction():
        held = reader.objects
        for digest, what in upkeep.referenced(store).items():
            if digest in held and not _sound(store.objects.path(digest), digest):
                with reader.open_object(digest) as source:
                    store.objects.put_stream(source, digest, what=what)
                said.append(f"put {what} back ({digest})")
    return said


def _sound(path: Path, digest: str) -> bool:
    try:
        return digest_of_file(path)[0] == digest
    except OSError:
        return False


def _ahead(store: Store, content: Content) -> list[Row]:
    """The bundle's journal rows that this store does not have yet. Conflict where it has others."""
    theirs: dict[str, list[Row]] = {name: [] for name in content.names}
    for row in content.journal:
        theirs[row["name"]].append(row)
    ahead = []
    for name, rows in theirs.items():
        kind = store.db.row("SELECT kind FROM names WHERE name = ?", [name])
        if kind is not None and kind["kind"] != content.names[name]["kind"]:
            raise Conflict(
                f"{name} is a name of {kind['kind']}s here, of {content.names[name]['kind']}s in the bundle",
                fix="unbundle into a store of its own: `inlay init FOLDER`",
            )
        ours = store.db.rows("SELECT * FROM journal WHERE name = ? ORDER BY seq", [name])
        for one, other in zip(ours, rows, strict=False):
            if journal.identity(one) != journal.identity(other):
                raise Conflict(
                    f"{name} went another way here (row {one['seq']}: {one['verb']}, {one['at'][:10]}) than "
                    f"in the bundle ({other['verb']}, {other['at'][:10]}); nothing was taken over",
                    fix="unbundle into a store of its own: `inlay init FOLDER`",
                )
        ahead += rows[len(ours) :]
    return sorted(ahead, key=lambda row: row["seq"])


def _gone(store: Store) -> set[Place]:
    """What was retired or purged in this store."""
    rows = store.db.rows("SELECT name, from_number FROM journal WHERE verb IN ('retire', 'purge')")
    return {(row["name"], row["from_number"]) for row in rows}


def _thing(store: Store, row: Row) -> Version | Lock:
    thing = lookup.by_number(store, row["name"], row["from_number"])
    assert thing is not None, "the bundle's rows were verified"
    return thing


def _refuse_purged(store: Store, content: Content, ahead: list[Row], erased: Mapping[str, str]) -> None:
    """InputError where a version would come whose weights were purged here, under whatever name."""
    for row in ahead:
        place = row["name"], row["to_number"]
        if row["verb"] == "add" and place not in content.gone:
            weights = [d for path, _, d in content.versions[place]["files"] if path == ingest.WEIGHTS]
            if weights[0] in erased:
                removing.refuse_erased(store, weights)


@contextmanager
def _fitting(reader: Reader) -> Iterator[None]:
    """What the database itself refuses, as InputError: rows that do not go with those that are here."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise InputError(
            f"{reader.path.name} does not go with what is here ({error}); nothing was taken over",
            fix="look at this store with `inlay fsck`",
        ) from None


def _bring_objects(
    store: Store, reader: Reader, wanted: Mapping[str, str], bring: set[str], dry_run: bool, say: Say | None
) -> int:
    """Verify every object that the bundle brings and store those of `bring`; how many were not here."""
    held, stored = reader.objects, 0
    for done, (digest, what) in enumerate(wanted.items()):
        if say is not None:
            say("objects", done, len(wanted))
        absent = digest in bring and bool(store.objects.missing([digest]))
        if digest not in held:
            if absent:
                raise InputError(f"{reader.path.name} lacks {what} ({digest})", fix="make the bundle again")
            continue
        with reader.open_object(digest) as source:
            if dry_run or digest not in bring:
                if digest_of_file(source)[0] != digest:
                    raise IntegrityError(f"{what} does not have the bytes that its name says ({digest})")
            else:
                store.objects.put_stream(source, digest, what=what)
        stored += absent
    return stored


def _check_contents(store: Store, content: Content, ahead: list[Row]) -> None:
    """Look at each new version as `add` would: its manifest, its files, every tensor against its base; and
    at whatever else is read as JSON later.
    """
    erased = removing.erased(store)
    for row in ahead:
        place = row["name"], row["to_number"]
        if row["verb"] != "add" or place in content.gone:
            continue
        version = content.versions[place]
        files = [{"path": p, "sha256": d, "size": s} for p, s, d in sorted(version["files"])]
        if store.objects.read(version["digest"], what="manifest") != canonical(files).encode():
            raise InputError(f"{row['to_ref']}: its files are not those of its manifest")
        with _laid_out(store, files) as folder:
            for file in files:
                if (folder / file["path"]).stat().st_size != file["size"]:
                    raise InputError(f"{row['to_ref']}: {file['path']} has another size than it says")
            try:
                checked = ingest.check(folder, _base(store, content.bases[tuple(version["base"])]))
            except InputError as error:
                raise InputError(f"{row['to_ref']} in the bundle: {error.message}", fix=error.fix) from None
        if checked.parameters != version["parameters"]:
            raise InputError(f"{row['to_ref']} has {checked.parameters} parameters, not those that it says")
        if version.get("run") is not None and version["run"] not in content.erased:
            _read_json(store, version["run"], f"the training record of {row['to_ref']}")
    for report in content.reports:
        if report["object"] not in content.erased and report["object"] not in erased:
            _read_json(store, report["object"], f"a {report['kind']} report")
    for suite in content.suites:
        data = store.objects.read(suite["items"], what=f"suite {suite['name']}")
        lines = [line for line in data.split(b"\n") if line.strip()]
        if len(lines) != suite["n"]:
            raise InputError(f"the suite {suite['name']} has {len(lines)} items, not {suite['n']}")
        for line in lines:
            _parse(line, f"the suite {suite['name']}")


def _read_json(store: Store, digest: str, what: str) -> dict[str, Any]:
    return _parse(store.objects.read(digest, what=what), what)


def _parse(data: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{what} is not sound JSON")
    return value


@contextmanager
def _laid_out(store: Store, files: list[dict[str, Any]]) -> Iterator[Path]:
    """A folder with a version's files under their own names, as further names of the objects."""
    folder = store.path / "exports" / f"tmp-{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True)
        for file in files:
            source, target = store.objects.path(str(file["sha256"])), folder / str(file["path"])
            try:
                os.link(source, target)
            except OSError:  # another account's file, or a file system without links
                shutil.copyfile(source, target)
        yield folder
    except OSError as error:
        raise StoreBusy(f"cannot look into the bundle: {error.strerror}", fix="check the disk") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _base(store: Store, row: Row) -> BaseFingerprint:
    what = f"the tensor list of the base {printable(row['name'][:80])}"
    tensors = _read_json(store, row["tensors"], what)
    try:
        shapes = {str(n): (str(d), tuple(int(v) for v in s)) for n, (d, s) in tensors.items()}
    except (ValueError, TypeError, ArithmeticError):
        raise InputError(f"{what} is not sound") from None
    return BaseFingerprint(
        weights=row["weights"],
        prompt=row["prompt"],
        name=row["name"],
        revision=row.get("revision"),
        path=Path(row["source"]),
        architecture=row["architecture"],
        tensors=shapes,
        source=row["source"],
    )


def _take_over(store: Store, reader: Reader, content: Content, ahead: list[Row]) -> Unbundled:
    """Write all rows that are new, inside a transaction."""
    bases = {key: _base_id(store, row) for key, row in content.bases.items()}
    for row in content.names.values():
        adding.make_name(store, row["name"], row["kind"], row["owner"], created=row["created"])
    places, brought = _places(store, content), {"add": [], "lock": []}  # type: ignore[var-annotated]
    notes = _suites(store, content)
    for row in ahead:
        if row["verb"] in brought:
            place = row["name"], row["to_number"]
            things = content.versions if row["verb"] == "add" else content.locks
            identity = _insert(store, things[place], bases, row["verb"])
            sealed = json.loads(row["detail"]).get("record")
            if sealed is not None and sealed != journal.seal(
                store.db, "versions" if row["verb"] == "add" else "locks", identity
            ):
                raise IntegrityError(
                    f"{row['to_ref']}: its record is not the one that its journal row sealed"
                )
            brought[row["verb"]].append(row["to_ref"])
        places[row["seq"]] = journal.adopt(store.db, row, places)
    evals, others = 0, 0
    for row in bundle_rows.evals(reader, store.db, content):
        kept = store.db.row("SELECT outcomes FROM evals WHERE key = ?", [row["key"]])
        if kept is None:
            # Not by `insert`, which takes longer than all the rest: there may be a million of them.
            columns = ", ".join(row)
            store.db.execute(
                f"INSERT INTO evals ({columns}) VALUES ({', '.join('?' * len(row))})", [*row.values()]
            )
            evals += 1
        elif kept["outcomes"] != row["outcomes"]:
            others += 1
    if others:
        notes.append(f"{others} scores were measured here too, with other outcomes: ours were kept")
    for row in content.reports:
        same = [row["subject"], row["kind"], row["object"], row["created"]]
        if store.db.row(_SAME_REPORT, same) is None:
            store.db.insert("reports", row)
    return Unbundled(
        digest=reader.digest,
        names=tuple(content.names),
        versions=tuple(brought["add"]),
        locks=tuple(brought["lock"]),
        events=len(ahead),
        evals=evals,
        objects=0,
        notes=tuple(notes),
    )


def _places(store: Store, content: Content) -> dict[int, int]:
    """Bundle's row -> this store's row, for the rows that are here already."""
    here = {}
    for name in content.names:
        for row in store.db.rows("SELECT seq, hash, detail FROM journal WHERE name = ?", [name]):
            here[journal.identity(row)] = row["seq"]
    return {
        row["seq"]: here[journal.identity(row)] for row in content.journal if journal.identity(row) in here
    }


def _insert(store: Store, row: Row, bases: Mapping[tuple[str, ...], int], verb: str) -> int:
    """A version with its files, or a lock with its members; the row's id."""
    values = {key: value for key, value in row.items() if key != "files"}
    values["base"] = bases[tuple(row["base"])]
    identity = store.db.insert("versions" if verb == "add" else "locks", values)
    if verb == "add":
        for path, size, digest in row["files"]:
            store.db.insert(
                "version_files", {"version": identity, "path": path, "size": size, "digest": digest}
            )
    else:
        for position, part in enumerate(locking.parts(store, json.loads(row["tree"]))):
            store.db.insert("lock_members", {"lock": identity, "position": position, **part})
    return identity


def _base_id(store: Store, row: Row) -> int:
    found = store.db.row(
        "SELECT id FROM bases WHERE weights = ? AND prompt = ? AND source = ?",
        [row["weights"], row["prompt"], row["source"]],
    )
    if found is not None:
        return int(found["id"])
    other = store.db.row(
        "SELECT name FROM bases WHERE weights = ? AND tensors <> ?", [row["weights"], row["tensors"]]
    )
    if other is not None:
        raise IntegrityError(f"the base {other['name']} has other tensors here under the same digest")
    return store.db.insert("bases", row)


def _suites(store: Store, content: Content) -> list[str]:
    """Insert the suites that are not here; sentences about those whose name means something else here."""
    notes = []
    held = {
        row["name"]: store.db.rows("SELECT * FROM suites WHERE name = ?", [row["name"]])
        for row in content.suites
    }
    for row in content.suites:
        ours = held[row["name"]]
        if any(all(one[key] == value for key, value in row.items()) for one in ours):
            continue
        other = store.db.row(
            "SELECT 1 FROM suites WHERE digest = ? AND items <> ?", [row["digest"], row["items"]]
        )
        if other is not None:
            raise IntegrityError(f"the suite {row['name']} has other items here under the same digest")
        store.db.insert("suites", row)
        if any(one["digest"] != row["digest"] for one in ours):
            notes.append(f"the suite {row['name']} has another content here; both are kept by digest")
    return notes
