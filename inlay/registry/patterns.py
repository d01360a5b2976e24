"""PEFT's patterns over module names: regular expressions that come from outside, matched within bounds.

`target_modules`, `rank_pattern` and their like are texts of an adapter's configuration. Most are plain names;
a few are regular expressions, and one written for it would keep Python's `re` busy for ever. So the most
steps a match can take are counted from the parsed expression first, and one that may take too many is not
run.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

MAX_PATTERN = 1000  # characters
MAX_NAME = 512  # characters
MAX_STEPS = 20_000_000  # of one match, in the worst case: about a second
MAX_DOTTED = 64
MAX_SECONDS = 5.0  # of all matches of one set of patterns

_PLAIN = re.compile(r"[\w\-./]*")


class TooCostly(Exception):
    """The pattern may take too many steps, is too long, or is no regular expression."""


class Patterns:
    """Texts of which the first that matches the end of a module's name counts.

    The rule is peft.utils.other.get_pattern_key: re.match of `(.*\\.)?(pattern)$`. Plain names are looked
    up, so that one entry for each of many thousand modules costs no more than one.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        texts = list(patterns)
        self._plain = {p: i for i, p in reversed(list(enumerate(texts))) if _PLAIN.fullmatch(p)}
        self._others = [(i, p) for i, p in enumerate(texts) if not _PLAIN.fullmatch(p)]
        # A dot stands for any character. With an entry for each module that is left aside: no two of them
        # differ by such a character only, and matching all of them with all modules takes minutes.
        dotted = [(i, p) for p, i in self._plain.items() if "." in p]
        if len(dotted) <= MAX_DOTTED:
            self._others = sorted(self._others + dotted)
        self._texts = texts
        self._seconds = 0.0

    def first(self, name: str) -> str | None:
        """The pattern that PEFT would take for the module `name`, None if none matches. Raises TooCostly."""
        parts = name.split(".")
        tails = (".".join(parts[i:]) for i in range(len(parts)))
        found = min((self._plain[t] for t in tails if t in self._plain), default=len(self._texts))
        for number, pattern in self._others:
            if number >= found:
                break
            start = time.monotonic()
            if matches(pattern, name, suffix=True):
                return pattern
            self._seconds += time.monotonic() - start
            if self._seconds > MAX_SECONDS:
                raise TooCostly
        return self._texts[found] if found < len(self._texts) else None


def matches(pattern: str, name: str, *, suffix: bool = False) -> bool:
    """Whether `pattern` matches the whole of `name`, or with `suffix` its end from a dot on.

    Raises TooCostly.
    """
    if len(pattern) > MAX_PATTERN or len(name) > MAX_NAME:
        raise TooCostly
    program, ambiguity, repeats = _compiled(f"(.*\\.)?({pattern})$" if suffix else pattern)
    if ambiguity * len(name) ** repeats > MAX_STEPS:
        raise TooCostly
    return (program.match(name) if suffix else program.fullmatch(name)) is not None


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> tuple[re.Pattern[str], int, int]:
    """(program, ways to choose among alternatives, how many open repeats) or TooCostly."""
    from re import _parser  # type: ignore[attr-defined]

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what future versions of `re` will read otherwise
            ambiguity, repeats = _cost(_parser.parse(pattern))
            return re.compile(pattern), ambiguity, repeats
    except (re.error, OverflowError, RecursionError):
        raise TooCostly from None


def _cost(items: Any) -> tuple[int, int]:
    """(alternatives, open repeats) of a parsed sequence: a match takes at most
    alternatives * len(name) ** repeats steps.
    """
    ambiguity, repeats = 1, 0
    for operation, argument in items:
        name = str(operation)
        if name in ("LITERAL", "NOT_LITERAL", "ANY", "IN", "AT"):
            continue
        if name == "SUBPATTERN":
            more, inner = _cost(argument[-1])
        elif name == "BRANCH":
            costs = [_cost(branch) for branch in argument[1]]
            more, inner = sum(a for a, _ in costs), max(r for _, r in costs)
        elif name in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, body = argument
            more, inner = _cost(body)
            if (more, inner) != (1, 0) and most != 1:
                raise TooCostly  # a repeat of what can match in several ways takes exponential time
            if most == 1:
                more += 1 - least
            elif least != most:
                inner = 1
        else:  # back references, look-around: not needed to name a module
            raise TooCostly
        ambiguity, repeats = min(ambiguity * more, MAX_STEPS + 1), repeats + inner
    return ambiguity, repeats
