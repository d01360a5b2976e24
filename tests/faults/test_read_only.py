"""A store that nobody here may write to: reading works, writing says so with exit code 3. And a moved one."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_fakes import in_a_child, objects, said

from inlay.cli import run
from inlay.errors import IntegrityError, StoreBusy
from inlay.registry import Registry
from inlay.registry.database import Database

NOBODY = 65534


def close_for_writing(store: Path) -> None:
    for path in [store, *store.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)


def load_all(made: Path, spare: Path) -> None:
    """Do everything once on a copy: a stranger may not be able to read the Python that must be imported."""
    shutil.copytree(made / "store", spare)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        for verb in (["promote", "legal@v3"], ["gc"], ["ls"], ["show", "legal@prod"], ["log"], ["fsck"]):
            assert run([*verb, "--store", str(spare)]) == 0, verb


def as_a_stranger(cache: Path) -> None:
    """From here on this process may write to `cache` only, and to what everybody may write to."""
    os.environ["INLAY_CACHE"] = str(cache)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


@pytest.fixture
def shared(made: Path, reachable: Path) -> Path:
    """A folder with a store, adapters and a base that strangers may read and nobody but root may write."""
    for part in ("store", "base", "legal4"):
        shutil.copytree(made / part, reachable / part)
    (reachable / "cache").mkdir()
    (reachable / "cache").chmod(0o777)
    for path in reachable.rglob("*"):
        path.chmod(path.stat().st_mode | 0o444)
    return reachable


def read_all(store: Path) -> None:
    """Everything that only reads."""
    with Registry.open(store) as registry:
        assert [row.name for row in registry.names()] == ["acme", "legal", "outer", "routed", "style"]
        version = registry.resolve("legal@prod")
        assert version.ref == "legal@v2" and len(registry.versions("legal")) == 3
        assert registry.resolve("acme@prod").ref == "acme@v2"
        assert registry.journal()[0].verb == "yank"
        assert registry.evals("legal@v1")[0].score == 0.75
        assert registry.reports("legal@v1") == [{"lost": 0.25}]
        assert (registry.run_of(version) or {})["dataset"]["name"] == "clauses2"
        weights = registry.read_file(version, "adapter_model.safetensors")
        assert (version.path / "adapter_model.safetensors").read_bytes() == weights
        assert version.path == version.path
        assert registry.fsck() == []
        assert registry.pin("stack: [legal@prod, style@v1]", routers={}).members[0].ref == "legal@v2"


def refuse_all(store: Path, folder: Path) -> None:
    """Everything that writes, through the library and through the command line."""
    with Registry.open(store) as registry:
        for attempt in (
            lambda: registry.add("legal", folder / "legal4", base=folder / "base"),
            lambda: registry.promote("legal@v3", "prod"),
            lambda: registry.rollback("legal@prod", why="bad"),
            lambda: registry.yank("legal@v3", why="bad"),
            lambda: registry.lock("acme", "legal@v3"),
            lambda: registry.put_object(b"new"),
            lambda: registry.set_guard("legal@prod", None),
            lambda: registry.describe("legal", owner="me"),
            lambda: registry.gc(grace=0),
        ):
            with pytest.raises(StoreBusy):
                attempt()
        assert not registry._store.db.connection.in_transaction
        assert registry.resolve("legal@prod").number == 2
    for arguments in (
        ["promote", "legal@v3", "prod"],
        ["add", "legal", str(folder / "legal4"), "--base", str(folder / "base")],
        ["gc"],
        ["init", str(store / "inner")],
    ):
        with open(folder / "cache" / "err", "w+") as err, contextlib.redirect_stderr(err):
            at = [] if arguments[0] == "init" else ["--store", str(store)]
            code = run([*arguments, *at])
            err.seek(0)
            assert code == 3, (arguments, err.read())
            err.seek(0)
            lines = err.read().splitlines()
        assert len(lines) == 1 and lines[0].startswith("inlay: "), lines
    for arguments in (["ls"], ["show", "legal@prod"], ["log"], ["fsck"]):
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            assert run([*arguments, "--store", str(store)]) == 0, arguments


def test_without_write_permission(shared: Path, made: Path, tmp_path: Path) -> None:
    before = (said(shared / "store"), objects(shared / "store"))
    close_for_writing(shared / "store")
    listed = sorted(os.listdir(shared / "store"))

    def work() -> None:
        load_all(made, tmp_path / "spare")
        as_a_stranger(shared / "cache")
        read_all(shared / "store")
        refuse_all(shared / "store", shared)

    assert in_a_child(work) == 0
    assert sorted(os.listdir(shared / "store")) == listed
    (shared / "store").chmod(0o755)
    assert (said(shared / "store"), objects(shared / "store")) == before


def test_folders_that_somebody_who_may_made_are_used(shared: Path) -> None:
    with Registry.open(shared / "store") as registry:
        folder = registry.resolve("legal@v2").path
    close_for_writing(shared / "store")

    def work() -> None:
        as_a_stranger(shared / "cache")
        with Registry.open(shared / "store") as registry:
            assert registry.resolve("legal@v2").path == folder
            found = registry.resolve("legal@v3").path
            assert found.is_relative_to(shared / "cache") and (found / "adapter_config.json").is_file()

    assert in_a_child(work) == 0


def test_while_somebody_else_writes(shared: Path) -> None:
    """Its -wal and -shm are there then, and what was committed is seen at once."""
    with Registry.open(shared / "store") as writer:
        writer.promote("legal@v3", "prod")
        close_for_writing(shared / "store")

        def work() -> None:
            as_a_stranger(shared / "cache")
            with Registry.open(shared / "store") as registry:
                assert registry._store.db._unlocked is None
                assert registry.resolve("legal@prod").number == 3
                with pytest.raises(StoreBusy, match="readonly"):
                    registry.promote("legal@v1", "prod")
                with pytest.raises(StoreBusy):  # its BEGIN IMMEDIATE would lock nobody out
                    registry.gc(grace=0, dry_run=True)

        assert in_a_child(work) == 0


def test_a_writer_that_comes_and_goes_is_followed(shared: Path) -> None:
    """The stranger has it open as immutable; every answer is that of some moment, none is torn."""
    close_for_writing(shared / "store")
    ask, answer = os.pipe(), os.pipe()

    def work() -> None:
        os.close(ask[1])
        as_a_stranger(shared / "cache")
        with Registry.open(shared / "store") as registry:
            assert registry._store.db._unlocked is not None
            while os.read(ask[0], 1):
                os.write(answer[1], str(registry.resolve("legal@prod").number).encode())

    def number() -> str:
        os.write(ask[1], b"?")
        return os.read(answer[0], 9).decode()

    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    assert number() == "2"
    # Whoever has the rights: here root, or the owner who gives them to himself for a moment.
    for path in (shared / "store", shared / "store/registry.db"):
        path.chmod(path.stat().st_mode | 0o200)
    with Registry.open(shared / "store") as writer:
        assert number() == "2"
        writer.promote("legal@v3", "prod")
        assert number() == "3"
    assert number() == "3"
    with Registry.open(shared / "store") as writer:
        writer.promote("legal@v1", "prod")
    assert number() == "1"
    os.close(ask[1])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_read_that_a_writer_fell_into_is_read_again(
    full: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As seen from inside: the file changes between the check before a SELECT and the one after it."""
    path = full._store.db.path
    full.close()
    stranger = Database(path)
    stranger.connection.close()
    stranger.connection = stranger._open("mode=ro&immutable=1")
    stranger._unlocked = stranger._stamp()
    sql = "SELECT to_number FROM journal WHERE name = 'legal' AND moves = 1 ORDER BY seq DESC LIMIT 1"
    assert stranger.rows(sql)[0][0] == 2
    real, meddled = Database._stamp, []

    def stamp(database: Database) -> tuple[int, ...]:
        found = real(database)
        if not meddled:
            meddled.append(True)
            with Registry.open(path.parent) as writer:
                writer.promote("legal@v3", "prod")
        return found

    monkeypatch.setattr(Database, "_stamp", stamp)
    assert stranger.rows(sql)[0][0] == 3
    stranger.close()


