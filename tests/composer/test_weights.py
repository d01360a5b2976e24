"""How large adapters are, against dense float64 singular value decompositions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composer_fakes import write_lora
from hypothesis import given, settings
from hypothesis import strategies as st
from registry_fakes import adapter_tensors, make_adapter, make_base
from safetensors.torch import load_file, save_file

import inlay
from inlay.composer import compose, make_plan, read_adapter
from inlay.composer.weights import (
    effective_rank,
    file_norms,
    intruder_count,
    intruders,
    model_norms,
    percent_of,
    singular_values,
    weigh,
    weigh_factors,
)
from inlay.errors import BaseMismatch, InputError
from inlay.evals.inference import Base
from inlay.registry import Registry

Pair = tuple[torch.Tensor, torch.Tensor]


def dense(pairs: list[tuple[Pair, float]]) -> np.ndarray:
    return sum(w * (b.double().numpy() @ a.double().numpy()) for (a, b), w in pairs)  # type: ignore[return-value]


def entropy_rank(matrix: np.ndarray) -> float:
    """The oracle: Roy and Vetterli's figure of a dense matrix."""
    values = np.linalg.svd(matrix, compute_uv=False)
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def pair(rank: int, n_in: int, n_out: int, seed: int) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rank, n_in, generator=generator), torch.randn(n_out, rank, generator=generator)


@settings(max_examples=40, deadline=None)
@given(rank=st.integers(1, 12), n_in=st.integers(1, 10), n_out=st.integers(1, 10), seed=st.integers(0, 10**6))
def test_singular_values_are_those_of_the_dense_delta(rank: int, n_in: int, n_out: int, seed: int) -> None:
    a, b = pair(rank, n_in, n_out, seed)
    want = np.linalg.svd(dense([((a, b), 1.0)]), compute_uv=False)
    found = singular_values(a, b).numpy()
    most = min(rank, n_in, n_out)
    np.testing.assert_allclose(found[:most], want[:most], rtol=1e-9, atol=1e-9 * want[0])
    assert np.all(found[most:] <= 1e-12 * want[0])
    assert effective_rank(singular_values(a, b)) == pytest.approx(entropy_rank(dense([((a, b), 1.0)])), 1e-6)


def test_the_effective_rank_counts_equal_directions() -> None:
    for count in (1, 3, 8):
        assert effective_rank(torch.full((count,), 2.5, dtype=torch.float64)) == pytest.approx(count)
    assert effective_rank(torch.tensor([1.0, 0.0, 0.0])) == 1.0
    assert effective_rank(torch.zeros(4)) == 0.0


@pytest.fixture
def stacked(store: Registry, base: Base, tmp_path: Path) -> Registry:
    kinds: dict[str, dict[str, Any]] = {"one": {"r": 4}, "two": {"r": 3, "target_modules": ["q_proj"]}}
    for seed, (name, config) in enumerate(kinds.items()):
        folder = write_lora(tmp_path / name, base, seed=seed, strength=0.1, **config)
        store.add(name, folder, base=base.fingerprint, run={"examples": ["a b"]})
    store.lock("acme", {"stack": ["one@v1", {"use": "two@v1", "weight": -0.5}]})
    return store


def test_a_stack_beside_its_base(stacked: Registry, base: Base) -> None:
    report = weigh("acme@v1", store=stacked)
    assert [member.ref for member in report.members] == ["one@v1", "two@v1"]
    assert report.whole is not None and report.whole.ref == "acme@v1" and report.notes == ()
    one, two = (read_adapter(stacked.resolve(ref), store=stacked).factors for ref in ("one@v1", "two@v1"))
    weights = dict(base.model.named_parameters())
    squares = base_squares = 0.0
    for found in report.whole.modules:
        pairs = [(one[found.module], 1.0)]
        if found.module in two:
            pairs.append((two[found.module], -0.5))
        delta = dense(pairs)
        weight = weights[f"{found.module}.weight"].detach().double().numpy()
        assert found.norm == pytest.approx(np.linalg.norm(delta), 1e-9)
        assert found.base_norm == pytest.approx(np.linalg.norm(weight), 1e-6)
        assert found.relative == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(weight), 1e-6)
        assert found.effective_rank == pytest.approx(entropy_rank(delta), 1e-6)
        assert found.rank == (7 if len(pairs) == 2 else 4) and found.trouble is None
        squares += np.linalg.norm(delta) ** 2
        base_squares += np.linalg.norm(weight) ** 2
    assert {found.module for found in report.whole.modules} == set(one)
    assert report.whole.relative == pytest.approx(math.sqrt(squares / base_squares), 1e-6)
    largest = max(report.whole.modules, key=lambda module: module.relative or 0)
    assert report.whole.largest == largest
    assert len(report.overlaps) == 1 and len(report.overlaps[0].modules) == len(two)
    first = report.lines()[0]
    assert first.startswith(f"acme@v1 changes {len(one)} modules by {percent_of(report.whole.relative or 0)}")
    assert largest.module in first and len(report.lines()) == 3


