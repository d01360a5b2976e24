"""Retired bytes may go, purged bytes must go, and what was live stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from registry_fakes import make_adapter, make_base, put_suite, score, snapshot

from inlay.errors import Conflict, InputError, IntegrityError
from inlay.registry import Registry


def weights(registry: Registry, ref: str) -> Path:
    version = registry.resolve(ref)
    manifest = registry._store.manifest(version.digest)
    digest = next(str(f["sha256"]) for f in manifest if f["path"] == "adapter_model.safetensors")
    return registry._store.objects.path(digest)


def test_what_was_retired_loses_its_bytes_to_gc_and_keeps_its_number(three: Registry) -> None:
    lost, kept = weights(three, "legal@v2"), weights(three, "legal@v1")
    (event,) = three.retire("legal@v2", why="never shipped")
    assert event.sentence().endswith("retired legal@v2, whose bytes may go: never shipped")
    assert lost.exists()
    assert lost in three.gc(grace=0) and not lost.exists() and kept.exists()
    assert three.fsck() == []
    assert three.resolve("legal@v2").state == "retired"
    assert three.retire("legal@v2", why="again") == []
    for refused in (lambda: three.promote("legal@v2", "prod"), lambda: three.lock("acme", "legal@v2")):
        with pytest.raises(InputError, match=r"legal@v2 was retired"):
            refused()


def test_what_was_live_once_is_never_retired(three: Registry) -> None:
    three.promote("legal@v1", "prod")
    three.promote("legal@v2", "prod")
    before = snapshot(three)
    with pytest.raises(Conflict, match=r"legal@v1 was live as legal@prod on 20"):
        three.retire(["legal@v3", "legal@v1"], why="tidy")
    assert snapshot(three) == before


def test_a_member_is_retired_only_together_with_its_locks(three: Registry) -> None:
    three.lock("acme", {"stack": ["legal@v1", "style@v1"]})
    three.lock("big", {"stack": ["acme@v1"]})
    with pytest.raises(Conflict, match=r"legal@v1 is in acme@v1"):
        three.retire("legal@v1", why="tidy")
    with pytest.raises(Conflict, match=r"is in big@v1"):
        three.retire(["legal@v1", "acme@v1"], why="tidy")
    events = three.retire(["legal@v1", "acme@v1", "big@v1"], why="tidy")
    assert [event.from_ref for event in events] == ["legal@v1", "acme@v1", "big@v1"]
    assert three.resolve("acme@v1").state == "retired"


def test_a_retired_lock_frees_its_router(three: Registry) -> None:
    router = three.put_object(b"router")
    three.lock("acme", {"route": {"by": "probe", "experts": ["legal@v1", "style@v1"]}}, routers={"": router})
    assert three.gc(grace=0) == []
    three.retire("acme@v1", why="tidy")
    assert [path.name for path in three.gc(grace=0)] == [router.removeprefix("sha256:")]


def test_purging_erases_all_that_is_its_own_and_nothing_else(three: Registry, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    secret = {"examples": ["Dear Ms Muster, your diagnosis"], "dataset": {"name": "letters", "rows": 1}}
    three.add("medical", make_adapter(tmp_path / "m", seed=77), base=base, run=secret)
    put_suite(three, "general")
    score(three, "medical@v1", "general", (True,) * 4)
    three.put_report("medical@v1", "forgetting", {"flips": ["your diagnosis"]})
    three.promote("medical@v1", "prod")
    folder = three.resolve("medical@v1").path
    with pytest.raises(Conflict, match=r"medical@v1 is live in medical@prod"):
        three.purge("medical@v1", why="request 12")
    three.rollback("medical@prod", why="request 12", otherwise="disable")

    (planned,) = three.purge("medical@v1", why="request 12", dry_run=True)
    assert weights(three, "medical@v1").exists() and folder.exists()
    (event,) = three.purge("medical@v1", why="request 12")
    assert event.detail["erased"] == planned.detail["erased"]
    found = b"".join(p.read_bytes() for p in three.path.rglob("*") if p.is_file() and p.name != "registry.db")
    assert b"diagnosis" not in found and not folder.exists()
    assert three.fsck() == [] and three.gc(grace=0) == []
    assert three.resolve("medical@v1").state == "purged"
    assert three.evals("medical@v1")[0].score == 1.0  # a number is no bytes of a person
    with pytest.raises(IntegrityError, match="missing from the store"):
        _ = three.resolve("medical@v1").path
    for name in ("medical", "copy"):
        with pytest.raises(InputError, match=r"purged"):
            three.add(name, make_adapter(tmp_path / "m", seed=77), base=base)
    # The others' bytes are all there.
    assert all(three.resolve(f"legal@v{n}").path.is_dir() for n in (1, 2, 3))


def test_shared_weights_go_together_or_not_at_all(three: Registry, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    three.add("copy", make_adapter(tmp_path / "l1", seed=1), base=base)
    before = snapshot(three)
    with pytest.raises(Conflict, match=r"copy@v1 has the weights of legal@v1 too"):
        three.purge("legal@v1", why="law")
    assert snapshot(three) == before
    three.purge(["legal@v1", "copy@v1"], why="law")
    assert not weights_of_seed(three, tmp_path)


def weights_of_seed(registry: Registry, tmp_path: Path) -> bool:
    wanted = (tmp_path / "l1" / "adapter_model.safetensors").read_bytes()
    return any(path.read_bytes() == wanted for _, path in registry._store.objects.all())


def test_bytes_that_a_kill_left_after_the_tombstone_are_named_and_taken(three: Registry) -> None:
    kept = {path: path.read_bytes() for _, path in three._store.objects.all()}
    lost = weights(three, "legal@v3")
    three.purge("legal@v3", why="law")
    lost.parent.mkdir(exist_ok=True)
    lost.write_bytes(kept[lost])
    (problem,) = three.fsck()
    assert problem.startswith("legal@v3 was purged, its bytes are still in the store (sha256:")
    assert three.gc() == [lost]  # without waiting for the grace period
    assert three.fsck() == []


def test_purged_records_and_reports_do_not_come_back(three: Registry, tmp_path: Path) -> None:
    base, letters = make_base(tmp_path / "base"), {"examples": ["Dear Ms Muster"]}
    three.add("medical", make_adapter(tmp_path / "m", seed=77), base=base, run=letters)
    three.put_report("medical@v1", "forgetting", {"flips": ["Dear Ms Muster"]})
    three.purge("medical@v1", why="law")
    assert three.reports("medical@v1") == []
    before = snapshot(three)
    with pytest.raises(InputError, match="were purged as medical@v1"):
        three.add("medical", make_adapter(tmp_path / "n", seed=78), base=base, run=letters)
    with pytest.raises(InputError, match="were purged as medical@v1"):
        three.put_report("legal@v1", "forgetting", {"flips": ["Dear Ms Muster"]})
    assert snapshot(three) == before


def test_a_rollback_never_lands_on_what_is_gone(three: Registry) -> None:
    for number in (1, 2, 3):
        three.promote(f"legal@v{number}", "prod")
    three.purge("legal@v2", why="law")
    (event,) = three.rollback("legal@prod", why="worse")
    assert event.to_ref == "legal@v1"


def test_a_reason_and_exact_versions_are_needed(three: Registry) -> None:
    with pytest.raises(InputError, match="a reason"):
        three.retire("legal@v1", why=" ")
    with pytest.raises(InputError, match="is an alias"):
        three.purge("legal@prod", why="law")
    with pytest.raises(InputError, match="nothing was named"):
        three.purge([], why="law")


def test_what_two_share_goes_with_the_second(three: Registry, tmp_path: Path) -> None:
    base, run = make_base(tmp_path / "base"), {"examples": ["Dear Ms Muster"]}
    for seed in (71, 72):
        three.add("pair", make_adapter(tmp_path / f"p{seed}", seed=seed), base=base, run=run)
        three.put_report(f"pair@v{seed - 70}", "forgetting", {"flips": ["Dear Ms Muster"]})
    record = three.resolve("pair@v1").run
    report = three._store.db.row("SELECT object FROM reports")
    assert record is not None and report is not None
    both = {record, report["object"]}
    (first,) = three.purge("pair@v1", why="request 12")
    assert both.isdisjoint(first.detail["erased"]) and three.fsck() == []
    assert three.run_of(three.resolve("pair@v2")) == run and len(three.reports("pair@v2")) == 1
    (second,) = three.purge("pair@v2", why="request 12")
    assert both <= set(second.detail["erased"]) and three.fsck() == [] and three.gc(grace=0) == []
    assert not any(three._store.objects.path(digest).exists() for digest in both)


def test_two_that_share_are_purged_at_once(three: Registry, tmp_path: Path) -> None:
    base, run = make_base(tmp_path / "base"), {"examples": ["Dear Ms Muster"]}
    for seed in (71, 72):
        three.add("pair", make_adapter(tmp_path / f"p{seed}", seed=seed), base=base, run=run)
    record = three.resolve("pair@v1").run
    assert record is not None
    events = three.purge(["pair@v1", "pair@v2"], why="request 12")
    assert record in {digest for event in events for digest in event.detail["erased"]}
    assert not three._store.objects.path(record).exists() and three.fsck() == []
