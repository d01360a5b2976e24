"""A run written down: YAML in, the arguments of `inlay.train` out, and back.

    base, data, name, eval, general, general_prompts, minimum, …   what the run is about (`_RUN`)
    preset, method, kind, learning_rate, …                          every field of `Settings`

What counts, from the strongest: a flag or an argument, the configuration, the preset, the base's inlay.json,
Inlay's own default. Paths are read from where the run is started. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inlay.errors import InputError
from inlay.registry.recipes import load_yaml, read_text
from inlay.trainers.naming import meant
from inlay.trainers.settings import Settings, settled

WHAT = "run configuration"
BUILTIN = "builtin"
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class _Key:
    """A key that is no setting: the argument of `inlay.train` that it gives, and what it holds."""

    argument: str
    holds: str = "text"


_RUN = {
    "base": _Key("base"),
    "data": _Key("data"),
    "name": _Key("name"),
    "from": _Key("start"),
    "eval": _Key("target", "texts"),
    "general": _Key("general", "texts"),
    "general_prompts": _Key("general_prompts"),
    "held_out": _Key("held_out"),
    "orthogonal_to": _Key("orthogonal_to", "texts"),
    "minimum": _Key("minimum", "number"),
    "imported": _Key("imported", "texts"),
    "few_shot": _Key("few_shot", "truth"),
    "rigidity": _Key("rigidity", "truth"),
    "keep_data": _Key("keep_data", "truth"),
    "device": _Key("device"),
    "why": _Key("why"),
}
_HOLDS = {
    "text": "a text",
    "texts": "a text or a list of them",
    "number": "a number",
    "truth": "true or false",
}


def read_config(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `inlay.train` in a YAML file, or in the same as a mapping; only those that are named.

    `base: builtin` is the base that ships. Raises InputError for a key twice, an unknown key, with the
    nearest one there is, and a value that cannot be.
    """
    if isinstance(source, Mapping):
        given: Any = dict(source)
    else:
        given = load_yaml(read_text(Path(source), WHAT), WHAT)
    if not isinstance(given, dict):
        raise InputError(
            f"a {WHAT} is a mapping, and this one is a {type(given).__name__}", fix="write key: value"
        )
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    arguments: dict[str, Any] = {}
    for key, value in given.items():
        if key in _RUN:
            arguments[_RUN[key].argument] = _checked(key, value)
        elif key in fields:
            arguments[key] = _number(value) if isinstance(getattr(Settings(), key), int | float) else value
        else:
            raise _unknown(str(key), fields)
    Settings().replaced(**{key: value for key, value in arguments.items() if key in fields})
    if arguments.get("base") == BUILTIN:
        from inlay.builtin import base_path

        arguments["base"] = str(base_path())
    return arguments


def written(base_path: str | Path, arguments: Mapping[str, Any]) -> str:
    """The whole run as YAML that `read_config` gives back: every setting with its value, and who gave it
    where that is not Inlay itself. `arguments`: of `inlay.train`; None and the empty are left out."""
    fields = {field.name for field in dataclasses.fields(Settings)}
    settings, givers = settled(base_path, {k: v for k, v in arguments.items() if k in fields})
    lines = []
    for key, run in _RUN.items():
        value = arguments.get(run.argument)
        if value is not None and value not in ((), [], "", False):
            lines.append(_line(key, _named(key, value)))
    for name, value in settings.to_dict().items():
        giver = givers.get(name)
        lines.append(_line(name, value, f"  # {giver}" if giver not in (None, "asked for") else ""))
    return "".join(lines)


def _line(key: str, value: Any, comment: str = "") -> str:
    import yaml

    plain = list(value) if isinstance(value, tuple) else value
    flow = None if isinstance(plain, dict | list) else False  # None: only the innermost in one line
    text = yaml.safe_dump({key: plain}, default_flow_style=flow, allow_unicode=True, width=10_000)
    return text if text.count("\n") > 1 else text.rstrip("\n") + comment + "\n"


def _named(key: str, value: Any) -> Any:
    if key == "base":
        from inlay.builtin import base_path

        return BUILTIN if str(value) == str(base_path()) else str(value)
    return str(value) if isinstance(value, Path) else value


def _checked(key: str, value: Any) -> Any:
    holds = _RUN[key].holds
    if holds == "text" and isinstance(value, str) and value:
        return value
    if holds == "texts":
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, list) and all(isinstance(text, str) and text for text in texts):
            return tuple(texts)
    if holds == "number" and isinstance(_number(value), int | float) and not isinstance(value, bool):
        return float(_number(value))
    if holds == "truth" and isinstance(value, bool):
        return value
    raise InputError(f"{key} must be {_HOLDS[holds]}, and is {str(value)[:60]!r}")


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as a text, for want of a dot."""
    return float(value) if isinstance(value, str) and _FLOAT.fullmatch(value) else value


def _unknown(key: str, fields: Mapping[str, dataclasses.Field[Any]]) -> InputError:
    flags = {(field.metadata["flag"] or "").replace("-", "_"): name for name, field in fields.items()}
    plain = key.replace("-", "_")
    right = flags.get(plain) or (plain if plain in fields or plain in _RUN else None)
    arguments = {run.argument: name for name, run in _RUN.items()}
    right = right or arguments.get(plain)
    fix = f"did you mean {right}?" if right else meant(key, sorted([*_RUN, *fields]))
    return InputError(f"a {WHAT} has no key {key[:60]!r}", fix=fix)
