"""Where in the base an adapter sits: which modules of which layers, and with which rank and alpha each.

What a flag or a configuration wrote is read here without torch; a model is asked for its modules only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError

if TYPE_CHECKING:
    import torch

ALL_LINEAR = "all-linear"
"""Every linear layer but the output head, as PEFT means it."""
ALL = "all"
THIRDS = ("early", "middle", "late")
_SPAN = re.compile(r"(\d+)(?:-(\d+))?")
_NAMES = re.compile(r"[\w.]+(?:\s*,\s*[\w.]+)*")


def read_targets(written: Any) -> tuple[str, ...] | str:
    """Names of modules out of "q_proj,v_proj" or a list of them; "all-linear" and regular expressions, which
    are those with more than names in them, stay as they are. InputError for anything else."""
    if isinstance(written, str) and written:
        if written == ALL_LINEAR or not _NAMES.fullmatch(written):
            return written
        written = [name.strip() for name in written.split(",")]
    if isinstance(written, list | tuple) and written and all(isinstance(n, str) and n for n in written):
        return tuple(written)
    raise InputError(
        f"target_modules must be names of modules or {ALL_LINEAR}, and is {written!r}",
        fix="write q_proj,v_proj",
    )


def read_layers(written: Any) -> str:
    """`all`, a third by name, or numbers and spans such as `0,10-20`; InputError for anything else.

    A number or a list of numbers, as YAML gives them, is taken as well.
    """
    if isinstance(written, list | tuple):
        written = ",".join(str(part) for part in written)
    text = str(written).replace(" ", "")
    spans = text.split(",")
    if isinstance(written, bool) or not (
        text in (ALL, *THIRDS) or all(_SPAN.fullmatch(span) for span in spans)
    ):
        raise InputError(
            f"layers must be {ALL}, {', '.join(THIRDS)} or numbers such as 10-20, and are "
            f"{str(written)[:60]!r}"
        )
    return text


def read_pattern(written: Any) -> dict[str, float]:
    """Name of a module, or a regular expression for its end, -> number; out of a mapping, or "name=number",
    one or a list of them. InputError for anything else."""
    if isinstance(written, str):
        written = [written]
    if not isinstance(written, Mapping):
        pairs = [str(part).rpartition("=") for part in written] if isinstance(written, list | tuple) else []
        if not pairs or not all(name and mark for name, mark, _ in pairs):
            raise InputError(f"a pattern is NAME=NUMBER, and is {str(written)[:60]!r}", fix="write q_proj=8")
        names = [name for name, _, _ in pairs]
        if len(names) != len(set(names)):
            raise InputError("a pattern gives a module one number, and names one twice", fix="keep one")
        written = {name: number for name, _, number in pairs}
    return {str(name): _above_zero(name, number) for name, number in written.items()}


def read_rank_pattern(written: Any) -> dict[str, int]:
    """`read_pattern` with whole numbers."""
    found = read_pattern(written)
    for name, rank in found.items():
        if rank != int(rank):
            raise InputError(f"a rank is a whole number, and that of {name} is {rank:g}")
    return {name: int(rank) for name, rank in found.items()}


def _above_zero(name: Any, number: Any) -> float:
    try:
        value = float(number)
    except (TypeError, ValueError):
        value = 0.0
    if isinstance(number, bool) or not 0 < value < float("inf"):
        raise InputError(f"a pattern gives numbers above zero, and {name} has {str(number)[:60]!r}")
    return value


def layer_numbers(layers: str, count: int) -> list[int]:
    """The layers that `layers`, by `read_layers`, means among `count`; early, middle and late are thirds.

    Raises InputError for a number out of range, a span that runs backwards and a third of fewer than three.
    """
    if layers == ALL:
        return list(range(count))
    if layers in THIRDS:
        if count < len(THIRDS):
            raise InputError(
                f"{layers} is a third of the layers, and the base has {count}", fix="name them by number"
            )
        place = THIRDS.index(layers)
        return list(range(count * place // 3, count * (place + 1) // 3))
    found: set[int] = set()
    for span in layers.split(","):
        first, _, last = span.partition("-")
        numbers = range(int(first), int(last or first) + 1)
        if not numbers or numbers[-1] >= count:
            raise InputError(
                f"layers are numbered from 0 to {count - 1} in this base, and {span} is not among them"
            )
        found.update(numbers)
    return sorted(found)


def targets_of(model: torch.nn.Module, targets: tuple[str, ...] | str, layers: str) -> list[str]:
    """The full names of the modules that are adapted, in the model's order.

    A name in `targets` stands for the modules whose name ends with it, a regular expression for those that it
    matches wholly, as in PEFT. Raises InputError for a name that no module has, for the output head, and
    where nothing is left.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    named = dict(model.named_modules())
    if targets == ALL_LINEAR:
        chosen = [name for name, module in named.items() if module is not head and _is_linear(module)]
    elif isinstance(targets, str):
        chosen = [name for name in named if _matches(targets, name)]
    else:
        for target in targets:
            if not any(_ends_with(name, target) for name in named):
                raise _unknown(target, named)
        chosen = [name for name in named if any(_ends_with(name, target) for target in targets)]
    for name in chosen:
        if named[name] is head:
            raise InputError(
                f"the output head cannot be adapted, and {name} is it", fix="leave it out of target_modules"
            )
    if layers != ALL:
        stem, count = _layers_of(model)
        within = tuple(f"{stem}.{number}." for number in layer_numbers(layers, count))
        chosen = [name for name in chosen if name.startswith(within)]
    if not chosen:
        raise InputError(
            f"something must be adapted, and {_written(targets)} in layers {layers} is no module of the base",
            fix=f"leave target_modules at {ALL_LINEAR}",
        )
    return chosen


def refuse_idle(pattern: Mapping[str, float], modules: list[str], setting: str) -> None:
    """InputError for a name in a pattern that no adapted module has: PEFT would pass over it."""
    for name in pattern:
        if not any(_matches(rf"(.*\.)?({name})", module) for module in modules):
            raise InputError(
                f"{setting} must name modules that are adapted, and {name} is none of them",
                fix=f"the first of them is {modules[0]}",
            )


def _layers_of(model: torch.nn.Module) -> tuple[str, int]:
    """The name of the list of layers, and how many there are."""
    from torch import nn

    count = model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr, operator]
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, count
    raise InputError("this base has no list of layers to choose from", fix="leave layers at all")


def _is_linear(module: torch.nn.Module) -> bool:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise InputError(f"{pattern[:60]!r} is no regular expression: {error}") from None


def _unknown(target: str, named: Mapping[str, Any]) -> InputError:
    from inlay.trainers.naming import meant

    ends = list(dict.fromkeys(name.rpartition(".")[2] for name in named if name))
    return InputError(f"target_modules must be in the base, and {target} is not", fix=meant(target, ends))


def _written(targets: tuple[str, ...] | str) -> str:
    return targets if isinstance(targets, str) else ",".join(targets)
