"""Trainers: data in, registered adapter out; thin over TRL and PEFT.

data.py      training rows from JSONL, three layouts
settings.py  one frozen record of settings; defaults that a base may override
kinds.py     the kinds of adapters, as PEFT's configurations
anchor.py    KL to the base on general prompts and the base's own answers
methods/     the ways of training, a file each
fit.py       a model, data and settings to a trained adapter: tensors only
run.py       the run: declare, train, register, measure
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inlay.trainers.run import TrainResult, train

_HOMES = {"TrainResult": "inlay.trainers.run", "train": "inlay.trainers.run"}

__all__ = ["TrainResult", "train"]


def __getattr__(name: str) -> Any:
    """The public names load on first use: the command line reads the settings without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
