"""Several processes train one adapter together: all have its weights, one registers and speaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from trainers_fakes import command_in, few_steps, fitted_on

from inlay.evals.inference import Base
from inlay.registry import Registry
from inlay.trainers import processes

HERE = Path(__file__).parent
PROCESSES = 2


def launched(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*torchrun, "--nproc-per-node", str(PROCESSES), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def test_one_process_needs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "3")  # left by somebody else
    assert (processes.count(), processes.index(), processes.is_main()) == (1, 0, True)
    assert processes.device("cuda") == "cuda" and processes.together([1.5, 2.0], "cpu") == [1.5, 2.0]
    with processes.main_first():
        pass


@pytest.mark.slow
def test_all_have_the_same_weights_and_a_run_is_taken_up(base: Base, tmp_path: Path) -> None:
    script = [str(HERE / "launched.py"), str(tmp_path)]
    done = launched(script)
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"{i}.json").read_text()) for i in range(PROCESSES)]
    assert found[0] == found[1]
    (tmp_path / "run" / "step-00000006" / "sha256.json").unlink()
    done = launched(script)
    assert done.returncode == 0, done.stderr
    again = [json.loads((tmp_path / f"{i}.json").read_text()) for i in range(PROCESSES)]
    assert again[0]["resumed"] == [4] and again[0] == again[1]
    assert again[0]["bits"] == found[0]["bits"] and again[0]["curve"] == found[0]["curve"]
    # Two rows in each of two processes are the four of one.
    _, alone = fitted_on(base, few_steps())
    assert found[0]["tokens"] == alone.task_tokens
    first, same = found[0]["curve"][0], alone.curve[0]
    assert first["loss"] == pytest.approx(same["loss"], rel=1e-4)


@pytest.mark.slow
def test_one_version_is_registered_and_one_object_printed(tmp_path: Path) -> None:
    command = ["-m", "inlay", *command_in(tmp_path), "--batch", "2", "--accumulate", "2"]
    done = launched(command)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["result"]
    assert result["ref"] == "tickets@v1"
    assert (result["run"]["processes"], result["run"]["rows_a_step"]) == (PROCESSES, 8)
    with Registry.open(tmp_path / "store") as store:
        assert len(store.versions("tickets")) == 1 and store.fsck() == []