def test_files_and_the_loaded_model_say_the_same(stacked: Registry, base: Base) -> None:
    model = compose("acme@v1", store=stacked, base=base)
    try:
        loaded, read = weigh(model), weigh("acme@v1", store=stacked)
        assert loaded == weigh(model.plan, store=stacked)
        modules = [module.module for module in read.whole.modules] if read.whole else []
        assert model_norms(model.model, modules) == pytest.approx(file_norms(base.fingerprint, modules), 1e-9)
        assert loaded.to_dict() == read.to_dict()
    finally:
        model.detach()
    written = json.loads(json.dumps(read.to_dict(), allow_nan=False))
    assert written["members"][1]["modules"].keys() <= written["whole"]["modules"].keys()
    short = read.to_dict(modules=False)
    assert "modules" not in short["whole"] and "modules" not in short["overlaps"][0]
    assert short["whole"]["relative"] == written["whole"]["relative"] and short["lines"] == read.lines()


def test_one_adapter_is_its_own_whole(stacked: Registry) -> None:
    report = weigh("one@v1", store=stacked)
    assert report.whole == report.members[0] and len(report.members) == 1 and report.overlaps == ()
    assert len(report.lines()) == 1


def test_a_merge_stands_beside_its_members(stacked: Registry) -> None:
    stacked.lock("mix", {"merge": ["one@v1", "two@v1"], "method": "linear"})
    report = weigh("mix@v1", store=stacked)
    assert [m.ref for m in report.members] == ["one@v1", "two@v1", "linear(one@v1, two@v1)"]
    assert report.whole is report.members[2]
    one, two = (read_adapter(stacked.resolve(ref), store=stacked).factors for ref in ("one@v1", "two@v1"))
    for found in report.members[2].modules:
        # mergekit's linear is a weighted mean, in which a module that a member leaves alone is a zero.
        delta = dense([(member[found.module], 0.5) for member in (one, two) if found.module in member])
        assert found.norm == pytest.approx(np.linalg.norm(delta), 1e-5), found.module


def test_what_is_wrong_is_named() -> None:
    a, b = pair(2, 6, 5, 0)
    nan = b.clone()
    nan[0, 0] = math.nan
    factors = {
        "sound": (a, b),
        "untrained": (a, torch.zeros_like(b)),
        "zero": (torch.zeros_like(a), b),
        "constant": (a, torch.full_like(b, 0.25)),
        "near zero": (a, b * 1e-9),
        "not finite": (a, nan),
    }
    weighed = weigh_factors("acme@v1", factors, dict.fromkeys(factors, 10.0))
    assert {m.module: m.trouble for m in weighed.modules} == {
        name: None if name == "sound" else name for name in factors
    }
    assert weighed.troubles["untrained"] == ["untrained"]
    # Neither a size nor a rank of the whole is made up where one module has none.
    assert weighed.norm is None and weighed.relative is None and weighed.effective_rank is None
    assert weighed.largest is not None and weighed.largest.module == "sound"
    json.dumps(weighed.to_dict(), allow_nan=False)


