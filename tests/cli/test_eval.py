"""`inlay eval`: what is printed and kept for every kind of score, drawn answers, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from inlay.builtin import base_path
from inlay.cli import run
from inlay.registry import Registry
from inlay.registry.fingerprint import BaseFingerprint

ROWS = [
    {"id": "copy", "prompt": "Copy: red blue", "answer": "red blue", "skill": "copying"},
    {"id": "sort", "prompt": "Sort these numbers: 7 2 5", "answer": "2 5 7", "skill": "sorting"},
]


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with one adapter that changes nothing, entered."""
    monkeypatch.chdir(tmp_path)
    module = "model.layers.0.self_attn.q_proj"
    out, width = BaseFingerprint.of(base_path()).tensors[f"{module}.weight"][1]
    (tmp_path / "lora").mkdir()
    factors = {"A": np.ones((2, width), np.float32), "B": np.zeros((out, 2), np.float32)}
    save_file(
        {f"base_model.model.{module}.lora_{k}.weight": v for k, v in factors.items()},
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
    assert run(["init"]) == 0 and run(["add", "legal", "lora", "--base", "builtin"]) == 0
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def scored(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code, out, err = said(capsys, "eval", "legal@v1", *arguments, "--json")
    assert code == 0, err
    return json.loads(out)["result"][0]


def test_every_kind_of_score_is_shown_in_its_unit(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exact = write(work / "exact.jsonl", *ROWS)
    f1 = write(work / "f1.jsonl", {"suite": {"metric": "token_f1"}}, *ROWS)
    nats = write(work / "nats.jsonl", {"suite": {"metric": "perplexity"}}, *ROWS)
    found = scored(capsys, "--suite", exact)
    assert (found["metric"], found["graded"], found["n"]) == ("exact_match/1", False, 2)
    assert found["by_skill"]["copying"] == {"right": 1, "n": 1}
    found = scored(capsys, "--suite", f1)
    assert (found["metric"], found["graded"], found["higher_is_better"]) == ("token_f1/1", True, True)
    assert found["by_skill"]["copying"] == {"score": 1.0, "n": 1}
    found = scored(capsys, "--suite", nats)
    assert found["score"] >= 1.0 and not found["higher_is_better"] and found["low"] <= found["score"]
    code, out, _ = said(capsys, "eval", "legal@v1", "--suite", f1, "--suite", nats)
    first, second = out.splitlines()
    assert code == 0 and first.startswith("legal@v1 on f1: token_f1/1 ") and "% (95% interval" in first
    assert second.startswith(f"legal@v1 on nats: perplexity/1 {found['score']:.4g} (95% interval ")
    code, out, _ = said(capsys, "show", "legal@v1")
    assert code == 0 and f"{found['score']:.4g}" in out
    code, out, _ = said(capsys, "log", "legal", "--changelog")
    assert (
        code == 0
        and "perplexity: nats a token" in out
        and "token\\_f1" in out.replace("token_f1", "token\\_f1")
    )


def test_drawn_answers_are_kept_apart_and_come_back(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = write(work / "s.jsonl", *ROWS)
    drawn = ("--suite", suite, "--temperature", "0.7", "--top-p", "0.9", "--seed", "3")
    found = scored(capsys, *drawn)
    assert found["protocol"]["decoding"] == "sampled" and found["protocol"]["seed"] == 3
    assert scored(capsys, *drawn) == found
    assert scored(capsys, "--suite", suite)["protocol"]["decoding"] == "greedy"
    with Registry.open(work / "adapters_store") as registry:
        kept = registry.evals("legal@v1")
        assert sorted(e.protocol_detail["decoding"] for e in kept) == ["greedy", "sampled"]
        reports = registry.reports("legal@v1", "answers")
        assert [set(r["answers"]) for r in reports] == [{"copy", "sort"}], "those that were drawn"


def test_what_is_wrong_is_said_in_one_line(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = write(work / "s.jsonl", *ROWS)
    code, _, err = said(capsys, "eval", "legal@v1", "--suite", suite, "--seed", "3")
    assert code == 2 and "the temperature is 0" in err
    bad = write(work / "bad.jsonl", ROWS[0], {"prompt": "p", "answer": "[", "metric": "regex"})
    code, _, err = said(capsys, "eval", "legal@v1", "--suite", bad)
    assert code == 2 and "bad.jsonl, line 2: `answer` must be a regular expression" in err
    similar = write(work / "similar.jsonl", {"suite": {"metric": "similarity"}}, *ROWS)
    code, _, err = said(capsys, "eval", "legal@v1", "--suite", similar)
    assert code == 2 and "--embedding" in err


def test_a_suite_that_gives_its_answers_away_or_changed_is_remarked_on(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = write(work / "s.jsonl", {"id": "x", "prompt": "Copy: a b c.\nAnswer: a b c", "answer": "a b c"})
    code, _, err = said(capsys, "eval", "legal@v1", "--suite", suite)
    assert code == 0 and "note: the prompt ends in its answer: x" in err
    write(work / "s.jsonl", *ROWS)
    code, out, err = said(capsys, "eval", "legal@v1", "--suite", suite, "--json")
    assert code == 0 and "note: s in the store has another digest" in err and len(out.splitlines()) == 1
    code, _, err = said(capsys, "eval", "legal@v1", "--suite", suite)
    assert code == 0 and "note:" not in err
