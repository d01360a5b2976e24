"""General prompts that are held apart while a model trains: what is asked on the way whether it still answers
as its base did.

Skills that may be trained on, never those that forgetting is judged on. These very prompts are neither
anchored nor replayed: of what is, one could only learn that it was.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError
from inlay.evals.statistics import Paired

if TYPE_CHECKING:
    from inlay.evals.inference import Base, Progress

ITEMS = 128
"""Prompts held apart, at most half of those there are."""
LEAST = 20
"""With fewer a loss of ten points could not be shown."""


@dataclass(frozen=True)
class Protected:
    """Prompts, and the base's own answers to them, which it gives again to the letter."""

    prompts: tuple[str, ...]
    answers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def kept(self, base: Base, model: Any = None, *, progress: Progress | None = None) -> list[bool]:
        """Which of them `model`, by default the base's own, answers to the letter as the base did."""
        from inlay.evals.inference import Chat

        chat = Chat(base, model=model)
        return chat.matches(self.prompts, self.answers, progress=progress)


def paired(kept: Sequence[bool]) -> Paired:
    """Base against model, where the base kept all."""
    return Paired.of([True] * len(kept), kept)


def hold_apart(
    base: Base, prompts: Sequence[str], answers: Sequence[str], *, seed: int, items: int = ITEMS
) -> tuple[Protected, tuple[list[str], list[str]]]:
    """A seeded sample of general prompts, and the others with their answers, in their order.

    An answer that was cut off at its length, or that no tokens spell, is one that no model gives, its base
    included: its prompt goes to neither. Raises InputError where fewer than `LEAST` are left.
    """
    chosen = random.Random(seed).sample(range(len(prompts)), min(items, len(prompts) // 2))
    drawn = Protected(tuple(prompts[i] for i in chosen), tuple(answers[i] for i in chosen))
    again = _given_again(base, drawn)
    if len(again) < LEAST:
        raise InputError(
            f"at least {LEAST} general prompts that the base answers in full must be held apart, and of "
            f"{len(prompts)} there are {len(again)}",
            fix="give more --general-prompts",
        )
    held = Protected(tuple(drawn.prompts[i] for i in again), tuple(drawn.answers[i] for i in again))
    rest = sorted(set(range(len(prompts))) - set(chosen))
    return held, ([prompts[i] for i in rest], [answers[i] for i in rest])


def _given_again(base: Base, drawn: Protected) -> list[int]:
    """Which of `drawn` the base answers to the letter as it did."""
    from inlay.evals.inference import PromptError

    asked = list(range(len(drawn)))
    while asked:
        some = Protected(tuple(drawn.prompts[i] for i in asked), tuple(drawn.answers[i] for i in asked))
        try:
            return [i for i, kept in zip(asked, some.kept(base), strict=True) if kept]
        except PromptError as error:  # an answer that no tokens spell
            del asked[error.index]
    return []
