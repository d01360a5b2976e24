"""The settings of a training run: one frozen record, with defaults that a base may override."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inlay.errors import InputError


@dataclass(frozen=True)
class Settings:
    """How an adapter is trained. Every field is kept with the version that comes out of it."""

    method: str = "sft"
    learning_rate: float = 2e-4
    """Peak of AdamW, cosine to zero after `warmup`; about ten times full fine-tuning's."""
    epochs: float = 3.0
    max_steps: int = -1
    """Optimizer steps; -1 for as many as `epochs` make."""
    batch_size: int = 16
    """Task rows a step."""
    rank: int = 16
    alpha: float = 32.0
    target_modules: tuple[str, ...] | str = "all-linear"
    warmup: float = 0.05
    """Share of the steps in which the rate rises from zero."""
    weight_decay: float = 0.0
    kl: float = 1.0
    """Weight of KL(base ‖ adapted) on general prompts and the base's own answers; 0 switches it off."""
    kl_prompt: float = 1.0
    """Weight of the same divergence at the prompts' own positions, beside that at the answers'."""
    kl_batch_size: int = 16
    """General prompts a step: the price of remembering, since each costs about as much as a task row."""
    max_length: int = 512
    """Tokens of a training row, prompt and answer; longer rows are an error, never cut."""
    seed: int = 0

    def replaced(self, **changes: Any) -> Settings:
        """A copy with some fields changed; raises InputError for an unknown field or a wrong type."""
        known = {f.name: f for f in dataclasses.fields(self)}
        for name, value in changes.items():
            if name not in known:
                raise InputError(
                    f"{name!r} is no training setting", fix="the settings are " + ", ".join(sorted(known))
                )
            held = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if isinstance(held, int | float) and not number:
                raise InputError(f"{name} must be a number, and is {value!r}")
        made = dataclasses.replace(self, **changes)
        made.check()
        return made

    def check(self) -> None:
        """Raises InputError where a value can train nothing."""
        if self.method != "sft":
            raise InputError(f"the method must be sft, and is {self.method!r}")
        positive = ("learning_rate", "epochs", "batch_size", "rank", "alpha", "kl_batch_size", "max_length")
        for name in positive:
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above zero, and is {getattr(self, name)}")
        for name in ("kl", "kl_prompt"):
            if getattr(self, name) < 0:
                raise InputError(
                    f"{name} must not be negative, and is {getattr(self, name)}", fix="0 switches it off"
                )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def settings_for(base_path: str | Path, **overrides: Any) -> Settings:
    """Inlay's defaults, then those that `inlay.json` beside the base recommends (tiny bases want a far
    higher rate than 2e-4), then what was asked for; None asks for nothing."""
    settings = Settings()
    beside = Path(base_path) / "inlay.json"
    if beside.is_file():
        try:
            recommended = json.loads(beside.read_text(encoding="utf-8")).get("training_defaults", {})
        except json.JSONDecodeError as error:
            raise InputError(f"{beside} must be JSON: {error.msg}") from None
        settings = settings.replaced(**recommended)
    return settings.replaced(**{k: v for k, v in overrides.items() if v is not None})
