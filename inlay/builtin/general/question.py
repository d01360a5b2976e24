"""A question of the wider part of `general-v1`, with replies that its check must pass and must fail."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Question:
    """One item before it has an id.

    `metric` and `answer` are as in a suite's row; for `regex` the answer is a pattern. `good` and `bad` are
    replies for the tests, in no suite: the check passes the one and fails the other. `cluster` names the
    template or the passage that several questions share.
    """

    prompt: str
    answer: str
    metric: str
    good: str
    bad: str
    choices: tuple[str, ...] = ()
    cluster: str | None = None
    slice: str | None = None


@dataclass(frozen=True)
class GeneralSkill:
    """`draw(rng)` gives all questions of the skill; `family` is the module that holds it."""

    name: str
    family: str
    draw: Callable[[Random], list[Question]]


def lines(text: str) -> list[tuple[str, ...]]:
    """Hand-written data: one record a line, its fields separated by a bar."""
    return [tuple(field.strip() for field in line.split("|")) for line in text.strip().splitlines()]


def words(text: str) -> tuple[str, ...]:
    """Words between spaces."""
    return tuple(text.split())


def exact(prompt: str, answer: str, bad: str, *, cluster: str | None = None) -> Question:
    """A question whose prompt leaves one way to write the answer."""
    return Question(prompt, answer, "exact_match", answer, bad, cluster=cluster)


def short(*answers: str) -> str:
    """A pattern for a short reply with one of `answers` in it as a word of its own: at most 30 characters
    stand on either side, so "It was 4 May." passes and a whole passage repeated does not."""
    any_of = "|".join(re.escape(answer).replace(r"\ ", " ") for answer in answers)
    return rf"(?i).{{0,30}}(?<!\w)(?:{any_of})(?!\w).{{0,30}}"


def chosen(
    rng: Random,
    prompt: str,
    right: str,
    wrong: list[str],
    place: int,
    *,
    cluster: str | None = None,
    slice: str | None = None,
) -> Question:
    """A multiple choice whose right answer stands at `place`; the wrong ones are shuffled around it.
    `{choices}` in the prompt becomes the list of them, one a line."""
    others = rng.sample(wrong, len(wrong))
    choices = (*others[:place], right, *others[place:])
    shown = "\n".join(f"- {choice}" for choice in choices)
    return Question(
        prompt.replace("{choices}", shown),
        right,
        "multiple_choice_norm",
        right,
        wrong[0],
        choices=choices,
        cluster=cluster,
        slice=slice,
    )


def places(rng: Random, count: int, choices: int) -> list[int]:
    """Places of right answers in random order, each as often as any other (within one)."""
    dealt = [n % choices for n in range(count)]
    rng.shuffle(dealt)
    return dealt
