"""The Hugging Face Hub: adapters out of it at one commit, versions and exported variants into it.

    pulling.py   a repository becomes a version
    pushing.py   a version, or a variant's export, becomes a commit
    fetching.py  files of one commit: bounded, resumed, verified
    record.py    inlay.json, by which a pull knows what was pushed
    card.py      the model card

Tokens are the hub's own affair: HF_TOKEN, or its login. None is ever an argument, kept or printed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inlay.hub.pulling import names_repo, pull
    from inlay.hub.pushing import Pushed, push

_HOMES = {"Pushed": "pushing", "names_repo": "pulling", "pull": "pulling", "push": "pushing"}

__all__ = ["Pushed", "names_repo", "pull", "push"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'inlay.hub' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"inlay.hub.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
