"""How well a composed model's routers choose, measured: where they send prompts of which it is known where
they belong, and what the same model scores with each suite's own expert always on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inlay.composer.ablations import AblatedModel, Ablation
from inlay.composer.model import ComposedModel
from inlay.composer.plan import Plan
from inlay.composer.slots import Slot
from inlay.errors import InputError
from inlay.evals.inference import Prompt
from inlay.evals.ledger import Results, Say, scored
from inlay.evals.routing import BASE, GENERAL, OUTSIDE, PROTECTED, TASK, Choices, Routed, RoutingReport, Task
from inlay.evals.scoring import EvalResult, evaluate_model
from inlay.evals.suites import Suite
from inlay.registry import Registry, Version

Aims = Sequence[Mapping[str, int]]
"""For each route of a plan: digest of a target suite -> number of the expert it is for. A suite that is for
none of a route's experts is not in it."""
SHOWN = 8
"""Experts that an error names."""


@dataclass(frozen=True)
class _Asked:
    """One prompt, and where it is from. `suite`: the digest of its suite, None for prompts without one."""

    group: str
    name: str
    suite: str | None
    item: str
    prompt: Prompt
    cluster: str | None = None


def aims_of(
    model: ComposedModel, suites: Sequence[Suite], said: Mapping[str, str], *, store: Registry
) -> Aims:
    """Which expert each target suite is for; nothing is asked of the model.

    `said`: name of a suite -> an expert's label, or the name or reference of an adapter in it. Else it is the
    one expert of whose adapters one declared the suite as its target before training; else the one with an
    adapter of the suite's name (`tickets` or `tickets-test` for `tickets`). Raises InputError for a plan
    without a route, a route by request, a suite that this says nothing or several things about, and names in
    `said` that are no suite's.
    """
    plan = model.plan
    if not plan.routes:
        raise InputError(
            f"routing is measured where something is routed, and {plan.ref} has no route",
            fix="measure it without routing",
        )
    for route in plan.routes:
        if route.by == "request":
            raise InputError(
                f"whoever asks chooses at {route.path or 'the root'} of {plan.ref}, which routes by request: "
                "there is no choice to evaluate",
                fix="measure it without routing",
            )
    strangers = sorted(said.keys() - {suite.name for suite in suites})
    if strangers:
        raise InputError(
            f"experts are expected for target suites, and {strangers[0]!r} is none of them",
            fix=f"target suites: {', '.join(suite.name for suite in suites) or 'none'}",
        )
    experts = [_versions(plan, number) for number in range(len(plan.routes))]
    declared = {
        version.digest: declared_targets(store, version)
        for route in experts
        for versions in route
        for version in versions
    }
    aims: list[dict[str, int]] = [{} for _ in plan.routes]
    for suite in suites:
        for number, route in enumerate(plan.routes):
            found = (
                _of_name(said[suite.name], route.experts, experts[number])
                if suite.name in said
                else expert_of(suite, experts[number], declared)
            )
            if found is not None:
                aims[number][suite.digest] = found
        if not any(suite.digest in aim for aim in aims):
            raise _unaimed(suite, said.get(suite.name), plan)
    return aims


def measure_routing(
    model: ComposedModel,
    aims: Aims,
    general: Results,
    targets: Results,
    *,
    out_of_scope: Sequence[str] = (),
    store: Registry,
    say: Say | None = None,
) -> RoutingReport:
    """Ask the routers where each prompt of the suites goes, and the model with the right experts always on.

    `general`, `targets`: the base's and the model's results, which tell the suites. Costs a pass of the bare
    base over all prompts, and one scoring of each target suite whose expert the registry has no score of.
    """
    asked = [
        _Asked(GENERAL if item.held_out else PROTECTED, s.name, s.digest, item.id, item.chat, item.cluster)
        for s in (after.suite for _, after in general)
        for item in s.items
    ]
    asked += [
        _Asked(TASK, s.name, s.digest, item.id, item.chat, item.cluster)
        for s in (after.suite for _, after in targets)
        for item in s.items
    ]
    asked += [_Asked(OUTSIDE, OUTSIDE, None, str(k), prompt) for k, prompt in enumerate(out_of_scope, 1)]
    what = f"where {model.target.ref} sends prompts"
    decided = model.decide(
        [one.prompt for one in asked],
        progress=(lambda done, total: say(what, done, total)) if say else None,
    )
    routes = []
    for number, route in enumerate(model.plan.routes):
        routed = []
        for one, decisions in zip(asked, decided, strict=True):
            expected: str | None = BASE
            if one.group == TASK:
                aim = aims[number].get(str(one.suite))
                expected = None if aim is None else route.experts[aim]
            if expected is not None:
                choice = decisions[number]
                routed.append(
                    Routed(
                        one.group, one.name, one.item, expected, choice.expert, choice.confidence, one.cluster
                    )
                )
        routes.append(Choices.of(route.path, route.by, route.experts, routed))
    return RoutingReport(model.target.ref, tuple(routes), tuple(_tasks(model, aims, targets, store, say)))


