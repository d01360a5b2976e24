"""Versions: numbered, the same bytes once, immutable by trigger, verified when read."""

from __future__ import annotations

import os
import pickle
import shutil
import sqlite3
from dataclasses import asdict
from pathlib import Path

import pytest
from registry_fakes import make_adapter, make_base, put_suite, score

from inlay.errors import BaseMismatch, InputError, IntegrityError, ReferenceNotFound
from inlay.registry import Registry
from inlay.registry.migrations import IMMUTABLE


def test_numbers_count_and_the_newest_comes_first(three: Registry) -> None:
    assert [v.ref for v in three.versions("legal")] == ["legal@v3", "legal@v2", "legal@v1"]
    assert [v.ref for v in three.versions("legal", limit=2)] == ["legal@v3", "legal@v2"]
    one = three.resolve("legal@v1")
    assert (one.kind, one.rank, one.targets, one.parameters) == ("lora", 2, ("q_proj", "v_proj"), 128)
    assert (one.author, one.exactness, one.yanked, one.base.name) == ("anna", "exact", False, "base")
    assert Path(one.base.source).name == "base" and Path(one.base.source).is_dir()


def test_the_same_bytes_are_the_same_version(three: Registry, base: Path, tmp_path: Path) -> None:
    again = three.add("legal", make_adapter(tmp_path / "again", seed=2), base=base, why="another why")
    assert again == three.resolve("legal@v2")
    assert len(three.versions("legal")) == 3
    elsewhere = three.add("contracts", make_adapter(tmp_path / "again", seed=2), base=base)
    assert (elsewhere.ref, elsewhere.digest) == ("contracts@v1", again.digest)


