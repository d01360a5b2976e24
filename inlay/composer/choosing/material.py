"""What candidates are made of: one loaded model in which every adapter has a slot and every router a route,
and beside it what each merge and CAT make of all adapters, once, at weight 1.

Whatever cannot be made is left out, and a note says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inlay.composer.ablations import Ablation, Voice
from inlay.composer.choosing.budget import Budget
from inlay.composer.factors import Adapter, read_adapter
from inlay.composer.locking import fit_routers
from inlay.composer.merging.cat import Cat, Example, Learning, cat
from inlay.composer.merging.loading import adapter_of
from inlay.composer.model import ComposedModel, compose
from inlay.composer.plan import TreeWalk, make_plan
from inlay.errors import InputError
from inlay.evals.inference import Base, Prompt, as_messages
from inlay.evals.ledger import Say
from inlay.evals.prompts import GeneralPrompt
from inlay.registry import Lock, Merge, Recipe, Registry, Route, Stack, Use, Version
from inlay.registry.canonical import digest_of_json
from inlay.registry.recipes import FITTED_ROUTERS

MERGES = ("ties", "tsv_m", "iso_c", "knots_ties")
"""Methods that are tried. A linear merge is a stack by other weights."""
CAT_PROMPTS = 64
"""General prompts, at most, on which CAT keeps the sum near the base."""
MAKING = 0.3
"""Share of the time after which nothing more is made."""

Labelled = Mapping[str, Sequence[Example]]
"""Examples with their answers, by the name of the adapter that they are for."""


@dataclass(frozen=True)
class Learned:
    """What CAT made, and of what; `digest` of its coefficients and members."""

    digest: str
    made: Cat
    examples: Sequence[Example]
    general: Sequence[Prompt]
    learning: Learning


@dataclass(frozen=True)
class Material:
    """`model`: the one that is asked. `voices`: what its bank can say, by digest. `merges`: method -> digest;
    `routes`: router -> its number in the model's plan. `notes`: what was left out, and why."""

    versions: Sequence[Version]
    model: ComposedModel
    voices: Mapping[str, Voice]
    merges: Mapping[str, str]
    routes: Mapping[str, int]
    learned: Learned | None
    notes: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return [version.name for version in self.versions]

    def stack(self, weights: Sequence[float]) -> Ablation:
        pairs = zip(self.versions, weights, strict=True)
        return Ablation(tuple(sorted((version.digest, weight, ()) for version, weight in pairs if weight)))

    def single(self, digest: str, strength: float) -> Ablation:
        return Ablation(((digest, strength, ()),))

    def route(self, by: str) -> Ablation:
        plan, number = self.model.plan, self.routes[by]
        everyone = [(*range(len(route.experts)), None) for route in plan.routes]
        leaves = [leaf for leaf in plan.leaves if leaf.conditions[0][0] == number]
        return Ablation.of(leaves, plan.slots, everyone)


@dataclass(frozen=True)
class Given:
    """What material is made from. `base` must be bare; it carries the model afterwards."""

    store: Registry
    versions: Sequence[Version]
    base: Base
    labelled: Labelled
    general: Sequence[GeneralPrompt]
    accept_prompt_change: bool
    seed: int
    budget: Budget
    say: Say | None


def gather(given: Given) -> Material:
    """Fit, learn, merge, load."""
    several = len(given.versions) > 1
    notes: list[str] = []
    routers = _routers(given, notes) if several else {}
    learned = _cat(given, notes) if several and given.labelled else None
    merges = _merges(given, notes) if several else {}
    model = compose(
        _pinned(given.store, given.versions, routers),
        store=given.store,
        base=given.base,
        accept_prompt_change=given.accept_prompt_change,
    )
    voices: dict[str, Voice] = {slot.digest: slot for slot in model.plan.slots}
    voices |= dict(merges.values())
    if learned is not None:
        voices[learned.digest] = learned.made
    return Material(
        given.versions,
        model,
        voices,
        {method: digest for method, (digest, _) in merges.items()},
        {route.by: number for number, route in enumerate(model.plan.routes)},
        learned,
        tuple(notes),
    )


