"""Sums by their coefficients, QR by Cholesky: against the dense float64 deltas, where both are hardest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mergekit.merge_methods import merge_tensors

import inlay
from inlay.composer.factors import Adapter
from inlay.composer.merging import METHODS
from inlay.composer.merging import core as core_module
from inlay.composer.merging.core import core_of
from inlay.composer.merging.methods import Settings
from inlay.composer.merging.sums import summed

SUMS = [method.name for method in METHODS if method.sums]
PARAMS: dict[str, dict[str, Any]] = {"slerp": {"t": 0.3}, "task_arithmetic": {"lambda": 0.7}}


def adapter(name: str, rank: int, seed: int, shape: tuple[int, int] = (40, 36)) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, shape[1], generator=generator)
    b = torch.randn(shape[0], rank, generator=generator) * 0.3
    return Adapter(name, {"m": (a, b)})


def dense(found: Adapter) -> torch.Tensor:
    a, b = found.factors["m"]
    return b.double() @ a.double()


def oracle(name: str, inputs: list[Adapter], weights: list[float]) -> torch.Tensor:
    """mergekit in float64 on the dense deltas."""
    deltas, params = [dense(each) for each in inputs], dict(PARAMS.get(name, {}))
    if Settings.of(name, len(inputs), params=params).method.weighted:
        params["weight"] = weights
    else:
        deltas = [weight * delta for weight, delta in zip(weights, deltas, strict=True)]
    if name in ("linear", "karcher", "nuslerp", "multislerp"):
        base = None
    else:
        base = 0
        deltas = deltas if name == "slerp" else [torch.zeros_like(deltas[0]), *deltas]
    return merge_tensors(deltas, name, parameters=params, base_index=base, out_dtype=torch.float64)


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", SUMS)
def test_uncut_it_is_the_dense_result_out_of_the_members_own_factors(name: str) -> None:
    inputs = [adapter("a", 3, 1), adapter("b", 5, 2), adapter("c", 4, 3)]
    inputs = inputs[: next(m for m in METHODS if m.name == name).most or 3]
    weights = [0.7, 1.2, 0.4][: len(inputs)]
    made = inlay.merge(inputs, weights=weights, method=name, params=PARAMS.get(name))
    assert off(dense(made), oracle(name, inputs, weights)) < 1e-6
    assert made.ranks["m"] == sum(each.ranks["m"] for each in inputs)
    assert torch.equal(made.factors["m"][0], torch.cat([each.factors["m"][0] for each in inputs]))
    assert made.truncation == {"m": 0.0}


@pytest.mark.parametrize("name", [name for name in SUMS if name not in ("linear", "task_arithmetic")])
@pytest.mark.parametrize("apart", [1e-1, 1e-3, 0.0])
def test_members_that_are_nearly_or_exactly_alike(name: str, apart: float) -> None:
    """Their vectors are then nearly dependent; the coefficients are many, their sum is one."""
    one, two = adapter("a", 4, 1), adapter("b", 4, 2)
    a, b = one.factors["m"]
    inputs = [one, Adapter("b", {"m": (a + apart * two.factors["m"][0], b)})]
    weights = [0.8, 1.1]
    made = inlay.merge(inputs, weights=weights, method=name, params=PARAMS.get(name))
    assert off(dense(made), oracle(name, inputs, weights)) < 1e-5


def test_a_sum_of_larger_rank_than_the_matrix_goes_through_the_core() -> None:
    inputs = [adapter("a", 9, 1, (12, 10)), adapter("b", 9, 2, (12, 10))]
    pairs = [each.factors["m"] for each in inputs]
    assert summed(pairs, [1.0, 1.0], Settings.of("linear", 2), lambda deltas: deltas.sum(0)) is None
    made = inlay.merge(inputs, weights=[0.5, -0.5], params={"normalize": False})
    assert made.ranks["m"] == 10
    assert off(dense(made), 0.5 * dense(inputs[0]) - 0.5 * dense(inputs[1])) < 1e-6


def test_coefficients_that_do_not_reproduce_the_result_are_not_taken() -> None:
    """A kernel that leaves the span of the deltas (none of ours does) is told from one that does not."""
    pairs = [adapter("a", 3, 1).factors["m"], None]
    settings = Settings.of("karcher", 2)
    assert summed(pairs, [1.0, 1.0], settings, lambda deltas: deltas.sum(0) + 1.0) is None
    assert summed(pairs, [1.0, 1.0], settings, lambda deltas: deltas.sum(0)) is not None


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6, 1e12])
@pytest.mark.parametrize("rank", [3, None])
def test_ill_conditioned_factors_fall_back_and_stay_exact(condition: float, rank: int | None) -> None:
    """Columns of B as near to dependent as `condition` says: beyond CONDITION Householder does it."""
    generator = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(40, 6, generator=generator, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    b = u @ torch.diag(torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), 6).double()) @ v.T
    pairs = [(torch.randn(3, 36, generator=generator).double(), part) for part in b.split(3, dim=1)]
    assert (core_module._cholesky(b) is None) == (condition > core_module.CONDITION)
    core = core_of(pairs, "free")
    for (a, part), held in zip(pairs, core.cores, strict=True):
        lifted = core.right(core.left(held).T).T
        assert float((lifted - part @ a).norm()) < 1e-7 * float(torch.cat([p @ x for x, p in pairs]).norm())
    inputs = [Adapter(f"a{i}", {"m": (a.float(), part.float())}) for i, (a, part) in enumerate(pairs)]
    made = inlay.merge(inputs, weights=[1.0, -0.5], params={"normalize": False}, rank=rank)
    whole = dense(inputs[0]) - 0.5 * dense(inputs[1])
    outer, values, inner = torch.linalg.svd(whole)
    kept = whole if rank is None else (outer[:, :rank] * values[:rank]) @ inner[:rank]
    assert off(dense(made), kept) < 1e-6


def test_columns_of_very_different_lengths_are_no_bad_condition() -> None:
    generator = torch.Generator().manual_seed(0)
    stacked = torch.randn(40, 6, generator=generator, dtype=torch.float64) * torch.logspace(0, -9, 6).double()
    root = core_module._cholesky(stacked)
    assert root is not None
    basis = stacked @ root[1]
    assert float((basis.T @ basis - torch.eye(6, dtype=torch.float64)).norm()) < 1e-12
    assert core_module._cholesky(torch.cat([stacked, torch.zeros(40, 1).double()], dim=1)) is None
