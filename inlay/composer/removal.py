"""A pinned tree of which one member speaks alone, or is taken away; no torch.

Stacks: weights of 0. Merges: the inputs merged again without it. Routes: classes that may not be chosen,
while the router stays as it was fitted. Nothing is moved, so that a route keeps its number in every tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from inlay.registry.lookup import children
from inlay.registry.recipes import BASE

Node = Mapping[str, Any]
Path = tuple[int, ...]
"""Which child to take at each node, from the root on."""

ALLOWED = "allowed"
"""The key a route has here beside its own: numbers of the experts that may be chosen, None for the base."""


def members_of(tree: Node, *, deep: bool = False) -> list[tuple[Path, str, Node]]:
    """(path, as reports write it, node) of the root's members, in the order of the recipe; the bare base is
    none. A root with a single child is passed over. `deep`: the adapters themselves, however nested."""
    if deep:
        return list(_leaves(tree, (), ""))
    path: Path = ()
    steps = ""
    node = tree
    while len(children(node)) == 1:
        step, node = children(node)[0]
        path, steps = (*path, 0), _below(steps, step)
    found = [((*path, i), _below(steps, step), child) for i, (step, child) in enumerate(children(node))]
    return [entry for entry in found if not is_base(entry[2])] if found else [(path, steps, node)]


def alone(node: Node, path: Path) -> Node:
    """Only the member at `path` speaks, with the weights that stand above it. An expert speaks to everybody,
    and an input of a merge as it is, unmerged."""
    if not path:
        return node
    inner = [alone(child, path[1:]) if i == path[0] else _silent(child) for i, child in _numbered(node)]
    if "merge" in node:
        return {"stack": [inner[path[0]]], "weight": node.get("weight", 1.0)}
    return _rebuilt(node, inner, allowed=[path[0]])


def without(node: Node, path: Path) -> Node:
    """Everything but the member at `path`."""
    if not path:
        return _silent(node)
    first, rest = path[0], path[1:]
    inner = [without(child, rest) if i == first else child for i, child in _numbered(node)]
    if "merge" in node:
        kept = [child for i, child in enumerate(inner) if i != first or (rest and not _is_silent(child))]
        # A merge of one is that one, as the recipe weighs it.
        rebuilt = {**node, "merge": kept} if len(kept) > 1 else {"stack": kept}
        return {**rebuilt, "weight": node.get("weight", 1.0)}
    if "route" in node and not rest:
        experts = [child for _, child in _numbered(node)]
        return _rebuilt(node, experts, allowed=[i for i in [*range(len(experts)), None] if i != first])
    return _rebuilt(node, inner)


def allowed_of(node: Node) -> list[tuple[int | None, ...]]:
    """For each route of a tree, in the order of a walk, the classes that may be chosen."""
    found: list[tuple[int | None, ...]] = []
    if "route" in node:
        every = (*range(len(node["route"]["experts"])), None)
        found.append(tuple(node["route"].get(ALLOWED, every)))
    for _, child in children(node):
        found += allowed_of(child)
    return found


def name_of(node: Node) -> str:
    """As reports call it: `a@v1`, `a@v1 + 0.5 b@v2`, `ties(a@v1, b@v2)`."""
    if "use" in node:
        return str(node.get("name", node["use"]))
    names = [_weighed(child) for _, child in children(node)]
    if "stack" in node:
        return " + ".join(names)
    return f"{node['method'] if 'merge' in node else 'route'}({', '.join(names)})"


def is_base(node: Node) -> bool:
    return bool(node.get("use") == BASE)


def _weighed(node: Node) -> str:
    weight = float(node.get("weight", 1.0))
    name = f"({name_of(node)})" if "stack" in node and weight != 1.0 else name_of(node)
    return name if weight == 1.0 else f"{weight:g} {name}"


def _leaves(node: Node, path: Path, steps: str) -> Iterator[tuple[Path, str, Node]]:
    if "use" in node and not is_base(node):
        yield path, steps, node
    for i, (step, child) in enumerate(children(node)):
        yield from _leaves(child, (*path, i), _below(steps, step))


def _numbered(node: Node) -> Iterator[tuple[int, Node]]:
    return enumerate(child for _, child in children(node))


def _rebuilt(node: Node, inner: list[Node], *, allowed: list[int | None] | None = None) -> Node:
    if "stack" in node:
        return {**node, "stack": inner}
    route = {**node["route"], "experts": inner}
    return {**node, "route": route if allowed is None else {**route, ALLOWED: allowed}}


def _silent(node: Node) -> Node:
    return {**node, "weight": 0.0}


def _is_silent(node: Node) -> bool:
    if float(node.get("weight", 1.0)) == 0.0:
        return True
    return not is_base(node) and "use" not in node and all(_is_silent(child) for _, child in children(node))


def _below(steps: str, step: str) -> str:
    return f"{steps}.{step}" if steps else step
