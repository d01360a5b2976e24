"""The algebra of each structured kind over many shapes, against its definition written out in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.composer.factors import factors_of, sizes_of
from inlay.errors import InputError

PREFIX = "base_model.model.m."
sizes = st.integers(1, 9)
alphas = st.sampled_from([-3.0, 0.5, 1.0, 8.0])
many = settings(max_examples=60, deadline=None)


def drawn(seed: int, **shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def check(
    config: dict[str, Any],
    parts: dict[str, torch.Tensor],
    oracle: torch.Tensor,
    rank: int,
    weight: tuple[int, int] | None = None,
) -> None:
    """Factors of these parts have this rank and this product, and their sizes were known before."""
    tensors = {PREFIX + name: tensor for name, tensor in parts.items()}
    known = sizes_of(config, {k: tuple(v.shape) for k, v in tensors.items()}, "a", weight=lambda _: weight)
    a, b = factors_of(config, tensors, "a", weight=lambda _: weight)["m"]
    assert a.dtype == b.dtype == torch.float32
    assert (a.shape[0], a.shape[1], b.shape[0]) == (rank, oracle.shape[1], oracle.shape[0])
    assert tuple(known["m"])[:3] == (rank, oracle.shape[1], oracle.shape[0])
    found = b.double() @ a.double()
    assert (found - oracle).abs().max() <= 1e-5 * max(1.0, float(oracle.abs().max()))


@given(out=sizes, inputs=sizes, r=st.integers(1, 4), alpha=alphas, seed=st.integers(0, 99))
@many
def test_loha(out: int, inputs: int, r: int, alpha: float, seed: int) -> None:
    p = drawn(seed, hada_w1_a=(out, r), hada_w1_b=(r, inputs), hada_w2_a=(out, r), hada_w2_b=(r, inputs))
    one = p["hada_w1_a"].double() @ p["hada_w1_b"].double()
    two = p["hada_w2_a"].double() @ p["hada_w2_b"].double()
    oracle = alpha / r * one * two
    check({"peft_type": "LOHA", "r": r, "alpha": alpha}, p, oracle, min(r * r, out, inputs))


@given(
    w1=st.tuples(sizes, sizes),
    w2=st.tuples(sizes, sizes),
    whole=st.tuples(st.booleans(), st.booleans()),
    r=st.integers(1, 4),
    alpha=alphas,
    seed=st.integers(0, 99),
)
@many
def test_lokr(
    w1: tuple[int, int], w2: tuple[int, int], whole: tuple[bool, bool], r: int, alpha: float, seed: int
) -> None:
    p: dict[str, torch.Tensor] = {}
    dense, rank = [], 1
    for name, (rows, columns), is_whole in (("lokr_w1", w1, whole[0]), ("lokr_w2", w2, whole[1])):
        if is_whole:
            p |= drawn(seed, **{name: (rows, columns)})
            dense.append(p[name].double())
            rank *= min(rows, columns)
        else:
            p |= drawn(seed, **{f"{name}_a": (rows, r), f"{name}_b": (r, columns)})
            dense.append(p[f"{name}_a"].double() @ p[f"{name}_b"].double())
            rank *= r
        seed += 1000
    oracle = alpha / r * torch.kron(dense[0], dense[1])
    check({"peft_type": "LOKR", "r": r, "alpha": alpha}, p, oracle, min(rank, *oracle.shape))


@given(
    k=st.integers(1, 3),
    share=st.integers(1, 2),
    width=st.integers(1, 5),
    height=st.integers(1, 5),
    hybrid=st.integers(0, 3),
    alpha=alphas,
    seed=st.integers(0, 99),
)
@many
def test_gralora(k: int, share: int, width: int, height: int, hybrid: int, alpha: float, seed: int) -> None:
    r = k * share
    p = drawn(seed, gralora_A=(k, width, r), gralora_B=(k, r, height))
    oracle = torch.zeros(k * height, k * width, dtype=torch.float64)
    for j in range(k):  # block of the output
        for n in range(k):  # block of the input
            for s in range(share):
                up = p["gralora_B"][j, n * share + s].double()
                down = p["gralora_A"][n, :, j * share + s].double()
                oracle[j * height : (j + 1) * height, n * width : (n + 1) * width] += torch.outer(up, down)
    if hybrid:
        whole = drawn(
            seed + 1,
            **{
                "gralora_A_general.weight": (hybrid, k * width),
                "gralora_B_general.weight": (k * height, hybrid),
            },
        )
        oracle += whole["gralora_B_general.weight"].double() @ whole["gralora_A_general.weight"].double()
        p |= whole
    oracle *= alpha / (r + hybrid)
    config = {"peft_type": "GRALORA", "r": r, "gralora_k": k, "hybrid_r": hybrid, "alpha": alpha}
    check(config, p, oracle, min(k * r + hybrid, *oracle.shape))


@given(
    r=st.integers(1, 6),
    more=st.integers(0, 9),
    mini=st.integers(1, 4),
    times=st.integers(1, 3),
    repeated=st.booleans(),
    seed=st.integers(0, 99),
)
@many
def test_miss(r: int, more: int, mini: int, times: int, repeated: bool, seed: int) -> None:
    out, inputs = mini * times, r + more
    p = drawn(seed, miss_block=(r, mini if repeated else out))
    block = p["miss_block"].double()
    oracle = torch.zeros(out, inputs, dtype=torch.float64)
    for o in range(out):
        for i in range(inputs):
            oracle[o, i] = block[i % r, o % block.shape[1]]
    config: dict[str, Any] = {"peft_type": "MISS", "r": r}
    if repeated:
        config |= {"init_weights": "mini", "mini_r": mini}
    check(config, p, oracle, r, weight=(out, inputs))


@given(out=sizes, inputs=sizes, r=st.integers(1, 4), strength=st.floats(0.1, 20), seed=st.integers(0, 99))
@many
def test_delora(out: int, inputs: int, r: int, strength: float, seed: int) -> None:
    p = drawn(seed, delora_A=(r, inputs), delora_B=(out, r), delora_w_norm=(inputs,))
    p["delora_A"][0] *= 1e-6  # a norm below the least that counts
    p["delora_lambda"] = torch.tensor([strength])
    oracle = torch.zeros(out, inputs, dtype=torch.float64)
    for i in range(r):
        a, b = p["delora_A"][i].double(), p["delora_B"][:, i].double()
        norms = max(float(a.norm()), 1e-4) * max(float(b.norm()), 1e-4)
        oracle += float(p["delora_lambda"]) / r / norms * torch.outer(b, a * p["delora_w_norm"].double())
    check({"peft_type": "DELORA", "r": r}, p, oracle, r)


def test_adalora_divides_by_a_little_more_than_the_rank_it_started_with() -> None:
    p = drawn(1, lora_A=(1, 5), lora_B=(4, 1), lora_E=(1, 1))
    tensors = {PREFIX + name: tensor for name, tensor in p.items()}
    a, b = factors_of({"peft_type": "ADALORA", "init_r": 1, "lora_alpha": 3}, tensors, "a")["m"]
    oracle = 3 / (1 + 1e-5) * (p["lora_B"].double() @ p["lora_E"].double() @ p["lora_A"].double())
    assert torch.allclose(b.double() @ a.double(), oracle, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["LOHA", "LOKR", "DELORA", "GRALORA", "UNILORA"])
def test_a_rank_that_contradicts_the_tensors_is_refused(kind: str) -> None:
    left, right = (4, 2), (2, 6)
    parts: dict[str, dict[str, tuple[int, ...]]] = {
        "LOHA": {"hada_w1_a": left, "hada_w1_b": right, "hada_w2_a": left, "hada_w2_b": right},
        "LOKR": {"lokr_w1": (2, 2), "lokr_w2_a": left, "lokr_w2_b": right},
        "DELORA": {"delora_A": right, "delora_B": left, "delora_lambda": (1,), "delora_w_norm": (6,)},
        "GRALORA": {"gralora_A": (2, 3, 2), "gralora_B": (2, 2, 2)},
        "UNILORA": {
            "unilora_indices_A": right,
            "unilora_indices_B": left,
            "unilora_scales_A": right,
            "unilora_scales_B": left,
        },
    }
    shapes = {PREFIX + name: shape for name, shape in parts[kind].items()}
    shared = {"base_model.unilora_theta_d": (9,)} if kind == "UNILORA" else {}
    config: dict[str, Any] = {"peft_type": kind, "save_indices": True}
    assert sizes_of({**config, "r": 2}, {**shapes, **shared}, "a")["m"].rank
    with pytest.raises(InputError, match="m must have the"):
        sizes_of({**config, "r": 3}, {**shapes, **shared}, "a")
