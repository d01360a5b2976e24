"""Answers that are no JSON where JSON is the output."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from inlay.trainers.quality.finding import Finding, many, shortened
from inlay.trainers.quality.material import Material, Row

MOSTLY = 0.5
"""Share of answers that are JSON objects or lists from which what begins like one must be one."""
ALWAYS = 0.9
"""Share from which every answer must be one."""


def broken_json(material: Material) -> list[Finding]:
    """A warning for answers that begin like a JSON object or list and are none, where the prompt asks for
    JSON or at least half of the answers are; and for any other answer where nine in ten are."""
    if not material.rows:
        return []
    reasons = [_broken(row.answer) for row in material.rows]
    share = reasons.count(None) / len(reasons)
    bad = [
        (row, why)
        for row, why in zip(material.rows, reasons, strict=True)
        if why is not None and _must_be(row, share)
    ]
    if not bad:
        return []
    return [
        Finding(
            "warning",
            "json",
            f"{many(len(bad), 'answer', 'answers')} must be JSON and {'is' if len(bad) == 1 else 'are'} not",
            "mend them: a model learns broken output as readily as sound output",
            tuple(row.line for row, _ in bad),
            tuple(f"line {row.line}: {why}: {shortened(row.answer)}" for row, why in bad[:2]),
        )
    ]


def _must_be(row: Row, share: float) -> bool:
    if share >= ALWAYS:
        return True
    return row.answer.startswith(("{", "[", "```json")) and (share >= MOSTLY or "json" in row.prompt.lower())


def _broken(answer: str) -> str | None:
    """Why an answer is no JSON object or list; None where it is one."""
    try:
        found = json.loads(answer, parse_constant=_no_constant, object_pairs_hook=_once)
    except RecursionError:
        return "nested too deep"
    except json.JSONDecodeError as error:
        return f"{error.msg} at character {error.pos + 1}"
    except ValueError as error:
        return str(error)
    return None if isinstance(found, dict | list) else "no object or list"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in an object")
    return found
