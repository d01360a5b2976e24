"""One wording most of the time: what is learnt that way answers to that wording only."""

from __future__ import annotations

from inlay.trainers.quality.finding import Finding, shortened
from inlay.trainers.quality.material import Material
from inlay.trainers.quality.wordings import wordings

MONOTONE = 0.8
FEWEST = 20
"""Rows under which a file is too small to tell."""


def monotony(material: Material) -> list[Finding]:
    """A warning where one wording of the request stands in `MONOTONE` of the rows or more."""
    if len(material.rows) < FEWEST:
        return []
    counted = wordings(material)
    wording, count = counted.most_common(1)[0]
    share = count / len(material.rows)
    if share < MONOTONE:
        return []
    return [
        Finding(
            "warning",
            "monotony",
            f"one wording {100 * share:.0f}% of the time: {shortened(wording)}",
            "write the request in several ways, a dozen for users who type it themselves",
        )
    ]
