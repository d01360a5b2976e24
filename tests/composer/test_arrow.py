"""Arrow's prototypes against the dense decomposition; a model routed by them against itself, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from composer_fakes import some_ids, write_lora

from inlay.composer.bank import Bank
from inlay.composer.factors import Adapter, read_adapter
from inlay.composer.routers.arrow import Arrow
from inlay.composer.token_routes import TokenRoute
from inlay.errors import InputError
from inlay.evals.inference import Base, Chat, pad


def random_adapter(name: str, ranks: dict[str, int], seed: int, shape: tuple[int, int] = (40, 30)) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    return Adapter(
        name,
        {
            module: (
                torch.randn(rank, shape[1], generator=generator),
                torch.randn(shape[0], rank, generator=generator),
            )
            for module, rank in ranks.items()
        },
    )


def strongest(delta: torch.Tensor) -> torch.Tensor:
    """The naive oracle: the dense decomposition."""
    return torch.linalg.svd(delta.double(), full_matrices=False)[2][0]


def cosine(found: torch.Tensor, expected: torch.Tensor) -> float:
    return abs(float(found.double() @ expected))


def test_prototypes_are_the_strongest_directions_of_the_dense_deltas() -> None:
    """Unequal ranks and modules, sums of adapters with signs, a rank beyond the module's size."""
    one = random_adapter("one", {"m": 3, "n": 5}, 1)
    two = random_adapter("two", {"m": 50}, 2)
    three = random_adapter("three", {"m": 1, "o": 2}, 3)
    found = Arrow.prototypes([[(one, 1.0)], [(two, 0.3), (one, -2.0)], [(three, 1.0), (two, 0.0)]])
    assert sorted(found) == ["m", "n", "o"]
    expected = {
        "m": [one.delta("m"), 0.3 * two.delta("m") - 2 * one.delta("m"), three.delta("m")],
        "n": [one.delta("n"), -2 * one.delta("n"), None],
        "o": [None, None, three.delta("o")],
    }
    for module, deltas in expected.items():
        assert found[module].shape == (3, 30) and found[module].dtype == torch.float32
        for row, delta in zip(found[module], deltas, strict=True):
            if delta is None:
                assert not row.any()
            else:
                assert cosine(row, strongest(delta)) > 1 - 1e-6
                assert abs(float(row.norm()) - 1) < 1e-6 and row[row.abs().argmax()] > 0


def test_a_flat_spectrum_where_power_iteration_has_not_arrived() -> None:
    """Singular values within a few percent of each other, as a trained adapter's may be."""
    generator = torch.Generator().manual_seed(0)
    outer, inner = (torch.linalg.qr(torch.randn(200, 16, generator=generator).double())[0] for _ in range(2))
    values = torch.linspace(1.0, 0.9, 16, dtype=torch.float64)
    # Turned by any rotation between them, the factors are no singular vectors themselves.
    turn = torch.linalg.qr(torch.randn(16, 16, generator=generator).double())[0]
    adapter = Adapter("flat", {"m": ((turn @ inner.T).float(), (outer * values @ turn.T).float())})
    (row,) = Arrow.prototypes([[(adapter, 1.0)]])["m"]
    assert cosine(row, inner[:, 0]) > 1 - 1e-6
    delta = adapter.delta("m").double()
    power = torch.randn(200, generator=generator).double()
    for _ in range(15):
        power = delta.T @ (delta @ power)
        power = power / power.norm()
    assert cosine(power, inner[:, 0]) < 0.95


def test_the_same_bytes_again_and_no_prototype_of_nothing() -> None:
    one = random_adapter("one", {"m": 4}, 1)
    zero = Adapter("zero", {"m": (torch.randn(2, 30), torch.zeros(40, 2))})
    experts = [[(one, 1.0)], [(zero, 1.0)], [(one, 1.0), (one, -1.0)], []]
    first, second = (Arrow.prototypes(experts)["m"] for _ in range(2))
    assert first.numpy().tobytes() == second.numpy().tobytes()
    assert first.any(1).tolist() == [True, False, False, False]
    assert Arrow.prototypes([[], []]) == {}


def test_an_adapter_of_an_embedding_is_refused() -> None:
    looked_up = Adapter("words", {"e": (torch.ones(1, 9), torch.ones(4, 1))}, embeddings=frozenset({"e"}))
    with pytest.raises(InputError, match="words adapts e, which looks up ids"):
        Arrow.prototypes([[(looked_up, 1.0)]])