def check_members(store: Registry, versions: Sequence[Version]) -> None:
    """BaseMismatch for members of several bases, InputError for one that is not active or that no bank runs;
    nothing is loaded."""
    for version in versions:
        plan = make_plan(store, version)
        if plan.alone is not None:
            raise InputError(
                f"candidates are measured in one bank, and {version.ref} is run by PEFT: {plan.alone.alone}",
                fix="compose it by itself, and measure it with `inlay forget`",
            )
    make_plan(store, _pinned(store, versions, {}))


def uses_of(versions: Sequence[Version]) -> tuple[Use, ...]:
    return tuple(Use(version.ref) for version in versions)


def _pinned(store: Registry, versions: Sequence[Version], routers: Mapping[str, str]) -> Lock:
    """Every adapter under a route for each router, or by itself where there are none."""
    node = _routes(versions) if routers else Stack(uses_of(versions))
    return store.pin(Recipe(None, node, None), routers=routers)


def _routes(versions: Sequence[Version]) -> Stack:
    return Stack(tuple(Route(by, uses_of(versions)) for by in FITTED_ROUTERS))


def _routers(given: Given, notes: list[str]) -> dict[str, str]:
    """The router of each route, by its path; none where there are no examples for one, or where the members
    allow no route."""
    if given.say:
        given.say("fitting routers", 0, 1)
    try:
        fitted = fit_routers(
            given.store,
            Recipe(None, _routes(given.versions), None),
            base=given.base,
            general_prompts=given.general,
            examples={name: [_request(p) for p, _ in pairs] for name, pairs in given.labelled.items()},
            accept_prompt_change=given.accept_prompt_change,
            seed=given.seed,
        )
        make_plan(given.store, _pinned(given.store, given.versions, fitted))
    except InputError as error:
        notes.append(f"Routes were left out: {error.message}.")
        fitted = {}
    if given.say:
        given.say("fitting routers", 1, 1)
    return fitted


def _request(prompt: Prompt) -> str:
    """What the user says last."""
    return as_messages(prompt)[-1]["content"]


class _TooLong(Exception):
    """Learning has used up its time."""


def _cat(given: Given, notes: list[str]) -> Learned | None:
    def progress(done: int, total: int) -> None:
        if done < total and given.budget.over(MAKING):
            raise _TooLong
        if given.say:
            given.say("learning CAT's weights", done, total)

    examples = [pair for version in given.versions for pair in given.labelled[version.name]]
    prompts: list[Prompt] = [each.prompt for each in given.general]
    general = prompts[:: max(1, -(-len(prompts) // CAT_PROMPTS))]
    learning = Learning(seed=given.seed)
    adapters = [read_adapter(version, store=given.store) for version in given.versions]
    try:
        made = cat(adapters, examples, given.base, general=general, learning=learning, progress=progress)
    except _TooLong:
        notes.append(f"CAT was left out: learning it took more than {MAKING:.0%} of the time.")
        return None
    except InputError as error:
        notes.append(f"CAT was left out: {error.message}.")
        return None
    digest = digest_of_json(
        {
            "cat": [version.digest for version in given.versions],
            "coefficients": {module: list(found) for module, found in made.coefficients.items()},
        }
    )
    return Learned(digest, made, examples, general, learning)


def _merges(given: Given, notes: list[str]) -> dict[str, tuple[str, Adapter]]:
    """What each method makes of all members: method -> (digest of the slot, factors)."""
    found = {}
    for number, method in enumerate(MERGES):
        if given.say:
            given.say("merging", number, len(MERGES))
        if given.budget.over(MAKING):
            notes.append(f"Not merged for want of time: {', '.join(MERGES[number:])}.")
            break
        node = Merge(uses_of(given.versions), method=method)
        walk = TreeWalk(given.store, {})
        walk.walk(given.store.pin(Recipe(None, node, None), routers={}).tree, 1.0, (), "")
        (slot,) = walk.slots
        try:
            found[method] = slot.digest, adapter_of(given.store, slot)
        except InputError as error:
            notes.append(f"The merge {method} was left out: {error.message}.")
    if given.say:
        given.say("merging", len(MERGES), len(MERGES))
    return found
