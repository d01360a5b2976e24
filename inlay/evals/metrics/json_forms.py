"""Answers that are JSON (RFC 8259): whether they are, and whether they say the same."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NoReturn

from inlay.evals.metrics.rule import Metric

if TYPE_CHECKING:
    from inlay.evals.suites import Item

_FENCED = re.compile(r"```[A-Za-z]*\n(.*)\n```", re.DOTALL)


def json_valid(prediction: str, answer: str = "") -> bool:
    """The whole prediction is one JSON value; NaN, Infinity and a code fence around it are not JSON. The
    answer is not looked at."""
    try:
        _parse(prediction)
    except (ValueError, RecursionError):
        return False
    return True


def json_equals(prediction: str, answer: str) -> bool:
    """The prediction is JSON of the same value as the answer: order of keys and white space do not count, nor
    does one code fence around the whole, since it is the content that is asked for; 1 equals 1.0, true does
    not equal 1."""
    fenced = _FENCED.fullmatch(prediction.strip())
    try:
        return _same(_parse(fenced.group(1) if fenced else prediction), _parse(answer))
    except (ValueError, RecursionError):
        return False


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _parse(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)


def misfit(item: Item) -> str:
    """Why an answer is none that a prediction could equal."""
    if all(json_valid(answer) for answer in item.accepted):
        return ""
    return "`answer` must be JSON text for the metric json_equals"


JSON_VALID = Metric("json_valid", 1, "generate", json_valid, needs=())
JSON_EQUALS = Metric("json_equals", 1, "generate", json_equals, misfit=misfit)
