"""Rows that are marked as not to be trained on."""

from __future__ import annotations

from collections import Counter

from inlay.trainers.quality.finding import Finding, shortened
from inlay.trainers.quality.material import Material, numbered


def forbidden(material: Material) -> list[Finding]:
    """An error for rows whose own keys, or the file beside them, say no: a withdrawn consent, a test split,
    `do_not_train`."""
    bad = [row for row in material.rows if row.stated.forbidden]
    if not bad:
        return []
    marks = Counter(row.stated.forbidden or "" for row in bad)
    return [
        Finding(
            "error",
            "forbidden",
            f"{material.many(len(bad), 'is', 'are')} marked as not to be trained on",
            "remove them; only who set the mark may take it away",
            numbered(bad),
            tuple(f"{shortened(mark)}: {count:,}" for mark, count in marks.most_common(3)),
        )
    ]
