"""Lines that are no training row."""

from __future__ import annotations

from inlay.trainers.quality.finding import Finding, many
from inlay.trainers.quality.material import Material

SHOWN = 3


def form(material: Material) -> list[Finding]:
    """An error for lines that are no JSON object in a known layout."""
    bad = [each for each in material.unread if not each.empty]
    if not bad:
        return []
    return [
        Finding(
            "error",
            "form",
            f"{many(len(bad), 'line is', 'lines are')} no training row",
            "mend or remove them; docs/training.md shows the layouts",
            tuple(each.line for each in bad),
            tuple(f"line {each.line} {each.why}" for each in bad[:SHOWN]),
        )
    ]
