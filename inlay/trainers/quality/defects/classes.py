"""Classes that are out of balance, rare, or written in two ways. Only where the answers are classes."""

from __future__ import annotations

from collections import Counter, defaultdict
from difflib import SequenceMatcher

from inlay.evals.contamination import normalised
from inlay.trainers.quality.finding import Finding, many, shortened
from inlay.trainers.quality.material import Material, numbered

DOMINANT = 0.8
"""Share of one class from which answering nothing else is a good strategy: what is learnt first then."""
RARE = 10
"""A class is rare with at most one in so many of the rows that an even split would give it."""
EVEN = 20
"""Rows of an even share under which chance makes rare classes."""
SPELLING = 0.85
MISSPELT = 3
"""A class of at most so many rows may be a misspelt one of ten times as many, spelt that alike."""


def classes(material: Material) -> list[Finding]:
    """Warnings: one class dominates; classes too rare to learn; one class under two spellings."""
    counted = material.classes
    if counted is None:
        return []
    return [*_dominant(counted), *_spellings(material, counted), *_rare(material, counted)]


def _dominant(counted: Counter[str]) -> list[Finding]:
    label, count = counted.most_common(1)[0]
    share = count / counted.total()
    if share < DOMINANT:
        return []
    return [
        Finding(
            "warning",
            "imbalance",
            f"{100 * share:.0f}% of the rows have the class {shortened(label)}",
            "add rows of the others, or take some of these away",
        )
    ]


def _twins(counted: Counter[str]) -> dict[str, str]:
    """{class: the more frequent one that it probably is}."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label, _ in counted.most_common():
        groups[normalised(label)].append(label)
    found = {label: labels[0] for labels in groups.values() for label in labels[1:]}
    for label, count in counted.items():
        if label in found or count > MISSPELT or len(label) < 4 or any(c.isdigit() for c in label):
            continue
        likely = [
            other
            for other, many in counted.most_common()
            if many >= 10 * count and SequenceMatcher(None, label, other).ratio() >= SPELLING
        ]
        if likely:
            found[label] = likely[0]
    return found


def _spellings(material: Material, counted: Counter[str]) -> list[Finding]:
    twins = _twins(counted)
    if not twins:
        return []
    return [
        Finding(
            "warning",
            "class-spelling",
            f"{many(len(twins), 'class looks', 'classes look')} like another one, written differently",
            "write each class in one way",
            numbered(row for row in material.rows if row.answer in twins),
            tuple(f"{shortened(a, 40)} for {shortened(b, 40)}" for a, b in list(twins.items())[:3]),
        )
    ]


def _rare(material: Material, counted: Counter[str]) -> list[Finding]:
    even = counted.total() / len(counted)
    twins = _twins(counted)
    rare = {label: n for label, n in counted.items() if RARE * n <= even and label not in twins}
    if not rare or even < EVEN:
        return []
    return [
        Finding(
            "warning",
            "rare-class",
            f"{many(len(rare), 'class has', 'classes have')} a tenth or less of an even share, "
            f"{even:.0f} rows",
            "add rows of them, or find out whether they are mistakes",
            numbered(row for row in material.rows if row.answer in rare),
            tuple(f"{shortened(label, 40)} in {n:,}" for label, n in list(rare.items())[:3]),
        )
    ]
