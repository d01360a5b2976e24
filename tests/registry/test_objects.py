"""The content-addressed folder: written once, verified on every read, nothing left behind."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest

from inlay.errors import InputError, IntegrityError
from inlay.registry import canonical, digest_of, digest_of_json
from inlay.registry.objects import Objects, _Incoming


def test_equal_values_have_equal_canonical_bytes() -> None:
    assert canonical({"b": [1, 2.5, None, True], "a": "é\n"}) == '{"a":"é\\n","b":[1,2.5,null,true]}'
    assert digest_of_json({"b": 1, "a": 2}) == digest_of_json({"a": 2, "b": 1}) == digest_of(b'{"a":2,"b":1}')
    assert digest_of_json("text") != digest_of("text")
    for value in (float("nan"), b"bytes", {1, 2}, object()):
        with pytest.raises(InputError, match="plain JSON"):
            canonical(value)


def test_bytes_and_files_share_one_object(tmp_path: Path) -> None:
    objects = Objects(tmp_path)
    digest = objects.put_bytes(b"hello")
    (tmp_path / "file").write_bytes(b"hello")
    assert objects.put_file(tmp_path / "file") == (digest, 5)
    assert digest == "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert [d for d, _ in objects.all()] == [digest]
    path = objects.path(digest)
    assert path == tmp_path / "objects/sha256/2c" / digest[7:]
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert objects.leftovers() == []


def test_a_changed_or_missing_object_is_noticed(tmp_path: Path) -> None:
    objects = Objects(tmp_path)
    digest = objects.put_bytes(b"hello")
    os.chmod(objects.path(digest), 0o644)
    objects.path(digest).write_bytes(b"hellO")
    for read in (objects.read, objects.verify):
        with pytest.raises(IntegrityError, match="weights no longer has the bytes"):
            read(digest, what="weights")
    with pytest.raises(IntegrityError, match="missing"):
        objects.read(digest_of(b"never stored"))


def test_storing_good_bytes_again_heals_broken_ones(tmp_path: Path) -> None:
    objects = Objects(tmp_path)
    digest = objects.put_bytes(b"hello")
    os.chmod(objects.path(digest), 0o644)
    objects.path(digest).write_bytes(b"hellO")
    assert objects.put_bytes(b"hello") == digest
    assert objects.read(digest) == b"hello"


def test_storing_again_renews_the_grace_period(tmp_path: Path) -> None:
    objects = Objects(tmp_path)
    path = objects.path(objects.put_bytes(b"hello"))
    os.utime(path, (0, 0))
    objects.put_bytes(b"hello")
    assert path.stat().st_mtime > 1_000_000


def test_what_is_missing_is_named_once_and_in_order(tmp_path: Path) -> None:
    objects = Objects(tmp_path)
    there, gone, other = objects.put_bytes(b"there"), digest_of(b"gone"), digest_of(b"other")
    assert objects.missing([other, there, gone, other]) == [other, gone]
    assert objects.missing([there]) == objects.missing([]) == []
    objects.path(there).unlink()
    assert objects.missing([there]) == [there]


def test_a_file_on_its_way_in_is_no_leftover(tmp_path: Path) -> None:
    objects = Objects(tmp_path)
    assert objects.leftovers() == []  # not even the folder is there
    with _Incoming(objects) as incoming:
        incoming.write(b"half")
        assert len(list(objects.temporary.iterdir())) == 1
        assert objects.leftovers() == []
    assert list(objects.temporary.iterdir()) == []
    if (child := os.fork()) == 0:  # a writer that is killed: its lock goes with it, the file stays
        _Incoming(objects).__enter__().write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert [path.read_bytes() for path in objects.leftovers()] == [b"half"]


@pytest.mark.parametrize(
    "digest", ["", "sha256:../../etc/passwd", "sha256:ab", "md5:" + "a" * 64, "sha256:" + "A" * 64]
)
def test_only_whole_digests_name_objects(digest: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="64 hex digits"):
        Objects(tmp_path).path(digest)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"secret")
    os.symlink(tmp_path / "real", tmp_path / "link")
    with pytest.raises(InputError, match="cannot read"):
        Objects(tmp_path).put_file(tmp_path / "link")
    assert list(Objects(tmp_path).all()) == []
