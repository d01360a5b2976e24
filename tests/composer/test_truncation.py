"""What a rank keeps of kinds without factors: PEFT's own numbers at full rank, the dense oracle below it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import peft
import pytest
import torch
from peft_cases import CASES, make_model, save_adapter, save_base
from safetensors.torch import load_file, save_file

import inlay
from inlay.cli import run
from inlay.composer import add_truncated, make_plan, read_adapter, truncate
from inlay.composer.alone import twin_of
from inlay.composer.bank import Bank
from inlay.errors import InputError
from inlay.evals.inference import Base
from inlay.registry import Recipe, Registry

NAMED = (
    "dora",
    "dora on embeddings",
    "hira",
    "randlora",
    "fourierft on conv1d",
    "c3a",
    "shira",
    "oft",
    "boft",
    "hra",
    "ia3",
    "lora on conv1d and a head",
    "trainable_tokens",
)
OTHERS = (
    "lora on embeddings",
    "lora on the head",
    "lora on parameters",
    "qalora",
    "bdlora",
    "kasa",
    "velora",
    "monteclora",
    "lora on new tokens",
    "miss bat",
    "vera without projection",
    "tinylora",
    "unilora",
    "hira on embeddings",
    "randlora without projection",
    "pvera",
    "frod",
    "fourierft",
    "waveft",
    "oft shared",
    "boft by number",
    "psoft",
    "psoft free",
    "ia3 on conv1d",
    "road",
    "road 4",
    "osf",
    "deft",
    "deft removing",
    "peanut",
    "glora",
    "glora vector",
    "supertuning",
    "supertuning and lora",
)
REFUSED = {
    "adaption_prompt": "changes no weights",
    "alora": "PEFT cannot merge it",
    "beft": "PEFT cannot merge it",
    "lily": "PEFT cannot merge it",
    "ln_tuning": "input_layernorm.weight, which is no weight of a linear layer",
    "lora": "has exact factors",
    "lora on experts": "experts.gate_up_proj, which is no weight of a linear layer",
    "lora with a bias": "c_attn.bias, which is no weight of a linear layer",
    "lora with replicated layers": "layers.2.self_attn.q_proj.weight, which is no weight",
    "lora with saved modules": "layernorm.weight, which is no weight of a linear layer",
    "pissa": "--initial",
    "prefix_tuning": "changes no weights",
    "prompt_tuning": "changes no weights",
}


def made(name: str, folder: Path) -> tuple[Path, Path]:
    """(adapter, base) of a case, every trained number moved."""
    case = CASES[name]
    save_adapter(case, folder / "adapter")
    file = folder / "adapter" / "adapter_model.safetensors"
    generator = torch.Generator().manual_seed(1)
    moved = {
        key: (tensor + 0.05 * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for key, tensor in sorted(load_file(file).items())
    }
    save_file(moved, file)
    return folder / "adapter", save_base(case.base, folder / "base")


def peft_logits(base: str, folder: Path, ids: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(make_model(base).eval(), folder).eval()(input_ids=ids).logits


def check_full_rank(name: str, tmp_path: Path) -> None:
    adapter, base = made(name, tmp_path)
    found = truncate(adapter, tmp_path / "out", base=base, energy=1.0)
    assert found.overall < 1e-6 and all(error < 1e-6 for error in found.residual.values())
    ids = torch.randint(1, 32, (2, 7), generator=torch.Generator().manual_seed(3))
    expected = peft_logits(CASES[name].base, adapter, ids)
    assert not torch.allclose(expected, make_model(CASES[name].base).eval()(input_ids=ids).logits, atol=1e-5)
    model = make_model(CASES[name].base).eval()
    bank = Bank(model)
    bank.attach([read_adapter(found.folder, base=base)])
    bank.gate.set(torch.ones(1))
    with torch.inference_mode():
        assert (model(input_ids=ids).logits - expected).abs().max() < 1e-5
    assert (peft_logits(CASES[name].base, found.folder, ids) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("name", NAMED)
def test_at_full_rank_it_answers_as_in_peft(name: str, tmp_path: Path) -> None:
    check_full_rank(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_at_full_rank_every_other_kind_answers_as_in_peft(name: str, tmp_path: Path) -> None:
    check_full_rank(name, tmp_path)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_delta_of_matrices_is_refused_by_name(name: str, tmp_path: Path) -> None:
    adapter, base = made(name, tmp_path)
    with pytest.raises(InputError, match=REFUSED[name]):
        truncate(adapter, tmp_path / "out", base=base, rank=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["dora", "oft", "ia3 on conv1d"])
def test_the_recorded_error_is_that_of_the_dense_oracle(name: str, tmp_path: Path) -> None:
    """The delta from PEFT's layer itself, f(x) - W x for the unit vectors x, cut by numpy in float64."""
    adapter, base = made(name, tmp_path)
    found = truncate(adapter, tmp_path / "out", base=base, rank=2)
    kept = read_adapter(found.folder, base=base)
    bare = make_model(CASES[name].base).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.PeftModel.from_pretrained(twin_of(bare), adapter).eval().double()  # type: ignore[arg-type]
    bare = bare.double()
    lost = whole = 0.0
    for module, recorded in found.residual.items():
        layer, wrapped = bare.get_submodule(module), adapted.base_model.model.get_submodule(module)
        size = kept.factors[module][0].shape[1]
        unit, nothing = torch.eye(size, dtype=torch.float64), torch.zeros(1, size, dtype=torch.float64)
        with torch.no_grad():
            delta = (wrapped(unit) - wrapped(nothing) - layer(unit) + layer(nothing)).T
        values = torch.linalg.svdvals(delta)
        expected = float(values[2:].norm() / values.norm())
        assert recorded == pytest.approx(expected, abs=2e-5)
        rest = torch.linalg.norm(delta - kept.delta(module).double()) / values.norm()
        assert float(rest) == pytest.approx(expected, abs=2e-5)
        assert kept.ranks[module] == 2
        lost, whole = lost + float(values[2:].square().sum()), whole + float(values.square().sum())
    assert found.overall == pytest.approx((lost / whole) ** 0.5, abs=2e-5)
    worst = max(found.residual.values())
    assert found.lineage["residual_worst"] == worst > 0.01
    assert found.residual[found.lineage["residual_worst_module"]] == worst


