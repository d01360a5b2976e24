"""Token routes: each path against a naive loop over tokens and experts; what is not chosen is not touched."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from inlay.composer.bank import Bank
from inlay.composer.costs import CPU, CUDA, Costs, TokenShape, choose, estimate_tokens
from inlay.composer.factors import Adapter
from inlay.composer.token_paths import TOKEN_PATHS, Routed
from inlay.composer.token_routes import TokenRoute
from inlay.errors import InputError

PATHS = list(TOKEN_PATHS)
SIZES = {"p": (10, 7), "q": (6, 9)}
"""in and out of two linear layers; an adapter may leave either alone."""


def layers(dtype: torch.dtype = torch.float64) -> torch.nn.ModuleDict:
    torch.manual_seed(0)
    return (
        torch.nn.ModuleDict({m: torch.nn.Linear(*s) for m, s in SIZES.items()})
        .to(dtype)
        .requires_grad_(False)
    )


def adapters_of(ranks: Sequence[Mapping[str, int]], seed: int = 0) -> list[Adapter]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Adapter(
            f"a{i}",
            {
                m: (
                    torch.randn(r, SIZES[m][0], generator=generator),
                    torch.randn(SIZES[m][1], r, generator=generator),
                )
                for m, r in held.items()
                if r
            },
        )
        for i, held in enumerate(ranks)
    ]


def route_of(
    adapters: Sequence[Adapter],
    leaves: Sequence[tuple[int, int]],
    weights: torch.Tensor,
    seed: int = 0,
    **settings: Any,
) -> TokenRoute:
    """`leaves`: (slot, expert); random unit prototypes where an expert has a leaf with factors."""
    generator = torch.Generator().manual_seed(seed)
    experts = max(expert for _, expert in leaves) + 1
    prototypes = {}
    for m, (features, _) in SIZES.items():
        rows = torch.nn.functional.normalize(torch.randn(experts, features, generator=generator))
        there = {expert for slot, expert in leaves if m in adapters[slot].factors}
        prototypes[m] = torch.stack([row * (e in there) for e, row in enumerate(rows)])
    return TokenRoute(
        prototypes, tuple(s for s, _ in leaves), tuple(e for _, e in leaves), weights, **settings
    )


def naive_shares(x: torch.Tensor, route: TokenRoute, module: str) -> torch.Tensor:
    """(rows, length, experts), float64, token by token."""
    prototypes = route.prototypes[module].double()
    shares = torch.zeros(*x.shape[:2], len(prototypes), dtype=torch.float64)
    for i, row in enumerate(x.double()):
        given = route.weights if route.weights.ndim == 1 else route.weights[i]
        free = {e for e, w in zip(route.experts, given, strict=True) if w} & {
            e for e, v in enumerate(prototypes) if v.any()
        }
        for t, token in enumerate(row):
            scores = {e: abs(float(token @ prototypes[e])) for e in free}
            best = sorted(free, key=lambda e: -scores[e])[: route.top_k]
            if best:
                top = torch.tensor([scores[e] for e in best], dtype=torch.float64) / route.temperature
                shares[i, t, best] = torch.softmax(top, 0)
    return shares


def naive(
    model: torch.nn.ModuleDict,
    module: str,
    x: torch.Tensor,
    adapters: Sequence[Adapter],
    routes: Sequence[TokenRoute],
    still: torch.Tensor | None = None,
) -> torch.Tensor:
    """Token by token, leaf by leaf, in float64; `still` (rows, slots)."""
    layer = model[module]
    inner = getattr(layer, "inner", layer)
    y = x.double() @ inner.weight.double().T + inner.bias.double()
    for slot, adapter in enumerate(adapters):
        if module not in adapter.factors:
            continue
        a, b = (factor.double() for factor in adapter.factors[module])
        for i in range(len(x)):
            if still is not None:
                y[i] += float(still[i, slot]) * (x[i].double() @ a.T @ b.T)
            for route in routes:
                shares = naive_shares(x, route, module)
                for leaf, (held, expert) in enumerate(zip(route.slots, route.experts, strict=True)):
                    if held == slot:
                        w = float(route.weights[leaf] if route.weights.ndim == 1 else route.weights[i, leaf])
                        y[i] += shares[i, :, expert, None] * w * (x[i].double() @ a.T @ b.T)
    return y


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max().clamp_min(1.0))


@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_each_path_equals_the_naive_loop(data: st.DataObject) -> None:
    """Unequal ranks and targets, slots in several experts, rows that may not use some or any, two routes,
    with and without static slots beside them."""
    draw = data.draw
    rank = st.integers(0, 4)
    ranks = draw(st.lists(st.fixed_dictionaries({"p": rank, "q": rank}), min_size=1, max_size=5))
    seed = draw(st.integers(0, 10_000))
    generator = torch.Generator().manual_seed(seed)
    rows, length = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    adapters = adapters_of(ranks, seed)

    def random(*shape: int) -> torch.Tensor:
        kept = torch.rand(shape, generator=generator) < 0.6
        return torch.randn(shape, generator=generator).round(decimals=1) * kept

    routes = []
    for number in range(draw(st.integers(1, 2))):
        leaves = draw(
            st.lists(st.tuples(st.integers(0, len(ranks) - 1), st.integers(0, 3)), min_size=1, max_size=6)
        )
        weights = random(len(leaves)) if draw(st.booleans()) else random(rows, len(leaves))
        top_k, temperature = draw(st.integers(1, 5)), draw(st.sampled_from([0.1, 1.0, 3.0]))
        routes.append(
            route_of(adapters, leaves, weights, seed + number, top_k=top_k, temperature=temperature)
        )
    still = draw(st.sampled_from([None, random(len(ranks)), random(rows, len(ranks))]))
    model = layers()
    bank = Bank(model)
    bank.attach(adapters)
    bank.gate.path = draw(st.sampled_from([None, *PATHS]))
    bank.gate.set(still, routes)
    spread = None if still is None else still.expand(rows, -1)
    for module in bank.layers:
        x = torch.randn(rows, length, SIZES[module][0], generator=generator, dtype=torch.float64)
        expected = naive(model, module, x, adapters, routes, spread)
        assert off(model[module](x), expected) < 1e-6, "weights are summed in float32, all else in float64"
        alone = [i for i in range(rows) if all(not naive_shares(x, r, module)[i].any() for r in routes)]
        bare = bank.layers[module].inner(x)
        if still is None:
            assert torch.equal(model[module](x)[alone], bare[alone]), "no expert: the base's to the bit"


FOUR = adapters_of([{"p": 3, "q": 2}, {"p": 5}, {"p": 1, "q": 4}, {"p": 4, "q": 4}])
LEAVES = [(0, 0), (1, 1), (2, 2), (3, 2)]
"""Three experts, the last a stack of two."""


def opened(dtype: torch.dtype = torch.float64, path: str | None = None) -> tuple[torch.nn.ModuleDict, Bank]:
    model = layers(dtype)
    bank = Bank(model)
    bank.attach(FOUR)
    bank.gate.path = path
    return model, bank


def some_x(module: str = "p", rows: int = 3, length: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, length, SIZES[module][0], generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)], ids=str
)
def test_precisions(path: str, dtype: torch.dtype, tolerance: float) -> None:
    """Scores are in float32 at least, so that all paths choose alike in half precision."""
    model, bank = opened(dtype, path)
    weights = torch.tensor([[1.0, 1.0, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.7, 0.0, 1.0]])
    route = route_of(FOUR, LEAVES, weights, temperature=0.5)
    bank.gate.set(torch.tensor([0.5]), [route])
    x = some_x().to(dtype)
    expected = naive(model, "p", x, FOUR, [route], torch.tensor([[0.5, 0, 0, 0]] * 3))
    assert off(model["p"](x), expected) < tolerance
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert off(model["p"](x), expected) < 3e-2


@pytest.mark.parametrize("path", ["gathered", "segmented"])
@pytest.mark.parametrize("per_row", [False, True])
def test_an_expert_that_no_token_chose_is_not_touched(path: str, per_row: bool) -> None:
    """Its factors become NaN in the bank's buffers, and the output stays what it was, to the bit."""
    model, bank = opened(path=path)
    weights = torch.ones(4)
    if per_row:
        # One row has a single expert, so that it has fewer than top_k; one has none.
        weights = torch.tensor([[1.0, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]])
    route = route_of(FOUR, LEAVES, weights)
    # The first expert lies across what all tokens are made of, and so is nobody's choice.
    basis = torch.linalg.qr(
        torch.randn(10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    )[0]
    route.prototypes["p"][:] = basis[:3].float()  # type: ignore[index]
    x = some_x()
    x = x - (x @ basis[0])[..., None] * basis[0]
    bank.gate.set(None, [route])
    before = model["p"](x)
    assert off(before, naive(model, "p", x, FOUR, [route])) < 1e-9
    layer = bank.layers["p"]
    start, rank = layer.spans[0]
    layer.down[start : start + rank] = torch.nan
    layer.up[start : start + rank] = torch.nan
    assert torch.equal(model["p"](x), before) and bool(before.isfinite().all())
    assert not torch.equal(before[0], layer.inner(x)[0])


def product_flops(_y: Any, a: torch.Size, b: torch.Size, **_: Any) -> int:
    return 2 * a.numel() * b[-1]


IN_PLACE = {torch.ops.aten.addmm_: product_flops, torch.ops.aten.baddbmm_: product_flops}
"""What torch's counter does not know."""


def test_multiply_adds_grow_with_top_k_and_not_with_the_experts() -> None:
    """Counted by torch: beside the scores, only the dense path pays for who was not chosen."""
    tokens, features, rank = 6, 32, 4
    generator = torch.Generator().manual_seed(0)

    def multiply_adds(experts: int, top_k: int, path: str) -> int:
        model = torch.nn.Sequential(torch.nn.Linear(features, features, bias=False))
        bank = Bank(model)
        a, b = torch.randn(rank, features, generator=generator), torch.randn(features, rank)
        bank.attach([Adapter(f"a{i}", {"0": (a, b)}) for i in range(experts)])
        prototypes = {"0": torch.randn(experts, features, generator=generator)}
        each = tuple(range(experts))
        route = TokenRoute(prototypes, each, each, torch.ones(experts), top_k)
        bank.gate.path = path
        x = torch.randn(2, tokens // 2, features, generator=generator)
        counter = FlopCounterMode(display=False, custom_mapping=IN_PLACE)
        bank.gate.set(None, [route])
        with torch.inference_mode(), counter:
            model(x)
        return counter.get_total_flops() // 2 - tokens * features * features - tokens * experts * features

    one = tokens * rank * 2 * features
    for experts in (4, 64):
        for top_k in (1, 2, 4):
            for path in ("gathered", "segmented"):
                assert multiply_adds(experts, top_k, path) == top_k * one
            assert multiply_adds(experts, top_k, "dense") == experts * one + tokens * experts * experts * rank


@pytest.mark.parametrize("costs", [CPU, CUDA], ids=["CPU", "CUDA"])
def test_what_is_chosen(costs: Costs) -> None:
    def shape(tokens: int, experts: int, chosen: int = 2, rank: int = 16) -> TokenShape:
        return TokenShape(tokens, 8192, experts * rank, (rank,) * experts, chosen)

    assert choose(shape(1, 2), costs) == "dense", "with few experts the calls are what costs"
    assert choose(shape(4, 512, rank=8), costs) == "gathered", "a step of decoding reads only its own"
    assert choose(shape(16384, 64), costs) == "segmented", "in a long prefill each expert has many tokens"
    for path in ("gathered", "segmented"):
        seconds = [estimate_tokens(shape(2048, 64, chosen), costs)[path] for chosen in (1, 2, 8)]
        assert seconds == sorted(set(seconds)), "more to do for each expert that a token takes"


def test_the_cheapest_path_is_taken() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(256, 256))
    bank = Bank(model)
    bank.attach([Adapter(f"a{i}", {"0": (torch.randn(8, 256), torch.randn(256, 8))}) for i in range(64)])
    route = TokenRoute({"0": torch.randn(64, 256)}, tuple(range(64)), tuple(range(64)), torch.ones(64))
    bank.gate.set(None, [route])
    for length in (1, 4, 512):
        x = torch.randn(1, length, 256)
        model(x)
        prepared = bank.layers["0"]._prepared
        assert prepared is not None and isinstance(prepared[2], Routed)
        expected = choose(TokenShape(length, 512, 512, (8,) * 64, 2), CPU)
        assert isinstance(prepared[2].tokens[0].path, TOKEN_PATHS[expected])


@pytest.mark.parametrize("path", PATHS)
def test_flattened_inputs_where_rows_agree(path: str) -> None:
    model, bank = opened(path=path)
    x = some_x()
    route = route_of(FOUR, LEAVES, torch.tensor([[1.0, 0.5, 1.0, 0.0]] * 3))
    expected = naive(model, "p", x, FOUR, [route])
    bank.gate.set(None, [route])
    assert off(model["p"](x.flatten(0, 1)), expected.flatten(0, 1)) < 1e-9
    assert model["p"](x[0, :0]).shape == (0, 7), "a layer that no token was dispatched to"
    differing = dataclasses.replace(route, weights=torch.tensor([[1.0, 0.5, 1.0, 0.0], [1, 1, 1, 1]]))
    bank.gate.set(None, [differing])
    with pytest.raises(InputError, match=r"needs inputs \(rows, length, in\)"):
        model["p"](x.flatten(0, 1))
    with pytest.raises(InputError, match="each of 2 prompts"):
        model["p"](x)


@pytest.mark.parametrize("path", PATHS)
def test_repeated_rows_and_moved_columns(path: str) -> None:
    """Beams repeat rows in place; loading and unloading moves columns while the route speaks."""
    model, bank = opened(path=path)
    route = route_of(FOUR, [(1, 0), (3, 1)], torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    x = some_x(rows=4)
    repeated = dataclasses.replace(route, weights=route.weights.repeat_interleave(2, 0))
    expected = naive(model, "p", x, FOUR, [repeated])
    bank.gate.set(None, [route])
    assert off(model["p"](x), expected) < 1e-9
    bank.unload(0)
    (large,) = adapters_of([{"p": 30}], seed=9)
    bank.load(large)
    assert off(model["p"](x), expected) < 1e-9


def test_what_a_gate_refuses() -> None:
    model, bank = opened()
    route = route_of(FOUR, LEAVES, torch.ones(4))

    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(InputError, match=match):
            bank.gate.set(None, [dataclasses.replace(route, **changes)])

    refused("top_k must be a whole number of at least 1, and is 0", top_k=0)
    refused("top_k must be a whole number of at least 1, and is 1.5", top_k=1.5)
    refused("temperature must be finite and above 0, and is 0.0", temperature=0.0)
    refused("temperature must be finite and above 0, and is nan", temperature=float("nan"))
    refused("must be finite", weights=torch.tensor([1.0, float("inf"), 1.0, 1.0]))
    refused("a slot, an expert and a weight", weights=torch.ones(3))
    refused("a slot, an expert and a weight", weights=torch.ones(1, 1, 4))
    refused("slot 9 holds none", slots=(0, 1, 2, 9))
    refused("a row for each of the 4 experts in every module", experts=(0, 1, 2, 3))
    refused("in every module", prototypes={"p": torch.ones(3, 10), "q": torch.ones(4, 6)})
    refused("numbered from 0, and one is -1", experts=(-1, 0, 1, 2))
    refused("prototypes must be finite", prototypes={"p": torch.full((3, 10), torch.nan)})
    bank.gate.set(None, [dataclasses.replace(route, prototypes={"p": torch.ones(3, 4)})])
    with pytest.raises(InputError, match="those of p are 4 wide, its inputs 10"):
        model["p"](some_x())
    with pytest.raises(InputError, match="same for all rows and tokens can be folded"):
        bank.fold()
    bank.gate.set(torch.ones(1), [route])
    with pytest.raises(InputError, match="same for all rows and tokens can be folded"):
        bank.fold()


def test_leaves_speak_and_are_not_unloaded() -> None:
    _, bank = opened()
    route = route_of(FOUR, LEAVES, torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 2.0]]))
    with bank.gate.held_at(None, [route]):
        assert [bank.gate.uses(slot) for slot in range(4)] == [False, False, True, True]
        with pytest.raises(InputError, match="a3 speaks"):
            bank.unload(3)
        bank.unload(0)
    bank.unload(3)
    with pytest.raises(InputError, match="slot 3 holds none"):
        bank.gate.set(None, [route])


