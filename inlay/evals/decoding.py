"""How answers are drawn from a model: greedily, or sampled with a seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from inlay.errors import InputError

NEW_TOKENS = 64
"""Tokens an answer may have; no part of a protocol that keeps to it, so that old scores stay comparable."""


@dataclass(frozen=True)
class Decoding:
    """Greedy where the temperature is 0. Else tokens are drawn from the softmax of logits / `temperature`,
    cut to the fewest tokens that together have `top_p` of it; nothing else bends the distribution. The same
    `seed` gives the same answers on one machine with the same versions of its libraries."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_new_tokens: int = NEW_TOKENS

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise InputError(f"{name} must be a number, got {str(value)[:40]!r}")
        if not 0.0 <= self.temperature <= 100.0:
            raise InputError(f"temperature must lie between 0 and 100, got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top_p must lie above 0 and at most at 1, got {self.top_p}")
        if type(self.seed) is not int or not 0 <= self.seed < 2**63:
            raise InputError(f"seed must be a whole number from 0 to 2^63 - 1, got {str(self.seed)[:40]}")
        if type(self.max_new_tokens) is not int or self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be a whole number above 0, got {self.max_new_tokens}")
        if self.greedy and (self.top_p != 1.0 or self.seed != 0):
            raise InputError(
                "top_p and seed are about sampled answers, and the temperature is 0",
                fix="give a temperature above 0, or neither of the two",
            )

    @classmethod
    def of(cls, value: Decoding | Mapping[str, Any] | None) -> Decoding:
        """What a mapping describes, {"temperature": 0.7, "top_p": 0.9, "seed": 0}; greedy for None."""
        if value is None or isinstance(value, Decoding):
            return value or cls()
        known = [field.name for field in fields(cls)]
        unknown = [str(key) for key in value if key not in known]
        if unknown:
            raise InputError(
                f"a decoding has no setting {unknown[0][:60]!r}", fix=f"settings: {', '.join(known)}"
            )
        return cls(**value)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    def protocol(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """A model's protocol with what differs from greedy answers of the usual length put in."""
        changed: dict[str, Any] = {}
        if not self.greedy:
            changed = {
                "decoding": "sampled",
                "temperature": float(self.temperature),
                "top_p": float(self.top_p),
                "seed": self.seed,
            }
        if self.max_new_tokens != NEW_TOKENS:
            changed["max_new_tokens"] = self.max_new_tokens
        return {**model, **changed}

    def settings(self, draw: int) -> dict[str, Any]:
        """Arguments of `Model.generate`; `draw` tells apart calls whose draws must differ, each
        of which may have up to 1,009 batches with a seed of their own."""
        settings: dict[str, Any] = {"max_new_tokens": self.max_new_tokens}
        if not self.greedy:
            settings |= {
                "do_sample": True,
                "top_k": 0,
                "temperature": float(self.temperature),
                "top_p": float(self.top_p),
                "seed": (self.seed * 1_000_003 + draw * 1009) % 2**62,
            }
        return settings
