"""Opening: found upward, migrated once, triggers asserted, newer refused, many processes at once."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from registry_fakes import make_adapter

from inlay.errors import InputError, IntegrityError, StoreBusy
from inlay.registry import Registry, migrations


def test_a_store_is_found_as_git_finds_its(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "team/project/deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "team/project/deep")
    with pytest.raises(InputError, match=r"no adapters_store in .*run `inlay init`"):
        Registry.open()
    with Registry.open(tmp_path / "team/adapters_store", create=True) as made, Registry.open() as found:
        assert found.path == made.path == tmp_path / "team/adapters_store"
    (tmp_path / "team/project/adapters_store").mkdir()  # a folder without a registry is none
    with Registry.open() as found:
        assert found.path == tmp_path / "team/adapters_store"
    with Registry.open(tmp_path / "other", create=True):
        monkeypatch.setenv("INLAY_STORE", str(tmp_path / "other"))
    with Registry.open() as found:
        assert found.path == tmp_path / "other"
    with pytest.raises(InputError, match="there is no registry in"):
        Registry.open(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_the_schema_is_strict_and_journaled_ahead(registry: Registry) -> None:
    connection = registry._store.db.connection
    tables = connection.execute(
        "SELECT name, strict FROM pragma_table_list WHERE schema = 'main' AND type = 'table'"
    )
    strict = {name: bool(flag) for name, flag in tables if not name.startswith(("sqlite_", "_sqlite"))}
    assert set(strict) == set(migrations.IMMUTABLE)
    assert all(strict.values())
    assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert connection.execute("PRAGMA foreign_keys").fetchone()[0] == 1
    assert connection.execute("PRAGMA recursive_triggers").fetchone()[0] == 1
    assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2
    applied = connection.execute("SELECT migration_set, name FROM _sqlite_migrations").fetchall()
    assert [row["migration_set"] for row in applied] == ["inlay"] * migrations.SCHEMA
    assert [int(row["name"][1:4]) for row in applied] == list(range(1, migrations.SCHEMA + 1))


def test_opening_a_current_store_needs_no_sqlite_utils(registry: Registry) -> None:
    script = (
        "import sys, inlay.registry as r\n"
        f"r.Registry.open({str(registry.path)!r}).names()\n"
        "print(sorted({'sqlite_utils', 'numpy', 'yaml', 'torch', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_newer_database_is_refused_with_what_to_do(registry: Registry) -> None:
    registry._store.db.connection.execute(f"PRAGMA user_version={migrations.SCHEMA + 1}")
    registry.close()
    newest = migrations.SCHEMA
    said = rf"has schema {newest + 1}, this Inlay knows up to {newest}; upgrade with `pip install -U inlay`"
    with pytest.raises(InputError, match=said):
        Registry.open(registry.path)


def test_a_dropped_or_weakened_trigger_is_noticed_on_opening(registry: Registry) -> None:
    registry._store.db.connection.execute("DROP TRIGGER journal_refuse_delete")
    registry.close()
    with pytest.raises(IntegrityError, match="lacks journal_refuse_delete"):
        Registry.open(registry.path)
    with Registry.open(registry.path, check=False) as opened:
        assert opened.fsck() == ["trigger journal_refuse_delete is missing or was changed"]
        opened._store.db.connection.execute(
            "CREATE TRIGGER journal_refuse_delete BEFORE DELETE ON journal BEGIN SELECT 1; END"
        )
    with pytest.raises(IntegrityError, match="lacks journal_refuse_delete"):
        Registry.open(registry.path)


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_bytes(b"this is not SQLite, whatever it is called" * 50)
    with pytest.raises(IntegrityError, match="not a sound SQLite file"):
        Registry.open(tmp_path)


def test_a_store_whose_rows_were_lost_is_no_new_one(three: Registry) -> None:
    three.close()
    path = three._store.db.path
    path.write_bytes(b"")
    for create in (False, True):
        with pytest.raises(IntegrityError, match="is empty, and there are objects in the store"):
            Registry.open(three.path, create=create)
    path.unlink()
    with pytest.raises(InputError, match="there is no registry"):
        Registry.open(three.path)
    with pytest.raises(IntegrityError, match="its rows were lost"):
        Registry.open(three.path, create=True)


def test_what_a_killed_init_left_is_finished(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_bytes(b"")
    with Registry.open(tmp_path) as registry:
        assert registry.fsck() == [] and registry.names() == []


def test_a_locked_store_says_try_again(three: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inlay.registry.database.WAIT_SECONDS", 0.05)
    with Registry.open(three.path) as second:
        three._store.db.connection.execute("BEGIN IMMEDIATE")
        try:
            with pytest.raises(StoreBusy, match=r"database is locked.*try again") as caught:
                second.promote("legal@v1", "prod")
        finally:
            three._store.db.connection.execute("ROLLBACK")
        assert caught.value.exit_code == 3
        second.promote("legal@v1", "prod")


def test_a_transaction_that_cannot_commit_is_not_left_open(
    three: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left open, what is done next would become part of it, and go with it."""
    db = three._store.db

    class Full:
        """A connection whose COMMIT finds the disk full."""

        def __init__(self, real: sqlite3.Connection) -> None:
            self.real = real

        def __getattr__(self, name: str) -> object:
            return getattr(self.real, name)

        def execute(self, sql: str, parameters: object = ()) -> sqlite3.Cursor:
            if sql == "COMMIT":
                raise sqlite3.OperationalError("database or disk is full")
            return self.real.execute(sql, parameters)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(db, "connection", Full(db.connection))
        with pytest.raises(StoreBusy, match="disk is full"):
            three.promote("legal@v1", "prod")
    assert not db.connection.in_transaction
    assert three.promote("legal@v2", "prod").from_ref is None
    with Registry.open(three.path) as other:
        assert other.resolve("legal@prod").number == 2


