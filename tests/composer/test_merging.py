"""Merging, held against naive float64 loops over the dense deltas and against mergekit itself."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import inlay
from inlay.composer.factors import Adapter
from inlay.composer.merging import METHODS, REFUSED
from inlay.composer.merging.core import core_of
from inlay.errors import InputError

torch.set_num_threads(1)

BY_NAME = {method.name: method for method in METHODS}
# Parameters that make each method do what it is for.
PARAMS: dict[str, dict[str, Any]] = {
    "ties": {"density": 0.4},
    "dare_linear": {"density": 0.6},
    "dare_ties": {"density": 0.6},
    "della": {"density": 0.5, "epsilon": 0.2},
    "della_linear": {"density": 0.5, "epsilon": 0.2, "lambda": 1.5},
    "breadcrumbs": {"density": 0.7, "gamma": 0.05},
    "breadcrumbs_ties": {"density": 0.7, "gamma": 0.05},
    "sce": {"select_topk": 0.5},
    "slerp": {"t": 0.3},
    "nearswap": {"t": 0.05},
    "knots_ties": {"density": 0.5},
}


def adapters(
    ranks: tuple[int, ...], shape: tuple[int, int] = (24, 20), seed: int = 0, modules: int = 1
) -> list[Adapter]:
    """Random adapters; shape is (out, in)."""
    generator = torch.Generator().manual_seed(seed)
    out, inputs = shape
    return [
        Adapter(
            f"a{i}",
            {
                f"m{j}": (
                    torch.randn(rank, inputs, generator=generator),
                    torch.randn(out, rank, generator=generator) * 0.3,
                )
                for j in range(modules)
            },
        )
        for i, rank in enumerate(ranks)
    ]


def dense(adapter: Adapter, module: str = "m0") -> torch.Tensor:
    a, b = adapter.factors[module]
    return b.double() @ a.double()


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return float((found - expected).norm()) <= tolerance * float(expected.norm())


def by_mergekit(name: str, deltas: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    """mergekit on the dense deltas, called as its own documentation says."""
    from mergekit.merge_methods import merge_tensors

    params: dict[str, Any] = dict(PARAMS.get(name, {}))
    if BY_NAME[name].weighted:
        params["weight"] = weights
    else:
        deltas = [weight * delta for weight, delta in zip(weights, deltas, strict=True)]
    if name in ("linear", "karcher", "nuslerp", "multislerp"):
        return merge_tensors(deltas, name, parameters=params)
    if name in ("slerp", "nearswap"):
        return merge_tensors(deltas, name, parameters=params, base_index=0)
    return merge_tensors([torch.zeros_like(deltas[0]), *deltas], name, parameters=params, base_index=0)


MERGEKIT = [method.name for method in METHODS if method.home == "mergekit"]


@pytest.mark.parametrize("name", MERGEKIT)
def test_dense_space_is_mergekit_on_the_dense_deltas(name: str) -> None:
    inputs = adapters((3, 5) if BY_NAME[name].most == 2 else (3, 5, 4))
    weights = [0.7, 1.2, 0.4][: len(inputs)]
    made = inlay.merge(inputs, weights=weights, method=name, space="dense", params=PARAMS.get(name), seed=7)
    with torch.random.fork_rng(devices=[]):
        if BY_NAME[name].random:
            import hashlib

            torch.manual_seed(int.from_bytes(hashlib.sha256(b"7:m0").digest()[:8], "big") >> 1)
        expected = by_mergekit(name, [dense(a) for a in inputs], weights)
    assert close(dense(made), expected, 1e-5)
    assert float(expected.norm()) > 0.1


@pytest.mark.parametrize("name", [m.name for m in METHODS if m.basis != "bound"])
def test_what_does_not_hang_on_the_basis_is_the_same_in_both_spaces(name: str) -> None:
    inputs = adapters((3, 5) if BY_NAME[name].most == 2 else (3, 5, 4), seed=1)
    weights = [0.7, -1.2, 0.4][: len(inputs)]
    core = inlay.merge(inputs, weights=weights, method=name, params=PARAMS.get(name))
    straight = inlay.merge(inputs, weights=weights, method=name, space="dense", params=PARAMS.get(name))
    assert close(dense(core), dense(straight), 1e-6)


@pytest.mark.parametrize("name", ["linear", "task_arithmetic"])
def test_the_linear_methods_are_the_dense_sum(name: str) -> None:
    inputs, weights = adapters((2, 7, 4), seed=2), [0.5, -0.25, 1.5]
    total = sum(w * dense(a) for w, a in zip(weights, inputs, strict=True))
    params = {"normalize": False}
    assert close(dense(inlay.merge(inputs, weights=weights, method=name, params=params)), total, 1e-6)
    params = {"normalize": True}
    made = inlay.merge(inputs, weights=weights, method=name, params=params)
    assert close(dense(made), total / sum(weights), 1e-6)


def test_the_core_holds_the_deltas_in_singular_bases() -> None:
    inputs = adapters((3, 5, 4), seed=3)
    pairs = [a.factors["m0"] for a in inputs]
    core = core_of(pairs, "bound")
    left, right = core.left(torch.eye(12).double()), core.right(torch.eye(12).double())
    # The oracle: numpy's decomposition of the stacked factors themselves, no QR.
    u, s, _ = torch.linalg.svd(torch.cat([b.double() for _, b in pairs], dim=1), full_matrices=False)
    assert torch.allclose((left.T @ u).abs(), torch.eye(12).double(), atol=1e-9)
    assert bool((s[:-1] > s[1:]).all())
    assert torch.allclose(right.T @ right, torch.eye(12).double(), atol=1e-12)
    for m, adapter in zip(core.cores, inputs, strict=True):
        assert close(left @ m @ right.T, dense(adapter), 1e-12)
    for columns in (left, right):
        assert bool((columns.gather(0, columns.abs().argmax(dim=0, keepdim=True)) > 0).all())
    assert not core.free


def test_ties_in_core_space_is_the_naive_loop_in_that_basis() -> None:
    inputs, weights, density = adapters((3, 5, 4), seed=4), [1.0, 0.5, 2.0], 0.4
    stacked_b = torch.cat([a.factors["m0"][1].double() for a in inputs], dim=1)
    stacked_a = torch.cat([a.factors["m0"][0].double() for a in inputs])
    u = torch.linalg.svd(stacked_b, full_matrices=False)[0]
    v = torch.linalg.svd(stacked_a, full_matrices=False)[2].T
    cores = [u.T @ dense(a) @ v for a in inputs]
    for core in cores:
        kept = int(density * core.numel())
        least = sorted((abs(float(x)) for x in core.flatten()), reverse=True)[kept - 1]
        for i, j in itertools.product(range(core.shape[0]), range(core.shape[1])):
            if abs(float(core[i, j])) < least:
                core[i, j] = 0.0
    merged = torch.zeros_like(cores[0])
    for i, j in itertools.product(range(merged.shape[0]), range(merged.shape[1])):
        entries = [w * float(c[i, j]) for w, c in zip(weights, cores, strict=True)]
        sign = 1.0 if sum(entries) >= 0 else -1.0
        agree = [(e, w) for e, w in zip(entries, weights, strict=True) if math.copysign(1, e) == sign and e]
        if agree:
            merged[i, j] = sum(e for e, _ in agree) / sum(w for _, w in agree)
    made = inlay.merge(inputs, weights=weights, method="ties", params={"density": density})
    assert close(dense(made), u @ merged @ v.T, 1e-6)


def test_tsv_m_is_the_naive_dense_one() -> None:
    inputs, weights = adapters((3, 5, 4), seed=5), [1.0, 0.5, -2.0]
    lefts, values, rights = [], [], []
    for weight, adapter in zip(weights, inputs, strict=True):
        u, s, vh = torch.linalg.svd(weight * dense(adapter), full_matrices=False)
        kept = math.ceil(0.6 * adapter.ranks["m0"])
        lefts.append(u[:, :kept])
        values.append(s[:kept])
        rights.append(vh[:kept].T)

    def nearest(x: torch.Tensor) -> torch.Tensor:
        """(X Xᵀ)^(-1/2) X by eigenvalues, not by the decomposition that the method takes."""
        eigenvalues, vectors = torch.linalg.eigh(x.T @ x)
        return x @ (vectors / eigenvalues.sqrt()) @ vectors.T

    left, right = nearest(torch.cat(lefts, dim=1)), nearest(torch.cat(rights, dim=1))
    expected = 1.5 * left @ torch.diag(torch.cat(values)) @ right.T
    made = inlay.merge(inputs, weights=weights, method="tsv_m", params={"keep": 0.6, "scale": 1.5})
    assert close(dense(made), expected, 1e-6)
    assert made.ranks == {"m0": 2 + 3 + 3}


def test_tsv_m_of_an_adapter_and_itself_is_their_sum() -> None:
    (one,) = adapters((4,), seed=6)
    made = inlay.merge([one, one], method="tsv_m")
    # Directions that both have stay shared: each half of the pair carries half of the value, twice.
    assert close(dense(made), dense(one), 1e-6)


def test_iso_c_is_the_naive_dense_one() -> None:
    inputs, weights = adapters((3, 5), seed=7), [1.0, -0.5]
    total = sum(w * dense(a) for w, a in zip(weights, inputs, strict=True))
    u, s, vh = torch.linalg.svd(total, full_matrices=False)
    expected = 2.0 * s[:8].mean() * u[:, :8] @ vh[:8]
    made = inlay.merge(inputs, weights=weights, method="iso_c", params={"scale": 2.0})
    assert close(dense(made), expected, 1e-6)
    found = torch.linalg.svdvals(dense(made))[:8]
    assert float(found.max() / found.min()) == pytest.approx(1.0, abs=1e-5)


def test_knots_ties_is_the_naive_dense_one() -> None:
    inputs, weights, density = adapters((3, 5), seed=8), [1.0, 0.5], 0.5
    deltas = [w * dense(a) for w, a in zip(weights, inputs, strict=True)]
    u, s, vh = torch.linalg.svd(torch.cat(deltas, dim=1), full_matrices=False)
    u, s, vh = u[:, :8], s[:8], vh[:8]
    blocks = [torch.diag(s) @ vh[:, :20], torch.diag(s) @ vh[:, 20:]]
    for block in blocks:
        kept = int(density * block.numel())
        least = sorted((abs(float(x)) for x in block.flatten()), reverse=True)[kept - 1]
        block[block.abs() < least] = 0.0
    merged = torch.zeros_like(blocks[0])
    for i, j in itertools.product(range(merged.shape[0]), range(merged.shape[1])):
        entries = [float(block[i, j]) for block in blocks]
        sign = 1.0 if sum(entries) >= 0 else -1.0
        agree = [e for e in entries if e * sign > 0]
        merged[i, j] = sum(agree) / max(1, len(agree))
    made = inlay.merge(inputs, weights=weights, method="knots_ties", params={"density": density})
    assert close(dense(made), u @ merged, 1e-6)


def test_truncation_is_the_best_of_its_rank_and_its_error_is_told() -> None:
    inputs = adapters((4, 4, 4), seed=9, modules=2)
    params = {"normalize": False}
    made = inlay.merge(inputs, rank=5, params=params)
    for module in ("m0", "m1"):
        total = sum(dense(a, module) for a in inputs)
        s = torch.linalg.svdvals(total)
        best = float((s[5:].square().sum() / s.square().sum()).sqrt())
        assert made.truncation[module] == pytest.approx(best, rel=1e-9)
        error = float((dense(made, module) - total).norm() / total.norm())
        assert error == pytest.approx(best, rel=1e-5)
    assert made.ranks == {"m0": 5, "m1": 5}
    assert "cut by up to" in made.exactness
    whole = inlay.merge(inputs, params=params)
    assert whole.ranks == {"m0": 12, "m1": 12} and set(whole.truncation.values()) == {0.0}
    assert whole.exactness == "merged by linear in core space"


def test_energy_keeps_as_few_directions_as_it_takes() -> None:
    inputs = adapters((6, 6), seed=10)
    s = torch.linalg.svdvals(sum(dense(a) for a in inputs)).square()
    for energy in (0.5, 0.9, 0.99, 1.0):
        made = inlay.merge(inputs, energy=energy, params={"normalize": False})
        kept = made.ranks["m0"]
        assert float(s[:kept].sum() / s.sum()) >= energy - 1e-9
        assert kept == 1 or float(s[: kept - 1].sum() / s.sum()) < energy


@pytest.mark.parametrize("name", [m.name for m in METHODS if m.fewest == 1])
def test_a_merge_of_one_is_itself(name: str) -> None:
    (one,) = adapters((5,), seed=11)
    made = inlay.merge([one], method=name)
    assert close(dense(made), dense(one), 1e-6)
    assert made.ranks == one.ranks


@pytest.mark.parametrize("name", [m.name for m in METHODS if not m.ordered and not m.random])
def test_the_order_of_the_inputs_does_not_matter(name: str) -> None:
    inputs = adapters((3, 5) if BY_NAME[name].most == 2 else (3, 5, 4), seed=12)
    weights = [0.7, 1.2, 0.4][: len(inputs)]
    first = inlay.merge(inputs, weights=weights, method=name, params=PARAMS.get(name))
    turned = inlay.merge(inputs[::-1], weights=weights[::-1], method=name, params=PARAMS.get(name))
    assert close(dense(turned), dense(first), 1e-6)


@pytest.mark.parametrize("name", [m.name for m in METHODS if m.random])
def test_a_seed_gives_the_same_bytes_and_another_seed_others(name: str) -> None:
    inputs = adapters((4, 4, 4), seed=13, modules=2)
    params = PARAMS[name]
    before = torch.random.get_rng_state()
    one, again, other = (
        inlay.merge(inputs, method=name, params=params, seed=seed, rank=6) for seed in (3, 3, 4)
    )
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's own draws are not disturbed"
    for module, (a, b) in one.factors.items():
        assert torch.equal(a, again.factors[module][0]) and torch.equal(b, again.factors[module][1])
        assert not close(dense(other, module), dense(one, module), 1e-2)
    # Each module draws for itself: without the other one it comes out the same.
    alone = [Adapter(a.name, {"m1": a.factors["m1"]}) for a in inputs]
    made = inlay.merge(alone, method=name, params=params, seed=3, rank=6)
    assert torch.equal(made.factors["m1"][0], one.factors["m1"][0])


@pytest.mark.parametrize("name", [m.name for m in METHODS if m.fewest <= 2])
def test_a_module_that_one_leaves_alone_is_a_zero_delta(name: str) -> None:
    one, two = adapters((3, 5), seed=14, modules=2)
    partial = Adapter("partial", {"m0": two.factors["m0"]})
    zero = (torch.zeros(5, 20), torch.zeros(24, 5))
    padded = Adapter("padded", {"m0": two.factors["m0"], "m1": zero})
    params = PARAMS.get(name)
    if BY_NAME[name].basis == "bound":
        params = {**(params or {}), **({"density": 1.0} if "density" in (params or {}) else {})}
    found, expected = (
        inlay.merge([one, each], method=name, params=params, space="dense") for each in (partial, padded)
    )
    assert found.ranks == expected.ranks
    for module in expected.factors:
        assert close(dense(found, module), dense(expected, module), 1e-6)


def test_equal_singular_values_are_told_where_the_basis_matters() -> None:
    generator = torch.Generator().manual_seed(0)
    even = torch.linalg.qr(torch.randn(20, 4, generator=generator)).Q.T
    inputs = [
        Adapter("even", {"m0": (even, torch.randn(24, 4, generator=generator))}),
    ]
    assert "m0" in inlay.merge(inputs, method="ties").notes[0]
    assert "singular values agree" in inlay.merge(inputs, method="ties").notes[0]
    assert inlay.merge(inputs, method="linear").notes == ()
    assert inlay.merge(inputs, method="ties", space="dense").notes == ()
    assert inlay.merge(adapters((4, 4), seed=15), method="ties").notes == ()


def test_opposite_adapters_cancel_to_nothing() -> None:
    (one,) = adapters((4,), seed=16)
    made = inlay.merge([one, one], weights=[1.0, -1.0], method="task_arithmetic")
    assert made.factors == {} or float(dense(made).norm()) < 1e-6 * float(dense(one).norm())
    with pytest.raises(InputError, match="divides by the sum of the weights, which is 0"):
        inlay.merge([one, one], weights=[1.0, -1.0], method="linear")


@pytest.mark.parametrize("space", ["core", "dense"])
@pytest.mark.parametrize("name", [m.name for m in METHODS])
def test_adapters_that_do_nothing_merge_to_nothing(name: str, space: str) -> None:
    (one,) = adapters((3,), seed=17)
    nothing = Adapter("nothing", {"m0": (one.factors["m0"][0], torch.zeros(24, 3))})
    made = inlay.merge([nothing, nothing], method=name, space=space, params=PARAMS.get(name))
    assert made.factors == {} and made.truncation == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "tie"}, "no method 'tie' of merging.*linear.*knots_ties"),
        ({"method": "passthrough"}, "cannot be merged by passthrough: it copies one input"),
        ({"method": "arcee_fusion"}, "cannot be merged by arcee_fusion"),
        ({"method": "cat"}, "labelled examples"),
        ({"method": "slerp", "params": {"t": 0.5}}, "slerp merges exactly 2 of adapters, got 3"),
        ({"method": "nuslerp"}, "exactly 2"),
        ({"method": "ties", "params": {"densitty": 0.5}}, "ties has no parameter 'densitty'.*density"),
        ({"method": "ties", "params": {"density": 1.5}}, "density must be a number from 0 to 1, got '?1.5"),
        ({"method": "ties", "params": {"density": True}}, "density must be a number"),
        ({"method": "ties", "params": {"normalize": 1}}, "normalize must be true or false"),
        ({"method": "karcher", "params": {"max_iter": 0}}, "max_iter must be a whole number from 1"),
        ({"method": "della", "params": {"density": 0.1}}, "density ± epsilon must stay between 0 and 1"),
        ({"space": "sparse"}, "a space is one of core, dense"),
        ({"rank": 0}, "rank must be a whole number from 1"),
        ({"energy": 0.0}, "energy must be above 0 and at most 1"),
        ({"energy": 0.9, "rank": 3}, "by its rank or by its energy, not by both"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"weights": [1.0]}, "one weight for each adapter, got 1 for 3"),
        ({"weights": [1.0, math.nan, 1.0]}, "weights must be finite"),
    ],
)
def test_what_cannot_be_merged_is_refused_before_anything_is_computed(
    arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touched(*_: Any, **__: Any) -> None:
        raise AssertionError("a tensor was computed")

    monkeypatch.setattr("inlay.composer.merging.merge._module", touched)
    with pytest.raises(InputError, match=message):
        inlay.merge(adapters((3, 5, 4)), **arguments)


def test_other_counts_and_shapes_are_refused() -> None:
    one, two = adapters((3, 4))
    with pytest.raises(InputError, match="slerp needs the parameter t, a number from 0 to 1"):
        inlay.merge([one, two], method="slerp")
    with pytest.raises(InputError, match="model_stock merges at least 2 of adapters, got 1"):
        inlay.merge([one], method="model_stock")
    with pytest.raises(InputError, match="linear merges any number of adapters, got 0"):
        inlay.merge([])
    (wide,) = adapters((3,), shape=(24, 22))
    with pytest.raises(InputError, match=r"m0 must have one shape: a0 has \(24, 20\), a0 has \(24, 22\)"):
        inlay.merge([one, wide])
    broken = Adapter("broken", {"m0": (torch.zeros(3, 20), torch.zeros(24, 4))})
    with pytest.raises(InputError, match="broken: the factors of m0 do not fit"):
        inlay.merge([one, broken])
    endless = Adapter("endless", {"m0": (torch.full((3, 20), math.inf), torch.zeros(24, 3))})
    with pytest.raises(InputError, match="endless: the factors of m0 must be finite"):
        inlay.merge([one, endless])


def test_mergekit_has_no_method_that_is_neither_offered_nor_refused() -> None:
    from mergekit.merge_methods import registered_methods

    assert {method.spec.name for method in registered_methods()} <= {*BY_NAME, *REFUSED}
    assert len(BY_NAME) == len(METHODS) and not set(BY_NAME) & set(REFUSED)


def test_ties_weighs_before_it_elects_and_peft_does_not() -> None:
    """Where a small weight stands on the larger entries, PEFT elects the sign of what hardly counts."""
    from peft.utils.merge_utils import ties

    inputs, weights = adapters((4, 4), seed=20), [0.1, 1.0]
    deltas = [dense(a) for a in inputs]
    expected = torch.zeros_like(deltas[0])
    for i, j in itertools.product(range(expected.shape[0]), range(expected.shape[1])):
        entries = [w * float(d[i, j]) for w, d in zip(weights, deltas, strict=True)]
        sign = 1.0 if sum(entries) >= 0 else -1.0
        agree = [(e, w) for e, w in zip(entries, weights, strict=True) if e * sign > 0]
        expected[i, j] = sum(e for e, _ in agree) / sum(w for _, w in agree)
    made = inlay.merge(inputs, weights=weights, method="ties", space="dense")
    assert close(dense(made), expected, 1e-6)
    theirs = ties(deltas, torch.tensor(weights).double(), density=0.999)
    assert float((theirs - expected).norm() / expected.norm()) > 0.1


def test_the_documentation_has_every_method_with_its_parameters() -> None:
    text = (Path(__file__).parents[2] / "docs" / "merging.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    documented = {name: row for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert documented.keys() == BY_NAME.keys()
    for method in METHODS:
        cells = [cell.strip() for cell in documented[method.name].split("|")]
        assert cells[2].split()[0] in method.inputs
        assert cells[3].split(",")[0] == method.basis and ("random" in cells[3]) == method.random
        assert cells[4] == ("own" if method.weighted else "scales")
        # A row for two methods may name what only one of them has.
        assert {p.name for p in method.parameters} <= set(re.findall(r"`(\w+)`", cells[5]))
    assert all(f"`{name}`" in text for name in REFUSED)


RANKS = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    ranks=RANKS,
    shape=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    seed=st.integers(0, 2**16),
    half=st.booleans(),
    data=st.data(),
)
def test_a_linear_merge_is_the_dense_sum_whatever_the_shapes(
    ranks: list[int], shape: tuple[int, int], seed: int, half: bool, data: st.DataObject
) -> None:
    inputs = adapters(tuple(ranks), shape=shape, seed=seed)
    if half:
        inputs = [
            Adapter(a.name, {m: (x.bfloat16(), y.bfloat16()) for m, (x, y) in a.factors.items()})
            for a in inputs
        ]
    weights = [data.draw(st.floats(-2, 2)) for _ in ranks]
    total = sum(w * dense(a) for w, a in zip(weights, inputs, strict=True))
    scale = sum(abs(w) * float(dense(a).norm()) for w, a in zip(weights, inputs, strict=True))
    for order in (slice(None), slice(None, None, -1)):
        made = inlay.merge(inputs[order], weights=weights[order], method="task_arithmetic")
        found = dense(made) if made.factors else torch.zeros(shape).double()
        assert float((found - total).norm()) <= 1e-6 * max(scale, 1e-6)
        assert made.ranks.get("m0", 0) <= min(*shape, sum(ranks))


@settings(max_examples=40, deadline=None)
@given(ranks=st.lists(st.integers(1, 5), min_size=2, max_size=4), seed=st.integers(0, 2**16))
def test_ties_does_not_depend_on_the_order_whatever_the_ranks(ranks: list[int], seed: int) -> None:
    inputs = adapters(tuple(ranks), shape=(32, 28), seed=seed)
    first = inlay.merge(inputs, method="ties", params={"density": 0.5})
    turned = inlay.merge(inputs[::-1], method="ties", params={"density": 0.5})
    if not first.notes:
        assert close(dense(turned), dense(first), 1e-5)
