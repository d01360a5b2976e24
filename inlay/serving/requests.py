"""What a request asks for once its words are tokens, and what comes back. Pure data, no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. `temperature` 0 is greedy; `top_p` in (0, 1]; `seed` makes the draws repeatable,
    whatever else is in the batch. `stop`: texts that end the answer and are not part of it. `logprobs`: how
    many of the most likely tokens are told beside each one; None where no log-probability is wanted."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True)
class Request:
    """`ids`: the prompt's tokens, at least one. `weights`: how much of which member, by the references of
    the plan's slots, instead of what the recipe says; `expert`: the one it names for routes by request."""

    id: str
    tenant: str
    ids: tuple[int, ...]
    sampling: Sampling
    weights: Mapping[str, float] | None = None
    expert: str | None = None


@dataclass(frozen=True)
class Token:
    """`text`: what may be shown since the token before, "" while a character or a stop text is half there.
    `logprob`: natural log under the model's own distribution (temperature 1, top-p 1); `top`: the most likely
    tokens with theirs."""

    id: int
    text: str
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Ended:
    """`text`: what was still held back. `cached`: how many of the prompt's tokens had their keys and values
    already."""

    reason: Literal["stop", "length"]
    text: str
    prompt: int
    completion: int
    cached: int


@dataclass(frozen=True)
class Failed:
    """The request ends here; the others of its batch go on."""

    error: Exception


Event = Token | Ended | Failed
Hear = Callable[[Event], None]
"""Called from the scheduler's thread; must return at once. Nothing comes after Ended or Failed."""
