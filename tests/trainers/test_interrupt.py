"""Ctrl-C and SIGTERM keep what was done; a step that does not fit the memory says what to change."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from trainers_fakes import STEPS, command_in, few_steps, fitted_on

from inlay.cli import run as run_verb
from inlay.errors import InputError, Interrupted
from inlay.evals.inference import Base
from inlay.trainers import out_of_memory
from inlay.trainers.checkpoints import Checkpoints
from inlay.trainers.methods.sft import AnchoredSFTTrainer
from inlay.trainers.settings import Settings


def signalled(number: int, *, at: int, times: int = 1) -> Any:
    def progress(done: int, total: int, row: dict[str, float]) -> None:
        for _ in range(times if done == at else 0):
            signal.raise_signal(number)

    return progress


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_the_step_and_the_run_goes_on_from_it(number: int, base: Base, tmp_path: Path) -> None:
    settings = few_steps()
    unbroken, _ = fitted_on(base, settings)
    before = signal.getsignal(number)
    checkpoints = Checkpoints(tmp_path / "run")  # by time: none would be written yet
    with checkpoints.held():
        with pytest.raises(Interrupted, match=f"after step 4 of {STEPS}, which is kept; the same") as raised:
            fitted_on(base, settings, checkpoints=checkpoints, progress=signalled(number, at=4))
        assert raised.value.exit_code == 130
        assert signal.getsignal(number) is before
        found, taken_up = fitted_on(base, settings, checkpoints=checkpoints)
    assert (found, taken_up.resumed) == (unbroken, [4])


def test_the_second_one_leaves_at_once(base: Base, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    with checkpoints.held():
        with pytest.raises(KeyboardInterrupt):
            twice = signalled(signal.SIGINT, at=2, times=2)
            fitted_on(base, few_steps(), checkpoints=checkpoints, progress=twice)
        assert checkpoints.newest() is None


def test_without_checkpoints_nothing_stands_between(base: Base) -> None:
    # A shell that starts something in the background has it ignore SIGINT, tests as well.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            fitted_on(base, few_steps(), progress=signalled(signal.SIGINT, at=2))
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_verb_says_how_to_go_on_and_then_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import inlay.trainers.run as module

    command = [*command_in(tmp_path), "--batch", "4"]
    figures = module._figures

    def interrupting(row: dict[str, float]) -> str:
        if row["step"] == 2:
            signal.raise_signal(signal.SIGINT)
        return figures(row)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_figures", interrupting)
        assert run_verb(command) == 130
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "Interrupted" and "step 2 of 3" in error["message"]
    assert error["fix"] == "the same command goes on from there, --fresh begins anew"
    assert run_verb(command) == 0
    shown = capsys.readouterr()
    assert "note: going on from step 2 of 3" in shown.err
    result = json.loads(shown.out)["result"]
    assert result["ref"] == "tickets@v1" and result["run"]["resumed"] == [2]


def beyond_the_memory() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def on_cuda() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def in_python() -> None:
    raise MemoryError


@pytest.mark.parametrize("fails", [beyond_the_memory, on_cuda, in_python])
def test_out_of_memory_names_what_to_change(fails: Any, base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AnchoredSFTTrainer, "compute_loss", lambda *_given, **_named: fails())
    with pytest.raises(InputError) as raised:
        fitted_on(base, few_steps())
    assert raised.value.message == (
        "a step must fit the memory of cpu, and with batch_size 4, kl_batch_size 2, max_length 512 "
        "it does not"
    )
    assert raised.value.fix == (
        "--batch 2 --accumulate 2 (as many rows a step, half at once) or --kl-batch 1 or "
        "--gradient-checkpointing or rows shorter than 512 tokens"
    )
    assert "\n" not in str(raised.value)


def test_what_can_no_longer_be_lowered_is_not_named() -> None:
    tight = Settings().replaced(batch_size=1, kl=0.0, gradient_checkpointing=True)
    with pytest.raises(InputError) as raised, out_of_memory.said(tight, "cuda:0"):
        on_cuda()
    assert raised.value.fix == "rows shorter than 512 tokens"
    assert "kl_batch_size" not in raised.value.message


def test_kl_by_ratio_is_lowered_as_such() -> None:
    with pytest.raises(InputError) as raised, out_of_memory.said(Settings().replaced(kl_ratio=0.3), "cpu"):
        in_python()
    assert "kl_ratio 0.3," in raised.value.message and "or --kl-ratio 0.15 or" in str(raised.value.fix)


def test_another_error_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory.said(Settings(), "cpu"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