def _tasks(
    model: ComposedModel, aims: Aims, targets: Results, store: Registry, say: Say | None
) -> list[Task]:
    """What routing costs on each suite."""
    plan = model.plan
    oracles = []
    for _, after in targets:
        digest = after.suite.digest
        allowed = [
            (aim[digest],) if digest in aim else (*range(len(route.experts)), None)
            for aim, route in zip(aims, plan.routes, strict=True)
        ]
        oracles.append(Ablation.of(plan.leaves, plan.slots, allowed))
    with AblatedModel(model, oracles, {slot.digest: slot for slot in plan.slots}) as ablated:
        return [
            Task.of(
                _label(plan, aims, after.suite), before, after, _oracle(ablated, oracle, after, store, say)
            )
            for oracle, (before, after) in zip(oracles, targets, strict=True)
        ]


def _oracle(
    ablated: AblatedModel, oracle: Ablation, routed: EvalResult, store: Registry, say: Say | None
) -> EvalResult:
    """The score with the right experts on: the registry's, where they are one version as it is."""
    slot = next((slot for slot in ablated.model.plan.slots if slot.digest == oracle.only), None)
    chat, suite = ablated.chat(oracle), routed.suite
    if isinstance(slot, Slot):
        return scored(chat, suite, subject=slot.digest, label=slot.ref, store=store, say=say)
    label = f"the oracle of {routed.label}"
    progress = (lambda done, total: say(f"{label} on {suite.name}", done, total)) if say else None
    return evaluate_model(chat, suite, subject="oracle", label=label, progress=progress)


def _label(plan: Plan, aims: Aims, suite: Suite) -> str:
    """The suite's expert at the outermost route that has one."""
    return next(
        route.experts[aim[suite.digest]]
        for route, aim in zip(plan.routes, aims, strict=True)
        if suite.digest in aim
    )


def _versions(plan: Plan, number: int) -> list[list[Version]]:
    """The adapters of each expert of a route."""
    found: list[list[Version]] = [[] for _ in plan.routes[number].experts]
    for leaf in plan.leaves:
        for route, expert in leaf.conditions:
            if route == number:
                found[expert] += plan.slots[leaf.slot].versions
    return found


def declared_targets(store: Registry, version: Version) -> set[str]:
    """Digests of the suites that a training run declared as its target."""
    run = store.run_of(version) or {}
    return {
        str(suite.get("digest"))
        for suite in (run.get("declared") or {}).get("target") or ()
        if isinstance(suite, Mapping)
    }


def expert_of(
    suite: Suite, experts: Sequence[Sequence[Version]], declared: Mapping[str, set[str]]
) -> int | None:
    """The one expert whose training declared the suite, else the one with an adapter of its name."""
    names = (suite.name, suite.name.removesuffix("-test"))
    return _single(
        [any(suite.digest in declared[version.digest] for version in versions) for versions in experts],
        [any(version.name.rpartition("/")[2] in names for version in versions) for versions in experts],
    )


def _of_name(said: str, labels: Sequence[str], experts: Sequence[Sequence[Version]]) -> int | None:
    """The one expert that is called so, else the one with an adapter that is."""
    return _single(
        [label == said for label in labels],
        [any(said in (version.name, version.ref) for version in versions) for versions in experts],
    )


def _single(*rules: Sequence[bool]) -> int | None:
    """The number of the one that fits, by the first rule that only one fits; None where there is none."""
    return next((fits.index(True) for fits in rules if sum(fits) == 1), None)


def _unaimed(suite: Suite, said: str | None, plan: Plan) -> InputError:
    labels = [label for route in plan.routes for label in route.experts]
    more = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
    fault = f"nothing says which one {suite.name} is for" if said is None else f"{said!r} is no single one"
    return InputError(
        f"each target suite must be for one expert of {plan.ref}, and {fault}",
        fix=f"say --expect {suite.name}=EXPERT (in Python routing={{suite: expert}}); experts: "
        f"{', '.join(labels[:SHOWN])}{more}",
    )
