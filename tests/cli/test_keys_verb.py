"""inlay keys add, ls, revoke: a secret is said once, on stdout alone, and nowhere else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from safetensors.numpy import save_file

from inlay.builtin import base_path
from inlay.cli import run
from inlay.cli.keys import keys_verb
from inlay.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
INLAY = f'{sys.executable} -c "from inlay.cli import main; main()"'


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a store, entered."""
    monkeypatch.chdir(tmp_path)
    assert run(["init"]) == 0
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    code, out, _ = said(capsys, *arguments, "--json")
    assert code == 0, out
    found = json.loads(out)
    assert found["schema"] == 1 and found["verb"] == " ".join(arguments[:2])
    return found["result"]


def test_a_shell_gets_the_secret_alone(work: Path) -> None:
    script = f'KEY=$({INLAY} keys add acme-corp --allow acme --rate 600); printf "[%s]" "$KEY"'
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, timeout=60, check=True)
    found = re.fullmatch(r"\[(inlay-[A-Za-z0-9_-]{43})\]", done.stdout)
    assert found
    with Registry.open() as registry:
        key = registry.key_of(found[1])
        assert key is not None and (key.tenant, key.allow, key.rate) == ("acme-corp", ("acme",), 600)
    assert done.stderr.splitlines() == [
        f"made key {key.id} of acme-corp; keep its secret now, it is not shown again",
        "note: acme is not in the store, or not yet",
    ]


