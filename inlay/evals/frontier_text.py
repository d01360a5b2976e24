"""A choice by measured result on a terminal: two sentences, tables and a plot that fit 60 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inlay.evals.frontier import FrontierReport, Point
from inlay.evals.frontier_tables import frontier_tables, mark_of
from inlay.evals.report_text import print_table
from inlay.registry.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

WIDTH, HEIGHT = 72, 9
"""Columns and lines of the plot, at most."""
MARKS = {"": "·", "frontier": "*", "chosen": "#"}


def print_frontier(report: FrontierReport, console: Console | None = None) -> None:
    """Print explanation, plot, tables and notes. Names come from recipes and are never markup."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    for sentence in report.explanation:
        console.print(Text(printable(sentence), style="bold"))
    whole = [point for point in report.points if point.whole]
    if len(whole) > 2:
        console.print()
        console.print(Text("Learned (%, up) against general points lost (right); # chosen, * frontier"))
        marks = [MARKS[mark_of(report, point)] for point in whole]
        for line in scatter(whole, marks, columns=min(WIDTH, console.width)):
            console.print(Text(line), no_wrap=True, crop=True)
    for table in frontier_tables(report):
        console.print()
        print_table(table, console)
    for note in report.notes:
        console.print(Text(printable(note), style="dim"))


def scatter(points: Sequence[Point], marks: Sequence[str], *, columns: int, lines: int = HEIGHT) -> list[str]:
    """A sign a point in a field of `columns` by `lines` with its axes; where two meet, the later sign of
    `MARKS` is seen."""
    room = columns - 5
    lost = [100 * point.lost for point in points]
    low, high = min(0.0, *lost), max(1.0, *lost)
    field = [[" "] * room for _ in range(lines)]
    order = list(MARKS.values())
    for point, mark in sorted(zip(points, marks, strict=True), key=lambda pair: order.index(pair[1])):
        across = round((100 * point.lost - low) / (high - low) * (room - 1))
        field[lines - 1 - round(point.learned * (lines - 1))][across] = mark
    labels = {0: "100", lines // 2: " 50", lines - 1: "  0"}
    drawn = [f"{labels.get(i, ''):>3} ┤{''.join(line)}".rstrip() for i, line in enumerate(field)]
    left, right = f"{low:.1f}", f"{high:.1f}"
    return [*drawn, f"    └{'─' * room}", f"     {left}{right:>{room - len(left)}}"]
