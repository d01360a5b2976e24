"""Training that can be stopped and taken up again: checkpoints on the way, signals heard between steps.

transformers restores optimizer, schedule, random numbers and the place in the data; weights and what stands
beside the trainer (the anchor, the loss curve) are ours. A run that was killed and taken up has the bits of
one that was not.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState

from inlay.errors import InputError, Interrupted
from inlay.trainers import processes
from inlay.trainers.checkpoints import Checkpoint, Checkpoints

WEIGHTS = "weights.safetensors"
STATE = "trainer_state.json"


@runtime_checkable
class Stateful(Protocol):
    """What a callback that carries something from step to step has, so that a run can be taken up: the state
    as plain JSON."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Keeper(TrainerCallback):
    """Keeps the run of one trainer in `checkpoints`, None for not at all: give it as the last callback, then
    call `train`."""

    def __init__(self, checkpoints: Checkpoints | None) -> None:
        self.checkpoints = checkpoints
        self.resumed: list[int] = []
        """The steps from which the run was taken up, one for each time."""
        self.seconds = 0.0
        """Spent training, by all processes that had a part in it one after the other."""
        self._since = 0.0
        self._asked = False
        self._trainer: Any = None

    def train(self, trainer: Any) -> None:
        """Train to the end, from the newest checkpoint on where there is one.

        Raises Interrupted after SIGINT or SIGTERM, with a checkpoint written; KeyboardInterrupt at once at
        the second one.
        """
        self._trainer = trainer
        found = self.checkpoints.newest() if self.checkpoints is not None else None
        if found is not None:
            self._take_up(found)
        self._since = time.perf_counter()
        with self._signals() if self.checkpoints is not None else contextlib.nullcontext():
            if found is None:
                trainer.train()
            elif found.step < found.record["steps"]:
                trainer.train(resume_from_checkpoint=str(found.folder))
            else:  # killed after the last step: transformers would take one more
                trainer.state = TrainerState.load_from_json(str(found.folder / STATE))
        self.seconds += time.perf_counter() - self._since

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.checkpoints is None:
            return
        step, steps = state.global_step, state.max_steps
        done = step >= steps or control.should_training_stop
        due, asked = processes.together(
            [float(done or self.checkpoints.due(step)), float(self._asked)], args.device
        )
        if (due or asked) and processes.is_main():
            record = {
                "parts": {name: part.state_dict() for name, part in self._parts().items()},
                "resumed": self.resumed,
                "seconds": self.seconds + time.perf_counter() - self._since,
                "step": step,
                "steps": step if done else steps,
            }
            self.checkpoints.save(step, record, self._write)
        if asked:
            processes.together([0.0], args.device)  # nobody leaves while the main process writes
            raise Interrupted(
                f"interrupted after step {step} of {steps}, which is kept",
                fix="the same command goes on from there, --fresh begins anew",
            )

    def _parts(self) -> dict[str, Stateful]:
        parts = {
            type(c).__name__: c for c in self._trainer.callback_handler.callbacks if isinstance(c, Stateful)
        }
        anchor = self._trainer.anchor
        return parts if anchor is None else {**parts, "anchor": anchor}

    def _with_tensors(self) -> list[tuple[str, Any]]:
        """Those whose state is more than JSON: `tensors` and `load_tensors`, by name."""
        return [(name, part) for name, part in self._parts().items() if hasattr(part, "load_tensors")]

    def _trained(self) -> dict[str, torch.Tensor]:
        return {n: p for n, p in self._trainer.model.named_parameters() if p.requires_grad}

    def _write(self, folder: Path) -> None:
        save_file({n: p.detach().contiguous() for n, p in self._trained().items()}, folder / WEIGHTS)
        self._trainer._save_optimizer_and_scheduler(str(folder))
        self._trainer._save_rng_state(str(folder))
        for other in range(1, processes.count()):
            shutil.copyfile(folder / "rng_state_0.pth", folder / f"rng_state_{other}.pth")
        self._trainer.state.save_to_json(str(folder / STATE))
        for name, part in self._with_tensors():
            save_file(part.tensors(), folder / f"{name}.safetensors")

    def _take_up(self, found: Checkpoint) -> None:
        kept, trained = load_file(found.folder / WEIGHTS), self._trained()
        shapes = {n: tuple(t.shape) for n, t in kept.items()}
        if shapes != {n: tuple(p.shape) for n, p in trained.items()}:
            raise InputError(
                "a checkpoint must hold the parameters that are trained, and this run's holds others",
                fix="begin anew with --fresh",
            )
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(kept[name])
        # The weights are there: transformers would look for them under PEFT's names.
        self._trainer._load_from_checkpoint = lambda *_args, **_named: None
        for name, part in self._parts().items():
            part.load_state_dict(found.record["parts"][name])
        for name, part in self._with_tensors():
            part.load_tensors(load_file(found.folder / f"{name}.safetensors"))
        self.resumed = [*found.record["resumed"], found.step]
        self.seconds = found.record["seconds"]

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Inside, SIGINT and SIGTERM ask for an end after the step; the second one is KeyboardInterrupt."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def hear(_number: int, _frame: FrameType | None) -> None:
            if self._asked:
                raise KeyboardInterrupt
            self._asked = True

        before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
