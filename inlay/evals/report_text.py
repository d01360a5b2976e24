"""A forgetting report on a terminal: tables that fit 60 columns and use more, flips with what differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inlay.evals.forgetting import FLIPS_KEPT, Flip, ForgettingReport
from inlay.evals.report_flips import Span, sides
from inlay.evals.report_tables import sentences, tables
from inlay.evals.table import Table
from inlay.registry.printable import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

FLIPS_SHOWN = 5
GAINED_SHOWN = 2
NAME = 26
"""Columns that a name gets before it is folded; with little room it gets less, never under `LEAST`."""
LEAST = 12
GAP = 2


def print_report(report: ForgettingReport, console: Console | None = None) -> None:
    """Print verdict, tables, sentences and the first flips. What a model wrote is never markup."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    console.print(Text(printable(report.verdict), style="bold"))
    for table in tables(report):
        console.print()
        print_table(table, console)
    console.print()
    for sentence in sentences(report):
        console.print(Text(printable(sentence)))
    for lost, flips, shown in ((True, report.flips, FLIPS_SHOWN), (False, report.gained, GAINED_SHOWN)):
        _print_flips(flips, shown, console, lost=lost)


def print_table(table: Table, console: Console) -> None:
    """Print it. Columns of a high rank are left out until the rest fits; a note says so."""
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    rows = [[printable(cell) for cell in row] for row in table.rows]
    kept, name = _fitting(table, rows, console.width)
    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for place in kept:
        if place == 0:
            grid.add_column(Text(table.columns[0].head), overflow="fold", max_width=name)
        else:
            grid.add_column(Text(table.columns[place].head), justify="right", no_wrap=True)
    for row in rows:
        grid.add_row(*[Text(row[place]) for place in kept])
    console.print(Text(table.title, style="bold"))
    console.print(grid)
    if table.note:
        console.print(Text(printable(table.note), style="dim"))
    left = [column.head for place, column in enumerate(table.columns) if place not in kept]
    if left:
        console.print(Text(f"Not shown for want of room: {', '.join(left)}.", style="dim"))


def _fitting(table: Table, rows: Sequence[Sequence[str]], width: int) -> tuple[list[int], int]:
    """(places of the columns that fit, columns left for the name)."""
    from rich.cells import cell_len

    heads = [column.head for column in table.columns]
    widths = [
        max(cell_len(text) for text in (head, *(row[k] for row in rows))) for k, head in enumerate(heads)
    ]
    name = min(widths[0], NAME)
    kept = list(range(len(heads)))
    # The least important first, of several the last.
    for place in sorted(kept[1:], key=lambda k: (-table.columns[k].rank, -k)):
        # A name is folded before a column of rank 2 goes, and not for one of rank 3.
        wanted = name if table.columns[place].rank > 2 else min(name, LEAST)
        if sum(widths[k] + GAP for k in kept[1:]) + wanted <= width:
            break
        kept.remove(place)
    room = width - sum(widths[k] + GAP for k in kept[1:])
    return kept, max(min(name, room), min(name, LEAST))


def _print_flips(flips: Sequence[Flip], shown: int, console: Console, *, lost: bool) -> None:
    from rich.text import Text

    if not flips:
        return
    console.print()
    console.print(
        Text(
            "Right before, wrong now" if lost else "Wrong before, right now",
            style="bold red" if lost else "bold green",
        )
    )
    for flip in flips[:shown]:
        seen = sides(flip, lost=lost, kept=200)
        console.print(Text.assemble((f"{printable(flip.skill)}: ", "bold"), _short(seen.prompt, 200)))
        console.print(_said("base", seen.base, "green" if lost else "red", console))
        console.print(_said("now ", seen.model, "red" if lost else "green", console))
    if len(flips) > shown:
        console.print(
            Text(
                f"… and {len(flips) - shown} more in the report, which keeps {FLIPS_KEPT} of each.",
                style="dim",
            )
        )


def _said(who: str, spans: Sequence[Span] | None, style: str, console: Console) -> Text:
    """One line: who said what; what the other did not say is underlined, or in «» where nothing can be."""
    from rich.text import Text

    line = Text.assemble(f"  {who} ")
    if spans is None:
        return line.append("(not kept)", style="dim")
    if not spans:
        return line.append("(nothing)", style="dim")
    plain = not console.is_terminal
    for span in spans:
        text = _short(span.text, 160)
        if span.differs and plain:
            words = text.rstrip()
            text = f"«{words}»{text[len(words) :]}"
        line.append(text, style=f"{style} underline" if span.differs else style)
    return line


def _short(text: str, limit: int) -> str:
    """One line, cut: a terminal must not obey what a model wrote."""
    line = printable(text.replace("\n", " ⏎ "))
    return line if len(line) <= limit else line[: limit - 1] + "…"
