"""Every command that the README shows is run as it stands there."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from inlay.builtin import base_path
from inlay.builtin.tasks import rows
from inlay.cli import VERBS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def block(title: str) -> str:
    """The fenced block under `<!-- test: title -->`."""
    found = re.search(rf"<!-- test: {re.escape(title)} -->\n```\w+\n(.*?)```", README, re.S)
    assert found, f"the README has no block for {title}"
    return found[1]


def test_every_block_of_commands_is_run_by_a_test() -> None:
    fenced = re.findall(r"(<!-- test: [^>]+ -->\n)?```(bash|python)\n(.*?)```", README, re.S)
    unmarked = [body for mark, _, body in fenced if not mark]
    assert [line.split()[:2] for body in unmarked for line in body.splitlines()] == [
        ["make", "demo"],
        ["make", "test"],
    ]
    for target in ("demo", "test", "test-slow"):
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_files_named_in_the_readme_exist() -> None:
    named = re.findall(r"^\| `([^`]+)`", README, re.M) + re.findall(
        r"\]\((docs/[^)]+|benchmarks/[^)]+)\)", README
    )
    assert len(named) > 10
    for path in named:
        assert (ROOT / path).exists(), path


def test_every_verb_is_documented() -> None:
    docs = README + "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    for verb, _, _ in VERBS:
        assert f"inlay {verb}" in docs, verb


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_of_the_readme(tmp_path: Path) -> None:
    shutil.copytree(base_path(), tmp_path / "my-base")
    for file, split, n in (("tickets.jsonl", "train", 320), ("tickets-test.jsonl", "test", 100)):
        (tmp_path / file).write_text("".join(json.dumps(r) + "\n" for r in rows("ticket-queue", split, n, 3)))
    (tmp_path / "acme.yaml").write_text("stack:\n  - tickets@prod\n")
    (tmp_path / "guard.yaml").write_text("forget: 0.05\nsuites: {general: [general-v1]}\n")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "2",
    }

    def shell(script: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    out = shell(block("six commands"))
    assert "registered tickets@v1" in out
    assert (tmp_path / "forgetting.html").stat().st_size > 10_000
    out = shell(block("further commands"))
    assert "tickets@v1" in out and "the store is sound" in out
    assert "support-team" in out and (tmp_path / "backup.bundle").stat().st_size > 100_000
    assert "tickets@v1" in (tmp_path / "CHANGES.md").read_text()
    (tmp_path / "example.py").write_text(block("python"))
    assert "tickets@v1" in shell(f"{sys.executable} example.py")
    serving = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", f"{block('serving').rstrip()} --port 0 --json"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert serving.stdout is not None
        url = json.loads(serving.stdout.readline())["result"]["url"]
        with pytest.raises(urllib.error.HTTPError, match="401"):  # since there is a key
            urllib.request.urlopen(f"{url}/models")
    finally:
        os.killpg(serving.pid, signal.SIGTERM)
        serving.wait(60)
