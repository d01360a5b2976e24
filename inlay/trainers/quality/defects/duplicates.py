"""Rows that are there twice."""

from __future__ import annotations

from inlay.trainers.quality.finding import Finding, many, shortened
from inlay.trainers.quality.material import Material, Row


def duplicates(material: Material) -> list[Finding]:
    """A warning for rows whose prompt and answer stood before; the later ones are named."""
    first: dict[tuple[str, str], Row] = {}
    again = [
        row for row in material.rows if first.setdefault((row.prompt.strip(), row.answer), row) is not row
    ]
    if not again:
        return []
    row = first[again[0].prompt.strip(), again[0].answer]
    return [
        Finding(
            "warning",
            "duplicate",
            f"{many(len(again), 'row is', 'rows are')} the same as an earlier one",
            "remove them: a row that is there twice weighs twice",
            tuple(each.line for each in again),
            (f"line {again[0].line} is line {row.line}: {shortened(row.content)}",),
        )
    ]
