"""Trainers: data in, registered adapter out; thin over TRL and PEFT.

data.py      training rows from JSONL, three layouts
pairs.py     preference pairs from JSONL
texts.py     raw text, a document at a time
reading.py   which of the three readers a method wants
held_out.py  what of raw text and pairs is kept out of training, to be measured on
settings.py  one frozen record of settings; defaults that a base may override
presets.py   settings that go together, by what is trained for
config.py    a run written down: YAML in, the arguments of a run out, and back
kinds.py     the kinds of adapters, as PEFT's configurations
placement.py which modules of which layers an adapter sits in
remembering.py  all that keeps a training from forgetting, and what it took, in words
anchor.py    KL to the base on general prompts and the base's own answers
replay.py    general prompts with the base's own answers among the task's rows
orthogonal.py   a start, and a penalty, orthogonal to other adapters
early_stop.py   an end where protected prompts are answered otherwise
protected.py    the prompts that are held apart to be asked on the way
methods/     the ways of training, a file each
extraction.py  the adapter in a fully fine-tuned model
fit.py       a model, data and settings to a trained adapter: tensors only
checkpoints.py    what it takes to go on bit for bit, kept so that no kill can spoil it
keeping.py        training that can be stopped and taken up again
out_of_memory.py  what to change where a step does not fit the memory
processes.py      several processes that train one adapter together
run.py       the run: declare, train, register, measure
grid.py      settings to try, every combination
sweep.py     a training a point, and the one that is taken; sweep_report.py and sweep_html.py say so
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inlay.trainers.config import read_config
    from inlay.trainers.run import TrainResult, train

_HOMES = {
    "TrainResult": "inlay.trainers.run",
    "read_config": "inlay.trainers.config",
    "train": "inlay.trainers.run",
}

__all__ = ["TrainResult", "read_config", "train"]


def __getattr__(name: str) -> Any:
    """The public names load on first use: the command line reads the settings without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
