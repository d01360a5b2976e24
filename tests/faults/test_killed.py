"""kill -9 before every step of every operation: the old state or the new one, and nothing stays broken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from killing import OPERATIONS

FAST = "promote"


def killed(made: Path, operation: str, tmp_path: Path) -> dict[str, int]:
    script = Path(__file__).with_name("killing.py")
    done = subprocess.run(
        [sys.executable, str(script), str(made), operation, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_killed_in_the_middle_of_a_promotion(made: Path, tmp_path: Path) -> None:
    found = killed(made, FAST, tmp_path)
    assert found["old"] >= 8 and found["steps"] == found["old"] + found["new"]


@pytest.mark.slow
@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name != FAST])
def test_killed_at_every_step(operation: str, made: Path, tmp_path: Path) -> None:
    found = killed(made, operation, tmp_path)
    assert found["steps"] == found["old"] + found["new"] >= 10
    assert found["new"] >= 2  # what is done is done, even for who is killed before saying so
    print(operation, found)
