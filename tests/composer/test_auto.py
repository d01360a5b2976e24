"""Composing by measured result on the built-in base: what is measured, what is taken, what is refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from choosing_fakes import World, requests, sampled, trained
from composer_fakes import write_lora

from inlay.composer import auto, compose
from inlay.composer.ablations import AblatedModel, Ablation
from inlay.composer.bank import Bank
from inlay.composer.choosing.auto import AutoResult
from inlay.composer.choosing.board import Board
from inlay.composer.choosing.items import STAGES, TEST, deal
from inlay.composer.choosing.policy import Bounds, Fault, Ranked
from inlay.composer.merging.cat import Learning
from inlay.errors import BaseMismatch, Conflict, InputError
from inlay.evals import Suite
from inlay.evals.forgetting import reached_part
from inlay.evals.frontier import Point
from inlay.evals.inference import Base, Chat
from inlay.evals.prompts import read_general
from inlay.evals.scoring import evaluate_model
from inlay.evals.statistics import Paired
from inlay.registry import Recipe, Registry

FORGET = 0.1
"""What may be lost here: 72 dev items could not show less, however few were lost."""


@pytest.fixture(scope="module")
def unlike(shared_base: Base, tmp_path_factory: pytest.TempPathFactory) -> World:
    answers = {"late": "shipping desk", "buy": "house slip"}
    return trained(shared_base, tmp_path_factory.mktemp("unlike"), answers, kl=0.0, steps=40)


@pytest.fixture(scope="module")
def alike(shared_base: Base, tmp_path_factory: pytest.TempPathFactory) -> World:
    answers = {"late": "shipping desk", "buy": "shipping desk"}
    return trained(shared_base, tmp_path_factory.mktemp("alike"), answers, kl=1.0, steps=40)


@pytest.fixture
def filled(store: Registry, base: Base, unlike: World) -> Registry:
    unlike.register(store, base)
    return store


def chosen(world: World, store: Registry, base: Base, **changes: Any) -> AutoResult:
    how: dict[str, Any] = {
        "target": world.suites,
        "general": [world.general],
        "general_prompts": read_general(None)[::8],
        "forget": FORGET,
        "store": store,
        "base": base,
    }
    return auto(world.refs, **{**how, **changes})


@pytest.fixture(scope="module")
def acme(
    shared_base: Base, unlike: World, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Registry, AutoResult]]:
    """A store in which acme was composed of two adapters that no static composition keeps both."""
    with Registry.open(tmp_path_factory.mktemp("acme") / "store", create=True) as store:
        unlike.register(store, shared_base)
        yield store, chosen(unlike, store, shared_base, name="acme", why="both")


@pytest.fixture
def lean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer static candidates, and less learning, where it is not about them."""
    monkeypatch.setattr("inlay.composer.choosing.material.Learning", partial(Learning, steps=15))
    monkeypatch.setattr("inlay.composer.choosing.material.MERGES", ("ties",))
    monkeypatch.setattr("inlay.composer.choosing.candidates.STACKS", (1.0,))
    monkeypatch.setattr("inlay.composer.choosing.candidates.STRENGTHS", (1.0,))
    monkeypatch.setattr("inlay.composer.choosing.scan.CLIMBS", (1, 0))


def halves(world: World, base: Base) -> tuple[list[Suite], list[Suite]]:
    """(dev, test) of the general suite and of the targets in their order."""
    bare = evaluate_model(Chat(base), world.general)
    (able,) = reached_part([bare])
    rows = [i for i, item in enumerate(world.general.items) if item in able.suite.items]
    items = deal([(world.general, rows)], list(world.suites.values()), seed=0)
    dev, test = (
        [*items.suites(stages, "general"), *items.suites(stages, "target")]
        for stages in (range(STAGES), [TEST])
    )
    return dev, test


def separately(recipe: Any, store: Registry, base: Base, suites: Sequence[Suite]) -> list[list[bool]]:
    """Outcomes of a recipe composed and asked by itself."""
    model = compose(recipe, store=store, base=base)
    try:
        return [[bool(x) for x in evaluate_model(model.chat, suite).outcomes] for suite in suites]
    finally:
        model.detach()


