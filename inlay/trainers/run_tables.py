"""What a training run says, as tables of plain text; the terminal and the page draw them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from inlay.evals.metrics import unit_of
from inlay.evals.scoring import EvalResult
from inlay.evals.table import Table, columns, interval
from inlay.trainers.cost import MEMORY
from inlay.trainers.run_report import RunReport
from inlay.trainers.verdict import Comparison, rigid_row

STANDS = {"better": "beaten", "behind": "ahead", "within noise": "level", "unknown": "–"}
"""How a baseline stands, of how the adapter does; one short word, for narrow screens."""
LONGEST = 160
"""Characters that a value of the manifest may have."""


def run_tables(report: RunReport) -> list[Table]:
    """Scores suite by suite, learned beside forgotten, and the cost."""
    comparisons = iter(report.verdict.comparisons)  # result by result, in the order of the baselines
    scores = [_scores(report, result, comparisons) for result in report.results]
    return [*scores, _pair(report), _cost(report)]


def manifest_tables(report: RunReport) -> list[Table]:
    """What the run was made of: data, declaration, settings, versions; for the page."""
    found = []
    for title, key in (("Data", "dataset"), ("Declared before training", "declared")):
        found.append(_listing(title, report.run.get(key, {})))
    found.append(_listing("Settings", report.run.get("settings", {})))
    found.append(_listing("Versions", {"base": report.run.get("base"), **report.run.get("versions", {})}))
    return [table for table in found if table.rows]


def _scores(report: RunReport, result: EvalResult, comparisons: Iterator[Comparison]) -> Table:
    unit = unit_of(result.metric)
    rows = [(report.ref, _estimate(unit.bare, result.score, *result.interval), "", "", "")]
    for one in report.baselines.on(result.suite.digest):
        each = next(comparisons)
        rows.append(
            (
                one.name,
                _estimate(unit.bare, one.score, one.low, one.high),
                _estimate(unit.bare, each.delta, each.low, each.high),
                _p(each),
                STANDS[each.standing],
            )
        )
    return Table(
        f"{result.suite.name} ({result.metric}, n={result.n})",
        columns(
            "",
            f"{'%' if unit.share else 'score'} [95%]",
            ("adapter ahead by [95%]", 2),
            ("p", 3),
            "is",
        ),
        tuple(rows),
        "“Level” is within noise: the 95% interval of the difference holds 0, or p, adjusted over the "
        "baselines (Holm), is 0.05 or more.",
    )


def _pair(report: RunReport) -> Table:
    rows = []
    for each in report.verdict.comparisons:
        if each.kind == "base":
            unit = unit_of(each.metric)
            rows.append(
                (
                    f"gained on {each.suite}",
                    _estimate(unit.bare, each.delta, each.low, each.high),
                    str(each.n),
                )
            )
    general = report.forgetting.held_out
    if general.n:
        lost = interval(general.loss, *general.loss_interval)
        rows.append(("lost of held-out general skills", lost, str(general.n)))
    rigid = rigid_row(report.forgetting)
    if rigid is not None:
        for who, counts in (("lost to typos and the like", rigid.model), ("what the base loses", rigid.base)):
            rows.append((who, interval(counts.loss, *counts.loss_interval), str(counts.n)))
    return Table("Learned and forgotten", columns("", "points [95%]", ("n", 2)), tuple(rows))


def _cost(report: RunReport) -> Table:
    cost = report.cost
    rows = [
        ("steps", f"{report.run.get('steps', 0):,}"),
        ("tokens, task", f"{cost.task_tokens:,}"),
        ("tokens, general", f"{cost.general_tokens:,}"),
        ("FLOPs", "–" if cost.flops is None else f"{cost.flops:.3g}"),
        ("seconds", f"{cost.seconds:,.1f}"),
        ("peak memory", "–" if cost.peak_bytes is None else f"{cost.peak_bytes / 1e6:,.0f} MB"),
    ]
    note = f"Memory: {MEMORY[cost.memory]}." if cost.memory else ""
    return Table("Cost of the training", columns("", cost.device), tuple(rows), note)


def _listing(title: str, values: Any) -> Table:
    return Table(title, columns("", "value"), tuple(_flat(values)))


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """(outer.key, text) of everything in a JSON object."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for number, inner in enumerate(value, 1):
            yield from _flat(inner, f"{place}.{number}")
    elif value is not None:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield place, text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _estimate(bare: Any, value: float, low: float | None, high: float | None) -> str:
    return bare(value) if low is None or high is None else f"{bare(value)} [{bare(low)}, {bare(high)}]"


def _p(each: Comparison) -> str:
    if each.kind == "imported":
        return "–"
    return "<0.001" if each.p_adjusted < 0.001 else f"{each.p_adjusted:.3f}"
