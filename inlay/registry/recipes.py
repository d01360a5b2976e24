"""Recipes: a small YAML expression over adapters, parsed into frozen nodes.

    recipe = [base: …] [guard: …] (compose: node | the node's own keys)
    node   = reference | {use: reference, weight?} | {stack: [node…], weight?}
           | {merge: [node…], method?, params?, rank? | energy?, space?, seed?, weight?}
           | {route: {by, experts: [node…], fallback?, params?}, weight?}

Each node has exactly one operator. Unknown and duplicate keys are errors, because a mistyped `weigth` that is
ignored is a wrong model in production. YAML is read without tags, anchors or aliases, within bounds.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inlay.errors import InputError
from inlay.registry.canonical import is_digest
from inlay.registry.guards import Guard
from inlay.registry.names import parse_reference

MAX_BYTES = 64 << 10
MAX_DEPTH = 8
MAX_MEMBERS = 4096
MAX_RANK = 65_536
OPERATORS = ("use", "stack", "merge", "route")
SPACES = ("core", "dense")
ROUTERS = ("request", "probe", "words", "centroid", "arrow")
FITTED_ROUTERS = ("probe", "words", "centroid")  # those whose weights are an object in the store
TOKEN_ROUTERS = ("arrow",)  # those that choose for each token
BASE = "base"
_MAX_YAML_DEPTH = 4 * MAX_DEPTH  # a node of the recipe takes up to four levels of YAML

_KEYS = {
    "use": ("use", "weight"),
    "stack": ("stack", "weight"),
    "merge": ("merge", "method", "params", "rank", "energy", "space", "seed", "weight"),
    "route": ("route", "weight"),
}
_ROUTE_KEYS = ("by", "experts", "fallback", "params")


@dataclass(frozen=True)
class Use:
    """One adapter (or variant) by reference; "base" is the bare base."""

    ref: str
    weight: float = 1.0


@dataclass(frozen=True)
class Stack:
    """The sum of its members' deltas."""

    members: tuple[Node, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class Merge:
    """One adapter out of several. It is cut to `rank`, or to the share `energy` of its squared norm; None
    keeps what the method gives. `seed` is for methods that draw."""

    members: tuple[Node, ...]
    method: str = "linear"
    params: Mapping[str, Any] = field(default_factory=dict)
    rank: int | None = None
    space: str = "core"
    seed: int = 0
    weight: float = 1.0
    energy: float | None = None


@dataclass(frozen=True)
class Route:
    """Experts of which a router picks per request or token; `fallback` is where it abstains to. `params` are
    the router's own, where it has any."""

    by: str
    experts: tuple[Node, ...]
    fallback: str = BASE
    weight: float = 1.0
    params: Mapping[str, Any] = field(default_factory=dict)


Node = Use | Stack | Merge | Route


@dataclass(frozen=True)
class Recipe:
    """A parsed recipe. `text` is what was written, kept for the lock."""

    base: str | None
    compose: Node
    guard: Guard | None
    text: str = field(default="", compare=False)

    @classmethod
    def of(cls, recipe: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
        """The recipe in a file (Path, or a str that names one), a YAML text or a mapping.

        Raises InputError naming the place ("compose.stack.0"), the key and what is allowed.
        """
        if isinstance(recipe, Recipe):
            return recipe
        if isinstance(recipe, Mapping):
            value: Any = recipe
            try:
                text = json.dumps(recipe, ensure_ascii=False, allow_nan=False)
            except (TypeError, ValueError, RecursionError) as error:
                raise InputError(f"a recipe must be plain data: {str(error)[:120]}") from None
            if len(text) > MAX_BYTES:
                raise InputError(f"a recipe must be at most {MAX_BYTES} bytes, got {len(text)}")
        else:
            text = _text(recipe)
            value = load_yaml(text, "recipe")
        return _recipe(value, text)


def load_yaml(text: str, what: str) -> Any:
    """The plain data in a YAML text of at most 64 KiB: no tags, anchors, aliases, duplicate keys or deep
    nesting.

    Raises InputError with the line.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise InputError(
            f"a {what} must be at most {MAX_BYTES} bytes, got {len(text.encode('utf-8', 'replace'))}"
        )
    import yaml

    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise InputError(
                    f"a {what} must not use anchors or aliases, line {_line(event)} does",
                    fix="write the value out",
                )
            tag = getattr(event, "tag", None)
            if tag:  # a tag on a value that it does not fit makes the loader fail in ways of its own
                raise InputError(
                    f"the {what} is not sound YAML: tags are not read, line {_line(event)} has {tag[:60]!r}",
                    fix="write the plain value",
                )
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > _MAX_YAML_DEPTH:
                    raise InputError(f"a {what} is nested too deeply at line {_line(event)}")
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            raise InputError(f"the {what} is empty", fix="write at least one reference")
        _refuse_duplicates(node, what)
        value = yaml.load(text, Loader=yaml.SafeLoader)
        _refuse_vast(value, what)
        return value
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InputError(f"the {what} is not sound YAML{where}: {str(problem)[:120]}") from None
    except (ValueError, OverflowError) as error:  # a timestamp or a number that Python cannot hold
        raise InputError(f"the {what} has a value that cannot be read: {str(error)[:120]}") from None


def _refuse_vast(value: Any, what: str) -> None:
    """Hexadecimal and base 60 write numbers in a line that can be neither printed nor made a float."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, int) and item.bit_length() > 64:
            raise InputError(f"the {what} has a number of {item.bit_length()} bits, 64 are the most")
        if isinstance(item, Mapping):
            pending += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            pending += item


def _line(event_or_node: Any) -> int:
    """Counting from one; 0 where the parser kept no mark."""
    mark = event_or_node.start_mark
    return mark.line + 1 if mark is not None else 0


def _refuse_duplicates(node: Any, what: str) -> None:
    import yaml

    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise InputError(f"a key of the {what} must be text, line {_line(key)}")
            if key.value in seen:
                raise InputError(
                    f"the {what} has the key {key.value!r} twice, again at line {_line(key)}",
                    fix="keep one of them",
                )
            seen.add(key.value)
            _refuse_duplicates(value, what)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_duplicates(value, what)


def read_text(path: Path, what: str) -> str:
    """A text file of at most 64 KiB; InputError if there is none, it is longer or not UTF-8."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read the {what} {str(path)!r}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"a {what} must be at most {MAX_BYTES} bytes, {path.name} has more")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"the {what} {path.name} is not UTF-8 text") from None


def _text(recipe: str | Path) -> str:
    if isinstance(recipe, Path):
        return read_text(recipe, "recipe")
    if not isinstance(recipe, str):
        raise InputError(f"a recipe is a path, a YAML text or a dict, got a {type(recipe).__name__}")
    looks_like_yaml = "\n" in recipe or ": " in recipe or recipe.lstrip().startswith(("{", "["))
    if not looks_like_yaml and (recipe.endswith((".yaml", ".yml", ".json")) or os.path.isfile(recipe)):
        return read_text(Path(recipe), "recipe")
    return recipe


def _recipe(value: Any, text: str) -> Recipe:
    base, guard = None, None
    place = "recipe"
    if isinstance(value, Mapping):
        value = dict(value)
        base = value.pop("base", None)
        if base is not None and (not isinstance(base, str) or not base):
            raise InputError(f"base must be a folder or a hub id, got {str(base)[:60]!r}")
        written = value.pop("guard", None)
        guard = Guard.of(written) if written is not None else None
        if "compose" in value:
            body = value.pop("compose")
            _refuse_unknown(value, (), "recipe", ("base", "compose", "guard"))
            value, place = body, "compose"
    count = [0]
    compose = _node(value, place, 1, count)
    if isinstance(compose, Use) and compose.ref == BASE and base is None:
        raise InputError("a recipe that is only the base must name it", fix="add `base: FOLDER`")
    return Recipe(base, compose, guard, text)


def _node(value: Any, place: str, depth: int, count: list[int]) -> Node:
    if depth > MAX_DEPTH:
        raise InputError(f"a recipe is at most {MAX_DEPTH} levels deep, {place} is deeper")
    count[0] += 1
    if count[0] > MAX_MEMBERS:
        raise InputError(f"a recipe has at most {MAX_MEMBERS} nodes, this one has more")
    if isinstance(value, str):
        return Use(_reference(value, place, depth))
    if not isinstance(value, Mapping):
        raise InputError(
            f"{place} must be a reference or one of {', '.join(OPERATORS)}, got a {type(value).__name__}",
            fix="write name@prod, or {use: name@prod, weight: 0.5}",
        )
    operators = [key for key in OPERATORS if key in value]
    if len(operators) != 1:
        said = " and ".join(operators) if operators else "none"
        unknown = [str(key)[:60] for key in value if key not in OPERATORS]
        hint = f" but {unknown[0]!r}" if not operators and unknown else ""
        raise InputError(
            f"{place} must have exactly one operator, it has {said}{hint}",
            fix=f"allowed: {', '.join(OPERATORS)}",
        )
    operator = operators[0]
    _refuse_unknown(value, _KEYS[operator], place)
    weight = _number(value.get("weight", 1.0), f"{place}.weight")
    below = f"{place}.{operator}"
    match operator:
        case "use":
            return Use(_reference(value["use"], below, depth), weight)
        case "stack":
            return Stack(_nodes(value["stack"], below, depth, count), weight)
        case "merge":
            return _merge(value, below, depth, count, weight)
        case _:
            return _route(value["route"], below, depth, count, weight)


def _merge(value: Mapping[str, Any], place: str, depth: int, count: list[int], weight: float) -> Merge:
    method, params = value.get("method", "linear"), _params(value, place)
    rank, space, seed = value.get("rank"), value.get("space", "core"), value.get("seed", 0)
    if not isinstance(method, str) or not method:
        raise InputError(f"{place}: method must be a name, got {str(method)[:60]!r}")
    if rank is not None and (type(rank) is not int or not 1 <= rank <= MAX_RANK):
        raise InputError(f"{place}: rank must be a whole number from 1 to {MAX_RANK}, got {str(rank)[:60]!r}")
    energy = value.get("energy")
    if energy is not None:
        energy = _number(energy, f"{place}: energy")
        if not 0.0 < energy <= 1.0:
            raise InputError(f"{place}: energy must be above 0 and at most 1, got {energy:g}")
        if rank is not None:
            raise InputError(f"{place} is cut by rank or by energy, not by both", fix="remove one of them")
    if space not in SPACES:
        raise InputError(f"{place}: unknown space {str(space)[:60]!r}", fix=f"allowed: {', '.join(SPACES)}")
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise InputError(f"{place}: seed must be a whole number from 0, got {str(seed)[:60]!r}")
    members = _nodes(value["merge"], place, depth, count)
    return Merge(members, method, params, rank, space, seed, weight, energy)


def _params(value: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A node's `params`, as plain scalars by name."""
    params = value.get("params") or {}
    if not isinstance(params, Mapping):
        raise InputError(f"{place}: params must map names to values, got a {type(params).__name__}")
    for key, parameter in params.items():
        if not isinstance(key, str) or not isinstance(parameter, str | int | float | bool):
            raise InputError(f"{place}: params.{str(key)[:60]} must be a number, a text or true/false")
        if isinstance(parameter, float) and not math.isfinite(parameter):
            raise InputError(f"{place}: params.{key[:60]} must be finite, got {parameter}")
    return dict(params)


def _route(value: Any, place: str, depth: int, count: list[int], weight: float) -> Route:
    if not isinstance(value, Mapping):
        raise InputError(f"{place} must be a mapping", fix="write {by: probe, experts: [a@prod, b@prod]}")
    _refuse_unknown(value, _ROUTE_KEYS, place)
    by, fallback = value.get("by"), value.get("fallback", BASE)
    if by not in ROUTERS:
        raise InputError(
            f"{place}: unknown router {str(by)[:60]!r}", fix=f"by must be one of {', '.join(ROUTERS)}"
        )
    if fallback != BASE:
        raise InputError(f"{place}: fallback can only be base so far, got {str(fallback)[:60]!r}")
    experts = _nodes(value.get("experts"), f"{place}.experts", depth, count)
    return Route(by, experts, BASE, weight, _params(value, place))


def _nodes(value: Any, place: str, depth: int, count: list[int]) -> tuple[Node, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise InputError(f"{place} must be a list with at least one member", fix="write [a@prod, b@prod]")
    nodes = tuple(_node(member, f"{place}.{i}", depth + 1, count) for i, member in enumerate(value))
    if any(isinstance(node, Use) and node.ref == BASE for node in nodes):
        raise InputError(f"{place} must not list the base itself: it is always underneath", fix="remove it")
    return nodes


def _reference(value: Any, place: str, depth: int) -> str:
    if value == BASE and depth == 1:
        return BASE
    if not isinstance(value, str):
        raise InputError(f"{place} must be a reference, got a {type(value).__name__}", fix="write name@prod")
    if value != BASE and not is_digest(value):
        parse_reference(value)
    return value


def _number(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{place} must be a number, got {str(value)[:60]!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"{place} must be finite, got {str(value)[:60]}")
    return number


def _refuse_unknown(
    value: Mapping[Any, Any], allowed: tuple[str, ...], place: str, listed: tuple[str, ...] | None = None
) -> None:
    unknown = [key for key in value if key not in allowed]
    if unknown:
        raise InputError(
            f"{place} has the unknown key {str(unknown[0])[:60]!r}",
            fix=f"allowed: {', '.join(listed or allowed)}",
        )
