"""CAT: learned weights against finite differences and dense sums in float64; what was learned, registered."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from composer_fakes import dense_sum_logits, some_ids, write_lora
from safetensors.torch import save

import inlay
from inlay.composer import add_cat, cat, compose, read_adapter
from inlay.composer.factors import Adapter
from inlay.composer.merging.cat import Learning, _encoded, _Sum, concatenated
from inlay.composer.stacking import stacked
from inlay.errors import BaseMismatch, InputError
from inlay.evals.inference import Base, base_answers, encode_pair
from inlay.registry import Registry

torch.set_num_threads(1)

EXAMPLES = [
    (f"Which queue handles this message?\nMy {thing} is late.", f"{thing} > shipping")
    for thing in ("parcel", "order", "courier", "delivery")
]
GENERAL = ["Give the first word only: late hammer fox", "Write these words in upper case: river garden"]
MODULES = ("model.layers.1.self_attn.v_proj", "model.layers.2.mlp.down_proj")
EMBEDDING = "model.embed_tokens"


def random_adapter(
    base: Base, name: str, rank: int, seed: int, modules: tuple[str, ...] = MODULES
) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for module in modules:
        layer = base.model.get_submodule(module)
        out, inputs = layer.weight.T.shape if module == EMBEDDING else layer.weight.shape
        a, b = (torch.randn(s, generator=generator) * 0.1 for s in ((rank, inputs), (out, rank)))
        factors[module] = (a, b)
    return Adapter(name, factors, embeddings=frozenset({EMBEDDING} & set(modules)))


def hand_made(base: Base) -> tuple[Adapter, Adapter]:
    """One adapter that lowers the examples' loss and one that raises it: along and against the gradient of
    the weights themselves, in directions at right angles."""
    model = copy.deepcopy(base.model)
    loss = torch.zeros(())
    for prompt, answer in EXAMPLES:
        for module in MODULES:
            model.get_submodule(module).weight.requires_grad_(True)
        ids, n = encode_pair(base.tokenizer, prompt, answer)
        logits = model(input_ids=torch.tensor([ids])).logits[0, n - 1 : -1]
        loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor(ids[n:]))
    loss.backward()
    useful, harmful = {}, {}
    for module in MODULES:
        u, s, v = torch.linalg.svd(model.get_submodule(module).weight.grad, full_matrices=False)
        useful[module] = (v[0:8:2].contiguous(), -0.05 * u[:, 0:8:2] * s[0:8:2])
        harmful[module] = (v[1:7:2].contiguous(), 0.05 * u[:, 1:7:2] * s[1:7:2])
    return Adapter("useful", useful), Adapter("harmful", harmful)


def as_bytes(adapter: Adapter) -> bytes:
    return save(
        {f"{m}.{i}": t.contiguous() for m, pair in adapter.factors.items() for i, t in enumerate(pair)}
    )


def doubled(base: Base) -> Base:
    """The base in float64 throughout: its own norms compute in float32, too coarse for finite differences."""
    model = copy.deepcopy(base.model).double()
    for name, norm in list(model.named_modules()):
        if type(norm).__name__ == "LlamaRMSNorm":
            plain = torch.nn.RMSNorm(len(norm.weight), eps=norm.variance_epsilon, dtype=torch.float64)
            plain.weight = norm.weight
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, plain)
    return replace(base, model=model)


def test_loss_and_gradient_are_those_of_the_dense_sum_in_float64(base: Base) -> None:
    wide = doubled(base)
    adapters = [
        random_adapter(base, "one", 3, 1, (*MODULES, EMBEDDING)),
        random_adapter(base, "two", 2, 2, MODULES[:1]),
        random_adapter(base, "three", 1, 3, MODULES[1:]),
    ]
    general = list(zip(GENERAL, base_answers(base, GENERAL, max_new_tokens=8), strict=True))
    shown, kept = _encoded(wide, EXAMPLES[:2], "example"), _encoded(wide, general, "general prompt")
    values = torch.tensor([0.7, -0.4, 1.3, 0.2, 2.0], dtype=torch.float64)

    def naive(c: torch.Tensor, modules: list[tuple[str, int]]) -> tuple[float, float]:
        """Example by example, the deltas added to the weights."""
        model = copy.deepcopy(wide.model)
        for value, (module, i) in zip(c, modules, strict=True):
            a, b = (factor.double() for factor in adapters[i].factors[module])
            layer = model.get_submodule(module)
            if module == EMBEDDING:  # the head shares this weight and must not be changed
                layer.weight = torch.nn.Parameter(layer.weight.clone(), requires_grad=False)
            layer.weight += value * ((b @ a).T if module == EMBEDDING else b @ a)
        losses: list[float] = []
        drifts: list[float] = []
        for rows, found in ((shown, losses), (kept, drifts)):
            for ids, n in rows:
                q = model(input_ids=torch.tensor([ids])).logits[0, n - 1 : -1].log_softmax(-1)
                if rows is shown:
                    found += [-float(q[t, token]) for t, token in enumerate(ids[n:])]
                else:
                    p = wide.model(input_ids=torch.tensor([ids])).logits[0, n - 1 : -1].log_softmax(-1)
                    found += (p.exp() * (p - q)).sum(-1).tolist()
        return sum(losses) / len(losses), sum(drifts) / len(drifts)

    with _Sum(wide, adapters) as total:
        total.values.data = values.clone()
        objective = total.cross_entropy(shown) + 0.5 * total.kl(kept)
        objective.backward()
        pairs = total.pairs
    gradient = total.values.grad
    assert gradient is not None and len(pairs) == 5 and float(gradient.abs().min()) > 1e-6
    with torch.no_grad():
        loss, drift = naive(values, pairs)
        assert float(objective.detach()) == pytest.approx(loss + 0.5 * drift, rel=1e-10)
        assert drift > 1e-3
        for i in range(5):
            step = torch.zeros(5, dtype=torch.float64)
            step[i] = 1e-5
            (up, up_kl), (down, down_kl) = naive(values + step, pairs), naive(values - step, pairs)
            expected = (up - down + 0.5 * (up_kl - down_kl)) / 2e-5
            assert float(gradient[i]) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_useful_one_grows_and_the_harmful_one_goes(base: Base) -> None:
    useful, harmful = hand_made(base)
    seen: list[tuple[int, int]] = []
    losses = []
    for steps in (10, 60):
        made = cat(
            [useful, harmful],
            EXAMPLES,
            base,
            learning=Learning(steps=steps, rate=0.05),
            progress=lambda done, of: seen.append((done, of)),
        )
        losses.append(made.loss)
    assert losses[0][0] == losses[1][0] > losses[0][1] > losses[1][1]
    for first, second in made.coefficients.values():
        assert first is not None and second is not None and second < 0.5 < 1.0 < first
    assert seen[0] == (1, 10) and seen[-1] == (60, 60) and len(seen) == 70
    assert made.exactness == "merged by cat" and made.drift is None
    assert "4 examples and 0 general prompts in 60 steps, seed 0" in made.notes[0]
    assert f"{made.loss[1]:.4f} as learned" in made.notes[0]
    for module, (first, second) in made.coefficients.items():
        assert first is not None and second is not None
        expected = first * useful.delta(module) + second * harmful.delta(module)
        assert torch.allclose(made.delta(module), expected, atol=1e-6)
        assert made.ranks[module] == 7


def test_the_loss_that_is_told_is_that_of_the_learned_sum(base: Base) -> None:
    useful, harmful = hand_made(base)
    made = cat([useful, harmful], EXAMPLES, base, learning=Learning(steps=5, rate=0.05))
    total, tokens = 0.0, 0
    deltas = {module: made.delta(module) for module in made.factors}
    for prompt, answer in EXAMPLES:
        ids, n = encode_pair(base.tokenizer, prompt, answer)
        log_q = dense_sum_logits(base, [(1.0, deltas)], torch.tensor([ids]))[0, n - 1 : -1].log_softmax(-1)
        total -= float(log_q.gather(1, torch.tensor(ids[n:]).unsqueeze(1)).sum())
        tokens += len(ids) - n
    assert made.loss[1] == pytest.approx(total / tokens, rel=1e-4)


def hooks(base: Base) -> list[int]:
    """How many hooks each module of the base has."""
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in base.model.modules()]


def test_general_prompts_hold_the_sum_near_its_base(base: Base) -> None:
    adapters = [random_adapter(base, "one", 4, 4), random_adapter(base, "two", 4, 5)]
    learning = Learning(steps=25, rate=0.1)
    hooked = hooks(base)  # transformers leaves some of its own once hidden states were asked for
    held = cat(adapters, EXAMPLES, base, general=GENERAL, learning=replace(learning, kl=100.0))
    free = cat(adapters, EXAMPLES, base, general=GENERAL, learning=replace(learning, kl=0.0))
    assert held.drift is not None and free.drift is not None
    assert held.drift[0] == free.drift[0] > 0
    assert held.drift[1] < 0.5 * free.drift[1]
    assert free.loss[1] < held.loss[1]
    assert f"{held.drift[1]:.4f} after" in held.notes[1]
    assert hooks(base) == hooked


def test_without_a_step_it_is_the_plain_stack_to_the_bit(base: Base) -> None:
    adapters = [random_adapter(base, "one", 3, 6, (*MODULES, EMBEDDING)), random_adapter(base, "two", 2, 7)]
    made = cat(adapters, EXAMPLES, base, learning=Learning(steps=0))
    assert as_bytes(made) == as_bytes(stacked([(a, 1.0) for a in adapters], "stack"))
    assert made.coefficients[EMBEDDING] == (1.0, None) and made.coefficients[MODULES[0]] == (1.0, 1.0)
    assert made.embeddings == {EMBEDDING} and made.loss[0] == made.loss[1]


def test_the_same_seed_gives_the_same_bytes(base: Base) -> None:
    adapters = [random_adapter(base, "one", 3, 8), random_adapter(base, "two", 2, 9)]
    learning = Learning(steps=4, rows=2, seed=3)
    first, again = (cat(adapters, EXAMPLES, base, general=GENERAL, learning=learning) for _ in range(2))
    other = cat(adapters, EXAMPLES, base, general=GENERAL, learning=replace(learning, seed=4))
    assert as_bytes(first) == as_bytes(again) != as_bytes(other)


def test_it_is_cut_as_other_merges_are(base: Base) -> None:
    adapters = [random_adapter(base, "one", 3, 10), random_adapter(base, "two", 4, 11)]
    learning = Learning(steps=3)
    whole = cat(adapters, EXAMPLES, base, learning=learning)
    made = cat(adapters, EXAMPLES, base, learning=learning, rank=5)
    for module in MODULES:
        s = torch.linalg.svdvals(whole.delta(module).double())
        assert made.truncation[module] == pytest.approx(float(s[5:].norm() / s.norm()), rel=1e-4)
        error = float((made.delta(module) - whole.delta(module)).norm() / whole.delta(module).norm())
        assert error == pytest.approx(made.truncation[module], rel=1e-3)
        assert made.ranks[module] == 5
    assert made.exactness.startswith("merged by cat, cut by up to")
    assert made.coefficients == whole.coefficients and made.loss == whole.loss


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"examples": []}, "learns from examples, and there are none"),
        ({"adapters": []}, "any number of adapters, got 0"),
        ({"examples": [("word " * 600, "x")]}, "context of 512 tokens, and example 1 needs"),
        ({"rank": 2, "energy": 0.5}, "by its rank or by its energy"),
        (
            {"adapters": [Adapter("odd", {"model.odd": (torch.ones(1, 2), torch.ones(2, 1))})]},
            "does not have",
        ),
        (
            {"adapters": [Adapter("odd", {MODULES[0]: (torch.ones(1, 2), torch.ones(2, 1))})]},
            r"its delta \(2, 2",
        ),
        ({"adapters": [Adapter("odd", {"model.norm": (torch.ones(1, 2), torch.ones(2, 1))})]}, "RMSNorm"),
    ],
)
def test_what_does_not_fit_is_refused(base: Base, arguments: dict[str, Any], message: str) -> None:
    given = {
        "adapters": [random_adapter(base, "one", 2, 12)],
        "examples": EXAMPLES,
        "base": base,
        **arguments,
    }
    with pytest.raises(InputError, match=message):
        cat(**given)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", -1, "steps must be a whole number from 0"),
        ("rows", 0, "rows must be a whole number from 1"),
        ("seed", 1.0, "seed must be a whole number"),
        ("rate", math.nan, "rate must be a number from 0 to 1"),
        ("kl", -1.0, "kl must be a number from 0"),
    ],
)
def test_settings_out_of_range_are_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Learning(**{field: value})


def test_numbers_that_leave_all_bounds_are_told(base: Base) -> None:
    one = random_adapter(base, "one", 2, 13)
    huge = replace(one, factors={m: (a * 1e30, b * 1e30) for m, (a, b) in one.factors.items()})
    with pytest.raises(InputError, match=r"must stay finite, and do not with rate 0\.05 in torch\.float32"):
        cat([huge], EXAMPLES, base, learning=Learning(steps=2))


def test_coefficients_of_nothing_make_nothing(base: Base) -> None:
    one = random_adapter(base, "one", 2, 14)
    made = concatenated([one], dict.fromkeys(MODULES, (0.0,)), "nothing")
    assert all(not bool(made.delta(module).any()) for module in MODULES)


@pytest.fixture
def filled(store: Registry, base: Base, tmp_path: Path) -> Registry:
    for seed, name in enumerate(("one", "two"), 1):
        store.add(
            name,
            write_lora(tmp_path / name, base, seed=seed, r=1 + seed, strength=0.1),
            base=base.fingerprint,
        )
    return store


def test_what_was_learned_is_a_version_like_any_other(filled: Registry, base: Base) -> None:
    learning = Learning(steps=4, rate=0.05, seed=5)
    how: dict[str, Any] = {"base": base, "general": GENERAL, "learning": learning}
    made = add_cat(filled, "both", ["one@v1", "two@v1"], EXAMPLES, why="acme", tag=["learned"], **how)
    members = [filled.resolve("one@v1"), filled.resolve("two@v1")]
    assert (made.ref, made.exactness, made.rank, made.why) == ("both@v1", "exact", 5, "acme")
    assert made.base.weights == base.fingerprint.weights
    lineage = dict(made.lineage or {})
    assert lineage["method"] == "cat" and lineage["members"] == [m.digest for m in members]
    assert (lineage["seed"], lineage["steps"], lineage["rank"]) == (5, 4, None)
    run = filled.run_of(made)
    assert run is not None and lineage["examples"] == run["dataset"]["digest"] and run["dataset"]["rows"] == 4
    assert run["examples"] == [prompt for prompt, _ in EXAMPLES] and run["loss"][1] < run["loss"][0]
    assert filled.fsck() == []

    adapters = [read_adapter(member, store=filled) for member in members]  # type: ignore[arg-type]
    sums = {}
    for module, coefficients in run["coefficients"].items():
        assert all(c != 1.0 for c in coefficients)
        sums[module] = sum(c * a.delta(module) for c, a in zip(coefficients, adapters, strict=True))
    expected = dense_sum_logits(base, [(1.0, sums)], some_ids(base))
    model = compose("both@v1", store=filled, base=base)
    try:
        with torch.inference_mode():
            found = model.model(input_ids=some_ids(base)).logits.clone()
        with pytest.raises(InputError, match="carries a composed model"):
            cat(adapters, EXAMPLES, base)
    finally:
        model.detach()
    assert (found - expected).abs().max() < 1e-3 * expected.abs().max()
    assert add_cat(filled, "both", members, EXAMPLES, **how).ref == "both@v1"  # type: ignore[arg-type]


def test_members_that_cannot_be_learned_from_are_refused(filled: Registry, base: Base) -> None:
    filled.lock("variant", {"use": "one@v1"})
    with pytest.raises(InputError, match="members of cat are adapter versions, and variant@v1 is a lock"):
        add_cat(filled, "both", ["variant@v1"], EXAMPLES, base=base)
    with pytest.raises(InputError, match="at least one member"):
        add_cat(filled, "both", [], EXAMPLES, base=base)
    other = replace(base, fingerprint=replace(base.fingerprint, weights="sha256:" + "0" * 64))
    with pytest.raises(BaseMismatch, match="one@v1 was made for the base"):
        add_cat(filled, "both", ["one@v1"], EXAMPLES, base=other)
    filled.yank("two@v1", why="wrong")
    with pytest.raises(InputError, match="two@v1 was yanked"):
        add_cat(filled, "both", ["one@v1", "two@v1"], EXAMPLES, base=base)
    assert [row.name for row in filled.names()] == ["one", "two", "variant"]


def test_a_recipe_with_cat_says_how_to_do_it_instead() -> None:
    with pytest.raises(InputError, match="labelled examples") as caught:
        inlay.merge([], method="cat")
    assert "inlay.composer.add_cat" in (caught.value.fix or "")