RANKS = (2, 4, 3)
TARGETS = (["q_proj", "down_proj"], ["q_proj", "v_proj", "up_proj"], ["q_proj", "o_proj", "down_proj"])
PATHS = [None, "dense", "gathered", "segmented"]

STYLE = torch.tensor([0.0, 0.0, 0.0, 0.5])
"""What stands still beside the route."""


@pytest.fixture
def adapters(base: Base, tmp_path: Path) -> list[Adapter]:
    """Three experts of unequal ranks and modules, and a style."""
    made = [
        write_lora(tmp_path / f"e{i}", base, seed=i, r=r, target_modules=targets, strength=0.2)
        for i, (r, targets) in enumerate(zip(RANKS, TARGETS, strict=True))
    ]
    return [read_adapter(folder) for folder in [*made, write_lora(tmp_path / "style", base, seed=9)]]


@pytest.fixture
def bank(base: Base, adapters: list[Adapter]) -> Iterator[Bank]:
    bank = Bank(base.model)
    bank.attach(adapters)
    yield bank
    bank.detach()


@pytest.fixture
def route(adapters: list[Adapter]) -> TokenRoute:
    prototypes = Arrow.prototypes([[(adapter, 1.0)] for adapter in adapters[:3]])
    return TokenRoute(prototypes, (0, 1, 2), (0, 1, 2), torch.ones(3))


def naive_logits(
    base: Base, experts: list[Adapter], route: TokenRoute, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Token by token in float64, added to what the bare base's modules answer; weights (rows, experts)."""
    held: dict[str, dict[int, tuple[torch.Tensor, torch.Tensor]]] = {}
    for e, adapter in enumerate(experts):
        for module in adapter.factors:
            delta = adapter.delta(module).double()
            held.setdefault(module, {})[e] = (delta, strongest(delta))

    def add(module: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        found = y.double()
        for i, row in enumerate(x.double()):
            there = {e: pair for e, pair in held[module].items() if float(weights[i, e])}
            for t, token in enumerate(row):
                scores = {e: cosine(token, v) for e, (_, v) in there.items()}
                best = sorted(scores, key=lambda e: -scores[e])[: route.top_k]
                top = torch.tensor([scores[e] for e in best], dtype=torch.float64)
                for e, share in zip(best, torch.softmax(top / route.temperature, 0), strict=True):
                    found[i, t] += share * weights[i, e] * (there[e][0] @ token)
        return found.to(y.dtype)

    handles = [
        base.model.get_submodule(module).register_forward_hook(
            lambda _, args, y, module=module: add(module, args[0], y)
        )
        for module in held
    ]
    with torch.inference_mode():
        logits = base.model(input_ids=ids).logits.clone()
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize(("top_k", "temperature"), [(1, 1.0), (2, 0.3), (3, 1.0)])
def test_a_model_routed_by_arrow_equals_the_naive_loop(
    base: Base, adapters: list[Adapter], route: TokenRoute, top_k: int, temperature: float
) -> None:
    weights = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.5, 1.0], [0.0, 0.0, 0.0]])
    chosen = replace(route, weights=weights, top_k=top_k, temperature=temperature)
    ids = some_ids(base)
    expected = naive_logits(base, adapters[:3], chosen, ids, weights)
    with torch.inference_mode():
        bare = base.model(input_ids=ids).logits.clone()
    bank = Bank(base.model)
    bank.attach(adapters)
    found = {}
    try:
        for bank.gate.path in PATHS:
            with bank.gate.held_at(None, [chosen]), torch.inference_mode():
                found[bank.gate.path] = base.model(input_ids=ids).logits
    finally:
        bank.detach()
    for logits in found.values():
        assert (logits - expected).abs().max() < 1e-4
        assert torch.equal(logits[2], bare[2]) and (logits[0] - bare[0]).abs().max() > 1e-2


