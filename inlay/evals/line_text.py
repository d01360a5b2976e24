"""A line of versions on a terminal: what was learnt and lost, the scores, four figures, what is missing."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from inlay.evals.forgetting import percent
from inlay.evals.line_records import Line, Role, score_text
from inlay.evals.transfer import Figure
from inlay.registry.printable import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

TITLES: dict[Role, str] = {
    "target": "Learning: targets",
    "general": "Forgetting: held-out general skills",
    "protected": "Protected general skills, which training may have seen",
    "beyond": "Not skills of this base, which answers under a tenth of them beyond guessing",
}
FIGURES = {
    "average_accuracy": "average",
    "bwt": "BWT",
    "fwt": "FWT",
    "forgetting": "forgetting",
}
SHADES, SHADES_ASCII = "▁▂▃▄▅▆▇█", "_.-=+*%#"
"""A share of 1 as one character, from nothing to all."""
PLAIN = str.maketrans({"•": "*", "…": "~", "–": "-", "·": "."})
"""For terminals of ASCII only, a character for each; all others become a question mark."""
NAMES, SHORT = 26, 10
"""The most columns that a skill's name takes before a row, and above a column."""
STRIP = 24
"""Up to so many rows the line is drawn as a strip of shades, a character a row."""
COMMANDS, SENTENCES = 6, 12
"""So many are printed; --json and the page have all."""


def print_line(line: Line, console: Console | None = None) -> None:
    """Print the line in the console's width; nothing in it is markup, and every character is printable."""
    from rich.console import Console

    console = console or Console()
    plain = console.options.ascii_only
    for text in line_rows(line, console.width, ascii_only=plain):
        console.print(text, soft_wrap=True, highlight=False)


def line_rows(line: Line, width: int, *, ascii_only: bool = False) -> list[Text]:
    """The rows of text, each at most `width` columns; styles say what fell and rose."""
    from rich.text import Text

    count = len(line.subjects)
    lines = [Text(f"{printable(line.name)}: {count} version{'' if count == 1 else 's'}", "bold")]
    sentences = line.sentences()
    for sentence in sentences[:SENTENCES]:
        lines += [Text(x) for x in _wrapped(f"• {sentence}", width)]
    if len(sentences) > SENTENCES:
        lines.append(Text(f"  … and {len(sentences) - SENTENCES} more, marked in the tables"))
    for role, title in TITLES.items():
        columns = [j for j, column in enumerate(line.columns) if column.role == role]
        if columns:
            unit = ", %" if all(line.columns[j].of_one for j in columns) else ""
            lines += [Text(""), *(Text(x, "bold") for x in _wrapped(f"{title}{unit}", width))]
            lines += _table(line, columns, width, ascii_only)
    lines += [Text(""), *(Text(x) for x in _figures(line, width))]
    for note in [*_legend(line, ascii_only), *line.notes]:
        lines += [Text(x, "dim") for x in _wrapped(note, width)]
    if ascii_only:
        for text in lines:
            text.plain = text.plain.translate(PLAIN).encode("ascii", "replace").decode()
    return lines


def strip(line: Line, column: int, *, ascii_only: bool = False) -> str:
    """One column as shades, the base first; a gap is a dot, a score that is no share of 1 has none."""
    if not line.columns[column].of_one:
        return ""
    shades = SHADES_ASCII if ascii_only else SHADES
    scores = [row[column] for row in line.scores]
    gap = " " if ascii_only else "·"
    return "".join(
        gap if score is None else shades[min(len(shades) - 1, int(score * len(shades)))] for score in scores
    )


Cell = tuple[str, str]
"""(text, style)"""


def _table(line: Line, columns: Sequence[int], width: int, ascii_only: bool) -> list[Text]:
    """Skills down and versions across, or the other way round where that takes fewer blocks."""
    rows = range(len(line.scores))
    labels = [_label(line, i) for i in rows]
    names = [_cut(printable(line.columns[j].label), NAMES) for j in columns]
    cells = [[_cell(line, i, j, ascii_only) for i in rows] for j in columns]
    strips = [strip(line, j, ascii_only=ascii_only) if len(rows) <= STRIP else "" for j in columns]
    down = list(_blocks(names, labels, cells, width, strips))
    if len(down) > 1:
        heads = [_cut(printable(line.columns[j].label), SHORT) for j in columns]
        turned = [[cells[k][i] for k in range(len(columns))] for i in rows]
        across = list(
            _blocks(
                [" ".join(filter(None, label)) for label in labels],
                [(x, "") for x in heads],
                turned,
                width,
                [],
            )
        )
        if len(across) < len(down):
            down = across
    return [text for block in down for text in block]


