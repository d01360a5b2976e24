"""A regular expression that the whole answer must match."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from inlay.evals.metrics.rule import Metric

if TYPE_CHECKING:
    from inlay.evals.suites import Item


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.DOTALL)


def regex(prediction: str, answer: str) -> bool:
    """The stripped prediction matches the pattern `answer` from its first character to its last (Python's
    `re.fullmatch`); a dot matches line breaks too. `(?i)` in front ignores case."""
    return _compiled(answer).fullmatch(prediction.strip()) is not None


def misfit(item: Item) -> str:
    """Why an answer is no pattern."""
    for pattern in item.accepted:
        try:
            _compiled(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            return f"`answer` must be a regular expression for the metric regex ({error})"
    return ""


REGEX = Metric("regex", 1, "generate", regex, misfit=misfit)
