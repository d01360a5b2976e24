"""The command line as its users meet it: in-process through `run`, which is all that `main` adds exit to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from inlay.builtin import base_path
from inlay.builtin.tasks import rows
from inlay.cli import VERBS, run


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a store, entered."""
    monkeypatch.chdir(tmp_path)
    assert run(["init"]) == 0
    return tmp_path


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA for the built-in base, written without torch."""
    from inlay.registry.fingerprint import BaseFingerprint

    folder = tmp_path_factory.mktemp("lora")
    shapes = BaseFingerprint.of(base_path()).tensors
    random = np.random.default_rng(0)
    tensors = {}
    for layer in range(2):
        module = f"model.layers.{layer}.self_attn.q_proj"
        out, width = shapes[f"{module}.weight"][1]
        tensors[f"base_model.model.{module}.lora_A.weight"] = random.normal(size=(2, width)).astype(
            np.float32
        )
        tensors[f"base_model.model.{module}.lora_B.weight"] = random.normal(size=(out, 2)).astype(np.float32)
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


def copied(lora: Path, to: Path) -> Path:
    to.mkdir()
    for file in lora.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def snapshot(store: Path) -> dict[str, Any]:
    """Every object and every row of a store."""
    import sqlite3

    db = sqlite3.connect(store / "registry.db")
    tables = [r[0] for r in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    found: dict[str, Any] = {t: db.execute(f"SELECT * FROM {t}").fetchall() for t in tables}
    db.close()
    found["files"] = sorted(str(p.relative_to(store)) for p in (store / "objects").rglob("*") if p.is_file())
    return found


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    code, out, _ = said(capsys, *arguments, "--json")
    assert code == 0, out
    found = json.loads(out)
    assert found["schema"] == 1 and found["verb"] == arguments[0]
    return found["result"]


BASE = str(base_path())


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'peft', 'trl', 'numpy', 'sqlite_utils', 'rich', 'yaml', 'scipy'}"
    code = f"import sys; from inlay.cli import run; run(['-h']); sys.exit(len({heavy} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0
    )


@pytest.mark.parametrize("verb", [name for name, _, _ in VERBS])
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, verb, "--help")
    assert code == 0
    assert f"inlay {verb}" in out.split("Example")[1]
    assert "--json" in out


def test_the_way_of_an_adapter(work: Path, lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    other = copied(lora, work / "v2")
    tensors = load_file(other / "adapter_model.safetensors")
    save_file({k: v + 1 for k, v in tensors.items()}, other / "adapter_model.safetensors")
    assert (
        as_json(capsys, "add", "legal", str(lora), "--base", "builtin", "--why", "first")["ref"] == "legal@v1"
    )
    assert as_json(capsys, "add", "legal", str(lora), "--base", BASE)["ref"] == "legal@v1", (
        "the same bytes again"
    )
    assert as_json(capsys, "add", "legal", str(other), "--base", BASE)["ref"] == "legal@v2"
    as_json(capsys, "promote", "legal@v1", "--why", "good")
    (work / "acme.yaml").write_text("stack:\n  - legal@prod\n")
    assert as_json(capsys, "lock", "acme", "acme.yaml", "--to", "prod")["ref"] == "acme@v1"
    as_json(capsys, "promote", "legal@v2", "prod", "--expect", "v1")
    assert as_json(capsys, "lock", "acme", "acme.yaml", "--to", "prod")["members"][0]["ref"] == "legal@v2"
    code, _, err = said(capsys, "promote", "legal@v1", "prod", "--expect", "v1")
    assert code == 1 and "legal@v2" in err

    assert [row["aliases"] for row in as_json(capsys, "ls")] == [{"prod": "acme@v2"}, {"prod": "legal@v2"}]
    assert [row["ref"] for row in as_json(capsys, "ls", "legal")] == ["legal@v2", "legal@v1"]
    assert as_json(capsys, "show", "legal@v2")["live_in"] == ["legal@prod", "acme@prod"]
    plan = as_json(capsys, "plan", "acme")
    assert [slot["ref"] for slot in plan["slots"]] == ["legal@v2"] and plan["slots"][0]["rank"] == 2

    dry = as_json(capsys, "rollback", "legal@prod", "--dependents", "--dry-run", "--why", "bad")
    assert [e["to"] for e in dry["events"]] == ["legal@v1", "acme@v1"]
    assert as_json(capsys, "show", "acme")["ref"] == "acme@v2", "a dry run moves nothing"
    as_json(capsys, "rollback", "legal@prod", "--dependents", "--why", "hallucinates clauses")
    assert as_json(capsys, "show", "acme")["ref"] == "acme@v1"
    as_json(capsys, "yank", "legal@v2", "--why", "hallucinates clauses")
    code, _, err = said(capsys, "promote", "legal@v2")
    assert code == 2 and "yanked" in err
    log = as_json(capsys, "log")
    assert [e["verb"] for e in log][:3] == ["yank", "rollback", "rollback"]
    assert as_json(capsys, "fsck") == {"problems": [], "repaired": []}


def test_words_fit_a_narrow_terminal(
    work: Path, lora: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(["add", "team/legal-clauses-of-all-kinds", str(lora), "--base", BASE, "--why", "a long reason " * 6])
    run(["promote", "team/legal-clauses-of-all-kinds@v1"])
    monkeypatch.setenv("COLUMNS", "60")
    capsys.readouterr()
    for arguments in (["ls"], ["ls", "team/legal-clauses-of-all-kinds"]):
        code, out, _ = said(capsys, *arguments)
        assert code == 0 and out.strip()
        assert max(len(line) for line in out.splitlines()) <= 60


def test_what_others_wrote_cannot_steer_the_terminal(
    work: Path, lora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "fine\x1b[2J\nforged line"
    assert run(["add", "legal", str(lora), "--base", BASE, "--why", evil]) == 0
    assert run(["promote", "legal@v1", "--why", evil]) == 0
    capsys.readouterr()
    for arguments in (["ls", "legal"], ["log"], ["show", "legal@v1"]):
        _, out, _ = said(capsys, *arguments)
        assert "\x1b" not in out
        assert not any(line.startswith("forged") for line in out.splitlines())


def bad_inputs(work: Path, lora: Path) -> dict[str, tuple[list[str], str]]:
    """What goes wrong: the command, and a piece of the one line that says so."""
    files = {
        "fine.jsonl": '{"prompt": "a", "completion": "b"}\n',
        "malformed.jsonl": '{"prompt": "a", "completion": "b"}\n{"prompt": \n',
        "empty_line.jsonl": '{"prompt": "a", "completion": "b"}\n\n',
        "unknown_key.yaml": "stack:\n  - {use: legal@v1, weigth: 0.5}\n",
        "twice.yaml": "stack: [legal@v1]\nstack: [legal@v1]\n",
        "merge.yaml": "merge: [legal@v1, other@v1]\n",
        "guard.yaml": "forgot: 0.05\n",
    }
    for name, text in files.items():
        (work / name).write_text(text)
    nan = copied(lora, work / "nan")
    tensors = load_file(nan / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = np.nan
    save_file(tensors, nan / "adapter_model.safetensors")
    pickled = copied(lora, work / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    foreign = copied(lora, work / "foreign")
    save_file(
        {"base_model.model.model.layers.0.other.lora_A.weight": np.ones((2, 3), np.float32)},
        foreign / "adapter_model.safetensors",
    )
    other = work / "other-base"
    other.mkdir()
    for file in base_path().iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    weights = load_file(other / "model.safetensors")
    save_file({k: v * 2 for k, v in weights.items()}, other / "model.safetensors", metadata={"format": "pt"})
    add = ["add", "legal"]
    train = ["--base", BASE, "--name", "x"]
    return {
        "missing data": (["train", "absent.jsonl", *train], "absent.jsonl"),
        "malformed line": (["train", "malformed.jsonl", *train], "malformed.jsonl, line 2"),
        "empty line": (["train", "empty_line.jsonl", *train], "empty_line.jsonl, line 2 is empty"),
        "missing base": (["train", "fine.jsonl", "--base", "no-such-base", "--name", "x"], "no-such-base"),
        "bad name": (["add", "No Good", str(lora), "--base", BASE], "No Good"),
        "missing folder": ([*add, "absent", "--base", BASE], "absent"),
        "pickle": ([*add, str(pickled), "--base", BASE], "adapter_model.bin"),
        "nan": ([*add, str(nan), "--base", BASE], "NaN"),
        "tensor that fits nothing": ([*add, str(foreign), "--base", BASE], "layers.0.other"),
        "another base": (["generate", "legal@v1", "hello", "--base", str(other)], "made for the base"),
        "unknown name": (["show", "leagl"], "did you mean"),
        "unknown version": (["promote", "legal@v9"], "legal@v9"),
        "unknown key": (["lock", "acme", "unknown_key.yaml"], "weigth"),
        "key twice": (["lock", "acme", "twice.yaml"], "twice"),
        "unknown member": (["lock", "acme", "merge.yaml"], "other"),
        "missing recipe": (["lock", "acme", "absent.yaml"], "absent.yaml"),
        "unknown guard": (["guard", "legal@prod", "--set", "guard.yaml"], "forgot"),
        "unknown suite": (["eval", "legal@v1", "--suite", "absent-suite"], "absent-suite"),
        "unknown verb": (["frobnicate"], "frobnicate"),
        "unknown option": (["ls", "--frobnicate"], "--frobnicate"),
        "rollback of nothing": (["rollback", "legal@staging", "--why", "x"], "never promoted"),
    }  # fmt: skip


def test_bad_input_is_one_line_and_leaves_the_store_as_it_was(
    work: Path, lora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["add", "legal", str(lora), "--base", BASE]) == 0
    cases = bad_inputs(work, lora)
    before = snapshot(work / "adapters_store")
    for what, (arguments, piece) in cases.items():
        capsys.readouterr()
        code, out, err = said(capsys, *arguments)
        expected = 1 if what == "rollback of nothing" else 2
        assert code == expected, f"{what}: {code} {out} {err}"
        lines = [line for line in err.splitlines() if line.startswith("inlay: ")]
        assert len(lines) == 1 and piece in lines[0], f"{what}: {err}"
        assert "Traceback" not in err and "a bug" not in err, f"{what}: {err}"
        code, out, _ = said(capsys, *arguments, "--json")
        error = json.loads(out)["error"]
        assert code == expected and set(error) == {"type", "message", "fix"}, what
    assert snapshot(work / "adapters_store") == before


def test_no_store_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = said(capsys, "ls")
    assert code == 2 and "inlay init" in err


def test_a_bug_is_called_one(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import inlay.cli.look

    monkeypatch.setattr(inlay.cli.look, "open_store", lambda store: 1 / 0)
    code, _, err = said(capsys, "ls")
    assert code == 70 and "ZeroDivisionError" in err and "INLAY_TRACEBACK" in err


def test_ctrl_c_that_a_library_turned_into_an_error_of_its_own_is_no_bug(work: Path) -> None:
    """As the import of a compiled module does."""
    program = """
