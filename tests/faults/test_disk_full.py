"""No room: one line and exit code 3, a sound store, and all is well again when there is room."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_fakes import in_a_child, objects, said

from inlay.cli import run
from inlay.errors import StoreBusy
from inlay.registry import Registry

LIMITS = (0, 1, 100, 700, 3000, 4096, 4200, 8000, 16_000, 30_000, 33_000, 50_000, 100_000, 200_000)


def verbs(made: Path, store: Path) -> dict[str, list[str]]:
    at = ["--store", str(store)]
    return {
        "add": ["add", "legal", str(made / "legal4"), "--base", str(made / "base"), *at],
        "promote": ["promote", "legal@v3", "prod", *at],
        "yank": ["yank", "legal@v2", "--rollback-dependents", "--why", "bad", *at],
    }


def told(arguments: list[str], before: Callable[[], object] = lambda: None) -> tuple[int, str]:
    """Exit code and stderr of a verb, run in a fork after `before`. A pipe has no size that could be full."""
    read, write = os.pipe()

    def work() -> None:
        with open(write, "w", closefd=False) as words, contextlib.redirect_stderr(words):
            before()
            code = run(arguments)
        os._exit(code)

    code = in_a_child(work)
    os.close(write)
    with open(read) as words:
        return code, words.read()


def limit(size: int) -> Callable[[], object]:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def check_refused_or_done(
    verb: str, made: Path, store: Path, before: Callable[[], object] = lambda: None
) -> bool:
    """Whether there was room. Where there was none: one line, exit code 3, the rows as they were."""
    rows = said(store)
    code, err = told(verbs(made, store)[verb], before)
    assert code in (0, 3), (code, err)
    if code == 3:
        assert len(err.splitlines()) == 1 and err.startswith("inlay: "), err
        assert any(word in err for word in ("No space left", "File too large", "disk")), err
        assert "Traceback" not in err
        assert said(store) == rows
    with Registry.open(store) as registry:
        assert registry.fsck() == []
    return code == 0


@pytest.mark.parametrize("verb", ["add", "promote", pytest.param("yank", marks=pytest.mark.slow)])
def test_files_that_may_not_grow(verb: str, made: Path, tmp_path: Path) -> None:
    """Oracle: the same verb where there is room."""
    wanted = tmp_path / "wanted"
    shutil.copytree(made / "store", wanted)
    assert run(verbs(made, wanted)[verb]) == 0
    outcomes = []
    for size in LIMITS:
        store = tmp_path / "store"
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(made / "store", store)
        outcomes.append(check_refused_or_done(verb, made, store, limit(size)))
        assert run(verbs(made, store)[verb]) == 0 or outcomes[-1]  # a yank and a promotion are done already
        assert said(store) == said(wanted)
        with Registry.open(store) as registry:
            registry.gc(grace=0)
        assert objects(store) == objects(wanted)
    assert outcomes[0] is False and outcomes[-1] is True and sorted(outcomes) == outcomes


def test_the_library_says_so_too(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "store", tmp_path / "store")

    def work() -> None:
        with Registry.open(tmp_path / "store") as registry:
            limit(1000)()
            for attempt in (
                lambda: registry.put_object(b"x" * 5000),
                lambda: registry.promote("legal@v3", "prod"),
                lambda: registry.add("legal", made / "legal4", base=made / "base"),
            ):
                with pytest.raises(StoreBusy):
                    attempt()
            limit(1 << 30)()
            assert registry.promote("legal@v3", "prod").from_ref == "legal@v2"  # the same connection goes on
            assert registry.fsck() == []

    assert in_a_child(work) == 0
    with Registry.open(tmp_path / "store") as registry:
        assert registry.resolve("legal@prod").number == 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB with the store on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_without_room(small_disk: Path, made: Path, tmp_path: Path) -> None:
    store, ballast = small_disk / "store", small_disk / "ballast"
    outcomes: dict[str, list[bool]] = {"add": [], "promote": []}
    for verb in outcomes:
        for room in (0, 4, 8, 16, 36, 64, 128, 256):  # KiB; a write-ahead log needs 32 for its index
            shutil.copytree(made / "store", store)
            with open(ballast, "wb", buffering=0) as file:
                with pytest.raises(OSError, match="No space left"):
                    while True:
                        file.write(bytes(4096))
                file.truncate(max(0, file.tell() // 4096 * 4096 - room * 1024))
            rows = said(made / "store")
            code, err = told(verbs(made, store)[verb])
            assert code in (0, 3), (code, err)
            if code == 3:
                assert len(err.splitlines()) == 1 and err.startswith("inlay: "), err
            ballast.unlink()
            if code == 3:
                assert said(store) == rows
            with Registry.open(store) as registry:
                assert registry.fsck() == []
            assert told(verbs(made, store)[verb]) == (0, "")
            with Registry.open(store) as registry:
                assert registry.fsck() == []
                assert len(registry.versions("legal")) == (4 if verb == "add" else 3)
            outcomes[verb].append(code == 0)
            shutil.rmtree(store)
    for found in outcomes.values():
        assert found[0] is False and found[-1] is True
