"""Inlay: the registry and composition system for model adapters.

The names below are the public API; everything else may change. They load on first use, so that
`import inlay` costs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from inlay.errors import (
    BaseMismatch,
    Conflict,
    GuardRefused,
    InlayError,
    InputError,
    IntegrityError,
    ReferenceNotFound,
    StoreBusy,
)

if TYPE_CHECKING:
    from inlay.composer import ComposedModel, compose, diff, forgetting, merge, read_adapter
    from inlay.composer.export import export
    from inlay.evals import EvalResult, ForgettingReport, Suite
    from inlay.registry import Lock, Registry, Version
    from inlay.trainers import TrainResult, train

__version__ = "0.1.0"

_HOMES = {
    "Lock": "inlay.registry",
    "Registry": "inlay.registry",
    "Version": "inlay.registry",
    "EvalResult": "inlay.evals",
    "ForgettingReport": "inlay.evals",
    "Suite": "inlay.evals",
    "ComposedModel": "inlay.composer",
    "compose": "inlay.composer",
    "diff": "inlay.composer",
    "evaluate": "inlay.composer",
    "export": "inlay.composer.export",
    "forgetting": "inlay.composer",
    "merge": "inlay.composer",
    "read_adapter": "inlay.composer",
    "TrainResult": "inlay.trainers",
    "train": "inlay.trainers",
}

__all__ = [
    "BaseMismatch",
    "ComposedModel",
    "Conflict",
    "EvalResult",
    "ForgettingReport",
    "GuardRefused",
    "InlayError",
    "InputError",
    "IntegrityError",
    "Lock",
    "ReferenceNotFound",
    "Registry",
    "StoreBusy",
    "Suite",
    "TrainResult",
    "Version",
    "compose",
    "diff",
    "evaluate",
    "export",
    "forgetting",
    "merge",
    "read_adapter",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'inlay' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    if name == "Registry":
        # The registry keeps the rules, evals the statistics, and neither knows the other: here they meet.
        from inlay.evals.guards import judge

        value.judge = staticmethod(judge)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
