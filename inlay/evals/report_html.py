"""The report as one page: no script, no network, readable on a phone and on paper, dark where the reader is.

Whatever a model or a user wrote reaches the page only through autoescaped templates, its control and
direction characters as visible escapes, or as glyphs drawn into an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inlay.errors import InputError
from inlay.evals.forgetting import ForgettingReport, percent
from inlay.evals.report_flips import sides
from inlay.evals.report_plots import STYLES, learning_against_forgetting, skill_bars
from inlay.evals.report_tables import sentences, tables
from inlay.evals.routing_plots import routing_plots
from inlay.evals.statistics import Paired, wilson
from inlay.registry.printable import printable

FLIPS_SHOWN = 12
GAINED_SHOWN = 6
JOINERS = frozenset("\u200c\u200d")
"""Format characters that scripts and emoji need inside words, and that steer nothing."""


@dataclass(frozen=True)
class Estimate:
    """A fraction with its two-sided 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SkillScore:
    """One bar: a subject's score on one skill."""

    name: str
    held_out: bool
    score: Estimate


@dataclass(frozen=True)
class Subject:
    """One point and one set of bars: a base, an adapter's version, a variant, a refused candidate.

    `learned`: score on its target suites; `lost`: net loss of held-out general items; None where it was not
    measured. `kind` chooses the colour and the mark: one of `report_plots.STYLES`. `note`: one sentence.
    """

    label: str
    kind: str
    learned: Estimate | None = None
    lost: Estimate | None = None
    skills: tuple[SkillScore, ...] = ()
    report: ForgettingReport | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.kind not in STYLES:
            raise InputError(
                f"a subject's kind must be one of {', '.join(STYLES)}, and {self.label}'s is {self.kind!r}"
            )

    @classmethod
    def of(
        cls, report: ForgettingReport, *, kind: str = "adapter", label: str | None = None, note: str = ""
    ) -> Subject:
        """The subject of a forgetting report."""
        return cls(
            label=label or report.subject,
            kind=kind,
            learned=_score(_all_targets(report), base=False),
            lost=Estimate(report.lost, *report.interval) if report.held_out.n else None,
            skills=_bars(report, base=False),
            report=report,
            note=note,
        )

    @classmethod
    def base(cls, report: ForgettingReport, *, label: str = "base", note: str = "") -> Subject:
        """The base, as the same report measured it: it has lost nothing, by definition."""
        return cls(
            label=label,
            kind="base",
            learned=_score(_all_targets(report), base=True),
            lost=Estimate(0.0, 0.0, 0.0),
            skills=_bars(report, base=True),
            note=note,
        )


def write_report(
    path: str | Path,
    title: str,
    subjects: Sequence[Subject],
    *,
    intro: Sequence[str] = (),
    journal: Sequence[str] = (),
    allowed: float | None = None,
) -> Path:
    """Write the page to `path` (its folder is made) and return it.

    `intro` and `journal`: sentences. `allowed`: a guard's allowance, drawn as a line into the first plot.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("inlay.evals", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters.update(points=percent, estimate=_estimate_text)
    environment.globals.update(tables=tables, sentences=sentences, sides=sides, routing_plots=routing_plots)
    page = environment.get_template("report.html").render(
        title=title,
        subjects=subjects,
        intro=intro,
        journal=journal,
        allowed=allowed,
        scatter=learning_against_forgetting(subjects, allowed),
        bars=skill_bars(subjects),
        flips_shown=FLIPS_SHOWN,
        gained_shown=GAINED_SHOWN,
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A lone surrogate in a model's answer must not cost the report.
    path.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def _all_targets(report: ForgettingReport) -> Paired:
    counts = Paired(0, 0, 0, 0)
    for target in report.targets:
        counts += target.counts
    return counts


def _score(counts: Paired, *, base: bool) -> Estimate | None:
    if counts.n == 0:
        return None
    right = counts.both + (counts.lost if base else counts.gained)
    return Estimate(right / counts.n, *wilson(right, counts.n))


def _bars(report: ForgettingReport, *, base: bool) -> tuple[SkillScore, ...]:
    scores = ((skill, _score(skill.counts, base=base)) for skill in report.skills)
    return tuple(
        SkillScore(skill.name, skill.held_out, score) for skill, score in scores if score is not None
    )


def _estimate_text(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    if estimate.low == estimate.high:
        return percent(estimate.value)
    # Where a narrow screen breaks the line, it breaks before the interval and not inside.
    return f"{percent(estimate.value)} [{percent(estimate.low)},\u00a0{percent(estimate.high)}]"


def _shown(value: object) -> object:
    """Text for the page: line breaks and tabs stay, what could steer a reader's eye becomes an escape. Called
    on every value before it is escaped as HTML."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    if value.isascii() and value.isprintable():
        return value
    return "".join(c if c in "\n\t" or c in JOINERS else printable(c) for c in value)
