"""What a forgetting report says, as tables and sentences; the terminal and the page draw them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inlay.evals.earlier_tasks import EarlierTasks
from inlay.evals.forgetting import ForgettingReport, Graded, Skill, Slice, p_text, percent
from inlay.evals.means import PairedMeans
from inlay.evals.overhead import Overhead, Ratio
from inlay.evals.rigidity import Part, Rigidity
from inlay.evals.routing import RoutingReport
from inlay.evals.routing_tables import routing_tables
from inlay.evals.statistics import Paired
from inlay.evals.table import Table, columns, interval


def tables(report: ForgettingReport) -> list[Table]:
    """Every table that the report has something for, in the order in which they are read."""
    found = [_totals(report), _skills("By skill", report.skills), _skills("By slice", report.slices)]
    found += [_targets(report), _graded(report.graded)]
    if report.earlier is not None:
        found.append(_earlier(EarlierTasks.from_dict(report.earlier)))
    if report.routing is not None:
        found += routing_tables(report.routing)
    if report.rigidity is not None:
        found += [_rigid(part) for part in Rigidity.from_dict(report.rigidity).parts]
    if report.overhead is not None:
        found.append(_overhead(Overhead.from_dict(report.overhead)))
    if report.weights is not None:
        found.append(_weights(report.weights))
    return [table for table in found if table.rows]


def sentences(report: ForgettingReport) -> list[str]:
    """What is said in words: what was not counted, drift, alarm, routing, and what the weights show."""
    said = []
    if report.unreached:
        names = ", ".join(report.unreached)
        said.append(
            "Not skills of this base, which answers under a tenth of them beyond guessing, and not counted: "
            f"{names}."
        )
    if report.drift is not None:
        drift = report.drift
        said.append(
            f"Drift over {drift.positions} positions (estimates): KL to the base {drift.forward_kl:.4f} "
            f"nats, reverse {drift.reverse_kl:.4f}, another top token at {percent(drift.disagreement)}%, "
            f"negative log-likelihood of the base's answers {drift.nll_change:+.4f}."
        )
    if report.alarm is not None:
        said.append(str(report.alarm.get("said", "")))
    if report.routing is not None:
        said += RoutingReport.from_dict(report.routing).sentences()
    if report.weights is not None:  # its first sentences are the rows of the table
        said += [str(line) for line in report.weights.get("lines", ())[len(_weights(report.weights).rows) :]]
    return [sentence for sentence in said if sentence]


def loss(counts: Paired) -> str:
    """What was lost, in points, with its interval."""
    return interval(counts.loss, *counts.loss_interval) if counts.n else "–"


def gain(counts: Paired) -> str:
    """What was gained, in points, with its interval."""
    return interval(counts.delta, *counts.interval) if counts.n else "–"


def p_cell(p: float) -> str:
    """`<0.001` or `0.042`."""
    return p_text(p).removeprefix("= ").replace("< ", "<")


def _totals(report: ForgettingReport) -> Table:
    rows = [
        (
            name,
            str(counts.n),
            f"{counts.lost}/{counts.gained}",
            percent(counts.base_score),
            percent(counts.model_score),
            loss(counts),
            percent(counts.loss_upper),
            p_cell(counts.p_value),
        )
        for name, counts in (("held out (verdict)", report.held_out), ("protected", report.protected))
        if counts.n
    ]
    return Table(
        "General skills",
        columns(
            "", ("n", 2), ("lost/gained", 3), "base %", "now %", "points lost [95%]", ("bound ≤", 1), ("p", 3)
        ),
        tuple(rows),
        "The verdict is about held-out skills, of which no training saw a prompt; “bound” is the one-sided "
        f"95% bound that a guard compares with its allowance. Intervals: {report.held_out.method}.",
    )


def _skills(title: str, skills: Sequence[Skill] | Sequence[Slice]) -> Table:
    rows = [
        (
            skill.name + ("" if skill.held_out else " °"),
            str(skill.counts.n),
            f"{skill.counts.lost}/{skill.counts.gained}",
            percent(skill.counts.base_score),
            percent(skill.counts.model_score),
            loss(skill.counts),
            p_cell(skill.p_adjusted),
        )
        for skill in skills
    ]
    return Table(
        title,
        columns(
            title.rpartition(" ")[2],
            ("n", 3),
            ("lost/gained", 3),
            ("base %", 2),
            "now %",
            "points lost [95%]",
            ("p", 2),
        ),
        tuple(rows),
        (
            ""
            if all(skill.held_out for skill in skills)
            else "° protected: training may have seen its prompts. "
        )
        + "p is adjusted over the rows (Holm).",
    )


def _targets(report: ForgettingReport) -> Table:
    rows = [
        (
            target.suite,
            str(target.counts.n),
            f"{target.counts.lost}/{target.counts.gained}",
            percent(target.counts.base_score),
            percent(target.counts.model_score),
            gain(target.counts),
            percent(target.counts.gain_lower),
        )
        for target in report.targets
    ]
    return Table(
        "Targets",
        columns(
            "suite",
            ("n", 3),
            ("lost/gained", 3),
            ("base %", 2),
            "now %",
            "points gained [95%]",
            ("bound ≥", 2),
        ),
        tuple(rows),
    )


def _graded(rows: Sequence[Graded]) -> Table:
    return Table(
        "Graded suites",
        columns("suite", ("role", 2), "metric", ("n", 3), ("base", 2), "now", "better by [95%]"),
        tuple(
            (
                row.suite,
                row.role,
                row.metric,
                str(row.means.n),
                _unit(row.means.before),
                _unit(row.means.after),
                f"{_unit(row.means.delta)} [{_unit(row.means.interval[0])}, {_unit(row.means.interval[1])}]",
            )
            for row in rows
        ),
        "Means in the metric's unit (perplexity: nats a token); “better” follows its direction.",
    )


def _earlier(found: EarlierTasks) -> Table:
    rows = [
        (
            task.suite,
            task.learnt,
            str(task.counts.n),
            percent(task.counts.base_score) if one else _unit(task.counts.base_score),
            percent(task.counts.model_score) if one else _unit(task.counts.model_score),
            loss(task.counts) if isinstance(task.counts, Paired) else _spread(task.counts),
            p_cell(task.counts.p_value),
        )
        for task in found.tasks
        for one in (isinstance(task.counts, Paired),)
    ]
    figures = {"BWT": found.bwt, "forgetting measure": found.forgetting_measure}
    known = [f"{name} {percent(value)}" for name, value in figures.items() if value is not None]
    said = f"Over the line {' → '.join(found.line)}, in points: {', '.join(known)}. " if known else ""
    return Table(
        f"Tasks of the line, against {found.parent}",
        columns("suite", ("learnt at", 2), ("n", 3), ("before", 2), "now", "lost [95%]", ("p", 3)),
        tuple(rows),
        said + " ".join(found.notes),
    )


def _spread(means: PairedMeans) -> str:
    low, high = means.loss_interval
    return f"{_unit(means.loss)} [{_unit(low)}, {_unit(high)}]"


def _rigid(part: Part) -> Table:
    rows = [
        (
            row.kind,
            str(row.model.n),
            percent(row.model.base_score),
            percent(row.model.model_score),
            loss(row.model),
            percent(row.base.loss),
            loss(row.between),
        )
        for row in part.rows
    ]
    return Table(
        f"Rigidity on {part.role} suites",
        columns(
            "with",
            ("n", 3),
            ("clean %", 2),
            "noisy %",
            "points lost [95%]",
            "base loses",
            ("worse than base [95%]", 3),
        ),
        tuple(rows),
        f"The same {part.sources} questions asked cleanly and with noise: what the model loses by it, and "
        "what the base does. “Worse than base” compares the two on the noisy ones. Intervals: "
        f"{part.rows[0].model.method}.",
    )


def _overhead(times: Overhead) -> Table:
    rows = [
        (
            f"batch of {cell.batch}",
            f"{cell.base_tokens:.0f}",
            f"{cell.model_tokens:.0f}",
            _ratio(cell.step_ratio),
            _ratio(cell.first_ratio),
        )
        for cell in times.cells
    ]
    return Table(
        "Overhead",
        columns("", ("base tokens/s", 2), "now tokens/s", "time a token, % more [95%]", ("first token", 3)),
        tuple(rows),
        f"Medians of {times.rounds} pairs in turn, {times.new_tokens} tokens, {times.device}, {times.dtype}, "
        f"{times.threads} thread{'' if times.threads == 1 else 's'}.",
    )


def _ratio(ratio: Ratio) -> str:
    return interval(ratio.estimate - 1.0, ratio.low - 1.0, ratio.high - 1.0)


def _weights(weights: Mapping[str, Any]) -> Table:
    whole = weights.get("whole")
    members = [member for member in weights.get("members", ()) if member != whole]
    rows = [
        (
            str(one.get("ref", "")),
            "–" if one.get("relative") is None else f"{100 * one['relative']:.2f}",
            "–" if one.get("effective_rank") is None else f"{one['effective_rank']:.1f}",
            str(one.get("rank", "–")),
            str(one.get("largest") or "–"),
        )
        for one in ([whole] if whole else []) + members
    ]
    return Table(
        "Weights",
        columns("", "‖ΔW‖/‖W‖ %", ("effective rank", 2), ("rank", 3), ("largest at", 3)),
        tuple(rows),
        "A diagnosis and no gate: the size of a change predicts badly what it makes a model forget.",
    )


def _unit(value: float) -> str:
    return f"{value:.3g}"
