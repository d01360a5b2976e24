"""The plots of a run's page: the loss curve, and the scores with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inlay.evals.metrics import unit_of
from inlay.evals.report_plots import STYLES, address_of, canvas, label_of
from inlay.evals.scoring import EvalResult
from inlay.trainers.baselines import Baseline


def loss_curve(curve: Sequence[Mapping[str, Any]]) -> str | None:
    """Loss and, where there is one, KL to the base over steps; None for under two steps."""
    rows = [row for row in curve if "loss" in row]
    if len(rows) < 2:
        return None
    figure, axes = canvas(2.6)
    colour, mark = STYLES["adapter"][0], STYLES["plain"][0]
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], color=colour, label="loss")
    anchored = [row for row in rows if "kl" in row]
    if anchored:
        steps = [row["step"] for row in anchored]
        axes.plot(steps, [row["kl"] for row in anchored], color=mark, linestyle="--", label="KL to the base")
        figure.legend(loc="outside lower left", frameon=False, ncols=2, fontsize=8)
    axes.set_ylim(bottom=0)
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.set_xlabel("step")
    axes.set_ylabel("nats a token")
    return address_of(figure)


def score_plot(ref: str, result: EvalResult, baselines: Sequence[Baseline]) -> str:
    """A row a score with its 95% interval, the adapter on top and a line down from it."""
    unit = unit_of(result.metric)
    scale = 100.0 if unit.share else 1.0
    low, high = result.interval
    rows = [(ref, result.score, low, high, "adapter")]
    for one in baselines:
        ends = (one.score if one.low is None else one.low, one.score if one.high is None else one.high)
        rows.append((one.name, one.score, *ends, "base" if one.kind == "base" else "plain"))
    figure, axes = canvas(0.75 + 0.28 * len(rows))
    axes.axvline(scale * result.score, color=STYLES["adapter"][0], linewidth=0.8, linestyle=":", zorder=1)
    for place, (_name, score, low, high, kind) in enumerate(rows):
        colour, mark = STYLES[kind]
        axes.errorbar(
            scale * score,
            place,
            xerr=[[scale * max(score - low, 0.0)], [scale * max(high - score, 0.0)]],
            fmt=mark,
            color=colour,
            capsize=2,
            zorder=3,
            clip_on=False,
        )
    axes.set_yticks(range(len(rows)), [label_of(row[0]) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    if unit.share:
        axes.set_xlim(0, 100)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.7)
    axes.set_xlabel(label_of(result.metric) + (", %" if unit.share else ""))
    return address_of(figure)
