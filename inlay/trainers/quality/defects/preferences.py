"""Preferences that contradict each other, prefer nothing, or teach a mere sign of the better answer."""

from __future__ import annotations

from collections import Counter

from inlay.evals.contamination import normalised
from inlay.trainers.quality.finding import Finding, shortened
from inlay.trainers.quality.material import Material, Row, numbered

FEWEST = 20
"""Pairs under which a file is too small to tell."""
MOSTLY = 0.8
"""Share of the pairs in which the longer answer, the shorter one, or one single answer wins or loses, from
which it is what the pairs teach."""


def opposed(material: Material) -> list[Finding]:
    """A warning for pairs that prefer an answer to another where a pair with the same prompt prefers them the
    other way round; case, spaces and punctuation aside."""
    known: dict[tuple[str, str, str], Row] = {}
    bad: dict[int, Row] = {}
    examples = []
    for row in material.rows:
        better, worse = normalised(row.answer), normalised(row.rejected or "")
        other = known.get((row.plain, worse, better))
        known.setdefault((row.plain, better, worse), row)
        if other is not None and better != worse:
            bad |= {other.line: other, row.line: row}
            examples.append(f"lines {other.line} and {row.line}: {shortened(row.content)}")
    if not bad:
        return []
    return [
        Finding(
            "warning",
            "opposed",
            f"{material.many(len(bad), 'prefers', 'prefer')} what another one rejects",
            "decide which answer is the better one",
            numbered(bad.values()),
            tuple(examples[:2]),
        )
    ]


def alike(material: Material) -> list[Finding]:
    """A warning for pairs whose answers differ in case, spaces and punctuation alone."""
    bad = [row for row in material.rows if normalised(row.answer) == normalised(row.rejected or "")]
    if not bad:
        return []
    return [
        Finding(
            "warning",
            "alike",
            f"{material.many(len(bad), 'has', 'have')} answers that differ in case or punctuation only",
            "remove them, unless that is what is to be learnt",
            numbered(bad),
            (f"line {bad[0].line}: {shortened(bad[0].answer)} over {shortened(bad[0].rejected or '')}",),
        )
    ]


def one_sided(material: Material) -> list[Finding]:
    """Warnings where a sign that anybody could tell the better answer by stands in `MOSTLY` of the pairs: its
    length (Singhal et al., arXiv:2310.03716), or one answer that always wins or loses."""
    rows = material.rows
    if len(rows) < FEWEST:
        return []
    found = []
    for share, which in zip(longer_and_shorter(material), ("longer", "shorter"), strict=True):
        if share >= MOSTLY:
            found.append(
                Finding(
                    "warning",
                    "length-bias",
                    f"the {which} answer is preferred in {100 * share:.0f}% of the pairs",
                    f"add pairs whose better answer is not the {which} one: else that is what is learnt",
                )
            )
    for answers, what in (
        (Counter(row.answer for row in rows), "chosen"),
        (Counter(row.rejected or "" for row in rows), "rejected"),
    ):
        answer, count = answers.most_common(1)[0]
        share = count / len(rows)
        if share >= MOSTLY:
            found.append(
                Finding(
                    "warning",
                    "one-answer",
                    f"one answer is {what} in {100 * share:.0f}% of the pairs: {shortened(answer)}",
                    "add others: that one is known again without the prompt",
                )
            )
    return found


def longer_and_shorter(material: Material) -> tuple[float, float]:
    """Shares of the pairs whose chosen answer has more words than the rejected one, and fewer; there must be
    pairs."""
    words = [(len(row.answer.split()), len((row.rejected or "").split())) for row in material.rows]
    more, fewer = sum(a > b for a, b in words), sum(a < b for a, b in words)
    return more / len(words), fewer / len(words)