def test_the_same_bytes_for_another_base_are_refused(three: Registry, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", seed=5)
    with pytest.raises(BaseMismatch, match="these bytes are legal@v2 already"):
        three.add("legal", make_adapter(tmp_path / "again", seed=2), base=other)


def test_a_digest_is_enough_and_must_be_long_enough(three: Registry) -> None:
    version = three.resolve("legal@v2")
    assert three.resolve(version.digest) == version
    assert three.resolve(version.digest[:16]) == version
    assert three.resolve(f"legal@{version.digest[:15]}") == version
    with pytest.raises(ReferenceNotFound):
        three.resolve(f"style@{version.digest}")


def test_unknown_references_suggest_close_ones(three: Registry) -> None:
    three.promote("legal@v1", "prod")
    with pytest.raises(ReferenceNotFound, match="did you mean legal"):
        three.resolve("leagl@v1")
    with pytest.raises(ReferenceNotFound, match="did you mean prod"):
        three.resolve("legal@prdo")
    with pytest.raises(ReferenceNotFound, match="the newest is legal@v3"):
        three.resolve("legal@v4")
    with pytest.raises(ReferenceNotFound, match="promote a version"):
        three.resolve("style")


def test_a_variants_name_is_not_an_adapters(three: Registry, base: Path, tmp_path: Path) -> None:
    three.lock("acme", {"stack": ["legal@v1"]})
    with pytest.raises(InputError, match="acme is a variant's name"):
        three.add("acme", make_adapter(tmp_path / "x"), base=base)
    with pytest.raises(InputError, match="legal is an adapter's name"):
        three.lock("legal", {"stack": ["style@v1"]})


def test_the_training_record_comes_back(registry: Registry, base: Path, tmp_path: Path) -> None:
    run = {"examples": ["what is owed?"], "task": "legal", "dataset": {"rows": 12}, "loss": [1.5, 0.25]}
    version = registry.add(
        "legal", make_adapter(tmp_path / "a"), base=base, run=run, lineage={"from": "pissa"}
    )
    assert registry.run_of(version) == run
    assert version.lineage == {"from": "pissa"}
    other = registry.add("legal", make_adapter(tmp_path / "b", seed=5), base=base)
    assert registry.run_of(other) is None
    with pytest.raises(InputError, match="plain JSON"):
        registry.add("legal", make_adapter(tmp_path / "c", seed=6), base=base, run={"loss": float("nan")})


def test_files_are_verified_when_read(three: Registry) -> None:
    version = three.resolve("legal@v1")
    config = (version.path / "adapter_config.json").read_bytes()
    assert three.read_file(version, "adapter_config.json") == config
    target = (version.path / "adapter_model.safetensors").resolve()
    assert target.is_relative_to(three.path / "objects")
    assert not os.path.isabs(os.readlink(version.path / "adapter_model.safetensors"))
    os.chmod(target, 0o644)
    data = bytearray(target.read_bytes())
    data[-1] ^= 1
    target.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors' no longer has the bytes"):
        three.read_file(version, "adapter_model.safetensors")
    with pytest.raises(IntegrityError, match="adapter_model"):
        _ = version.path
    for path in ("../registry.db", "/etc/passwd", "nothing"):
        with pytest.raises(InputError, match="has no file"):
            three.read_file(version, path)


def test_a_record_can_be_copied_and_sent_and_outlives_the_registry(three: Registry) -> None:
    version = three.resolve("legal@v1")
    three.close()
    sent = pickle.loads(pickle.dumps(version))
    assert sent == version
    assert asdict(version)["base"]["name"] == "base"
    assert (sent.path / "adapter_config.json").is_file()


def test_the_folder_is_a_cache(three: Registry, tmp_path: Path) -> None:
    folder = three.resolve("legal@v1").path
    shutil.rmtree(three.path / "exports")
    assert three.resolve("legal@v1").path == folder
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")  # somebody meddles
    assert (three.resolve("legal@v1").path / "adapter_config.json").is_symlink()
    moved = tmp_path / "moved"
    three.close()
    three.path.rename(moved)
    with Registry.open(moved) as registry:
        path = registry.resolve("legal@v1").path
        assert (path / "adapter_model.safetensors").stat().st_size > 100


@pytest.mark.parametrize("table", IMMUTABLE)
def test_rows_refuse_update_delete_and_replace(table: str, three: Registry) -> None:
    put_suite(three, "general")
    score(three, "legal@v1", "general", (True, False, True, True))
    three.put_report("legal@v1", "forgetting", {"lost": 0.5})
    three.lock("acme", {"stack": ["legal@v1"]})
    three.promote("legal@v1", "prod")
    three.revoke_key(three.add_key("acme-corp")[0].id, "lost")
    connection = sqlite3.connect(three.path / "registry.db")
    connection.execute("PRAGMA recursive_triggers=ON")
    before = connection.execute(f"SELECT * FROM {table}").fetchall()
    assert before
    column = connection.execute(f"SELECT name FROM pragma_table_info('{table}') LIMIT 1").fetchone()[0]
    for sql in (
        f"UPDATE {table} SET {column} = {column}",
        f"DELETE FROM {table}",
        f"REPLACE INTO {table} SELECT * FROM {table}",
        f"INSERT OR REPLACE INTO {table} SELECT * FROM {table} LIMIT 1",
    ):
        with pytest.raises(sqlite3.IntegrityError, match=f"{table} are immutable"):
            connection.execute(sql)
        connection.rollback()
    assert connection.execute(f"SELECT * FROM {table}").fetchall() == before
    connection.close()


def test_our_own_connection_refuses_replace_through_sqlite_utils(three: Registry) -> None:
    import sqlite_utils

    db = sqlite_utils.Database(three._store.db.connection)
    row = dict(next(db.query("SELECT * FROM versions WHERE id = 1")))
    for write in (
        lambda: db["versions"].insert({**row, "digest": "x"}, replace=True),
        lambda: db["versions"].upsert({**row, "digest": "x"}, pk="id"),
        lambda: db["versions"].update(1, {"digest": "x"}),
        lambda: db["versions"].delete(1),
    ):
        with pytest.raises(sqlite3.IntegrityError, match="versions are immutable"):
            write()
    assert three.resolve("legal@v1").digest == row["digest"]


def test_listing(three: Registry) -> None:
    three.promote("legal@v2", "prod")
    three.promote("legal@v3", "staging")
    three.yank("legal@v1", why="old")
    three.lock("acme", {"stack": ["legal@prod", "style@v1"]})
    rows = {row.name: row for row in three.names()}
    assert list(rows) == ["acme", "legal", "style"]
    assert rows["legal"].aliases == {"prod": "legal@v2", "staging": "legal@v3"}
    assert (rows["legal"].latest, rows["legal"].yanked, rows["legal"].owner) == (3, 1, "anna")
    assert (rows["acme"].kind, rows["acme"].latest, rows["acme"].aliases) == ("variant", 1, {})
    assert [row.name for row in three.names("adapter")] == ["legal", "style"]
