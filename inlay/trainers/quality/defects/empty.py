"""Rows with nothing to ask or nothing to learn."""

from __future__ import annotations

from collections import Counter

from inlay.trainers.quality.finding import Finding, many
from inlay.trainers.quality.material import Material

PARTS = ("answer", "prompt", "text", "line")
"""What may be empty, a line as a whole last."""


def empty(material: Material) -> list[Finding]:
    """An error for empty lines, prompts, answers and documents."""
    bad = [each for each in material.unread if each.empty]
    if not bad:
        return []
    counted = Counter(_part(each.why) for each in bad)
    said = [many(counted[part], part, f"{part}s") for part in PARTS if counted[part]]
    return [
        Finding(
            "error",
            "empty",
            f"{', '.join(said)} empty",
            "fill in what is missing, or remove the lines",
            tuple(each.line for each in bad),
        )
    ]


def _part(why: str) -> str:
    return next((part for part in PARTS if f"the {part} is empty" in why), PARTS[-1])
