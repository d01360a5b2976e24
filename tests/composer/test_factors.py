"""Factors against PEFT's own forward; every kind that has no exact factors is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from composer_fakes import edit_config, peft_logits, some_ids, write_lora

from inlay.composer.bank import Bank
from inlay.composer.factors import read_adapter, refusal
from inlay.errors import InputError
from inlay.evals.inference import Base

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "rank_pattern": {"rank_pattern": {"v_proj": 2, "layers.0.self_attn.q_proj": 6}},
    "alpha_pattern": {"alpha_pattern": {"down_proj": 3}},
    "patterns_and_rslora": {
        "rank_pattern": {"v_proj": 7},
        "alpha_pattern": {"q_proj": 5},
        "use_rslora": True,
    },
    "all_linear": {"target_modules": "all-linear"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_bank_equals_pefts_forward(kind: str, base: Base, tmp_path: Path) -> None:
    folder = write_lora(tmp_path / kind, base, seed=1, **KINDS[kind])
    ids = some_ids(base)
    expected = peft_logits(base, folder, ids)
    bank = Bank(base.model)
    bank.attach([read_adapter(folder)])
    try:
        bank.gate.set(torch.ones(1))
        with torch.inference_mode():
            found = base.model(input_ids=ids).logits.clone()
            bank.gate.set(None)
            bare = base.model(input_ids=ids).logits.clone()
    finally:
        bank.detach()
    assert (found - expected).abs().max() < 1e-5
    assert (bare - expected).abs().max() > 1e-2, (
        "the adapter must change something for this to prove anything"
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING"),
        ({"bias": "lora_only"}, "biases of the base"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "lm_head"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": "olora"}, "olora, which .* `inlay add --initial`"),
        ({"init_lora_weights": "loftq"}, "loftq, which .* and quantises the rest"),
        ({"trainable_token_indices": [1, 2]}, "token embeddings"),
    ],
)
def test_other_kinds_are_refused_by_name(
    changes: dict[str, Any], says: str, base: Base, tmp_path: Path
) -> None:
    folder = edit_config(write_lora(tmp_path / "a", base, seed=1), **changes)
    with pytest.raises(InputError, match=says):
        read_adapter(folder)


def test_plain_configuration_is_not_refused() -> None:
    assert refusal({"peft_type": "LORA", "init_lora_weights": True, "bias": "none"}) is None
    assert refusal({"peft_type": "LORA", "init_lora_weights": "gaussian"}) is None


def test_rank_that_contradicts_the_tensors_is_refused(base: Base, tmp_path: Path) -> None:
    folder = edit_config(write_lora(tmp_path / "a", base, seed=1), r=8)
    with pytest.raises(InputError, match=r"rank its configuration says \(8\), and has 4"):
        read_adapter(folder)


def test_delta_is_b_times_a_with_scaling_in_b(base: Base, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = write_lora(tmp_path / "a", base, seed=1, lora_alpha=12)
    tensors = load_file(folder / "adapter_model.safetensors")
    adapter = read_adapter(folder)
    for module in adapter.factors:
        a = tensors[f"base_model.model.{module}.lora_A.weight"]
        b = tensors[f"base_model.model.{module}.lora_B.weight"]
        assert torch.allclose(adapter.delta(module), 3.0 * (b @ a), atol=1e-7)
    assert adapter.exactness == "exact"


def test_adapter_of_another_shape_is_refused(base: Base, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_lora(tmp_path / "a", base, seed=1)
    file = folder / "adapter_model.safetensors"
    tensors = {
        k: (v[:, :-1].contiguous() if k.endswith("lora_A.weight") else v) for k, v in load_file(file).items()
    }
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"lora_A.weight must be \[4, 512\]"):
        read_adapter(folder, base=base.fingerprint.path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        read_adapter(tmp_path)
