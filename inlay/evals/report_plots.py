"""The plots of reports, as SVG in data addresses: learning against forgetting, bars per skill, heatmaps.

What draws others of the same kind: `canvas` to draw on, `label_of` for names, `address_of` when it is done.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from inlay.errors import InputError
from inlay.registry.printable import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from inlay.evals.report_html import Subject

# Okabe and Ito's palette, told apart by colour-blind readers; marks differ too, for paper.
STYLES: dict[str, tuple[str, str]] = {
    "base": ("#555555", "s"),
    "adapter": ("#0072b2", "o"),
    "variant": ("#009e73", "D"),
    "plain": ("#e69f00", "^"),
    "refused": ("#d55e00", "X"),
}
SHADES = ("#0072b2", "#56b4e9", "#3b5b92", "#7fa8c9")
"""Several adapters in one plot take these in turn."""

ROWS = 8
WIDTH = 5.0  # inches: at a phone's 360 pixels, 9 point text is still about 9 pixels high
SETTINGS = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "svg.hashsalt": "inlay",
    "text.parse_math": False,  # a label is not a formula
}


def learning_against_forgetting(
    subjects: Sequence[Subject],
    allowed: float | None,
    *,
    lost_of: str = "held-out general skills",
    learned_of: str = "target",
) -> str | None:
    """A point a subject: net points lost (to the right is worse) against score, each with its 95% interval;
    a line where a guard's allowance ends. None where no subject has both."""
    shown = [(index, s) for index, s in enumerate(subjects) if s.lost is not None and s.learned is not None]
    if not shown:
        return None
    figure, axes = canvas(3.6 + 0.22 * len(shown))
    if allowed is not None:
        axes.axvline(100 * allowed, color="#d55e00", linewidth=1, linestyle="--", zorder=1)
        axes.annotate(
            f"allowed {100 * allowed:g}",
            (100 * allowed, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3, 2),
            textcoords="offset points",
            fontsize=8,
            color="#b04a00",
        )
    colours = _colours(subjects)
    for place, (index, subject) in enumerate(shown):
        assert subject.lost is not None and subject.learned is not None
        lost, learned = subject.lost, subject.learned
        axes.errorbar(
            100 * lost.value,
            100 * learned.value,
            xerr=[[100 * (lost.value - lost.low)], [100 * (lost.high - lost.value)]],
            yerr=[[100 * (learned.value - learned.low)], [100 * (learned.high - learned.value)]],
            fmt=STYLES[subject.kind][1],
            markersize=max(6.0, 11.0 - place),  # smaller on top of larger: equal results stay visible
            markeredgecolor="white",
            color=colours[index],
            elinewidth=1.3,
            capsize=2,
            label=label_of(subject.label),
            zorder=3,
            clip_on=False,
        )
    left, right = axes.get_xlim()
    axes.set_xlim(min(left, -2.0), max(right, 10.0))
    axes.set_ylim(0, 102)
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.set_xlabel(f"{lost_of} lost, points (right is worse)")
    axes.set_ylabel(f"{learned_of} score, %")
    # Names below the axes instead of beside the points: points that lie close never hide each other's.
    figure.legend(loc="outside lower left", frameon=False, ncols=2 if len(shown) > 3 else 1, fontsize=8)
    return address_of(figure)


