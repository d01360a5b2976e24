"""The bank against the naive dense sum; taken off, the base is bit-exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from composer_fakes import dense_sum_logits, some_ids, write_lora
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.composer.bank import Bank, BankLayer
from inlay.composer.factors import Adapter, read_adapter
from inlay.errors import InputError
from inlay.evals.inference import Base, Chat


def deltas(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {module: adapter.delta(module) for module in adapter.factors}


@given(
    ranks=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    weights=st.lists(st.floats(-2, 2, width=32), min_size=4, max_size=4),
    shape=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_stack_equals_the_dense_sum(
    ranks: list[int], weights: list[float], shape: tuple[int, int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    inner = torch.nn.Linear(*shape)
    model = torch.nn.Sequential(inner)
    adapters = [
        Adapter(
            f"a{i}",
            {
                "0": (
                    torch.randn(r, shape[0], generator=generator),
                    torch.randn(shape[1], r, generator=generator),
                )
            },
        )
        for i, r in enumerate(ranks)
    ]
    x = torch.randn(2, 3, shape[0], generator=generator)
    bank = Bank(model)
    bank.attach(adapters)
    bank.gate.set(torch.tensor(weights[: len(ranks)]))
    with torch.no_grad():
        found = model(x).double()
    dense = inner.weight.double() + sum(
        w * (a.factors["0"][1].double() @ a.factors["0"][0].double())
        for w, a in zip(weights, adapters, strict=False)
    )
    expected = (x.double() @ dense.T + inner.bias.double()).detach()
    assert (found - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))
    bank.detach()
    assert model[0] is inner


def test_stack_of_different_targets_and_ranks_on_the_model(base: Base, tmp_path: Path) -> None:
    one = read_adapter(write_lora(tmp_path / "one", base, seed=1, r=3))
    two = read_adapter(write_lora(tmp_path / "two", base, seed=2, r=8, target_modules=["v_proj", "up_proj"]))
    ids = some_ids(base)
    expected = dense_sum_logits(base, [(1.0, deltas(one)), (-0.6, deltas(two))], ids)
    bank = Bank(base.model)
    bank.attach([one, two])
    bank.gate.set(torch.tensor([1.0, -0.6]))
    with torch.inference_mode():
        found = base.model(input_ids=ids).logits
    bank.detach()
    assert (found - expected).abs().max() < 1e-4


def test_rows_of_one_batch_get_their_own_adapters(base: Base, tmp_path: Path) -> None:
    adapters = [read_adapter(write_lora(tmp_path / str(i), base, seed=i, r=2 + i)) for i in range(2)]
    ids = some_ids(base, rows=3)
    bank = Bank(base.model)
    bank.attach(adapters)
    with torch.inference_mode():
        bank.gate.set(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.5, 2.0]]))
        mixed = base.model(input_ids=ids).logits.clone()
        alone = []
        for row, gate in enumerate([[1.0, 0.0], None, [0.5, 2.0]]):
            bank.gate.set(torch.tensor(gate) if gate else None)
            alone.append(base.model(input_ids=ids[row : row + 1]).logits.clone())
    bank.detach()
    assert (mixed - torch.cat(alone)).abs().max() < 1e-5


def test_taken_off_a_thousand_times_the_base_is_the_same_bits(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)).bfloat16()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modules = list(model.children())
    adapter = Adapter(
        "a",
        {
            str(i): (torch.randn(2, 8, generator=generator), torch.randn(8, 2, generator=generator))
            for i in range(2)
        },
    )
    bank = Bank(model)
    for _ in range(1000):
        bank.attach([adapter])
        bank.gate.set(torch.ones(1))
        model(torch.ones(1, 1, 8, dtype=torch.bfloat16))
        bank.detach()
    assert list(model.children()) == modules
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_closed_gate_leaves_the_output_untouched_to_the_bit(base: Base, tmp_path: Path) -> None:
    ids = some_ids(base)
    with torch.inference_mode():
        expected = base.model(input_ids=ids).logits.clone()
        bank = Bank(base.model)
        bank.attach([read_adapter(write_lora(tmp_path / "a", base, seed=1))])
        bank.gate.set(torch.zeros(1))
        found = base.model(input_ids=ids).logits.clone()
    bank.detach()
    assert torch.equal(found, expected)


def test_beams_and_samples_repeat_the_rows_gate(base: Base, tmp_path: Path) -> None:
    adapters = [read_adapter(write_lora(tmp_path / str(i), base, seed=i, strength=0.1)) for i in range(2)]
    gates = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    prompts = ["Say something about the river", "Say something about the garden"]
    bank = Bank(base.model)
    bank.attach(adapters)
    try:
        with bank.gate.held_at(gates):
            together = Chat(base).generate(prompts, max_new_tokens=8, num_beams=3)
        alone = []
        for prompt, gate in zip(prompts, gates, strict=True):
            with bank.gate.held_at(gate):
                alone += Chat(base).generate([prompt], max_new_tokens=8, num_beams=3)
    finally:
        bank.detach()
    assert together == alone


def test_factor_that_does_not_fit_is_refused_before_anything_changes(base: Base) -> None:
    bank = Bank(base.model)
    wrong = Adapter("wrong", {"model.layers.0.self_attn.q_proj": (torch.ones(2, 3), torch.ones(5, 2))})
    with pytest.raises(InputError, match=r"wrong: model\.layers\.0\.self_attn\.q_proj maps"):
        bank.attach([wrong])
    missing = Adapter("missing", {"model.layers.99.mlp.up_proj": (torch.ones(2, 3), torch.ones(5, 2))})
    with pytest.raises(InputError, match="which the base does not have"):
        bank.attach([missing])
    norm = Adapter("norm", {"model.norm": (torch.ones(2, 3), torch.ones(5, 2))})
    with pytest.raises(InputError, match="only linear layers and plain"):
        bank.attach([norm])
    assert not any(isinstance(m, BankLayer) for m in base.model.modules())


def test_one_base_carries_one_bank(base: Base, tmp_path: Path) -> None:
    adapter = read_adapter(write_lora(tmp_path / "a", base, seed=1))
    bank = Bank(base.model)
    bank.attach([adapter])
    try:
        with pytest.raises(InputError, match="carries another composed model"):
            Bank(base.model).attach([adapter])
    finally:
        bank.detach()


@pytest.mark.cuda
def test_bank_equals_the_dense_sum_on_cuda() -> None:
    generator = torch.Generator().manual_seed(0)
    inner = torch.nn.Linear(64, 48).cuda()
    model = torch.nn.Sequential(inner)
    adapters = [
        Adapter(
            str(i), {"0": (torch.randn(4, 64, generator=generator), torch.randn(48, 4, generator=generator))}
        )
        for i in range(3)
    ]
    bank = Bank(model)
    bank.attach(adapters)
    bank.gate.set(torch.tensor([1.0, -0.5, 2.0], device="cuda"))
    x = torch.randn(2, 3, 64, generator=generator).cuda()
    dense = inner.weight + sum(
        w * a.delta("0").cuda() for w, a in zip([1.0, -0.5, 2.0], adapters, strict=True)
    )
    assert torch.allclose(model(x), x @ dense.T + inner.bias, atol=1e-3)
