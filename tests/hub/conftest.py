"""A hub on loopback, a process that is logged in there, a base, and two stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_fakes import TOKEN, Runner, environment, make_base, runner
from hub_server import Faults, Hub

import inlay
from inlay.registry import Registry


@pytest.fixture(scope="session")
def one_hub() -> Iterator[Hub]:
    with Hub(TOKEN) as hub:
        yield hub


@pytest.fixture
def hub(one_hub: Hub) -> Hub:
    """The hub, empty and sound."""
    one_hub.repos, one_hub.objects, one_hub.requests = {}, {}, []
    one_hub.faults, one_hub.extra_siblings, one_hub.sizes, one_hub.may_write = Faults(), {}, {}, True
    return one_hub


@pytest.fixture(scope="session")
def verbs(one_hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """Runs verbs in one process that is logged in."""
    with runner(environment(one_hub, tmp_path_factory.mktemp("home"))) as made:
        yield made


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small base's folder."""
    monkeypatch.setenv("INLAY_CACHE", str(tmp_path / "own-cache"))
    return make_base(tmp_path / "base")


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Registry]:
    """The store that is pulled into; `store` is the one that is pushed from."""
    with inlay.Registry.open(tmp_path / "there", create=True) as registry:
        yield registry
