"""Fixtures of the registry's tests: a cache of their own, a base, a store, and one with adapters in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundle_fakes import fill, let_go
from registry_fakes import make_adapter, make_base

from inlay.registry import Registry


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INLAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("INLAY_USER", "anna")
    monkeypatch.delenv("INLAY_STORE", raising=False)
    monkeypatch.setattr(Registry, "judge", None)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(tmp_path / "store", create=True) as registry:
        yield registry


@pytest.fixture(scope="session")
def three_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed store with adapters; made once, because every registration waits for the disk."""
    folder = tmp_path_factory.mktemp("three")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INLAY_CACHE", str(folder / "cache"))
        patch.setenv("INLAY_USER", "anna")
        base = make_base(folder / "base")
        with Registry.open(folder / "store", create=True) as registry:
            for seed in (1, 2, 3):
                registry.add("legal", make_adapter(folder / f"legal{seed}", seed=seed), base=base)
            for seed in (11, 12):
                registry.add("style", make_adapter(folder / f"style{seed}", seed=seed), base=base)
    return folder / "store"


@pytest.fixture
def three(three_made: Path, tmp_path: Path) -> Iterator[Registry]:
    """legal@v1 … legal@v3 and style@v1, style@v2, in a copy of their own."""
    shutil.copytree(three_made, tmp_path / "three")
    with Registry.open(tmp_path / "three") as registry:
        yield registry


@pytest.fixture(scope="session")
def rich_made(three_made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `store`, which holds something of everything that a bundle carries, and `all.bundle`."""
    folder = tmp_path_factory.mktemp("rich")
    shutil.copytree(three_made, folder / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INLAY_CACHE", str(folder / "cache"))
        patch.setenv("INLAY_USER", "anna")
        patch.setattr(Registry, "judge", None)
        with Registry.open(folder / "store") as registry:
            base = make_base(three_made.parent / "base")
            fill(registry, folder, base)
            let_go(registry, folder, base)
            registry.bundle(folder / "all.bundle")
    return folder


@pytest.fixture
def rich(rich_made: Path, tmp_path: Path) -> Iterator[Registry]:
    """A copy of that store."""
    shutil.copytree(rich_made / "store", tmp_path / "rich")
    with Registry.open(tmp_path / "rich") as registry:
        yield registry
