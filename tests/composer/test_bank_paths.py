"""Dense, gathered, segmented, folded: each against a naive float32 loop over rows and adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.pytorch_utils import Conv1D

from inlay.composer.bank import Bank
from inlay.composer.costs import CPU, CUDA, Costs, Shape, choose, estimate
from inlay.composer.factors import Adapter
from inlay.composer.paths import Kept
from inlay.errors import InputError

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Largest error over the largest value: of float32 sums in another order, and of one rounding at each of
inner layer, A x, gate and sum for the others."""


def random_adapters(ranks: Sequence[int], features: tuple[int, int], seed: int = 0) -> list[Adapter]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Adapter(
            f"a{i}",
            {
                "0": (
                    torch.randn(r, features[0], generator=generator) / features[0] ** 0.5,
                    torch.randn(features[1], r, generator=generator) / r**0.5,
                )
            },
        )
        for i, r in enumerate(ranks)
    ]


def naive(
    weight: torch.Tensor, x: torch.Tensor, adapters: Sequence[Adapter], gate: torch.Tensor
) -> torch.Tensor:
    """Row by row, adapter by adapter, in float32; weight (out, in), gate (rows, adapters)."""
    rows = []
    for i, row in enumerate(x.float()):
        y = row @ weight.float().T
        for j, adapter in enumerate(adapters):
            y = y + float(gate[i, j]) * (row @ adapter.delta("0").T)
        rows.append(y)
    return torch.stack(rows)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((found.float() - expected).abs().max() / expected.abs().max()).detach())


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("path", ["dense", "gathered", "segmented"])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_each_path_equals_the_naive_loop(path: str, dtype: torch.dtype, kind: str) -> None:
    torch.manual_seed(1)
    inner = torch.nn.Linear(24, 40, bias=False) if kind == "linear" else Conv1D(40, 24)
    model = torch.nn.Sequential(inner).to(dtype)
    adapters = random_adapters([3, 8, 1, 5], (24, 40))
    gate = torch.tensor(
        [[1, 0, 0, 0], [0, 0, 0, 0], [0.5, -1, 0, 0], [0, 1, 0, 0], [0, 0, 2, 1], [1, 0, 0, 0]]
    ).float()
    x = torch.randn(6, 7, 24).to(dtype)
    bank = Bank(model)
    bank.attach(adapters)
    bank.gate.path = path
    with torch.inference_mode():
        base = model(x)
        bank.gate.set(gate)
        found = model(x)
    weight = inner.weight if kind == "linear" else inner.weight.T
    assert error(found, naive(weight, x, adapters, gate)) < TOLERANCE[dtype]
    assert torch.equal(found[1], base[1]), "a row without adapters gets the base's output to the bit"
    assert not torch.equal(found[0], base[0])


