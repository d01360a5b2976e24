"""A blame report as one page: no script, no network, readable on a phone and on paper.

Names come from recipes, and reach the page only through autoescaped templates.
"""

from __future__ import annotations

from pathlib import Path

from inlay.evals.blame import BlameReport
from inlay.evals.blame_text import interaction_text, interval_text
from inlay.evals.forgetting import p_text, percent


def write_blame(path: str | Path, report: BlameReport) -> Path:
    """Write the page to `path` (its folder is made) and return it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("inlay.evals", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        points=percent,
        p=lambda p: p_text(p).removeprefix("= "),
        loss=interval_text,
        gain=lambda counts: interval_text(counts, gain=True),
    )
    figures = [(m.alone.loss, *m.alone.loss_interval) for m in report.members]
    figures += [(m.removed.loss, *m.removed.loss_interval) for m in report.members]
    low = min([0.0, *(min(each) for each in figures)])
    high = max([0.01, *(max(each) for each in figures)])
    page = environment.get_template("blame.html").render(
        report=report,
        interaction=interaction_text(report),
        at=lambda value: round(100.0 * (value - low) / (high - low), 2),
        minus=lambda a, b: round(a - b, 2),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path
