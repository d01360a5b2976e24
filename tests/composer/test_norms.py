"""Norms of deltas against the dense products, on adapters that PEFT wrote for the built-in base."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from composer_fakes import edit_config, write_lora

import inlay
from inlay.composer import lock, read_adapter
from inlay.composer.difference import module_changes
from inlay.errors import InputError, IntegrityError
from inlay.evals.difference import ModuleChange
from inlay.evals.inference import Base
from inlay.registry import Registry

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]


def dense(factors: Factors) -> dict[str, torch.Tensor]:
    """B @ A in float64, written out."""
    return {module: b.double() @ a.double() for module, (a, b) in factors.items()}


def check(found: ModuleChange, before: torch.Tensor, after: torch.Tensor, rel: float = 1e-12) -> None:
    """The naive oracle for one module."""
    assert found.norm_a == pytest.approx(float(before.square().sum().sqrt()), rel=rel)
    assert found.norm_b == pytest.approx(float(after.square().sum().sqrt()), rel=rel)
    assert found.change == pytest.approx(float((after - before).square().sum().sqrt()), rel=rel)
    product = float((before * after).sum())
    if found.cosine is None:
        assert found.norm_a == 0.0 or found.norm_b == 0.0
    else:
        expected = product / float(before.norm() * after.norm())
        assert found.cosine == pytest.approx(expected, abs=1e-12)


def random_factors(
    seed: int, rank: int, out: int = 40, width: int = 24, dtype: Any = torch.float32
) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, width, generator=generator, dtype=torch.float64)
    b = torch.randn(out, rank, generator=generator, dtype=torch.float64)
    return {"m": (a.to(dtype), b.to(dtype))}


@pytest.mark.parametrize("ranks", [(1, 1), (4, 4), (3, 9), (24, 30), (40, 40)])
def test_norms_against_the_dense_product(ranks: tuple[int, int]) -> None:
    first, second = random_factors(1, ranks[0]), random_factors(2, ranks[1])
    (found,) = module_changes(first, second)
    assert (found.rank_a, found.rank_b) == ranks
    check(found, dense(first)["m"], dense(second)["m"])
    assert found.relative == pytest.approx(found.change / found.norm_a)


def test_a_small_change_keeps_its_digits() -> None:
    """A change of 1e-10 of the norm, which squared norms in float64 would lose altogether."""
    first = random_factors(1, 4, dtype=torch.float64)
    a, b = first["m"]
    step = random_factors(3, 4, dtype=torch.float64)["m"][1] * 1e-10
    (found,) = module_changes(first, {"m": (a, b + step)})
    assert found.change == pytest.approx(float((step @ a).norm()), rel=1e-4)
    assert found.relative is not None and 1e-11 < found.relative < 1e-9


def test_the_same_factors_have_no_change_and_other_factors_of_one_delta_hardly() -> None:
    first = random_factors(1, 4)
    (found,) = module_changes(first, random_factors(1, 4))
    assert found.change == 0.0 and found.cosine == pytest.approx(1.0, abs=1e-15)
    turn = torch.linalg.qr(random_factors(5, 4, out=4, width=4)["m"][0].double()).Q
    a, b = (factor.double() for factor in first["m"])
    (found,) = module_changes({"m": (a, b)}, {"m": (turn.T @ a, b @ turn)})
    assert found.change < 1e-13 * found.norm_a and found.cosine == pytest.approx(1.0, abs=1e-14)


def test_what_one_side_lacks_is_its_whole_norm() -> None:
    first = random_factors(1, 3)
    for pair in ((first, {}), ({}, first)):
        (found,) = module_changes(*pair)
        assert found.change == pytest.approx(float(dense(first)["m"].norm()), rel=1e-12)
        assert found.cosine is None and None in (found.rank_a, found.rank_b)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(
        InputError,
        match=r"deltas of m must have one shape, they have \(40, 24\) and \(8, 24\)|"
        r"\(8, 24\) and \(40, 24\)",
    ):
        module_changes(random_factors(1, 3), random_factors(1, 3, out=8))


@pytest.fixture
def filled(store: Registry, base: Base, tmp_path: Path) -> Registry:
    """legal@v1 and v2 (rank, targets and scaling differ), style@v1."""
    made = [
        ("legal", {"r": 4, "lora_alpha": 8}),
        ("legal", {"r": 9, "lora_alpha": 5, "use_rslora": True, "target_modules": ["q_proj", "o_proj"]}),
        ("style", {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "down_proj"]}),
    ]
    for seed, (name, config) in enumerate(made, 1):
        folder = write_lora(tmp_path / f"{name}{seed}", base, seed=seed, strength=0.1, **config)
        store.add(name, folder, base=base.fingerprint)
    return store


def deltas(store: Registry, ref: str) -> dict[str, torch.Tensor]:
    version = store.resolve(ref)
    assert isinstance(version, inlay.Version)
    return dense(read_adapter(version, store=store).factors)


def test_two_versions(filled: Registry) -> None:
    found = inlay.diff("legal@v1", "legal@v2", store=filled)
    assert found.norms is not None
    (pair,) = found.norms
    before, after = deltas(filled, "legal@v1"), deltas(filled, "legal@v2")
    assert [m.module for m in pair.modules] == sorted({*before, *after})
    for module in pair.modules:
        shape = (before if module.module in before else after)[module.module].shape
        zero = torch.zeros(shape, dtype=torch.float64)
        check(module, before.get(module.module, zero), after.get(module.module, zero))
    vectors = [
        torch.cat([side.get(m, torch.zeros(1)).double().reshape(-1) for m in sorted({*before, *after})])
        for side in (before, after)
    ]
    total = pair.total
    assert total.norm_a == pytest.approx(float(vectors[0].norm()), rel=1e-12)
    assert total.norm_b == pytest.approx(float(vectors[1].norm()), rel=1e-12)
    apart = sum(
        float((after.get(m, torch.zeros(1)) - before.get(m, torch.zeros(1))).square().sum())
        for m in {*before, *after}
    )
    assert total.change == pytest.approx(math.sqrt(apart), rel=1e-12)
    assert (total.rank_a, total.rank_b) == (4, 9)
    said = found.to_dict()["norms"][0]
    assert said["of"] == ["legal@v1", "legal@v2"] and len(said["modules"]) == len(pair.modules)


def test_two_stacks_are_compared_as_sums(filled: Registry, base: Base) -> None:
    lock(filled, "acme", {"stack": ["legal@v1", {"use": "style@v1", "weight": 0.5}]}, base=base)
    lock(
        filled,
        "acme",
        {"stack": [{"stack": ["legal@v2", "style@v1"], "weight": -0.3}, "style@v1"]},
        base=base,
    )
    found = inlay.diff("acme@v1", "acme@v2", store=filled)
    assert found.norms is not None and found.notes == ()
    (pair,) = found.norms
    one, two, style = (deltas(filled, ref) for ref in ("legal@v1", "legal@v2", "style@v1"))
    for module in pair.modules:
        name = module.module
        zero = torch.zeros_like(next(s[name] for s in (one, two, style) if name in s))
        before = one.get(name, zero) + 0.5 * style.get(name, zero)
        after = -0.3 * two.get(name, zero) + 0.7 * style.get(name, zero)
        check(module, before, after, rel=1e-11)


def test_routes_are_compared_member_by_member(filled: Registry, base: Base) -> None:
    for number in (1, 2):
        recipe = {"route": {"by": "request", "experts": [f"legal@v{number}", "style@v1"]}}
        lock(filled, "acme", recipe, base=base)
    found = inlay.diff("acme@v1", "acme@v2", store=filled)
    assert found.norms is not None
    assert [pair.of for pair in found.norms] == [("legal@v1", "legal@v2")]
    direct = inlay.diff("legal@v1", "legal@v2", store=filled).norms
    assert found.norms == direct
    assert len(found.notes) == 2 and all("routed" in note for note in found.notes)


def test_what_has_no_factors_is_named_and_the_rest_is_compared(
    filled: Registry, base: Base, tmp_path: Path
) -> None:
    folder = edit_config(write_lora(tmp_path / "moved", base, seed=5), init_lora_weights="pissa")
    filled.add("legal", folder, base=base.fingerprint)
    found = inlay.diff("legal@v1", "legal@v3", store=filled)
    assert found.norms == ()
    (note,) = [note for note in found.notes if "norms" in note]
    assert "legal@v3" in note and "initialised by pissa" in note
    assert "init_lora_weights" in {change.what for change in found.configuration}
    assert "initialised by pissa" in found.text(80)


def test_bytes_let_go_and_bytes_that_changed(filled: Registry, base: Base) -> None:
    lock(filled, "acme", {"stack": ["legal@v1"]}, base=base)
    lock(filled, "acme", {"stack": ["legal@v2"]}, base=base)
    digest = filled.resolve("style@v1").digest
    filled.purge(["legal@v1"], why="a customer asked for it")
    found = inlay.diff("legal@v1", "legal@v2", store=filled)
    assert (
        found.norms == ()
        and "no norms of legal@v1 and legal@v2: the bytes of legal@v1 are gone" in found.notes
    )
    found = inlay.diff("acme@v1", "acme@v2", store=filled)
    assert any(
        "acme@v1 cannot be read whole (the bytes of legal@v1 are gone)" in note for note in found.notes
    )
    files = {f["path"]: f["sha256"] for f in json.loads(filled.get_object(digest))}
    hexadecimal = files["adapter_model.safetensors"].removeprefix("sha256:")
    path = filled.path / "objects" / "sha256" / hexadecimal[:2] / hexadecimal
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert inlay.diff("legal@v2", "style@v1", store=filled, norms=False).norms is None
    with pytest.raises(IntegrityError):
        inlay.diff("legal@v2", "style@v1", store=filled)


def test_without_norms_and_the_same(filled: Registry) -> None:
    assert inlay.diff("legal@v1", "legal@v2", store=filled, norms=False).norms is None
    same = inlay.diff("legal@v1", "legal@v1", store=filled)
    assert same.same and same.norms == ()


@pytest.mark.parametrize("width", [100, 80, 40])
def test_the_text_with_norms_fits(filled: Registry, width: int) -> None:
    found = inlay.diff("legal@v1", "legal@v2", store=filled)
    text = found.text(width)
    assert max(map(len, text.splitlines())) <= width
    assert found.norms is not None
    total = found.norms[0].total
    assert f"{total.relative:.2f} times its" in " ".join(text.split())
    assert f"{total.cosine:.3f}" in text