def test_several_reads_of_one_view_never_mix_two_moments(full: Registry) -> None:
    path = full._store.db.path
    full.close()
    stranger = Database(path)
    stranger.connection.close()
    stranger.connection = stranger._open("mode=ro&immutable=1")
    stranger._unlocked = stranger._stamp()
    with pytest.raises(StoreBusy, match="was written to while it was read; try again"), stranger.reading():
        assert len(stranger.rows("SELECT * FROM versions WHERE name = 'legal'")) == 3
        with Registry.open(path.parent) as writer:
            writer.promote("legal@v3", "prod")
        stranger.rows("SELECT * FROM journal")
    assert len(stranger.rows("SELECT * FROM journal WHERE name = 'legal'")) > 0  # by itself it goes on
    stranger.close()


def test_a_log_without_its_index_is_not_ignored(shared: Path) -> None:
    """Copied with a -wal that holds commits and without the -shm: to read it as immutable would lose them."""
    store = shared / "store"
    with Registry.open(store) as writer:
        writer.promote("legal@v3", "prod")
        shutil.copy(store / "registry.db-wal", store / "kept")
    shutil.move(store / "kept", store / "registry.db-wal")
    close_for_writing(store)

    def work() -> None:
        as_a_stranger(shared / "cache")
        with pytest.raises(StoreBusy, match="unable to open database file"):
            Registry.open(store)

    assert in_a_child(work) == 0


