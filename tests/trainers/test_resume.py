"""A run that was ended anywhere and taken up has the bits of one that was not; and nothing half written is
believed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from trainers_fakes import ROWS, STEPS, command_in, few_steps, fitted_on

import inlay
from inlay.builtin.tasks import rows
from inlay.errors import InputError, StoreBusy
from inlay.evals import Suite
from inlay.evals.inference import Base
from inlay.evals.prompts import read_prompts
from inlay.registry import Registry
from inlay.trainers.checkpoints import KEPT, STALE_DAYS, Checkpoints
from inlay.trainers.fit import Fitted
from inlay.trainers.settings import Settings

PER_EPOCH = ROWS // 4


class Killed(BaseException):
    """Stands for the end of the process."""


def end_at(step: int) -> Any:
    """A progress that ends the training at `step`, before that step's checkpoint is written."""

    def progress(done: int, total: int, row: dict[str, float]) -> None:
        if done == step:
            raise Killed

    return progress


def left(fitted: Fitted) -> tuple[Any, ...]:
    """All that a run leaves beside its weights and how long it took."""
    return fitted.curve, fitted.steps, fitted.task_tokens, fitted.general_tokens


PAIRS = [
    {"prompt": f"Which queue: parcel {i} is late?", "chosen": "delivery", "rejected": "billing"}
    for i in range(ROWS)
]
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({"kl": 0.0}, {}),
    "kl": ({"kl": 1.0}, {}),
    "kl by ratio, accumulated": ({"kl_ratio": 0.3, "accumulate": 2, "batch_size": 2}, {}),
    "early stop": ({"stop_forgetting": 10.0, "stop_every": 2}, {"prompts": read_prompts(None)[::9]}),
    "domain": (
        {"method": "domain", "max_length": 64},
        {"data": ["The river is wide and the garden small. " * 40]},
    ),
    "dpo": ({"method": "dpo"}, {"data": PAIRS}),
    "full": ({"method": "full", "learning_rate": 1e-3}, {}),
}
"""Name -> settings, and what is trained on."""


def has_the_same_bits(variant: str, base: Base, folder: Path, steps: Sequence[int]) -> None:
    """End the training at each of `steps` and take it up; compare with one that nobody ended."""
    changes, given = VARIANTS[variant]
    settings = few_steps(**changes)
    unbroken, whole = fitted_on(base, settings, **given)
    assert whole.resumed == [] and len(whole.curve) == whole.steps
    for step in [s for s in steps if s <= whole.steps]:
        checkpoints = Checkpoints(folder / f"run{step}", every=1)
        with checkpoints.held():
            with pytest.raises(Killed):
                fitted_on(base, settings, checkpoints=checkpoints, progress=end_at(step), **given)
            found, taken_up = fitted_on(base, settings, checkpoints=checkpoints, **given)
        assert found == unbroken, f"ended at step {step}"
        assert left(taken_up) == left(whole), f"ended at step {step}"
        assert taken_up.resumed == ([step - 1] if step > 1 else [])


