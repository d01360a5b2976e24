"""A choice by measured result as one page: no script, no network, readable on a phone and on paper.

Names come from recipes, and reach the page only through autoescaped templates or as glyphs of an image.
"""

from __future__ import annotations

from pathlib import Path

from inlay.evals.frontier import FrontierReport, Point
from inlay.evals.frontier_tables import frontier_tables, mark_of, shown
from inlay.evals.page import write_page
from inlay.evals.report_html import Estimate, Subject
from inlay.evals.report_plots import learning_against_forgetting


def write_frontier(path: str | Path, report: FrontierReport) -> Path:
    """Write the page to `path` (its folder is made) and return it."""
    return write_page(
        path,
        "frontier.html",
        report=report,
        tables=frontier_tables(report),
        plot=learning_against_forgetting(subjects(report), report.forget),
    )


def subjects(report: FrontierReport) -> list[Subject]:
    """The points of the plot: the base and each adapter alone as such, what was chosen as a variant, the
    others as what was left."""
    return [
        Subject(
            label=point.name,
            kind=_kind(report, point),
            learned=Estimate(point.learned, *point.interval),
            lost=Estimate(point.lost, *point.general.loss_interval),
        )
        for point in shown(report)
    ]


def _kind(report: FrontierReport, point: Point) -> str:
    if mark_of(report, point) == "chosen":
        return "variant" if report.passed else "refused"
    return {"base": "base", "alone": "adapter"}.get(point.kind, "plain")
