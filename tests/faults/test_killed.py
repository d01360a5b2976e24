"""kill -9 before every step of every operation: the old state or the new one, and nothing stays broken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import system_calls
from killing import OPERATIONS

FAST = "promote"
IN_DEPTH = (
    "init",
    "add the next version",
    "promote",
    "rollback with dependents",
    "purge",
    "gc",
    "lock a route",
)


def killed(made: Path, operation: str, tmp_path: Path, way: str = "steps") -> dict[str, int]:
    script = Path(__file__).with_name("killing.py")
    done = subprocess.run(
        [sys.executable, str(script), str(made), operation, str(tmp_path), way],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_killed_in_the_middle_of_a_promotion(made: Path, tmp_path: Path) -> None:
    found = killed(made, FAST, tmp_path)
    assert found["old"] >= 8 and found["new"] >= 2


@pytest.mark.slow
@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name != FAST])
def test_killed_at_every_step(operation: str, made: Path, tmp_path: Path) -> None:
    found = killed(made, operation, tmp_path)
    assert found["old"] + found["new"] >= 10
    assert (
        found["new"] >= 2 or OPERATIONS[operation].stride > 1
    )  # what is done is done, even if it was killed before it said so
    print(operation, found)


@pytest.mark.slow
@pytest.mark.parametrize("operation", IN_DEPTH)
def test_killed_at_every_system_call_that_changes_the_disk(
    operation: str, made: Path, tmp_path: Path
) -> None:
    reason = system_calls.why_not()
    if reason is not None:
        pytest.skip(f"a child cannot be traced here: {reason}")
    found = killed(made, operation, tmp_path, "calls")
    assert found["old"] + found["new"] >= 15
    assert found["new"] >= 5  # what SQLite does after it has committed can no longer undo it
    print(operation, found)
