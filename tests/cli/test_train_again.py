"""`inlay train --from` and `--rebase`, as their users meet them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import inlay
from inlay.builtin import base_path
from inlay.builtin.tasks import rows
from inlay.cli import run
from inlay.evals import Suite

QUICK = ("--steps", "2", "--batch", "4", "--kl-batch", "2", "--rank", "2", "--alpha", "4", "--no-few-shot")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store, data, and suites of a few items; the base's files under a second name with other weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INLAY_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "80")
    inlay.Registry.open(tmp_path / "store", create=True).close()
    for name, split, n in (("tickets.jsonl", "train", 24), ("tickets-test.jsonl", "test", 10)):
        lines = [json.dumps(row) + "\n" for row in rows("ticket-queue", split, n, 0)]
        (tmp_path / name).write_text("".join(lines))
    small = Suite("small", Suite.load("general-v1").items[::100])
    (tmp_path / "small.jsonl").write_bytes(small.to_jsonl())
    (tmp_path / "prompts.jsonl").write_text(
        '{"prompt": "Copy the word: lamp"}\n{"prompt": "What is 3 plus 4?"}\n'
    )
    return tmp_path


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run(["train", *arguments])
    return code, *capsys.readouterr()


def result(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code, out, error = asked(capsys, *arguments, "--json")
    assert code == 0, error
    return json.loads(out)["result"]  # type: ignore[no-any-return]


@pytest.mark.slow
def test_train_go_on_and_train_again(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(1)
    judged = (
        "--eval",
        "tickets-test.jsonl",
        "--general",
        "small.jsonl",
        "--general-prompts",
        "prompts.jsonl",
    )
    first = result(
        capsys, "tickets.jsonl", "--base", "builtin", "--name", "tickets", "--keep-data", *judged, *QUICK
    )
    on = result(capsys, "tickets.jsonl", "--from", "tickets@v1", *judged, *QUICK)
    assert (first["ref"], on["ref"]) == ("tickets@v1", "tickets@v2")
    assert on["run"]["parent"]["digest"] == first["digest"]
    assert on["report"]["earlier"]["lost"]["n"] == 10 and on["report"]["earlier"]["parent"] == "tickets@v1"

    def shown(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        return run(["show", *arguments]), *capsys.readouterr()

    code, out, _ = shown("tickets@v2", "--run", "--html", "run.html")
    assert code == 0 and out.strip().splitlines()[0] in " ".join(on["verdict"].split()).replace("\n", " ")
    assert "Loss, nats an answer token" in out and "tickets@v2" in (work / "run.html").read_text()
    said = json.loads(shown("tickets@v2", "--run", "--json")[1])["result"]
    assert said == on["whole"]
    assert shown("tickets@v2", "--html", "run.html")[0] == 2
    inlay.Registry.open(work / "store").lock("acme", {"compose": {"stack": ["tickets@v1"]}})
    assert "needs a training record, and acme@v1 has none" in shown("acme@v1", "--run")[2]

    shutil.copytree(base_path(), work / "next", ignore=shutil.ignore_patterns("*.safetensors"))
    (file,) = base_path().glob("*.safetensors")
    save_file({name: t * 1.01 for name, t in load_file(file).items()}, work / "next" / file.name)
    again = (
        "--rebase",
        "tickets@v1",
        "--base",
        "next",
        "--general-prompts",
        "prompts.jsonl",
        "--no-few-shot",
    )
    code, out, error = asked(capsys, *again)
    assert code == 0, error
    assert "registered tickets@v3, which is tickets@v1 trained again" in out
    assert "tickets@v1 on inlay-base-2m, tickets@v3 on next" in out
    table = out[: out.index("registered")]
    assert max(map(len, table.splitlines())) <= 80
    refused = asked(capsys, "tickets-test.jsonl", *again)
    assert refused[0] == 2 and "24 of 24 rows are missing, 10 are new" in refused[2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rebase", "tickets@v1"], "trained again on another base, and none is named"),
        (
            ["--rebase", "tickets@v1", "--base", "b", "--eval", "s.jsonl", "--minimum", "0.5"],
            "no --eval, --minimum",
        ),
        (["--rebase", "tickets@v1", "--base", "b", "--sweep", "lr=1e-3"], "no --sweep with --rebase"),
        (["d.jsonl", "--defaults"], "--defaults says which settings a --rebase takes"),
        (
            ["d.jsonl", "--from", "t@v1", "--base", "b", "--name", "t", "--sweep", "lr=1e-3"],
            "no --from",
        ),
        (["d.jsonl", "--from", "tickets@v9"], "there is no 'tickets' in the registry"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_go_together(
    work: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    code, _, error = asked(capsys, *arguments)
    assert code == 2 and says in error
