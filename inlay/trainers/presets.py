"""Settings that go together, by what is trained for. Imports no torch.

They are starting points out of the literature: all linear layers, batches below 32 rows and a rank by how
much there is to learn (LoRA Without Regret, Schulman 2025), fewer passes the broader the data, KL and replay
against forgetting (arXiv:2512.22337). The right rate belongs to the base, so that a preset gives a multiple
of the one that the base recommends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """`says`: what it is for and why its values; `rate`: its learning rate over the one below it."""

    name: str
    says: str
    values: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 1.0


PRESETS = (
    Preset(
        "task",
        "one narrow task with a right answer: three passes at the base's own rank and rate, full KL",
        {"method": "sft", "epochs": 3.0, "kl": 1.0, "kl_prompt": 1.0},
    ),
    Preset(
        "instruction",
        "many kinds of requests: twice the rank for more to learn, two passes, a tenth of the rows replayed",
        {"method": "sft", "epochs": 2.0, "rank": 32, "alpha": 64.0, "kl": 1.0, "replay": 0.1},
    ),
    Preset(
        "style",
        "how it speaks rather than what it knows: little rank, half the rate, KL light at the answers, which "
        "are to change, and full at the prompts",
        {"method": "sft", "epochs": 2.0, "rank": 8, "alpha": 16.0, "kl": 0.2, "kl_prompt": 5.0},
        rate=0.5,
    ),
    Preset(
        "domain",
        "raw text of a field: four times the rank for knowledge, one pass at half the rate, full KL",
        {"method": "domain", "epochs": 1.0, "rank": 64, "alpha": 128.0, "kl": 1.0},
        rate=0.5,
    ),
    Preset(
        "preference",
        "pairs of a better and a worse answer: DPO, one pass at a tenth of the rate, which it needs so low",
        {"method": "dpo", "epochs": 1.0, "rank": 16, "alpha": 32.0, "kl": 1.0},
        rate=0.1,
    ),
)
NO_PRESET = "none"
NAMES = (NO_PRESET, *(preset.name for preset in PRESETS))


def values_of(name: str, learning_rate: float) -> dict[str, Any]:
    """The settings of the preset called `name`; `learning_rate` is the one below it."""
    for preset in PRESETS:
        if preset.name == name:
            rate = (
                {} if preset.rate == 1.0 else {"learning_rate": float(f"{learning_rate * preset.rate:.6g}")}
            )
            return {**preset.values, **rate}
    return {}


def method_of(name: str | None) -> str:
    """What a preset trains by, whatever the base: one may recommend rates, no method."""
    return str(values_of(name or NO_PRESET, 1.0).get("method", "sft"))
