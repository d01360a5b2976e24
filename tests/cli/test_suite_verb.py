"""`inlay suite`: what it prints, its one JSON object, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inlay.cli import run
from inlay.evals.suites import Suite


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    rows = [
        {"prompt": f"Which queue takes message number {n}?", "answer": f"queue {n % 7}"} for n in range(40)
    ]
    (tmp_path / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows[3] = {**rows[3], "prompt": rows[4]["prompt"]}
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = {"instruction": rows[5]["prompt"].upper(), "input": "", "output": "queue 5"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_a_sound_suite_leaves_with_0_and_a_bad_one_with_1(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = said(capsys, "suite", "check", "good.jsonl", "--guard", "forget=0.02")
    assert code == 0
    assert out.startswith("good: 40 items, 40 held out; 0 errors, 0 warnings\n")
    assert "A guard of 2 points on 40 held-out items (1,000 needed: NOT ENOUGH):" in out
    code, out, _ = said(capsys, "suite", "check", "bad.jsonl", "--against", "train.jsonl")
    assert code == 1
    assert "error: the same prompt has different answers: bad-4, bad-5" in out
    assert "error: 1 of 40 prompts stand in train.jsonl but for case" in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_json_is_one_object(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "suite", "check", "bad.jsonl", "--json")
    found = json.loads(out)
    assert code == 1 and found["verb"] == "suite check" and found["result"]["ok"] is False
    assert [f["kind"] for f in found["result"]["findings"]] == ["contradiction"]
    assert found["result"]["power"]["needed"] == 400


def test_what_cannot_be_checked_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "broken.jsonl").write_text('{"prompt": "Q?", "answer": "(", "metric": "regex"}\n')
    for arguments, message in (
        (["none.jsonl"], "none.jsonl"),
        (["broken.jsonl"], "broken.jsonl, line 1"),
        (["good.jsonl", "--guard", "gain=0.1"], "write forget=0.05"),
        (["good.jsonl", "--guard", "0.9"], "at most 0.4"),
        (["good.jsonl", "--against", "gone.jsonl"], "gone.jsonl"),
    ):
        code, out, err = said(capsys, "suite", "check", *arguments)
        assert code == 2 and out == "" and message in err, arguments


def test_another_suite_of_the_name_is_told_with_the_store(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["init"]) == 0
    from inlay.evals.ledger import keep_suite
    from inlay.registry import Registry

    with Registry.open() as store:
        keep_suite(store, Suite.load("bad.jsonl", name="good"))
    capsys.readouterr()
    code, out, _ = said(capsys, "suite", "check", "good.jsonl", "--store", "adapters_store")
    assert code == 0 and "good in the store has another digest" in out
    code, out, _ = said(capsys, "suite", "check", "good.jsonl")
    assert "another digest" not in out
    _, out, _ = said(capsys, "suite", "ls", "--json")
    assert [(s["name"], s["items"]) for s in json.loads(out)["result"]] == [
        ("good", 40),
        ("general-v1", 2056),
    ]
    code, out, _ = said(capsys, "suite", "ls")
    assert code == 0 and out.splitlines()[1].split()[0] == "good"
    with Registry.open() as store:
        keep_suite(store, Suite.load("bad.jsonl", name="general-v1"))
    code, out, _ = said(capsys, "suite", "check", "general-v1", "--store", "adapters_store")
    assert code == 0 and "has another digest" in out and "with 40 items" in " ".join(out.split())
    code, out, _ = said(capsys, "suite", "show", "general-v1", "--store", "adapters_store")
    assert code == 0 and "general-v1: 40 items in 1 skill," in out


def test_show_needs_no_store_for_what_ships(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "suite", "show", "general-v1", "--json")
    found = json.loads(out)["result"]
    assert code == 0 and found["digest"] == Suite.load("general-v1").digest
    assert found["skills"]["known_fact"] == {"items": 40, "held_out": 0, "metrics": ["multiple_choice_norm"]}
    assert found["skills"]["copy"] == {"items": 60, "held_out": 60, "metrics": ["exact_match"]}
    code, out, _ = said(capsys, "suite", "show", "general-v1")
    assert code == 0 and "general-v1: 2,056 items in 40 skills" in out
    code, _, err = said(capsys, "suite", "show", "nothing")
    assert code == 2 and "adapters_store" in err
