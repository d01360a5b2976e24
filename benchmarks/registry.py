"""What the registry costs over the least that could do the same: SQLite and the file system by hand.

Both sides run in this process, in turns, and what they return is compared. A ratio is the median over the
rounds of ours / by hand, with its quartiles. How long `inlay ls` takes as a process is in cli.py.

    python benchmarks/registry.py                      # all of it, one to two minutes
    python benchmarks/registry.py resolve move         # some of it: resolve move listing register scale
    python benchmarks/registry.py scale --versions 20000
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from large_store import WEIGHTS, Layout, digest, make
from look_ups import look_ups

from inlay.registry import BaseFingerprint, Registry, digest_of
from inlay.registry.canonical import now

SMALL = 1_000


@dataclass(frozen=True)
class Times:
    """Seconds a call of the side that is measured and of the one it is measured against, by round."""

    measured: list[float]
    against: list[float]

    def report(self, what: str, limit: float | None) -> None:
        """Print the ratio beside the most that was asked; None where nothing was."""
        ratios = [a / b for a, b in zip(self.measured, self.against, strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        asked = "" if limit is None else f", at most {limit:g}x" + (" MISSED" if ratio > limit else "")
        mine, other = (statistics.median(side) * 1e6 for side in (self.measured, self.against))
        print(f"{what}: {ratio:.2f}x ({low:.2f} to {high:.2f}){asked}  [{mine:,.0f} against {other:,.0f} us]")


def in_turns(measured: Callable[[int], Any], against: Callable[[int], Any], rounds: int, calls: int) -> Times:
    """`rounds` times `calls` calls in a row of one side, then of the other; who goes first alternates.

    Both are called with the same numbers, each number once.
    """
    times = Times([], [])
    for r in range(rounds + 1):
        took = {}
        for side in (measured, against) if r % 2 else (against, measured):
            start = time.perf_counter()
            for number in range(r * calls, (r + 1) * calls):
                side(number)
            took[side] = (time.perf_counter() - start) / calls
        if r > 0:  # the first round warms up
            times.measured.append(took[measured])
            times.against.append(took[against])
    return times


# Against the same by hand


def resolve(folder: Path) -> None:
    """`name@prod` to a record, over connect + SELECT + close."""
    tasks = Layout(SMALL).tasks
    columns = ", ".join(f"v.{name}" for name in _columns(folder, "versions"))
    sql = (
        f"SELECT {columns} FROM journal j JOIN versions v ON v.name = j.name AND v.number = j.to_number"
        " WHERE j.moves = 1 AND j.name = ? AND j.alias = ? ORDER BY j.seq DESC LIMIT 1"
    )
    path = folder / "registry.db"

    def by_hand(i: int) -> tuple[Any, ...]:
        connection = sqlite3.connect(path)
        row = connection.execute(sql, [tasks[i % len(tasks)], "prod"]).fetchone()
        connection.close()
        return row

    def whole(i: int) -> Any:
        with Registry.open(folder) as opened:
            return opened.resolve(f"{tasks[i % len(tasks)]}@prod")

    with Registry.open(folder) as registry:

        def ours(i: int) -> Any:
            return registry.resolve(f"{tasks[i % len(tasks)]}@prod")

        for i in range(len(tasks)):
            version, row = ours(i), by_hand(i)
            assert (version.name, version.number, version.digest) == (row[1], row[2], row[3])
        in_turns(ours, by_hand, 41, 100).report("resolve name@prod", 3)
        in_turns(whole, by_hand, 41, 30).report("open the store, resolve, close it", None)


def move(folder: Path) -> None:
    """Promote, over UPDATE of an alias's row + INSERT of a journal row, both durable (synchronous=FULL)."""
    for synchronous, limit in (("FULL", 2.0), ("OFF", None)):
        for reads in (False, True):
            with _copy(folder) as copied:
                _move(copied, synchronous, reads, limit)


