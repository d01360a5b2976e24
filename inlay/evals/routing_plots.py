"""The plots of a routing report: the confusion matrix as a heatmap, and a reliability diagram."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inlay.evals.report_plots import address_of, canvas, heatmap, label_of
from inlay.evals.routing import BINS, Choices, RoutingReport
from inlay.evals.routing_tables import CONFIDENCE, CONFUSIONS, NAMES, left_out, where
from inlay.evals.statistics import wilson

EXPERTS = 16
"""Experts in a heatmap: the figures of more could not be read."""
WIDE = 7
"""Columns from which on a heatmap wants the width of the page."""


@dataclass(frozen=True)
class Plot:
    """An image in a data address, what it says to those who do not see it, and the sentence under it."""

    image: str
    alternative: str
    caption: str
    wide: bool = False


def routing_plots(data: Mapping[str, Any]) -> dict[str, Plot]:
    """The plots of a routing report's plain JSON, by the title of the table that has their figures: for each
    route a confusion matrix, and a reliability diagram where it gives confidences."""
    report = RoutingReport.from_dict(data)
    found = {}
    for route in report.routes:
        found[CONFUSIONS + where(route, report)] = confusions(route)
        if route.bins:
            found[CONFIDENCE + where(route, report)] = reliability(route)
    return found


def confusions(route: Choices) -> Plot:
    """Counts as figures, the share of a row's prompts as colour."""
    matrix = route.matrix(EXPERTS)
    totals = {row: sum(n for name, _, n in route.confusions if name == row) for row in matrix.rows}
    image = heatmap(
        [NAMES.get(row, row) for row in matrix.rows],
        matrix.columns,
        [
            [count / totals[row] if count else None for count in line]
            for row, line in zip(matrix.rows, matrix.counts, strict=True)
        ],
        "went to",
        counts=matrix.counts,
    )
    return Plot(
        image,
        "Confusion matrix: for each kind of prompt, how many went to the base and to each expert; the table "
        "below has the figures",
        "A row a kind of prompt, a column where it went. Figures are prompts, the darker the more of their "
        f"row.{left_out(matrix.left_out, len(route.experts))}",
        wide=len(matrix.columns) >= WIDE,
    )


def reliability(route: Choices) -> Plot:
    """Bars of how many choices are right at which confidence, with Wilson's 95% intervals; beside the bins
    their mean confidence, under them how many prompts they hold. Honest confidences lie on the diagonal."""
    figure, axes = canvas(3.4)
    axes.plot([0, 100], [0, 100], color="#8a8a8a", linewidth=1, linestyle="--", label="honest", zorder=1)
    right = [100 * one.right / one.n for one in route.bins]
    ends = [wilson(one.right, one.n) for one in route.bins]
    axes.bar(
        [50 * (one.low + one.high) for one in route.bins],
        right,
        width=100 / BINS * 0.9,
        yerr=[
            [value - 100 * low for value, (low, _) in zip(right, ends, strict=True)],
            [100 * high - value for value, (_, high) in zip(right, ends, strict=True)],
        ],
        color="#56b4e9",
        error_kw={"elinewidth": 0.9, "ecolor": "#222222", "capsize": 2},
        label="right",
        zorder=2,
    )
    axes.hlines(
        [100 * one.confidence for one in route.bins],
        [100 * one.low for one in route.bins],
        [100 * one.high for one in route.bins],
        color="#a23f00",
        linewidth=2,
        label="mean confidence",
        zorder=3,
    )
    held = {one.low: one.n for one in route.bins}
    ticks = [place / BINS for place in range(BINS)]
    axes.set_xticks(
        [100 * (low + 0.5 / BINS) for low in ticks],
        [f"{100 * low:.0f}–{100 * low + 100 / BINS:.0f}\n{held.get(low, 0)}" for low in ticks],
        fontsize=7,
    )
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 102)
    axes.set_xlabel("confidence, % (under it: prompts)")
    axes.set_ylabel("choice is right, %")
    figure.legend(loc="outside lower left", frameon=False, ncols=3, fontsize=8)
    found = ", ".join(
        f"{one.right} of {one.n} right at {100 * one.low:.0f} to {100 * one.high:.0f}%" for one in route.bins
    )
    return Plot(
        address_of(figure),
        f"Reliability diagram of {label_of(route.by)}: {found}",
        "How honest the router's confidences are: bars should reach the line of their mean confidence. With "
        "two-sided 95% intervals; task and held-out general prompts.",
    )
