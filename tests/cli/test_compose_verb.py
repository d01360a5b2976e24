"""`inlay compose --auto` as its users meet it."""

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

WORDS = ("river", "garden", "stone", "lamp", "bread", "window", "apple", "chair", "table", "horse")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with two adapters that change next to nothing, suites that the base can do, no great search."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("inlay.composer.choosing.material.MERGES", ("ties",))
    monkeypatch.setattr("inlay.composer.choosing.candidates.STACKS", (1.0,))
    monkeypatch.setattr("inlay.composer.choosing.candidates.STRENGTHS", (1.0,))
    base = BaseFingerprint.of(base_path())
    with inlay.Registry.open("adapters_store", create=True) as store:
        for seed, (name, strength) in enumerate((("gentle", 0.001), ("mild", 0.002), ("harsh", 1.0))):
            store.add(name, written(tmp_path / name, base, strength, seed), base=base, why="test")
    for name, prompt in (("small", "Say the following again:"), ("gentle", "Write in upper case:")):
        rows = [
            {"id": f"{name}{i}", "prompt": f"{prompt} {word}", "answer": answer}
            for i, word in enumerate(f"{one} {other}" for one in WORDS for other in WORDS[:6])
            for answer in [word if name == "small" else word.upper()]
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def written(folder: Path, base: BaseFingerprint, strength: float, seed: int) -> Path:
    random, tensors = np.random.default_rng(seed), {}
    for layer in range(2):
        module = f"model.layers.{layer}.self_attn.q_proj"
        out, width = base.tensors[f"{module}.weight"][1]
        for key, shape in (("lora_A", (2, width)), ("lora_B", (out, 2))):
            factor = strength * random.normal(size=shape).astype(np.float32)
            tensors[f"base_model.model.{module}.{key}.weight"] = factor
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


COMMAND = ["compose", "--auto", "gentle@v1", "mild@v1", "--base", "builtin", "--general", "small.jsonl"]
SUITES = ["--eval", "gentle.jsonl", "--eval", "mild=copies.jsonl", "--forget", "0.2"]


def test_compose_chooses_locks_promotes_writes_and_draws(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "copies.jsonl").write_text((work / "small.jsonl").read_text().replace("small", "copies"))
    command = [*COMMAND, *SUITES, "--name", "acme", "--to", "prod", "--why", "measured"]
    assert run([*command, "--recipe", "acme.yaml", "--html", "out/page.html"]) == 0
    out = capsys.readouterr().out
    assert "Candidates on 60 target, 30 general dev items" in out and "on test items" in out
    assert "Routes were left out: a router needs examples" in out
    assert "locked acme@v1" in out and "the recipe is in acme.yaml" in out
    assert "general skills" in (work / "out" / "page.html").read_text()
    with inlay.Registry.open("adapters_store") as store:
        live = store.resolve("acme@prod")
        assert live.ref == "acme@v1" and live.why == "measured"
        assert inlay.registry.Recipe.of(work / "acme.yaml").compose == (
            inlay.registry.Recipe.of(live.recipe).compose  # type: ignore[union-attr]
        )
        assert store.reports(live.digest, "auto")[0]["choice"] is not None
    assert run([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verb"] == "compose" and found["result"]["lock"]["ref"] == "acme@v1"
    assert found["result"]["passes"] == 0, "nothing is measured twice"
    assert len(found["result"]["explanation"]) == 2 and found["result"]["passed"] is True


def test_compose_refuses_with_exit_code_one_and_says_why(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compose", "--auto", "harsh@v1", "--base", "builtin", "--general", "small.jsonl"]
    code = run([*command, "--eval", "gentle.jsonl", "--name", "acme", "--recipe", "acme.yaml"])
    out = capsys.readouterr().out
    assert code == 1 and not (work / "acme.yaml").exists()
    assert "harsh alone, chosen on dev items, loses" in " ".join(out.split()) and "locked acme" not in out
    with inlay.Registry.open("adapters_store") as store:
        assert store.names("variant") == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--eval", "gentle.jsonl"], "mild@v1 has no target suite"),
        (["--eval", "gentle.jsonl", "--eval", "strange=small.jsonl"], "'strange' is none of them"),
        (["--eval", "absent.jsonl"], "absent.jsonl"),
        (["--to", "prod"], "--to goes with --name"),
        (["--examples", "gentle"], "--examples takes NAME=FILE"),
        (["--examples", "gentle=absent.jsonl"], "absent.jsonl"),
    ],
)
def test_compose_refuses_bad_input_in_one_line(
    work: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert run([*COMMAND, *more]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_a_recipe_without_auto_is_told_where_to_go(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compose", "acme.yaml"]) == 2
    assert "inlay lock" in capsys.readouterr().err
