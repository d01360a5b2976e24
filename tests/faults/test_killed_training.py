"""kill -9 at any step, call and moment of a training: taken up, it has the bits of an unbroken one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("kl", ["0", "1"])
def test_killed_and_taken_up_it_has_the_same_bits(kl: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killing_training.py")), str(tmp_path), kl],
        capture_output=True,
        text=True,
        timeout=580,
        env={**os.environ, "OMP_NUM_THREADS": "1", "INLAY_CACHE": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    resumed = json.loads(done.stdout)
    assert resumed["steps"] == [0, 1, 2, 3, 4, 5]
    # Killed while a checkpoint was written, it goes on from the one before.
    assert set(resumed["calls"]) >= set(range(7)) and resumed["calls"] == sorted(resumed["calls"])
    assert len(set(resumed["moments"])) >= 3
    print(resumed)
