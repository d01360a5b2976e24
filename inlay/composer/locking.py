"""From a recipe to a lock: routers are fitted, then everything is pinned and stored.

The registry pins references; what it cannot do without a model, fitting routers, happens here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.errors import Conflict, InputError, IntegrityError
from inlay.evals.prompts import GeneralPrompt, evenly, read_general
from inlay.registry import Lock, Merge, Recipe, Registry, Route, Stack, Use, Version
from inlay.registry.locking import walk_tree
from inlay.registry.recipes import FITTED_ROUTERS, Node

if TYPE_CHECKING:
    from inlay.composer.model import BaseLike

GENERAL_PROMPTS = 2048
"""How many general prompts, at most, stand for the base of a router, of every skill as many."""
EXAMPLES = 2048
"""How many examples, at most, stand for all experts of a route, each with as many and a dozen at least."""
FEWEST = 12

RecipeLike = str | Path | Mapping[str, Any] | Recipe
General = str | Path | Sequence[str | GeneralPrompt] | None
Examples = Mapping[str, Sequence[str]]
"""Prompts for adapters, by the adapter's name."""


def lock(
    store: Registry,
    name: str,
    recipe: RecipeLike,
    *,
    base: BaseLike = None,
    general_prompts: General = None,
    examples: Examples | None = None,
    examples_each: int | None = None,
    accept_prompt_change: bool = False,
    why: str = "",
    seed: int = 0,
    routers: Mapping[str, str] | None = None,
) -> Lock:
    """Resolve `recipe` afresh and keep it as the next lock of the variant `name`.

    A route's router is fitted on prompts kept with its experts' training runs, or on `examples` ({adapter's
    name: prompts}), at most `examples_each` of them, and on `general_prompts` (a JSONL file of {"prompt"}
    and, if known, "skill", a list, or those that ship) for its base class. The base is needed for that alone.
    `routers`: those that are fitted already, path -> digest as `fit_routers` gives them; then none is fitted.
    Merges are computed once: what cutting them cost in each module is kept in the lock's provenance. Raises
    InputError (recipe, a merge that its method does not allow, fewer than two experts, no examples for one,
    examples for none), BaseMismatch, Conflict (an alias moved while the router was fitted).
    """
    parsed = Recipe.of(recipe)
    _check_merges(parsed)
    if routers is None:
        routers = fit_routers(
            store,
            parsed,
            base=base,
            general_prompts=general_prompts,
            examples=examples,
            examples_each=examples_each,
            accept_prompt_change=accept_prompt_change,
            seed=seed,
        )
    provenance = _merged(store, parsed, routers)
    made = store.lock(name, parsed, routers=routers, why=why, provenance=provenance)
    if routers:
        from inlay.composer.plan import make_plan
        from inlay.composer.routing import load_routing

        try:
            load_routing(store, make_plan(store, made))
        except IntegrityError as error:
            raise Conflict(
                f"an alias moved while the router of {made.ref} was fitted", fix="lock it again"
            ) from error
    return made


def _check_merges(recipe: Recipe) -> None:
    """InputError for a merge that its method does not allow, before a router is fitted or a byte is read."""
    from inlay.composer.merging.methods import Settings

    for path, node in walk_recipe(recipe.compose):
        if isinstance(node, Merge):
            Settings.at(
                path,
                [member.weight for member in node.members],
                node.method,
                params=node.params,
                space=node.space,
                rank=node.rank,
                energy=node.energy,
                seed=node.seed,
            )


def _merged(store: Registry, recipe: Recipe, routers: Mapping[str, str]) -> dict[str, Any] | None:
    """What computing the recipe's merges shows: {"merges": {slot's digest: {"truncation", "notes"}}}.

    InputError for members that cannot be composed like this, before the lock is kept.
    """
    from inlay.composer.plan import make_plan
    from inlay.composer.slots import MergedSlot

    pinned = store.pin(recipe, routers=routers)
    plan = make_plan(store, pinned)
    if not any("merge" in node for _, node in walk_tree(pinned.tree)):
        return None
    from inlay.composer.merging.loading import adapter_of

    found = {}
    for slot in plan.slots:
        if isinstance(slot, MergedSlot):
            adapter = adapter_of(store, slot)
            found[slot.digest] = {"truncation": dict(adapter.truncation), "notes": list(adapter.notes)}
    return {"merges": found}