def test_near_zero_is_relative_to_the_weight() -> None:
    a, b = pair(2, 6, 5, 0)
    norm = float(np.linalg.norm(dense([((a, b), 1.0)])))
    for base_norm, trouble in ((norm * 0.9e6, None), (norm * 1.1e6, "near zero"), (0.0, None)):
        (module,) = weigh_factors("x", {"m": (a, b)}, {"m": base_norm}).modules
        assert module.trouble == trouble
        assert module.relative == (pytest.approx(norm / base_norm) if base_norm else None)
    (module,) = weigh_factors("x", {"m": (a, b * 1e-12)}, {}).modules
    assert module.trouble is None and module.relative is None, "without a base nothing is called small"


def test_an_adapter_before_training_says_so(store: Registry, base: Base, tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "fresh", base, seed=1)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({k: torch.zeros_like(v) if "lora_B" in k else v for k, v in tensors.items()}, file)
    store.add("fresh", folder, base=base.fingerprint, run={"examples": ["a b"]})
    report = weigh("fresh@v1", store=store)
    count = len(report.members[0].modules)
    assert report.lines() == [
        f"fresh@v1 adds nothing to its {count} modules.",
        "fresh@v1 was never trained: B is zero, as PEFT starts it, in every module.",
    ]


@pytest.fixture
def small(tmp_path: Path) -> tuple[Registry, Path]:
    """A store with two adapters of a base of eight-by-eight matrices that no model can be made of."""
    folder = make_base(tmp_path / "base")
    registry = inlay.Registry.open(tmp_path / "store", create=True)
    registry.add("legal", make_adapter(tmp_path / "legal", seed=1), base=folder)
    tensors = adapter_tensors(2)
    registry.add("style", make_adapter(tmp_path / "style", tensors=tensors), base=folder)
    return registry, folder


def test_a_base_that_is_gone_leaves_sizes_alone(small: tuple[Registry, Path], tmp_path: Path) -> None:
    registry, folder = small
    with registry:
        known = weigh("legal@v1", store=registry)
        assert known.whole is not None and known.whole.relative is not None
        folder.rename(tmp_path / "moved")
        lost = weigh("legal@v1", store=registry)
        assert lost.whole is not None and lost.whole.relative is None
        assert lost.whole.norm == known.whole.norm and "not at hand" in lost.notes[0]
        assert lost.lines()[0].startswith("legal@v1 has ‖ΔW‖ ")
        assert weigh("legal@v1", store=registry, base=tmp_path / "moved") == known
        with pytest.raises(InputError):
            weigh("legal@v1", store=registry, base=tmp_path / "nowhere")
        other = make_base(tmp_path / "other", seed=9)
        with pytest.raises(BaseMismatch, match="legal@v1 was made for the base"):
            weigh("legal@v1", store=registry, base=other)
        make_base(folder, seed=9)
        changed = weigh("legal@v1", store=registry)
        assert changed.whole is not None and changed.whole.relative is None
        assert "not where it was" in changed.notes[0]


def test_experts_of_a_route_have_no_sum(small: tuple[Registry, Path]) -> None:
    registry, _ = small
    with registry:
        router = registry.put_object(b"not read")
        tree = {"route": {"by": "probe", "experts": ["legal@v1", "style@v1"], "fallback": "base"}}
        lock = registry.lock("acme", tree, routers={"": router})
        report = weigh(make_plan(registry, lock), store=registry)
        assert report.whole is None and [m.ref for m in report.members] == ["legal@v1", "style@v1"]
        assert len(report.lines()) >= 2 and report.to_dict()["whole"] is None


def naive_intruders(weight: np.ndarray, delta: np.ndarray, top: int, apart: float) -> int:
    before, after = np.linalg.svd(weight)[0], np.linalg.svd(weight + delta)[0]
    columns = min(weight.shape)
    return sum(
        all(abs(float(before[:, j] @ after[:, i])) < apart for j in range(columns))
        for i in range(min(top, columns))
    )


def test_intruders_are_those_of_the_definition() -> None:
    generator = np.random.default_rng(3)
    found = []
    for strength in (0.0, 0.3, 3.0, 30.0):
        weight = generator.normal(size=(24, 16))
        a, b = generator.normal(size=(4, 16)), strength * generator.normal(size=(24, 4))
        count = intruder_count(*(torch.from_numpy(x) for x in (weight, a, b)), top=6, apart=0.6)
        assert count == naive_intruders(weight, b @ a, 6, 0.6)
        found.append(count)
    assert found[0] == 0 and found[-1] >= 3, "a strong random delta brings directions of its own"


