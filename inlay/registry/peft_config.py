"""Reading an adapter's configuration: every field may be missing (older PEFT), null, or of the wrong type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from inlay.errors import InputError
from inlay.registry.patterns import Patterns, TooCostly

CONFIG = "adapter_config.json"
MAX_COUNT = 2**31 - 1
MAX_NAMES = 1000
MAX_TARGETS = 200_000  # a model of experts, named one by one

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class PeftConfig:
    """An adapter_config.json. `defaults` are the values of PEFT's own for fields that are missing or null.

    Every reader raises InputError naming the field and the value if its type is another.
    """

    fields: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    unmatched: set[str] = field(default_factory=set)  # fields whose patterns were too costly to match
    _made: dict[str, Any] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        value = self.fields.get(name)
        return self.defaults.get(name) if value is None else value

    def count(self, name: str, *, least: int = 1) -> int:
        """A whole number from `least` to 2**31 - 1. Missing is PEFT's default; null is wrong, as in PEFT."""
        return self._count(name, self.fields.get(name, self.defaults.get(name)), least)

    def _count(self, name: str, value: Any, least: int = 1) -> int:
        if type(value) is not int or not least <= value <= MAX_COUNT:
            said = "positive " if least == 1 else ""
            raise self.wrong(name, f"a {said}whole number from {least} to {MAX_COUNT}", value)
        return value

    def number(self, name: str) -> float | None:
        """A finite number; None where it is missing or null."""
        value = self.get(name)
        return None if value is None else self._number(name, value)

    def _number(self, name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
            raise self.wrong(name, "a finite number", value)
        return float(value)

    def numbers(self, name: str) -> Mapping[str, float]:
        """A mapping to finite numbers; empty where it is missing."""
        return {k: self._number(f"{name}[{k[:60]!r}]", v) for k, v in self.mapping(name).items()}

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, "true or false", value)
        return bool(value)

    def text(self, name: str) -> str | None:
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "a text", value)
        return value

    def once(self, key: str, make: Callable[[], _Made]) -> _Made:
        """What `make` gives, made once: fields are asked for again with every module."""
        if key not in self._made:
            self._made[key] = make()
        made: _Made = self._made[key]
        return made

    def names(self, name: str) -> tuple[str, ...]:
        """A list of at most MAX_NAMES names; none where it is missing."""

        def make() -> tuple[str, ...]:
            value = self.get(name)
            if value is None:
                return ()
            if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
                raise self.wrong(name, "a list of names", value)
            most = MAX_TARGETS if name in ("target_modules", "exclude_modules") else MAX_NAMES
            if len(value) > most:
                raise InputError(f"{CONFIG}: {name} must have at most {most} names, it has {len(value)}")
            return tuple(value)

        return self.once(f"names of {name}", make)

    def holds(self, name: str, module: str) -> bool:
        """Whether the list `name` has the module by its whole name."""
        return module in self.once(f"set of {name}", lambda: frozenset(self.names(name)))

    def holds_end_of(self, name: str, module: str) -> bool:
        """Whether the list `name` has the module, or its name from some dot on."""
        names = self.once(f"set of {name}", lambda: frozenset(self.names(name)))
        parts = module.split(".")
        return any(".".join(parts[i:]) in names for i in range(len(parts)))

    def names_or_text(self, name: str) -> tuple[str, ...] | str:
        value = self.get(name)
        return value if isinstance(value, str) else self.names(name)

    def indices(self, name: str) -> tuple[int, ...] | None:
        """One whole number or a list of such; None where it is missing or empty."""
        value = self.get(name)
        values = [value] if type(value) is int else value
        if values is not None and not isinstance(values, list):
            raise self.wrong(name, "a list of whole numbers", value)
        return tuple(self._count(name, v, 0) for v in values) if values else None

    def mapping(self, name: str) -> Mapping[str, Any]:
        value = self.get(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.wrong(name, "a mapping", value)
        return value

    def by_pattern(self, field_name: str, module: str, otherwise: int, seen: int) -> int:
        """The whole number that `field_name` (a rank_pattern or the like) gives `module`, by PEFT's rule.

        Where its patterns cannot be matched within bounds, `seen` if it is among the values.
        """
        found = self.mapping(field_name)
        if not found:
            return otherwise

        def make() -> tuple[Patterns, dict[str, int], frozenset[int]]:
            counts = {key: self._count(f"{field_name}[{key[:60]!r}]", value) for key, value in found.items()}
            return Patterns(counts), counts, frozenset(counts.values())

        patterns, counts, values = self.once(f"patterns of {field_name}", make)
        try:
            key = patterns.first(module)
        except TooCostly:
            self.unmatched.add(field_name)
            return seen if seen in values else otherwise
        return otherwise if key is None else counts[key]

    def wrong(self, name: str, expected: str, value: Any) -> InputError:
        return InputError(f"{CONFIG}: {name} must be {expected}, got {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return repr(value[:60])
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if abs(value) <= 2**64 else "a number beyond 64 bits"
    return f"a {type(value).__name__}"
