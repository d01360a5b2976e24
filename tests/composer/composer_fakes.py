"""Adapters made by PEFT with random factors, and the naive oracle that everything is held against."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from inlay.evals.inference import Base

TARGETS = ("q_proj", "v_proj", "down_proj")


def write_lora(folder: Path, base: Base, *, seed: int, strength: float = 0.02, **config: Any) -> Path:
    """A LoRA as PEFT saves one, with both factors random, so that its delta is not zero.

    `config`: fields of peft.LoraConfig. The base is left as it was.
    """
    from peft import LoraConfig, get_peft_model

    settings: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": list(TARGETS),
        "task_type": "CAUSAL_LM",
    }
    model = get_peft_model(base.model, LoraConfig(**{**settings, **config}))
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    model.unload()
    (folder / "README.md").unlink(missing_ok=True)
    file = folder / "adapter_model.safetensors"
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        k: torch.randn(v.shape, generator=generator) * strength for k, v in sorted(load_file(file).items())
    }
    save_file(tensors, file)
    return folder


def edit_config(folder: Path, **changes: Any) -> Path:
    """The same folder with fields of adapter_config.json changed."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


def peft_logits(base: Base, folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """What PEFT itself computes with the adapter in `folder`: (rows, length, vocab)."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(base.model, folder)
    model.eval()
    with torch.inference_mode():
        logits = model(input_ids=ids).logits.clone()
    model.unload()
    base.model.eval()
    return logits


def dense_sum_logits(
    base: Base, deltas: Sequence[tuple[float, dict[str, torch.Tensor]]], ids: torch.Tensor
) -> torch.Tensor:
    """The naive oracle: every weighted delta added to the base's weights, which are put back bit for bit."""
    kept = {}
    with torch.inference_mode(False), torch.no_grad():
        for weight, modules in deltas:
            for name, delta in modules.items():
                parameter = base.model.get_submodule(name).weight
                kept.setdefault(name, parameter.detach().clone())
                parameter.add_(weight * delta)
        logits = base.model(input_ids=ids).logits.clone()
        for name, before in kept.items():
            base.model.get_submodule(name).weight.copy_(before)
    return logits


def some_ids(base: Base, rows: int = 3, length: int = 12, seed: int = 0) -> torch.Tensor:
    """Token ids (rows, length) that stand for prompts."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, base.model.config.vocab_size, (rows, length), generator=generator)
