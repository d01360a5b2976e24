"""The bank against the naive dense sum; taken off, the base is bit-exact."""

from __future__ import annotations

import copy
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


def two_layers(features: int = 6) -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(features, features), torch.nn.Linear(features, features))


def random_adapter(name: str, ranks: dict[str, int], seed: int, features: int = 6) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    return Adapter(
        name,
        {
            module: (
                torch.randn(rank, features, generator=generator),
                torch.randn(features, rank, generator=generator),
            )
            for module, rank in ranks.items()
        },
    )


def dense_sum(
    model: torch.nn.Sequential, weighted: list[tuple[float, Adapter]], x: torch.Tensor
) -> torch.Tensor:
    """The naive oracle of `two_layers`, in float64."""
    for i, layer in enumerate(model):
        inner = layer.inner if isinstance(layer, BankLayer) else layer
        weight = inner.weight.detach().double()
        for w, adapter in weighted:
            if str(i) in adapter.factors:
                weight = weight + w * adapter.delta(str(i)).double()
        x = x.double() @ weight.T + inner.bias.detach().double()
    return x


@given(
    steps=st.lists(
        st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 5), st.integers(0, 99)), max_size=25
    )
)
@settings(max_examples=40, deadline=None)
def test_whatever_is_loaded_and_unloaded_the_rest_answers_as_before(
    steps: list[tuple[bool, int, int, int]],
) -> None:
    model, x = two_layers(), torch.ones(2, 1, 6)
    bank = Bank(model)
    held: dict[int, Adapter] = {}
    most, total = {"0": 0, "1": 0}, {"0": 0, "1": 0}
    for load, first, second, seed in steps:
        if load:
            ranks = {m: r for m, r in (("0", first), ("1", second)) if r}
            adapter = random_adapter(f"a{seed}", ranks, seed)
            slot = bank.load(adapter)
            assert slot == min(set(range(len(held) + 1)) - held.keys()), "the first free slot is taken"
            held[slot] = adapter
        elif held:
            slot = sorted(held)[seed % len(held)]
            bank.gate.set(None)
            bank.unload(slot)
            del held[slot]
        for module in total:
            total[module] = sum(a.ranks.get(module, 0) for a in held.values())
            most[module] = max(most[module], total[module])
        gate = torch.zeros(bank.slots)
        for slot in held:
            gate[slot] = 0.1 * (slot + 1)
        bank.gate.set(gate)
        expected = dense_sum(model, [(float(gate[s]), a) for s, a in held.items()], x)
        with torch.no_grad():
            assert (model(x) - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))
    for module, layer in bank.layers.items():
        assert len(layer.down) <= 2 * most[module], "what is freed is used again before there is more"
    bank.detach()
    assert not any(isinstance(m, BankLayer) for m in model)


def test_loading_rebuilds_nothing_and_keeps_who_speaks() -> None:
    model, x = two_layers(), torch.randn(2, 3, 6)
    bank = Bank(model)
    first = bank.load(random_adapter("first", {"0": 4, "1": 2}, 1))
    bank.gate.set(torch.tensor([1.0]))
    wrappers = list(model)
    with torch.inference_mode():
        before = model(x)
        second = bank.load(random_adapter("second", {"0": 3}, 2))
        assert (first, second) == (0, 1)
        assert list(model) == wrappers
        assert torch.equal(model(x), before), "what is loaded does not speak before the gate says so"
        bank.gate.set(torch.tensor([1.0, 0.0]))
        bank.unload(1)
        assert bank.names == ("first", None)
        assert bank.load(random_adapter("third", {"0": 3}, 3)) == 1
        assert list(model) == wrappers
        assert torch.equal(model(x), before)


def test_who_speaks_is_not_unloaded_and_nobody_speaks_from_a_free_slot() -> None:
    bank = Bank(two_layers())
    bank.load_all([random_adapter("one", {"0": 1}, 1), random_adapter("two", {"0": 2}, 2)])
    bank.gate.set(torch.tensor([0.0, 1.0]))
    with pytest.raises(InputError, match="two speaks"):
        bank.unload(1)
    with bank.gate.held_at(torch.tensor([1.0, 0.0])), pytest.raises(InputError, match="two speaks"):
        bank.unload(1)
    bank.unload(0)
    with pytest.raises(InputError, match="slot 0 holds no adapter"):
        bank.unload(0)
    for gate in (
        torch.tensor([1.0, 0.0]),
        torch.tensor([0.0, 1.0, 1.0]),
        torch.tensor([[0.0, 1.0], [1.0, 0.0]]),
    ):
        with pytest.raises(InputError, match=r"slot \d holds none"):
            bank.gate.set(gate)
    with pytest.raises(InputError, match="must be finite"):
        bank.gate.set(torch.tensor([0.0, float("nan")]))


