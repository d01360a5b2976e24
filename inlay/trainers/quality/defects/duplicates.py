"""Rows that are there twice."""

from __future__ import annotations

from inlay.trainers.quality.finding import Finding, shortened
from inlay.trainers.quality.material import Material, Row


def duplicates(material: Material) -> list[Finding]:
    """A warning for rows that stood before, prompt, answer and all; the later ones are named."""
    first: dict[tuple[str, str, str | None], Row] = {}
    again = [row for row in material.rows if first.setdefault(_whole(row), row) is not row]
    if not again:
        return []
    row = first[_whole(again[0])]
    return [
        Finding(
            "warning",
            "duplicate",
            f"{material.many(len(again), 'is', 'are')} the same as an earlier one",
            "remove them: what is there twice weighs twice",
            tuple(each.line for each in again),
            (f"line {again[0].line} is line {row.line}: {shortened(row.content)}",),
        )
    ]


def _whole(row: Row) -> tuple[str, str, str | None]:
    return row.prompt.strip(), row.answer, row.rejected
