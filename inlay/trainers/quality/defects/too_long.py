"""Rows that do not fit the context."""

from __future__ import annotations

from inlay.trainers.quality.finding import Finding
from inlay.trainers.quality.material import Material


def too_long(material: Material) -> list[Finding]:
    """An error for rows of more tokens than the context or `max_length` allows, prompt, answer and the
    template's: training cuts nothing, since what is cut is mostly the answer."""
    if material.tokens is None or material.limit is None:
        return []
    limit = material.limit
    bad = [(row.line, n) for row, n in zip(material.rows, material.tokens, strict=True) if n > limit]
    if not bad:
        return []
    longest = max(bad, key=lambda pair: pair[1])
    return [
        Finding(
            "error",
            "too-long",
            f"{material.many(len(bad), 'has', 'have')} more than the {limit:,} tokens that fit",
            "shorten or split them, or raise --max-length where the base's context allows it",
            tuple(line for line, _ in bad),
            (f"line {longest[0]} has {longest[1]:,} tokens",),
        )
    ]