@pytest.mark.parametrize("variant", ["plain", "kl"])
def test_taken_up_it_has_the_same_bits(variant: str, base: Base, tmp_path: Path) -> None:
    """Ended in the first step, between two passes over the data, within one, and in the last step."""
    has_the_same_bits(variant, base, tmp_path, (1, PER_EPOCH + 1, PER_EPOCH + 2, STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_taken_up_after_any_step_it_has_the_same_bits(variant: str, base: Base, tmp_path: Path) -> None:
    has_the_same_bits(variant, base, tmp_path, range(1, STEPS + 1))


def test_ended_between_checkpoints_and_again_and_after_the_last_step(base: Base, tmp_path: Path) -> None:
    settings = few_steps()
    unbroken, whole = fitted_on(base, settings)
    checkpoints = Checkpoints(tmp_path / "run", every=2)
    with checkpoints.held():
        for step in (4, 5):
            with pytest.raises(Killed):
                fitted_on(base, settings, checkpoints=checkpoints, progress=end_at(step))
        found, taken_up = fitted_on(base, settings, checkpoints=checkpoints)
        assert (found, left(taken_up), taken_up.resumed) == (unbroken, left(whole), [2, 4])
        # The last step's checkpoint is there until the run is registered and measured.
        again, done = fitted_on(base, settings, checkpoints=checkpoints)
        assert (again, left(done), done.resumed) == (unbroken, left(whole), [2, 4, STEPS])


def test_checkpoints_of_another_model_are_refused(base: Base, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run", every=1)
    with checkpoints.held():
        fitted_on(base, few_steps(kl=0.0, max_steps=1), checkpoints=checkpoints)
        with pytest.raises(InputError, match="must hold the parameters that are trained"):
            fitted_on(base, few_steps(kl=0.0, rank=3), checkpoints=checkpoints)


# The files


def write(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(folder.name.encode() * 1000)


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run", every=1)
    with checkpoints.held():
        assert checkpoints.newest() is None
        for step in range(1, 6):
            checkpoints.save(step, {"steps": 5}, write)
        steps = sorted(path.name for path in checkpoints.folder.glob("step-*"))
        assert steps == ["step-00000004", "step-00000005"] and len(steps) == KEPT
        file = checkpoints.folder / "step-00000005" / "weights.safetensors"
        held = file.read_bytes()
        for damaged in (held[:-1], b"x" + held[1:], b""):
            file.write_bytes(damaged)
            found = checkpoints.newest()
            assert found is not None and found.step == 4
        file.unlink()
        found = checkpoints.newest()
        assert found is not None and (found.step, found.record) == (4, {"steps": 5})
        checkpoints.save(5, {"steps": 5}, write)  # in place of the damaged one
        found = checkpoints.newest()
        assert found is not None and found.step == 5


CALLS = ("open", "fsync", "rename", "mkdir", "unlink", "rmdir")


def test_an_end_at_any_call_leaves_the_old_checkpoint_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends before each call that changes the disk, one later every time."""
    outcomes = []
    for fatal in range(1, 100):
        checkpoints = Checkpoints(tmp_path / f"run{fatal}", every=1)
        count = 0

        def counted(function: Any, fatal: int = fatal) -> Any:
            def call(*arguments: Any, **named: Any) -> Any:
                nonlocal count
                count += 1
                if count == fatal:
                    raise Killed
                return function(*arguments, **named)

            return call

        with checkpoints.held():
            for step in (1, 2):
                checkpoints.save(step, {"steps": 9}, write)
            with monkeypatch.context() as patch:
                for name in CALLS:
                    patch.setattr(os, name, counted(getattr(os, name)))
                with contextlib.suppress(Killed):
                    checkpoints.save(3, {"steps": 9}, write)
            found = checkpoints.newest()
        assert found is not None and found.step in (2, 3), fatal
        outcomes.append(found.step)
        with checkpoints.held():
            assert not list(checkpoints.folder.glob("writing-*"))
            checkpoints.save(4, {"steps": 9}, write)
            later = checkpoints.newest()
            assert later is not None and later.step == 4
        if count < fatal:
            break
    assert outcomes.count(2) >= 5 and outcomes.count(3) >= 2
    assert outcomes == sorted(outcomes)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    one, other = Checkpoints(tmp_path / "runs" / "a"), Checkpoints(tmp_path / "runs" / "a")
    with one.held():
        with pytest.raises(StoreBusy, match=f"one process at a time, this one by process {os.getpid()}"):
            other.held().__enter__()
        one.save(1, {}, write)
    with other.held():
        assert other.newest() is not None
    with other.held(fresh=True):
        assert other.newest() is None
    assert not (tmp_path / "runs").exists()  # nothing was left that is worth keeping


def test_runs_that_nobody_goes_on_with_are_given_up(tmp_path: Path) -> None:
    old, new = Checkpoints(tmp_path / "runs" / "old"), Checkpoints(tmp_path / "runs" / "new")
    for each in (old, new):
        with each.held():
            each.save(1, {}, write)
    long_ago = time.time() - (STALE_DAYS + 1) * 86400
    for path in [old.folder, *old.folder.iterdir()]:
        os.utime(path, (long_ago, long_ago))
    with Checkpoints(tmp_path / "runs" / "third").held():
        pass
    assert not old.folder.exists() and new.newest() is not None


def test_written_by_time_they_cost_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    checkpoints = Checkpoints(tmp_path / "run")
    with checkpoints.held():
        assert not checkpoints.due(1000)
        now = 61.0
        assert checkpoints.due(1)

        def slow(folder: Path) -> None:
            nonlocal now
            now += 10.0
            write(folder)

        checkpoints.save(1, {}, slow)
        now += 400.0
        assert not checkpoints.due(2)  # ten seconds a checkpoint, two of a hundred at most
        now += 101.0
        assert checkpoints.due(2)
    assert [Checkpoints(tmp_path / "run", every=3).due(step) for step in (1, 2, 3, 6)] == [0, 0, 1, 1]


# The run


@pytest.fixture(scope="module")
def small() -> Suite:
    return Suite("small", Suite.load("general-v1").items[::50])


def run(base: Base, store: Registry, small: Suite, **more: Any) -> inlay.TrainResult:
    settings = few_steps(save_steps=1).to_dict()
    given: dict[str, Any] = {
        "general": [small],
        "general_prompts": ["Copy the word: lamp"],
        "name": "tickets",
    }
    data = rows("ticket-queue", "train", ROWS, 0)
    return inlay.train(base, data, store=store, **{**settings, **given, **more})


def killed_at(step: int) -> Any:
    def say(what: str, done: int, total: int) -> None:
        if what.startswith("training") and done == step:
            raise Killed

    return say


def test_the_same_call_goes_on_and_says_so(base: Base, store: Registry, small: Suite, tmp_path: Path) -> None:
    with inlay.Registry.open(tmp_path / "other", create=True) as other:
        unbroken = run(base, other, small)
        assert unbroken.run["resumed"] == [] and not (other.path / "runs").exists()
    with pytest.raises(Killed):
        run(base, store, small, say=killed_at(4))
    assert store.names() == [] and len(list((store.path / "runs").iterdir())) == 1
    assert store.fsck() == []
    heard: list[str] = []
    # Neither the name nor how often checkpoints are written is part of what is trained.
    result = run(base, store, small, name="again", save_steps=2, say=lambda what, *_: heard.append(what))
    assert "note: going on from step 3 of 6" in heard
    assert result.version.digest == unbroken.version.digest
    assert result.run["resumed"] == [3] and result.run["curve"] == unbroken.run["curve"]
    assert not (store.path / "runs").exists()


@pytest.mark.parametrize("change", [{"fresh": True}, {"seed": 1}, {"general_prompts": ["Copy: tin"]}])
def test_what_is_trained_otherwise_begins_anew(
    change: dict[str, Any], base: Base, store: Registry, small: Suite
) -> None:
    with pytest.raises(Killed):
        run(base, store, small, say=killed_at(4))
    assert run(base, store, small, **change).run["resumed"] == []


def test_ended_while_it_was_measured_it_becomes_no_second_version(
    base: Base, store: Registry, small: Suite
) -> None:
    def say(what: str, done: int, total: int) -> None:
        if "small" in what:
            raise Killed

    with pytest.raises(Killed):
        run(base, store, small, say=say)
    assert store.resolve("tickets@v1").ref == "tickets@v1"
    result = run(base, store, small)
    assert result.version.ref == "tickets@v1" and result.run["resumed"] == [STEPS]
    assert len(store.versions("tickets")) == 1 and result.report.verdict


def test_settings_that_are_no_numbers() -> None:
    assert Settings().replaced(gradient_checkpointing=True).gradient_checkpointing is True
    with pytest.raises(InputError, match="gradient_checkpointing must be true or false, and is 1"):
        Settings().replaced(gradient_checkpointing=1)


def test_accumulated_and_recomputed_gradients_train_the_same(base: Base) -> None:
    """The same rows a step in two halves, and activations made again, to rounding."""
    (_, whole) = fitted_on(base, few_steps(kl=0.0, max_steps=3))
    (_, halves) = fitted_on(base, few_steps(kl=0.0, max_steps=3, batch_size=2, accumulate=2))
    same, again = (
        fitted_on(base, few_steps(max_steps=3, gradient_checkpointing=flag))[1] for flag in (False, True)
    )
    for one, other in ((whole, halves), (same, again)):
        for ours, theirs in zip(one.curve, other.curve, strict=True):
            assert theirs == pytest.approx(ours, rel=1e-4, abs=1e-6)
    assert halves.task_tokens == whole.task_tokens
    assert not base.model.is_gradient_checkpointing and base.model.config.use_cache
    assert not base.model.get_input_embeddings()._forward_hooks


@pytest.mark.slow
def test_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    digests = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-m", "inlay", *command_in(folder), "--lr", "1e-2"],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        digests.append(json.loads(done.stdout)["result"]["digest"])
    assert digests[0] == digests[1]
