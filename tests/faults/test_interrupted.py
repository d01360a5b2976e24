"""Ctrl-C at any moment of a large registration: exit code 130, and nothing in between.

The fast case is in tests/cli/test_cli.py.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fault_fakes import objects, said
from registry_fakes import safetensors

from inlay.registry import Registry

WIDE, RANK = 40_960, 64
ROUNDS = 16
MODULE = "model.layers.0.self_attn.q_proj"
READY = """
import signal, sys
import inlay.registry.registry, inlay.cli.store
from inlay.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
print("ready", flush=True)
main()
"""


def large(folder: Path) -> tuple[Path, Path]:
    """A base and an adapter of 21 MB for it."""
    rng = np.random.default_rng(0)
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir()
    adapter.mkdir()
    (base / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (base / "tokenizer.json").write_text("{}")
    (base / "model.safetensors").write_bytes(
        safetensors({f"{MODULE}.weight": np.ones((WIDE, WIDE // 1024), np.float32)})
    )
    tensors = {
        f"base_model.model.{MODULE}.lora_A.weight": rng.normal(size=(2 * RANK, WIDE // 1024)).astype(
            np.float32
        ),
        f"base_model.model.{MODULE}.lora_B.weight": rng.normal(size=(WIDE, 2 * RANK)).astype(np.float32),
    }
    config = {"peft_type": "LORA", "r": 2 * RANK, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (adapter / "adapter_model.safetensors").write_bytes(safetensors(tensors))
    assert (adapter / "adapter_model.safetensors").stat().st_size > 20_000_000
    return base, adapter


def begin(store: Path, base: Path, adapter: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", READY, "add", "big", str(adapter), "--base", str(base), "--store", str(store)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background of a shell has Ctrl-C switched off, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.slow
def test_ctrl_c_at_random_moments_of_a_large_registration(tmp_path: Path) -> None:
    base, adapter = large(tmp_path)
    with Registry.open(tmp_path / "empty", create=True):
        nothing = said(tmp_path / "empty"), objects(tmp_path / "empty")
    for store in ("cold", "whole"):  # the base is hashed the first time only
        shutil.copytree(tmp_path / "empty", tmp_path / store)
        process = begin(tmp_path / store, base, adapter)
        started = time.monotonic()
        assert process.stdout is not None and process.stdout.readline().startswith("registered big@v1")
        seconds = time.monotonic() - started
        assert process.communicate(timeout=60)[1] == "" and process.returncode == 0
    done = said(tmp_path / "whole"), objects(tmp_path / "whole")

    moments, codes = random.Random(0), []
    for part in range(ROUNDS):
        store = tmp_path / f"store{part}"
        shutil.copytree(tmp_path / "empty", store)
        process = begin(store, base, adapter)
        time.sleep(seconds * (part + moments.random()) / ROUNDS)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        codes.append(process.returncode)
        with Registry.open(store) as registry:
            assert registry.fsck() == []
            registry.gc(grace=0)
            if process.returncode == 130:
                assert err.split("\n") == ["", "inlay: interrupted; what was registered stays registered", ""]
            else:  # too late: it had said what it did, and Python was on its way out
                assert process.returncode in (0, -signal.SIGINT) and err == ""
                assert out.startswith("registered big@v1") and registry.names()
            assert (said(store), objects(store)) == (done if registry.names() else nothing)
            registry.add("big", adapter, base=base)
            assert (said(store), objects(store)) == done and registry.fsck() == []
        shutil.rmtree(store)
    assert codes.count(130) >= ROUNDS // 4, codes
