"""Kill a process before each of its steps, one step later every time, and look at what it left.

Run by test_killed.py in a process of its own, so that a fork is cheap: `python killing.py FOLDER OPERATION
WORK steps`, where FOLDER is what the `made` fixture made. Prints one JSON object.

A step is a call that changes the disk (a write counts twice: before it and when half of it is done), or an
SQL statement. They are counted by wrapping `os` and `sqlite3.connect` in the child; the product knows nothing
of it. With `calls` in place of `steps` it is every system call that changes the disk, SQLite's own among
them.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "registry")]

import system_calls  # noqa: E402
from fault_fakes import ROUTE, objects, said  # noqa: E402

from inlay.registry import Registry  # noqa: E402

CALLS = (
    "open", "close", "fsync", "replace", "rename", "link", "unlink", "rmdir", "mkdir", "chmod", "fchmod",
    "symlink", "truncate", "ftruncate", "utime",
)  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """What is killed: `prepare` the copy of the store, then `perform` until it survives.

    `again` says that performing it twice means the same as once; `start`, what it is performed on: the
    "full" store, an "empty" one, or "nothing". Only every `stride`th step is deadly, where there are very
    many of the same kind.
    """

    perform: Callable[[Registry, Path], object]
    prepare: Callable[[Registry, Path], object] = lambda registry, made: None
    again: bool = True
    start: str = "full"
    stride: int = 1


def _leave_something(registry: Registry, made: Path) -> None:
    for number in range(4):
        registry.put_object(f"nobody refers to this {number}".encode())
        (registry.path / "objects" / "tmp" / f"left{number}").write_bytes(b"half")


def _add(name: str, seed: int) -> Callable[[Registry, Path], object]:
    return lambda registry, made: registry.add(
        name, made / f"legal{seed}", base=made / "base", why="x", run={"dataset": {"name": "new"}}
    )


def _put_suite(registry: Registry, made: Path) -> object:
    from registry_fakes import put_suite

    return put_suite(registry, "target", 6)


def _score(registry: Registry, made: Path) -> object:
    from registry_fakes import score

    return score(registry, "legal@v2", "general", (True, True, True, True))


OPERATIONS = {
    "init": Operation(lambda registry, made: None, start="nothing", stride=3),
    "add the next version": Operation(_add("legal", 4)),
    "promote": Operation(lambda registry, made: registry.promote("legal@v3", "prod", why="best")),
    "rollback with dependents": Operation(
        lambda registry, made: registry.rollback("legal@prod", why="bad", dependents=True), again=False
    ),
    "yank with dependents": Operation(
        lambda registry, made: registry.yank("legal@v2", why="bad", rollback_dependents=True)
    ),
    "rollback to the bare base": Operation(
        lambda registry, made: registry.rollback("acme@prod", why="bad", to="v1"), again=False
    ),
    "lock": Operation(lambda registry, made: registry.lock("acme", {"stack": ["legal@v3", "style@v1"]})),
    "lock a route": Operation(
        lambda registry, made: registry.lock(
            "routed2", ROUTE, routers={"": registry.put_object(b"another router")}
        )
    ),
    "guard": Operation(
        lambda registry, made: registry.set_guard(
            "legal@prod", {"forget": 0.1, "suites": {"general": ["general"]}}
        ),
        again=False,
    ),
    "describe": Operation(lambda registry, made: registry.describe("legal", owner="bert", tag=["civil"])),
    "put a suite": Operation(_put_suite),
    "put a score": Operation(_score),
    "make a folder of links": Operation(lambda registry, made: registry.resolve("legal@v2").path),
    "gc": Operation(lambda registry, made: registry.gc(grace=0), prepare=_leave_something),
    "unbundle into an empty store": Operation(
        lambda registry, made: registry.unbundle(made / "style.bundle"), start="empty"
    ),
    "unbundle what went on": Operation(
        lambda registry, made: registry.unbundle(made / "further.bundle"), stride=11
    ),
    "retire": Operation(lambda registry, made: registry.retire("legal@v3", why="never shipped")),
    "purge": Operation(
        lambda registry, made: registry.purge("legal@v3", why="request 12"),
        prepare=lambda registry, made: registry.resolve("legal@v3").path,
    ),
}


class Steps:
    """Counts steps and kills this process before the one numbered `fatal`."""

    def __init__(self, fatal: int) -> None:
        self.fatal = fatal
        self.count = 0
        self.write = os.write

    def step(self, *_: object) -> None:
        self.count += 1
        if self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.step()
            return function(*arguments, **named)

        return call

    def halved(self, descriptor: int, data: Any) -> int:
        self.step()
        if self.count + 1 == self.fatal:
            self.write(descriptor, bytes(data)[: len(data) // 2])
        self.step()
        return self.write(descriptor, data)

    def install(self) -> None:
        for name in CALLS:
            setattr(os, name, self.counted(getattr(os, name)))
        os.write = self.halved  # type: ignore[assignment]
        connect = sqlite3.connect

        def connected(*arguments: Any, **named: Any) -> sqlite3.Connection:
            self.step()
            connection = connect(*arguments, **named)
            connection.set_trace_callback(self.step)
            return connection

        sqlite3.connect = connected  # type: ignore[assignment]


def perform(store: Path, made: Path, operation: Operation, step: Callable[[], object]) -> None:
    registry = Registry.open(store, create=operation.start == "nothing")
    operation.perform(registry, made)
    step()
    registry.close()
    step()


def by_steps(store: Path, made: Path, operation: Operation, fatal: int) -> int:
    """Perform the operation in a fork that dies before step `fatal`: SIGKILL's -9, or 0 where it survived."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            steps = Steps(fatal)
            steps.install()
            perform(store, made, operation, steps.step)
            code = 0
        finally:
            if code:
                import traceback

                traceback.print_exc()
                sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def by_calls(store: Path, made: Path, operation: Operation, fatal: int) -> int:
    """The same, killed before the `fatal`th system call that changes the disk."""
    return system_calls.run(lambda: perform(store, made, operation, lambda: None), fatal)[0]