def skill_bars(subjects: Sequence[Subject]) -> list[tuple[str, str]]:
    """(caption, image) pairs: for each skill one horizontal bar a subject with its 95% interval; held-out
    skills first, at most `ROWS` skills an image, so that two stand side by side on a wide screen."""
    shown = [(index, s) for index, s in enumerate(subjects) if s.skills]
    keys = sorted({(not bar.held_out, bar.name) for _, s in shown for bar in s.skills})
    images = []
    for protected, caption in ((False, "held-out skills"), (True, "protected skills")):
        names = [name for is_protected, name in keys if is_protected is protected]
        parts = math.ceil(len(names) / ROWS)
        for part in range(parts):
            chosen = names[part * len(names) // parts : (part + 1) * len(names) // parts]
            images.append((caption, _bars_image(shown, chosen, not protected, _colours(subjects))))
    return images


def heatmap(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    title: str,
    counts: Sequence[Sequence[int]] | None = None,
) -> str:
    """A cell for each row and column with its figure in it: `values` are scores, 0…1, shown as percent; None
    is what was not measured, and stays empty. With `counts` these are the figures, and `values`, their
    shares, are shades from light to dark. InputError where the values do not fit rows and columns."""
    if not rows or not columns or [len(line) for line in values] != [len(columns)] * len(rows):
        raise InputError(
            f"a heatmap needs one value a cell: {len(rows)} rows of {len(columns)}, got "
            f"{[len(line) for line in values][:9]}"
        )
    longest = max(len(label_of(column)) for column in columns)
    slanted = longest * len(columns) > 34
    width = max(WIDTH, 1.6 + 0.42 * len(columns))
    figure, axes = canvas(0.5 + 0.27 * len(rows) + (0.055 * longest if slanted else 0.2), width=width)
    painted = [[math.nan if value is None else 100 * value for value in line] for line in values]
    # A single count among many must still be seen.
    cmap, lowest = ("cividis", 0) if counts is None else ("Blues", -20)
    axes.pcolormesh(painted, cmap=cmap, vmin=lowest, vmax=100, edgecolors="white", linewidth=1.5)
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            dark = value is not None and (value < 0.55 if counts is None else value > 0.4)
            axes.text(
                column + 0.5,
                row + 0.5,
                "·"
                if value is None
                else f"{100 * value:.0f}"
                if counts is None
                else str(counts[row][column]),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "#1c1c1c",
            )
    axes.set_xticks(
        [column + 0.5 for column in range(len(columns))],
        [label_of(column) for column in columns],
        rotation=55 if slanted else 0,
        ha="left" if slanted else "center",
        rotation_mode="anchor",
    )
    axes.set_yticks([row + 0.5 for row in range(len(rows))], [label_of(row) for row in rows])
    axes.xaxis.tick_top()
    axes.set_ylim(len(rows), 0)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.suptitle(printable(title)[:90], x=0.01, ha="left", fontsize=9)
    return address_of(figure)


def _bars_image(
    shown: Sequence[tuple[int, Subject]], names: Sequence[str], held_out: bool, colours: Sequence[str]
) -> str:
    thick = 0.82 / len(shown)
    legend_rows = math.ceil(len(shown) / 2)
    figure, axes = canvas(0.7 + len(names) * (0.14 + 0.08 * len(shown)) + 0.19 * legend_rows)
    for place, (index, subject) in enumerate(shown):
        bars = {bar.name: bar.score for bar in subject.skills if bar.held_out is held_out}
        rows = [(row, bars[name]) for row, name in enumerate(names) if name in bars]
        axes.barh(
            [row + (place - (len(shown) - 1) / 2) * thick for row, _ in rows],
            [100 * score.value for _, score in rows],
            height=thick * 0.92,
            xerr=[
                [100 * (score.value - score.low) for _, score in rows],
                [100 * (score.high - score.value) for _, score in rows],
            ],
            color=colours[index],
            error_kw={"elinewidth": 0.8, "ecolor": "#222222"},
            label=label_of(subject.label),
        )
    axes.set_yticks(range(len(names)), [label_of(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.7)
    axes.set_xlabel("held-out skills: score, %" if held_out else "protected skills: score, %")
    figure.legend(loc="outside lower left", frameon=False, ncols=2, fontsize=8)
    return address_of(figure)


def canvas(height: float, *, width: float = WIDTH) -> tuple[Figure, Axes]:
    """A figure of so many inches with one pair of axes, in the style of reports."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots()


def _colours(subjects: Sequence[Subject]) -> list[str]:
    """A colour a subject: its kind's, and different shades for several adapters."""
    adapters, colours = 0, []
    for subject in subjects:
        colour = STYLES[subject.kind][0]
        if subject.kind == "adapter":
            colour = SHADES[adapters % len(SHADES)]
            adapters += 1
        colours.append(colour)
    return colours


def label_of(text: str) -> str:
    """At most 34 printable characters: what a legend or an axis has room for."""
    text = printable(text)
    return text if len(text) <= 34 else text[:33] + "…"


def address_of(figure: Figure) -> str:
    """`data:image/svg+xml;base64,…`: as an image, an SVG can neither run nor fetch anything."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context(SETTINGS):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
