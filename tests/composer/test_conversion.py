"""PiSSA, OLoRA, CorDA, LoRA-GA: trained on a residual base, converted, they answer the same on the original.

The oracle is PEFT's own forward on the base that its initialisation changed.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft_cases import make_model, save_base
from safetensors.torch import load_file, save_file

from inlay import Registry
from inlay.composer import convert, make_plan, read_adapter
from inlay.composer.bank import Bank
from inlay.errors import InputError

STARTS: dict[str, tuple[dict[str, Any], str]] = {
    "pissa": ({"init_lora_weights": "pissa"}, "llama"),
    "pissa_niter_4": ({"init_lora_weights": "pissa_niter_4"}, "llama"),
    "pissa on conv1d": ({"init_lora_weights": "pissa", "target_modules": ["c_attn", "c_fc"]}, "gpt2"),
    "olora": ({"init_lora_weights": "olora"}, "llama"),
    "rslora": ({"init_lora_weights": "pissa", "use_rslora": True}, "llama"),
    "patterns": (
        {
            "init_lora_weights": "olora",
            "rank_pattern": {"v_proj": 4},
            "alpha_pattern": {"up_proj": 3, "v_proj": 7},
        },
        "llama",
    ),
    "rslora and patterns, which PEFT refuses": (
        {"init_lora_weights": "pissa", "use_rslora": True, "rank_pattern": {"v_proj": 4}},
        "llama",
    ),
    "corda": ({"init_lora_weights": "corda"}, "llama"),
    "lora_ga": ({"init_lora_weights": "lora_ga"}, "llama"),
}


@dataclass(frozen=True)
class Trained:
    folder: Path
    initial: Path
    base: Path
    kind: str
    ids: torch.Tensor
    logits: torch.Tensor
    model: Any


def trained(name: str, root: Path) -> Trained:
    """An adapter with this start, its factors moved, as PEFT saves both and what PEFT answers with it."""
    import peft

    settings, kind = STARTS[name]
    ids = torch.randint(1, 32, (3, 9), generator=torch.Generator().manual_seed(5))
    model = make_model(kind)
    start = settings["init_lora_weights"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        more: dict[str, Any] = {}
        if start == "lora_ga":
            from peft.tuners.lora.config import LoraGAConfig

            more["lora_ga_config"] = LoraGAConfig()
        config = peft.LoraConfig(
            **{
                "r": 2,
                "lora_alpha": 5,
                "target_modules": ["q_proj", "v_proj", "up_proj"],
                "task_type": "CAUSAL_LM",
                **settings,
                **more,
            }
        )
        if start == "corda":
            # PEFT takes `dataclass` from a package that it does not require.
            lent = "attr" not in sys.modules
            sys.modules.setdefault("attr", SimpleNamespace(dataclass=dataclass))  # type: ignore[arg-type]
            from peft.tuners.lora.corda import preprocess_corda

            if lent:
                del sys.modules["attr"]
            preprocess_corda(model, config, run_model=lambda: model(input_ids=ids[:1]))
        if start == "lora_ga":
            from peft.tuners.lora.loraga import preprocess_loraga

            preprocess_loraga(model, config, lambda: model(input_ids=ids, labels=ids).loss.backward())
            model.zero_grad()
        adapted = peft.get_peft_model(model, config).eval()
        adapted.save_pretrained(root / "initial")
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for _, parameter in sorted(adapted.named_parameters()):
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        adapted.save_pretrained(root / "trained")
        with torch.inference_mode():
            logits = adapted(input_ids=ids).logits.clone()
    return Trained(
        root / "trained", root / "initial", save_base(kind, root / "base"), kind, ids, logits, adapted
    )


@pytest.mark.parametrize("name", STARTS)
def test_on_the_original_base_it_answers_as_on_the_residual_one(name: str, tmp_path: Path) -> None:
    made = trained(name, tmp_path)
    with pytest.raises(InputError, match="inlay add --initial"):
        read_adapter(made.folder, base=made.base)
    converted = convert(made.folder, made.initial, tmp_path / "out")
    adapter = read_adapter(converted.folder, base=made.base)
    model = make_model(made.kind).eval()
    with torch.inference_mode():
        bare = model(input_ids=made.ids).logits.clone()
    bank = Bank(model)
    bank.attach([adapter])
    bank.gate.set(torch.ones(1))
    with torch.inference_mode():
        found = model(input_ids=made.ids).logits
    bank.detach()
    assert (found - made.logits).abs().max() < 1e-5
    assert (bare - made.logits).abs().max() > 1e-2
    ranks = {rank for module, rank in adapter.ranks.items() if not module.endswith("v_proj")}
    assert ranks == {4}
    assert set(converted.lineage) == {"converted_from", "initial", "how"}


@pytest.mark.parametrize("name", ["pissa", "rslora", "patterns"])
def test_pefts_own_conversion_has_the_same_delta(name: str, tmp_path: Path) -> None:
    made = trained(name, tmp_path)
    converted = convert(made.folder, made.initial, tmp_path / "ours")
    initial = made.initial / "adapter_config.json"
    initial.write_text(json.dumps({**json.loads(initial.read_text()), "init_lora_weights": True}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.model.save_pretrained(
            tmp_path / "pefts", path_initial_model_for_weight_conversion=str(made.initial)
        )
    ours, pefts = read_adapter(converted.folder), read_adapter(tmp_path / "pefts")
    assert ours.ranks == pefts.ranks
    for module in pefts.factors:
        assert torch.allclose(ours.delta(module), pefts.delta(module), rtol=1e-6, atol=1e-7)


def test_it_is_registered_with_where_it_came_from(
    tmp_path: Path, store: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    from inlay.cli import run
    from inlay.registry.canonical import digest_of_file

    made = trained("pissa", tmp_path)
    arguments = ["--base", str(made.base), "--store", str(store.path), "--json"]
    assert run(["add", "plain", str(made.folder), "--initial", str(made.initial), *arguments]) == 0
    assert run(["add", "raw", str(made.folder), *arguments]) == 0
    capsys.readouterr()
    plain, raw = store.resolve("plain@v1"), store.resolve("raw@v1")
    assert (plain.exactness, plain.kind, plain.rank) == ("exact", "lora", 4)  # type: ignore[union-attr]
    assert plain.lineage == {  # type: ignore[union-attr]
        "converted_from": digest_of_file(made.folder / "adapter_model.safetensors")[0],
        "initial": digest_of_file(made.initial / "adapter_model.safetensors")[0],
        "how": "pissa: A = [A; A0], B = [B, -B0]",
    }
    assert make_plan(store, plain).slots[0].ranks
    assert run(["add", "plain", str(made.folder), "--initial", str(made.initial), *arguments]) == 0
    assert len(store.versions("plain")) == 1, "the same two adapters must give the same bytes"
    assert raw.exactness == "needs-conversion"  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"raw@v1 cannot be composed: it was initialised by pissa"):
        make_plan(store, raw)


def test_a_repository_has_no_initial_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from inlay.cli import run

    arguments = ["--initial", "x", "--base", "builtin", "--store", str(tmp_path / "s"), "--json"]
    assert run(["add", "raw", "acme/adapter", *arguments]) == 2
    assert "--initial goes with a FOLDER" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("same weights", "holds the weights of the trained one"),
        ("other alpha", r"must have the lora_alpha of the trained one \(5\), and .* has 6"),
        ("other rslora", "must have the use_rslora"),
        ("a module less", "differs in base_model.model.model.layers.0"),
        ("another rank", "must have the r of the trained one"),
        ("no adapter", "needs adapter_config.json"),
        ("plain", r"is lora \(exact\)"),
        ("dora", "it is a DoRA"),
        ("loftq", "loftq quantises the base"),
        ("biases", "changes biases"),
    ],
)
def test_what_is_not_its_start_is_refused(change: str, says: str, tmp_path: Path) -> None:
    made = trained("pissa", tmp_path)
    config_file, weights = made.initial / "adapter_config.json", made.initial / "adapter_model.safetensors"
    config = json.loads(config_file.read_text())
    tensors = load_file(weights)
    if change == "same weights":
        weights.write_bytes((made.folder / "adapter_model.safetensors").read_bytes())
    elif change == "a module less":
        save_file({k: v for k, v in tensors.items() if "layers.0.mlp" not in k}, weights)
    elif change == "no adapter":
        config_file.unlink()
    elif change in ("plain", "dora", "loftq", "biases"):
        changed = {
            "plain": {"init_lora_weights": True},
            "dora": {"use_dora": True},
            "loftq": {"init_lora_weights": "loftq"},
            "biases": {"bias": "all"},
        }[change]
        own = made.folder / "adapter_config.json"
        own.write_text(json.dumps({**json.loads(own.read_text()), **changed}))
    else:
        other = {
            "other alpha": {"lora_alpha": 6},
            "other rslora": {"use_rslora": True},
            "another rank": {"r": 3},
        }
        config_file.write_text(json.dumps({**config, **other[change]}))
    with pytest.raises(InputError, match=says):
        convert(made.folder, made.initial, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_and_no_link_is_followed(tmp_path: Path) -> None:
    made = trained("pissa", tmp_path)
    before = (made.folder / "adapter_model.safetensors").read_bytes()
    with pytest.raises(InputError, match="holds something already"):
        convert(made.folder, made.initial, made.folder)
    assert (made.folder / "adapter_model.safetensors").read_bytes() == before
    (tmp_path / "secret").write_text("secret")
    (made.folder / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="LICENSE is a link"):
        convert(made.folder, made.initial, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_half_precision_keeps_its_values(tmp_path: Path) -> None:
    made = trained("pissa", tmp_path)
    for folder in (made.folder, made.initial):
        file = folder / "adapter_model.safetensors"
        save_file({k: v.to(torch.bfloat16) for k, v in load_file(file).items()}, file)
    (made.folder / "LICENSE").write_text("MIT")
    before = load_file(made.folder / "adapter_model.safetensors")
    start = load_file(made.initial / "adapter_model.safetensors")
    converted = convert(made.folder, made.initial, tmp_path / "out")
    after = load_file(converted.folder / "adapter_model.safetensors")
    assert after.keys() == before.keys()
    for key, tensor in before.items():
        axis, sign = (0, 1) if ".lora_A." in key else (1, -1)
        assert after[key].dtype == torch.bfloat16
        assert torch.equal(after[key], torch.cat([tensor, sign * start[key]], dim=axis))
    assert (converted.folder / "LICENSE").read_text() == "MIT"
