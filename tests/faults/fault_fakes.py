"""A store with one of everything, what a store says when the time of day is left out, and processes."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from registry_fakes import make_adapter, put_suite, score

from inlay.registry import Registry

ROUTE = {"route": {"by": "probe", "experts": ["legal@v1", "style@v1"]}}
MASKED = ("created", "at", "hash", "previous")
_SEAL = re.compile(r'"record":"sha256:[0-9a-f]{64}"')  # of a row with the time of day in it
INLAY = [sys.executable, "-c", "from inlay.cli import main; main()"]


def fill(folder: Path) -> None:
    """Make `folder`/store: adapters of three and two versions, variants, scores, a guard, a yank, aliases."""
    with Registry.open(folder / "store", create=True) as registry:
        base = folder / "base"
        for seed in (1, 2, 3):
            run = {"dataset": {"name": f"clauses{seed}", "rows": seed, "digest": "sha256:" + "0" * 64}}
            registry.add("legal", folder / f"legal{seed}", base=base, why="made", run=run)
        for seed in (11, 12):
            registry.add("style", make_adapter(folder / f"style{seed}", seed=seed), base=base)
        put_suite(registry, "general")
        score(registry, "legal@v1", "general", (True, True, False, True))
        score(registry, "base", "general", (True, False, False, True))
        registry.put_report("legal@v1", "forgetting", {"lost": 0.25})
        registry.promote("legal@v1", "prod", why="first")
        registry.promote("legal@v2", "prod", why="better")
        router = registry.put_object(b"weights of a router")
        registry.lock("acme", {"stack": ["legal@v1", {"use": "style@v1", "weight": 0.5}]})
        registry.promote("acme@v1", "prod")
        registry.lock("acme", {"stack": ["legal@v2", "style@v1"]})
        registry.promote("acme@v2", "prod")
        registry.lock("routed", ROUTE, routers={"": router})
        registry.lock("outer", {"stack": ["acme@v2", "style@v2"]})
        registry.set_guard("style@prod", {"forget": 0.1, "suites": {"general": ["general"]}}, why="contract")
        registry.describe("legal", owner="anna", description="clauses of contracts", tag=["law"])
        registry.yank("style@v2", why="rude")
        registry.add_key("acme-corp", name="phone", allow=["acme", "base"], rate=60, concurrent=4)
        registry.revoke_key(registry.add_key("acme-corp", allow=["legal@v1"])[0].id, "lost")
        registry.bundle(folder / "style.bundle", ["style"])
    shutil.copytree(folder / "store", folder / "further")
    with Registry.open(folder / "further") as registry:
        registry.add("legal", folder / "legal4", base=folder / "base", why="later")
        registry.promote("legal@v4", "prod")
        registry.add("other", folder / "legal1", base=folder / "base")
        registry.lock("acme", {"stack": ["legal@v4", "style@v1"]})
        registry.bundle(folder / "further.bundle")


def said(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table, without what depends on the time of day."""
    connection = sqlite3.connect(path / "registry.db")
    try:
        found = {}
        tables = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE '%sqlite%' ORDER BY name"
        ).fetchall()
        for (table,) in tables:
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            kept = ", ".join(column for column in columns if column not in MASKED)
            rows = connection.execute(f"SELECT {kept} FROM {table} ORDER BY rowid").fetchall()
            found[table] = [
                tuple(_SEAL.sub('"record":…', c) if isinstance(c, str) else c for c in r) for r in rows
            ]
        return found
    finally:
        connection.close()


def objects(path: Path) -> list[str]:
    """The names of all objects and leftovers."""
    return sorted(str(p.relative_to(path)) for p in (path / "objects").rglob("*") if p.is_file())


def in_a_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked child; its exit code: 0, or that of the error it raised, 70 for bugs."""
    from inlay.errors import InlayError

    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            work()
            code = 0
        except InlayError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            code = error.exit_code
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def inlay(*arguments: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run(
        [*INLAY, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, **options
    )


def start(script: str, arguments: Sequence[object]) -> subprocess.Popen[str]:
    """A Python process that runs `script`, its output to be read."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(processes: Sequence[subprocess.Popen[str]], timeout: float = 120) -> list[str]:
    """What they printed; every one of them must have left with 0."""
    try:
        results = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [p.returncode for p in processes] == [0] * len(processes), [err for _, err in results if err]
    return [out for out, _ in results]
