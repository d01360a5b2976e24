"""What a routing report says, as tables of plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inlay.evals.forgetting import percent
from inlay.evals.routing import (
    ABOVE_FLOOR,
    BASE,
    BINS,
    GENERAL,
    OUTSIDE,
    PROTECTED,
    TASK,
    Choices,
    Group,
    RoutingReport,
    Share,
    Task,
)
from inlay.evals.statistics import wilson
from inlay.evals.table import Table, columns, interval

ROWS = 20
"""Experts, or tasks, that a table has room for."""
EXPERTS = 6
"""Experts whose columns of the confusion matrix fit 60 columns of a terminal."""
CONFUSIONS, CONFIDENCE = "Confusion matrix", "Confidence"
"""Titles of the tables that a plot stands beside."""
NAMES = {TASK: "tasks", GENERAL: "held-out general", PROTECTED: "protected general", OUTSIDE: "out of scope"}
"""How readers know the groups."""


def routing_tables(data: Mapping[str, Any]) -> list[Table]:
    """Every table of a routing report's plain JSON, in the order in which they are read."""
    report = RoutingReport.from_dict(data)
    found = []
    for route in report.routes:
        at = where(route, report)
        found += [_groups(route, at), _experts(route, at), _confusions(route, at), _confidences(route, at)]
    return [table for table in [*found, _oracle(report)] if table.rows]


def where(route: Choices, report: RoutingReport) -> str:
    """What the titles of a route's tables end in: its path, where there are several."""
    return f" at {route.path or 'the root'}" if len(report.routes) > 1 else ""


def _groups(route: Choices, at: str) -> Table:
    macro = "" if route.macro is None else f"Mean over the experts: {percent(route.macro)}%. "
    return Table(
        f"Routing{at}",
        columns("prompts → where to", ("n", 2), "go there, % [95%]", ("confidence %", 3)),
        tuple(
            (
                f"{NAMES[group.name]} → {'own expert' if group.name == TASK else BASE}",
                str(group.share.n),
                _share(group.share),
                _confidence(group),
            )
            for group in route.groups
        ),
        f"{macro}{_read_as(route)}Intervals: Wilson's, on as many independent prompts as those that share "
        "templates are worth.",
    )


def _read_as(route: Choices) -> str:
    """What the groups that nobody judges are there for."""
    said = ""
    if route.group(PROTECTED) is not None:
        said += "Fitting the router may have seen prompts of protected skills. "
    if route.group(OUTSIDE) is not None:
        said += "For prompts out of scope an expert is not always wrong: a figure without a verdict. "
    return said


def _experts(route: Choices, at: str) -> Table:
    worst = sorted(route.by_expert, key=lambda expert: expert.share.value)
    cut = f"The {ROWS} of {len(worst)} experts that get the least." if len(worst) > ROWS else ""
    return Table(
        f"Routing by expert{at}",
        columns("prompts for", ("n", 3), "reach it, % [95%]", ("confidence %", 3), ("else mostly to", 2)),
        tuple(
            (
                expert.name,
                str(expert.share.n),
                _share(expert.share),
                _confidence(expert),
                _elsewhere(route, expert.name),
            )
            for expert in worst[:ROWS]
        ),
        cut,
    )


def _elsewhere(route: Choices, expert: str) -> str:
    """Where most of the prompts went that should have gone to `expert`, and how many."""
    wrong = [(count, chosen) for row, chosen, count in route.confusions if row == expert and chosen != expert]
    count, chosen = max(wrong, key=lambda pair: pair[0], default=(0, ""))
    return f"{chosen} ({count})" if count else "–"


def _confusions(route: Choices, at: str) -> Table:
    matrix = route.matrix(EXPERTS)
    shown = [name for name in matrix.columns if name in route.experts]
    numbers = {expert: str(number) for number, expert in enumerate(shown, 1)}
    named = ", ".join(f"{numbers[name]} {name}" for name in shown if name not in matrix.rows)
    return Table(
        CONFUSIONS + at,
        columns("prompts", *(numbers.get(name, name) for name in matrix.columns)),
        tuple(
            (
                f"{numbers[row]} {row}" if row in numbers else NAMES[row],
                *(str(n) if n else "·" for n in counts),
            )
            for row, counts in zip(matrix.rows, matrix.counts, strict=True)
        ),
        "Prompts of each row that went to the base or to the expert of that number."
        + (f" No prompts were for {named}." if named else "")
        + left_out(matrix.left_out, len(route.experts)),
    )


def left_out(count: int, experts: int) -> str:
    """What a matrix does not show; nothing where it shows all."""
    if not count:
        return ""
    return f" The {experts - count} of {experts} experts with the most confusions; “others” are the rest."


def _confidences(route: Choices, at: str) -> Table:
    return Table(
        CONFIDENCE + at,
        columns("confidence %", ("n", 2), "mean %", "right, % [95%]"),
        tuple(
            (
                f"{100 * one.low:.0f} to {100 * one.high:.0f}",
                str(one.n),
                percent(one.confidence),
                interval(one.right / one.n, *wilson(one.right, one.n)),
            )
            for one in route.bins
        ),
        f"Task and held-out general prompts in {BINS} bins of equal width. Confidences are honest where "
        "“mean” and “right” agree.",
    )


def _oracle(report: RoutingReport) -> Table:
    tasks: Sequence[Task] = report.tasks
    notes = [
        "Own expert: the same model with the suite's own expert always on, the oracle. What is lost against "
        "it is the router's doing. Scores in %, of graded suites in their unit.",
        _kept(report, "all tasks", counted=False),
    ]
    if not all(task.counted for task in tasks):
        notes += [
            "° not counted: graded, or its expert does not beat the floor, which is the share of the most "
            f"frequent answer, or of guessing, plus {100 * ABOVE_FLOOR:g} points.",
            _kept(report, "counted tasks", counted=True),
        ]
    if len(tasks) > ROWS:
        tasks = sorted(tasks, key=lambda task: -task.counts.loss if task.counts is not None else 0.0)[:ROWS]
        notes.append(f"The {ROWS} of {len(report.tasks)} tasks that lose the most.")
    return Table(
        "Against the oracle",
        columns(
            "suite", ("expert", 3), ("base", 2), "routed", "own expert", ("floor", 3), "points lost [95%]"
        ),
        tuple(map(_task, tasks)),
        " ".join(filter(None, notes)),
    )


def _kept(report: RoutingReport, which: str, *, counted: bool) -> str:
    score, gain = (report.oracle_share(counted=counted, gain=gain) for gain in (False, True))
    if score is None:
        return ""
    of_gain = "" if gain is None else f", {percent(gain)}% of its gain over the base"
    return f"Kept over {which}: {percent(score)}% of the oracle's score{of_gain}."


def _task(task: Task) -> tuple[str, ...]:
    scores = (task.base, task.routed, task.oracle)
    lost = "–" if task.counts is None else interval(task.counts.loss, *task.counts.loss_interval)
    return (
        task.suite if task.counted else f"{task.suite} °",
        task.expert,
        *(f"{score:.3g}" if task.counts is None else percent(score) for score in scores),
        "–" if task.floor is None else percent(task.floor),
        lost,
    )


def _share(share: Share) -> str:
    return interval(share.value, *share.interval)


def _confidence(group: Group) -> str:
    return "–" if group.confidence is None else percent(group.confidence)
