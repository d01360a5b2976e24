"""The plots of a data report, as SVG in data addresses, in the style of the evaluation's."""

from __future__ import annotations

import math
from collections.abc import Sequence

from inlay.evals.report_plots import address_of, canvas, label_of

BINS = 40
CLASSES_SHOWN = 24
COLOUR, MARK = "#0072b2", "#d55e00"


def histogram(
    values: Sequence[float], label: str, *, limit: float | None = None, named: str = "", counted: str = "rows"
) -> str | None:
    """How often values occur; `limit` is drawn as a line under its name. None where there are no values."""
    held = [value for value in values if math.isfinite(value)]
    if not held:
        return None
    figure, axes = canvas(2.4)
    whole = all(value == int(value) for value in held)
    bins = min(BINS, int(max(held) - min(held)) + 1) if whole else BINS
    axes.hist(held, bins=bins, color=COLOUR, edgecolor="white", linewidth=0.4)
    if limit is not None:
        axes.axvline(limit, color=MARK, linewidth=1, linestyle="--")
        axes.annotate(
            named,
            (limit, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-3, -8),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color="#b04a00",
        )
    axes.set_xlabel(label)
    axes.set_ylabel(counted)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.7)
    axes.locator_params(axis="y", integer=True)
    return address_of(figure)


def counts(rows: Sequence[tuple[str, int]], label: str) -> str | None:
    """A bar each, the first on top, with its number; those beyond `CLASSES_SHOWN` together. None for none."""
    if not rows:
        return None
    shown = list(rows[:CLASSES_SHOWN])
    if rest := rows[CLASSES_SHOWN:]:
        shown.append((f"({len(rest)} more)", sum(count for _, count in rest)))
    figure, axes = canvas(0.6 + 0.19 * len(shown))
    places = range(len(shown))
    axes.barh(places, [count for _, count in shown], color=COLOUR, height=0.75)
    for place, (_, count) in enumerate(shown):
        axes.annotate(
            f"{count:,}", (count, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_yticks(places, [label_of(" ".join(name.split()) or "(not stated)") for name, _ in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel(label)
    axes.margins(x=0.1)
    return address_of(figure)
