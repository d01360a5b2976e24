"""Likely personal data, found by its form and, where there are any, its check digits."""

from __future__ import annotations

from collections import defaultdict

from inlay.trainers.quality.finding import Finding
from inlay.trainers.quality.material import Material
from inlay.trainers.quality.personal_data import personal_data

FIX = "replace it by made-up data, or be sure that it may be learnt: models recite what they saw"


def personal(material: Material) -> list[Finding]:
    """A warning a kind: e-mail addresses, phone numbers, IBANs, card numbers, network addresses, national
    ids. The examples are masked, since reports travel."""
    lines: dict[str, list[int]] = defaultdict(list)
    examples: dict[str, str] = {}
    for row in material.rows:
        for kind, text in personal_data(row.said):
            if row.line not in lines[kind][-1:]:
                lines[kind].append(row.line)
            examples.setdefault(kind, f"line {row.line}: {_masked(text)}")
    return [
        Finding(
            "warning",
            "personal",
            f"likely {kind} in {material.many(len(found))}",
            FIX,
            tuple(found),
            (examples[kind],),
        )
        for kind, found in lines.items()
    ]


def _masked(text: str) -> str:
    """The first two and the last two characters."""
    return f"{text[:2]}{'•' * max(1, len(text) - 4)}{text[-2:]}"
