"""The settings of a training run: one frozen record, with defaults that a base may override.

A field says here what it is, under which flag the command line knows it and what values it takes; the
command line, a run's configuration and the errors read it from here. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inlay.errors import InputError
from inlay.trainers.methods import METHODS


def setting(
    default: Any,
    says: str,
    *,
    flag: str | None = None,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    among: tuple[str, ...] | None = None,
) -> Any:
    """A field of `Settings`. `says`: what it is, for `--help`; `flag`: its name on the command line where
    that differs from the field's. `above`, `least`, `most`, `among`: what values it takes."""
    bounds = {"above": above, "least": least, "most": most, "among": among}
    return dataclasses.field(default=default, metadata={"says": says, "flag": flag, **bounds})


@dataclass(frozen=True)
class Settings:
    """How an adapter is trained. Every field is kept with the version that comes out of it."""

    method: str = setting("sft", "How it is trained.", among=METHODS)
    learning_rate: float = setting(
        2e-4, "Peak learning rate of AdamW, cosine to zero after the warm-up.", flag="lr", above=0
    )
    epochs: float = setting(3.0, "Passes over the data.", above=0)
    max_steps: int = setting(-1, "Optimizer steps, in place of epochs.", flag="steps")
    batch_size: int = setting(16, "Task rows a step.", flag="batch", above=0)
    rank: int = setting(16, "Rank of the adapter's factors.", above=0)
    alpha: float = setting(32.0, "The adapter's delta is B @ A × alpha / rank.", above=0)
    target_modules: tuple[str, ...] | str = setting("all-linear", "Which modules are adapted.")
    warmup: float = setting(0.05, "Share of the steps in which the rate rises from zero.", least=0, most=1)
    weight_decay: float = setting(0.0, "AdamW's weight decay.", least=0)
    kl: float = setting(
        1.0,
        "Weight of KL(base ‖ adapted) on general prompts and the base's own answers; 0 switches it off.",
        least=0,
    )
    kl_prompt: float = setting(
        1.0, "Weight of the same divergence at the prompts' own tokens, beside that at the answers'.", least=0
    )
    kl_batch_size: int = setting(
        16,
        "General prompts a step: the price of remembering, each costs about as much as a task row.",
        flag="kl-batch",
        above=0,
    )
    max_length: int = setting(
        512, "Tokens of a training row, prompt and answer; longer rows are an error, never cut.", above=0
    )
    seed: int = setting(0, "The same seed gives the same bytes on one CPU.", least=0)

    def replaced(self, **changes: Any) -> Settings:
        """A copy with some fields changed; raises InputError for an unknown field or a wrong value."""
        known = {f.name: f for f in dataclasses.fields(self)}
        for name, value in changes.items():
            if name not in known:
                raise InputError(
                    f"{name!r} is no training setting", fix="the settings are " + ", ".join(sorted(known))
                )
            held = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if isinstance(held, int | float) and not isinstance(held, bool) and not number:
                raise InputError(f"{name} must be a number, and is {value!r}")
        made = dataclasses.replace(self, **changes)
        made.check()
        return made

    def check(self) -> None:
        """Raises InputError where a value can train nothing."""
        for each in dataclasses.fields(self):
            _check(each, getattr(self, each.name))

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Settings:
        """What a run's record kept. Fields that came into being after it are at their defaults, which train
        as runs did before them."""
        listed = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls().replaced(**listed)


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    bounds = field.metadata
    if bounds["among"] is not None and value not in bounds["among"]:
        choices = " or ".join(bounds["among"])
        raise InputError(f"the {field.name} must be {choices}, and is {value!r}")
    if bounds["above"] is not None and not value > bounds["above"]:
        raise InputError(f"{field.name} must be above {bounds['above'] or 'zero'}, and is {value}")
    if bounds["least"] is not None and not value >= bounds["least"]:
        limit = "negative" if bounds["least"] == 0 else f"below {bounds['least']}"
        raise InputError(f"{field.name} must not be {limit}, and is {value}")
    if bounds["most"] is not None and not value <= bounds["most"]:
        raise InputError(f"{field.name} must be at most {bounds['most']}, and is {value}")


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
