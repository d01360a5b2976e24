"""What was pushed is read by PEFT from the hub, as the card tells its reader to."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_fakes import Runner, environment
from hub_server import Hub
from safetensors.numpy import save_file

import inlay
from inlay.builtin import base_path
from inlay.registry import Registry

_READER = """
import sys, torch
{snippet}
model.eval()
with torch.inference_mode():
    torch.save(model(input_ids=torch.arange(5, 25).reshape(2, 10)).logits, sys.argv[1])
"""


def write_adapter(folder: Path, seed: int, rank: int) -> Path:
    rng = np.random.default_rng(seed)
    config = json.loads((base_path() / "config.json").read_text())
    width = config["hidden_size"]
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_"
        tensors[f"{prefix}A.weight"] = rng.normal(size=(rank, width), scale=0.2).astype(np.float32)
        tensors[f"{prefix}B.weight"] = rng.normal(size=(width, rank), scale=0.2).astype(np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 3, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.slow
def test_peft_reads_a_pushed_variant_as_the_card_says(
    hub: Hub, verbs: Runner, store: Registry, tmp_path: Path
) -> None:
    import torch

    for seed, name in enumerate(("domain", "style"), 1):
        store.add(name, write_adapter(tmp_path / name, seed, rank=2 * seed), base=base_path())
    store.lock("acme", {"stack": ["domain@v1", {"use": "style@v1", "weight": -0.5}]})
    assert verbs("push", "acme@v1", "acme/model", "--store", store.path).code == 0

    card = hub.head("acme/model")["README.md"].decode()
    found = re.search(r"```python\n(.*?)```", card, re.S)
    assert found is not None
    snippet = found[1].replace("path/to/the/base", str(base_path()))
    script = _READER.format(snippet=snippet)
    env = environment(hub, tmp_path)
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "logits.pt")], env=env, check=True, timeout=120
    )
    read = torch.load(tmp_path / "logits.pt")

    composed = inlay.compose("acme@v1", store=store)
    with torch.inference_mode():
        ids = torch.arange(5, 25).reshape(2, 10)
        expected = composed.model(input_ids=ids).logits.clone()
        composed.detach()
        bare = composed.model(input_ids=ids).logits
    assert (expected - bare).abs().max() > 0.1, "the adapters do something"
    assert (read - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
