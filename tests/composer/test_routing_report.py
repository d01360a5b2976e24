"""Routing measured on the built-in base: choices, oracles and their cost against doing each by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from composer_fakes import write_lora

from inlay.builtin.skills import split_skills
from inlay.composer import compose, forgetting, lock, make_plan
from inlay.composer.model import ComposedModel
from inlay.composer.routing_report import aims_of
from inlay.errors import InputError
from inlay.evals import Suite
from inlay.evals.inference import Base
from inlay.evals.routing import RoutingReport
from inlay.evals.statistics import Paired
from inlay.registry import Recipe, Registry

THINGS = ("parcel", "order", "card", "chair", "lamp", "letter")
QUEUES = [f"Which queue handles this message?\nMy {thing} is late." for thing in THINGS]
SLIPS = [
    f"Write the order slip.\n{n} blue chairs for {name}" for n, name in enumerate(("Anna", "Tom", "Mia"), 2)
]
OUTSIDE = ["Qwerty uiop?", "Sing me a song."]


def suite_of(name: str, prompts: list[str]) -> Suite:
    return Suite.of_rows(name, [{"id": f"{k}", "prompt": p, "answer": "blue"} for k, p in enumerate(prompts)])


@pytest.fixture(scope="module")
def general() -> Suite:
    """Three items of each held-out skill that the base was taught, and one of each other."""
    counts: Counter[str] = Counter()
    taught, kept = set(split_skills()[1]), []
    for item in Suite.load("general-v1").items:
        counts[item.skill] += 1
        if counts[item.skill] <= (3 if item.skill in taught else 1):
            kept.append(item)
    return Suite("sampled", tuple(kept))


@pytest.fixture
def slips() -> Suite:
    """The suite that the training of `slip` declared."""
    return suite_of("acme-orders", SLIPS)


@pytest.fixture
def filled(store: Registry, base: Base, tmp_path: Path, slips: Suite) -> Registry:
    for seed, (name, examples) in enumerate((("queue", QUEUES), ("slip", SLIPS), ("style", OUTSIDE)), 1):
        run: dict[str, Any] = {"examples": examples}
        if name == "slip":
            run["declared"] = {"target": [{"name": slips.name, "digest": slips.digest}]}
        folder = write_lora(tmp_path / name, base, seed=seed, strength=0.04 * seed)
        store.add(name, folder, base=base.fingerprint, run=run)
    return store


def by_itself(recipe: Any, store: Registry, base: Base, suite: Suite) -> list[bool]:
    """Outcomes of a recipe composed and asked alone."""
    model = compose(recipe, store=store, base=base)
    try:
        return model.chat.matches(suite.prompts(), suite.answers())
    finally:
        model.detach()


def chosen(model: ComposedModel, prompts: list[Any]) -> list[str]:
    """What the only route chooses, one prompt at a time."""
    return [model.decide([prompt])[0][0].expert for prompt in prompts]


def answerable(suite: Suite, store: Registry, base: Base, ref: str) -> Suite:
    """The suite with what `ref` really says as the answers to every other item."""
    model = compose(ref, store=store, base=base)
    try:
        said = model.generate(suite.prompts(), max_new_tokens=6)
    finally:
        model.detach()
    rows = [
        {"id": item.id, "prompt": item.text, "answer": (said[k].strip() if k % 2 == 0 else "") or "blue"}
        for k, item in enumerate(suite.items)
    ]
    return Suite.of_rows(suite.name, rows)


def test_choices_and_oracles_are_those_of_asking_by_hand(
    filled: Registry, base: Base, general: Suite, slips: Suite
) -> None:
    queues = answerable(suite_of("queue-test", QUEUES), filled, base, "queue@v1")
    members = [
        {"use": "style@v1", "weight": 0.2},
        {"route": {"by": "probe", "experts": ["queue@v1", "slip@v1"]}},
    ]
    lock(filled, "acme", {"stack": members}, base=base)
    model = compose("acme@v1", store=filled, base=base)
    try:
        report = forgetting(
            model, general=[general], target=[queues, slips], routing=True, out_of_scope=OUTSIDE
        )
        prompts = {s.name: chosen(model, s.prompts()) for s in (general, queues, slips)}
        outside = chosen(model, list(OUTSIDE))
        routed = model.chat.matches(queues.prompts(), queues.answers())
    finally:
        model.detach()
    assert report.routing is not None and "routing" in report.levels["registration"]
    found = RoutingReport.from_dict(report.routing)
    (route,) = found.routes
    assert (found.subject, route.path, route.by) == ("acme@v1", "stack.1", "probe")
    assert route.experts == ("queue@v1", "slip@v1")
    for name, held_out in (("general", True), ("protected", False)):
        went = [
            c for c, item in zip(prompts["sampled"], general.items, strict=True) if item.held_out is held_out
        ]
        group = route.group(name)
        assert group is not None and (group.share.right, group.share.n) == (went.count("base"), len(went))
    for expert, suite in zip(route.by_expert, (queues, slips), strict=True):
        assert expert.share.right == prompts[suite.name].count(expert.name) and expert.share.n == len(suite)
    assert any(expert.share.right for expert in route.by_expert)
    away = route.group("out-of-scope")
    assert away is not None and (away.share.right, away.share.n) == (outside.count("base"), 2)
    assert sum(count for _, _, count in route.confusions) == len(general) + len(queues) + len(slips) + 2
    first, second = found.tasks
    assert (first.suite, first.expert, second.suite, second.expert) == (
        *("queue-test", "queue@v1"),
        *("acme-orders", "slip@v1"),
    )
    oracle = by_itself({"stack": [members[0], "queue@v1"]}, filled, base, queues)
    assert any(oracle) and first.oracle == sum(oracle) / len(oracle)
    assert first.counts == Paired.of(oracle, routed) and first.routed == sum(routed) / len(routed)
    assert filled.reports("acme@v1", "forgetting")[0]["routing"]["verdict"] == found.verdict


def test_an_expert_by_itself_is_scored_once(filled: Registry, base: Base, general: Suite) -> None:
    queues = suite_of("queue", QUEUES)
    lock(filled, "acme", {"route": {"by": "probe", "experts": ["queue@v1", "slip@v1"]}}, base=base)
    model = compose("acme@v1", store=filled, base=base)
    told: list[str] = []
    asked = {"general": [general], "target": [queues], "routing": {"queue": "queue@v1"}}
    try:
        first = forgetting(model, **asked, say=lambda what, *_: told.append(what))  # type: ignore[arg-type]
        assert "queue@v1 on queue" in told
        told.clear()
        again = forgetting(model, **asked, say=lambda what, *_: told.append(what))  # type: ignore[arg-type]
    finally:
        model.detach()
    assert set(told) <= {"where acme@v1 sends prompts"} and again.routing == first.routing
    (record,) = filled.evals(subject=filled.resolve("queue@v1").digest, suite=queues.digest)
    assert list(record.outcomes) == by_itself("queue@v1", filled, base, queues)


def test_a_route_of_tokens_is_reported_by_shares(filled: Registry, base: Base, general: Suite) -> None:
    queues = suite_of("queue", QUEUES)
    route = {"route": {"by": "arrow", "experts": ["queue@v1", "slip@v1"]}}
    model = compose(route, store=filled, base=base)
    try:
        report = forgetting(model, general=[general], target=[queues], routing=True)
        decided = [decisions[0] for decisions in model.decide(queues.prompts())]
    finally:
        model.detach()
    assert report.routing is not None
    found = RoutingReport.from_dict(report.routing)
    (task,), (choices,) = found.tasks, found.routes
    assert any("weighs the experts token by token" in sentence for sentence in found.sentences())
    assert choices.by_expert[0].share.right == sum(d.expert == "queue@v1" for d in decided)
    assert choices.by_expert[0].confidence == pytest.approx(
        sum(d.confidence or 0.0 for d in decided) / len(decided)
    )
    assert task.oracle == sum(by_itself("queue@v1", filled, base, queues)) / len(queues)


def test_a_suite_is_for_one_expert_of_each_route_around_it(filled: Registry, slips: Suite) -> None:
    inner = {"route": {"by": "probe", "experts": ["queue@v1", "slip@v1"]}}
    model = planned(filled, {"route": {"by": "probe", "experts": ["style@v1", inner]}})
    queues, style = suite_of("queue-test", QUEUES), suite_of("anything", OUTSIDE)
    aims = aims_of(model, [queues, slips, style], {"anything": "style"}, store=filled)
    assert aims == [{queues.digest: 1, slips.digest: 1, style.digest: 0}, {queues.digest: 0, slips.digest: 1}]


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ({}, "nothing says which one anything is for; say --expect anything=EXPERT"),
        ({"anything": "nobody"}, "'nobody' is no single one"),
        ({"other": "queue"}, "'other' is none of them; target suites: anything"),
    ],
)
def test_a_suite_for_nobody_in_particular_is_refused(
    filled: Registry, said: dict[str, str], fault: str
) -> None:
    model = planned(filled, {"route": {"by": "probe", "experts": ["queue@v1", "slip@v1"]}})
    with pytest.raises(InputError, match=fault):
        aims_of(model, [suite_of("anything", OUTSIDE)], said, store=filled)


def test_two_experts_that_declared_it_are_not_one(filled: Registry, slips: Suite) -> None:
    both = {"stack": ["slip@v1", "style@v1"]}
    model = planned(filled, {"route": {"by": "probe", "experts": ["slip@v1", both, "queue@v1"]}})
    with pytest.raises(InputError, match="nothing says which"):
        aims_of(model, [slips], {}, store=filled)
    assert aims_of(model, [slips], {slips.name: "slip@v1"}, store=filled) == [{slips.digest: 0}]
    assert aims_of(model, [slips], {slips.name: "slip@v1+style@v1"}, store=filled) == [{slips.digest: 1}]


def test_what_does_not_choose_is_not_evaluated(filled: Registry, base: Base, general: Suite) -> None:
    with pytest.raises(InputError, match="has no route"):
        aims_of(planned(filled, "queue@v1"), [], {}, store=filled)
    asked = {"route": {"by": "request", "experts": ["queue@v1", "slip@v1"]}}
    with pytest.raises(InputError, match="routes by request: there is no choice"):
        aims_of(planned(filled, asked), [], {}, store=filled)
    model = compose("queue@v1", store=filled, base=base)
    try:
        with pytest.raises(InputError, match="routing is not measured"):
            forgetting(model, general=[general], out_of_scope=OUTSIDE)
        with pytest.raises(InputError, match="no targets, rigidity, overhead or routing"):
            forgetting(model, general=[general], level="load", routing=True)
        with pytest.raises(InputError, match="has no route"):
            forgetting(model, general=[general], routing=True)
    finally:
        model.detach()


def planned(store: Registry, recipe: Any) -> Any:
    """A model of which only the plan is there."""
    what = recipe if isinstance(recipe, dict) else {"use": recipe}
    routers = {path: store.put_object(b"x") for path in paths_of(what)}
    return SimpleNamespace(plan=make_plan(store, store.pin(Recipe.of(what), routers=routers)))


def paths_of(node: Any, path: str = "") -> list[str]:
    """The paths of the fitted routers in a recipe, as the registry names them."""
    if isinstance(node, str) or "use" in node:
        return []
    key = "route" if "route" in node else "stack"
    inner = node["route"]["experts"] if key == "route" else node["stack"]
    found = [path] if key == "route" and node["route"]["by"] == "probe" else []
    for k, child in enumerate(inner):
        found += paths_of(child, f"{path}.{key}.{k}" if path else f"{key}.{k}")
    return found