def _move(folder: Path, synchronous: str, reads: bool, limit: float | None) -> None:
    """One comparison. By hand `reads` looks up the version and the alias, and chains the row's hash.

    By hand has the same file, the same indexes on its journal and no triggers; the alias is a row that is
    overwritten.
    """
    tasks = Layout(SMALL).tasks
    other = folder / "by_hand.db"
    shutil.copyfile(folder / "registry.db", other)
    connection = sqlite3.connect(other, isolation_level=None)
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    connection.execute(
        "CREATE TABLE aliases (name TEXT, alias TEXT, number INT, digest TEXT, PRIMARY KEY (name, alias))"
    )
    digests = {f"{name}@v{number}": digest(f"{name}@v{number}") for name in tasks for number in (7, 8, 9)}
    rows = [(name, "prod", 9, digests[f"{name}@v9"]) for name in tasks]
    connection.executemany("INSERT INTO aliases VALUES (?, ?, ?, ?)", rows)
    columns = _columns(folder, "journal")
    insert = f"INSERT INTO journal ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
    seq = connection.execute("SELECT max(seq) FROM journal").fetchone()[0]
    previous = connection.execute("SELECT hash FROM journal WHERE seq = ?", [seq]).fetchone()[0]

    def place(i: int) -> tuple[str, int, int]:
        turn, task = divmod(i, len(tasks))
        return tasks[task], 7 + turn % 2, 8 - turn % 2 if turn else 9

    def by_hand(i: int) -> None:
        nonlocal seq, previous
        name, number, before = place(i)
        to_digest, from_digest = digests[f"{name}@v{number}"], digests[f"{name}@v{before}"]
        connection.execute("BEGIN IMMEDIATE")
        if reads:
            version = "SELECT digest FROM versions WHERE name = ? AND number = ?"
            to_digest = connection.execute(version, [name, number]).fetchone()[0]
            alias = "SELECT number, digest FROM aliases WHERE name = ? AND alias = 'prod'"
            before, from_digest = connection.execute(alias, [name]).fetchone()
            newest = "SELECT seq, hash FROM journal ORDER BY seq DESC LIMIT 1"
            seq, previous = connection.execute(newest).fetchone()
        seq += 1
        connection.execute(
            "UPDATE aliases SET number = ?, digest = ? WHERE name = ? AND alias = 'prod'",
            [number, to_digest, name],
        )
        row = [
            seq, now(), "anna", "promote", name, "prod", 1, before, f"{name}@v{before}", from_digest, number,
            f"{name}@v{number}", to_digest, "better", None, "{}", previous,
        ]  # fmt: skip
        if reads:
            previous = "sha256:" + hashlib.sha256(json.dumps(row).encode()).hexdigest()
        connection.execute(insert, [*row, previous])
        connection.execute("COMMIT")

    with Registry.open(folder) as registry:
        for side in (connection, registry._store.db.connection):
            side.execute("PRAGMA journal_mode=WAL")
            side.execute(f"PRAGMA synchronous={synchronous}")
            side.execute("PRAGMA foreign_keys=ON")

        def ours(i: int) -> None:
            name, number, _ = place(i)
            registry.promote(f"{name}@v{number}", "prod", why="better", who="anna")

        times = in_turns(ours, by_hand, 41, 20)
        for name in tasks:
            there = connection.execute("SELECT number, digest FROM aliases WHERE name = ?", [name]).fetchone()
            version = registry.current(name, "prod")
            assert version is not None and (version.number, version.digest) == there
        assert registry.journal_head()[0] == seq
        assert not [p for p in registry.fsck() if "missing from the store" not in p]
    connection.close()
    how = "with its reads and hash chain by hand as well" if reads else "UPDATE + INSERT by hand"
    times.report(f"move an alias, {how}, synchronous={synchronous}", limit)


def listing(folder: Path) -> None:
    """The records of 1,000 versions, over fetchall of the same columns of 1,000 rows."""
    with _new_folder() as temporary:
        layout = Layout(10 * SMALL, evals_each=1)
        make(temporary / "store", layout)
        columns = [f"v.{name}" for name in _columns(folder, "versions")]
        columns += [f"b.{name}" for name in ("weights", "prompt", "name", "revision", "source")]
        sql = (
            f"SELECT {', '.join(columns)} FROM versions v JOIN bases b ON b.id = v.base WHERE v.name = ?"
            " ORDER BY v.number DESC LIMIT 1000"
        )
        alone = "SELECT * FROM versions WHERE name = ? ORDER BY number DESC LIMIT 1000"
        connection = sqlite3.connect(temporary / "store" / "registry.db")
        with Registry.open(temporary / "store") as registry:
            listed = registry.versions("nightly", limit=1_000)
            there = connection.execute(sql, ["nightly"]).fetchall()
            assert [(v.number, v.digest, v.base.weights) for v in listed] == [
                (row[2], row[3], WEIGHTS) for row in there
            ]
            assert len(listed) == min(1_000, layout.nightly)

            def ours(_: int) -> Any:
                return registry.versions("nightly", limit=1_000)

            for select, what in ((sql, "same columns"), (alone, "without their base")):
                in_turns(
                    ours, lambda _, select=select: connection.execute(select, ["nightly"]).fetchall(), 31, 3
                ).report(f"list 1,000 versions, {what}", 5)
        connection.close()


