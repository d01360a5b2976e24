"""Blame on the built-in base: each configuration against one composed and asked by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from composer_fakes import write_lora

from inlay.builtin.skills import split_skills
from inlay.composer import blame, compose, lock, make_plan
from inlay.composer.ablations import AblatedModel
from inlay.composer.bank import Bank
from inlay.composer.removal import alone, members_of, name_of, without
from inlay.errors import InputError
from inlay.evals import Suite
from inlay.evals.blame import BlameReport
from inlay.evals.inference import Base, Chat
from inlay.evals.scoring import evaluate_model
from inlay.evals.statistics import Paired
from inlay.registry import Registry

NAMES = ("one", "two", "three")
QUEUES = [f"Which queue handles this message?\nMy {thing} is late." for thing in ("parcel", "order", "card")]
SLIPS = [
    f"Write the order slip.\n{n} blue chairs for {name}" for n, name in ((2, "Anna"), (3, "Tom"), (4, "Mia"))
]


@pytest.fixture(scope="module")
def general() -> Suite:
    """A few items of each held-out skill that the base was taught."""
    kept: dict[str, list[Any]] = {skill: [] for skill in split_skills()[1]}
    for item in Suite.load("general-v1").items:
        if len(kept.get(item.skill, [None] * 3)) < 3:
            kept[item.skill].append(item)
    return Suite("sampled", tuple(item for items in kept.values() for item in items))


@pytest.fixture
def filled(store: Registry, base: Base, tmp_path: Path) -> Registry:
    """Three adapters with random factors; the third is strong, so that it breaks much."""
    strengths = (0.03, 0.05, 0.12)
    for seed, (name, strength) in enumerate(zip(NAMES, strengths, strict=True), 1):
        folder = write_lora(tmp_path / name, base, seed=seed, r=2 + seed, strength=strength)
        examples = QUEUES if name == "one" else SLIPS
        store.add(name, folder, base=base.fingerprint, why="test", run={"examples": examples})
        store.promote(f"{name}@v1", "prod")
    return store


def measured(recipe: Any, store: Registry, base: Base, suite: Suite) -> list[bool]:
    """Outcomes of a recipe composed and asked by itself."""
    model = compose(recipe, store=store, base=base)
    try:
        return model.chat.matches(suite.prompts(), suite.answers())
    finally:
        model.detach()


def losses(suite: Suite, before: list[bool], after: list[bool]) -> tuple[int, int]:
    """(right before and wrong after, the other way round) on held-out items."""
    pairs = [(b, a) for item, b, a in zip(suite.items, before, after, strict=True) if item.held_out]
    return pairs.count((True, False)), pairs.count((False, True))


def test_each_member_of_a_stack_is_measured_as_if_composed_by_itself(
    filled: Registry, base: Base, general: Suite
) -> None:
    weights = (1.0, 0.5, 0.8)
    members = [{"use": f"{name}@v1", "weight": w} for name, w in zip(NAMES, weights, strict=True)]
    filled.lock("acme", {"stack": members})
    model = compose("acme@v1", store=filled, base=base)
    try:
        report = blame(model, general=[general], target=[general])
    finally:
        model.detach()
    bare = model.base_chat.matches(general.prompts(), general.answers())
    whole = measured({"stack": members}, filled, base, general)
    assert (report.whole.lost, report.whole.gained) == losses(general, bare, whole)
    assert {member.name for member in report.members} == {f"{name}@v1" for name in NAMES}
    for member in report.members:
        i = [f"{name}@v1" for name in NAMES].index(member.name)
        by_itself = measured({"stack": [members[i]]}, filled, base, general)
        rest = measured({"stack": members[:i] + members[i + 1 :]}, filled, base, general)
        assert (member.alone.lost, member.alone.gained) == losses(general, bare, by_itself)
        assert (member.removed.lost, member.removed.gained) == losses(general, rest, whole)
        assert member.weight == weights[i] and member.path == f"stack.{i}"
        assert member.targets[0].removed.delta == pytest.approx((sum(whole) - sum(rest)) / len(general))
    assert report.members[0].removed.loss == max(member.removed.loss for member in report.members)
    assert (report.passes, report.remembered) == (8, 8), "base, whole, three alone and three without, once"


def test_an_adapter_on_the_output_head_speaks_in_its_own_ablations_only(
    filled: Registry, base: Base, general: Suite, tmp_path: Path
) -> None:
    folder = write_lora(tmp_path / "head", base, seed=9, strength=0.25, target_modules=["lm_head"])
    filled.add("head", folder, base=base.fingerprint)
    members = ["one@v1", "head@v1"]
    filled.lock("acme", {"stack": members})
    model = compose("acme@v1", store=filled, base=base)
    try:
        report = blame(model, general=[general])
    finally:
        model.detach()
    bare = Chat(base).matches(general.prompts(), general.answers())
    whole = measured({"stack": members}, filled, base, general)
    assert whole != bare
    for member in report.members:
        (other,) = set(members) - {member.name}
        by_itself = measured({"stack": [member.name]}, filled, base, general)
        rest = measured({"stack": [other]}, filled, base, general)
        assert (member.alone.lost, member.alone.gained) == losses(general, bare, by_itself)
        assert (member.removed.lost, member.removed.gained) == losses(general, rest, whole)


def test_nothing_is_loaded_or_rebuilt(
    filled: Registry, base: Base, general: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.lock("acme", {"stack": [f"{name}@v1" for name in NAMES]})
    model = compose("acme@v1", store=filled, base=base)
    try:
        modules = {name: id(module) for name, module in base.model.named_modules()}
        tensors = {name: id(parameter) for name, parameter in base.model.named_parameters()}

        def refuse(*_: Any, **__: Any) -> None:
            raise AssertionError("blame must load nothing anew")

        with monkeypatch.context() as patch:
            for owner, name in ((type(base.model), "from_pretrained"), (Bank, "_put"), (Bank, "load_all")):
                patch.setattr(owner, name, refuse)
            report = blame(model, general=[general])
        assert len(report.members) == 3
        assert {name: id(module) for name, module in base.model.named_modules()} == modules
        assert {name: id(parameter) for name, parameter in base.model.named_parameters()} == tensors
    finally:
        model.detach()


def test_a_merge_is_made_again_without_each_input(filled: Registry, base: Base, general: Suite) -> None:
    inputs = [{"use": f"{name}@v1", "weight": 1.5} for name in NAMES]
    how = {"method": "ties", "params": {"density": 0.5}, "rank": 6}
    filled.lock("acme", {"merge": inputs, **how})
    model = compose("acme@v1", store=filled, base=base)
    try:
        loaded = model._bank.names
        report = blame(model, general=[general])
        assert [name for name in model._bank.names if name] == [name for name in loaded if name]
        whole_after = model.chat.matches(general.prompts(), general.answers())
    finally:
        model.detach()
    assert report.kind == "merge"
    whole = measured({"merge": inputs, **how}, filled, base, general)
    assert whole_after == whole, "what was loaded beside the whole is gone again"
    for member in report.members:
        i = [f"{name}@v1" for name in NAMES].index(member.name)
        rest = measured({"merge": inputs[:i] + inputs[i + 1 :], **how}, filled, base, general)
        assert (member.removed.lost, member.removed.gained) == losses(general, rest, whole)


def test_two_inputs_without_one_is_the_other_alone(filled: Registry, base: Base, general: Suite) -> None:
    for number, recipe in enumerate(
        ({"merge": ["one@v1", "three@v1"], "method": "linear"}, {"stack": ["one@v1", "three@v1"]})
    ):
        filled.lock(f"pair{number}", recipe)
        model = compose(f"pair{number}@v1", store=filled, base=base)
        try:
            report = blame(model, general=[general])
        finally:
            model.detach()
        assert report.passes + report.remembered == 4, "base, whole, one, three"
        first, second = report.members
        # base -> alone of one and without the other -> whole share the middle.
        assert first.alone.loss + second.removed.loss == pytest.approx(report.whole.loss)
        assert second.alone.loss + first.removed.loss == pytest.approx(report.whole.loss)


def test_a_masked_expert_leaves_its_prompts_to_the_next_best(filled: Registry, base: Base) -> None:
    recipe = {"route": {"by": "probe", "experts": ["one@v1", "three@v1"]}}
    lock(filled, "acme", recipe, base=base)
    suite = Suite.of_rows(
        "routed", [{"prompt": p, "answer": "blue", "id": f"r{i}"} for i, p in enumerate(QUEUES + SLIPS)]
    )
    model = compose("acme@v1", store=filled, base=base)
    try:
        chosen = [each.expert for (each,) in model.decide(suite.prompts())]
        tree = model.target.tree  # type: ignore[union-attr]
        said = heard_by_hand(model, suite, masked=1)
        suite = Suite.of_rows(  # the variant is right everywhere, so that each change is seen
            "routed",
            [
                {"prompt": p, "answer": a or "nothing", "id": f"r{i}"}
                for i, (p, a) in enumerate(
                    zip(suite.prompts(), model.generate(suite.prompts(), max_new_tokens=64), strict=True)
                )
            ],
        )
        report = blame(model, general=[], target=[suite])
        whole = model.chat.matches(suite.prompts(), suite.answers())
    finally:
        model.detach()
    assert chosen == ["one@v1"] * 3 + ["three@v1"] * 3
    changed = [a != b for a, b in zip(said, suite.answers(), strict=True)]
    three = next(member for member in report.members if member.name == "three@v1")
    lost = [right and moved for right, moved in zip(whole, changed, strict=True)]
    assert three.targets[0].removed.gained == sum(lost) > 0
    assert name_of(tree) == "route(one@v1, three@v1)"


def heard_by_hand(model: Any, suite: Suite, *, masked: int) -> list[str]:
    """Answers of a route of two whose expert `masked` may not be chosen, one prompt at a time."""
    from inlay.composer.routers.seen import encoded, see

    router, answers = model.routing.routers[0], []
    for prompt in suite.prompts():
        with model._bank.gate.held_at(None):
            row = router.probabilities(see(model.base, encoded(model.base, [prompt])))[0]
        row[masked] = -torch.inf
        best = int(row.argmax())
        weights = {} if best == 2 else {model.plan.slots[best].ref: 1.0}
        answers += model.generate([prompt], weights=[weights], max_new_tokens=64)
    return answers


def test_what_was_heard_is_remembered_and_interruption_loses_little(
    filled: Registry, base: Base, general: Suite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("INLAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("inlay.composer.ablations.TOGETHER", 2)
    filled.lock("acme", {"stack": [{"use": f"{name}@v1", "weight": 0.9} for name in NAMES]})
    model = compose("acme@v1", store=filled, base=base)
    passes = 0

    def stop(*_: Any) -> None:
        nonlocal passes
        passes += 1
        if passes == 3:
            raise KeyboardInterrupt

    try:
        with monkeypatch.context() as patch:
            ask = AblatedModel._ask
            patch.setattr(AblatedModel, "_ask", lambda self, *given: (stop(), ask(self, *given))[1])
            with pytest.raises(KeyboardInterrupt):
                blame(model, general=[general])
        assert filled.reports(model.target.digest, "blame") == []
        again = blame(model, general=[general])
        assert (again.passes, again.remembered) == (4, 4), "two batches of two were kept"
        assert [name for name in model._bank.names if name] == [f"{name}@v1" for name in NAMES]
        third = blame(model, general=[general])
        assert (third.passes, third.remembered) == (0, 8)
        kept = filled.reports(model.target.digest, "blame")
        assert len(kept) == 2
        assert BlameReport.from_dict(kept[0]) == third
        assert {record.subject for record in filled.evals(suite=general.digest)} == {
            "base",
            model.target.digest,
        }
    finally:
        model.detach()


def test_a_base_that_takes_one_gate_for_all_rows_is_asked_voice_by_voice(
    filled: Registry, base: Base, general: Suite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    filled.lock("acme", {"stack": [{"use": f"{name}@v1", "weight": 0.7} for name in NAMES]})
    model = compose("acme@v1", store=filled, base=base)
    try:
        together = blame(model, general=[general])
        monkeypatch.setenv("INLAY_CACHE", str(tmp_path / "empty"))
        held_at = AblatedModel._held_at

        def one_gate(self: AblatedModel, ablations: Any, ids: Any) -> Any:
            if len(set(ablations)) > 1:
                raise InputError("a gate for each row needs inputs (rows, length, in)")
            return held_at(self, ablations, ids)

        monkeypatch.setattr(AblatedModel, "_held_at", one_gate)
        apart = blame(model, general=[general])
    finally:
        model.detach()
    assert apart.passes == 6, "all but the base and the whole, which the registry has"
    assert apart.members == together.members


def test_members_below_nested_nodes(filled: Registry, base: Base, general: Suite) -> None:
    recipe = {"stack": ["one@v1", {"merge": ["two@v1", "three@v1"], "method": "ties", "weight": 0.5}]}
    filled.lock("acme", recipe)
    model = compose("acme@v1", store=filled, base=base)
    try:
        top = blame(model, general=[general])
        deep = blame(model, general=[general], deep=True)
    finally:
        model.detach()
    assert {member.name for member in top.members} == {"one@v1", "ties(two@v1, three@v1)"}
    assert {member.path for member in deep.members} == {"stack.0", "stack.1.merge.0", "stack.1.merge.1"}
    three = next(member for member in deep.members if member.name == "three@v1")
    rest = measured({"stack": ["one@v1", {"use": "two@v1", "weight": 0.5}]}, filled, base, general)
    whole = measured(recipe, filled, base, general)
    assert (three.removed.lost, three.removed.gained) == losses(general, rest, whole)


def test_trees_are_cut_in_place() -> None:
    def use(name: str, weight: float = 1.0) -> dict[str, Any]:
        return {"use": f"sha256:{name}", "name": f"{name}@v1", "weight": weight}

    route = {"route": {"by": "probe", "experts": [use("c"), use("d")], "router": "x"}, "weight": 1.0}
    merge = {"merge": [use("e", 0.3), use("f")], "method": "ties", "weight": 2.0}
    tree = {"stack": [use("a", 0.5), route, merge], "weight": 1.0}
    assert [(path, steps) for path, steps, _ in members_of(tree)] == [
        ((0,), "stack.0"),
        ((1,), "stack.1"),
        ((2,), "stack.2"),
    ]
    assert [steps for _, steps, _ in members_of(tree, deep=True)] == [
        "stack.0",
        "stack.1.route.0",
        "stack.1.route.1",
        "stack.2.merge.0",
        "stack.2.merge.1",
    ]
    assert [child["weight"] for child in without(tree, (1,))["stack"]] == [0.5, 0.0, 2.0]
    assert [child["weight"] for child in alone(tree, (0,))["stack"]] == [0.5, 0.0, 0.0]
    assert without(tree, (1, 0))["stack"][1]["route"]["allowed"] == [1, None]
    assert alone(tree, (1, 1))["stack"][1]["route"]["allowed"] == [1]
    assert without(tree, (2, 1))["stack"][2] == {"stack": [use("e", 0.3)], "weight": 2.0}
    assert alone(tree, (2, 0))["stack"][2] == {"stack": [use("e", 0.3)], "weight": 2.0}
    assert members_of({"stack": [merge], "weight": 1.0})[1][:2] == ((0, 1), "stack.0.merge.1")
    assert name_of(tree) == "0.5 a@v1 + route(c@v1, d@v1) + 2 ties(0.3 e@v1, f@v1)"


def test_one_adapter_is_its_own_whole(filled: Registry, base: Base, general: Suite) -> None:
    model = compose("three@v1", store=filled, base=base)
    seen: list[tuple[int, int]] = []
    try:
        model.fold()
        report = blame(model, general=[general], say=lambda _what, done, total: seen.append((done, total)))
        assert model._bank.gate.state.folded, "what was folded is folded again"
    finally:
        model.detach()
    assert seen[-1] == (len(general), len(general)) and all(done <= total for done, total in seen)
    with pytest.raises(InputError, match="was detached"):
        blame(model, general=[general])
    (member,) = report.members
    assert report.passes == 2 and member.alone == member.removed == report.whole
    assert report.interaction == 0.0


def test_a_graded_suite_is_refused(filled: Registry, base: Base) -> None:
    graded = Suite.of_rows("g", [{"prompt": "Say yes.", "answer": "yes"}], metric="token_f1")
    model = compose("one@v1", store=filled, base=base)
    try:
        with pytest.raises(InputError, match="graded by token_f1"):
            blame(model, general=[graded])
        assert make_plan(filled, model.target).slots[0].ref == "one@v1"
    finally:
        model.detach()


def test_a_recipe_that_nobody_locked_is_blamed_as_well(filled: Registry, base: Base, general: Suite) -> None:
    model = compose({"stack": ["one@v1", "three@v1"]}, store=filled, base=base)
    try:
        report = blame(model, general=[general])
        kept = filled.reports(model.target.digest, "blame")
    finally:
        model.detach()
    assert BlameReport.from_dict(kept[0]) == report


def test_answers_and_choices_are_shared_as_exact_matches_are(filled: Registry, base: Base) -> None:
    words = ("river", "garden", "stone", "lamp", "bread", "window", "apple", "chair")
    rows = [
        {"id": f"c{i}", "prompt": f"Say the following again: {w}", "answer": w, "metric": "contains"}
        for i, w in enumerate(words)
    ] + [
        {
            "id": f"m{i}",
            "prompt": f"Write in upper case: {w}",
            "answer": w.upper(),
            "choices": [w.upper(), w, w[::-1]],
            "metric": "multiple_choice",
        }
        for i, w in enumerate(words)
    ]
    suite = Suite.of_rows("mixed", rows)
    members = [{"use": f"{name}@v1", "weight": 0.95} for name in NAMES]
    filled.lock("acme", {"stack": members})
    model = compose("acme@v1", store=filled, base=base)
    try:
        report = blame(model, general=[], target=[suite])
    finally:
        model.detach()

    def right(recipe: Any) -> tuple[Any, ...]:
        single = compose(recipe, store=filled, base=base)
        try:
            return evaluate_model(single.chat, suite).outcomes
        finally:
            single.detach()

    whole = right({"stack": members})
    for member in report.members:
        i = [f"{name}@v1" for name in NAMES].index(member.name)
        rest = right({"stack": members[:i] + members[i + 1 :]})
        assert member.targets[0].removed == Paired.of(rest, whole)
    assert "nobody can be blamed" in report.verdict, "nothing general was asked"
    assert len({share.removed for member in report.members for share in member.targets}) > 1