import os, signal
import inlay.cli.look
from inlay.cli import main

def imported(store):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        raise ImportError("a part of me is missing") from None

inlay.cli.look.open_store = imported
signal.signal(signal.SIGINT, signal.default_int_handler)
main(["ls"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=work, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.split("\n") == ["", "inlay: interrupted; what was registered stays registered", ""]


def test_ctrl_c_leaves_with_130_and_an_intact_store(work: Path) -> None:
    data = work / "d.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows("ticket-queue", "train", 200, 0)))
    command = [
        sys.executable,
        "-c",
        "from inlay.cli import main; main()",
        "train",
        str(data),
        "--base",
        BASE,
        "--name",
        "t",
    ]
    process = subprocess.Popen(
        [*command, "--steps", "100000"],
        cwd=work,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A test run in the background of a shell has Ctrl-C switched off, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        time.sleep(12)
        assert process.poll() is None, process.stderr and process.stderr.read()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "interrupted" in err and "Traceback" not in err
    assert run(["fsck", "--store", str(work / "adapters_store")]) == 0


def test_guard_refuses_with_exit_code_one_and_force_is_journaled(
    work: Path, lora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["add", "legal", str(lora), "--base", BASE])
    (work / "guard.yaml").write_text("forget: 0.05\nsuites: {general: [general-v1]}\n")
    assert run(["guard", "legal@prod", "--set", "guard.yaml", "--why", "contract"]) == 0
    capsys.readouterr()
    assert as_json(capsys, "guard", "legal@prod")["forget"] == 0.05
    code, _, err = said(capsys, "promote", "legal@v1")
    assert code == 1 and "not enough evidence" in err and len(err.strip().splitlines()) == 1
    code, _, err = said(capsys, "promote", "legal@v1", "--force")
    assert code == 2 and "why" in err
    assert run(["promote", "legal@v1", "--force", "--why", "the deadline is today"]) == 0
    capsys.readouterr()
    log = as_json(capsys, "log", "legal")
    assert [e["verb"] for e in log][:2] == ["promote", "refused"]
    assert "forc" in log[0]["sentence"]
