"""A blame report on a terminal: a table and bars that fit 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inlay.evals.blame import BlameReport, Member
from inlay.evals.forgetting import p_text, percent
from inlay.evals.statistics import Paired
from inlay.registry.printable import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

NAME = 22
"""Columns for a member's name; longer ones are cut."""
BAR = 30
"""Columns of a bar that stands for the largest figure."""
EIGHTHS = " ▏▎▍▌▋▊▉█"


def print_blame(report: BlameReport, console: Console | None = None) -> None:
    """Print verdict, bars, members, what they are worth on targets, and the skills they hit most."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    console.print(Text(printable(report.verdict), style="bold"))
    for line in bars(report):
        console.print(line, no_wrap=True, crop=True)
    console.print(_members(report))
    for place in range(len(report.targets)):
        console.print(_target(report, place))
    for member in report.members:
        if member.skills:
            hits = ", ".join(
                f"{hit.name} {percent(hit.removed.loss)} (n={hit.removed.n})" for hit in member.skills
            )
            console.print(
                Text.assemble((f"{short(member.name)}: ", "bold"), f"removing it brings back {hits}")
            )
    console.print(Text(interaction_text(report), style="dim"))


def bars(report: BlameReport) -> list[Text]:
    """Two bars a member: what it loses alone, what removing it brings back; a gain is drawn hollow."""
    from rich.text import Text

    figures = [abs(f) for m in report.members for f in (m.alone.loss, m.removed.loss)]
    largest = max(figures, default=0.0) or 1.0
    lines = [Text("Points of held-out general skills", style="italic")]
    for member in report.members:
        rows = (("alone loses", member.alone.loss, "yellow"), ("removal returns", member.removed.loss, "red"))
        for number, (what, value, style) in enumerate(rows):
            line = Text(f"{short(weighed(member)) if number == 0 else '':<{NAME}} {what:<15} ")
            line.append(bar(value, largest), style=style if value > 0 else "green")
            line.append(f" {percent(value)}")
            lines.append(line)
    return lines


def bar(value: float, largest: float, *, columns: int = BAR) -> str:
    """`value` as a bar of at most `columns`, to an eighth of one; of `░` where it is negative."""
    eighths = round(8 * columns * min(1.0, abs(value) / largest))
    if value < 0:
        return "░" * max(1, round(eighths / 8))
    whole, rest = divmod(eighths, 8)
    return "█" * whole + (EIGHTHS[rest] if rest else "")


def interaction_text(report: BlameReport) -> str:
    """How the members' own losses add up to the whole's, in a sentence; all its figures are estimates."""
    total = sum(member.alone.loss for member in report.members)
    return (
        f"Alone the members lose {percent(total)} points added up, the whole loses "
        f"{percent(report.whole.loss)}: interaction {percent(report.interaction)} (estimates)."
    )


def interval_text(counts: Paired, *, gain: bool = False) -> str:
    """`4.1 [1.0, 7.9]`: points, estimate and two-sided 95% interval."""
    low, high = counts.interval if gain else counts.loss_interval
    return f"{percent(counts.delta if gain else counts.loss)} [{percent(low)}, {percent(high)}]"


def weighed(member: Member) -> str:
    """A member with its weight, where that is not 1: `0.5 style@v3`."""
    return member.name if member.weight == 1.0 else f"{member.weight:g} {member.name}"


def short(name: str, limit: int = NAME) -> str:
    """A name on one line, cut: a terminal must not obey what a recipe says."""
    line = printable(name)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1), collapse_padding=True)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def _members(report: BlameReport) -> Table:
    from rich.text import Text

    table = _table(
        f"Points [95%] of held-out general skills (n={report.whole.n}; p adjusted by Holm)",
        "member",
        "alone loses",
        "removal returns",
        "p",
    )
    for member in report.members:
        table.add_row(
            Text(short(weighed(member)), style=_style(report, member)),
            interval_text(member.alone),
            interval_text(member.removed),
            p_text(member.p_adjusted).removeprefix("= "),
        )
    table.add_row(Text("the whole", style="dim"), interval_text(report.whole), "", "")
    return table


def _target(report: BlameReport, place: int) -> Table:
    from rich.text import Text

    table = _table(
        f"Points [95%] of target {short(report.targets[place], 40)} (n={report.whole_targets[place].n})",
        "member",
        "alone gains",
        "removal costs",
    )
    for member in report.members:
        share = member.targets[place]
        table.add_row(
            Text(short(weighed(member))),
            interval_text(share.alone, gain=True),
            interval_text(share.removed, gain=True),
        )
    table.add_row(Text("the whole", style="dim"), interval_text(report.whole_targets[place], gain=True), "")
    return table


def _style(report: BlameReport, member: Member) -> str:
    return "bold red" if report.culprit is member else ""
