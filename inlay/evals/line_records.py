"""The record of a line of versions: its matrix, what fell and rose at which version, and the sentences."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

from inlay.evals.forgetting import p_text
from inlay.evals.transfer import (
    Cell,
    Figure,
    average_accuracy,
    backward_transfer,
    forgetting_measure,
    forward_transfer,
)

MANY = 3
"""So many columns lost at one version are counted in a sentence of their own."""
GONE = ("retired", "purged")
"""States in which a version that was not scored never will be."""

Role = Literal["target", "general", "protected", "beyond"]
"""`target`: to be learnt. `general`: held-out skills of the base. `protected`: skills whose prompts training
may have seen. `beyond`: general skills of which the base itself answers less than a tenth, beyond
guessing."""
NAMED: dict[Role, str] = {"target": "to be learnt", "general": "held out", "protected": "protected"}
Against = Literal["before", "best"]


@dataclass(frozen=True)
class Subject:
    """One row: a version or a lock. `label` is short where all are of one name: "v3"."""

    ref: str
    label: str
    digest: str
    state: str
    created: str


@dataclass(frozen=True)
class Column:
    """A suite, or one skill of it (`skill` is None for all of the suite). `source`: what `--suite` finds it
    by. `learned`: the row at which it was learnt, 0 for what the base could do. `of_one`: scores are shares
    of 1, shown as percent."""

    suite: str
    digest: str
    source: str
    skill: str | None
    role: Role
    n: int
    metric: str
    learned: int
    of_one: bool = True
    higher_is_better: bool = True
    label: str = ""


@dataclass(frozen=True)
class Change:
    """Row `row` against row `against` on one column: the one scored before it, or the best before it.

    `delta`: how much better the mean outcome is (below zero: worse), with its two-sided 95% interval (None
    where a single unit allows none), in the unit of the outcomes: a fraction, or what a graded metric gives
    an item. `worse`, `better`: how many items went down and up. `p` of "best" is multiplied by the number of
    versions that the best was chosen from. `fell`, `rose`: by more than chance.
    """

    column: int
    row: int
    against: int
    kind: Against
    delta: float
    low: float | None
    high: float | None
    worse: int
    better: int
    p: float
    p_adjusted: float
    fell: bool = False
    rose: bool = False


@dataclass(frozen=True)
class Line:
    """Rows: the base (row 0) and `subjects` (rows 1…). `scores[row][column]` is a fraction (or the metric's
    own unit), None for a gap."""

    name: str
    subjects: tuple[Subject, ...]
    columns: tuple[Column, ...]
    scores: tuple[tuple[float | None, ...], ...]
    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The rows as tables call them."""
        return ("base", *(subject.label for subject in self.subjects))

    @cached_property
    def learning(self) -> dict[str, Figure]:
        """Average accuracy, BWT, FWT and forgetting measure over the target columns."""
        return self._figures("target")

    @cached_property
    def forgetting(self) -> dict[str, Figure]:
        """The same over the held-out general skills, which the base brought (FWT has no meaning there)."""
        return self._figures("general")

    def _figures(self, role: Role) -> dict[str, Figure]:
        chosen = [j for j, column in enumerate(self.columns) if column.role == role and column.of_one]
        matrix = [[row[j] for j in chosen] for row in self.scores]
        learned = [self.columns[j].learned for j in chosen]
        found = {
            "average_accuracy": average_accuracy(matrix, learned),
            "bwt": backward_transfer(matrix, learned),
            "fwt": forward_transfer(matrix, learned),
            "forgetting": forgetting_measure(matrix, learned),
        }
        return {
            key: replace(figure, missing=tuple((i, chosen[j]) for i, j in figure.missing))
            for key, figure in found.items()
        }

    @property
    def gaps(self) -> tuple[Cell, ...]:
        """The cells that nobody measured."""
        return tuple(
            (i, j) for i, row in enumerate(self.scores) for j, score in enumerate(row) if score is None
        )

    def commands(self, cells: Iterable[Cell] | None = None) -> list[str]:
        """What would measure the gaps (or `cells`), a command once; a gap that cannot be filled has none."""
        found: dict[str, None] = {}
        for i, j in self.gaps if cells is None else cells:
            # The base is measured beside whatever is.
            able = [s for s in (self.subjects if i == 0 else self.subjects[i - 1 : i]) if s.state not in GONE]
            if able:
                found[f"inlay eval {able[-1].ref} --suite {self.columns[j].source}"] = None
        return list(found)

    def step(self, row: int, column: int) -> Change | None:
        """The change of a cell against the version scored before it."""
        return self._steps.get((row, column))

    @cached_property
    def _steps(self) -> dict[Cell, Change]:
        return {(c.row, c.column): c for c in self.changes if c.kind == "before"}

    @property
    def lost(self) -> tuple[Change, ...]:
        """For each column that fell by more than chance the first fall, against the version before it or,
        where no single step was that large, against the best before; in the order of the rows."""
        first: dict[int, Change] = {}
        for change in sorted(self.changes, key=lambda c: (c.row, c.kind != "before")):
            if change.fell:
                first.setdefault(change.column, change)
        return tuple(first.values())

    @property
    def learnt(self) -> tuple[Change, ...]:
        """For each target column that rose by more than chance the first step up."""
        first: dict[int, Change] = {}
        for change in sorted(self.changes, key=lambda c: c.row):
            if change.kind == "before" and change.rose and self.columns[change.column].role == "target":
                first.setdefault(change.column, change)
        return tuple(first.values())

    def sentences(self) -> list[str]:
        """What was learnt and what was lost, each with its version; first, how much was lost at one where it
        was much."""
        said = [self._sentence(change, "learnt at") for change in self.learnt]
        for row, label in enumerate(self.labels):
            roles = [self.columns[change.column].role for change in self.lost if change.row == row]
            if len(roles) >= MANY:
                totals = [column.role for column in self.columns]
                counts = [
                    f"{roles.count(role)} of {totals.count(role)} {name}"
                    for role, name in NAMED.items()
                    if role in roles
                ]
                said.append(f"At {label} fell by more than chance: {', '.join(counts)}.")
        for change in self.lost:
            said.append(self._sentence(change, "lost at" if change.kind == "before" else "worn down by"))
        if not said and self._steps:
            said.append("No column changed by more than chance at any version.")
        return said

    def _sentence(self, change: Change, how: str) -> str:
        column, labels = self.columns[change.column], self.labels
        before, after = self.scores[change.against][change.column], self.scores[change.row][change.column]
        whence = (
            ""
            if change.kind == "before" and change.against == change.row - 1
            else f" ({labels[change.against]})"
        )
        name = f"{column.label} (protected)" if column.role == "protected" else column.label
        said = (
            f"{name}: {how} {labels[change.row]}, {score_text(before, column)}{whence} -> "
            f"{score_text(after, column)}, p {p_text(change.p_adjusted)}"
        )
        last = max(i for i, row in enumerate(self.scores) if row[change.column] is not None)
        if last > change.row:
            said += f"; {labels[last]} has {score_text(self.scores[last][change.column], column)}"
        return said

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "name": self.name,
            "rows": ["base", *(asdict(subject) for subject in self.subjects)],
            "columns": [asdict(column) for column in self.columns],
            "scores": [list(row) for row in self.scores],
            "learning": {key: figure.to_dict() for key, figure in self.learning.items()},
            "forgetting": {key: figure.to_dict() for key, figure in self.forgetting.items()},
            "changes": [asdict(change) for change in self.changes],
            "sentences": self.sentences(),
            "missing": self.commands(),
            "notes": list(self.notes),
        }


def score_text(score: float | None, column: Column) -> str:
    """A score for a reader: 0.973 of one is "97", other units have three digits, a gap is "·"."""
    if score is None:
        return "·"
    return f"{100 * score:.0f}" if column.of_one else f"{score:.3g}"
