"""Rows that stand in a suite: a score on it would show memory."""

from __future__ import annotations

from inlay.evals.contamination import Training, normalised, overlaps
from inlay.evals.suites import Item, Suite
from inlay.trainers.quality.defects.near_duplicates import NEAR, WHOLE
from inlay.trainers.quality.finding import Finding, many, shortened
from inlay.trainers.quality.material import Material, Row, contents
from inlay.trainers.quality.similar import TEMPLATED, same_numbers, shingles, similar, similarity, telling

LONG_ANSWER = 20
"""Words from which two answers to the same question differ in their wording."""


def leaks(material: Material) -> list[Finding]:
    """An error for prompts that stand in a suite to the letter; a warning for those that do but for case,
    white space and punctuation, and for those nearly the same: see `inlay.evals.contamination`, and
    `near_duplicates` for texts too short for runs of eight words."""
    found = []
    for suite in material.suites:
        same, alike = _same(material, suite)
        near = sorted(_near(material, suite) - set(same) - set(alike))
        for level, kind, lines, how in (
            ("error", "leak", same, "in the suite {name}"),
            ("warning", "leak-near", alike, "in the suite {name} but for case, spaces and punctuation"),
            ("warning", "leak-near", near, "nearly in the suite {name}"),
        ):
            if lines:
                own = {row.line: row.content for row in material.rows}
                found.append(
                    Finding(
                        level,
                        kind,
                        f"{many(len(lines), 'prompt is', 'prompts are')} {how.format(name=suite.name)}",
                        "remove these rows: what is trained on is not measured",
                        tuple(lines),
                        (f"line {lines[0]}: {shortened(own[lines[0]])}",),
                    )
                )
    return found


def _same(material: Material, suite: Suite) -> tuple[list[int], list[int]]:
    letters = {item.text.strip() for item in suite.items}
    plain = {normalised(item.text) for item in suite.items}
    same = [row.line for row in material.rows if row.prompt.strip() in letters]
    alike = [row.line for row in material.rows if row.plain in plain and row.prompt.strip() not in letters]
    return same, alike


def _near(material: Material, suite: Suite) -> set[int]:
    rows = material.rows
    training = Training(material.name, tuple(row.prompt for row in rows))
    items_by_id = {item.id: item for item in suite.items}
    found = {
        rows[each.line - 1].line
        for each in overlaps(suite.items, training)
        if each.degree == "near" and _same_answer(rows[each.line - 1], items_by_id[each.item])
    }
    whole = [row.example.text for row in rows] + [item.text for item in suite.items]
    own = contents(whole)
    runs = telling([shingles(text) for text in own])
    near: set[int] = set()
    items: set[int] = set()
    for i, j, alike in similar(runs, first=len(rows)):
        item = suite.items[j - len(rows)]
        if not _same_answer(rows[i], item) or not same_numbers(own[i], own[j]):
            continue
        items.add(j)
        if alike >= NEAR and similarity(shingles(whole[i]), shingles(whole[j])) >= WHOLE:
            near.add(rows[i].line)
    # Where both are filled into one template, nearness says nothing.
    templated = material.templated or len(items) > TEMPLATED * len(suite)
    return set() if templated else found | near


def _same_answer(row: Row, item: Item) -> bool:
    """Whether an item expects the row's answer. A long one may be worded otherwise."""
    return len(row.answer.split()) >= LONG_ANSWER or row.answer in item.accepted
