"""Fixtures of the fault tests. The registry's fakes are shared: small bases, adapters and snapshots."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
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


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, adapters `legal1`…`legal4`, and a closed `store` with everything in it."""
    from fault_fakes import fill

    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INLAY_CACHE", str(folder / "cache"))
        patch.setenv("INLAY_USER", "anna")
        make_base(folder / "base")
        for seed in (1, 2, 3, 4):
            make_adapter(folder / f"legal{seed}", seed=seed)
            (folder / f"legal{seed}" / "README.md").write_text("---\nlicense: mit\n---\nClauses.\n")
        fill(folder)
    return folder


@pytest.fixture
def full(made: Path, tmp_path: Path) -> Iterator[Registry]:
    """An open copy of the store with everything in it."""
    shutil.copytree(made / "store", tmp_path / "full")
    with Registry.open(tmp_path / "full") as registry:
        yield registry


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that every account can reach; pytest's own are for the owner alone."""
    folder = Path(tempfile.mkdtemp(prefix="inlay-faults-"))
    folder.chmod(0o755)
    yield folder
    for path in folder.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)