def register(_: Path) -> None:
    """An adapter of 20 MB in float32, over sha256 + copy + fsync + rename of its weights."""
    rounds, layers, width, rank = 21, 20, 4096, 32
    modules = [f"model.layers.{i}.self_attn.q_proj" for i in range(layers)]
    base = BaseFingerprint(
        weights=digest_of("base"),
        prompt=digest_of("prompt"),
        name="base",
        revision=None,
        path=Path("base"),
        architecture="LlamaForCausalLM",
        tensors={f"{module}.weight": ("F32", (width, width)) for module in modules},
        source="base",
    )
    with _new_folder() as temporary, Registry.open(temporary / "store", create=True) as registry:
        folders = [_adapter(temporary / f"adapter{i}", modules, width, rank, i) for i in range(rounds + 1)]
        os.sync()
        (temporary / "by_hand").mkdir()

        def by_hand(i: int) -> str:
            state, target = hashlib.sha256(), temporary / "by_hand" / f"tmp{i}"
            with open(folders[i] / "adapter_model.safetensors", "rb") as source, open(target, "wb") as sink:
                while chunk := source.read(1 << 20):
                    state.update(chunk)
                    sink.write(chunk)
                sink.flush()
                os.fsync(sink.fileno())
            os.rename(target, temporary / "by_hand" / state.hexdigest())
            return state.hexdigest()

        def ours(i: int) -> Any:
            return registry.add("legal", folders[i], base=base)

        times = in_turns(ours, by_hand, rounds, 1)
        for version in registry.versions("legal"):
            weights = registry.read_file(version, "adapter_model.safetensors")
            copied = temporary / "by_hand" / hashlib.sha256(weights).hexdigest()
            assert copied.read_bytes() == weights
        assert len(registry.versions("legal")) == rounds + 1
        size = (folders[0] / "adapter_model.safetensors").stat().st_size
    times.report(f"register {size / 1e6:.0f} MB", 1.3)


def _adapter(folder: Path, modules: list[str], width: int, rank: int, seed: int) -> Path:
    folder.mkdir()
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    header: dict[str, Any] = {}
    position = 0
    for module in modules:
        for factor, shape in (("A", [rank, width]), ("B", [width, rank])):
            end = position + 4 * rank * width
            key = f"base_model.model.{module}.lora_{factor}.weight"
            header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [position, end]}
            position = end
    text = json.dumps(header).encode()
    values = np.random.default_rng(seed).standard_normal(position // 4, dtype=np.float32)
    content = len(text).to_bytes(8, "little") + text + values.tobytes()
    (folder / "adapter_model.safetensors").write_bytes(content)
    return folder


# Over the size of the store


def scale(folder: Path, versions: int = 100_000) -> None:
    """Every look-up and page in a large store, over the same in one of 1,000 versions."""
    with _new_folder() as temporary:
        start = time.perf_counter()
        make(temporary / "large", Layout(versions))
        print(f"a store of {versions:,} versions made in {time.perf_counter() - start:.0f} s")
        with Registry.open(folder) as few, Registry.open(temporary / "large") as many:
            pairs = zip(look_ups(many, Layout(versions)), look_ups(few, Layout(SMALL)), strict=True)
            for large, small in pairs:
                assert [large.call(i) for i in range(20)] == [small.call(i) for i in range(20)], large.what
                in_turns(large.call, small.call, 15, 20).report(large.what, large.limit)


def _columns(folder: Path, table: str) -> list[str]:
    connection = sqlite3.connect(folder / "registry.db")
    found = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    connection.close()
    return found


@contextlib.contextmanager
def _new_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@contextlib.contextmanager
def _copy(folder: Path) -> Iterator[Path]:
    with _new_folder() as temporary:
        shutil.copytree(folder, temporary / "store")
        yield temporary / "store"


PARTS = {"resolve": resolve, "move": move, "listing": listing, "register": register, "scale": scale}


def main() -> None:
    parser = argparse.ArgumentParser(description="The registry against the same by hand.")
    parser.add_argument("parts", nargs="*", help=f"of {' '.join(PARTS)}; default: all")
    parser.add_argument("--versions", type=int, default=100_000)
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}")
    print(f"{platform.machine()}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}")
    with _new_folder() as temporary:
        make(temporary / "small", Layout(SMALL))
        for part in arguments.parts or PARTS:
            if part == "scale":
                scale(temporary / "small", arguments.versions)
            else:
                PARTS[part](temporary / "small")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
