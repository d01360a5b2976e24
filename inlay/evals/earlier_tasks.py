"""What a version kept of the tasks of the versions it was trained on from: held against its parent, item by
item, and as the figures of the line that leads to it.

Knows results and the registry. Does not know models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from inlay.evals.forgetting import p_text, percent
from inlay.evals.lines import line
from inlay.evals.means import PairedMeans, span_of
from inlay.evals.scoring import EvalResult, check_comparable
from inlay.evals.statistics import Paired
from inlay.evals.transfer import Figure, backward_transfer, forgetting_measure

if TYPE_CHECKING:
    from inlay.registry import Registry

_TASK = ("suite", "digest", "metric", "learnt", "own")


@dataclass(frozen=True)
class Task:
    """One suite, answered by the parent and by the version. `learnt`: the version whose training was the
    first to declare it; `own`: no version before this one did. `counts`: fractions, or the metric's unit."""

    suite: str
    digest: str
    metric: str
    learnt: str
    own: bool
    counts: Paired | PairedMeans

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        low, high = self.counts.loss_interval
        figures = {"lost": self.counts.loss, "low": low, "high": high, "p": self.counts.p_value}
        return {**asdict(self), **figures}


@dataclass(frozen=True)
class EarlierTasks:
    """`subject` against `parent` on the tasks of the line, oldest first.

    `bwt` and `forgetting_measure` are of the line `line` over the tasks that an earlier version learnt
    (`inlay.evals.transfer`); None where a cell that they need was not measured. `notes`: what was left out.
    """

    subject: str
    parent: str
    line: tuple[str, ...]
    tasks: tuple[Task, ...]
    bwt: float | None = None
    forgetting_measure: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def lost(self) -> Paired:
        """The parent's right-or-wrong tasks, pooled: what was lost of them and what was gained."""
        total = Paired(0, 0, 0, 0)
        for task in self.tasks:
            if not task.own and isinstance(task.counts, Paired):
                total += task.counts
        return total

    @property
    def verdict(self) -> str:
        """In words, what was lost of the parent's tasks; "" where it has none."""
        said = []
        counts = self.lost
        if counts.n:
            low, high = counts.loss_interval
            if counts.loss_lower > 0.0 and counts.p_value < 0.05:
                what = f"loses {percent(counts.loss)} points of {self.parent}'s tasks"
            elif counts.gain_lower > 0.0 and counts.p_value < 0.05:
                what = f"improves {self.parent}'s tasks by {percent(-counts.loss)} points"
            else:
                what = f"is not shown to have changed {self.parent}'s tasks (lost: {percent(counts.loss)})"
            said.append(
                f"{self.subject} {what}: 95% interval {percent(low)} to {percent(high)}, n={counts.n}, "
                f"p {p_text(counts.p_value)}."
            )
        for task in self.tasks:
            if not task.own and isinstance(task.counts, PairedMeans):
                low, high = task.counts.loss_interval
                verb = "loses" if task.counts.loss > 0.0 else "gains"
                said.append(
                    f"{self.subject} {verb} {abs(task.counts.loss):.3g} of {task.metric} on {self.parent}'s "
                    f"{task.suite} (95% interval of the loss {low:.3g} to {high:.3g}, n={task.counts.n})."
                )
        return " ".join(said)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: counts, and the figures that follow from them."""
        counts = self.lost
        low, high = counts.loss_interval if counts.n else (None, None)
        return {
            **asdict(self),
            "line": list(self.line),
            "tasks": [task.to_dict() for task in self.tasks],
            "lost": {"estimate": counts.loss, "low": low, "high": high, "n": counts.n} if counts.n else None,
            "verdict": self.verdict,
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EarlierTasks:
        """What `to_dict` wrote."""
        return cls(
            subject=data["subject"],
            parent=data["parent"],
            line=tuple(data["line"]),
            tasks=tuple(
                Task(**{key: row[key] for key in _TASK}, counts=_counts_of(row["counts"]))
                for row in data["tasks"]
            ),
            bwt=data["bwt"],
            forgetting_measure=data["forgetting_measure"],
            notes=tuple(data["notes"]),
        )


def earlier_tasks(
    pairs: Sequence[tuple[EvalResult, EvalResult]],
    learnt: Mapping[str, str],
    refs: Sequence[str],
    store: Registry,
    *,
    notes: Sequence[str] = (),
) -> EarlierTasks:
    """From (the parent's result, the version's result) on each suite, which the store holds as well.

    `learnt`: digest of a suite -> the version whose training was the first to declare it. `refs`: the line,
    from its first version to this one. InputError where two results are not of the same items and protocol.
    """
    tasks = []
    for before, after in pairs:
        check_comparable(before, after.suite, after.protocol)
        first = learnt[after.suite.digest]
        own = first == refs[-1]
        tasks.append(
            Task(
                after.suite.name,
                after.suite.digest,
                after.metric,
                first,
                own,
                paired_counts(before.outcomes, after),
            )
        )
    figures = _figures(store, refs, {task.digest for task in tasks if not task.own})
    return EarlierTasks(
        subject=refs[-1],
        parent=refs[-2],
        line=tuple(refs),
        tasks=tuple(tasks),
        bwt=figures[0].value,
        forgetting_measure=figures[1].value,
        notes=tuple(notes),
    )


def paired_counts(before: Sequence[bool | float], after: EvalResult) -> Paired | PairedMeans:
    """Outcomes `before`, of the same items, against a result; items that share a cluster count together."""
    suite, clusters = after.suite, [item.cluster for item in after.suite.items]
    if not suite.graded:
        return Paired.of(before, after.outcomes, clusters)
    return PairedMeans.of(
        before,
        after.outcomes,
        clusters,
        higher_is_better=suite.higher_is_better,
        span=span_of(suite.metrics),
    )


def _figures(store: Registry, refs: Sequence[str], suites: set[str]) -> tuple[Figure, Figure]:
    """BWT and forgetting measure of the line, over these suites only."""
    if not suites:
        return Figure(None, 0), Figure(None, 0)
    found = line(store, refs, by="suite")
    chosen = [j for j, column in enumerate(found.columns) if column.digest in suites and column.of_one]
    matrix = [[row[j] for j in chosen] for row in found.scores]
    learned = [found.columns[j].learned for j in chosen]
    return backward_transfer(matrix, learned), forgetting_measure(matrix, learned)


def _counts_of(row: Mapping[str, Any]) -> Paired | PairedMeans:
    if "both" in row:
        return Paired(**{**row, "clusters": tuple(tuple(kind) for kind in row["clusters"])})
    return PairedMeans(**row)
