"""Two answers to one question, word by word: what differs between them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from inlay.evals.forgetting import Flip

_WORDS = re.compile(r"\s+|\w+|[^\w\s]")
KEPT = 800
"""Characters of a prompt or an answer that are shown."""


@dataclass(frozen=True)
class Span:
    """A piece of an answer; `differs` where the other answer has something else there, or nothing."""

    text: str
    differs: bool


@dataclass(frozen=True)
class Sides:
    """A flip to be shown: each side is None where no answer was kept. `expected`: the side that was right
    shows the expected answer, since its own was not kept. `hidden`: characters left out."""

    flip: Flip
    prompt: str
    base: tuple[Span, ...] | None
    model: tuple[Span, ...] | None
    expected: bool
    hidden: int


def sides(flip: Flip, *, lost: bool, kept: int = KEPT) -> Sides:
    """The flip with both answers cut to `kept` characters and compared.

    Where an answer was not kept, but was right, the expected one stands for it.
    """
    base = flip.base_answer if flip.base_answer is not None or not lost else flip.expected
    model = flip.model_answer if flip.model_answer is not None or lost else flip.expected
    shown = [text[:kept] if text is not None else None for text in (base, model)]
    hidden = sum(max(0, len(text) - kept) for text in (flip.prompt, base, model) if text is not None)
    expected = (flip.base_answer if lost else flip.model_answer) is None
    one, two = shown
    if one is None or two is None:
        alone = [None if text is None else (Span(text, False),) for text in shown]
        return Sides(flip, flip.prompt[:kept], alone[0], alone[1], expected, hidden)
    return Sides(flip, flip.prompt[:kept], *differences(one, two), expected, hidden)


def differences(one: str, two: str) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Both texts in spans that joined again are the texts; words, spaces and signs are compared whole."""
    a, b = _WORDS.findall(one), _WORDS.findall(two)
    found: tuple[list[Span], list[Span]] = ([], [])
    for what, a0, a1, b0, b1 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        for side, words in ((0, a[a0:a1]), (1, b[b0:b1])):
            if words:
                found[side].append(Span("".join(words), what != "equal"))
    return _joined(found[0]), _joined(found[1])


def _joined(spans: Sequence[Span]) -> tuple[Span, ...]:
    """Neighbours alike become one; white space alone between two differences belongs to them."""
    merged: list[Span] = []
    for index, span in enumerate(spans):
        between = 0 < index < len(spans) - 1 and spans[index - 1].differs and spans[index + 1].differs
        differs = span.differs or (between and span.text.isspace())
        if merged and merged[-1].differs is differs:
            merged[-1] = Span(merged[-1].text + span.text, differs)
        else:
            merged.append(Span(span.text, differs))
    return tuple(merged)
