"""A forgetting report on a terminal: tables that fit 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inlay.evals.drift import Drift
from inlay.evals.forgetting import FLIPS_KEPT, ForgettingReport, p_text, percent
from inlay.evals.statistics import Paired
from inlay.registry.printable import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

FLIPS_SHOWN = 5


def print_report(report: ForgettingReport, console: Console | None = None) -> None:
    """Print verdict, splits, skills, gains, drift and the first flips. What a model wrote is never markup."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    console.print(Text(report.verdict, style="bold"))
    console.print(_totals(report))
    console.print(_skills(report))
    if report.targets:
        console.print(_targets(report))
    if report.drift is not None:
        console.print(Text(drift_text(report.drift)))
    for flip in report.flips[:FLIPS_SHOWN]:
        console.print(
            Text.assemble(
                ("lost ", "red"),
                (f"{flip.skill}: ", "bold"),
                _short(" ".join(flip.prompt.split()), 200),
                ("\n  base ", "green"),
                _short(flip.expected, 100),
                ("\n  now  ", "red"),
                _short("(not kept)" if flip.model_answer is None else flip.model_answer, 100),
            )
        )
    hidden = len(report.flips) - FLIPS_SHOWN
    if hidden > 0:
        console.print(Text(f"… and {hidden} more lost items in the report (it keeps {FLIPS_KEPT})."))


def drift_text(drift: Drift) -> str:
    """The drift in one sentence; all its figures are estimates."""
    return (
        f"Drift over {drift.positions} positions (estimates): KL to the base {drift.forward_kl:.4f} nats, "
        f"reverse {drift.reverse_kl:.4f}, another top token at {percent(drift.disagreement)}%, negative "
        f"log-likelihood of the base's answers {drift.nll_change:+.4f}."
    )


def interval_text(counts: Paired) -> str:
    """`4.1 [1.0, 7.9]`: points lost, estimate and two-sided 95% interval."""
    low, high = counts.loss_interval
    return f"{percent(counts.loss)} [{percent(low)}, {percent(high)}]"


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1), collapse_padding=True)
    for index, column in enumerate(columns):
        if index:
            table.add_column(column, justify="right", no_wrap=True)
        else:
            table.add_column(column, overflow="fold", max_width=24)
    return table


def _totals(report: ForgettingReport) -> Table:
    table = _table("General skills, points lost", "", "n", "base%", "now%", "lost [95%]", "bound≤", "p")
    for name, counts in (("held out (verdict)", report.held_out), ("protected", report.protected)):
        if counts.n:
            table.add_row(
                name,
                str(counts.n),
                percent(counts.base_score),
                percent(counts.model_score),
                interval_text(counts),
                percent(counts.loss_upper),
                p_text(counts.p_value).removeprefix("= "),
            )
    return table


def _skills(report: ForgettingReport) -> Table:
    from rich.text import Text

    table = _table(
        "By skill (° protected; p adjusted by Holm)", "skill", "n", "−/+", "base%", "now%", "lost [95%]", "p"
    )
    for skill in report.skills:
        counts = skill.counts
        table.add_row(
            Text(skill.name + ("" if skill.held_out else " °")),
            str(counts.n),
            f"{counts.lost}/{counts.gained}",
            percent(counts.base_score),
            percent(counts.model_score),
            interval_text(counts),
            p_text(skill.p_adjusted).removeprefix("= "),
        )
    return table


def _targets(report: ForgettingReport) -> Table:
    from rich.text import Text

    table = _table("Targets, points gained", "suite", "n", "base%", "now%", "gain [95%]", "bound≥")
    for target in report.targets:
        counts = target.counts
        low, high = counts.interval
        table.add_row(
            Text(target.suite),
            str(counts.n),
            percent(counts.base_score),
            percent(counts.model_score),
            f"{percent(counts.delta)} [{percent(low)}, {percent(high)}]",
            percent(counts.gain_lower),
        )
    return table


def _short(text: str, limit: int) -> str:
    """One line, cut: a terminal must not obey what a model wrote."""
    line = printable(text)
    return line if len(line) <= limit else line[: limit - 1] + "…"
