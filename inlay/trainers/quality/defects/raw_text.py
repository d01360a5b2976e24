"""What only raw text has: lines that stand everywhere, documents that are nearly the same, and questions of
a suite somewhere in one."""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict

from inlay.evals.contamination import NEAR as NEAR_PROMPT
from inlay.evals.contamination import TELLING, TEMPLATE_ROWS, normalised, runs
from inlay.evals.suites import Suite
from inlay.trainers.quality.defects.near_duplicates import near_finding
from inlay.trainers.quality.finding import Finding, many, shortened
from inlay.trainers.quality.material import Material, Row
from inlay.trainers.quality.similar import similar

NEAR = 0.8
"""Similarity from which documents are near: common runs of eight words over all of theirs."""
EXAMPLES = 3


def boilerplate(material: Material) -> list[Finding]:
    """A warning for lines that stand in a tenth of the documents or more: headers, footers, menus."""
    lines = material.everywhere
    if not lines:
        return []
    return [
        Finding(
            "warning",
            "boilerplate",
            f"{many(len(lines), 'line stands', 'lines stand')} in a tenth of the documents or more",
            "take headers, footers and menus away: what stands everywhere is learnt first",
            (),
            tuple(f"in {count:,}: {shortened(line)}" for line, count in lines.most_common(EXAMPLES)),
        )
    ]


def near_documents(material: Material) -> list[Finding]:
    """A warning for documents of which an earlier one has most runs of eight words, those in lines that stand
    everywhere set aside. The same ones are `duplicates`'."""
    rows = material.rows
    texts = [_runs(row, material.everywhere) for row in rows]
    return near_finding(
        material,
        [
            (i, j)
            for i, j, share in similar(texts)
            if share >= NEAR and rows[i].prompt.strip() != rows[j].prompt.strip()
        ],
    )


def _runs(row: Row, everywhere: Counter[str]) -> frozenset[int]:
    own = "\n".join(line for line in row.prompt.split("\n") if line.strip() not in everywhere)
    return frozenset(zlib.crc32(run.encode()) for run in runs(normalised(own)))


def questions(material: Material) -> list[Finding]:
    """Of each suite, an error for prompts of eight words and more that stand in a document, case, spaces and
    punctuation aside; a warning for documents with most of a prompt's runs of eight words (`NEAR_PROMPT`)."""
    found = []
    for suite in material.suites:
        whole, near = _holding(material, suite)
        for level, kind, held, how in (
            ("error", "leak", whole, "with a question of"),
            ("warning", "leak-near", near, "with nearly a question of"),
        ):
            if held:
                line, text = min(held.items())
                found.append(
                    Finding(
                        level,
                        kind,
                        f"{material.many(len(held), how, how)} the suite {suite.name}",
                        "remove these documents, or the passage: what is trained on is not measured",
                        tuple(sorted(held)),
                        (f"line {line}: {shortened(text)}",),
                    )
                )
    return found


def _holding(material: Material, suite: Suite) -> tuple[dict[int, str], dict[int, str]]:
    """{line of a document: a prompt that stands in it}, whole and nearly. A run in many documents is no
    sign of nearness, and a prompt with few others has none."""
    asked = [
        (f" {plain} ", item.text, runs(plain)) for item in suite.items for plain in (normalised(item.text),)
    ]
    having: dict[str, list[int]] = defaultdict(list)
    for number, (_, _, own) in enumerate(asked):
        for run in own:
            having[run].append(number)
    held = [(row, runs(row.plain) & having.keys()) for row in material.rows]
    spread = Counter(run for _, shared in held for run in shared)
    telling = [sum(spread[run] <= TEMPLATE_ROWS for run in own) for _, _, own in asked]
    whole: dict[int, str] = {}
    near: dict[int, str] = {}
    for row, shared in held:
        counts = Counter(number for run in shared for number in having[run] if spread[run] <= TEMPLATE_ROWS)
        for number in {number for run in shared for number in having[run]}:
            padded, text, _ = asked[number]
            if padded in f" {row.plain} ":
                whole.setdefault(row.line, text)
            elif telling[number] >= TELLING and counts[number] >= NEAR_PROMPT * telling[number]:
                near.setdefault(row.line, text)
    return whole, {line: text for line, text in near.items() if line not in whole}
