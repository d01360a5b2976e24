"""fsck finds every kind of damage and names it; gc takes what nothing needs and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from registry_fakes import put_suite, score

from inlay.errors import InputError
from inlay.registry import Registry


@pytest.fixture
def full(three: Registry) -> Registry:
    """A store with one of everything."""
    put_suite(three, "general")
    score(three, "legal@v1", "general", (True,) * 4)
    three.put_report("legal@v1", "forgetting", {"lost": 0})
    router = three.put_object(b"router")
    three.lock("acme", {"route": {"by": "probe", "experts": ["legal@v1", "style@v1"]}}, routers={"": router})
    three.promote("acme@v1", "prod")
    return three


def spoil(path: Path) -> None:
    os.chmod(path, 0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_sound_store_has_nothing_to_report(full: Registry) -> None:
    assert full.fsck() == []
    assert full.gc(grace=0) == []
    assert full.fsck() == []


def test_a_flipped_bit_in_any_object_is_named(full: Registry) -> None:
    for digest, path in list(full._store.objects.all()):
        whole = path.read_bytes()
        spoil(path)
        found = full.fsck()
        assert len(found) == 1 and digest in found[0] and "has changed on the disk" in found[0]
        path.write_bytes(whole)
    version = full.resolve("legal@v2")
    spoil((version.path / "adapter_model.safetensors").resolve())
    assert full.fsck()[0].startswith("adapter_model.safetensors of legal@v2 has changed on the disk")


def test_missing_and_cut_objects_are_named(full: Registry) -> None:
    path = (full.resolve("legal@v2").path / "adapter_config.json").resolve()
    path.unlink()
    # All adapters share one configuration, so one of its owners is named.
    assert [f.split(" (")[0] for f in full.fsck()] == [
        "adapter_config.json of style@v2 is missing from the store"
    ]
    manifest = full._store.objects.path(full.resolve("legal@v3").digest)
    os.chmod(manifest, 0o644)
    os.truncate(manifest, 10)
    assert any(f.startswith("manifest of legal@v3 has changed on the disk") for f in full.fsck())


def test_gc_takes_old_leftovers_and_unreferenced_objects_only(full: Registry) -> None:
    loose = full.put_object(b"nobody refers to this")
    leftover = full._store.objects.temporary / "interrupted"
    leftover.write_bytes(b"half")
    assert full.gc() == []  # both are young
    expected = sorted([full._store.objects.path(loose), leftover])
    assert sorted(full.gc(dry_run=True, grace=0)) == expected
    assert all(path.exists() for path in expected)
    for path in expected:
        os.utime(path, (0, 0))
    assert sorted(full.gc()) == expected
    assert not any(path.exists() for path in expected)
    assert full.fsck() == []
    with pytest.raises(InputError, match="must not be negative"):
        full.gc(grace=-1)


def test_storing_what_gc_would_take_saves_it(full: Registry) -> None:
    loose = full.put_object(b"wanted again")
    os.utime(full._store.objects.path(loose), (0, 0))
    full.put_object(b"wanted again")
    assert full.gc() == []


def test_the_tensors_of_a_base_are_kept(full: Registry) -> None:
    weights = full.resolve("legal@v1").base.weights
    assert full.base_tensors(weights)["model.norm.weight"] == ("F32", (8,))
    with pytest.raises(InputError, match="no version in the registry is for the base"):
        full.base_tensors("sha256:" + "0" * 64)
