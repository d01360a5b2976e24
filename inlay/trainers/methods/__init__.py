"""The ways of training, each a file of its own with these things in it:

    READS      what a row of the data is: "rows" (a prompt and its answer), "pairs" or "texts"
    TRAINS     what of the model is trained: "adapter", or "all", from which an adapter is extracted
    prepared   (base, data, settings, progress) -> Prepared; InputError where a row cannot be trained on
    trainer    Job -> a TRL trainer with `Anchored` before it

and, where no suite says what the data taught, three more for what of it is held out:

    figures    (Chat, data) -> what a model makes of each row
    compared   (the base's figures, the adapter's) -> plain JSON
    said       that JSON -> a sentence

and, where the method has done something to the data or the model that its user should hear of,

    told       what its record says -> a sentence

A new one is a file beside these and its name in `METHODS`. Imports no torch by itself.
"""

from __future__ import annotations

import importlib
from typing import Any

from inlay.errors import InputError

METHODS = ("sft", "domain", "dpo", "distill", "full")
"""Every method, in the order in which help and documentation name them."""


def method_named(name: str) -> Any:
    """The module of a method in `METHODS`; InputError for any other name."""
    if name not in METHODS:
        raise InputError(f"the method must be {' or '.join(METHODS)}, and is {name!r}")
    return importlib.import_module(f"inlay.trainers.methods.{name}")
