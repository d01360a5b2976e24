"""The ways of training, each a file of its own with three things in it:

    READS      what a row of the data is: "rows" (a prompt and its answer)
    prepared   (base, data, settings) -> the rows that are trained on; InputError where one cannot be
    trainer    Job -> a TRL trainer with `Anchored` before it

A new one is a file beside these and its name in `METHODS`. Imports no torch by itself.
"""

from __future__ import annotations

import importlib
from typing import Any

METHODS = ("sft",)
"""Every method, in the order in which help and documentation name them."""


def method_named(name: str) -> Any:
    """The module of a method in `METHODS`."""
    return importlib.import_module(f"inlay.trainers.methods.{name}")
