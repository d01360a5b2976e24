"""gc with no grace at all, over and over, while others add and promote: nothing live is lost."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from fault_fakes import finish, start
from registry_fakes import make_adapter

from inlay.registry import Registry, digest_of
from inlay.registry.objects import _Incoming

ADDER = """
import shutil, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from registry_fakes import make_adapter
from inlay.registry import Registry
store, base, seconds, _, folder, first = sys.argv[1:]
end, seed, added = time.time() + float(seconds), int(first), 0
with Registry.open(store) as registry:
    while time.time() < end or added < 2:
        name = f"line{first}"
        made = registry.add(name, make_adapter(Path(folder), seed=seed), base=base, run={"seed": seed})
        registry.promote(made.ref, "prod")
        assert registry.resolve(f"{name}@prod") == made
        assert registry.run_of(made) == {"seed": seed}
        assert (made.path / "adapter_model.safetensors").stat().st_size > 0
        registry.add("shared", make_adapter(Path(folder), seed=seed + 500), base=base)
        seed, added = seed + 1, added + 1
print(added)
"""
COLLECTOR = """
import sys, time
from inlay.registry import Registry
store, seconds = sys.argv[1:]
end, rounds, gone = time.time() + float(seconds), 0, 0
with Registry.open(store) as registry:
    while time.time() < end or rounds < 2:
        gone += len(registry.gc(grace=0))
        rounds += 1
        time.sleep(0.002)  # SQLite's lock is not fair: without a pause nobody else would ever get it
print(rounds, gone)
"""


def race(tmp_path: Path, base: Path, seconds: float, adders: int, collectors: int) -> None:
    store, here = tmp_path / "store", Path(__file__).parent.parent / "registry"
    with Registry.open(store, create=True) as registry:
        registry.add("shared", make_adapter(tmp_path / "first", seed=0), base=base)
    working = [
        start(ADDER, [store, base, seconds, here, tmp_path / f"a{i}", 1000 * (i + 1)]) for i in range(adders)
    ]
    sweeping = [start(COLLECTOR, [store, seconds]) for _ in range(collectors)]
    said = finish([*working, *sweeping], timeout=seconds + 60)
    added = [int(out) for out in said[:adders]]
    rounds = [int(out.split()[0]) for out in said[adders:]]
    assert min(added) >= 2 and min(rounds) >= 2, said
    with Registry.open(store) as registry:
        assert registry.fsck() == []
        registry.gc(grace=0)  # what the last additions stored twice
        assert registry.fsck() == []
        for i, count in enumerate(added):
            line = registry.versions(f"line{1000 * (i + 1)}")
            assert [v.number for v in line] == list(range(count, 0, -1))
            assert registry.resolve(f"line{1000 * (i + 1)}@prod") == line[0]
        assert len(registry.versions("shared")) == 1 + sum(added)
        assert list((store / "objects/tmp").iterdir()) == []


@pytest.mark.slow
def test_gc_races_add_and_promote(base: Path, tmp_path: Path) -> None:
    race(tmp_path, base, seconds=20, adders=4, collectors=2)


def test_gc_races_add_and_promote_for_a_moment(base: Path, tmp_path: Path) -> None:
    race(tmp_path, base, seconds=1.5, adders=2, collectors=1)


def test_gc_leaves_a_file_that_is_being_written(full: Registry) -> None:
    """However old it is: only the writer's death makes it a leftover."""
    with _Incoming(full._store.objects) as incoming:
        incoming.write(b"half of a large file")
        (path,) = (full.path / "objects/tmp").iterdir()
        os.utime(path, (0, 0))
        assert full.gc(grace=0) == [] and path.exists()
        digest = full.put_object(b"half of a large file, and the other half")
        incoming.write(b", and the other half")
        incoming.settle(digest)
    assert full.get_object(digest) == b"half of a large file, and the other half"


def test_gc_between_the_bytes_and_the_row(
    full: Registry, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The window itself: everything that was stored is collected before the transaction begins."""
    database = full._store.db
    real, collected = type(database).transaction, []

    def transaction(self: object, **named: object) -> object:
        if not collected:
            collected.append(True)
            with Registry.open(full.path) as other:
                collected.extend(other.gc(grace=0))
        return real(self, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(type(database), "transaction", transaction)
    version = full.add("legal", made / "legal4", base=made / "base", run={"seed": 4})
    assert len(collected) >= 4  # weights, manifest, training record, True
    assert full.fsck() == []
    assert full.run_of(version) == {"seed": 4} and version.path.is_dir()


def test_a_report_outlives_gc_between_its_bytes_and_its_row(
    full: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, collected = type(full._store.db).transaction, []

    def transaction(self: object, **named: object) -> object:
        if not collected:
            collected.append(time.time())
            with Registry.open(full.path) as other:
                other.gc(grace=0)
        return real(self, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(type(full._store.db), "transaction", transaction)
    full.put_report("legal@v2", "forgetting", {"lost": 0.5})
    collected.clear()
    full.put_suite("other", digest_of(b'{"id": "a"}\n'), b'{"id": "a"}\n', metric="exact_match/1", skills={})
    assert full.fsck() == [] and full.reports("legal@v2") == [{"lost": 0.5}]
    assert full.get_object(full.suite("other").items) == b'{"id": "a"}\n'