def test_intruders_of_a_loaded_model(stacked: Registry, base: Base) -> None:
    model = compose("acme@v1", store=stacked, base=base)
    try:
        whole = weigh(model).whole
        assert whole is not None
        module = whole.modules[0].module
        counts = intruders(model, [module], top=5)
        one, two = (read_adapter(stacked.resolve(r), store=stacked).factors for r in ("one@v1", "two@v1"))
        pairs = [(one[module], 1.0)] + ([(two[module], -0.5)] if module in two else [])
        weight = base.model.get_submodule(module).weight.detach().double().numpy()  # type: ignore[union-attr,operator]
        assert counts == {module: naive_intruders(weight, dense(pairs), 5, 0.5)}
        with pytest.raises(InputError, match="leaves lm_head alone"):
            intruders(model, ["lm_head"])
    finally:
        model.detach()


def test_the_plan_shows_weights(
    stacked: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from inlay.cli import run

    monkeypatch.setenv("COLUMNS", "120")
    said = ["--store", str(stacked.path)]
    report = weigh("acme@v1", store=stacked)
    assert run(["plan", "acme@v1", "--weights", "--overlaps", "--json", *said]) == 0
    found = json.loads(capsys.readouterr().out)["result"]
    assert found["weights"] == json.loads(json.dumps(report.to_dict()))
    assert found["overlaps"] == [pair.to_dict() for pair in report.overlaps]
    assert run(["plan", "acme@v1", "--weights", *said]) == 0
    out = capsys.readouterr().out
    table = [line.split() for line in out[out.index("weights of") :].splitlines()]
    assert report.whole is not None
    (whole,) = (row for row in table if row[0] == "acme@v1")
    assert whole[1:4] == [
        str(len(report.whole.modules)),
        f"{report.whole.norm:.3g}",
        percent_of(report.whole.relative or 0),
    ]
    assert [row[0] for row in table[1:4]] == ["one@v1", "two@v1", "acme@v1"]
    assert run(["plan", "acme@v1", "--base", "builtin", *said]) == 2
    assert "--base goes with --weights" in capsys.readouterr().err


def test_the_forgetting_report_has_them(stacked: Registry, base: Base) -> None:
    from inlay.evals.suites import Suite

    suite = Suite.of_rows("few", [{"id": f"{k}", "prompt": f"say {k}", "answer": str(k)} for k in range(4)])
    model = compose("acme@v1", store=stacked, base=base)
    try:
        report = inlay.forgetting(model, general=[suite])
        assert report.weights == weigh(model).to_dict(modules=False)
        assert report.levels["weights"] == ("weights",)
        (kept,) = stacked.reports("acme@v1", "forgetting")
        assert kept["weights"] == json.loads(json.dumps(report.weights))
    finally:
        model.detach()


def test_what_has_no_factors_is_not_weighed(store: Registry, base: Base, tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "dora", base, seed=1, use_dora=True)
    store.add("dora", folder, base=base.fingerprint, run={"examples": ["a b"]})
    report = weigh("dora@v1", store=store)
    assert report.members == () and report.whole is None
    assert len(report.lines()) == 1 and "dora@v1 has no factors" in report.lines()[0]


def test_a_quantised_weight_has_no_norm() -> None:
    layers = torch.nn.ModuleDict(
        {name: torch.nn.Linear(4, 3) for name in ("plain", "sixteen", "eight", "integer")}
    )
    plain = layers["plain"].weight.detach().clone()
    for name, dtype in (("sixteen", torch.bfloat16), ("eight", torch.float8_e4m3fn), ("integer", torch.int8)):
        layers[name].weight = torch.nn.Parameter(plain.to(dtype), requires_grad=False)
    norms = model_norms(layers, ["plain", "sixteen", "eight", "integer"])
    assert norms == {
        "plain": pytest.approx(float(plain.double().norm()), 1e-6),
        "sixteen": pytest.approx(float(plain.bfloat16().double().norm()), 1e-6),
    }