def test_closed_it_is_the_base_to_the_bit() -> None:
    model, bank = opened()
    x = some_x()
    bare = bank.layers["p"].inner(x)
    bank.gate.set(None, [route_of(FOUR, LEAVES, torch.zeros(3, 4))])
    assert bank.gate.state.closed and torch.equal(model["p"](x), bare)
    bank.gate.set(None, [route_of(FOUR, LEAVES, torch.ones(4))])
    with bank.gate.held_at(None):
        assert torch.equal(model["p"](x), bare)
    assert not torch.equal(model["p"](x), bare)
    bank.gate.set(None, [TokenRoute({}, (0,), (0,), torch.ones(1))])
    assert torch.equal(model["p"](x), bare), "without prototypes there is nothing to choose"


def test_an_embedding_has_no_vectors_to_route_by() -> None:
    model = torch.nn.ModuleDict({"e": torch.nn.Embedding(12, 4), "f": torch.nn.Linear(4, 4)})
    bank = Bank(model)
    bank.attach([Adapter("a", {"e": (torch.ones(2, 12), torch.ones(4, 2))}, embeddings=frozenset({"e"}))])
    bank.gate.set(None, [TokenRoute({"f": torch.ones(1, 4)}, (0,), (0,), torch.ones(1))])
    with pytest.raises(InputError, match="vectors that a module reads, and e looks up ids"):
        model["e"](torch.tensor([[1, 2]]))


