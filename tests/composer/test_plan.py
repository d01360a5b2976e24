"""What a plan says of the device and of its members' subspaces, against the bank and against dense SVDs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from composer_fakes import write_lora
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy.linalg import subspace_angles
from transformers import AutoModelForCausalLM

from inlay.composer import Plan, compose, lock, make_plan, read_adapter
from inlay.composer.factors import Adapter
from inlay.composer.overlaps import module_overlap, overlaps, spaces_of
from inlay.errors import InputError, ReferenceNotFound
from inlay.evals.inference import Base, load_base
from inlay.registry import Registry

MODULE = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def filled(store: Registry, base: Base, tmp_path: Path) -> Registry:
    add(store, base, tmp_path)
    return store


def add(store: Registry, base: Base, tmp_path: Path) -> None:
    kinds = {"one": {"r": 4}, "two": {"r": 9, "target_modules": ["q_proj", "up_proj"]}, "three": {"r": 2}}
    for seed, (name, config) in enumerate(kinds.items()):
        folder = write_lora(tmp_path / name, base, seed=seed, strength=0.1, **config)
        store.add(name, folder, base=base.fingerprint, run={"examples": ["a b", "c d"]})


def plan_of(store: Registry, ref: str) -> Plan:
    return make_plan(store, store.resolve(ref))


def bank_nbytes(store: Registry, ref: str, base: Base) -> int:
    model = compose(ref, store=store, base=base)
    try:
        return model._bank.nbytes
    finally:
        model.detach()


@pytest.mark.parametrize(
    "recipe",
    [
        {"stack": ["one@v1", {"use": "two@v1", "weight": 0.5}, "three@v1"]},
        {"stack": ["one@v1", {"stack": ["one@v1", "two@v1"]}]},
        {"stack": ["three@v1", {"merge": ["one@v1", "two@v1"], "method": "task_arithmetic", "rank": 3}]},
    ],
    ids=["stack", "twice", "merge"],
)
def test_the_device_takes_what_the_plan_says(recipe: object, filled: Registry, base: Base) -> None:
    filled.lock("acme", recipe)
    plan = plan_of(filled, "acme@v1")
    assert plan.device_nbytes_float32 == bank_nbytes(filled, "acme@v1", base) > 0
    assert 2 * plan.device_nbytes == plan.device_nbytes_float32, "the built-in base lies in float16"
    assert sum(m["bytes"] for m in plan.to_dict()["device"]["modules"].values()) == plan.device_nbytes
    assert {m["dtype"] for m in plan.to_dict()["device"]["modules"].values()} == {"float16"}


def test_the_dtype_is_that_of_the_base(store: Registry, base: Base, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    shutil.copytree(base.fingerprint.path, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForCausalLM.from_pretrained(base.fingerprint.path, dtype=torch.bfloat16).save_pretrained(folder)
    half = load_base(folder, dtype="bfloat16")
    add(store, half, tmp_path)
    store.lock("acme", {"stack": ["one@v1", "two@v1"]})
    plan = plan_of(store, "acme@v1")
    assert plan.device_nbytes == bank_nbytes(store, "acme@v1", half)
    assert {buffer.dtype for buffer in plan.buffers.values()} == {"BF16"}


def adapter(rank: int, n_in: int, n_out: int, seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, n_in, generator=generator), torch.randn(n_out, rank, generator=generator)
    return Adapter(f"a{seed}", {MODULE: (a, b)})


def by_dense_svd(one: Adapter, other: Adapter) -> tuple[float, float]:
    """The oracle: dense deltas in float64, their singular vectors, scipy's principal angles."""
    spaces = []
    for each in (one, other):
        a, b = each.factors[MODULE]
        u, s, vt = np.linalg.svd(b.double().numpy() @ a.double().numpy(), full_matrices=False)
        rank = int((s > 1e-6 * s[0]).sum())
        spaces.append((vt[:rank].T, u[:, :rank]))
    read, written = (np.cos(subspace_angles(p, q)) ** 2 for p, q in zip(*spaces, strict=True))
    return float(read.mean()), float(written.mean())


@settings(max_examples=40, deadline=None)
@given(
    ranks=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    n_in=st.integers(6, 20),
    n_out=st.integers(6, 20),
    shared=st.integers(0, 6),
    seed=st.integers(0, 1000),
)
def test_overlaps_are_those_of_the_dense_deltas(
    ranks: tuple[int, int], n_in: int, n_out: int, shared: int, seed: int
) -> None:
    one, other = adapter(ranks[0], n_in, n_out, seed), adapter(ranks[1], n_in, n_out, seed + 1)
    shared = min(shared, *ranks)
    other.factors[MODULE][0][:shared] = one.factors[MODULE][0][:shared]
    found = module_overlap(MODULE, spaces_of(one, MODULE), spaces_of(other, MODULE))
    assert found is not None
    assert (found.read, found.written) == pytest.approx(by_dense_svd(one, other), abs=1e-9)
    assert found.read >= shared / min(ranks) - 1e-9
    assert found.chance_read == max(ranks) / n_in and found.chance_written == max(ranks) / n_out


