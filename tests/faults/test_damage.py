"""Everything that can be changed behind the registry's back, and that `fsck` names it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from inlay.errors import InlayError, IntegrityError
from inlay.registry import Registry, journal, migrations, printable

# A change of these is not found, because nothing else says what they were. Rows of versions and locks are
# sealed in the journal, journal rows in the next, keys in their ids; the others are what people measured, or
# where they looked.
UNCHECKED: dict[str, set[str]] = {
    "names": {"owner", "created"},
    "bases": {"name", "revision", "architecture", "created"},
    "suites": {"id", "name", "metric", "skills", "created"},
    "evals": {"suite_name", "high", "splits", "device", "versions", "created"},
    "reports": {"id", "subject", "kind", "created"},
    "key_revocations": {"at", "who", "why"},
}


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "store", tmp_path / "store")
    return tmp_path / "store"


def meddle(store: Path, *statements: tuple[str, tuple[Any, ...]]) -> None:
    """Change rows as somebody with an SQLite shell would: triggers dropped, and put back."""
    with contextlib.closing(sqlite3.connect(store / "registry.db")) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for sql, values in statements:
            connection.execute(sql, values)
        for _, sql in triggers:
            connection.execute(sql)
        connection.commit()


def fsck(store: Path, head: tuple[int, str] | None = None) -> list[str]:
    with Registry.open(store, check=False) as registry:
        return registry.fsck(head)


def other(value: Any) -> Any:
    """Another value of the same kind: a digest for a digest, sound JSON for JSON."""
    if isinstance(value, int | float):
        return value - 1 if value > 1 else value + 1  # mostly another row that is there
    if value in ("adapter", "variant"):
        return "variant" if value == "adapter" else "adapter"
    if value.startswith("sha256:"):
        return value[:-1] + ("0" if value[-1] != "0" else "1")
    if value.startswith(("{", "[")):
        parsed = json.loads(value)
        return json.dumps([*parsed, "x"] if isinstance(parsed, list) else {**parsed, "x": 1})
    return value + "x"


def edits(store: Path, table: str) -> list[tuple[str, int, Any]]:
    """(column, row, another value) for each column of a table, in its last row that has a value there."""
    with contextlib.closing(sqlite3.connect(store / "registry.db")) as connection:
        found = []
        for _, column, kind, *_ in connection.execute(f"PRAGMA table_info({table})").fetchall():
            row = connection.execute(
                f"SELECT rowid, {column} FROM {table} ORDER BY {column} IS NULL, rowid DESC LIMIT 1"
            ).fetchone()
            value = other(row[1]) if row[1] is not None else "x" if kind == "TEXT" else 1
            found.append((column, row[0], value))
        return found


def set_to(store: Path, table: str, column: str, rowid: int, value: Any) -> None:
    change = f"UPDATE {table} SET {column} = ? WHERE rowid = ?"
    try:
        meddle(store, (change, (value, rowid)))
    except sqlite3.IntegrityError:  # it is another row's already
        meddle(store, (change, (value + 7, rowid)))


@pytest.mark.parametrize("table", migrations.IMMUTABLE)
def test_an_edit_of_any_column_is_found(table: str, store: Path, tmp_path: Path) -> None:
    unnoticed, copy = set(), tmp_path / "copy"
    for column, rowid, value in edits(store, table):
        shutil.copytree(store, copy)
        set_to(copy, table, column, rowid, value)
        if not fsck(copy):
            unnoticed.add(column)
        shutil.rmtree(copy)
    assert unnoticed == UNCHECKED.get(table, set())


GARBAGE = ("", "{[", "[1]", "null", "\x00\x1b[2J", "sha256:" + "z" * 64)


def values(store: Path, table: str, column: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(store / "registry.db")) as connection:
        return connection.execute(f"SELECT {column} FROM {table} ORDER BY rowid").fetchall()


def check_garbage(store: Path, copy: Path, table: str, garbage: tuple[str, ...]) -> None:
    """`garbage` in every row of one column at a time, where it need not be unique."""
    for column, _, value in edits(store, table):
        if isinstance(value, str):
            for text in garbage:
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(store, copy)
                meddle(copy, (f"UPDATE OR IGNORE {table} SET {column} = ?", (text,)))
                found = fsck(copy)
                if values(copy, table, column) == values(store, table, column):
                    continue
                assert found or column in UNCHECKED.get(table, set()), (column, text)
                assert all(line == printable(line) for line in found), (column, text)


@pytest.mark.parametrize("table", ["journal", "locks"])
def test_garbage_does_not_stop_fsck(table: str, store: Path, tmp_path: Path) -> None:
    check_garbage(store, tmp_path / "copy", table, GARBAGE[1:2])


@pytest.mark.slow
@pytest.mark.parametrize("table", migrations.IMMUTABLE)
def test_no_garbage_in_any_column_stops_fsck(table: str, store: Path, tmp_path: Path) -> None:
    check_garbage(store, tmp_path / "copy", table, GARBAGE)


def test_every_object_is_watched_bit_by_bit(store: Path) -> None:
    """One bit flipped, the last byte gone, everything gone, the file gone, a folder in its place."""
    with Registry.open(store) as registry:
        wanted = list(registry._store.objects.all())
    assert len(wanted) >= 15
    for position, (digest, path) in enumerate(wanted):
        whole = path.read_bytes()
        os.chmod(path, 0o644)
        flipped = bytearray(whole)
        flipped[position * 7919 % len(whole)] ^= 1 << position % 8
        for damaged, said in (
            (bytes(flipped), "has changed on the disk"),
            (whole[:-1], "has changed on the disk"),
            (b"", "has changed on the disk"),
            (None, "is missing from the store"),
        ):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            found = fsck(store)
            assert len(found) == 1 and digest in found[0] and said in found[0], (path, found)
            path.write_bytes(whole)
        path.unlink()
        path.mkdir()
        assert any("cannot be read" in line and path.name in line for line in fsck(store))
        path.rmdir()
        path.write_bytes(whole)
    assert fsck(store) == []


def test_every_version_notices_its_own_damage_when_it_is_used(store: Path) -> None:
    with Registry.open(store) as registry:
        for version in registry.versions("legal"):
            for file in registry._store.manifest(version.digest):
                path = registry._store.objects.path(str(file["sha256"]))
                whole = path.read_bytes()
                path.chmod(0o644)
                path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 128]))
                with pytest.raises(IntegrityError, match="no longer has the bytes"):
                    _ = version.path
                with pytest.raises(IntegrityError, match="no longer has the bytes"):
                    registry.read_file(version, str(file["path"]))
                path.write_bytes(whole)
            assert version.path.is_dir()


def rows(store: Path, table: str = "journal") -> list[dict[str, Any]]:
    with contextlib.closing(sqlite3.connect(store / "registry.db")) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY rowid")]


def insert(row: dict[str, Any]) -> tuple[str, tuple[Any, ...]]:
    marks = ", ".join("?" * len(row))
    return f"INSERT INTO journal ({', '.join(row)}) VALUES ({marks})", tuple(row.values())


def chain(found: list[str]) -> list[str]:
    return [line for line in found if line.startswith("journal: ")]


def test_a_row_inserted_deleted_swapped_or_moved(store: Path, tmp_path: Path) -> None:
    events = rows(store)
    last, copy = len(events), tmp_path / "copy"
    forged = {**events[-1], "seq": last + 1, "why": "forged"}
    a, b = events[7], events[9]
    cases: dict[str, tuple[list[tuple[str, tuple[Any, ...]]], list[str]]] = {
        "inserted after the last": (
            [insert(forged)],
            [f"journal: row {last + 1} was edited, its hash is not that of its content"],
        ),
        "inserted with its own sound hash": (
            [insert({**forged, "hash": journal.row_hash(forged)})],
            [f"journal: row {last + 1} does not follow the row before it"],
        ),
        "deleted": (
            [("DELETE FROM journal WHERE seq = 8", ())],
            ["journal: rows 8 to 8 are missing", "journal: row 9 does not follow the row before it"],
        ),
        "the first deleted": (
            [("DELETE FROM journal WHERE seq = 1", ())],
            ["journal: rows 1 to 1 are missing", "journal: row 2 does not follow the row before it"],
        ),
        "swapped": (
            [
                ("DELETE FROM journal WHERE seq IN (?, ?)", (a["seq"], b["seq"])),
                insert({**a, "seq": b["seq"]}),
                insert({**b, "seq": a["seq"]}),
            ],
            [
                "journal: row 8 was edited, its hash is not that of its content",
                "journal: row 9 does not follow the row before it",
                "journal: row 10 was edited, its hash is not that of its content",
                "journal: row 11 does not follow the row before it",
            ],
        ),
        "moved to the end": (
            [("UPDATE journal SET seq = ? WHERE seq = 8", (last + 1,))],
            [
                "journal: rows 8 to 8 are missing",
                "journal: row 9 does not follow the row before it",
                f"journal: row {last + 1} was edited, its hash is not that of its content",
            ],
        ),
    }
    for what, (statements, expected) in cases.items():
        shutil.copytree(store, copy)
        meddle(copy, *statements)
        assert chain(fsck(copy)) == expected, what
        shutil.rmtree(copy)


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_a_cut_tail_is_found_against_an_exported_head(cut: int, store: Path) -> None:
    with Registry.open(store) as registry:
        registry.promote("legal@v3", "prod")  # rows that nothing else in the store mentions
        for number in range(cut):
            registry.promote(f"legal@v{1 + number % 2}", "staging")
        head = registry.journal_head()
        assert registry.fsck(head) == []
    meddle(store, ("DELETE FROM journal WHERE seq > ?", (head[0] - cut,)))
    assert fsck(store) == []  # inside the file there is nothing to see
    gone = f"journal: row {head[0]}, which the exported head names, is gone: the tail was cut"
    assert fsck(store, head) == [gone]
    with Registry.open(store) as registry:  # and written over
        for number in range(cut + 2):
            registry.promote(f"legal@v{1 + number % 2}", "other")
    anew = f"journal: row {head[0]} is not the one that the exported head names: the chain was written anew"
    assert fsck(store, head) == [anew]


def test_a_chain_written_anew_is_found_against_an_exported_head(store: Path) -> None:
    """Every row rehashed after an edit in the middle: sound by itself."""
    with Registry.open(store) as registry:
        head = registry.journal_head()
    previous, statements = journal.GENESIS, []
    for row in rows(store):
        if row["verb"] == "promote" and row["name"] == "legal":
            row["why"] = "what history should have been"
        row["previous"] = previous
        row["hash"] = previous = journal.row_hash(row)
        statements.append(
            (
                "UPDATE journal SET why = ?, previous = ?, hash = ? WHERE seq = ?",
                (row["why"], row["previous"], row["hash"], row["seq"]),
            )
        )
    meddle(store, *statements)
    assert fsck(store) == []
    anew = f"journal: row {head[0]} is not the one that the exported head names: the chain was written anew"
    assert fsck(store, head) == [anew]


@pytest.mark.parametrize("trigger", sorted(migrations.triggers()))
def test_every_trigger_is_asserted(trigger: str, store: Path) -> None:
    said = f"trigger {trigger} is missing or was changed"
    sql = migrations.triggers()[trigger]
    for weaker in (
        None,
        sql.replace("RAISE(ABORT", "RAISE(FAIL"),
        sql.replace(" BEGIN", " WHEN 0 BEGIN", 1),
    ):
        with contextlib.closing(sqlite3.connect(store / "registry.db")) as connection:
            connection.execute(f"DROP TRIGGER IF EXISTS {trigger}")
            if weaker is not None:
                assert weaker != sql
                connection.execute(weaker)
            connection.commit()
        assert fsck(store) == [said]
        with pytest.raises(IntegrityError, match=trigger):
            Registry.open(store)


@pytest.mark.parametrize("table", migrations.IMMUTABLE)
def test_no_row_can_be_changed_while_the_triggers_stand(table: str, full: Registry) -> None:
    """Through the registry's own connection: UPDATE, DELETE and the ways round them."""
    connection = full._store.db.connection
    columns = [row["name"] for row in connection.execute(f"PRAGMA table_info({table})")]
    listed = ", ".join(columns)
    for sql in (
        *(f"UPDATE {table} SET {column} = {column}" for column in columns),
        f"DELETE FROM {table}",
        f"REPLACE INTO {table} ({listed}) SELECT {listed} FROM {table}",
        f"INSERT OR REPLACE INTO {table} ({listed}) SELECT {listed} FROM {table}",
        f"UPDATE OR REPLACE {table} SET {columns[0]} = {columns[0]}",
    ):
        with pytest.raises(sqlite3.IntegrityError, match=f"{table} are immutable"):
            connection.execute(sql)
    assert full.fsck() == []


def test_a_file_that_is_no_database_any_more(store: Path) -> None:
    """Bytes overwritten in the middle of the file: said in one line, never a traceback."""
    file = store / "registry.db"
    whole = file.read_bytes()
    pages = len(whole) // 4096
    for page in range(pages):
        file.write_bytes(whole[: page * 4096] + b"\xa5" * 4096 + whole[(page + 1) * 4096 :])
        try:
            found = fsck(store)
        except InlayError as error:
            found = [str(error)]
        assert found, f"page {page} of {pages}"
        assert all(line == printable(line) for line in found)
    for size in (0, 100, 4096, len(whole) // 2):
        file.write_bytes(whole[:size])
        try:
            found = fsck(store)
        except InlayError as error:
            found = [str(error)]
        assert found, f"cut to {size} bytes"
        for left in store.glob("registry.db-*"):
            left.unlink()
        file.write_bytes(whole)
    assert fsck(store) == []
