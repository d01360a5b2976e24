"""The locks of a bundle: their pinned trees against their digests, their recipes and what they contain."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from inlay.registry import locking, lookup
from inlay.registry.canonical import is_digest
from inlay.registry.guards import Guard
from inlay.registry.names import parse_reference
from inlay.registry.recipes import BASE, FITTED_ROUTERS, OPERATORS, ROUTERS, SPACES, Node, Recipe, Route, Use
from inlay.registry.rows import Place, Row, load, need

MAX_DEPTH = 64
_ANNOTATED = {"name", "lock", "weight"}
_KEYS = {
    "use": {"use", "name", "weight"},
    "stack": {"stack", *_ANNOTATED},
    "merge": {"merge", "method", "params", "rank", "energy", "space", "seed", *_ANNOTATED},
    "route": {"route", *_ANNOTATED},
}


def check_lock(row: Row, versions: Mapping[Place, Row], locks: Mapping[Place, Row]) -> None:
    """InputError unless the row of a lock is what locking its recipe could have made; its members are among
    `versions`, the variants it uses among `locks`.
    """
    tree = load(row["tree"], dict)
    _check_node(tree, row["base"][0], versions, locks, 0)
    need(locking.digest_of_lock(row["base"][0], tree) == row["digest"], "a tree that is not its digest's")
    _check_written(Recipe.of(locking.written_recipe(row["recipe"])).compose, tree)
    if row.get("guard") is not None:
        check_guard(load(row["guard"], dict))
    if row.get("provenance") is not None:
        load(row["provenance"], dict)


def check_guard(value: Any) -> None:
    """InputError unless `value` is a guard as it is kept: its suites pinned by whole digests."""
    guard = Guard.of(value)
    need(value.get("pinned", {}) == dict(guard.pinned), "pinned")
    need(all(is_digest(digest) for digest in guard.pinned.values()), "a pinned suite without digest")


def _check_node(
    node: Any, weights: str, versions: Mapping[Place, Row], locks: Mapping[Place, Row], depth: int
) -> None:
    """InputError unless `node` is a pinned node, as described in `locking`, for the base with `weights`."""
    need(isinstance(node, dict) and depth <= MAX_DEPTH, "a tree that is none")
    operators = [operator for operator in OPERATORS if operator in node]
    need(len(operators) == 1 and set(node) <= _KEYS[operators[0]], "a node with other keys")
    operator = operators[0]
    need(_is_number(node.get("weight", 1.0)), "a weight")
    if operator == "use":
        need("weight" in node, "a member without weight")
        if node["use"] == BASE:
            need("name" not in node, "a base with a name")
            return
        member = versions.get(_place(node["name"]))
        need(member is not None and member["digest"] == node["use"], "a member that is not in the bundle")
        need(member is not None and member["base"][0] == weights, "a member for another base")
        return
    if "name" in node or "lock" in node:
        _check_copy(node, locks)
    children = node[operator]
    if operator == "merge":
        need(isinstance(node["method"], str) and node["space"] in SPACES, "a method or a space")
        need(node["rank"] is None or (type(node["rank"]) is int and node["rank"] >= 1), "a rank")
        need("energy" not in node or (_is_number(node["energy"]) and 0 < node["energy"] <= 1), "an energy")
        need(type(node["seed"]) is int, "a seed")
        _check_params(node["params"])
    if operator == "route":
        need(set(children) <= {"by", "fallback", "experts", "router", "params"}, "a route with other keys")
        need(children["by"] in ROUTERS and children["fallback"] == BASE, "a route")
        need(("router" in children) == (children["by"] in FITTED_ROUTERS), "a route with half a router")
        need("router" not in children or is_digest(children["router"]), "a router")
        _check_params(children.get("params", {}))
        children = children["experts"]
    need(isinstance(children, list) and len(children) > 0, "an operator without members")
    for child in children:
        _check_node(child, weights, versions, locks, depth + 1)


def _check_params(params: Any) -> None:
    need(isinstance(params, dict), "parameters")
    need(all(isinstance(v, str | bool) or _is_number(v) for v in params.values()), "parameters")


def _check_copy(node: Mapping[str, Any], locks: Mapping[Place, Row]) -> None:
    """InputError unless a node that says it is a variant is that variant's tree."""
    used = locks.get(_place(node["name"]))
    need(used is not None and used["digest"] == node["lock"], "a variant that is not in the bundle")
    assert used is not None
    tree = json.loads(used["tree"])
    if "use" in tree:
        tree = {"stack": [tree]}
    said = {key: value for key, value in node.items() if key not in _ANNOTATED}
    need(said == {key: value for key, value in tree.items() if key not in _ANNOTATED}, "another variant")


def _check_written(written: Node, tree: Mapping[str, Any]) -> None:
    """InputError unless a recipe could have been pinned to `tree`: operator for operator."""
    if isinstance(written, Use):
        need((tree.get("use") == BASE) if written.ref == BASE else "name" in tree, "a recipe of another tree")
        return
    nodes = written.experts if isinstance(written, Route) else written.members
    need(type(written).__name__.lower() in tree and "name" not in tree, "a recipe of another tree")
    children = [child for _, child in lookup.children(tree)]
    need(len(nodes) == len(children), "a recipe of another tree")
    for node, child in zip(nodes, children, strict=True):
        _check_written(node, child)


def _place(ref: Any) -> Place:
    reference = parse_reference(ref)
    need(reference.kind == "number", "a reference that is not exact")
    return reference.name, reference.number


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
