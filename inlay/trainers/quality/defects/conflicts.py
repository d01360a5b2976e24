"""One prompt, different answers."""

from __future__ import annotations

from collections import defaultdict

from inlay.evals.contamination import normalised
from inlay.trainers.quality.finding import Finding, many, shortened
from inlay.trainers.quality.material import CLASS_WORDS, Material, Row, numbered


def conflicts(material: Material) -> list[Finding]:
    """A warning for prompts (but for case, spaces and punctuation) whose answers contradict each other. Where
    an answer has more than `CLASS_WORDS` words, several may be right: then it is a note."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in material.rows:
        groups[row.plain].append(row)
    short: list[list[Row]] = []
    long: list[list[Row]] = []
    for rows in groups.values():
        if len({normalised(row.answer) or row.answer for row in rows}) > 1:
            brief = all(len(row.answer.split()) <= CLASS_WORDS for row in rows)
            (short if brief else long).append(rows)
    return [
        *_found("warning", "conflict", short, "different answers", "decide which answer is right"),
        *_found("note", "several-answers", long, "several long answers", "right, if both may be given"),
    ]


def _found(level: str, kind: str, groups: list[list[Row]], what: str, fix: str) -> list[Finding]:
    if not groups:
        return []
    examples = []
    for rows in groups[:2]:
        answers = " and ".join(f"{shortened(row.answer, 30)} (line {row.line})" for row in rows[:2])
        examples.append(f"{shortened(rows[0].content)}: {answers}")
    lines = numbered(row for rows in groups for row in rows)
    return [
        Finding(
            level,
            kind,
            f"{many(len(groups), 'prompt has', 'prompts have')} {what}",
            fix,
            lines,
            tuple(examples),
        )
    ]
