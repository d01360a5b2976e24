"""A sweep as one page: no script, no network, readable on a phone and on paper.

Names come from files and settings, and reach the page only through autoescaped templates or as glyphs of an
image.
"""

from __future__ import annotations

from pathlib import Path

from inlay.evals.page import write_page
from inlay.evals.report_html import Estimate, Subject
from inlay.evals.report_plots import learning_against_forgetting
from inlay.trainers.grid import flag_of, shown
from inlay.trainers.sweep_report import SweepReport

_KINDS = {"taken": "variant", "frontier": "adapter", "": "plain"}


def write_sweep(path: str | Path, report: SweepReport) -> Path:
    """Write the page to `path` (its folder is made) and return it."""
    plot = learning_against_forgetting(
        subjects(report), report.forget, lost_of="protected prompts", learned_of="dev"
    )
    grid = {flag_of(name): [shown(value) for value in values] for name, values in report.grid.items()}
    return write_page(path, "sweep.html", report=report, grid=grid, tables=[report.table()], plot=plot)


def subjects(report: SweepReport) -> list[Subject]:
    """The points of the plot, what learned most first."""
    return [
        Subject(
            label=point.name,
            kind="base" if point.kind == "base" else _KINDS[report.mark_of(point)],
            learned=Estimate(point.learned, *point.interval),
            lost=Estimate(point.lost, *point.general.loss_interval),
        )
        for point in sorted(report.points, key=lambda each: (-each.learned, each.lost))
    ]