def check(point: Point | None, recipe: Any, store: Registry, base: Base, suites: Sequence[Suite]) -> None:
    """A point's counts against those of its recipe by itself, the general suite first."""
    assert point is not None
    bare = [[bool(x) for x in evaluate_model(Chat(base), suite).outcomes] for suite in suites]
    counts = [Paired.of(*each) for each in zip(bare, separately(recipe, store, base, suites), strict=True)]
    assert [point.general, *(each.counts for each in point.targets)] == counts, point.name


def named(found: AutoResult, name: str) -> Point:
    return next(point for point in found.points if point.name == name)


def test_a_route_is_taken_where_no_static_composition_keeps_both(
    acme: tuple[Registry, AutoResult], base: Base, unlike: World
) -> None:
    store, found = acme
    assert found.choice is not None and found.choice.kind == "route" and found.passed
    assert found.lock is not None and found.lock.ref == "acme@v1" and found.lock.why == "both"
    assert found.recipe is not None
    assert Recipe.of(found.recipe).compose == found.choice.node(unlike.refs)
    first, second = found.evidence.explanation
    assert first.startswith(f"A route by {found.choice.method} over late, buy keeps ")
    assert second.startswith("The best static composition, ") and second.endswith("on dev items.")
    assert store.reports(found.lock.digest, "auto") == [
        {**json.loads(json.dumps(found.report)), "seconds": found.evidence.seconds}
    ]
    dev, test = halves(unlike, base)
    check(found.evidence.tested, "acme@v1", store, base, test)
    check(named(found, found.choice.name), "acme@v1", store, base, dev)


def test_static_candidates_are_measured_as_if_composed_by_themselves(
    acme: tuple[Registry, AutoResult], base: Base, unlike: World
) -> None:
    store, found = acme
    dev, _ = halves(unlike, base)
    kinds = {point.kind: point for point in found.points if point.whole}
    assert {"stack", "merge"} & kinds.keys()
    for kind in {"alone", "stack", "merge"} & kinds.keys():
        what, _, strength = kinds[kind].name.partition(" at ")
        if kind == "alone":
            recipe: Any = f"{what.removesuffix(' alone')}@v1"
        elif kind == "stack":
            weights = [float(x) for x in strength.split("/")] * (1 if "/" in strength else 2)
            uses = [{"use": u, "weight": w} for u, w in zip(unlike.refs, weights, strict=True)]
            recipe = {"stack": uses}
        else:
            recipe = {"merge": unlike.refs, "method": what, "weight": float(strength)}
        check(kinds[kind], recipe, store, base, dev)


def test_a_static_composition_is_taken_where_it_is_shown_to_keep_both(
    store: Registry, base: Base, alike: World
) -> None:
    alike.register(store, base)
    found = chosen(alike, store, base, name="acme")
    assert found.choice is not None and found.choice.kind in ("stack", "merge") and found.passed
    assert found.evidence.explanation[1].startswith("The best route, by ")
    point = named(found, found.choice.name)
    assert len(point.kept) == 2 and all(kept.shown for kept in point.kept)
    assert point.general.loss_upper <= FORGET
    assert found.lock is not None and found.lock.recipe == found.recipe
    assert [member.ref for member in found.lock.members] == alike.refs


@pytest.mark.slow
def test_nothing_is_taken_where_nothing_meets_the_guard(filled: Registry, base: Base, unlike: World) -> None:
    found = chosen(unlike, filled, base, forget=0.001, name="acme")
    assert found.choice is None and not found.passed and found.lock is None and found.recipe is None
    first, second = found.evidence.explanation
    assert first.startswith("No candidate meets the guard on dev items: the best route, by ")
    assert "0.1 allowed" in first and second.startswith("The best static composition, ")
    assert filled.names("variant") == []