@pytest.mark.parametrize("top_k", [1, 2])
def test_with_the_same_prototypes_it_answers_as_pefts_arrow(base: Base, tmp_path: Path, top_k: int) -> None:
    """PEFT wants equal ranks and modules, and finds prototypes of its own by power iteration."""
    from peft import ArrowConfig, create_arrow_model

    folders = [
        str(write_lora(tmp_path / str(i), base, seed=i, lora_alpha=4 + i, strength=0.3)) for i in range(4)
    ]
    experts = [read_adapter(Path(folder)) for folder in folders]
    prototypes = Arrow.prototypes([[(adapter, 1.0)] for adapter in experts])
    ids = some_ids(base)
    config = ArrowConfig(top_k=top_k, router_temperature=0.7, rng_seed=0)
    peft_model = create_arrow_model(
        base_model=base.model, task_specific_adapter_paths=folders, arrow_config=config
    )
    peft_model.eval()
    with torch.inference_mode():
        peft_model(input_ids=ids)  # the first forward makes the prototypes that are replaced
        for module, rows in prototypes.items():
            peft_model.base_model.model.get_submodule(module).lora_arrow["arrow_router"].prototypes = rows
        expected = peft_model(input_ids=ids).logits.clone()
    peft_model.unload()
    base.model.eval()
    bank = Bank(base.model)
    bank.attach(experts)
    each = tuple(range(4))
    route = TokenRoute(prototypes, each, each, torch.ones(4), top_k=top_k, temperature=0.7)
    with torch.inference_mode():
        bare = base.model(input_ids=ids).logits.clone()
        with bank.gate.held_at(None, [route]):
            found = base.model(input_ids=ids).logits.clone()
    bank.detach()
    assert (found - expected).abs().max() < 1e-4 < 1 < (found - bare).abs().max()


@pytest.mark.parametrize("path", PATHS)
def test_decoding_with_the_cache_equals_the_full_forward(
    base: Base, bank: Bank, route: TokenRoute, path: str | None
) -> None:
    ids = some_ids(base, rows=3, length=10)
    bank.gate.path = path
    weights = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.5]])
    for given in (weights[0], weights):
        with bank.gate.held_at(STYLE, [replace(route, weights=given)]), torch.inference_mode():
            whole = base.model(input_ids=ids).logits
            out = base.model(input_ids=ids[:, :4], use_cache=True)
            steps = [out.logits]
            for t in range(4, 10):
                out = base.model(input_ids=ids[:, t : t + 1], past_key_values=out.past_key_values)
                steps.append(out.logits)
        assert (torch.cat(steps, 1) - whole).abs().max() < 1e-4


@pytest.mark.parametrize("path", PATHS)
def test_rows_padded_on_the_left_answer_as_alone(
    base: Base, bank: Bank, route: TokenRoute, path: str | None
) -> None:
    rows = [some_ids(base, rows=1, length=n, seed=n)[0].tolist() for n in (9, 5, 7)]
    weights = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.5, 1.0]])
    ids, mask = pad(rows, 0, side="left", device="cpu")
    places = (mask.cumsum(1) - 1).clamp_min(0)
    bank.gate.path = path
    with torch.inference_mode():
        with bank.gate.held_at(STYLE, [replace(route, weights=weights)]), bank.gate.observed() as seen:
            seen.mask = mask
            together = base.model(input_ids=ids, attention_mask=mask, position_ids=places).logits
        for i, row in enumerate(rows):
            with bank.gate.held_at(STYLE, [replace(route, weights=weights[i])]), bank.gate.observed() as one:
                alone = base.model(input_ids=torch.tensor([row])).logits[0]
            assert (together[i, -len(row) :] - alone).abs().max() < 1e-4
            assert torch.allclose(seen.shares(0)[i], one.shares(0)[0], atol=1e-5)
    shares = seen.shares(0)
    assert torch.allclose(shares.sum(1), torch.ones(3)) and not shares[1, 0] and not shares[2, 0]
    assert shares[0].min() > 0.05, "every expert has its tokens"


PROMPTS = ["Say something about the river", "Which number is larger, 14 or 52?", "Stop", "Why"]
"""The longest first: the order in which a batch is made of them."""


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("decoding", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_a_mixed_batch_generates_what_each_row_does_alone(
    base: Base, bank: Bank, route: TokenRoute, path: str | None, decoding: dict[str, int]
) -> None:
    weights = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.5, 0.0]])
    still = torch.stack([STYLE, STYLE, STYLE * 0, STYLE * 0])
    bank.gate.path = path
    with bank.gate.held_at(still, [replace(route, weights=weights)]):
        together = Chat(base).generate(PROMPTS, max_new_tokens=6, **decoding)
    alone = []
    for prompt, row, style in zip(PROMPTS, weights, still, strict=True):
        with bank.gate.held_at(style, [replace(route, weights=row)]):
            alone += Chat(base).generate([prompt], max_new_tokens=6, **decoding)
    bare = Chat(base).generate(PROMPTS, max_new_tokens=6, **decoding)
    assert together == alone
    assert together[2] == bare[2] and together != bare
