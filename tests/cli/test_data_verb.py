"""`inlay data check`: what it prints, its one JSON object, its page and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inlay.cli import run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    names = ("Anna", "Otto", "Clara", "Emil", "Greta", "Hugo", "Ida", "Karl")
    rows = [
        {
            "instruction": ("Which depot?", "Name the depot.", "Find the depot.")[n % 3],
            "input": f"{names[n % 8]} waits for parcel {n * 37 % 101}",
            "output": f"depot {n * 37 % 101 % 7}",
        }
        for n in range(60)
    ]
    write(tmp_path / "good.jsonl", rows)
    write(tmp_path / "twice.jsonl", [*rows, rows[4]])
    write(tmp_path / "bad.jsonl", [*rows, {**rows[5], "do_not_train": True}])
    item = {"prompt": f"{rows[2]['instruction']}\n{rows[2]['input']}", "answer": rows[2]["output"]}
    write(tmp_path / "test.jsonl", [item])
    return tmp_path


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(["data", "check", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_exit_codes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "good.jsonl", "--strict")
    assert code == 0 and out.startswith("good.jsonl: 60 lines; 0 errors, 0 warnings\n")
    assert "note (no-licence): no licence stated" in out
    code, out, _ = said(capsys, "twice.jsonl")
    assert code == 0 and "warning (duplicate): 1 row is the same as an earlier one: line 61" in out
    assert said(capsys, "twice.jsonl", "--strict")[0] == 1
    code, out, _ = said(capsys, "bad.jsonl")
    assert code == 1 and "1 error, 1 warning; it will not be trained on" in out
    assert "error (forbidden): 1 row is marked as not to be trained on: line 61" in out
    code, out, _ = said(capsys, "good.jsonl", "--against", "test.jsonl")
    assert code == 1 and "error (leak): 1 prompt is in the suite test: line 3" in out
    assert max(map(len, out.splitlines())) <= 80


def test_json_and_page_with_a_base(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "bad.jsonl", "--base", "builtin", "--html", "page.html", "--json")
    told = json.loads(out)
    assert code == 1 and told["verb"] == "data check" and told["result"]["ok"] is False
    assert told["result"]["figures"]["tokens"]["most"] < told["result"]["figures"]["limit"] == 512
    assert told["result"]["figures"]["nats"]["median"] > 0
    assert "not to be trained on" in (folder / "page.html").read_text()
    code, out, _ = said(capsys, "good.jsonl", "--base", "builtin", "--max-length", "9", "--no-surprisal")
    assert code == 1 and "error (too-long): 60 rows have more than the 9 tokens that fit" in out
    assert "nats" not in out


def test_what_cannot_be_checked_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "empty.jsonl").write_text("")
    (folder / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    for arguments, message in (
        (["none.jsonl"], "there is none at none.jsonl"),
        (["."], "is a folder"),
        (["empty.jsonl"], "holds none"),
        (["binary.jsonl"], "must be UTF-8"),
        (["good.jsonl", "--against", "gone.jsonl"], "gone.jsonl"),
        (["good.jsonl", "--max-length", "0"], "max-length"),
    ):
        code, out, err = said(capsys, *arguments)
        assert code == 2 and out == "" and message in err, arguments


def test_an_interruption_leaves_with_130(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("inlay.trainers.quality.data_check.found_in", interrupted)
    code, out, err = said(capsys, "good.jsonl", "--html", "page.html")
    assert code == 130 and out == "" and "interrupted" in err
    assert not (folder / "page.html").exists()