def test_a_choice_that_fails_on_test_items_is_refused_and_no_other_is_made(
    filled: Registry, base: Base, unlike: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Bounds.faults

    def faults(self: Bounds, point: Point, *, static: bool, tested: bool = False) -> list[Fault]:
        """As if the guard were far stricter once it comes to test items."""
        return real(replace(self, forget=0.0001) if tested else self, point, static=static, tested=tested)

    asked = spied(monkeypatch)
    monkeypatch.setattr(Bounds, "faults", faults)
    found = chosen(unlike, filled, base, name="acme")
    assert found.choice is not None and not found.passed and found.lock is None and found.recipe is None
    first, second = found.evidence.explanation
    assert "chosen on dev items" in first and first.endswith("on test items, so nothing is locked.")
    assert second.startswith("Another choice would be made on items that were seen")
    tested = {ablation for ablation, stage in asked if stage == TEST}
    assert found.choice.ablation in tested and len(tested) <= 3, "the choice, and members by themselves"


def spied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Ablation, int]]:
    """(ablation, stage) of all that is asked from now on."""
    asked: list[tuple[Ablation, int]] = []
    ask = Board._ask

    def spy(self: Board, group: Any, part: Any, anyway: bool) -> None:
        asked.extend((ablation, part.stage) for ablation in group)
        ask(self, group, part, anyway)

    monkeypatch.setattr(Board, "_ask", spy)
    return asked


