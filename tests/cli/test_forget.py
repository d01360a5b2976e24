"""`inlay forget` with rigidity, slices and overhead: what is printed, what is kept, what is refused."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from inlay.builtin import base_path
from inlay.cli import run
from inlay.evals.overhead import Overhead, measure_overhead
from inlay.registry import Registry
from inlay.registry.fingerprint import BaseFingerprint

QUESTIONS = [
    {
        "id": f"upper-{k}",
        "prompt": f"Write these words in upper case: {words}",
        "answer": words.upper(),
        "skill": "upper",
    }
    for k, words in enumerate(["river garden", "blue chair", "cold lake", "warm coat"])
]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with one adapter, entered, a suite and a dialect of it beside."""
    monkeypatch.chdir(tmp_path)
    module = "model.layers.0.self_attn.q_proj"
    out, width = BaseFingerprint.of(base_path()).tensors[f"{module}.weight"][1]
    random = np.random.default_rng(0)
    (tmp_path / "lora").mkdir()
    factors = {"A": random.normal(size=(2, width)), "B": random.normal(size=(out, 2))}
    save_file(
        {f"base_model.model.{module}.lora_{k}.weight": v.astype(np.float32) for k, v in factors.items()},
        tmp_path / "lora" / "adapter_model.safetensors",
    )
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 2,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
    }
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "upper.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    scots = {
        "source_id": "upper-0",
        "slice": "scots",
        "prompt": "Gie us thae words in big letters: river garden",
    }
    (tmp_path / "scots.jsonl").write_text(json.dumps(scots) + "\n")
    assert run(["init"]) == 0 and run(["add", "legal", "lora", "--base", "builtin"]) == 0
    return tmp_path


def test_rigidity_slices_and_overhead(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = functools.partial(measure_overhead, rounds=6, new_tokens=2, batches=(1,))
    monkeypatch.setattr("inlay.evals.ledger.measure_overhead", quick)
    asked = ["forget", "legal@v1", "--general", "upper.jsonl", "--slices", "scots.jsonl", "--overhead"]
    capsys.readouterr()
    assert run([*asked, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["result"]
    (part,) = report["rigidity"]["parts"]
    assert [row["kind"] for row in part["rows"]] == [
        "all kinds",
        "typo",
        "case",
        "spaces",
        "wording",
        "scots",
    ]
    assert part["rows"][-1]["model"]["n"] == 1 and part["rows"][0]["model"]["n"] == 17
    assert [cell.batch for cell in Overhead.from_dict(report["overhead"]).cells] == [1]
    assert run([*asked, "--html", "out/report.html"]) == 0
    out = capsys.readouterr().out
    assert "Rigidity on general suites" in out and "scots" in out and "batch of 1" in out
    page = (work / "out" / "report.html").read_text()
    assert "<h3>Overhead</h3>" in page and "<h3>Rigidity on general suites</h3>" in page


def test_quick_is_one_pass_that_keeps_nothing(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["forget", "legal@v1", "--general", "upper.jsonl", "--quick", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["result"]
    assert report["levels"] == {"weights": [], "load": ["drift", "alarm"], "registration": []}
    assert report["drift"]["items"] == len(QUESTIONS) and report["held_out"]["n"] == 0
    assert run(["forget", "legal@v1", "--general", "upper.jsonl", "--quick", "--html", "quick.html"]) == 0
    assert "measured at load only" in capsys.readouterr().out and (work / "quick.html").is_file()
    store = Registry.open(work / "adapters_store")
    assert store.reports("legal@v1") == [] and store.evals("legal@v1") == []
    for other in (["--overhead"], ["--rigidity"], ["--eval", "upper.jsonl"]):
        assert run(["forget", "legal@v1", "--quick", *other]) == 2
        assert "a report at load is one pass" in capsys.readouterr().err


def test_without_the_options_nothing_of_it_is_measured(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run(["forget", "legal@v1", "--general", "upper.jsonl", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["result"]
    assert report["rigidity"] is None and report["overhead"] is None and report["drift"] is not None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"source_id": "upper-9", "prompt": "x"}', "'upper-9' is in none"),
        ('{"prompt": "x"}', "scots.jsonl, line 1: a variant needs `source_id` and `prompt`"),
    ],
)
def test_slices_that_fit_nothing_are_refused(
    work: Path, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    (work / "scots.jsonl").write_text(line + "\n")
    assert run(["forget", "legal@v1", "--general", "upper.jsonl", "--slices", "scots.jsonl"]) == 2
    assert said in capsys.readouterr().err
    assert run(["forget", "legal@v1", "--slices", "absent.jsonl"]) == 2
    assert "absent.jsonl must be a file of UTF-8 text" in capsys.readouterr().err


def test_routing_is_printed_drawn_and_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (work / "examples.jsonl").open("w") as file:
        file.writelines(json.dumps({"prompt": row["prompt"]}) + "\n" for row in QUESTIONS)
    (work / "outside.jsonl").write_text('{"prompt": "Qwerty uiop?"}\n')
    upper = ["add", "upper", "lora", "--base", "builtin", "--examples", "examples.jsonl"]
    other = work / "other"
    shutil.copytree(work / "lora", other)
    tensors = load_file(other / "adapter_model.safetensors")
    save_file({name: -value for name, value in tensors.items()}, other / "adapter_model.safetensors")
    lower = ["add", "lower", "other", "--base", "builtin", "--examples", "outside.jsonl"]
    (work / "acme.yaml").write_text("route: {by: probe, experts: [upper@v1, lower@v1]}\n")
    assert run(upper) == 0 and run(lower) == 0
    assert run(["lock", "acme", "acme.yaml", "--base", "builtin"]) == 0
    asked = ["forget", "acme@v1", "--general", "upper.jsonl", "--eval", "upper.jsonl"]
    capsys.readouterr()
    assert run([*asked, "--routing", "--out-of-scope", "outside.jsonl", "--json"]) == 0
    (route,) = json.loads(capsys.readouterr().out)["result"]["routing"]["routes"]
    assert [(g["name"], g["share"]["n"]) for g in route["groups"]] == [
        *(("task", 4), ("general", 4), ("out-of-scope", 1)),
    ]
    assert run([*asked, "--expect", "upper=lower", "--html", "routing.html"]) == 0
    out = capsys.readouterr().out
    assert "Confusion matrix" in out and "Against the oracle" in out and "lower@v1" in out
    page = (work / "routing.html").read_text()
    assert '<h3>Confusion matrix</h3>\n<figure><div class="scroll"><img src="data:image/svg+xml' in page
    assert run([*asked, "--expect", "upper"]) == 2
    assert "--expect must be SUITE=EXPERT, and is 'upper'" in capsys.readouterr().err
    assert run(["forget", "legal@v1", "--general", "upper.jsonl", "--routing"]) == 2
    assert "legal@v1 has no route" in capsys.readouterr().err
    assert run([*asked, "--out-of-scope", "absent.jsonl"]) == 2
    assert "prompts out of scope must be a JSONL file" in capsys.readouterr().err