def test_gradients_reach_the_input_on_every_path() -> None:
    found = []
    for path in PATHS:
        model, bank = opened(path=path)
        bank.gate.set(
            None, [route_of(FOUR, LEAVES, torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0], [0, 1, 1, 0]]))]
        )
        x = some_x().requires_grad_()
        model["p"](x).pow(2).sum().backward()
        assert x.grad is not None
        found.append(x.grad)
    assert off(found[0], found[1]) < 1e-9 and off(found[0], found[2]) < 1e-9


def test_observed_shares_are_the_mean_over_layers_and_tokens() -> None:
    model, bank = opened()
    weights = torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 1, 1]])
    routes = [route_of(FOUR, LEAVES, weights, seed) for seed in (0, 1)]
    xs = {m: some_x(m) for m in SIZES}
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
    bank.gate.set(None, routes)
    with bank.gate.observed() as padded, bank.gate.observed() as seen:
        padded.mask = mask
        for m, x in xs.items():
            model[m](x)
    with bank.gate.observed() as later:
        later.mask = mask
        model["p"](xs["p"][:, :1])
    assert later.shares(0) is None, "a step of decoding has not the mask's shape"
    for number, route in enumerate(routes):
        each = torch.stack([naive_shares(xs[m], route, m) for m in SIZES])
        expected = each.sum((0, 2)) / 10
        found = seen.shares(number)
        assert found is not None and found.dtype == torch.float32
        assert torch.allclose(found, expected.float(), atol=1e-6) and not found[1].any()
        masked = (each * mask[..., None]).sum((0, 2)) / (2 * mask.sum(1, keepdim=True))
        found = padded.shares(number)
        assert found is not None and torch.allclose(found, masked.float(), atol=1e-6)
    with bank.gate.observed() as seen:
        model["p"](xs["p"])
        bank.gate.set(None, [dataclasses.replace(routes[0], weights=torch.ones(4))])
        model["p"](xs["p"][0])
        with pytest.raises(InputError, match="after 3 rows came 2"):
            model["p"](xs["p"][:2])
    assert not bank.gate._observers


@pytest.mark.cuda
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_each_path_on_cuda(path: str, dtype: torch.dtype) -> None:
    model = layers(dtype)
    expected_on = copy.deepcopy(model)
    bank = Bank(model.cuda())
    bank.attach(FOUR)
    bank.gate.path = path
    weights = torch.tensor([[1.0, 1.0, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.7, 0.0, 1.0]])
    route = route_of(FOUR, LEAVES, weights)
    x = some_x().to(dtype)
    bank.gate.set(None, [route])
    with torch.inference_mode():
        found, bare = model["p"](x.cuda()), bank.layers["p"].inner(x.cuda())
    assert off(found.cpu(), naive(expected_on, "p", x, FOUR, [route])) < 3e-2
    assert torch.equal(found[1], bare[1])
