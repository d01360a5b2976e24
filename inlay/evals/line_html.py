"""A line of versions as one page: no script, no network, and everything from outside is escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inlay.evals.forgetting import p_text, percent
from inlay.evals.line_records import Change, Line, score_text
from inlay.evals.line_text import FIGURES, SENTENCES, TITLES, figure_text
from inlay.evals.report_plots import heatmap
from inlay.registry.printable import printable

ROWS = 24
"""So many versions an image: more would be too small to read on a phone."""


def write_line(path: str | Path, line: Line) -> Path:
    """Write the page to `path` (its folder is made) and return it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("inlay.evals", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(printable=printable)
    page = environment.get_template("line.html").render(
        line=line,
        sentences=line.sentences()[:SENTENCES],
        heatmaps=heatmaps(line),
        figures=[
            (name, [figure_text(each[key], signed=key in ("bwt", "fwt")) for key in FIGURES])
            for name, each in (("learning", line.learning), ("forgetting", line.forgetting))
            if each["average_accuracy"].columns
        ],
        titles=list(FIGURES.values()),
        tables=[
            (title, columns)
            for role, title in TITLES.items()
            if (columns := [j for j, column in enumerate(line.columns) if column.role == role])
        ],
        cell=lambda row, column: _cell(line, row, column),
        falls=[_fall(line, change) for change in line.lost],
        states=["", *("" if s.state == "active" else s.state for s in line.subjects)],
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A lone surrogate in a name from outside must not cost the page.
    path.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def heatmaps(line: Line) -> list[tuple[str, str]]:
    """(caption, image) pairs: a row a version, a column a skill; targets apart from general skills."""
    found = []
    marks = ["", *("" if s.state == "active" else f" ({s.state})" for s in line.subjects)]
    labels = [f"{label}{mark}" for label, mark in zip(line.labels, marks, strict=True)]
    for role, title in TITLES.items():
        columns = [j for j, column in enumerate(line.columns) if column.role == role and column.of_one]
        if not columns:
            continue
        names = [line.columns[j].label for j in columns]
        for start in range(0, len(labels), ROWS):
            rows = range(start, min(start + ROWS, len(labels)))
            values = [[line.scores[i][j] for j in columns] for i in rows]
            found.append((title, heatmap([labels[i] for i in rows], names, values, f"{title}, %")))
    return found


def _cell(line: Line, row: int, column: int) -> tuple[str, str]:
    """(text, class) of one cell of a table."""
    score, step = line.scores[row][column], line.step(row, column)
    said = score_text(score, line.columns[column])
    if step is not None and step.fell:
        return f"{said} ▼", "fell"
    if step is not None and step.rose:
        return f"{said} ▲", "rose"
    return said, ""


def _fall(line: Line, change: Change) -> dict[str, Any]:
    """One row of the table of what was lost."""
    column = line.columns[change.column]
    scores = [line.scores[i][change.column] for i in (change.against, change.row)]
    said = [
        "–" if x is None else percent(x) if column.of_one else f"{x:.3g}"
        for x in (change.delta, change.low, change.high)
    ]
    return {
        "label": column.label,
        "at": line.labels[change.row],
        "against": line.labels[change.against],
        "before": score_text(scores[0], column),
        "after": score_text(scores[1], column),
        "change": f"{said[0]} [{said[1]},\u00a0{said[2]}]",
        "items": f"{change.worse} / {change.better}",
        "p": p_text(change.p_adjusted).removeprefix("= "),
    }
