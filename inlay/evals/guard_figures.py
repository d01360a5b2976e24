"""What the checks of a guard share: paired figures out of records, and how they are said."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from inlay.evals.means import PairedMeans, span_of
from inlay.evals.statistics import MIN_CLUSTERS, Paired
from inlay.registry.guards import Evidence
from inlay.registry.records import EvalRecord

if TYPE_CHECKING:
    from inlay.evals.metrics import Metric

MIN_TARGET_ITEMS = 60
"""Fewest items of a target suite: from here on the interval's coverage was checked by simulation."""

Figures = Paired | PairedMeans


def check(
    kind: str, suite: str, passed: bool, reason: str, figures: dict[str, Any] | None = None
) -> dict[str, Any]:
    """One check as the journal keeps it; a bound that is infinite for want of items is null there."""
    held = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in (figures or {}).items()
    }
    return {"check": kind, "suite": suite, "passed": passed, "reason": reason, **held}


def unscored(entry: Evidence, kind: str, *, need_base: bool) -> dict[str, Any] | None:
    """The failed check of an entry that lacks a score, None where it has what it needs."""
    if entry.candidate is None:
        who = ref = entry.subject or "the candidate"
    elif need_base and entry.base is None:
        who, ref = "the base", "base"
    else:
        return None
    suite = entry.suite
    if entry.candidate is None and entry.foreign:
        reason = (
            f"not enough evidence: {who} was scored on {suite}, but under another base, metric or protocol "
            f"than counts here; run `inlay eval {ref} --suite {suite}`"
        )
    else:
        reason = f"not enough evidence: {who} has no score on {suite}; run `inlay eval {ref} --suite {suite}`"
    return check(kind, suite, False, reason)


def too_few(entry: Evidence, kind: str, counts: Figures, figures: dict[str, Any]) -> dict[str, Any] | None:
    """The failed check of a target suite with too few items or clusters, None where there are enough."""
    if counts.n >= MIN_TARGET_ITEMS:
        return few_clusters(entry.suite, kind, counts, figures)
    reason = f"not enough evidence: n={counts.n} items of {entry.suite}, `{kind}` needs {MIN_TARGET_ITEMS}"
    return check(kind, entry.suite, False, reason, figures)


def few_clusters(suite: str, kind: str, counts: Figures, figures: dict[str, Any]) -> dict[str, Any] | None:
    """The failed check where items share too few clusters, else None: items of a few templates say
    how the model does on these templates, however many items they are.
    """
    if not counts.few_clusters:
        return None
    reason = (
        f"not enough evidence: the {counts.n} items of {suite} share {counts.units} clusters, `{kind}` needs "
        f"{MIN_CLUSTERS}"
    )
    return check(kind, suite, False, reason, figures)


def held_out_items(entry: Evidence) -> list[int]:
    """Which items are held out; all where the suite does not tell them apart."""
    known = entry.candidate or entry.base
    if entry.held_out is None:
        return list(range(known.n if known is not None else len(entry.skills)))
    return [index for index, held_out in enumerate(entry.held_out) if held_out]


def compare(
    before: EvalRecord, after: EvalRecord, items: Sequence[int] | None, clusters: Sequence[str | None]
) -> Figures:
    """Figures of the chosen items, all for None."""
    chosen = range(after.n) if items is None else items
    return figure_of(
        [before.outcomes[index] for index in chosen],
        [after.outcomes[index] for index in chosen],
        [clusters[index] for index in chosen] if clusters else (),
        after,
    )


def figure_of(
    before: Sequence[bool | float],
    after: Sequence[bool | float],
    clusters: Sequence[str | None],
    record: EvalRecord,
) -> Figures:
    """Paired figures of outcomes in the same order: counts, or means where the record's metric is graded."""
    if not is_graded(record):
        return Paired.of(before, after, clusters)
    return PairedMeans.of(
        before, after, clusters, higher_is_better=higher_is_better(record), span=span(record)
    )


def is_graded(record: EvalRecord) -> bool:
    """Whether its outcomes are numbers, not right or wrong."""
    return not all(isinstance(outcome, bool) for outcome in record.outcomes)


def higher_is_better(record: EvalRecord) -> bool:
    """Whether more of its metric is better."""
    return not is_graded(record) or all(m.higher_is_better for m in _metrics(record))


def span(record: EvalRecord) -> float | None:
    """Highest minus lowest outcome; None where the metric has no bounds."""
    return span_of(_metrics(record)) if is_graded(record) else 1.0


def _metrics(record: EvalRecord) -> list[Metric]:
    from inlay.evals.metrics import metric  # not needed where answers are right or wrong

    return [metric(key) for key in record.metric.split("+")]


def figures_of(counts: Figures, limit: float) -> dict[str, Any]:
    """The figures as plain JSON, with the limit they are held against and how they were found."""
    low, high = counts.interval
    figures = {
        "n": counts.n,
        "delta": counts.delta,
        "interval": [low, high] if math.isfinite(high - low) else None,
        "limit": limit,
        "method": counts.method,
    }
    if isinstance(counts, Paired):
        return figures | {"lost": counts.lost, "gained": counts.gained}
    return figures | {"before": counts.before, "after": counts.after}


def used(entry: Evidence) -> dict[str, Any]:
    """What the check was judged by: keys of evals and digests of suites."""
    records = {"candidate": entry.candidate, "base": entry.base, "current": entry.current}
    used = {name: record.key for name, record in records.items() if record is not None}
    used |= {"suite": entry.digest} if entry.digest else {}
    form = entry.perturbed
    if form is not None and form.record is not None:
        used |= {"perturbed": form.record.key, "perturbed_suite": form.digest}
    return {"evidence": used}


def amount_in(counts: Figures) -> Callable[[float], str]:
    """How an amount is said: `4.1` (points) or `0.0123` in the unit of a graded metric."""
    return points if isinstance(counts, Paired) else lambda value: f"{value:.3g}"


def change(
    counts: Figures, worse: str, better: str, amount: Callable[[float], str], *, worse_at_0: bool = True
) -> str:
    """`forgets 41.2 points`, `improves 0.5 points`, or `gains 0.012` where the metric is graded."""
    lost = counts.delta <= 0 if worse_at_0 else counts.delta < 0
    unit = " points" if isinstance(counts, Paired) else ""
    return f"{worse if lost else better} {amount(abs(counts.delta))}{unit}"


def listed(names: Sequence[str], most: int = 4) -> str:
    """`a, b and 3 more`."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def points(fraction: float) -> str:
    """A fraction as percentage points with one decimal; no '-0.0'."""
    text = f"{100.0 * fraction:.1f}"
    return "0.0" if text == "-0.0" else text