def fit_routers(
    store: Registry,
    recipe: Recipe,
    *,
    base: BaseLike = None,
    general_prompts: General = None,
    examples: Examples | None = None,
    examples_each: int | None = None,
    accept_prompt_change: bool = False,
    seed: int = 0,
) -> dict[str, str]:
    """Fit the router of every route that needs one: the route's path -> the digest of its weights.

    InputError as in `lock`, before the base is loaded.
    """
    routes = [(path, node) for path, node in walk_recipe(recipe.compose) if isinstance(node, Route)]
    for path, route in routes:
        if len(route.experts) < 2:
            raise InputError(
                f"a route needs at least two experts, and {path or 'the recipe'} has {len(route.experts)}",
                fix="use the adapter alone",
            )
    members = {
        path: [list(_versions(store, expert)) for expert in route.experts]
        for path, route in routes
        if route.by in FITTED_ROUTERS
    }
    known = {version.name for experts in members.values() for each in experts for version in each}
    for name in examples or {}:
        if name not in known:
            raise InputError(
                f"examples must be for an expert of a route that is fitted, and {name[:60]!r} is none",
                fix=f"its adapters: {', '.join(sorted(known)[:8]) or 'there is no such route'}",
            )
    if not members:
        return {}
    each = {path: examples_each or max(FEWEST, EXAMPLES // len(experts)) for path, experts in members.items()}
    shown = {
        path: [
            [p for version in versions for p in _examples(store, version, examples or {}, each[path])]
            for versions in experts
        ]
        for path, experts in members.items()
    }
    from inlay.composer.bases import check_base, whereabouts
    from inlay.composer.routers import ROUTERS, Fitted, Material
    from inlay.evals.inference import Base, load_base

    fittable = {router.name: router for router in ROUTERS if issubclass(router, Fitted)}
    general = read_general(general_prompts)
    chosen = evenly(general, GENERAL_PROMPTS)
    named = recipe.base if isinstance(base, Base) or base is None else base
    first = next(iter(members.values()))[0][0]
    loaded = base if isinstance(base, Base) else load_base(named or whereabouts(first.base))
    fitted = {}
    for path, route in routes:
        if path in members:
            for version in (version for versions in members[path] for version in versions):
                check_base(version.base, loaded, version.ref, accept_prompt_change=accept_prompt_change)
            digests = ["+".join(version.digest for version in versions) for versions in members[path]]
            router = fittable[route.by].fit(Material(loaded, shown[path], chosen, digests, seed))
            fitted[path] = store.put_object(router.to_bytes())
    return fitted


def _examples(store: Registry, version: Version, given: Examples, each: int) -> list[str]:
    found = given.get(version.name)
    if found is None:
        found = (store.run_of(version) or {}).get("examples") or []
    if not found:
        raise InputError(
            f"a router needs examples of what {version.ref} is for, and its record has none",
            fix=f"give some: --examples {version.name}=FILE, or register it with `inlay add --examples FILE`",
        )
    return list(found)[:each]


def walk_recipe(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """Every node with its path, as the registry names paths: "stack.0", "route.1"."""
    yield path, node
    if isinstance(node, Use):
        return
    operator = "route" if isinstance(node, Route) else "stack" if isinstance(node, Stack) else "merge"
    for i, child in enumerate(node.experts if isinstance(node, Route) else node.members):
        yield from walk_recipe(child, f"{path}.{operator}.{i}" if path else f"{operator}.{i}")


def _versions(store: Registry, node: Node) -> Iterator[Version]:
    """The adapters below a node, in the order of the plan's leaves."""
    for _, leaf in walk_recipe(node):
        if isinstance(leaf, Use):
            found = store.resolve(leaf.ref)
            if isinstance(found, Lock):
                for member in found.members:
                    version = store.resolve(member.ref)
                    assert isinstance(version, Version)
                    yield version
            else:
                yield found