def test_failed_load_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = two_layers(), torch.randn(2, 3, 6)
    bank = Bank(model)
    bank.load_all([random_adapter("one", {"0": 2, "1": 2}, 1), random_adapter("two", {"0": 2, "1": 2}, 2)])
    bank.gate.set(torch.tensor([0.0, 1.0]))
    bank.unload(0)
    with torch.inference_mode():
        before = model(x)
    infinite = random_adapter("infinite", {"0": 1, "1": 1}, 3)
    infinite.factors["1"][1][0, 0] = float("inf")
    with pytest.raises(InputError, match="infinite: the factors of 1 must be finite"):
        bank.load(infinite)
    moved = BankLayer._move_together

    def out_of_memory(layer: BankLayer, rank: int) -> int:
        if layer is bank.layers["1"]:
            raise MemoryError
        return moved(layer, rank)

    monkeypatch.setattr(BankLayer, "_move_together", out_of_memory)
    with pytest.raises(MemoryError):
        bank.load(random_adapter("large", {"0": 30, "1": 30}, 4))
    monkeypatch.undo()
    assert bank.names == (None, "two")
    with torch.inference_mode():
        assert torch.equal(model(x), before)
        assert bank.load(random_adapter("three", {"0": 2, "1": 2}, 5)) == 0
        assert torch.equal(model(x), before)


def test_buffers_are_as_large_as_what_is_loaded_at_once_and_then_grow_by_doubling() -> None:
    bank = Bank(two_layers())
    bank.attach([random_adapter(str(i), {"0": 3, "1": i}, i) for i in range(5)])
    assert [len(layer.down) for layer in bank.layers.values()] == [15, 10]
    assert bank.nbytes == 4 * (15 + 10) * (6 + 6)
    bank.load(random_adapter("5", {"0": 1}, 5))
    assert [len(layer.down) for layer in bank.layers.values()] == [30, 10]


def test_value_too_large_for_half_precision_is_refused() -> None:
    adapter = random_adapter("loud", {"0": 1}, 1)
    adapter.factors["0"][0][0, 0] = 1e6
    with pytest.raises(InputError, match=r"finite in torch\.float16"):
        Bank(two_layers().half()).load(adapter)


PROMPTS = ["Say something about the river", "Which number is larger, 14 or 52?", "Stop", "Why"]
"""The longest first: the order in which a batch is made of them."""

GATES = torch.tensor([[1.0, 0.0], [0.5, 1.0], [0.0, 0.0], [0.0, 1.0]])


@pytest.fixture
def two_adapters(base: Base, tmp_path: Path) -> list[Adapter]:
    return [
        read_adapter(write_lora(tmp_path / str(i), base, seed=i, r=2 + i, strength=0.1)) for i in range(2)
    ]


@pytest.mark.parametrize("path", [None, "dense", "gathered", "segmented"])
def test_mixed_batch_generates_what_each_row_does_alone(
    base: Base, two_adapters: list[Adapter], path: str | None
) -> None:
    """Left padding, the cache, greedy decoding."""
    bank = Bank(base.model)
    bank.attach(two_adapters)
    bank.gate.path = path
    try:
        with bank.gate.held_at(GATES):
            together = Chat(base).generate(PROMPTS, max_new_tokens=6)
            slow = Chat(base).generate(PROMPTS, max_new_tokens=6, use_cache=False)
        alone = []
        for prompt, gate in zip(PROMPTS, GATES, strict=True):
            with bank.gate.held_at(gate):
                alone += Chat(base).generate([prompt], max_new_tokens=6)
        bare = Chat(base).generate(PROMPTS, max_new_tokens=6)
    finally:
        bank.detach()
    assert together == alone == slow
    assert together[2] == bare[2] and together != bare