@given(
    ranks=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    rows=st.integers(1, 6),
    length=st.integers(1, 5),
    seed=st.integers(0, 10_000),
    path=st.sampled_from([None, "dense", "gathered", "kept", "segmented"]),
)
@settings(max_examples=80, deadline=None)
def test_random_gates_in_rows(ranks: list[int], rows: int, length: int, seed: int, path: str | None) -> None:
    torch.manual_seed(seed)
    inner = torch.nn.Linear(9, 11, bias=False)
    adapters = random_adapters(ranks, (9, 11), seed)
    gate = torch.randn(rows, len(ranks)) * (torch.rand(rows, len(ranks)) < 0.5)
    x = torch.randn(rows, length, 9)
    bank = Bank(torch.nn.Sequential(inner))
    bank.attach(adapters)
    bank.gate.path = path
    bank.gate.set(gate)
    with torch.inference_mode():
        assert error(bank.model(x), naive(inner.weight, x, adapters, gate)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_what_a_decode_keeps_is_of_this_gate_and_these_factors(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(24, 40, bias=False)).to(dtype)
    weight = model[0].weight
    adapters = random_adapters([3, 8, 1], (24, 40))
    bank = Bank(model)
    bank.attach(adapters[:2])
    bank.gate.path = "kept"
    layer = bank.layers["0"]
    first, second = torch.tensor([[1, 0], [0, 0], [0.5, -1]]), torch.tensor([[0.0, 2.0], [1, 1], [0, 0]])
    with torch.inference_mode():
        for step in range(3):
            x = torch.randn(3, 1, 24).to(dtype)
            bank.gate.set(first) if step == 0 else None
            found = bank.model(x)
            assert layer._prepared is not None and isinstance(layer._prepared[2], Kept)
            assert error(found, naive(weight, x, adapters[:2], first)) < TOLERANCE[dtype]
            assert torch.equal(found[1], layer.inner(x)[1])
        bank.gate.set(second)
        assert error(bank.model(x), naive(weight, x, adapters[:2], second)) < TOLERANCE[dtype]
        slot = bank.load(adapters[2])  # more room is needed: the columns move
        third = torch.cat([second, torch.tensor([[1.0], [0.0], [1.0]])], dim=1)
        assert error(bank.model(x), naive(weight, x, adapters[:2], second)) < TOLERANCE[dtype]
        bank.gate.set(third)
        assert error(bank.model(x), naive(weight, x, adapters, third)) < TOLERANCE[dtype]
        bank.gate.set(second)
        bank.unload(slot)
        bank.load(random_adapters([1], (24, 40), seed=5)[0])
        assert error(bank.model(x), naive(weight, x, adapters[:2], second)) < TOLERANCE[dtype]


def test_a_decode_keeps_no_more_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = Bank(torch.nn.Sequential(torch.nn.Linear(24, 40, bias=False)))
    bank.attach(random_adapters([3, 8], (24, 40)))
    bank.gate.path = "kept"
    bank.gate.set(torch.eye(2))
    held = 2 * 8 * (24 + 40) * 4
    for bound, kept in ((held, True), (held - 1, False)):
        monkeypatch.setattr("inlay.composer.gate.KEPT_BYTES", bound)
        bank.gate.set(torch.eye(2))
        bank.model(torch.randn(2, 1, 24))
        prepared = bank.layers["0"]._prepared
        assert prepared is not None and isinstance(prepared[2], Kept) is kept


@pytest.mark.parametrize("path", ["dense", "segmented"])
def test_constant_gate_with_silent_adapters_between(path: str) -> None:
    torch.manual_seed(2)
    inner = torch.nn.Linear(16, 12, bias=False)
    adapters = random_adapters([2, 3, 4, 5], (16, 12))
    bank = Bank(torch.nn.Sequential(inner))
    bank.attach(adapters)
    bank.gate.path = path
    x = torch.randn(2, 3, 16)
    for gate in ([1.0, 0.0, 0.0, -0.5], [0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.3, 1.0]):
        bank.gate.set(torch.tensor(gate))
        with torch.inference_mode():
            found = bank.model(x)
            flat = bank.model(x[:, 0])
        expected = naive(inner.weight, x, adapters, torch.tensor([gate, gate]))
        assert error(found, expected) < 1e-5
        assert error(flat, expected[:, 0]) < 1e-5, "a gate for all rows needs no rows"


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_folded_equals_the_naive_loop_and_unfolded_is_the_base(kind: str) -> None:
    torch.manual_seed(3)
    inner = torch.nn.Linear(24, 40) if kind == "linear" else Conv1D(40, 24)
    model = torch.nn.Sequential(inner)
    kept, before = inner.weight, inner.weight.detach().clone()
    adapters = random_adapters([3, 8], (24, 40))
    x = torch.randn(2, 5, 24)
    bank = Bank(model)
    bank.attach(adapters)
    with torch.inference_mode():
        base = model(x)
        bank.gate.set(torch.tensor([1.0, -0.5]))
        unfolded = model(x)
        bank.fold()
        assert bank.folded_nbytes == kept.nbytes
        folded = model(x)
        with bank.gate.held_at(None):
            assert torch.equal(model(x), base), "a closed gate is the base, folded or not"
        with bank.gate.held_at(torch.tensor([[0.0, 1.0], [0.0, 0.0]])):
            assert torch.equal(model(x)[1], base[1])
        assert torch.equal(model(x), folded)
        bank.unfold()
        assert torch.equal(model(x), unfolded)
    gate = torch.tensor([[1.0, -0.5]] * 2)
    weight = inner.weight if kind == "linear" else inner.weight.T
    assert error(folded - inner.bias, naive(weight, x, adapters, gate)) < 1e-5
    assert bank.folded_nbytes == 0
    bank.detach()
    assert model[0] is inner and inner.weight is kept and torch.equal(kept, before)


def test_what_cannot_be_folded_is_refused() -> None:
    bank = Bank(torch.nn.Sequential(torch.nn.Linear(4, 4)))
    bank.attach(random_adapters([1], (4, 4)))
    with pytest.raises(InputError, match="open and the same for all rows"):
        bank.fold()
    bank.gate.set(torch.tensor([[1.0], [0.0]]))
    with pytest.raises(InputError, match="open and the same for all rows"):
        bank.fold()


def test_loading_lets_go_of_what_was_folded() -> None:
    torch.manual_seed(4)
    bank = Bank(torch.nn.Sequential(torch.nn.Linear(4, 4)))
    one, two = random_adapters([1, 2], (4, 4))
    bank.attach([one])
    bank.gate.set(torch.ones(1))
    bank.fold()
    bank.load(two)
    assert bank.folded_nbytes == 0 and not bank.gate.state.folded


@pytest.mark.parametrize("path", [None, "dense", "gathered", "segmented"])
def test_embedding_is_a_look_up_in_the_factor(path: str | None) -> None:
    torch.manual_seed(5)
    inner = torch.nn.Embedding(30, 8)
    adapters = random_adapters([2, 3], (30, 8))
    ids = torch.randint(0, 30, (3, 4))
    gate = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.5, -1.0]])
    expected = torch.stack(
        [
            (inner.weight + sum(float(w) * a.delta("0").T for w, a in zip(row, adapters, strict=True)))[i]
            for row, i in zip(gate, ids, strict=True)
        ]
    ).detach()
    bank = Bank(torch.nn.Sequential(inner))
    bank.attach(adapters)
    bank.gate.path = path
    bank.gate.set(gate)
    with torch.inference_mode():
        found = bank.model(ids)
        assert error(found, expected) < 1e-5
        assert torch.equal(found[1], inner(ids[1]))
        bank.gate.set(gate[2])
        unfolded = bank.model(ids)
        bank.fold()
        assert error(bank.model(ids), unfolded) < 1e-5


