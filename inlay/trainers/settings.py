"""The settings of a training run: one frozen record, with defaults that a base may override.

A field says here what it is, under which flag the command line knows it and what values it takes; the
command line, a run's configuration and the errors read it from here. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inlay.errors import InputError
from inlay.trainers.kinds import KINDS, read_kind
from inlay.trainers.methods import METHODS
from inlay.trainers.naming import meant
from inlay.trainers.placement import (
    ALL,
    ALL_LINEAR,
    read_layers,
    read_pattern,
    read_rank_pattern,
    read_targets,
)
from inlay.trainers.presets import NAMES, NO_PRESET, values_of


def setting(
    default: Any,
    says: str,
    *,
    flag: str | None = None,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    among: tuple[str, ...] | None = None,
    reads: Callable[[Any], Any] | None = None,
    group: str | None = None,
) -> Any:
    """A field of `Settings`. `says`: what it is, for `--help`; `flag`: its name on the command line where
    that differs from the field's. `above`, `least`, `most`, `among`: what values it takes. `reads`: the value
    out of what a flag or a configuration wrote, InputError where it is none. `group`: under what heading of
    the help it stands, as all fields after it up to the next that names one."""
    bounds = {"above": above, "least": least, "most": most, "among": among}
    metadata = {"says": says, "flag": flag, "reads": reads, "group": group, **bounds}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """How an adapter is trained. Every field is kept with the version that comes out of it."""

    preset: str = setting(
        NO_PRESET, "Settings that go together, see below.", among=NAMES, group="What is trained"
    )
    method: str = setting("sft", "How it is trained.", among=METHODS)
    kind: str | Mapping[str, Any] = setting(
        "lora", "The kind of adapter, see below.", among=KINDS, reads=read_kind
    )
    rank: int = setting(16, "Rank of the adapter's factors.", above=0)
    alpha: float = setting(
        32.0, "The adapter's delta is B @ A × alpha / rank, of rsLoRA × alpha / √rank.", above=0
    )
    target_modules: tuple[str, ...] | str = setting(
        ALL_LINEAR,
        "Which modules are adapted: names with commas between, or a regular expression.",
        reads=read_targets,
    )
    layers: str = setting(
        ALL,
        "In which layers: all, a third (early, middle, late), or numbers from 0 such as 0,10-20.",
        reads=read_layers,
    )
    rank_pattern: Mapping[str, int] = setting(
        {}, "NAME=RANK for the modules of that name; repeatable.", reads=read_rank_pattern
    )
    alpha_pattern: Mapping[str, float] = setting(
        {}, "NAME=ALPHA for the modules of that name; repeatable.", reads=read_pattern
    )
    virtual_tokens: int = setting(20, "Prefix tuning: tokens whose keys and values are learned.", above=0)
    learning_rate: float = setting(
        2e-4,
        "Peak learning rate of AdamW, cosine to zero after the warm-up.",
        flag="lr",
        above=0,
        group="How it is trained",
    )
    epochs: float = setting(3.0, "Passes over the data.", above=0)
    max_steps: int = setting(-1, "Optimizer steps, in place of epochs.", flag="steps")
    batch_size: int = setting(16, "Task rows a step.", flag="batch", above=0)
    accumulate: int = setting(
        1, "Batches whose gradients make a step: a step has batch_size × accumulate rows.", above=0
    )
    gradient_checkpointing: bool = setting(
        False, "Compute activations again in the backward pass: less memory, a third more time."
    )
    save_steps: int = setting(0, "Steps between two checkpoints; 0 writes one about every minute.", least=0)
    warmup: float = setting(0.05, "Share of the steps in which the rate rises from zero.", least=0, most=1)
    weight_decay: float = setting(0.0, "AdamW's weight decay.", least=0)
    kl: float = setting(
        1.0,
        "Weight of KL(base ‖ adapted) on general prompts and the base's own answers; 0 switches it off.",
        least=0,
        group="Against forgetting",
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
    kl_ratio: float = setting(
        0.0,
        "General tokens a step as a share of its task tokens; above 0 it decides in place of kl_batch_size.",
        least=0,
    )
    replay: float = setting(
        0.0,
        "Share of the training rows that are general prompts with the base's own answers.",
        least=0,
        most=0.9,
    )
    keep_parent: float = setting(
        0.0,
        "With --from: weight of KL(that version ‖ adapted) on its own answers to prompts that it, and the "
        "versions it went on from, were trained on.",
        least=0,
    )
    orthogonal_penalty: float = setting(
        0.0, "Weight of ‖A_old Aᵀ‖² against the adapters of --orthogonal-to, all through training.", least=0
    )
    stop_forgetting: float = setting(
        0.0,
        "End the training where more than so many points of protected prompts are shown to be answered "
        "otherwise than the base does, and keep the last weights within it; 0 never looks.",
        least=0,
        most=100,
    )
    stop_every: int = setting(50, "Steps between two such looks.", above=0)
    max_length: int = setting(
        512,
        "Tokens of a training row, prompt and answer, longer rows being an error, or of a block of raw text.",
        above=0,
        group="Data and methods",
    )
    held_out_share: float = setting(
        0.05,
        "Share of raw text or pairs that is kept out of training, to measure before and after on.",
        least=0,
        most=0.5,
    )
    dpo_beta: float = setting(0.1, "DPO's β: the higher, the closer to the model before it.", above=0)
    checker: str = setting(
        "normalised",
        "How distill sees that a rewrite says what the reference says: the final answer as it stands, the "
        "same without case, punctuation and articles, or words in common.",
        among=("exact", "normalised", "f1"),
    )
    checker_f1: float = setting(
        0.5, "Token F1 from which the checker f1 finds that two say the same.", above=0, most=1
    )
    seed: int = setting(0, "The same seed gives the same bytes on one CPU.", least=0)

    def replaced(self, **changes: Any) -> Settings:
        """A copy with some fields changed; raises InputError for an unknown field or a wrong value."""
        known = {f.name: f for f in dataclasses.fields(self)}
        read = {}
        for name, value in changes.items():
            if name not in known:
                flags = {f.metadata["flag"]: f.name for f in known.values()}
                fix = f"did you mean {flags[name]}?" if flags.get(name) else meant(name, sorted(known))
                raise InputError(f"{name!r} is no training setting", fix=fix)
            reads = known[name].metadata["reads"]
            read[name] = reads(value) if reads else _as_held(name, getattr(self, name), value)
        made = dataclasses.replace(self, **read)
        made.check()
        return made

    def check(self) -> None:
        """Raises InputError where a value can train nothing."""
        for each in dataclasses.fields(self):
            _check(each, getattr(self, each.name))
        if self.method == "full" and self.kind != "lora":
            raise InputError(
                f"full fine-tuning extracts a LoRA, and kind is {self.kind}", fix="leave kind at lora"
            )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Settings:
        """What a run's record kept. Fields that came into being after it are at their defaults, which train
        as runs did before them."""
        listed = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls().replaced(**listed)


def _as_held(name: str, held: Any, value: Any) -> Any:
    """The value, of the type that the setting has; InputError where it is of another."""
    if isinstance(held, bool):
        if not isinstance(value, bool):
            raise InputError(f"{name} must be true or false, and is {value!r}")
    elif isinstance(held, int | float):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{name} must be a number, and is {value!r}")
        if isinstance(held, int) and value != value // 1:
            raise InputError(f"{name} must be a whole number, and is {value!r}")
        return type(held)(value)
    elif not isinstance(value, str):
        raise InputError(f"{name} must be a word, and is {value!r}")
    return value


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    bounds = field.metadata
    if bounds["among"] is not None and not isinstance(value, dict) and value not in bounds["among"]:
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
    higher rate than 2e-4), then the preset's, then what was asked for; None asks for nothing."""
    return settled(base_path, overrides)[0]


def settled(base_path: str | Path, asked: Mapping[str, Any]) -> tuple[Settings, dict[str, str]]:
    """`settings_for`, and for each setting that is not Inlay's default by right who gave it."""
    settings, givers = Settings(), {}
    asked = {name: value for name, value in asked.items() if value is not None}
    recommended = _recommended(Path(base_path))
    settings = settings.replaced(**recommended)
    givers.update(dict.fromkeys(recommended, "the base's inlay.json"))
    preset = settings.replaced(preset=asked.get("preset", settings.preset)).preset
    chosen = values_of(preset, settings.learning_rate)
    givers.update(dict.fromkeys(chosen, f"preset {preset}"))
    return settings.replaced(**chosen).replaced(**asked), {**givers, **dict.fromkeys(asked, "asked for")}


def _recommended(base_path: Path) -> dict[str, Any]:
    beside = base_path / "inlay.json"
    if not beside.is_file():
        return {}
    try:
        return dict(json.loads(beside.read_text(encoding="utf-8")).get("training_defaults", {}))
    except json.JSONDecodeError as error:
        raise InputError(f"{beside} must be JSON: {error.msg}") from None