def test_factors_of_less_rank_than_they_have_columns() -> None:
    one, other = adapter(4, 12, 10, 0), adapter(3, 12, 10, 1)
    a, b = one.factors[MODULE]
    a[3], b[:, 1] = a[0], 0.0  # a repeated row, a column that writes nothing: rank 2
    found = module_overlap(MODULE, spaces_of(one, MODULE), spaces_of(other, MODULE))
    assert found is not None and spaces_of(one, MODULE)[0].shape == (12, 2)
    assert (found.read, found.written) == pytest.approx(by_dense_svd(one, other), abs=1e-9)
    b.zero_()
    assert module_overlap(MODULE, spaces_of(one, MODULE), spaces_of(other, MODULE)) is None


def test_random_subspaces_come_to_what_chance_says() -> None:
    pairs = [(adapter(3, 30, 24, 2 * n), adapter(5, 30, 24, 2 * n + 1)) for n in range(200)]
    found = [module_overlap(MODULE, spaces_of(a, MODULE), spaces_of(b, MODULE)) for a, b in pairs]
    assert np.mean([f.read for f in found if f]) == pytest.approx(5 / 30, rel=0.05)
    assert np.mean([f.written for f in found if f]) == pytest.approx(5 / 24, rel=0.05)


def test_what_overlaps_strongly_is_told_where_it_speaks_together(
    filled: Registry, base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from inlay.cli import run

    filled.add(
        "again", write_lora(tmp_path / "again", base, seed=0, strength=0.3, r=4), base=base.fingerprint
    )
    filled.lock("pair", {"stack": ["one@v1", "again@v1", "two@v1"]})
    filled.lock("merged", {"merge": ["one@v1", "again@v1"], "method": "task_arithmetic"})
    found = {(pair.a, pair.b): pair for pair in overlaps(filled, plan_of(filled, "pair@v1"))}
    assert set(found) == {("one@v1", "again@v1"), ("one@v1", "two@v1"), ("again@v1", "two@v1")}
    same = found["one@v1", "again@v1"]  # the same directions, three times as strong
    assert same.read == pytest.approx(1) and same.written == pytest.approx(1) and same.strong
    assert len(same.modules) == 12 and len(found["one@v1", "two@v1"].modules) == 4
    assert not found["one@v1", "two@v1"].strong
    for ref in ("pair@v1", "merged@v1"):
        assert run(["plan", ref, "--overlaps", "--json", "--store", str(filled.path)]) == 0
        result = json.loads(capsys.readouterr().out)["result"]
        (warning,) = result["warnings"]
        assert warning.startswith("one@v1 and again@v1 overlap strongly: 100% of what they read and 100%")
    assert result["overlaps"][0]["modules"][MODULE]["read"] == pytest.approx(1)
    assert run(["plan", "pair@v1", "--store", str(filled.path)]) == 0
    said = capsys.readouterr().out
    assert "overlap" not in said and "exact" in said and "on the device" in said and "in float16" in said
    assert run(["plan", "pair@v1", "--overlaps", "--store", str(filled.path)]) == 0
    assert "one@v1 and again@v1" in capsys.readouterr().out


def test_experts_of_one_route_never_speak_together(filled: Registry, base: Base) -> None:
    experts = ["one@v1", "two@v1"]
    lock(filled, "routed", {"stack": ["three@v1", {"route": {"by": "probe", "experts": experts}}]}, base=base)
    together = {(p.a, p.b): p.together for p in overlaps(filled, plan_of(filled, "routed@v1"))}
    assert together == {
        ("three@v1", "one@v1"): True,
        ("three@v1", "two@v1"): True,
        ("one@v1", "two@v1"): False,
    }


def test_an_overlap_with_itself_is_whole(filled: Registry) -> None:
    one = read_adapter(filled.resolve("one@v1"), store=filled)  # type: ignore[arg-type]
    for module in one.factors:
        found = module_overlap(module, spaces_of(one, module), spaces_of(one, module))
        assert found is not None and (found.read, found.written) == pytest.approx((1.0, 1.0))


def test_an_output_head_inside_a_route_is_refused_before_anything_is_kept(
    filled: Registry, base: Base, tmp_path: Path
) -> None:
    folder = write_lora(tmp_path / "head", base, seed=5, target_modules=["q_proj", "lm_head"])
    file = folder / "adapter_model.safetensors"
    save_file({key: held for key, held in load_file(file).items() if "base_layer" not in key}, file)
    filled.add("head", folder, base=base.fingerprint, run={"examples": ["e f", "g h"]})
    route = {"route": {"by": "probe", "experts": ["one@v1", "head@v1"]}}
    with pytest.raises(InputError, match=r"leave the output head alone, and head@v1 adapts lm_head"):
        lock(filled, "acme", route, base=base)
    with pytest.raises(ReferenceNotFound):
        filled.resolve("acme@v1")
    filled.lock("beside", {"stack": ["one@v1", "head@v1"]})
    assert "lm_head" in plan_of(filled, "beside@v1").buffers
