"""The cache of measurements: bounded, refreshed, verified, shared by processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inlay.errors import InputError
from inlay.evals.cache import LIMIT, STALE, UNFINISHED, Cache, limit_of_environment

ENTRY = 65
"""Bytes of an entry beside its payload."""


def aged(cache: Cache, name: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(cache.path("drift", name), (then, then))


def size_of(root: Path) -> int:
    return sum(file.stat().st_size for file in root.rglob("*") if file.is_file())


def test_what_was_written_is_read(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)
    assert cache.read("drift", "a") is None
    assert cache.write("drift", "a", b"\x00payload") and cache.write("answers", "a", b"")
    assert cache.read("drift", "a") == b"\x00payload"
    assert cache.read("answers", "a") == b""
    assert size_of(tmp_path) == 2 * ENTRY + 8


def test_the_bound_holds_and_what_was_used_last_stays(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 3 * (ENTRY + 100))
    for k, name in enumerate("abc"):
        assert cache.write("drift", name, bytes(100))
        aged(cache, name, 100 - k)
    assert cache.read("drift", "a") == bytes(100)  # the oldest, used again
    cache.write("answers", "d", bytes(100))  # of another kind, and yet within one bound
    assert [n for n in "abc" if cache.path("drift", n).exists()] == ["a", "c"]
    assert cache.read("answers", "d") == bytes(100)
    assert size_of(tmp_path) == cache.limit
    for k in range(20):
        cache.write("drift", f"x{k}", bytes(70 * k % 390))
        assert size_of(tmp_path) <= cache.limit


def test_what_is_larger_than_the_bound_is_not_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path, ENTRY + 10)
    assert cache.write("drift", "small", bytes(10))
    assert not cache.write("drift", "large", bytes(11))
    assert cache.read("drift", "small") == bytes(10) and cache.read("drift", "large") is None
    assert not Cache(tmp_path / "none", 0).write("drift", "a", b"")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("damage", [b"", b"x", b"0" * ENTRY, b"\xff" * 200])
def test_a_damaged_entry_is_none(tmp_path: Path, damage: bytes) -> None:
    cache = Cache(tmp_path, 1000)
    cache.write("drift", "a", b"payload")
    whole = cache.path("drift", "a").read_bytes()
    for bad in (damage, whole[:-1], whole + b"!", whole[:-1] + b"x"):
        cache.path("drift", "a").write_bytes(bad)
        assert cache.read("drift", "a") is None
    assert cache.write("drift", "a", b"payload") and cache.read("drift", "a") == b"payload"


def test_a_folder_that_takes_nothing_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "drift").write_text("a file where the folder should be")
    cache = Cache(tmp_path, 1000)
    assert not cache.write("drift", "a", b"payload") and cache.read("drift", "a") is None


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)
    cache.write("drift", "a", b"payload")
    old, young = (tmp_path / "drift" / f".{name}{UNFINISHED}" for name in ("old", "young"))
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    then = time.time() - STALE - 1
    os.utime(old, (then, then))
    other = tmp_path / "fingerprints" / "x.json"
    other.parent.mkdir()
    other.write_text("{}")
    cache.prune()
    assert (old.exists(), young.exists(), other.exists()) == (False, True, True)


def test_the_bound_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("INLAY_CACHE_BYTES", raising=False)
    assert limit_of_environment() == LIMIT == 4 * 1024**3
    monkeypatch.setenv("INLAY_CACHE_BYTES", "1000")
    monkeypatch.setenv("INLAY_CACHE", str(tmp_path))
    assert Cache.of_environment() == Cache(tmp_path, 1000)
    for bad in ("4G", "-1", "1.5"):
        monkeypatch.setenv("INLAY_CACHE_BYTES", bad)
        with pytest.raises(InputError, match="whole number of bytes"):
            limit_of_environment()


WORKER = """
import sys
from pathlib import Path
from inlay.evals.cache import Cache

cache, me = Cache(Path(sys.argv[1]), 40_000), int(sys.argv[2])
for turn in range(150):
    name = str((turn * 7 + me) % 23)
    held = cache.read("drift", name)
    assert held is None or held == name.encode() * 1000, name
    cache.write("drift", name, name.encode() * 1000)
"""


def test_two_processes_share_one(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), str(k)], stderr=subprocess.PIPE)
        for k in range(2)
    ]
    errors = [worker.communicate(timeout=60)[1].decode() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    assert 0 < size_of(tmp_path) <= 40_000
    assert not list(tmp_path.rglob(f"*{UNFINISHED}"))
