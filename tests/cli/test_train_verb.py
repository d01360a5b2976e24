"""`inlay train` as its users meet it: its help, its configuration, its refusals."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.utils import strip_ansi

from inlay.builtin.tasks import rows
from inlay.cli import run
from inlay.evals.suites import Suite
from inlay.registry import Registry
from inlay.registry.recipes import load_yaml
from inlay.trainers.kinds import KINDS
from inlay.trainers.presets import PRESETS
from inlay.trainers.settings import Settings

QUICK = ("--steps", "2", "--batch", "4", "--kl", "0", "--general", "small.jsonl")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A folder with a store, data and a small suite, entered."""
    monkeypatch.chdir(tmp_path)
    assert run(["init"]) == 0
    data = rows("ticket-queue", "train", 12, 0)
    (tmp_path / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    small = Suite("small", Suite.load("general-v1").items[::100])
    (tmp_path / "small.jsonl").write_bytes(small.to_jsonl())
    capsys.readouterr()
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(["train", *arguments])
    out, err = capsys.readouterr()
    return code, strip_ansi(out), err


@pytest.mark.parametrize("columns", [80, 40])
def test_help_fits_the_terminal(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = said(capsys, "--help")
    assert code == 0
    assert [line for line in out.splitlines() if len(line) > columns] == []


def test_help_has_every_setting_under_a_heading_with_its_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = said(capsys, "--help")[1]
    for field in dataclasses.fields(Settings):
        flag = field.metadata["flag"] or field.name.replace("_", "-")
        assert f"  --{flag} " in out or f"  --[no-]{flag} " in out
    headings = [line[:-1] for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings[:5] == [
        "The run",
        "What is trained",
        "How it is trained",
        "Against forgetting",
        "Data and methods",
    ]
    assert all(f"\n  {preset.name} " in out for preset in PRESETS)
    assert all(f"\n  {kind} " in out for kind in KINDS)
    assert "[default: 0.0002]" in out and "{}" not in out and "None" not in out


def test_help_and_configuration_import_no_torch(work: Path) -> None:
    heavy = "{'torch', 'transformers', 'peft', 'trl'}"
    for arguments in (["train", "--help"], ["train", "--base", "builtin", "--print-config"]):
        code = (
            f"import sys; from inlay.cli import run; assert run({arguments!r}) == 0; "
            f"sys.exit(len({heavy} & set(sys.modules)))"
        )
        found = subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False)
        assert found.returncode == 0, arguments


def test_the_printed_configuration_is_the_same_run(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("tickets.jsonl", "--base", "builtin", "--name", "tickets", *QUICK, "--rank-pattern", "q_proj=4")
    code, out, _ = said(capsys, *flags, "--preset", "instruction", "--replay", "0", "--print-config")
    assert code == 0
    (work / "run.yaml").write_text(out)
    assert not (work / "adapters_store" / "objects").exists() or not any(
        p.is_file() for p in (work / "adapters_store" / "objects").rglob("*")
    ), "nothing was trained"
    assert said(capsys, *flags, "--preset", "instruction", "--replay", "0", "--json")[0] == 0
    assert said(capsys, "--config", "run.yaml", "--json")[0] == 0
    with Registry.open(work / "adapters_store") as store:
        first = store.resolve("tickets@v1")
        assert [version.number for version in store.versions("tickets")] == [1], "the same bytes again"
        kept = store.run_of(first)  # type: ignore[arg-type]
        assert kept is not None and kept["settings"]["rank_pattern"] == {"q_proj": 4}
    assert said(capsys, "--config", "run.yaml", "--seed", "1", "--json")[0] == 0
    with Registry.open(work / "adapters_store") as store:
        run_of = store.run_of(store.resolve("tickets@v2"))  # type: ignore[arg-type]
        assert run_of is not None and run_of["settings"]["seed"] == 1, "a flag counts before the file"


def test_a_peft_configuration_from_a_file(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "loha.json").write_text('{"peft_type": "LOHA", "r": 2, "target_modules": ["q_proj"]}')
    flags = ("tickets.jsonl", "--base", "builtin", "--name", "tickets", *QUICK)
    code, out, _ = said(capsys, *flags, "--peft-config", "loha.json", "--json")
    assert code == 0
    assert json.loads(out)["result"]["run"]["settings"]["kind"]["peft_type"] == "LOHA"
    code, out, _ = said(capsys, *flags, "--peft-config", "loha.json", "--print-config")
    assert load_yaml(out, "run")["kind"] == {"peft_type": "LOHA", "r": 2, "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--base", "builtin", "--name", "a"], "a run is trained on data, and none is named"),
        (["tickets.jsonl", "--name", "a"], "a run needs a base and a name, and the base is not given"),
        (["tickets.jsonl", "--base", "builtin"], "the name is not given"),
        (["tickets.jsonl", "--base", "builtin", "--sweep", "lr=1e-3"], "a sweep needs a base and a name"),
        (["--print-config"], "settings are a base's, and none is named"),
        (["--config", "none.yaml"], "cannot read the run configuration"),
        (["--config", "bad.yaml"], "did you mean learning_rate?"),
        (["--kind", "dora", "--peft-config", "x.json"], "stands in place of --kind"),
        (["--kind", "lorra"], "'lorra' is not one of"),
        (["--rank", "many"], "is not a valid int"),
        (["tickets.jsonl", "--base", "builtin", "--name", "a", "--layers", "9-99"], "9-99 is not among them"),
        (["tickets.jsonl", "--base", "builtin", "--name", "a", "--kind", "qlora"], "QLoRA needs CUDA"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    flags: list[str], says: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "bad.yaml").write_text("learnin_rate: 1\n")
    code, out, err = said(capsys, *flags)
    assert code == 2 and out == ""
    assert says in err and err.count("\n") == 1


def test_json_says_the_configuration(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "--base", "builtin", "--preset", "domain", "--print-config", "--json")
    found: dict[str, Any] = json.loads(out)["result"]
    assert code == 0 and found["base"] == "builtin"
    assert (found["method"], found["rank"]) == ("domain", 64)
