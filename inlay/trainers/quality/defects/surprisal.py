"""What the base finds far less likely than the others: garbage, another language, a broken row."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict

from inlay.trainers.quality.finding import Finding, shortened
from inlay.trainers.quality.material import Material, Row
from inlay.trainers.quality.spread import robust_z

FAR = 6.0
"""Robust z from which an answer is surprising."""
LEAST = 1.0
"""Least spread assumed, nats a token: a base that knows a task well is off by up to three on sound rows."""
FEWEST = 50
OF_A_CLASS = 10
"""Rows from which a class is compared with itself: a base finds some classes less likely than others."""


def surprisal(material: Material) -> list[Finding]:
    """A warning for rows whose mean negative log-likelihood a token, of the answer given the prompt or of the
    document, is far above the file's. Only where it was measured."""
    if material.nats is None:
        return []
    known = [
        (row, nats) for row, nats in zip(material.rows, material.nats, strict=True) if math.isfinite(nats)
    ]
    if len(known) < FEWEST:
        return []
    scores = robust_z(_beyond_class(known), LEAST)
    bad = [(z, row, nats) for z, (row, nats) in zip(scores, known, strict=True) if z >= FAR]
    if not bad:
        return []
    bad.sort(key=lambda each: -each[0])
    return [
        Finding(
            "warning",
            "surprisal",
            f"{material.many(len(bad), 'surprises', 'surprise')} the base far more than the others",
            "read them: they may be garbage, in another language, or to another prompt",
            tuple(sorted(row.line for _, row, _ in bad)),
            tuple(
                f"line {row.line}, {nats:.1f} nats a token: {shortened(row.answer or row.prompt)}"
                for _, row, nats in bad[:3]
            ),
        )
    ]


def _beyond_class(known: list[tuple[Row, float]]) -> list[float]:
    """Each answer's nats, less what is usual for it where many rows have the very same answer."""
    groups: dict[str, list[float]] = defaultdict(list)
    for row, nats in known:
        groups[row.answer].append(nats)
    everywhere = statistics.median(nats for _, nats in known)
    usual = {
        answer: statistics.median(held) if len(held) >= OF_A_CLASS else everywhere
        for answer, held in groups.items()
    }
    return [nats - usual[row.answer] for row, nats in known]
