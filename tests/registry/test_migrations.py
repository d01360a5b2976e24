"""Stores written by every earlier schema open with this code, keep all they held, and lose no protection."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from inlay.registry import Registry
from inlay.registry import migrations as diary

HERE = Path(__file__).parent


def written_by(schema: int, folder: Path) -> Path:
    """A store whose database is the dump that code of that schema left; its objects are not there."""
    folder.mkdir()
    connection = sqlite3.connect(folder / "registry.db")
    connection.executescript((HERE / f"schema_{schema}.sql").read_text())
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    return folder


def structure(registry: Registry) -> set[tuple[str, str, str]]:
    rows = registry._store.db.rows("SELECT type, name, coalesce(sql, '') AS sql FROM sqlite_master")
    # A column that was added stands behind the others in the text; what it is, the table's columns say.
    return {(r["type"], r["name"], "" if r["type"] == "table" else r["sql"]) for r in rows}


def columns(registry: Registry) -> dict[str, list[tuple[object, ...]]]:
    return {
        table: [tuple(c) for c in registry._store.db.rows(f"PRAGMA table_info({table})")]
        for table in diary.IMMUTABLE
    }


def test_every_schema_before_this_one_has_a_store_here() -> None:
    assert [(HERE / f"schema_{n}.sql").is_file() for n in range(1, diary.SCHEMA)] == [True] * (
        diary.SCHEMA - 1
    )


@pytest.mark.parametrize("schema", range(1, diary.SCHEMA))
def test_an_old_store_becomes_what_a_new_one_is(schema: int, tmp_path: Path) -> None:
    with (
        Registry.open(written_by(schema, tmp_path / "old")) as old,
        Registry.open(tmp_path / "new", create=True) as new,
    ):
        assert structure(old) == structure(new)
        assert columns(old) == columns(new)
        assert old._store.db.missing_triggers() == []
        row = old._store.db.row("PRAGMA user_version")
        assert row is not None and row[0] == diary.SCHEMA


@pytest.mark.parametrize("schema", range(1, diary.SCHEMA))
def test_an_old_store_keeps_what_it_held(schema: int, tmp_path: Path) -> None:
    folder = written_by(schema, tmp_path / "old")
    raw = sqlite3.connect(folder / "registry.db")
    head = raw.execute("SELECT seq, hash FROM journal ORDER BY seq DESC LIMIT 1").fetchone()
    raw.close()
    with Registry.open(folder) as registry:
        assert registry.journal_head() == head
        assert [v.ref for v in registry.versions("legal")] == ["legal@v3", "legal@v2", "legal@v1"]
        assert [v.state for v in registry.versions("legal")] == ["yanked", "active", "active"]
        assert registry.versions("legal")[0].licence is None and registry.versions("legal")[0].card == {}
        assert registry.resolve("legal@prod").ref == "legal@v2"
        assert registry.resolve("acme").ref == "acme@v1"
        assert [d.ref for d in registry.dependents("style@v1")] == ["acme@prod", "big@prod"]
        assert registry.evals("legal@v1")[0].score == 0.75
        # The chain goes on over the seam, and what it says is about old and new rows alike.
        registry.promote("legal@v1", "prod", why="after the migration")
        assert registry.journal_head()[0] == head[0] + 1
        problems = [p for p in registry.fsck() if "is missing from the store" not in p]
        assert problems == []


@pytest.mark.parametrize("schema", range(1, diary.SCHEMA))
def test_opening_an_old_store_twice_at_once_migrates_it_once(schema: int, tmp_path: Path) -> None:
    folder = written_by(schema, tmp_path / "old")
    with Registry.open(folder) as one, Registry.open(folder) as two:
        assert one.journal_head() == two.journal_head()
        rows = one._store.db.rows("SELECT name FROM _sqlite_migrations ORDER BY id")
        assert len(rows) == diary.SCHEMA
