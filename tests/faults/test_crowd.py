"""Many processes at once on a store that does not exist yet: no failure, no number lost or given twice.

The fast case, with four, is in tests/registry/test_database.py.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
from fault_fakes import INLAY, finish, inlay, start
from registry_fakes import make_adapter

from inlay.registry import Registry

PROCESSES = 8
ADDER = """
import sys, time
from inlay.registry import Registry
store, base, begin, *folders = sys.argv[1:]
time.sleep(max(0.0, float(begin) - time.time()))
with Registry.open(store, create=True) as registry:
    for folder in folders:
        version = registry.add("legal", folder, base=base)
        registry.promote(version.ref, "prod")
        print(version.number, version.digest)
"""


def crowd(store: Path, base: Path, folders: list[Path]) -> None:
    """One round: every process adds and promotes its share; then all of it must be there once."""
    begin = time.time() + 0.9
    shares = [folders[i::PROCESSES] for i in range(PROCESSES)]
    said = finish([start(ADDER, [store, base, begin, *share]) for share in shares])
    made = dict(line.split() for out in said for line in out.splitlines())
    count = len(folders)
    assert sorted(map(int, made)) == list(range(1, count + 1))
    with Registry.open(store) as registry:
        assert {str(v.number): v.digest for v in registry.versions("legal")} == made
        events = registry.journal()
        assert [e.seq for e in events] == list(range(2 * count, 0, -1))
        assert Counter(e.verb for e in events) == {"add": count, "promote": count}
        assert registry.resolve("legal@prod").ref == events[0].to_ref or events[0].verb == "add"
        moves = [e for e in reversed(events) if e.moves]
        assert [e.from_ref for e in moves[1:]] == [e.to_ref for e in moves[:-1]]  # each saw the one before
        assert registry.fsck() == [] and registry.gc(grace=0) == []


@pytest.mark.slow
@pytest.mark.parametrize("round_", range(10))
def test_eight_processes_on_a_store_that_does_not_exist_yet(round_: int, base: Path, tmp_path: Path) -> None:
    folders = [make_adapter(tmp_path / f"a{i}", seed=100 * round_ + i) for i in range(2 * PROCESSES)]
    crowd(tmp_path / "fresh", base, folders)


@pytest.mark.slow
def test_eight_command_lines_at_once(base: Path, tmp_path: Path) -> None:
    """`inlay init`, `add` and `promote`, each in a process of its own."""
    for i in range(PROCESSES):
        make_adapter(tmp_path / f"a{i}", seed=i)
    script = """
import subprocess, sys
inlay, (store, base, folder) = sys.argv[4:], sys.argv[1:4]
for verb in (["init", store], ["add", "legal", folder, "--base", base, "--store", store]):
    subprocess.run([*inlay, *verb], check=True)
name = "alias-" + folder[-1]
subprocess.run([*inlay, "promote", "legal@v1", name, "--store", store], check=True)
"""
    store = tmp_path / "fresh"
    finish([start(script, [store, base, tmp_path / f"a{i}", *INLAY]) for i in range(PROCESSES)])
    with Registry.open(store) as registry:
        assert [v.number for v in registry.versions("legal")] == list(range(PROCESSES, 0, -1))
        assert len({v.digest for v in registry.versions("legal")}) == PROCESSES
        (row,) = registry.names()
        assert row.aliases == {f"alias-{i}": "legal@v1" for i in range(PROCESSES)}
        assert registry.fsck() == []
    assert inlay("fsck", "--store", str(store), cwd=tmp_path).stdout == "the store is sound\n"
