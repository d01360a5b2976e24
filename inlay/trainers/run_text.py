"""A training run on a terminal: the verdict, the loss curve, tables. It fits 40 columns and uses more."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from inlay.evals.report_text import print_table
from inlay.registry.printable import printable
from inlay.trainers.run_report import RunReport
from inlay.trainers.run_tables import run_tables

if TYPE_CHECKING:
    from rich.console import Console

WIDTH, HEIGHT = 72, 8
"""Columns and lines of the loss curve, at most; two more lines are its axis."""
COLOURS = {"ship": "green", "do not ship": "red", "not enough evidence": "yellow"}


def run_words(report: RunReport) -> str:
    """What `print_run` prints on a terminal of this width, as text."""
    from rich.console import Console

    console = Console()
    with console.capture() as captured:
        print_run(report, console)
    return captured.get().rstrip()


def print_run(report: RunReport, console: Console | None = None) -> None:
    """Print it. Names come from files and the command line, and are never markup."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    first, *others = report.verdict.sentences
    console.print(Text(printable(first), style=f"bold {COLOURS[report.verdict.decision]}"))
    for sentence in others:
        console.print(Text(printable(sentence)))
    losses = [row["loss"] for row in report.run.get("curve", ()) if "loss" in row]
    if len(losses) > 1:
        console.print()
        console.print(Text("Loss, nats an answer token", style="bold"))
        steps = (report.run["curve"][0]["step"], report.run["curve"][-1]["step"])
        for line in curve_lines(losses, steps, columns=min(WIDTH, console.width)):
            console.print(Text(line), no_wrap=True, crop=True)
    for table in run_tables(report):
        console.print()
        print_table(table, console)
    for note in report.baselines.notes:
        console.print(Text(printable(note), style="dim"))


def curve_lines(
    values: Sequence[float], steps: tuple[int, int], *, columns: int, lines: int = HEIGHT
) -> list[str]:
    """A curve in `lines` lines and two of its axis, each at most `columns` wide: the mean of the values that
    fall into a column, a sign each. `steps`: the first and the last."""
    low, high = min(values), max(values)
    labels = [f"{value:.3g}" for value in (high, (low + high) / 2, low)]
    margin = max(map(len, labels)) + 1
    room = max(1, min(columns - margin - 1, len(values)))
    edges = [round(k * len(values) / room) for k in range(room + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    field = [[" "] * room for _ in range(lines)]
    for across, value in enumerate(means):
        height = round((value - low) / (high - low) * (lines - 1)) if high > low else 0
        field[lines - 1 - height][across] = "•"
    names = {0: labels[0], (lines - 1) // 2: labels[1], lines - 1: labels[2]}
    drawn = [f"{names.get(i, ''):>{margin - 1}} ┤{''.join(row)}".rstrip() for i, row in enumerate(field)]
    first, last = str(steps[0]), str(steps[1])
    return [
        *drawn,
        f"{' ' * margin}└{'─' * room}",
        f"{' ' * (margin + 1)}{first}{last:>{max(room - len(first), len(last) + 1)}}",
    ]
