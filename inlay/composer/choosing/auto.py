"""From adapters and suites to the composition that measured best within the bounds, and the reasons."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inlay.composer.ablation_scores import BASE
from inlay.composer.bases import check_base, whereabouts
from inlay.composer.choosing.aims import TargetsLike, aimed, check_suites, labelled_for
from inlay.composer.choosing.budget import Budget
from inlay.composer.choosing.candidates import Candidate
from inlay.composer.choosing.items import STAGES, TEST, Items
from inlay.composer.choosing.loaded import KIND, loaded, tested
from inlay.composer.choosing.material import Given, Material, check_members
from inlay.composer.choosing.policy import Bounds, Ranked, choose, explain
from inlay.composer.choosing.scan import Scanned, scan
from inlay.composer.experts import to_yaml
from inlay.composer.locking import General, lock
from inlay.composer.measure import GENERAL, SuiteLike, suite_of
from inlay.composer.merging.cat import Example
from inlay.composer.merging.learned import keep_cat
from inlay.composer.model import BaseLike
from inlay.errors import Conflict, InputError
from inlay.evals.frontier import FrontierReport, Point
from inlay.evals.inference import Base, load_base
from inlay.evals.ledger import Say
from inlay.evals.prompts import read_general
from inlay.evals.suites import Suite
from inlay.registry import Lock, Recipe, Registry, Version, check_name


@dataclass(frozen=True)
class AutoResult:
    """`choice`: what was taken on dev items, None where the policy takes nothing; `passed`: it met the bounds
    on test items as well. `recipe`: YAML, and `lock`, where it passed; a lock only where a name was given."""

    choice: Candidate | None
    passed: bool
    recipe: str | None
    lock: Lock | None
    evidence: FrontierReport

    @property
    def points(self) -> tuple[Point, ...]:
        return self.evidence.points

    @property
    def frontier(self) -> list[Point]:
        return self.evidence.frontier

    @property
    def explanation(self) -> str:
        """Two sentences."""
        return " ".join(self.evidence.explanation)

    @property
    def report(self) -> dict[str, Any]:
        """Everything that was measured, as plain JSON."""
        return self.evidence.to_dict()


def auto(
    adapters: Sequence[str],
    *,
    target: TargetsLike = (),
    general: Sequence[SuiteLike] = (GENERAL,),
    examples: Mapping[str, Sequence[Example]] | None = None,
    general_prompts: General = None,
    forget: float = 0.05,
    retention: float = 0.95,
    minutes: float = 10.0,
    name: str | None = None,
    why: str = "",
    store: Registry | None = None,
    base: BaseLike = None,
    device: str = "auto",
    accept_prompt_change: bool = False,
    seed: int = 0,
    say: Say | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> AutoResult:
    """Compose `adapters` by measured result: each alone, stacks, merges, CAT and routes in one loaded model,
    chosen on dev items of the suites and reported on their test items.

    `target`: as `choosing.aims.aimed` takes it. `examples`: {adapter's name: (prompt, answer) pairs}, from
    which CAT and the routers learn; without them routers learn from the prompts kept with the adapters'
    training, and CAT is left out. `forget`: the most that may be lost of held-out general skills, an upper
    bound; `retention`: the share of each member's own gain that is to be kept. One adapter is taken as it is;
    of several, the best static composition that is shown to meet both, else the best route that meets the
    first and is not shown to miss the second, else none. What is taken must meet the same on test items; if
    not, nothing is locked and nothing else is taken.

    `minutes`: the time there is; what there is no time for is not tried, and the report says so. With time
    enough the same seed gives the same choice. `name`: the variant to lock. What was measured stays in the
    cache, so that whoever was interrupted goes on. Where CAT wins, what it learned becomes a version of
    `<name>-cat`.

    Raises InputError for suites or examples that are for none of the adapters, an adapter without any,
    examples that stand in a suite, a graded suite, an adapter that no bank runs; BaseMismatch for one of
    another base; Conflict where an alias moved meanwhile.
    """
    budget = Budget(_checked("minutes", minutes) * 60.0, clock)
    bounds = Bounds(_checked("forget", forget, most=1.0), _checked("retention", retention, most=1.0))
    store = store or Registry.open()
    if name is not None:
        _check_variant(store, name)
    versions = _members(store, adapters)
    aims = aimed(store, versions, target)
    generals, targets = [suite_of(suite, store) for suite in general], [suite for suite, _ in aims]
    check_suites(generals, targets)
    labelled = labelled_for(versions, examples or {}, (*generals, *targets))
    prompts = read_general(general_prompts)
    check_members(store, versions)
    bare = base if isinstance(base, Base) else load_base(base or whereabouts(versions[0].base), device=device)
    for version in versions:
        check_base(version.base, bare, version.ref, accept_prompt_change=accept_prompt_change)
    given = Given(store, versions, bare, labelled, prompts, accept_prompt_change, seed, budget, say)
    found = _measured(given, generals, aims, bounds)
    recipe = made = None
    if found.passed:
        learned = _registered_cat(given, found, name)
        assert found.choice is not None
        _refuse_moved(store, adapters, versions)
        recipe = Recipe.of(to_yaml(Recipe(None, found.choice.candidate.node(adapters, learned), None)))
        if name is not None:
            made = lock(
                store,
                name,
                recipe,
                routers=found.router,
                why=why or found.explanation[0],
                accept_prompt_change=accept_prompt_change,
            )
    evidence = FrontierReport(
        subject=made.ref if made is not None else ", ".join(version.ref for version in versions),
        base_weights=bare.fingerprint.weights,
        adapters={version.ref: version.digest for version in versions},
        general=tuple(suite.name for suite in generals),
        targets={suite.name: versions[owner].name for suite, owner in aims},
        items=found.counts,
        forget=bounds.forget,
        retention=bounds.retention,
        seed=seed,
        points=found.points,
        choice=None if found.choice is None else found.choice.candidate.name,
        passed=found.passed,
        tested=found.tested,
        explanation=found.explanation,
        notes=found.notes,
        recipe=None if recipe is None else recipe.text,
        passes=found.passes,
        remembered=found.remembered,
        seconds=budget.elapsed,
    )
    if made is not None:
        store.put_report(made.digest, KIND, evidence.to_dict())
    candidate = None if found.choice is None else found.choice.candidate
    return AutoResult(candidate, found.passed, evidence.recipe, made, evidence)


@dataclass(frozen=True)
class _Found:
    """What came of measuring."""

    material: Material
    bounds: Bounds
    items: Items
    scanned: Scanned
    bare: Point | None
    choice: Ranked | None
    tested: Point | None
    passes: int
    remembered: int

    @property
    def passed(self) -> bool:
        """Does what was taken meet the bounds on test items?"""
        if self.choice is None or self.tested is None:
            return False
        static = self.choice.static and self._several
        return not self.bounds.faults(self.tested, static=static, tested=True)

    @property
    def _several(self) -> bool:
        return len(self.material.versions) > 1

    @property
    def explanation(self) -> tuple[str, str]:
        return explain(self.choice, self.tested, self.scanned.pool, self.bounds, self.material.names)

    @property
    def points(self) -> tuple[Point, ...]:
        """The base's, then what was measured to the end, then what was given up."""
        found = [each.point for each in (*self.scanned.pool, *self.scanned.dropped)]
        return (*(() if self.bare is None else (self.bare,)), *found)

    @property
    def notes(self) -> tuple[str, ...]:
        notes = list(self.material.notes)
        if self.scanned.stages < STAGES:
            asked = sum(len(part.rows) for part in self.items.of(range(self.scanned.stages)))
            there = sum(len(part.rows) for part in self.items.of(range(STAGES)))
            notes.append(f"Time ended: {asked} of {there} dev items were asked.")
        if self.scanned.untried:
            untried = ", ".join(each.name for each in self.scanned.untried)
            notes.append(f"Not tried for want of time: {untried}.")
        return tuple(notes)

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """{suite: (dev items asked, test items)}."""
        found: dict[str, tuple[int, int]] = {}
        for part in self.items.parts:
            dev, test = found.get(part.suite.name, (0, 0))
            asked = len(part.rows) if part.stage < self.scanned.stages else 0
            found[part.suite.name] = (dev + asked, test + len(part.rows) * (part.stage == TEST))
        return found

    @property
    def router(self) -> dict[str, str]:
        """The router of the route that was taken, by its path in the recipe."""
        if self.choice is None or self.choice.static:
            return {}
        route = self.material.model.plan.routes[self.material.routes[self.choice.candidate.method]]
        assert route.router is not None
        return {"": route.router}


def _measured(
    given: Given, general: Sequence[Suite], aims: Sequence[tuple[Suite, int]], bounds: Bounds
) -> _Found:
    """Everything for which a model is asked. The base is bare again afterwards."""
    with loaded(given, general, aims, bounds.retention) as (material, board):
        scanned = scan(material, board, bounds, say=given.say)
        choice = choose(scanned.pool, bounds, members=len(given.versions))
        found = None if choice is None else tested(board, choice.candidate, given.say)
        stages = range(scanned.stages)
        base = board.point("base", "base", BASE, stages) if scanned.stages else None
    scores = board.scores
    return _Found(
        material, bounds, board.items, scanned, base, choice, found, scores.passes, scores.remembered
    )


def _members(store: Registry, adapters: Sequence[str]) -> list[Version]:
    """InputError for none, a lock, one that was named twice."""
    found: list[Version] = []
    for ref in adapters:
        version = store.resolve(ref)
        if not isinstance(version, Version):
            raise InputError(f"adapters are composed, and {version.ref} is a lock", fix="name its members")
        if version.name in {each.name for each in found}:
            raise InputError(
                f"each adapter must be named once, and {version.name} is named twice", fix="leave one out"
            )
        found.append(version)
    if not found:
        raise InputError("at least one adapter must be named, and none is", fix="name some: a@prod b@prod")
    return found


def _check_variant(store: Registry, name: str) -> None:
    """InputError, before anything is measured, for a name that no variant can have."""
    check_name(name)
    if name in {row.name for row in store.names("adapter")}:
        raise InputError(f"{name} is an adapter's name, a variant needs its own", fix="choose another name")


def _refuse_moved(store: Registry, adapters: Sequence[str], versions: Sequence[Version]) -> None:
    for ref, version in zip(adapters, versions, strict=True):
        if store.resolve(ref).digest != version.digest:
            raise Conflict(
                f"{ref} was {version.ref} when it was measured, and has moved since", fix="choose again"
            )


def _registered_cat(given: Given, found: _Found, name: str | None) -> str | None:
    """Where CAT was taken, the reference of the version that it becomes, so that a recipe can name it."""
    learned = found.material.learned
    if learned is None or found.choice is None or found.choice.candidate.kind != "cat":
        return None
    made = keep_cat(
        given.store,
        f"{name or 'auto'}-cat",
        learned.made,
        given.versions,
        learned.examples,
        given.base,
        general=learned.general,
        learning=learned.learning,
        accept_prompt_change=given.accept_prompt_change,
        why=found.explanation[0],
    )
    return made.ref


def _checked(what: str, value: float, *, most: float = float("inf")) -> float:
    """InputError for anything but a number above 0, and up to `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value <= most:
        said = "a number above 0" if most == float("inf") else f"a number above 0 and up to {most:g}"
        raise InputError(f"{what} must be {said}, got {str(value)[:40]!r}")
    return float(value)
