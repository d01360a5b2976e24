"""One adapter by itself, as PEFT runs it: for kinds whose delta is no product B @ A on the plain base.

PEFT changes the modules it is given, some of its kinds the weights too. So it gets a twin of the base:
the same tree of modules anew, over the same tensors. The base keeps its own, and taking the adapter off is
letting go of the twin.

Knows PEFT and modules. Does not know recipes or the bank's arithmetic.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.composer.factors.reading import CONFIG, WEIGHTS, refusal
from inlay.errors import InputError
from inlay.registry.kinds import CONVERSION, KINDS, classify
from inlay.registry.printable import printable

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from inlay.registry import Registry, Version

_PREFIX = "base_model.model."
# Kinds that ask for the number of a task with each request.
_TASKS = ("MULTITASK_PROMPT_TUNING", "POLY")


def refusal_alone(config: Mapping[str, Any]) -> str | None:
    """Why PEFT cannot run an adapter with this configuration on the plain base, or None if it can."""
    said = classify(config)
    kind = KINDS[config["peft_type"]]
    if said.exactness == CONVERSION:
        return refusal(config)
    if kind.peft_type in _TASKS:
        return f"its kind is {kind.peft_type}, which wants the number of a task with each request"
    task = config.get("task_type")
    if task != "CAUSAL_LM" and (task is not None or kind.on == "prompt"):
        return f"its task_type is {printable(str(task))[:40]}, and only CAUSAL_LM answers"
    return None


def load_alone(base: torch.nn.Module, store: Registry, version: Version) -> PeftModel:
    """The base with one adapter version on it, run by PEFT; every byte verified.

    The base's modules and tensors stay what they are, to the bit. Raises InputError where PEFT cannot load
    it, IntegrityError for bytes that changed.
    """
    files = {name: store.read_file(version, name) for name in (CONFIG, WEIGHTS)}
    return put_on(twin_of(base), files, version.ref)


def put_on(twin: torch.nn.Module, files: Mapping[str, bytes], name: str) -> PeftModel:
    """PEFT's model of the adapter in `files` on a twin of a base, in evaluation mode."""
    from peft import PeftModel
    from safetensors.torch import load

    keep_apart(twin, load(files[WEIGHTS]))
    with (
        tempfile.TemporaryDirectory(prefix="inlay-alone-") as folder,
        warnings.catch_warnings(record=True) as said,
    ):
        warnings.simplefilter("always")
        for file in (CONFIG, WEIGHTS):
            Path(folder, file).write_bytes(files[file])
        try:
            model = PeftModel.from_pretrained(twin, folder)
        except (ValueError, TypeError, KeyError, RuntimeError, NotImplementedError, AttributeError) as error:
            raise InputError(f"PEFT cannot load {name}: {printable(str(error))[:200]}") from error
    for warning in said:
        if "missing adapter keys" in str(warning.message):
            raise InputError(f"PEFT finds not all of {name}: {printable(str(warning.message))[:200]}")
    model.requires_grad_(False)
    return model.eval()


def twin_of(model: torch.nn.Module) -> torch.nn.Module:
    """The tree of modules anew, over the tensors of `model`: what is put into one tree is not in the other.

    Layers of a bank are left out, their inner ones stand in their places. Parameters are new objects, so
    that one may be given other data; writing into one still writes into both (see `keep_apart`).
    """
    from torch import nn

    from inlay.composer.bank import BankLayer

    memo: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        plain = type(parameter) is nn.Parameter
        memo[id(parameter)] = nn.Parameter(parameter.data, requires_grad=False) if plain else parameter
    for layer in [module for module in model.modules() if isinstance(module, BankLayer)]:
        memo[id(layer)] = copy.deepcopy(layer.inner, memo)
    return copy.deepcopy(model, memo)


def keep_apart(twin: torch.nn.Module, keys: Iterable[str]) -> None:
    """Give the twin data of its own for every tensor of the base that an adapter replaces: loading it would
    write over them."""
    own = dict(twin.named_parameters(remove_duplicate=False))  # tied ones go by either name
    for key in keys:
        parameter = own.get(key.removeprefix(_PREFIX).replace(".base_layer.", "."))
        if parameter is not None:
            parameter.data = parameter.data.clone()
