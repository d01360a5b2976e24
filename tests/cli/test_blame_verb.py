"""`inlay blame` as its users meet it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import inlay
from inlay.builtin import base_path
from inlay.cli import run
from inlay.registry.fingerprint import BaseFingerprint

SUITE = [("copy", "Say the following again: leaf", "leaf"), ("upper", "Write in upper case: leaf", "LEAF")]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with a variant of two adapters, one of them far too strong, and a small suite."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INLAY_CACHE", str(tmp_path / "cache"))  # passes are counted: nothing may be known yet
    base = BaseFingerprint.of(base_path())
    with inlay.Registry.open("adapters_store", create=True) as store:
        for name, strength in (("gentle", 0.001), ("harsh", 1.0)):
            store.add(name, written(tmp_path / name, base, strength), base=base, why="test")
        store.lock("acme", {"stack": ["gentle@v1", {"use": "harsh@v1", "weight": 0.9}]})
    rows = [
        {"id": f"{skill}{i}", "prompt": f"{prompt} {word}", "answer": f"{answer} {wanted}", "skill": skill}
        for skill, prompt, answer in SUITE
        for i, word in enumerate(("river", "garden", "stone", "lamp", "bread", "window", "apple", "chair"))
        for wanted in [word.upper() if skill == "upper" else word]
    ]
    (tmp_path / "small.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def written(folder: Path, base: BaseFingerprint, strength: float) -> Path:
    random, tensors = np.random.default_rng(0), {}
    for layer in range(2):
        module = f"model.layers.{layer}.self_attn.q_proj"
        out, width = base.tensors[f"{module}.weight"][1]
        for key, shape in (("lora_A", (2, width)), ("lora_B", (out, 2))):
            tensors[f"base_model.model.{module}.{key}.weight"] = strength * random.normal(size=shape).astype(
                np.float32
            )
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 2,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_blame_prints_draws_writes_and_keeps(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["blame", "acme@v1", "--base", "builtin", "--general", "small.jsonl", "--eval", "small.jsonl"]
    assert run([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["result"]
    assert found["culprit"] == "harsh@v1" and found["members"][0]["brings_back"]["estimate"] > 0.5
    assert found["passes"] == 4, "base, whole, and two members, each alone what is left without the other"
    assert run([*command, "--html", "out/blame.html"]) == 0
    out = capsys.readouterr().out
    assert "removing harsh@v1 brings back" in out and "█████" in out and "target small" in out
    assert "written to out/blame.html" in out and "harsh@v1" in (work / "out" / "blame.html").read_text()
    with inlay.Registry.open("adapters_store") as store:
        kept = store.reports(store.resolve("acme@v1").digest, "blame")
    assert len(kept) == 2 and kept[0]["passes"] == 0, "nothing was measured twice"


def test_blame_refuses_what_it_cannot_do(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["blame", "acme@v9", "--base", "builtin"]) == 2
    assert "acme@v9" in capsys.readouterr().err
    assert run(["blame", "acme@v1", "--base", "builtin", "--general", "absent.jsonl"]) == 2
    assert "absent.jsonl" in capsys.readouterr().err
