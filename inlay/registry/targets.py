"""Which modules a configuration targets: target_modules, exclude_modules, layers, and copies of layers."""

from __future__ import annotations

import re
import time
from itertools import pairwise

from inlay.errors import InputError
from inlay.registry.patterns import MAX_SECONDS, TooCostly, matches
from inlay.registry.peft_config import PeftConfig

_LAYERS = re.compile(r"(?P<before>(?:^|.*?\.)(?:layers|layer|h))\.(?P<number>\d{1,9})(?P<after>\..*)")
_MAX_LAYERS = 4096


def targeted(config: PeftConfig, name: str) -> bool:
    """Whether PEFT would adapt the module `name`: peft.tuners.tuners_utils.check_target_module_exists.

    True where the configuration does not say, or says it by an expression that is too costly to match.
    """
    targets = config.names_or_text("target_modules")
    if not targets or targets == "all-linear":
        return True
    chosen = among(config, name, "target_modules", unsure=True)
    if chosen and not isinstance(targets, str) and not config.holds("target_modules", name):
        chosen = in_layers(config, name)
    return chosen and not among(config, name, "exclude_modules", unsure=False)


def among(config: PeftConfig, name: str, field: str, *, unsure: bool) -> bool:
    """Whether the field, a list of names or an expression, means the module; `unsure` where none can tell."""
    said = config.names_or_text(field)
    if not isinstance(said, str):
        return config.holds_end_of(field, name)
    spent = config.once(f"seconds of {field}", lambda: [0.0])
    start = time.monotonic()
    try:
        if spent[0] > MAX_SECONDS:
            raise TooCostly
        return matches(said, name)
    except TooCostly:
        config.unmatched.add(field)
        return unsure
    finally:
        spent[0] += time.monotonic() - start


def in_layers(config: PeftConfig, name: str) -> bool:
    """PEFT's rule of layers_to_transform, with the pattern left to whatever stands before the number."""
    layers = config.indices("layers_to_transform")
    if layers is None:
        return True
    said = config.names_or_text("layers_pattern")
    patterns = (said,) if isinstance(said, str) and said else tuple(said)
    for before, number in pairwise(name.split(".")):
        if number.isdecimal() and (not patterns or before in patterns):
            return len(number) < 10 and int(number) in layers
    return False


def name_in_base(config: PeftConfig, name: str) -> str:
    """The module's name in the base; layer_replication gives copies of a layer numbers of their own."""
    copies = config.once("copies of layers", lambda: _copies(config))
    match = _LAYERS.fullmatch(name)
    if not copies or match is None:
        return name
    number = int(match["number"])
    if number >= len(copies):
        raise InputError(f"module {name!r} fits nothing: layer_replication makes {len(copies)} layers")
    return f"{match['before']}.{copies[number]}{match['after']}"


def _copies(config: PeftConfig) -> list[int]:
    """Which layer of the base each layer is; nothing without layer_replication."""
    spans = config.get("layer_replication") or []
    copies: list[int] = []
    wrong = config.wrong("layer_replication", "a list of [first, last + 1]", spans)
    if not isinstance(spans, list):
        raise wrong
    for span in spans:
        if not isinstance(span, list) or len(span) != 2 or any(type(n) is not int for n in span):
            raise wrong
        if not 0 <= span[0] < span[1] <= _MAX_LAYERS or len(copies) > _MAX_LAYERS:
            raise wrong
        copies += range(span[0], span[1])
    return copies
