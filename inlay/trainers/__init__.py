"""Trainers: data in, registered adapter out; thin over TRL and PEFT.

data.py      training rows from JSONL, three layouts
settings.py  one frozen record of settings; defaults that a base may override
anchor.py    KL to the base on general prompts and the base's own answers
sft.py       supervised fine-tuning: tensors only
run.py       the run: declare, train, register, measure
"""

from __future__ import annotations

from inlay.trainers.run import TrainResult, train

__all__ = ["TrainResult", "train"]
