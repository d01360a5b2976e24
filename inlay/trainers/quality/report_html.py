"""The report as one page: no script, no network, readable on a phone and on paper.

Rows of the data reach it only as short quotations in findings, through an autoescaped template.
"""

from __future__ import annotations

from pathlib import Path

from inlay.evals.page import write_page
from inlay.trainers.quality.data_check import DataCheck
from inlay.trainers.quality.report_plots import counts, histogram
from inlay.trainers.quality.report_text import figure_lines
from inlay.trainers.quality.wordings import wordings


def write_html(path: str | Path, found: DataCheck) -> Path:
    """Write the page to `path` (its folder is made) and return it."""
    return write_page(
        path,
        "data.html",
        package="inlay.trainers.quality",
        found=found,
        figures=figure_lines(found),
        plots=_plots(found),
    )


def _plots(found: DataCheck) -> list[tuple[str, str]]:
    """(caption, image) of what there is to draw."""
    material, figures = found.material, found.figures
    named = f"{material.limit:,} fit" if material.limit else ""
    tokens = material.tokens or ()
    drawn = [
        (
            "How long rows are, prompt and answer.",
            histogram(tokens, "tokens of a row", limit=material.limit, named=named),
        ),
        (
            "How long answers are.",
            histogram([len(row.answer.split()) for row in material.rows], "words of an answer"),
        ),
        (
            "How unlikely the base finds the answers; far to the right is worth a look.",
            histogram(material.nats or (), "nats a token of an answer"),
        ),
        ("Classes.", counts(figures.classes or (), "rows")),
        ("How requests are worded.", counts(wordings(material).most_common(), "rows")),
    ]
    return [(caption, image) for caption, image in drawn if image is not None]
