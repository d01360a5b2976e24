"""What a sweep found: every point, which no other beats, which is taken and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from inlay.evals.frontier import Point, pareto
from inlay.evals.table import Table, columns, interval
from inlay.registry.canonical import now

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 1


@dataclass(frozen=True)
class Trial:
    """One training of a sweep. `outcomes`: of the dev rows, which it answered; `kept`: of the protected
    prompts, which it answers as the base does. `failure`: why there are none. `remembered`: read from the
    cache."""

    name: str
    settings: Mapping[str, Any]
    outcomes: tuple[bool, ...]
    kept: tuple[bool, ...]
    steps: int = 0
    seconds: float = 0.0
    loss: float | None = None
    failure: str | None = None
    remembered: bool = field(default=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, remembered: bool = False) -> Trial:
        """What `to_dict` wrote."""
        lists = {"outcomes": tuple(data["outcomes"]), "kept": tuple(data["kept"])}
        return cls(**{**data, **lists, "remembered": remembered})


@dataclass(frozen=True)
class SweepReport:
    """`points`: the base's first, then those measured, on dev rows and protected prompts. `choice`: a point's
    name; `registered`: the version that it became, trained again on all rows. `rows`: those that points were
    trained on; `forget`: the fraction of protected prompts that may be answered otherwise. `explanation`: two
    sentences."""

    subject: str
    base: str
    base_weights: str
    data: Mapping[str, Any]
    grid: Mapping[str, list[Any]]
    metric: str
    rows: int
    forget: float
    seed: int
    points: tuple[Point, ...]
    trials: tuple[Trial, ...]
    choice: str | None
    explanation: tuple[str, str]
    registered: str | None = None
    seconds: float = 0.0
    created: str = field(default_factory=now)

    @property
    def frontier(self) -> list[Point]:
        """What no other beats, the base among it."""
        return pareto(self.points)

    @property
    def notes(self) -> tuple[str, ...]:
        """What failed, and how the others came to be."""
        failed = [f"{trial.name} failed: {trial.failure}." for trial in self.trials if trial.failure]
        known = sum(trial.remembered for trial in self.trials)
        return (*failed, *([f"{known} of {len(self.trials)} points were known."] if known else []))

    def mark_of(self, point: Point) -> str:
        """What a point is, in a word."""
        if point.name == self.choice:
            return "taken"
        return "frontier" if point in self.frontier else ""

    def table(self) -> Table:
        """The points, what learned most first."""
        by_name = {trial.name: trial for trial in self.trials}
        rows = []
        for point in sorted(self.points, key=lambda each: (-each.learned, each.lost)):
            trial = by_name.get(point.name)
            rows.append(
                (
                    point.name,
                    interval(point.learned, *point.interval),
                    interval(point.lost, *point.general.loss_interval),
                    "–" if trial is None or trial.loss is None else f"{trial.loss:.3f}",
                    "–" if trial is None else f"{trial.seconds:.0f}",
                    self.mark_of(point),
                )
            )
        return Table(
            f"Points on {self.points[0].n} dev rows and {self.points[0].general.n} protected prompts",
            columns("point", "learned [95%]", "lost [95%]", ("loss", 3), ("s", 2), "is"),
            tuple(rows),
            f"Learned: dev rows answered ({self.metric}), %. Lost: protected prompts answered otherwise than "
            "the base does, points. Loss: of the last step, nats a token. Frontier: no other learned more "
            "and lost less.",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "schema": SCHEMA,
            "subject": self.subject,
            "base": self.base,
            "base_weights": self.base_weights,
            "data": dict(self.data),
            "grid": dict(self.grid),
            "metric": self.metric,
            "rows": self.rows,
            "guard": {"forget": self.forget},
            "seed": self.seed,
            "explanation": list(self.explanation),
            "choice": self.choice,
            "registered": self.registered,
            "frontier": [point.name for point in self.frontier],
            "points": [point.to_dict() for point in self.points],
            "trials": [
                {key: value for key, value in trial.to_dict().items() if key not in ("outcomes", "kept")}
                for trial in self.trials
            ],
            "notes": list(self.notes),
            "seconds": self.seconds,
            "created": self.created,
        }

    def print(self, console: Console | None = None) -> None:
        """The explanation, a plot and the table, in 60 columns and more."""
        from rich.console import Console
        from rich.text import Text

        from inlay.evals.frontier_text import MARKS, WIDTH, scatter
        from inlay.evals.report_text import print_table
        from inlay.registry.printable import printable

        console = console or Console()
        for sentence in self.explanation:
            console.print(Text(printable(sentence), style="bold"))
        console.print()
        console.print(Text("Learned (%, up) against protected points lost (right); # taken, * frontier"))
        signs = {"taken": MARKS["chosen"]}
        marks = [signs.get(mark) or MARKS[mark] for mark in map(self.mark_of, self.points)]
        for line in scatter(self.points, marks, columns=min(WIDTH, console.width)):
            console.print(Text(line), no_wrap=True, crop=True)
        console.print()
        print_table(self.table(), console)
        for note in self.notes:
            console.print(Text(printable(note), style="dim"))
