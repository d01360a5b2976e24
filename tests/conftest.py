"""Shared by all tests: one torch thread, no hub, a cache of its own, the built-in base loaded once."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("INLAY_CACHE", tempfile.mkdtemp(prefix="inlay-test-cache-"))
os.environ.pop("INLAY_STORE", None)

if TYPE_CHECKING:
    from inlay import Registry
    from inlay.evals.inference import Base


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`cuda` tests skip, with the reason, where there is no device; `data` ones where there is no data,
    `browser` ones where there is no Chromium, unless it is required."""
    data, required = os.environ.get("INLAY_TEST_DATA"), os.environ.get("INLAY_REQUIRE_DATA")
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    browser_required = os.environ.get("INLAY_REQUIRE_BROWSER")
    for item in items:
        if "data" in item.keywords and not data and not required:
            item.add_marker(pytest.mark.skip(reason="needs real data: set INLAY_TEST_DATA to its folder"))
        if "browser" in item.keywords and not browser and not browser_required:
            item.add_marker(pytest.mark.skip(reason="needs Chromium: apt-get install chromium"))
        if "cuda" in item.keywords:
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real models, tasks and suites."""
    folder = Path(os.environ.get("INLAY_TEST_DATA", ""))
    assert folder.is_dir() and (folder / "models").is_dir(), (
        f"INLAY_TEST_DATA must name the data folder: {folder}"
    )
    return folder


@pytest.fixture(scope="session")
def shared_base() -> Base:
    """The built-in base; a test that changes it must put it back."""
    import torch

    from inlay.builtin import base_path
    from inlay.evals.inference import load_base

    torch.set_num_threads(1)
    return load_base(base_path())


@pytest.fixture
def base(shared_base: Base) -> Iterator[Base]:
    """The built-in base, checked to be as it was after the test."""
    before = {name: parameter.detach().clone() for name, parameter in shared_base.model.named_parameters()}
    yield shared_base
    after = dict(shared_base.model.named_parameters())
    assert after.keys() == before.keys(), "the test left something on the shared base"
    assert all(bool((after[name] == before[name]).all()) for name in before), (
        "the test changed the shared base"
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Registry]:
    """A fresh store whose guards are judged."""
    import inlay

    with inlay.Registry.open(tmp_path / "adapters_store", create=True) as registry:
        yield registry