def test_energy_keeps_the_least_rank_that_holds_it(tmp_path: Path) -> None:
    adapter, base = made("oft", tmp_path)
    found = truncate(adapter, tmp_path / "out", base=base, energy=0.9)
    assert all(error <= (1 - 0.9) ** 0.5 for error in found.residual.values())
    kept = read_adapter(found.folder, base=base)
    smaller = truncate(adapter, tmp_path / "less", base=base, rank=max(kept.ranks.values()) - 1)
    assert max(smaller.residual.values()) > (1 - 0.9) ** 0.5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "rank or an energy"),
        ({"rank": 2, "energy": 0.5}, "rank or an energy"),
        ({"rank": 0}, "at least 1"),
        ({"energy": 1.5}, "at most 1"),
    ],
)
def test_a_cut_is_named_once_and_in_range(given: dict[str, float], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        truncate(tmp_path, tmp_path / "out", base=tmp_path, **given)  # type: ignore[arg-type]


def test_added_it_stacks_and_says_what_it_lacks(
    store: Registry, base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = peft.LoraConfig(r=2, use_dora=True, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(twin_of(base.model), config).save_pretrained(tmp_path / "dora")  # type: ignore[arg-type]
    file = tmp_path / "dora" / "adapter_model.safetensors"
    save_file({k: v + 0.1 * torch.randn(v.shape) for k, v in load_file(file).items()}, file)
    (tmp_path / "dora" / "LICENSE").write_text("as you like")
    path, where = str(base.fingerprint.path), ["--store", str(store.path)]
    assert run(["add", "cut", str(tmp_path / "dora"), "--truncate", "2", "--base", path, *where]) == 0
    assert "kind dora" in capsys.readouterr().out
    version = store.resolve("cut@v1")
    assert isinstance(version, inlay.registry.Version)
    assert (version.kind, version.rank, version.exactness) == ("lora", 2, "exact")
    assert version.lineage is not None and version.lineage["kind"] == "dora"
    assert version.licence == "as you like"
    again = add_truncated(store, "again", tmp_path / "dora", base=path, rank=2, why="test")
    assert again.digest == version.digest, "the same input gives the same bytes"
    plan = make_plan(store, store.pin(Recipe.of({"stack": ["cut@v1", "again@v1"]}), routers={}))
    assert [slot.exactness for slot in plan.slots] == ["truncated"]
    percent = f"{100 * version.lineage['residual']:.2g}% of its delta's norm"
    assert any("kind dora" in warning and percent in warning for warning in plan.warnings)
    assert run(["show", "cut@v1", *where]) == 0
    assert percent in capsys.readouterr().out
    assert run(["add", "x", str(tmp_path), "--truncate", "2", "--truncate-energy", "1", "--base", path]) == 2
    assert "--truncate-energy" in capsys.readouterr().err
    recorded = json.loads(store.get_object(version.run)) if isinstance(version.run, str) else version.run
    assert max(recorded["truncation"].values()) == version.lineage["residual_worst"]
