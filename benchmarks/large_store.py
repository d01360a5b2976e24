"""Stores of any size in seconds: rows as the registry writes them, put in by one raw transaction.

The journal's chain, the locks' trees, the numbers and the keys are sound, so that every look-up and the
journal's own check work on them. The objects behind the digests do not exist: nothing here can be loaded, and
`fsck` names every file as missing.

    python benchmarks/large_store.py                          # 1,000 versions, thrown away: is it sound?
    python benchmarks/large_store.py FOLDER --versions 100000 # one to keep and look at
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from inlay.registry import Registry, digest_of, digest_of_json
from inlay.registry.canonical import canonical, timestamp
from inlay.registry.journal import GENESIS, row_hash
from inlay.registry.locking import digest_of_lock

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
WEIGHTS, PROMPT, TENSORS = (digest_of(what) for what in ("weights", "prompt", "tensors"))
SOURCE = "mini-instruct"
METRIC, ITEMS = "exact_match/1", 40
PROTOCOL = {"decoding": "greedy", "dtype": "float32", "few_shot": 0, "template": "chat"}
ROUNDS = 10  # versions of a task's adapter
MAIN_SUITES = 20  # every version is scored on some of these


@dataclass(frozen=True)
class Layout:
    """What lies in a store of `versions` versions: many short lines of work and one long one.

    - `tasks`: adapters of ten versions each, four fifths of all; @prod moved twice, @staging once; every
      tenth has a yanked version, every twentieth a description and a tag
    - `nightly`: one adapter with the remaining fifth, @prod moved each time
    - `customers`: a variant for every five tasks, four locks each, every lock promoted in turn
    - `mix`: a variant with one lock for each version of `nightly`, promoted each time
    - `tone@v1`: one version that every lock contains
    - suites: twenty that all versions are scored on, and one for each fifty versions that nobody uses
    """

    versions: int
    evals_each: int = 10

    @property
    def tasks(self) -> list[str]:
        return [f"team-{i % 7}/task-{i:05}" for i in range(self.versions * 4 // 5 // ROUNDS)]

    @property
    def nightly(self) -> int:
        return self.versions - 1 - ROUNDS * len(self.tasks)

    @property
    def customers(self) -> list[str]:
        return [f"customer-{i:05}" for i in range(len(self.tasks) // 5)]

    @property
    def suites(self) -> list[str]:
        return [f"suite-{i:05}" for i in range(MAIN_SUITES + self.versions // 50)]


def digest(ref: str) -> str:
    """The digest of a version or a suite by its name."""
    return digest_of(f"bytes of {ref}")


class _Life:
    """The rows of a store, in the order in which they came to be."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.rows: dict[str, list[dict[str, Any]]] = {
            table: [] for table in ("names", "versions", "version_files", "locks", "lock_members", "journal")
        }
        self._previous = GENESIS
        self._live: dict[tuple[str, str], tuple[int, str, str]] = {}
        self._ids: dict[str, int] = {}

    def live_through(self) -> None:
        tasks, customers, nightly = self.layout.tasks, self.layout.customers, self.layout.nightly
        self._name("tone", "adapter")
        self._add("tone", 1)
        for i, name in enumerate(tasks):
            self._name(name, "adapter")
            if i % 20 == 0:
                said = {"description": "Answers in the house style.", "tag": ["gdpr"]}
                self._journal("describe", name, detail=said)
        for name in customers:
            self._name(name, "variant")
        self._name("nightly", "adapter")
        self._name("mix", "variant")
        night = 0
        for number in range(1, ROUNDS + 1):
            for i, name in enumerate(tasks):
                self._add(name, number)
                if night < nightly * ((number - 1) * len(tasks) + i + 1) // (ROUNDS * len(tasks)):
                    night += 1
                    self._night(night)
                if number == 3 and i % 10 == 0:
                    self._journal("yank", name, before=self._target(name, number), why="answers in verse")
            for name in tasks if number in (5, 9) else ():
                self._promote(name, number, "prod")
            for i, name in enumerate(customers) if number in (2, 4, 6, 8) else ():
                self._lock(name, number // 2, [(tasks[5 * i], number), (tasks[5 * i + 1], number)])
                self._promote(name, number // 2, "prod")
        for name in tasks:
            self._promote(name, ROUNDS, "staging")

    def _night(self, number: int) -> None:
        self._add("nightly", number)
        self._promote("nightly", number, "prod")
        self._lock("mix", number, [("nightly", number)])
        self._promote("mix", number, "prod")

    def _name(self, name: str, kind: str) -> None:
        self.rows["names"].append({"name": name, "kind": kind, "owner": "anna", "created": self._now()})

    def _add(self, name: str, number: int) -> None:
        ref, identity = f"{name}@v{number}", len(self.rows["versions"]) + 1
        self._ids[ref] = identity
        self.rows["versions"].append(
            {
                "id": identity,
                "name": name,
                "number": number,
                "digest": digest(ref),
                "base": 1,
                "kind": "lora",
                "rank": 16,
                "targets": canonical(["down_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]),
                "parameters": 2_400_000 + identity,
                "exactness": "exact",
                "size": 9_600_000 + identity,
                "trained_on": canonical({"prompt": PROMPT, "weights": WEIGHTS}),
                "mismatch": 0,
                "run": digest_of(f"run of {ref}"),
                "lineage": None,
                "notes": "[]",
                "author": "anna",
                "why": f"data of week {number}",
                "created": self._now(),
                "licence": "apache-2.0",
                "card": canonical({"language": ["en"], "pipeline_tag": "text-generation"}),
            }
        )
        for path, size in (("adapter_config.json", 800), ("adapter_model.safetensors", 9_600_000 + identity)):
            self.rows["version_files"].append(
                {"version": identity, "path": path, "size": size, "digest": digest_of(f"{path} of {ref}")}
            )
        detail = {"base": WEIGHTS, "record": _seal(self.rows["versions"][-1])}
        self._journal("add", name, after=self._target(name, number), detail=detail)

    def _lock(self, name: str, number: int, members: list[tuple[str, int]]) -> None:
        members = [*members, ("tone", 1)]
        tree = {
            "stack": [{"use": digest(f"{n}@v{k}"), "name": f"{n}@v{k}", "weight": 1.0} for n, k in members]
        }
        identity, ref = len(self.rows["locks"]) + 1, f"{name}@v{number}"
        self._ids[ref] = identity
        self.rows["locks"].append(
            {
                "id": identity,
                "name": name,
                "number": number,
                "digest": digest_of_lock(WEIGHTS, tree),
                "base": 1,
                "recipe": canonical({"compose": {"stack": [f"{n}@v{k}" for n, k in members]}}),
                "tree": canonical(tree),
                "guard": None,
                "provenance": None,
                "author": "anna",
                "why": "",
                "created": self._now(),
            }
        )
        for position, node in enumerate(tree["stack"]):
            self.rows["lock_members"].append(
                {
                    "lock": identity,
                    "position": position,
                    "path": f"stack.{position}",
                    "version": self._ids[node["name"]],
                    "used_lock": None,
                    "digest": node["use"],
                    "weight": 1.0,
                }
            )
        row = self.rows["locks"][-1]
        self._journal("lock", name, after=(number, ref, row["digest"]), detail={"record": _seal(row)})

    def _promote(self, name: str, number: int, alias: str) -> None:
        after = self._target(name, number)
        self._journal(
            "promote", name, alias=alias, before=self._live.get((name, alias)), after=after, why="better"
        )
        self._live[name, alias] = after

    def _target(self, name: str, number: int) -> tuple[int, str, str]:
        ref = f"{name}@v{number}"
        is_lock = name == "mix" or name.startswith("customer-")
        return number, ref, self.rows["locks"][self._ids[ref] - 1]["digest"] if is_lock else digest(ref)

    def _journal(
        self,
        verb: str,
        name: str,
        *,
        alias: str | None = None,
        before: tuple[int, str, str] | None = None,
        after: tuple[int, str, str] | None = None,
        why: str = "",
        detail: dict[str, Any] | None = None,
    ) -> None:
        row: dict[str, Any] = {
            "seq": len(self.rows["journal"]) + 1,
            "at": self._now(),
            "who": "anna",
            "verb": verb,
            "name": name,
            "alias": alias,
            "moves": int(alias is not None),
        }
        row |= zip(("from_number", "from_ref", "from_digest"), before or (None,) * 3, strict=True)
        row |= zip(("to_number", "to_ref", "to_digest"), after or (None,) * 3, strict=True)
        row |= {"why": why, "verdict": None, "detail": canonical(detail or {}), "previous": self._previous}
        row["hash"] = self._previous = row_hash(row)
        self.rows["journal"].append(row)

    def _now(self) -> str:
        return timestamp(EPOCH + timedelta(seconds=len(self.rows["journal"]) + 1))


def _seal(row: dict[str, Any]) -> str:
    """What `journal.seal` makes of a stored row."""
    base = {"base_weights": WEIGHTS, "base_prompt": PROMPT, "base_source": SOURCE}
    own = {key: value for key, value in row.items() if key not in ("id", "base") and value is not None}
    return digest_of_json({**own, **base})


def _suites(layout: Layout) -> Iterator[dict[str, Any]]:
    for i, name in enumerate(layout.suites):
        yield {
            "id": i + 1,
            "name": name,
            "digest": digest(name),
            "items": digest(name),
            "metric": METRIC,
            "skills": canonical({"all": {"items": ITEMS}}),
            "n": ITEMS,
            "created": timestamp(EPOCH),
        }


def _evals(layout: Layout, subjects: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """`evals_each` of every (digest, created), on suites that take turns."""
    protocol, detail = digest_of_json(PROTOCOL), canonical(PROTOCOL)
    suites = [(name, digest(name)) for name in layout.suites[:MAIN_SUITES]]
    versions = canonical({"inlay": "0.1.0", "torch": "2.13.0"})
    for i, (subject, created) in enumerate(subjects):
        for j in range(layout.evals_each):
            name, suite = suites[(i + j) % MAIN_SUITES]
            right = (i * 7 + j * 11) % (ITEMS + 1)
            yield {
                "id": i * layout.evals_each + j + 1,
                "key": digest_of_json([subject, WEIGHTS, PROMPT, suite, METRIC, protocol]),
                "subject": subject,
                "base_weights": WEIGHTS,
                "base_prompt": PROMPT,
                "suite": suite,
                "suite_name": name,
                "metric": METRIC,
                "protocol": protocol,
                "protocol_detail": detail,
                "score": right / ITEMS,
                "n": ITEMS,
                "low": max(0.0, right / ITEMS - 0.1),
                "high": min(1.0, right / ITEMS + 0.1),
                "outcomes": "b:" + "1" * right + "0" * (ITEMS - right),
                "splits": "{}",
                "device": "cpu",
                "versions": versions,
                "created": created,
            }


def make(folder: Path, layout: Layout) -> None:
    """Make the store `folder` and fill it. An interrupted one is half written: throw it away."""
    Registry.open(folder, create=True).close()
    life = _Life(layout)
    life.live_through()
    base = {
        "id": 1,
        "weights": WEIGHTS,
        "prompt": PROMPT,
        "name": SOURCE,
        "revision": None,
        "architecture": "LlamaForCausalLM",
        "source": SOURCE,
        "tensors": TENSORS,
        "created": timestamp(EPOCH),
    }
    subjects = [(row["digest"], row["created"]) for row in life.rows["versions"]]
    connection = sqlite3.connect(folder / "registry.db", isolation_level=None)
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA cache_size=-1000000")
    connection.execute("BEGIN IMMEDIATE")
    _insert(connection, "names", iter(life.rows.pop("names")))
    _insert(connection, "bases", iter([base]))
    for table, rows in life.rows.items():
        _insert(connection, table, iter(rows))
    _insert(connection, "suites", _suites(layout))
    _insert(connection, "evals", _evals(layout, subjects))
    connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def _insert(connection: sqlite3.Connection, table: str, rows: Iterator[dict[str, Any]]) -> None:
    first = next(rows, None)
    if first is None:
        return
    marks = ", ".join("?" * len(first))
    sql = f"INSERT INTO {table} ({', '.join(first)}) VALUES ({marks})"
    connection.execute(sql, tuple(first.values()))
    connection.executemany(sql, (tuple(row.values()) for row in rows))


def unsound(folder: Path) -> list[str]:
    """What `fsck` finds apart from the bytes that were never there."""
    with Registry.open(folder) as registry:
        return [problem for problem in registry.fsck() if "missing from the store" not in problem]


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a large store.")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--versions", type=int, default=1_000)
    parser.add_argument("--evals-each", type=int, default=10)
    arguments = parser.parse_args()
    layout = Layout(arguments.versions, arguments.evals_each)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary) / "store"
        start = time.perf_counter()
        make(folder, layout)
        took, size = time.perf_counter() - start, (folder / "registry.db").stat().st_size
        with Registry.open(folder) as registry:
            head = registry.journal_head()[0]
        print(
            f"{layout.versions:,} versions, {layout.versions * layout.evals_each:,} evals, "
            f"{head:,} journal rows: {size / 1e6:,.0f} MB, made in {took:.1f} s"
        )
        if arguments.folder is None:
            problems = unsound(folder)
            print("\n".join(problems[:20]) or "sound, but for the bytes that it does not have")
            raise SystemExit(1 if problems else 0)


if __name__ == "__main__":
    main()
