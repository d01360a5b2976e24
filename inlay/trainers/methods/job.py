"""What every way of training is given, and what they share: the anchor's term in the loss."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inlay.trainers.cost import counting_flops

if TYPE_CHECKING:
    import torch
    from transformers import TrainerCallback

    from inlay.evals.inference import Base
    from inlay.trainers.anchor import Anchor
    from inlay.trainers.settings import Settings


@dataclass(frozen=True)
class Prepared:
    """What is trained on. `record`: plain JSON for the run's record, how the rows came to be."""

    rows: list[dict[str, Any]]
    record: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One training. `model`: the base's model under a fresh adapter; `rows`: what the method has `prepared`;
    `arguments`: what transformers' TrainingArguments are given whatever the method."""

    base: Base
    model: Any
    rows: list[dict[str, Any]]
    settings: Settings
    anchor: Anchor | None
    arguments: dict[str, Any]
    callbacks: list[TrainerCallback] = field(default_factory=list)


class Anchored:
    """Before a TRL trainer in the bases of a class: adds `kl` times the anchor's divergence to its loss."""

    def __init__(self, *, anchor: Anchor | None, kl: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.anchor = anchor
        self.kl = kl
        self.penalties: list[Callable[[], torch.Tensor]] = []
        self.flops_a_token: float | None = None
        """FLOPs for each token, task's and general, of the first batch; others are taken to be like it."""
        self._figures: defaultdict[str, float] = defaultdict(float)

    def step_figures(self) -> dict[str, float]:
        """What the step that ends here had, over all batches whose gradients made it: loss (the method's own,
        without the anchor's term) and kl. Taken once: the next step begins with none."""
        figures, self._figures = dict(self._figures), defaultdict(float)
        return figures

    def training_step(self, model: Any, inputs: dict[str, Any], *more: Any, **named: Any) -> Any:
        if self.flops_a_token is not None:
            return super().training_step(model, inputs, *more, **named)  # type: ignore[misc]
        before = self.anchor.tokens if self.anchor else 0
        with counting_flops() as count:
            loss = super().training_step(model, inputs, *more, **named)  # type: ignore[misc]
        general = self.anchor.tokens - before if self.anchor else 0
        self.flops_a_token = count.flops / (tokens_of(inputs) + general)
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = super().compute_loss(model, inputs, False, num_items_in_batch)  # type: ignore[misc]
        if not self.model.training:  # type: ignore[attr-defined]
            return loss
        batches = self.current_gradient_accumulation_steps  # type: ignore[attr-defined]
        # A loss that knows the step's number of tokens is a share of the step's; of others transformers takes
        # the mean afterwards.
        shared = num_items_in_batch is not None
        self._figures["loss"] += float(loss.detach()) / (1 if shared else batches)
        if self.anchor is not None:
            # The model itself: what wraps it for several processes has neither head nor adapters.
            loss.register_hook(self.anchor.clock.stop)
            divergence = self.anchor.kl(self.model, tokens_of(inputs))  # type: ignore[attr-defined]
            self._figures["kl"] += 0.0 if divergence is None else float(divergence.detach()) / batches
            if divergence is not None:
                loss = loss + self.kl * divergence / (batches if shared else 1)
        for penalty in self.penalties:
            loss = loss + penalty() / (batches if shared else 1)
        return loss


def tokens_of(inputs: dict[str, Any]) -> int:
    """Tokens of a batch without what pads it."""
    if "tokens" in inputs:
        return int(inputs["tokens"].sum())
    mask = inputs.get("attention_mask")
    return int(inputs["input_ids"].numel() if mask is None else mask.sum())