def test_no_test_item_is_asked_before_the_choice(
    filled: Registry, base: Base, unlike: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = spied(monkeypatch)
    chosen(unlike, filled, base)
    stages = [stage for _, stage in asked]
    assert TEST not in stages[: stages.index(TEST)] and set(stages[stages.index(TEST) :]) == {TEST}
    assert {0, 1, 2, TEST} == set(stages)


def test_the_base_is_loaded_once_and_left_as_it_was(
    filled: Registry, base: Base, unlike: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[int] = []
    load_all = Bank.load_all
    monkeypatch.setattr(
        Bank, "load_all", lambda self, adapters: (loads.append(len(adapters)), load_all(self, adapters))[1]
    )
    monkeypatch.setattr(
        type(base.model), "from_pretrained", lambda *_, **__: pytest.fail("the base is loaded already")
    )
    modules = {name: id(module) for name, module in base.model.named_modules()}
    chosen(unlike, filled, base)
    assert loads == [2, 4], "both adapters, then four merges; no scan loads anything"
    assert {name: id(module) for name, module in base.model.named_modules()} == modules


@pytest.mark.usefixtures("lean")
@pytest.mark.slow
def test_whoever_was_interrupted_goes_on_and_chooses_the_same(
    store: Registry, base: Base, unlike: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unlike.register(store, base)
    monkeypatch.setenv("INLAY_CACHE", str(tmp_path / "cache"))
    ask, passes = AblatedModel._ask, itertools.count(1)

    def stopped(self: AblatedModel, *given: Any) -> Any:
        if next(passes) == 8:
            raise KeyboardInterrupt
        return ask(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(AblatedModel, "_ask", stopped)
        with pytest.raises(KeyboardInterrupt):
            chosen(unlike, store, base, name="acme")
    assert store.names("variant") == []
    again = chosen(unlike, store, base, name="acme")
    assert again.evidence.remembered > 10, "seven batches of up to five were kept"
    third = chosen(unlike, store, base, name="acme")
    assert third.evidence.passes == 0 and third.lock == again.lock
    assert third.evidence.points == again.evidence.points
    assert third.evidence.explanation == again.evidence.explanation


@pytest.mark.slow
def test_time_that_ends_is_said_and_what_is_known_decides(
    filled: Registry, base: Base, unlike: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def after(rows: int, cache: str) -> AutoResult:
        """As if every row took a second, and there was time for so many."""
        monkeypatch.setenv("INLAY_CACHE", str(tmp_path / cache))
        ask, seconds = AblatedModel._ask, [0.0]

        def slow(self: AblatedModel, group: Any, what: str, prompts: Any, *given: Any) -> Any:
            seconds[0] += len(group) * len(prompts)
            return ask(self, group, what, prompts, *given)

        with monkeypatch.context() as patch:
            patch.setattr(AblatedModel, "_ask", slow)
            found = chosen(unlike, filled, base, minutes=rows / 60, clock=lambda: seconds[0], forget=0.2)
        assert seconds[0] <= rows, "time for the test was kept"
        return found

    short = after(1200, "short")
    assert short.evidence.notes[0] == "Time ended: 50 of 198 dev items were asked."
    assert short.evidence.notes[1].startswith("Not tried for want of time: ")
    assert short.choice is not None and short.choice.kind == "route", "routes come first"
    longer = after(1900, "longer")
    assert longer.evidence.notes[0] != short.evidence.notes[0] and longer.choice == short.choice
    none = after(100, "none")
    assert none.choice is None and not none.passed
    assert none.evidence.explanation[0] == "Nothing was measured in the time there was."


def test_one_adapter_is_taken_as_it_is(filled: Registry, base: Base, unlike: World) -> None:
    def alone(**changes: Any) -> AutoResult:
        given = {
            "target": [unlike.suites["late"]],
            "general": [unlike.general],
            "store": filled,
            "base": base,
        }
        return auto(["late@v1"], **{**given, **changes})

    found = alone(forget=1.0)
    assert found.choice is not None and found.choice.name == "late alone" and found.passed
    assert found.recipe == "compose: late@v1\n"
    assert found.evidence.explanation[1] == "It is the only adapter, so there was nothing to compose."
    assert [point.name for point in found.points] == ["base", "late alone"]
    refused = alone(forget=0.001, name="acme")
    assert refused.choice == found.choice and not refused.passed and refused.lock is None
    assert "loses" in refused.explanation


def test_routes_are_left_out_where_nothing_says_what_adapters_are_for(
    store: Registry, base: Base, unlike: World
) -> None:
    unlike.register(store, base, examples=False)
    found = chosen(unlike, store, base)
    assert all(point.kind != "route" for point in found.points)
    assert found.evidence.notes[0].startswith("Routes were left out: a router needs examples of what late@v1")
    assert "no route was measured" in found.explanation


@pytest.mark.usefixtures("lean")
@pytest.mark.slow
def test_cat_is_tried_with_labelled_examples_and_registered_where_it_wins(
    store: Registry, base: Base, alike: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    alike.register(store, base, examples=False)
    module = "inlay.composer.choosing.auto"

    def only_cat(found: Any, bounds: Bounds, *, members: int) -> Ranked:
        return next(each for each in found if each.candidate.kind == "cat")

    monkeypatch.setattr(f"{module}.choose", only_cat)
    found = chosen(alike, store, base, name="acme", examples=alike.labelled(), retention=0.01, forget=1.0)
    assert found.choice is not None and found.choice.kind == "cat" and found.passed
    assert any(point.kind == "route" for point in found.points), "the examples' prompts fit the routers"
    version = store.resolve("acme-cat@v1")
    assert version.lineage["method"] == "cat"  # type: ignore[union-attr]
    assert found.lock is not None and [member.ref for member in found.lock.members] == ["acme-cat@v1"]
    _, test = halves(alike, base)
    general, *targets = separately("acme@v1", store, base, test)
    tested = found.evidence.tested
    assert tested is not None
    assert tested.general.model_score == sum(general) / len(general)
    assert [each.counts.model_score for each in tested.targets] == [sum(t) / len(t) for t in targets]


@pytest.mark.usefixtures("lean")
@pytest.mark.slow
def test_suites_that_training_declared_are_found(store: Registry, base: Base, unlike: World) -> None:
    from inlay.evals.ledger import keep_suite

    for name, folder in unlike.folders.items():
        suite = unlike.suites[name]
        keep_suite(store, suite)
        run = {"examples": requests(name), "declared": {"target": [{"name": name, "digest": suite.digest}]}}
        store.add(name, folder, base=base.fingerprint, run=run)
    found = chosen(unlike, store, base, target=())
    assert found.evidence.targets == {"late": "late", "buy": "buy"}
    assert found.passed


@pytest.fixture
def strangers(filled: Registry, base: Base, tmp_path: Path) -> Iterator[Registry]:
    """Beside the two, one of another base's weights and one that only PEFT runs."""
    folder = write_lora(tmp_path / "dora", base, seed=1, use_dora=True)
    filled.add("dora", folder, base=base.fingerprint)
    folder = write_lora(tmp_path / "foreign", base, seed=2)
    other = replace(base.fingerprint, weights="sha256:" + "0" * 64)
    filled.add("foreign", folder, base=other)
    yield filled


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapters": []}, "at least one adapter"),
        ({"adapters": ["late@v1", "late@v1"]}, "late is named twice"),
        ({"adapters": ["late@v1", "dora@v1"], "target": {"late": 0, "dora@v1": 1}}, "dora@v1 is run by PEFT"),
        ({"target": {"late": 0}}, "buy@v1 has no target suite"),
        ({"target": ()}, "late@v1 has no target suite"),
        ({"target": {"late": 0, "sell": 1}}, "'sell' is none of them"),
        ({"target": [("late", 0), ("late", 0), ("buy", 1)]}, "late is named more than once"),
        ({"target": ["g"]}, "nothing says for which g is"),
        ({"target": {"late": "graded", "buy": 1}}, "graded by token_f1"),
        ({"target": {"late": "tiny", "buy": 1}}, "tiny must have two items"),
        ({"general": []}, "there is none"),
        ({"examples": {"sell": [("a", "b")]}}, "'sell' is none of them"),
        ({"examples": {"late": [("a", "b")]}}, "buy@v1 has none"),
        ({"examples": {"late": [("My knife is late.", "b")], "buy": [("a", "b")]}}, "is an item of late"),
        ({"general_prompts": "absent.jsonl"}, "there is none at absent.jsonl"),
        ({"minutes": 0}, "minutes must be a number above 0"),
        ({"forget": 1.5}, "forget must be a number above 0 and up to 1"),
        ({"retention": "all"}, "retention must be"),
        ({"name": "late"}, "late is an adapter's name"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_measured(
    strangers: Registry, base: Base, unlike: World, monkeypatch: pytest.MonkeyPatch, changes: Any, said: str
) -> None:
    rows = [{"prompt": "Say yes.", "answer": "yes"}, {"prompt": "Say no.", "answer": "no"}]
    suites: dict[Any, Suite] = dict(enumerate(unlike.suites.values()))
    suites |= {
        "g": Suite.of_rows("g", rows),
        "graded": Suite.of_rows("graded", rows, metric="token_f1"),
        "tiny": Suite.of_rows("tiny", rows[:1]),
    }
    target = changes.get("target", unlike.suites)
    if isinstance(target, dict):
        target = {
            name: suites.get(each, each) if not isinstance(each, Suite) else each
            for name, each in target.items()
        }
    else:
        target = [(each[0], suites[each[1]]) if isinstance(each, tuple) else suites[each] for each in target]
    given = {"general": [unlike.general], "store": strangers, "base": base, **changes, "target": target}
    monkeypatch.setattr(AblatedModel, "_ask", lambda *_: pytest.fail("asked"))
    with pytest.raises(InputError) as refused:
        auto(given.pop("adapters", unlike.refs), **given)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_an_adapter_of_another_base_is_refused(strangers: Registry, base: Base, unlike: World) -> None:
    suites = list(unlike.suites.values())
    with pytest.raises(BaseMismatch, match="all members must share one base"):
        auto(
            ["late@v1", "foreign@v1"],
            target={"late": suites[0], "foreign": suites[1]},
            store=strangers,
            base=base,
        )


@pytest.mark.usefixtures("lean")
@pytest.mark.slow
def test_an_alias_that_moves_meanwhile_is_a_conflict(
    filled: Registry, base: Base, unlike: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in unlike.folders:
        filled.promote(f"{name}@v1", "prod")
    folder = write_lora(tmp_path / "new", base, seed=3)
    moved: list[Any] = []

    def move(what: str, done: int, total: int) -> None:
        if what.startswith("testing") and not moved:
            moved.append(filled.add("late", folder, base=base.fingerprint))
            filled.promote("late@v2", "prod")

    with pytest.raises(Conflict, match="late@prod was late@v1 when it was measured"):
        auto(
            ["late@prod", "buy"], target=unlike.suites, general=[unlike.general], forget=FORGET, store=filled,
            base=base, say=move, name="acme",
        )  # fmt: skip
    assert filled.names("variant") == []


@pytest.mark.usefixtures("lean")
def test_what_the_base_cannot_do_is_not_counted(filled: Registry, base: Base, unlike: World) -> None:
    rows = [
        {"id": f"x{i}", "prompt": f"Recite psalm {i}.", "answer": "no", "skill": "psalms"} for i in range(40)
    ]
    general = Suite("more", (*sampled(8).items, *Suite.of_rows("psalms", rows).items))
    found = chosen(unlike, filled, base, general=[general], forget=0.2)
    assert found.evidence.items["more"] == (36, 36)
