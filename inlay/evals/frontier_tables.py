"""What a choice by measured result says, as tables of plain text."""

from __future__ import annotations

from inlay.evals.forgetting import percent
from inlay.evals.frontier import FrontierReport, Point
from inlay.evals.table import Table, columns, interval

EACH = 3
"""Candidates of one kind that the table has room for, beside adapters alone; the others are in the JSON."""


def frontier_tables(report: FrontierReport) -> list[Table]:
    """The candidates on dev items; the choice on test items, where there is one."""
    found = [_candidates(report)]
    return found if report.tested is None else [*found, _tested(report, report.tested)]


def shown(report: FrontierReport) -> list[Point]:
    """The points that tables and plots have room for, what learned most first: the choice, the frontier, the
    best of each kind."""
    front = {point.name for point in report.frontier}
    order = sorted((point for point in report.points if point.whole), key=lambda p: (-p.learned, p.lost))
    found: list[Point] = []
    for point in order:
        like = sum(each.kind == point.kind for each in found)
        if point.kind == "alone" or like < EACH or point.name in (report.choice, *front):
            found.append(point)
    return found


def mark_of(report: FrontierReport, point: Point) -> str:
    """What a point is, in a word."""
    if point.name == report.choice:
        return "chosen"
    return "frontier" if point in report.frontier else ""


def _candidates(report: FrontierReport) -> Table:
    points = shown(report)
    hidden = len(report.points) - len(points)
    n = f"{points[0].n} target, {points[0].general.n} general" if points else "no"
    more = f" {hidden} more were given up earlier or learned less." if hidden else ""
    return Table(
        f"Candidates on {n} dev items",
        columns("candidate", "learned", ("lost [95%]", 2), "lost ≤", ("least kept", 2), "is"),
        tuple(
            (
                point.name,
                percent(point.learned),
                interval(point.lost, *point.general.loss_interval),
                percent(point.general.loss_upper),
                _least(point),
                mark_of(report, point),
            )
            for point in points
        ),
        "Learned: mean score on the targets, %. Lost: points of held-out general skills; ≤ is the one-sided "
        "95% bound. Least kept: of what one member gains by itself, the share that is kept of the member "
        f"worst off, %. Frontier: no other learned more and lost less.{more}",
    )


def _least(point: Point) -> str:
    if point.kind == "base" or point.least is None:
        return "–"
    return percent(point.least.share)


def _tested(report: FrontierReport, point: Point) -> Table:
    kept = {each.suite: each for each in point.kept}
    rows = []
    for each in point.targets:
        own = kept.get(each.suite)
        counts = each.counts
        rows.append(
            (
                each.suite,
                str(counts.n),
                percent(counts.base_score),
                "–" if own is None else percent(own.alone.model_score),
                percent(counts.model_score),
                "–" if own is None else percent(own.share),
            )
        )
    general = point.general
    rows.append(
        (
            "general skills",
            str(general.n),
            percent(general.base_score),
            "–",
            percent(general.model_score),
            "–",
        )
    )
    return Table(
        f"{point.name} on test items",
        columns("suite", ("n", 2), "base", ("member alone", 2), "chosen", "kept"),
        tuple(rows),
        "Scores in percent. Kept: of what the suite's own member gains by itself. No test item had a part in "
        "the choice.",
    )