@pytest.mark.parametrize("path", ["dense", "gathered", "segmented"])
def test_sampling_with_a_seed_is_the_same_on_every_path(
    base: Base, two_adapters: list[Adapter], path: str
) -> None:
    bank = Bank(base.model)
    bank.attach(two_adapters)
    sampling = {"do_sample": True, "temperature": 1.5, "num_return_sequences": 1, "max_new_tokens": 8}
    texts = []
    try:
        with bank.gate.held_at(GATES):
            for bank.gate.path in (path, None):
                torch.manual_seed(7)
                texts.append(Chat(base).generate(PROMPTS, **sampling))  # type: ignore[arg-type]
            torch.manual_seed(8)
            other = Chat(base).generate(PROMPTS, **sampling)  # type: ignore[arg-type]
    finally:
        bank.detach()
    assert texts[0] == texts[1] != other


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.01)], ids=str)
def test_half_precision_with_the_cache_stays_near_float32(
    base: Base, two_adapters: list[Adapter], dtype: torch.dtype, tolerance: float
) -> None:
    """Logits of the last token after a prefill and a decode step, relative to the largest; the row of the
    base is the bare base's to the bit. Tokens are not compared: a near tie may fall the other way."""
    ids = some_ids(base, rows=4)
    found = {}
    for kind in (torch.float32, dtype):
        model = copy.deepcopy(base.model).to(kind)
        bank = Bank(model)
        bank.attach(two_adapters)
        for gate in (GATES, None):
            bank.gate.set(gate)
            with torch.inference_mode():
                past = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
                logits = model(input_ids=ids[:, -1:], past_key_values=past).logits[:, -1]
            found[kind, gate is None] = logits.float()
    for closed in (False, True):
        expected = found[torch.float32, closed]
        assert (found[dtype, closed] - expected).abs().max() < tolerance * expected.abs().max()
    assert torch.equal(found[dtype, False][2], found[dtype, True][2])


def test_gpt2_with_conv1d_and_a_tied_embedding() -> None:
    """An adapter on the embedding changes what is looked up and not the output layer that shares the weight,
    as in PEFT; the oracle is a model whose output layer has a copy."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=32)
    model = GPT2LMHeadModel(config).eval().requires_grad_(False)
    assert model.lm_head.weight is model.transformer.wte.weight
    shapes = {"transformer.wte": (40, 16), "transformer.h.0.attn.c_attn": (16, 48), "lm_head": (16, 40)}
    adapters = [
        Adapter(
            name,
            {
                m: (torch.randn(2, shapes[m][0]) * 0.3, torch.randn(shapes[m][1], 2) * 0.3)
                for m in shapes
                if m != left_out
            },
        )
        for name, left_out in (("one", "lm_head"), ("two", "transformer.wte"))
    ]
    gates = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.5, -1.0]])
    ids = torch.randint(0, 40, (3, 6))
    expected = []
    for row, gate in zip(ids, gates, strict=True):
        oracle = copy.deepcopy(model)
        oracle.lm_head.weight = torch.nn.Parameter(oracle.lm_head.weight.clone(), requires_grad=False)
        for weight, adapter in zip(gate, adapters, strict=True):
            for m in adapter.factors:
                delta = weight * adapter.delta(m)
                oracle.get_submodule(m).weight.data += delta if m == "lm_head" else delta.T
        expected.append(oracle(input_ids=row[None]).logits[0])
    bank = Bank(model)
    bank.attach(adapters)
    with torch.inference_mode():
        bank.gate.set(gates)
        assert (model(input_ids=ids).logits - torch.stack(expected)).abs().max() < 1e-5
        bank.gate.set(gates[2])
        bank.fold()
        assert (model(input_ids=ids[2:]).logits[0] - expected[2]).abs().max() < 1e-5
    bank.detach()
    assert model.lm_head.weight is model.transformer.wte.weight


def test_thousand_swaps_need_no_more_memory() -> None:
    model = two_layers()
    bank = Bank(model)
    ranks = (1, 7, 3, 5)
    adapters = [random_adapter(str(i), {"0": r, "1": 8 - r}, i) for i, r in enumerate(ranks)]
    x = torch.ones(1, 1, 6)
    slot, sizes = bank.load(adapters[0]), set()
    for i in range(1, 1001):
        after = bank.load(adapters[i % 4])
        gate = torch.zeros(bank.slots)
        gate[after] = 1.0
        bank.gate.set(gate)
        bank.unload(slot)
        slot = after
        if i % 100 == 0:
            expected = dense_sum(model, [(1.0, adapters[i % 4])], x)
            with torch.no_grad():
                assert (model(x) - expected).abs().max() <= 1e-5 * float(expected.abs().max())
        if i > 10:
            sizes.add(bank.nbytes)
    assert len(sizes) == 1 and bank.slots == 2


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


@pytest.mark.cuda
def test_mixed_batch_on_cuda_generates_what_each_row_does_alone(
    base: Base, two_adapters: list[Adapter]
) -> None:
    there = Base(copy.deepcopy(base.model).cuda(), base.tokenizer, base.fingerprint)
    bank = Bank(there.model)
    bank.attach(two_adapters)
    for decoding in ({}, {"num_beams": 3}):
        with bank.gate.held_at(GATES.cuda()):
            together = Chat(there).generate(PROMPTS, max_new_tokens=6, **decoding)
        alone = []
        for prompt, gate in zip(PROMPTS, GATES, strict=True):
            with bank.gate.held_at(gate):
                alone += Chat(there).generate([prompt], max_new_tokens=6, **decoding)
        assert together == alone
