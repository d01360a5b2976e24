"""Rows with nothing to ask or nothing to learn."""

from __future__ import annotations

from inlay.trainers.quality.finding import Finding, many
from inlay.trainers.quality.material import Material


def empty(material: Material) -> list[Finding]:
    """An error for empty lines, prompts and answers."""
    bad = [each for each in material.unread if each.empty]
    if not bad:
        return []
    whats = ("the answer is empty", "the prompt is empty", "is empty")
    kinds = {what: [each.line for each in bad if each.why.startswith(what)] for what in whats}
    named = ("answer", "prompt", "line")
    said = [
        many(len(lines), name, f"{name}s") for name, lines in zip(named, kinds.values(), strict=True) if lines
    ]
    return [
        Finding(
            "error",
            "empty",
            f"{', '.join(said)} empty",
            "fill in what is missing, or remove the lines",
            tuple(each.line for each in bad),
        )
    ]
