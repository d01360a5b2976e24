"""The report as one page: no script, no network, readable on a phone and on paper.

Rows of the data reach it only as short quotations in findings, through an autoescaped template.
"""

from __future__ import annotations

from pathlib import Path

from inlay.evals.page import write_page
from inlay.trainers.quality.data_check import DataCheck
from inlay.trainers.quality.material import NOUNS
from inlay.trainers.quality.report_plots import counts, histogram
from inlay.trainers.quality.report_text import SCORED, figure_lines
from inlay.trainers.quality.wordings import wordings

CAPTIONS = {
    "rows": "How long rows are, prompt and answer.",
    "pairs": "How long pairs are, prompt and longer answer.",
    "texts": "How long documents are.",
}


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
    (row, rows), scored = NOUNS[found.reads], SCORED[found.reads]
    named = f"{material.limit:,} fit" if material.limit else ""
    tokens = material.tokens or ()
    drawn = [
        (
            CAPTIONS[found.reads],
            histogram(tokens, f"tokens of a {row}", limit=material.limit, named=named, counted=rows),
        ),
        (
            f"How many words {scored} has.",
            histogram(
                [len((each.answer or each.prompt).split()) for each in material.rows],
                f"words of {scored}",
                counted=rows,
            ),
        ),
        (
            f"How unlikely the base finds {scored}; far to the right is worth a look.",
            histogram(material.nats or (), f"nats a token of {scored}", counted=rows),
        ),
        ("Classes.", counts(figures.classes or (), rows)),
        (
            "How requests are worded.",
            counts(wordings(material).most_common() if figures.wording else (), rows),
        ),
    ]
    return [(caption, image) for caption, image in drawn if image is not None]