def test_an_old_schema_is_not_migrated_by_who_may_not(shared: Path) -> None:
    connection = sqlite3.connect(shared / "store/registry.db")
    connection.execute("PRAGMA user_version=1")
    connection.close()
    close_for_writing(shared / "store")

    def work() -> None:
        as_a_stranger(shared / "cache")
        with pytest.raises(StoreBusy, match=r"has schema 1 and must be brought up to .*needs leave to write"):
            Registry.open(shared / "store")

    assert in_a_child(work) == 0


def test_a_changed_file_is_found_by_strangers_too(shared: Path) -> None:
    with Registry.open(shared / "store") as registry:
        manifest = registry._store.manifest(registry.resolve("legal@v2").digest)
        path = registry._store.objects.path(str(manifest[1]["sha256"]))
    path.chmod(0o644)
    path.write_bytes(b"something else")
    close_for_writing(shared / "store")

    def work() -> None:
        as_a_stranger(shared / "cache")
        with Registry.open(shared / "store") as registry:
            with pytest.raises(IntegrityError, match="no longer has the bytes"):
                _ = registry.resolve("legal@v2").path
            assert len(registry.fsck()) == 1

    assert in_a_child(work) == 0


@pytest.fixture
def read_only_mount(shared: Path) -> Iterator[Path]:
    """`shared`'s store again, at another path, on a read-only mount."""
    place = shared / "mounted"
    place.mkdir()
    try:
        bound = subprocess.run(["mount", "--bind", str(shared / "store"), str(place)], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if bound.returncode != 0:
        pytest.skip(f"a read-only mount cannot be made here: {bound.stderr.decode().strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(place)], check=True)
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_read_only_mount(shared: Path, read_only_mount: Path) -> None:
    """Root may do anything there but write."""

    def work() -> None:
        os.environ["INLAY_CACHE"] = str(shared / "cache")
        read_all(read_only_mount)
        refuse_all(read_only_mount, shared)

    assert in_a_child(work) == 0


def test_a_store_that_moved(made: Path, tmp_path: Path) -> None:
    """Links made at the old place, a rename, a copy, a link to it: all is found and all is sound."""
    shutil.copytree(made / "store", tmp_path / "here")
    with Registry.open(tmp_path / "here") as registry:
        for ref in ("legal@v1", "legal@v2", "style@v1"):
            assert registry.resolve(ref).path.is_dir()
        rows = said(registry.path)
    (tmp_path / "far/away").mkdir(parents=True)
    (tmp_path / "here").rename(tmp_path / "far/away/there")
    shutil.copytree(tmp_path / "far/away/there", tmp_path / "copy", symlinks=True)
    (tmp_path / "link").symlink_to(tmp_path / "far/away/there")
    for place in ("far/away/there", "copy", "link"):
        store = tmp_path / place
        assert said(store) == rows
        with Registry.open(store) as registry:
            assert registry.fsck() == [] and registry.gc(grace=0) == []
            for version in registry.versions("legal"):
                folder = version.path
                assert folder.is_relative_to(store)
                for name in ("adapter_config.json", "adapter_model.safetensors"):
                    assert (folder / name).read_bytes() == registry.read_file(version, name)
                    assert (folder / name).resolve().is_relative_to(store.resolve())
            assert registry.resolve("acme@prod").ref == "acme@v2"
    with Registry.open(tmp_path / "copy") as registry:
        assert registry.add("legal", made / "legal4", base=made / "base").number == 4
        assert registry.rollback("legal@prod", why="bad", dependents=True)[1].to_ref == "acme@v1"
        assert registry.fsck() == []