def look(store: Path) -> tuple[Any, list[str]]:
    """The rows and objects of a store, by a fresh look."""
    return said(store), objects(store)


def run(
    made: Path, name: str, work: Path, child: Callable[[Path, Path, Operation, int], int]
) -> dict[str, Any]:
    """Kill the operation at every step: how many left the old state, the new one, and leftovers."""
    operation = OPERATIONS[name]
    old, new, store = work / "old", work / "new", work / "store"
    match operation.start:
        case "nothing":
            old.mkdir()
        case "empty":
            Registry.open(old, create=True).close()
        case _:
            shutil.copytree(made / "store", old)
            with Registry.open(old) as registry:
                operation.prepare(registry, made)
    shutil.copytree(old, new)
    with Registry.open(new, create=operation.start == "nothing") as registry:
        operation.perform(registry, made)
        assert registry.fsck() == []
        registry.gc(grace=0)
    after = look(new)
    if operation.start == "nothing":
        with Registry.open(work / "empty", create=True):
            before = look(work / "empty")
    else:
        shutil.copytree(old, work / "tidy")
        with Registry.open(work / "tidy") as registry:
            registry.gc(grace=0)
        before = look(work / "tidy")
    left_old = left_new = leftovers = 0
    for fatal in itertools.count(1, operation.stride):
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(old, store)
        code = child(store, made, operation, fatal)
        assert code in (0, -signal.SIGKILL), f"step {fatal}: left with {code}"
        where = f"killed before step {fatal}"
        with Registry.open(store, create=operation.start == "nothing") as registry:
            problems = [p for p in registry.fsck() if "run `inlay gc`" not in p]
            assert problems == [], f"{where}: {problems}"
            leftovers += bool(registry.gc(grace=0))
            assert registry.fsck() == [], where
        rows, files = look(store)
        is_new = rows == after[0]
        assert is_new or rows == before[0], f"{where}: neither the old rows nor the new"
        assert files == (after if is_new else before)[1], f"{where}: objects that are not the state's"
        if code == 0:
            assert is_new, "it finished, and what it did is not there"
            break
        left_old, left_new = left_old + (not is_new), left_new + is_new
        if operation.again or not is_new:
            with Registry.open(store, create=operation.start == "nothing") as registry:
                operation.perform(registry, made)
                assert registry.fsck() == [], f"{where}, then done again"
                registry.gc(grace=0)
            assert look(store) == after, f"{where}, then done again: not what doing it once gives"
    return {"old": left_old, "new": left_new, "leftovers": leftovers}


if __name__ == "__main__":
    folder, wanted = Path(sys.argv[1]), sys.argv[2]
    place, way = Path(sys.argv[3]), {"steps": by_steps, "calls": by_calls}[sys.argv[4]]
    print(json.dumps(run(folder, wanted, place, way)))