def test_keys_are_made_listed_and_revoked(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    assert said(capsys, "keys", "ls") == (0, "there are no keys\n", "")
    options = ["--name", "phone", "--allow", "acme@prod", "--allow", "base", "--concurrent", "4", "--admin"]
    made = as_json(capsys, "keys", "add", "acme-corp", *options)
    secret = made.pop("secret")
    expected = {
        "tenant": "acme-corp",
        "name": "phone",
        "allow": ["acme@prod", "base"],
        "rate": None,
        "concurrent": 4,
        "admin": True,
        "revoked": None,
        "why": None,
        "damaged": False,
    }
    assert {key: made[key] for key in expected} == expected
    assert set(made) - set(expected) == {"id", "who", "created"}
    assert as_json(capsys, "keys", "ls") == [made]
    code, out, err = said(capsys, "keys", "ls")
    assert (code, err) == (0, "") and secret not in out
    assert re.split(r"  +", out.splitlines()[1].strip()) == [
        made["id"], "acme-corp", "phone", "acme@prod, base, admin", "4 at once", made["created"][:10],
    ]  # fmt: skip
    code, out, _ = said(capsys, "keys", "revoke", made["id"], "--why", "found in a log")
    assert code == 0
    assert re.fullmatch(rf"key {made['id']} of acme-corp is revoked since [0-9T:-]+: found in a log\n", out)
    [gone] = as_json(capsys, "keys", "ls")
    assert gone == as_json(capsys, "keys", "revoke", made["id"], "--why", "again")
    assert gone["why"] == "found in a log" and gone["revoked"] > gone["created"]
    assert "found in a log" in said(capsys, "keys", "ls")[1]
    with Registry.open() as registry:
        assert registry.key_of(secret) is None


@pytest.mark.parametrize(
    ("arguments", "piece"),
    [
        (["add"], "Missing argument 'TENANT'"),
        (["add", "Acme Corp"], "a tenant must match"),
        (["add", "acme-corp", "--allow", "No Good"], "a name must match"),
        (["add", "acme-corp", "--rate", "0"], "rate must be a whole number from 1"),
        (["add", "acme-corp", "--rate", "many"], "many"),
        (["revoke", "0123456789ab"], "--why"),
        (["revoke", "0123456789ab", "--why", "x"], "there is no key 0123456789ab; see `inlay keys ls`"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], piece: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = said(capsys, "keys", *arguments)
    assert (code, out) == (2, "") and err.count("\n") == 1 and piece in err
    with Registry.open() as registry:
        assert registry.keys() == []


def test_a_secret_pasted_in_the_ids_place_is_not_repeated(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, secret, _ = said(capsys, "keys", "add", "acme-corp")
    for extra in ([], ["--json"]):
        code, out, err = said(capsys, "keys", "revoke", secret.strip(), "--why", "lost", *extra)
        assert code == 2 and secret.strip()[6:] not in out + err and "twelve hexadecimal digits" in out + err


def test_what_others_wrote_cannot_steer_the_terminal_and_fits_it(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "fine\x1b[2J\nforged line"
    assert (
        run(["keys", "add", "acme-corp", "--name", evil, *["--allow", "a/long-name-of-a-variant"] * 3]) == 0
    )
    with Registry.open() as registry:
        [key] = registry.keys()
    monkeypatch.setenv("COLUMNS", "60")
    for arguments in (["revoke", key.id, "--why", evil], ["ls"]):
        code, out, _ = said(capsys, "keys", *arguments)
        assert code == 0 and "\x1b" not in out
        assert not any(line.startswith("forged") for line in out.splitlines())
    assert max(len(line) for line in out.splitlines()) <= 60 and key.id in out


def test_a_damaged_key_is_shown_as_one(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "add", "acme-corp"]) == 0
    with Registry.open() as registry:
        connection = registry._store.db.connection
        sql = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'api_keys_refuse_update'")
        trigger = sql.fetchone()[0]
        connection.execute("DROP TRIGGER api_keys_refuse_update")
        connection.execute("UPDATE api_keys SET admin = 1")
        connection.execute(trigger)
    assert "damaged, see inlay" in said(capsys, "keys", "ls")[1]
    assert as_json(capsys, "keys", "ls")[0]["damaged"] is True
    code, out, err = said(capsys, "fsck")
    assert code == 1 and "its row was edited after it was made" in out + err


def lora(folder: Path) -> Path:
    """A LoRA for the built-in base."""
    from inlay.registry.fingerprint import BaseFingerprint

    folder.mkdir()
    out, width = BaseFingerprint.of(base_path()).tensors["model.layers.0.self_attn.q_proj.weight"][1]
    module, random = "base_model.model.model.layers.0.self_attn.q_proj", np.random.default_rng(0)
    tensors = {
        f"{module}.lora_A.weight": random.normal(size=(2, width)).astype(np.float32),
        f"{module}.lora_B.weight": random.normal(size=(out, 2)).astype(np.float32),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_no_verb_says_or_writes_a_secret(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = said(capsys, "keys", "add", "acme-corp", "--allow", "legal")
    _, more, _ = said(capsys, "keys", "add", "acme-corp", "--json")
    secrets = [out.strip()[6:], json.loads(more)["result"]["secret"][6:]]
    with Registry.open() as registry:
        keys = registry.keys()
    hashes = [key.digest[7:] for key in keys]
    assert run(["keys", "revoke", keys[1].id, "--why", "lost"]) == 0
    assert run(["add", "legal", str(lora(work / "lora")), "--base", "builtin", "--tag", "law"]) == 0
    (work / "acme.yaml").write_text("stack: [legal@v1]\n")
    for verb in (
        ["promote", "legal@v1", "--why", "first"],
        ["lock", "acme", "acme.yaml", "--to", "prod"],
        ["ls"],
        ["show", "legal@v1", "--json"],
        ["show", "acme"],
        ["log"],
        ["log", "--json"],
        ["log", "--head"],
        ["plan", "acme"],
        ["export", "acme", "out"],
        ["bundle", "all.bundle"],
        ["fsck"],
        ["fsck", "--json"],
        ["gc"],
        ["keys", "ls"],
        ["keys", "ls", "--json"],
    ):
        code, out, err = said(capsys, *verb)
        assert code == 0, (verb, err)
        assert not any(word in out + err for word in (*secrets, *hashes)), verb
    written = [path for path in work.rglob("*") if path.is_file()]
    assert {path.name for path in written} >= {"all.bundle", "registry.db", "adapter_model.safetensors"}
    for path in written:
        held = path.read_bytes()
        assert not any(secret.encode() in held for secret in secrets), path
        if not path.name.startswith("registry.db"):
            assert not any(digest.encode() in held for digest in hashes), path


@pytest.mark.parametrize("verb", ["add", "ls", "revoke"])
def test_every_verb_has_an_example_and_every_option_is_documented(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = said(capsys, "keys", verb, "--help")
    assert code == 0 and f"inlay keys {verb}" in out.split("Example")[1]
    documented = (ROOT / "docs/keys.md").read_text()
    assert f"inlay keys {verb}" in documented
    assert f"inlay keys {verb}" in (ROOT / "docs/cli.md").read_text()
    options = [o for p in keys_verb.commands[verb].params if isinstance(p, click.Option) for o in p.opts]
    assert {"--json", "--store"} <= set(options)
    assert [o for o in options if o not in ("--json", "--store") and f"`{o}" not in documented] == []


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'peft', 'numpy', 'sqlite_utils', 'rich', 'yaml', 'fastapi'}"
    code = (
        "import sys; from inlay.cli import run; run(['keys', 'add', '--help']); "
        f"sys.exit(len({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False)
    assert done.returncode == 0
