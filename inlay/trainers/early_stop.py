"""Early stop on protected skills: the training ends where it is shown to have cost more than was allowed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from inlay.errors import InputError
from inlay.trainers.protected import Protected, paired

if TYPE_CHECKING:
    from inlay.evals.inference import Base


class ForgettingStop(TrainerCallback):
    """Every `every` steps, and after the last one, asks the model the `protected` prompts. Where the lower
    one-sided 95% bound of what it answers otherwise than its base is above `limit`, a fraction, the training
    ends and the weights are put back to those of the last look within the limit.

    The lower bound: chance alone ends no training (in one look of twenty, were the loss just what is
    allowed). `looks`: {"step", "lost", "n", "lower"} a look.
    """

    def __init__(self, base: Base, model: Any, protected: Protected, *, limit: float, every: int) -> None:
        self.base, self.model, self.protected = base, model, protected
        self.limit, self.every = limit, every
        self.looks: list[dict[str, Any]] = []
        self.kept = 0
        """The step that the last good weights are of; 0 before the first look."""
        self.stopped: int | None = None
        self._good: dict[str, torch.Tensor] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step
        if step % self.every and step != state.max_steps:
            return
        training = self.model.training
        self.model.eval()
        found = paired(self.protected.kept(self.base, self.model))
        self.model.train(training)
        self.looks.append({"step": step, "lost": found.lost, "n": found.n, "lower": found.loss_lower})
        if found.loss_lower <= self.limit:
            self.kept = step
            self._good = {name: p.detach().to("cpu", copy=True) for name, p in self._trained().items()}
            return
        if not self._good:
            raise InputError(
                f"at most {100 * self.limit:g} points of protected prompts may be lost, and by the first "
                f"look, after step {step}, {found.lost} of {found.n} are answered otherwise",
                fix="lower the learning rate, raise kl, or look earlier with --stop-every",
            )
        self.stopped = step
        control.should_training_stop = True
        with torch.no_grad():
            for name, parameter in self._trained().items():
                parameter.copy_(self._good[name])

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def state_dict(self) -> dict[str, Any]:
        """What a run that is taken up needs, beside `tensors`."""
        return {"looks": self.looks, "kept": self.kept, "stopped": self.stopped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.looks, self.kept, self.stopped = state["looks"], state["kept"], state["stopped"]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The last good weights; none before the first look."""
        return self._good

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        self._good = tensors

    def record(self) -> dict[str, Any]:
        """Plain JSON for the run's record."""
        return {"limit": self.limit, "every": self.every, **self.state_dict()}
