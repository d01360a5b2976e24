"""A training run as one page: no script, no network, readable on a phone and on paper.

Whatever a file, a user or a model wrote reaches the page only through autoescaped templates or as glyphs of
an image.
"""

from __future__ import annotations

from pathlib import Path

from inlay.evals.page import write_page
from inlay.evals.report_tables import sentences, tables
from inlay.trainers.run_plots import loss_curve, score_plot
from inlay.trainers.run_report import RunReport
from inlay.trainers.run_tables import manifest_tables, run_tables


def write_run(path: str | Path, report: RunReport) -> Path:
    """Write the page to `path` (its folder is made) and return it."""
    *scores, pair, cost = run_tables(report)
    plots = [
        score_plot(report.ref, result, report.baselines.on(result.suite.digest)) for result in report.results
    ]
    return write_page(
        path,
        "run.html",
        package="inlay.trainers",
        report=report,
        curve=loss_curve(report.run.get("curve", ())),
        scores=list(zip(scores, plots, strict=True)),
        pair=pair,
        cost=cost,
        forgetting=tables(report.forgetting),
        remarks=sentences(report.forgetting),
        manifest=manifest_tables(report),
    )
