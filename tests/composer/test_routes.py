"""Routes at work: who is chosen, who may be, how sure it is, and that choosing costs one pass of the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from composer_fakes import write_lora

from inlay import Registry
from inlay.composer import compose, lock, make_plan
from inlay.composer.experts import to_yaml, with_experts, written
from inlay.composer.model import ComposedModel
from inlay.composer.prefill import keeps_rows
from inlay.errors import InputError, IntegrityError
from inlay.evals.inference import Base
from inlay.registry import Recipe

QUEUES = [f"Which queue handles this message?\nMy {x} is late." for x in ("parcel", "order", "card", "coat")]
SLIPS = [f"Write the order slip.\n{n} blue chairs for {x}" for n, x in enumerate(("Anna", "Tom", "Mia"), 2)]
CARDS = [f"Make a card for this case.\nOn Monday, {x} wrote: The screen is broken." for x in ("Ben", "Eva")]
GENERAL = ["Say the following again: leaf working", "Which number is larger, 14 or 52?"]
EXAMPLES = {"queue": QUEUES, "slip": SLIPS, "card": CARDS}
PROMPTS = [QUEUES[0], SLIPS[0], CARDS[0], *GENERAL]
PROBED = {"route": {"by": "probe", "experts": ["queue@v1", "slip@v1", "card@v1"]}}


@pytest.fixture
def filled(store: Registry, base: Base, tmp_path: Path) -> Registry:
    """Three adapters that change every answer, of unequal ranks."""
    for seed, name in enumerate(EXAMPLES, 1):
        folder = write_lora(tmp_path / name, base, seed=seed, strength=0.2, r=2 * seed)
        store.add(name, folder, base=base.fingerprint, run={"examples": EXAMPLES[name]})
    return store


def alone(store: Registry, base: Base, ref: str, prompt: str) -> str:
    model = compose(ref, store=store, base=base)
    try:
        return model.generate([prompt], max_new_tokens=8)[0]
    finally:
        model.detach()


def experts(model: ComposedModel, prompts: list[str], **asked: Any) -> list[str]:
    return [decided.expert for (decided,) in model.decide(prompts, **asked)]


def test_a_mixed_batch_answers_as_each_expert_alone_and_as_the_base(filled: Registry, base: Base) -> None:
    lock(filled, "acme", PROBED, base=base)
    expected = [alone(filled, base, f"{name}@v1", p) for name, p in zip(EXAMPLES, PROMPTS, strict=False)]
    model = compose("acme@v1", store=filled, base=base)
    try:
        answers = model.answers(PROMPTS, max_new_tokens=8)
        bare = model.base_chat.generate(GENERAL, max_new_tokens=8)
        beams = model.generate(PROMPTS, max_new_tokens=8, num_beams=2)
        bare_beams = model.base_chat.generate(GENERAL, max_new_tokens=8, num_beams=2)
    finally:
        model.detach()
    assert [answer.text for answer in answers] == [*expected, *bare]
    chosen = [answer.decisions[0].expert for answer in answers]
    assert chosen == ["queue@v1", "slip@v1", "card@v1", "base", "base"]
    for answer in answers:
        decided = answer.decisions[0]
        assert decided.confidence == max(decided.scores.values())
        assert sum(decided.scores.values()) == pytest.approx(1.0, abs=1e-4)
    assert beams[3:] == bare_beams


def test_choosing_costs_one_pass_of_the_base_and_is_the_prefill_where_the_base_answers(
    filled: Registry, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock(filled, "acme", PROBED, base=base)
    model = compose("acme@v1", store=filled, base=base)
    tokens: list[int] = []

    def count(_: torch.nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        tokens.append(given["input_ids"].numel())

    handle = base.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        length = len(model.tokenizer.apply_chat_template(
            [{"role": "user", "content": GENERAL[0]}], add_generation_prompt=True, return_dict=False
        ))  # fmt: skip
        model.generate(GENERAL[:1], max_new_tokens=3)
        assert tokens == [length, 1, 1, 1], "one pass to choose, and decoding begins with the last token"
        tokens.clear()
        model.generate(QUEUES[:1], max_new_tokens=3)
        assert tokens[0] == tokens[1] and tokens[2:] == [1, 1], "an expert reads the prompt for itself"
    finally:
        handle.remove()
        model.detach()


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 2},
        {"use_cache": False},
        {"num_return_sequences": 2},
        {"cache_implementation": "static"},
    ],
)
def test_what_cannot_start_from_a_cache_does_not(settings: dict[str, Any]) -> None:
    assert not keeps_rows(settings)
    assert keeps_rows({"do_sample": True, "num_beams": 1})


@pytest.mark.parametrize("by", ["probe", "words", "centroid", "request", "arrow"])
def test_every_router_is_locked_composed_and_speaks_in_a_mixed_batch(
    filled: Registry, base: Base, by: str
) -> None:
    made = lock(filled, "acme", {"route": {**PROBED["route"], "by": by}}, base=base)
    assert ("router" in made.tree["route"]) is (by in ("probe", "words", "centroid"))
    model = compose(made, store=filled, base=base)
    names = ["queue", "slip@v1", "card", None, "base"] if by == "request" else None
    try:
        together = model.answers(PROMPTS, max_new_tokens=8, experts=names)
        one_by_one = [
            model.generate([p], max_new_tokens=8, experts=names and [n])[0]
            for p, n in zip(PROMPTS, names or PROMPTS, strict=True)
        ]
        assert [answer.text for answer in together] == one_by_one
        decided = [answer.decisions[0] for answer in together]
        assert [each.by for each in decided] == [by] * 5
        if by == "arrow":
            assert all(each.scores["base"] == 0.0 and sum(each.scores.values()) > 0.99 for each in decided)
            assert [e.expert for (e,) in model.decide(PROMPTS)] == [each.expert for each in decided]
        elif by in ("probe", "request"):
            assert [each.expert for each in decided] == ["queue@v1", "slip@v1", "card@v1", "base", "base"]
    finally:
        model.detach()


def test_routes_nest_two_deep_over_stacks_and_merges(filled: Registry, base: Base) -> None:
    inner = {"route": {"by": "request", "experts": ["slip@v1", {"merge": ["queue@v1", "card@v1"]}]}}
    outer = {"by": "probe", "experts": [{"stack": ["queue@v1", {"use": "card@v1", "weight": 0.5}]}, inner]}
    lock(
        filled, "acme", {"stack": [{"use": "card@v1", "weight": 0.25}, {"route": outer}]}, base=base,
        examples={"queue": QUEUES, "slip": SLIPS, "card": CARDS},
    )  # fmt: skip
    plan = make_plan(filled, filled.resolve("acme@v1"))
    names = [slot.ref for slot in plan.slots]

    def gate(*choices: int | None) -> dict[str, float]:
        return {name: value for name, value in zip(names, plan.gate(choices), strict=True) if value}

    merged = next(name for name in names if "queue" in name and "card" in name)
    assert gate(None, None) == {"card@v1": 0.25}
    assert gate(0, 1) == {"card@v1": 0.75, "queue@v1": 1.0}, "the inner route is not asked"
    assert gate(1, None) == {"card@v1": 0.25}
    assert gate(1, 0) == {"card@v1": 0.25, "slip@v1": 1.0}
    assert gate(1, 1) == {"card@v1": 0.25, merged: 1.0}
    model = compose("acme@v1", store=filled, base=base)
    try:
        texts = model.generate([SLIPS[0]] * 2, max_new_tokens=8, experts=["slip", None])
        by_hand = model.generate(
            [SLIPS[0]] * 2,
            max_new_tokens=8,
            weights=[{"card@v1": 0.25, "slip@v1": 1.0}, {"card@v1": 0.25}],
        )
        assert texts == by_hand
    finally:
        model.detach()


def test_no_router_no_request_and_no_weight_crosses_an_allow_list(filled: Registry, base: Base) -> None:
    for by in ("probe", "words", "centroid", "arrow", "request"):
        lock(filled, f"by-{by}", {"route": {**PROBED["route"], "by": by}}, base=base)
    digest = filled.resolve("card@v1").digest
    for by in ("probe", "words", "centroid", "arrow"):
        model = compose(f"by-{by}@v1", store=filled, base=base, allow=["slip", digest])
        try:
            assert "queue@v1" not in experts(model, PROMPTS)
            assert all(e.scores["queue@v1"] == 0.0 for (e,) in model.decide(PROMPTS))
            bare = model.base_chat.generate(PROMPTS, max_new_tokens=8)
            assert model.generate(PROMPTS, max_new_tokens=8, allow=[[]] * 5) == bare, "nothing is left"
            narrower = experts(model, PROMPTS, allow=[["queue", "slip@v1"]] * 5)
            assert set(narrower) <= {"slip@v1", "base"}, "a request's list is within the model's"
            with pytest.raises(InputError, match="queue@v1 is not on it"):
                model.generate(PROMPTS[:1], weights=[{"queue@v1": 1.0}])
        finally:
            model.detach()
    model = compose("by-request@v1", store=filled, base=base, allow=["slip"])
    try:
        with pytest.raises(InputError, match="queue@v1 is not on it"):
            model.generate(PROMPTS[:1], experts=["queue"])
    finally:
        model.detach()
    filled.lock("always", {"stack": ["queue@v1", "slip@v1"]})
    with pytest.raises(InputError, match="queue@v1 is not on it"):
        compose("always@v1", store=filled, base=base, allow=["slip"])
    with pytest.raises(InputError, match="list of names"):
        compose("always@v1", store=filled, base=base, allow="slip")


def test_bad_input_is_refused_in_one_line(filled: Registry, base: Base, tmp_path: Path) -> None:
    bare = write_lora(tmp_path / "bare", base, seed=9)
    filled.add("bare", bare, base=base.fingerprint)
    two = {"route": {"by": "probe", "experts": ["queue@v1", "bare@v1"]}}
    tokens = {"route": {"by": "arrow", "experts": ["queue@v1", "card@v1"]}}
    for recipe, said, given in (
        ({"route": {"by": "arrow", "experts": ["queue@v1"]}}, "two experts, and the recipe has 1", {}),
        (two, "examples of what bare@v1 is for", {}),
        (PROBED, "'bare' is none", {"examples": {"bare": ["x"]}}),
        ({"route": {**PROBED["route"], "by": "arrow", "params": {"top": 1}}}, "no parameter 'top'", {}),
        ({"route": {**PROBED["route"], "by": "arrow", "params": {"top_k": 0}}}, "whole number above 0", {}),
        ({"route": {**PROBED["route"], "params": {"top_k": 1}}}, "by probe has no parameter", {}),
        ({"route": {"by": "arrow", "experts": ["slip@v1", tokens]}}, "a token has one route", {}),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said) as caught:
            made = lock(filled, "acme", recipe, base=base, **given)
            compose(made, store=filled, base=base)
        assert "\n" not in str(caught.value)
    assert lock(filled, "acme", two, base=base, examples={"bare": CARDS}).number >= 1
    lock(filled, "ok", PROBED, base=base)
    model = compose("ok@v1", store=filled, base=base)
    try:
        with pytest.raises(InputError, match="goes by request, and ok@v1 has none"):
            model.generate(PROMPTS[:1], experts=["queue"])
        with pytest.raises(InputError, match="each prompt must have its expert"):
            model.generate(PROMPTS[:1], experts="queue")
    finally:
        model.detach()
    foreign = filled.lock("foreign", {"route": {"by": "probe", "experts": ["slip@v1", "card@v1"]}},
                          routers={"": filled.resolve("ok@v1").tree["route"]["router"]})  # fmt: skip
    with pytest.raises(IntegrityError, match="fitted for the adapters"):
        compose(foreign, store=filled, base=base)


def test_an_expert_more_or_less_is_a_new_lock_and_nothing_else(filled: Registry, base: Base) -> None:
    first = lock(filled, "acme", {"route": {"by": "probe", "experts": ["queue@v1", "slip@v1"]}}, base=base)
    filled.promote(first.ref, "prod", why="two")
    before = filled.resolve("acme@prod")
    grown = with_experts(written(filled, "acme"), add=["card@v1"])
    second = lock(filled, "acme", grown, base=base)
    assert [m.ref for m in second.members] == ["queue@v1", "slip@v1", "card@v1"]
    assert filled.resolve("acme@prod") == before and filled.resolve("acme@v1") == first
    third = lock(filled, "acme", with_experts(written(filled, "acme"), drop=["queue"]), base=base)
    assert [m.ref for m in third.members] == ["slip@v1", "card@v1"]
    model = compose(third, store=filled, base=base)
    try:
        assert experts(model, PROMPTS)[1:] == ["slip@v1", "card@v1", "base", "base"]
    finally:
        model.detach()
    with pytest.raises(InputError, match="'queue' is none"):
        with_experts(written(filled, "acme"), drop=["queue"])
    with pytest.raises(InputError, match="is an expert of the route already"):
        with_experts(written(filled, "acme"), add=["slip@v1"])
    with pytest.raises(InputError, match="this one has 0"):
        with_experts(Recipe.of({"stack": ["queue@v1", "slip@v1"]}), add=["card@v1"])


@pytest.mark.parametrize(
    "text",
    [
        "stack: [a@prod, {use: b@v3, weight: 0.6}]",
        "stack:\n- merge: [a, {use: b, weight: 0.8}]\n  method: ties\n  params: {density: 0.4}\n"
        "  rank: 16\n- c\nweight: 2",
        "base: ./x\ncompose:\n  route: {by: arrow, experts: [a, {stack: [b, c]}], params: {top_k: 1}}\n"
        "guard: {forget: 0.05, suites: {general: [general-v1]}}",
    ],
)  # fmt: skip
def test_a_recipe_written_out_reads_back_the_same(text: str) -> None:
    recipe = Recipe.of(text + "\n")
    assert Recipe.of(to_yaml(recipe)) == recipe
