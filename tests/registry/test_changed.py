"""`Registry.changed`: one look at what others did, wherever the file at the path comes from."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from inlay.errors import IntegrityError, StoreBusy
from inlay.registry import Registry


def test_the_names_that_others_wrote_about(three: Registry) -> None:
    """Every row since, once each; nothing where nothing came."""
    head, names = three.changed()
    assert (head, names) == (three.journal_head(), None), "nobody said since when"
    assert three.changed(head) == (head, frozenset())
    with Registry.open(three.path) as other:
        other.promote("legal@v1", "prod")
        other.promote("legal@v2", "prod")
        other.lock("acme", {"stack": ["legal@v1"]})
    later, names = three.changed(head)
    assert names == {"legal", "acme"} and later == three.journal_head()
    assert three.changed(later) == (later, frozenset())
    assert three.changed((later[0], "sha256:" + "0" * 64)) == (later, None), "another journal's row"
    assert three.changed((later[0] + 5, later[1])) == (later, None)


def test_an_empty_journal_has_a_head_too(tmp_path: Path) -> None:
    with Registry.open(tmp_path / "store", create=True) as store:
        head, _ = store.changed()
        assert head[0] == 0 and store.changed(head) == (head, frozenset())


def test_another_file_at_the_path_is_read_from_then_on(three: Registry, tmp_path: Path) -> None:
    head, _ = three.changed()
    shutil.copytree(three.path, tmp_path / "copy")
    with Registry.open(tmp_path / "copy") as copy:
        copy.promote("legal@v2", "prod")
        expected = copy.journal_head()
    three.path.rename(tmp_path / "away")
    with pytest.raises(StoreBusy, match="is gone; put it back"):
        three.changed(head)
    assert three.journal_head() == head, "what was open stays so"
    (tmp_path / "copy").rename(three.path)
    assert three.changed(head) == (expected, None)
    assert three.resolve("legal@prod").ref == "legal@v2"
    assert three.changed(expected) == (expected, frozenset())
    three.promote("legal@v1", "prod", why="it can be written to as well")
    with Registry.open(three.path) as other:
        assert other.resolve("legal@prod").ref == "legal@v1"


def test_what_is_no_registry_of_ours_is_left_alone_and_the_old_one_stays_open(
    three: Registry, tmp_path: Path
) -> None:
    head, _ = three.changed()
    database = three.path / "registry.db"
    three.path.rename(tmp_path / "away")
    three.path.mkdir()
    for data, said in (
        (b"", "must have schema .* and has 0"),
        (b"no SQLite, whatever it says" * 99, "sound"),
    ):
        database.write_bytes(data)
        with pytest.raises((StoreBusy, IntegrityError), match=said):
            three.changed(head)
        assert database.read_bytes() == data and three.journal_head() == head
    database.unlink()
    with sqlite3.connect(database) as newer:
        newer.execute("PRAGMA user_version=999")
    with pytest.raises(StoreBusy, match="and has 999"):
        three.changed(head)
    shutil.rmtree(three.path)
    (tmp_path / "away").rename(three.path)
    assert three.changed(head) == (head, frozenset())
