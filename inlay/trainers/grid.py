"""Settings to try: named values, and every combination of them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from inlay.errors import InputError
from inlay.trainers.settings import Settings

Grid = Mapping[str, Sequence[Any]]
"""A setting's field -> the values to try."""


def read_grid(given: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """A grid from "lr=1e-3,3e-3", "kl=0,1": a setting by its flag or its field, the values as the setting's
    type reads them. Raises InputError for what is no setting, no value of it, or named twice."""
    found: dict[str, tuple[Any, ...]] = {}
    for text in given:
        name, equals, values = text.partition("=")
        field = _field(name.strip())
        if not equals or not values.strip():
            raise InputError(f"a sweep is over NAME=VALUE,VALUE, got {text!r}", fix="write lr=1e-3,3e-3")
        if field.name in found:
            raise InputError(
                f"a sweep names each setting once, and {name} is named twice", fix="join the values"
            )
        found[field.name] = tuple(_value(field, each.strip()) for each in values.split(","))
    return found


def points_of(grid: Grid, settings: Settings) -> dict[str, Settings]:
    """Name -> `settings` with one value of each field; the first field changes slowest.

    Raises InputError for a field that does not exist, a wrong or repeated value, and an empty grid.
    """
    if not grid or not all(grid.values()):
        raise InputError("a sweep needs a setting and values of it", fix="write lr=1e-3,3e-3")
    found: dict[str, Settings] = {}
    for values in itertools.product(*grid.values()):
        changes = dict(zip(grid, values, strict=True))
        name = ", ".join(f"{flag_of(field)} {shown(value)}" for field, value in changes.items())
        if name in found:
            raise InputError(f"a sweep tries each value once, and {name} is there twice", fix="leave one out")
        found[name] = settings.replaced(**changes)
    return found


def flag_of(field: str) -> str:
    """What the command line calls a setting, without its dashes."""
    by_name = {each.name: each for each in dataclasses.fields(Settings)}
    return (field in by_name and by_name[field].metadata["flag"]) or field.replace("_", "-")


def _field(name: str) -> dataclasses.Field[Any]:
    for each in dataclasses.fields(Settings):
        if name in (each.name, each.name.replace("_", "-"), each.metadata["flag"]):
            return each
    known = ", ".join(flag_of(each.name) for each in dataclasses.fields(Settings))
    raise InputError(f"a sweep is over settings, and {name!r} is none", fix=f"the settings are {known}")


def _value(field: dataclasses.Field[Any], text: str) -> Any:
    try:
        match field.default:
            case bool():
                return {"true": True, "false": False}[text.lower()]
            case int():
                return int(text)
            case float():
                return float(text)
            case _:
                return text
    except (ValueError, KeyError):
        kind = type(field.default).__name__
        raise InputError(f"{field.name} must be of the type {kind}, and a value is {text!r}") from None


def shown(value: Any) -> str:
    """A value as one would write it."""
    return f"{value:g}" if isinstance(value, float) else str(value)
