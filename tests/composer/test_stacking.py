"""The algebra whatever the ranks, shapes, weights and nestings: stacks are dense sums, exports read as they
were written."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import inlay
from inlay.composer import read_adapter
from inlay.composer.factors import Adapter
from inlay.composer.stacking import stacked

MODULES = {"layers.0.q_proj": (12, 9), "layers.0.down_proj": (7, 16), "layers.1.q_proj": (12, 9)}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@st.composite
def adapters(draw: st.DrawFn, name: str) -> Adapter:
    """Some of the modules, each with a rank of its own, in one of three precisions."""
    chosen = draw(st.lists(st.sampled_from(sorted(MODULES)), min_size=1, unique=True))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    dtype = draw(st.sampled_from(DTYPES))
    factors = {}
    for module in chosen:
        out, inputs = MODULES[module]
        rank = draw(st.integers(1, 6))
        a, b = torch.randn(rank, inputs, generator=generator), torch.randn(out, rank, generator=generator)
        factors[module] = (a.to(dtype), b.to(dtype))
    return Adapter(name, factors)


# Weights that float32 can hold beside one another.
WEIGHT = st.one_of(st.just(0.0), st.floats(0.01, 3), st.floats(-3, -0.01))


@st.composite
def trees(draw: st.DrawFn, depth: int = 3) -> tuple[Adapter, dict[str, torch.Tensor], float]:
    """A nested stack, its dense sum in float64, and the size of what was summed."""
    if depth == 0 or draw(st.booleans()):
        adapter = draw(adapters("leaf"))
        dense = {m: b.double() @ a.double() for m, (a, b) in adapter.factors.items()}
        return adapter, dense, max(float(delta.norm()) for delta in dense.values())
    members, total, size = [], {}, 0.0
    for _ in range(draw(st.integers(1, 3))):
        member, dense, norm = draw(trees(depth - 1))
        weight = draw(WEIGHT)
        members.append((member, weight))
        size += abs(weight) * norm
        for module, delta in dense.items():
            total[module] = total.get(module, torch.zeros_like(delta)) + weight * delta
    return stacked(members, "stack"), total, size


@settings(max_examples=60, deadline=None)
@given(trees())
def test_a_stack_is_the_dense_sum_whatever_is_nested(
    tree: tuple[Adapter, dict[str, torch.Tensor], float],
) -> None:
    found, expected, size = tree
    assert found.factors.keys() == expected.keys()
    for module, (a, b) in found.factors.items():
        delta = b.double() @ a.double()
        assert float((delta - expected[module]).norm()) <= 1e-5 * size


@settings(max_examples=25, deadline=None)
@given(adapters("one"))
def test_an_export_reads_as_what_was_exported(adapter: Adapter) -> None:
    with tempfile.TemporaryDirectory() as folder:
        inlay.export(adapter, Path(folder) / "out")
        again = read_adapter(Path(folder) / "out")
    assert again.factors.keys() == adapter.factors.keys()
    for module, (a, b) in adapter.factors.items():
        rank = a.shape[0]
        # The same factors to the bit, and zeros up to the rank that all modules share.
        assert torch.equal(again.factors[module][0][:rank], a.float())
        assert torch.equal(again.factors[module][1][:, :rank], b.float())
        assert not again.factors[module][0][rank:].any() and not again.factors[module][1][:, rank:].any()
