"""The report for a terminal of any width."""

from __future__ import annotations

import textwrap

from inlay.registry.printable import printable
from inlay.trainers.quality.data_check import DataCheck
from inlay.trainers.quality.figures import Figures, Quantiles
from inlay.trainers.quality.finding import Finding, shortened
from inlay.trainers.quality.material import NOUNS

CLASSES_NAMED = 5
SCORED = {"rows": "an answer", "pairs": "a chosen answer", "texts": "a document"}
"""What words are counted and likelihoods are measured of."""


def report_text(found: DataCheck, *, width: int = 80) -> str:
    """The verdict, each finding with examples and what to do, then the file in numbers."""
    lines = _wrapped(found.verdict(), width)
    for each in found.findings:
        lines += ["", *_finding(each, width)]
    lines.append("")
    for line in figure_lines(found):
        lines += _wrapped(line, width, later="  ")
    return "\n".join(lines)


def figure_lines(found: DataCheck) -> list[str]:
    """The numbers, a sentence each."""
    figures = found.figures
    row, rows = NOUNS[found.reads]
    scored = SCORED[found.reads]
    lines = [f"{figures.rows:,} {rows} could be read"]
    if figures.words:
        lines.append(f"words of {scored}: {_quantiles(figures.words, 0)}")
    if figures.tokens:
        fit = f", {figures.limit:,} fit" if figures.limit else ""
        lines.append(f"tokens of a {row}: {_quantiles(figures.tokens, 0)}{fit}")
    if figures.nats:
        lines.append(
            f"nats a token of {scored} under {printable(found.base or '')}: {_quantiles(figures.nats, 2)}"
        )
    if figures.longer is not None:
        lines.append(f"the longer answer is preferred in {100 * figures.longer:.0f}%")
    if figures.wording and figures.rows > 1:
        wording = figures.wording
        lines.append(
            f"wordings: {wording.different:,}, as varied as {wording.effective:.1f} equally frequent ones; "
            f"the commonest in {100 * wording.share:.0f}%: {shortened(wording.commonest)}"
        )
    lines += _classes(figures)
    lines += [
        f"{key}: "
        + ", ".join(f"{printable(value) or 'not stated'} ({rows:,})" for value, rows in counts.items())
        for key, counts in found.provenance.items()
        if counts
    ]
    if found.against:
        lines.append(f"looked for in {', '.join(map(printable, found.against))}")
    return lines


def _classes(figures: Figures) -> list[str]:
    if not figures.classes:
        return []
    named = [f"{shortened(label, 30)} {rows:,}" for label, rows in figures.classes[:CLASSES_NAMED]]
    more = len(figures.classes) - len(named)
    return [f"classes: {', '.join(named)}{f' and {more} more' if more else ''}"]


def _quantiles(of: Quantiles, digits: int) -> str:
    least, median, p95, most = (f"{v:,.{digits}f}" for v in (of.least, of.median, of.p95, of.most))
    return f"{least} to {most}, median {median}, 95% at most {p95}"


def _finding(found: Finding, width: int) -> list[str]:
    lines = _wrapped(f"{found.level} ({found.kind}): {found.sentence()}", width, later="  ")
    for example in found.examples:
        lines += _wrapped(printable(example), width, first="    ", later="      ")
    return [*lines, *_wrapped(f"→ {printable(found.fix)}", width, first="  ", later="    ")]


def _wrapped(text: str, width: int, *, first: str = "", later: str = "") -> list[str]:
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)