def test_layers_that_are_not_called_as_they_seem_are_refused_by_name() -> None:
    class Scaled(torch.nn.Embedding):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids) * 2

    (adapter,) = random_adapters([2], (8, 8))
    with pytest.raises(InputError, match="a Scaled; only linear layers and plain embeddings"):
        Bank(torch.nn.Sequential(Scaled(8, 8))).attach([adapter])
    attention = torch.nn.MultiheadAttention(8, 2)
    inside = Adapter("a", {"out_proj": adapter.factors["0"]})
    with pytest.raises(InputError, match="NonDynamicallyQuantizableLinear"):
        Bank(attention).attach([inside])


def test_rows_that_are_nobodys_are_refused() -> None:
    bank = Bank(torch.nn.Sequential(torch.nn.Linear(4, 4)))
    bank.attach(random_adapters([1], (4, 4)))
    bank.gate.set(torch.tensor([[1.0], [0.0]]))
    with pytest.raises(InputError, match=r"needs inputs \(rows, length, in\)"):
        bank.model(torch.ones(6, 4))
    with pytest.raises(InputError, match="each of 2 prompts"):
        bank.model(torch.ones(3, 1, 4))


def test_quantised_layer_gets_factors_of_the_model_s_dtype() -> None:
    class Quantised(torch.nn.Linear):
        """Keeps its weight in bytes, as bitsandbytes' layers do."""

        def __init__(self) -> None:
            super().__init__(6, 5, bias=False)
            self.weight = torch.nn.Parameter(
                torch.arange(30, dtype=torch.uint8).view(15, 2), requires_grad=False
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ (self.weight.view(5, 6).float() / 30).to(x.dtype).T

    inner = Quantised()
    model = torch.nn.Sequential(inner, torch.nn.Linear(5, 5)).bfloat16()
    adapters = random_adapters([2], (6, 5))
    bank = Bank(model)
    bank.attach(adapters)
    bank.gate.set(torch.ones(1))
    assert bank.layers["0"].down.dtype == torch.bfloat16
    x = torch.randn(2, 3, 6)
    with torch.inference_mode():
        found = bank.layers["0"](x.bfloat16())
        wide = bank.layers["0"](x)
    expected = naive(inner.weight.view(5, 6).float() / 30, x, adapters, torch.ones(2, 1))
    assert found.dtype == torch.bfloat16 and error(found, expected) < 3e-2
    assert wide.dtype == torch.float32 and error(wide, expected) < 3e-2
    with pytest.raises(
        InputError, match=r"plain layer in torch.bfloat16 to be folded, and is a Quantised in torch.uint8"
    ):
        bank.fold()


def test_under_autocast_and_with_gradients() -> None:
    torch.manual_seed(6)
    inner = torch.nn.Linear(8, 8, bias=False).requires_grad_(False)
    adapters = random_adapters([2, 2], (8, 8))
    bank = Bank(torch.nn.Sequential(inner))
    bank.attach(adapters)
    bank.gate.set(torch.tensor([1.0, 0.5]))
    x = torch.randn(2, 3, 8)
    expected = naive(inner.weight, x, adapters, torch.tensor([[1.0, 0.5]] * 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = bank.model(x)
    assert found.dtype == torch.bfloat16 and error(found.detach(), expected) < 3e-2
    dense = inner.weight + adapters[0].delta("0") + 0.5 * adapters[1].delta("0")
    for path in ("dense", "segmented"):
        leaf = x.clone().requires_grad_()
        bank.gate.path = path
        bank.gate.set(torch.tensor([1.0, 0.5]))
        bank.model(leaf).pow(2).sum().backward()
        assert leaf.grad is not None
        assert torch.allclose(leaf.grad, 2 * (x @ dense.T) @ dense, atol=1e-4)


def test_moved_to_another_dtype_what_was_prepared_is_made_again() -> None:
    torch.manual_seed(7)
    inner = torch.nn.Linear(8, 8, bias=False)
    adapters = random_adapters([2], (8, 8))
    bank = Bank(torch.nn.Sequential(inner))
    bank.attach(adapters)
    bank.gate.set(torch.tensor([0.5]))
    x = torch.randn(2, 3, 8)
    with torch.inference_mode():
        before = bank.model(x)
    bank.model.bfloat16()
    with torch.inference_mode():
        assert error(bank.model(x.bfloat16()), before) < 3e-2


def shape_of(
    *,
    rows: int,
    length: int,
    adapters: int,
    rank: int = 16,
    features: int = 1024,
) -> Shape:
    """Rows that use one of `adapters` each, the same number of rows for every adapter that is used."""
    used = min(adapters, rows)
    tokens = rows * length // used
    return Shape(rows, length, features, used * rank, rank, tuple((tokens, rank, False) for _ in range(used)))


@pytest.mark.parametrize("costs", [CPU, CUDA], ids=["cpu", "cuda"])
def test_what_is_chosen(costs: Costs) -> None:
    for rows, length in ((1, 1), (1, 512), (16, 64)):
        assert choose(shape_of(rows=rows, length=length, adapters=1), costs) in ("dense", "segmented")
    long = shape_of(rows=16, length=2048, adapters=16, features=8192)
    assert choose(long, costs) == "segmented", "sixteen times the products cost more than sixteen calls"
    few = shape_of(rows=4, length=1, adapters=4)
    assert choose(few, costs) == "dense", "at few columns the calls are what costs"
    many = shape_of(rows=256, length=1, adapters=256, rank=8)
    assert choose(many, costs) == "gathered", "dense multiplies 256 times what each row uses"
    mixed = shape_of(rows=16, length=1, adapters=16, rank=8)
    assert choose(replace(mixed, lasting=True), costs) == "kept", "what is kept is not copied at every step"


def test_estimates_grow_with_what_they_stand_for() -> None:
    small, large = (shape_of(rows=8, length=n, adapters=8) for n in (1, 64))
    for path, seconds in estimate(small, CPU).items():
        assert 0 < seconds < estimate(large, CPU)[path]
    apart = Shape(8, 4, 1024, 32, 16, ((16, 16, True), (16, 16, True)))
    together = Shape(8, 4, 1024, 32, 16, ((16, 16, False), (16, 16, False)))
    assert estimate(apart, CPU)["segmented"] > estimate(together, CPU)["segmented"]
    assert "gathered" not in estimate(Shape(1, 4, 1024, 32, 0, ((4, 32, False),)), CPU)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("path", [None, "dense", "gathered", "segmented"])
def test_each_path_on_cuda(path: str | None, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    inner = torch.nn.Linear(64, 96, bias=False)
    model = torch.nn.Sequential(inner).to("cuda", dtype)
    adapters = random_adapters([3, 8, 1, 5], (64, 96))
    gate = torch.eye(4).repeat(2, 1)
    gate[5] = 0
    x = torch.randn(8, 7, 64).to(dtype)
    bank = Bank(model)
    bank.attach(adapters)
    bank.gate.path = path
    with torch.inference_mode():
        base = model(x.cuda())
        bank.gate.set(gate.cuda())
        found = model(x.cuda())
    expected = naive(inner.weight.cpu(), x, adapters, gate)
    assert error(found.cpu(), expected) < max(TOLERANCE[dtype], 2e-3)
    assert torch.equal(found[5], base[5])
