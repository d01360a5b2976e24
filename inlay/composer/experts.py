"""A recipe with experts added to its route or taken from it: what changes when a team has one adapter more,
or had to yank one. The router is fitted anew when it is locked; nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import yaml

from inlay.composer.locking import walk_recipe
from inlay.errors import InputError
from inlay.registry import Merge, Recipe, Registry, Route, Stack, Use
from inlay.registry.locking import written_recipe
from inlay.registry.recipes import BASE, Node


def written(store: Registry, name: str) -> Recipe:
    """What the newest lock of a variant was made from. InputError where it has none."""
    newest = max(store.locks(name), key=lambda each: each.number, default=None)
    if newest is None:
        raise InputError(f"{name} has no lock whose recipe could be taken", fix="name a recipe's file")
    return Recipe.of(written_recipe(newest.recipe))


def with_experts(recipe: Recipe, *, add: Sequence[str] = (), drop: Sequence[str] = ()) -> Recipe:
    """The recipe with references `add` as further experts of its route, and without those `drop` names: a
    reference as the recipe has it, or an adapter's name.

    InputError for a recipe without a route or with several, an expert that is there already or is not there.
    """
    routes = [(path, node) for path, node in walk_recipe(recipe.compose) if isinstance(node, Route)]
    if len(routes) != 1:
        raise InputError(
            f"experts are added to the one route of a recipe, and this one has {len(routes)}",
            fix="change the recipe's file and lock that",
        )
    path, route = routes[0]
    experts = list(route.experts)
    for name in drop:
        kept = [expert for expert in experts if not _is(expert, name)]
        if len(kept) == len(experts):
            raise InputError(
                f"what is dropped must be an expert of the route, and {name[:60]!r} is none",
                fix=f"its experts: {', '.join(_label(expert) for expert in experts)}",
            )
        experts = kept
    for ref in add:
        if any(_is(expert, ref) or _is(expert, ref.partition("@")[0]) for expert in experts):
            raise InputError(
                f"{ref} is an expert of the route already", fix="drop the one that is there as well"
            )
        experts.append(Use(ref))
    changed = _replaced(recipe.compose, path, replace(route, experts=tuple(experts)))
    return Recipe.of(to_yaml(replace(recipe, compose=changed)))


def to_yaml(recipe: Recipe) -> str:
    """The recipe as a YAML file says it; `Recipe.of` reads the same back."""
    body: dict[str, Any] = {} if recipe.base is None else {"base": recipe.base}
    body["compose"] = _plain(recipe.compose)
    if recipe.guard is not None:
        body["guard"] = recipe.guard.to_dict()
    return yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=110)


def _is(expert: Node, name: str) -> bool:
    return isinstance(expert, Use) and name in (expert.ref, expert.ref.partition("@")[0])


def _label(expert: Node) -> str:
    return expert.ref if isinstance(expert, Use) else type(expert).__name__.lower()


def _replaced(node: Node, path: str, new: Node) -> Node:
    if not path:
        return new
    _, number, *rest = path.split(".")
    inner = list(node.experts if isinstance(node, Route) else node.members)  # type: ignore[union-attr]
    inner[int(number)] = _replaced(inner[int(number)], ".".join(rest), new)
    if isinstance(node, Route):
        return replace(node, experts=tuple(inner))
    assert isinstance(node, Stack | Merge)
    return replace(node, members=tuple(inner))


def _plain(node: Node) -> Any:
    weight = {} if node.weight == 1.0 else {"weight": node.weight}
    match node:
        case Use():
            return {"use": node.ref, **weight} if weight or node.ref == BASE else node.ref
        case Stack():
            return {"stack": [_plain(each) for each in node.members], **weight}
        case Merge():
            said = {
                "merge": [_plain(each) for each in node.members],
                "method": node.method,
                "params": dict(node.params),
                "rank": node.rank,
                "energy": node.energy,
                "space": node.space,
                "seed": node.seed,
            }
            plain: dict[str, Any] = {"params": {}, "rank": None, "energy": None, "space": "core", "seed": 0}
            return {**{k: v for k, v in said.items() if k not in plain or v != plain[k]}, **weight}
        case _:
            route = {
                "by": node.by,
                "experts": [_plain(each) for each in node.experts],
                "fallback": node.fallback,
            }
            return {"route": {**route, **({"params": dict(node.params)} if node.params else {})}, **weight}