def _blocks(
    names: Sequence[str],
    heads: Sequence[tuple[str, str]],
    cells: Sequence[Sequence[Cell]],
    width: int,
    strips: Sequence[str],
) -> Iterator[list[Text]]:
    """The table cut into as many as the width needs; `heads` have two lines, `strips` stand at the end of the
    last one where there is room. A cell ends with its mark, or a space for none."""
    from rich.text import Text

    first = max(map(len, names))
    widths = [
        max(len(heads[k][0]) + 1, len(heads[k][1]) + 1, *(len(row[k][0]) for row in cells)) + 1
        for k in range(len(heads))
    ]
    start = 0
    while start < len(heads):
        end, used = start, first
        while end < len(heads) and (end == start or used + widths[end] <= width):
            used += widths[end]
            end += 1
        last = end == len(heads)
        drawn = last and any(strips) and used + 2 + max(map(len, strips)) <= width
        block = []
        for line in (0, 1):
            if line == 0 or any(heads[k][1] for k in range(start, end)):
                block.append(
                    Text(
                        " " * first
                        + "".join(f"{heads[k][line]} ".rjust(widths[k]) for k in range(start, end)),
                        "dim",
                    )
                )
        for number, name in enumerate(names):
            text = Text(name.ljust(first))
            for k in range(start, end):
                said, style = cells[number][k]
                text.append(said.rjust(widths[k]), style)
            if drawn:
                text.append("  " + strips[number])
            block.append(text)
        yield block
        start = end


def _cell(line: Line, row: int, column: int, ascii_only: bool) -> Cell:
    score = line.scores[row][column]
    if score is None:
        return ("." if ascii_only else "·") + " ", "dim"
    said, step = score_text(score, line.columns[column]), line.step(row, column)
    if step is not None and step.fell:
        return said + ("-" if ascii_only else "▼"), "bold red"
    if step is not None and step.rose:
        return said + ("+" if ascii_only else "▲"), "green"
    return said + " ", ""


def _label(line: Line, row: int) -> tuple[str, str]:
    """(name, state) of a row; no state for one in use."""
    if row == 0:
        return "base", ""
    subject = line.subjects[row - 1]
    return _cut(printable(subject.label), NAMES), "" if subject.state == "active" else subject.state


def _legend(line: Line, ascii_only: bool) -> list[str]:
    said = []
    if any(change.kind == "before" and (change.fell or change.rose) for change in line.changes):
        marks = ("-", "+") if ascii_only else ("▼", "▲")
        said.append(
            f"{marks[0]} fell, {marks[1]} rose by more than chance against the version scored before it "
            "(paired tests, Holm over all versions and columns, p < 0.05)."
        )
    commands = line.commands()
    if commands:
        said.append("Gaps are what nobody measured. To fill them:")
        said += [f"  {command}" for command in commands[:COMMANDS]]
        if len(commands) > COMMANDS:
            said.append(f"  … and {len(commands) - COMMANDS} more (--json lists them)")
    return said


def _figures(line: Line, width: int) -> list[str]:
    """Learning and forgetting side by side, in points; a figure with a gap names a command that fills it."""
    rows = [("learning", line.learning), ("forgetting", line.forgetting)]
    shown = [(name, figures) for name, figures in rows if figures["average_accuracy"].columns]
    if not shown:
        return []
    first = max(len(name) for name, _ in rows)
    lines = [" " * first + "".join(f"  {title:>{max(len(title), 6)}}" for title in FIGURES.values())]
    for name, figures in shown:
        cells = (
            f"  {figure_text(figures[key], signed=key in ('bwt', 'fwt')):>{max(len(title), 6)}}"
            for key, title in FIGURES.items()
        )
        lines.append(name.ljust(first) + "".join(cells))
    for name, figures in shown:
        lacking = [title for key, title in FIGURES.items() if figures[key].missing]
        cells_ = sorted({cell for figure in figures.values() for cell in figure.missing})
        if lacking:
            commands = line.commands(cells_)
            verb = "needs" if len(lacking) == 1 else "need"
            how = f"{verb} `{commands[0]}`" if commands else f"{verb} scores of versions whose bytes are gone"
            more = f" and {len(commands) - 1} more" if len(commands) > 1 else ""
            lines += _wrapped(f"{name}: {', '.join(lacking)} {how}{more}", width)
    return lines


def figure_text(figure: Figure, *, signed: bool = False) -> str:
    """Points with one decimal; "?" where a cell is missing, "–" where no column counts."""
    if figure.value is None:
        return "?" if figure.missing else "–"
    said = percent(figure.value)
    return f"+{said}" if signed and figure.value > 0 and said != "0.0" else said


def _wrapped(text: str, width: int) -> list[str]:
    indent = " " * (len(text) - len(text.lstrip()))
    return textwrap.wrap(
        printable(text), max(width, 20), subsequent_indent=indent + "  ", break_on_hyphens=False
    ) or [""]


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
