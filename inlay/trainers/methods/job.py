"""What every way of training is given, and what they share: the anchor's term in the loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from inlay.evals.inference import Base
    from inlay.trainers.anchor import Anchor
    from inlay.trainers.settings import Settings


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
    """Before a TRL trainer in the bases of a class: adds `kl` times the anchor's divergence to its loss.

    `last` holds the latest step's figures: loss (the method's own, without the anchor's term) and kl.
    """

    def __init__(self, *, anchor: Anchor | None, kl: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.anchor = anchor
        self.kl = kl
        self.last: dict[str, float] = {}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = super().compute_loss(model, inputs, False, num_items_in_batch)  # type: ignore[misc]
        self.last = {"loss": float(loss.detach())}
        if self.anchor is not None and self.model.training:  # type: ignore[attr-defined]
            divergence = self.anchor.kl(model)
            self.last["kl"] = float(divergence.detach())
            # TRL's loss is already divided among the accumulated steps; ours has to be as well.
            loss = loss + self.kl * divergence / self.current_gradient_accumulation_steps  # type: ignore[attr-defined]
        return loss