def test_foreign_keys_hold(registry: Registry) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"), registry._store.db.transaction():
        registry._store.db.insert(
            "version_files", {"version": 99, "path": "x", "size": 1, "digest": "sha256:"}
        )


def test_a_mistyped_table_is_not_made(registry: Registry) -> None:
    with pytest.raises(AssertionError, match="no such table"), registry._store.db.transaction():
        registry._store.db.insert("version", {"a": 1})
    with pytest.raises(AssertionError, match="transaction"):
        registry._store.db.insert("versions", {"a": 1})


def test_threads_share_a_registry(three: Registry) -> None:
    failures: list[BaseException] = []

    def work(n: int) -> None:
        try:
            for i in range(10):
                three.promote(f"legal@v{1 + (n + i) % 3}", f"alias{n}")
                assert three.resolve(f"legal@alias{n}").number == 1 + (n + i) % 3
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert three.fsck() == []


ADDER = """
import sys, time
from pathlib import Path
from inlay.registry import Registry
store, base, start, *folders = sys.argv[1:]
time.sleep(max(0.0, float(start) - time.time()))
with Registry.open(store, create=True) as registry:
    for folder in folders:
        version = registry.add("legal", folder, base=base)
        registry.promote(version.ref, "prod")
        print(version.number)
"""


def test_four_processes_on_a_store_that_does_not_exist_yet(base: Path, tmp_path: Path) -> None:
    import time

    folders = [str(make_adapter(tmp_path / f"a{i}", seed=i)) for i in range(12)]
    start = str(time.time() + 0.8)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ADDER, str(tmp_path / "fresh"), str(base), start, *folders[i::4]],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ},
        )
        for i in range(4)
    ]
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, 0], results
    numbers = sorted(int(line) for out, _ in results for line in out.split())
    assert numbers == list(range(1, 13))
    with Registry.open(tmp_path / "fresh") as registry:
        assert [v.number for v in registry.versions("legal")] == list(range(12, 0, -1))
        assert registry.fsck() == []
        assert [e.seq for e in registry.journal()] == list(range(24, 0, -1))
