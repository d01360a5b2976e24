"""Old against new: a version and its run trained again on another base, on the suites that the run declared.

Scores of the two are paired by item though the bases differ: the same questions were asked of both. What each
forgot is against its own base. Knows records of the registry; loads no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from inlay.evals.earlier_tasks import paired_counts
from inlay.evals.forgetting import ForgettingReport, p_text, percent
from inlay.evals.means import PairedMeans
from inlay.evals.metrics import unit_of
from inlay.evals.scoring import from_record
from inlay.evals.statistics import Paired
from inlay.evals.suites import Suite
from inlay.evals.table import Table, columns, interval
from inlay.trainers.cost import Cost

if TYPE_CHECKING:
    from inlay.registry import Registry, Version
    from inlay.registry.records import EvalRecord

KIND = "rebase"
SCHEMA = 1
_OF_THE_BASE = ("prompt", "dtype")
"""What of a protocol another base may change; all else must be the same."""

Role = Literal["target", "general"]


@dataclass(frozen=True)
class Score:
    """One suite: the two versions' scores and, where known, their bases'. `counts`: old against new, item by
    item."""

    suite: str
    role: Role
    metric: str
    before: float
    after: float
    base_before: float | None
    base_after: float | None
    counts: Paired | PairedMeans

    def cells(self) -> tuple[str, ...]:
        """As a row of a table, in the metric's unit."""
        unit, (low, high) = unit_of(self.metric), self.counts.interval
        return (
            self.suite,
            self.role,
            str(self.counts.n),
            "–" if self.base_before is None else unit.bare(self.base_before),
            unit.bare(self.before),
            "–" if self.base_after is None else unit.bare(self.base_after),
            unit.bare(self.after),
            f"{unit.bare(self.counts.delta)} [{unit.bare(low)}, {unit.bare(high)}]",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        low, high = self.counts.interval
        return {
            **asdict(self),
            "delta": self.counts.delta,
            "low": low,
            "high": high,
            "p": self.counts.p_value,
        }


@dataclass(frozen=True)
class RebaseReport:
    """`forgotten`: (estimate, low, high) of the held-out general skills lost, old and new, each against its
    own base; None where it was not measured. `notes`: what could not be compared, and why."""

    old: str
    new: str
    old_base: str
    new_base: str
    scores: tuple[Score, ...]
    forgotten: tuple[tuple[float, float, float] | None, tuple[float, float, float] | None]
    cost: tuple[Cost, Cost]
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """A sentence for each target, and one about what was forgotten."""
        said = [self._of_target(score) for score in self.scores if score.role == "target"]
        lost = [
            f"{ref} forgets {percent(row[0])} points of {base}'s held-out skills (95% interval "
            f"{percent(row[1])} to {percent(row[2])})"
            for ref, base, row in zip(
                (self.new, self.old), (self.new_base, self.old_base), self.forgotten[::-1], strict=True
            )
            if row is not None
        ]
        return " ".join([*said, *([f"{'; '.join(lost)}."] if lost else [])])

    def _of_target(self, score: Score) -> str:
        unit, counts = unit_of(score.metric), score.counts
        low, high = counts.interval
        how = "better than" if low > 0.0 else "worse than" if high < 0.0 else "within noise of"
        return (
            f"{self.new} on {self.new_base} scores {unit.score(score.after)} on {score.suite}, {how} "
            f"{self.old} on {self.old_base} with {unit.score(score.before)} (difference "
            f"{unit.change(unit.bare(counts.delta))}, 95% interval {unit.bare(low)} to {unit.bare(high)}, "
            f"n={counts.n}, p {p_text(counts.p_value)})."
        )

    def tables(self) -> list[Table]:
        """For a terminal or a page."""
        return [self._scores(), self._costs()]

    def _scores(self) -> Table:
        rows = [score.cells() for score in self.scores]
        if any(self.forgotten):
            then, now = ("–" if row is None else interval(*row) for row in self.forgotten)
            rows.append(("held-out skills lost", "general", "", "", then, "", now, ""))
        return Table(
            f"{self.old} on {self.old_base}, {self.new} on {self.new_base}",
            columns(
                "suite",
                ("role", 3),
                ("n", 3),
                ("base then", 2),
                "then",
                ("base now", 2),
                "now",
                "better by [95%]",
            ),
            tuple(rows),
            " ".join(
                (
                    "The same questions, item by item; what was lost is against each version's own base.",
                    *self.notes,
                )
            ),
        )

    def _costs(self) -> Table:
        rows = [
            (
                name,
                f"{cost.seconds:.1f}",
                f"{cost.task_tokens:,}",
                f"{cost.general_tokens:,}",
                "–" if cost.flops is None else f"{cost.flops:.2e}",
                "–" if cost.peak_bytes is None else f"{cost.peak_bytes / 1e6:,.0f}",
            )
            for name, cost in zip((self.old, self.new), self.cost, strict=True)
        ]
        return Table(
            "Training",
            columns("", "seconds", ("task tokens", 1), ("general tokens", 2), ("FLOPs", 3), ("peak MB", 3)),
            tuple(rows),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        keys = ("old", "new", "old_base", "new_base")
        return {
            "schema": SCHEMA,
            **{key: getattr(self, key) for key in keys},
            "verdict": self.verdict,
            "scores": [score.to_dict() for score in self.scores],
            "forgotten": [None if row is None else list(row) for row in self.forgotten],
            "cost": [cost.to_dict() for cost in self.cost],
            "notes": list(self.notes),
        }


def rebase_report(store: Registry, old: Version, new: Version, *, notes: Sequence[str] = ()) -> RebaseReport:
    """From what the registry keeps of the two: their scores on the suites that the old one's run declared, of
    each the newest that were asked the same way."""
    was, now = (store.run_of(version) or {} for version in (old, new))
    said, scores = list(notes), []
    roles: tuple[Role, Role] = ("target", "general")
    for role in roles:
        for declared in was["declared"][role]:
            suite = Suite.from_store(store, declared["digest"])
            pair = _same_way(store, suite, old, new)
            if pair is None:
                said.append(
                    f"{suite.name}: {old.ref} has no score asked as {new.ref} was; "
                    f"`inlay eval {old.ref} --suite {suite.name}` would measure it on its own base."
                )
                continue
            results = [from_record(r, suite, label=v.ref) for r, v in zip(pair, (old, new), strict=True)]
            scores.append(
                Score(
                    suite=suite.name,
                    role=role,
                    metric=suite.metric,
                    before=results[0].score,
                    after=results[1].score,
                    base_before=_base_score(store, pair[0]),
                    base_after=_base_score(store, pair[1]),
                    counts=paired_counts(results[0].outcomes, results[1]),
                )
            )
    generals = {declared["name"] for declared in was["declared"]["general"]}
    return RebaseReport(
        old=old.ref,
        new=new.ref,
        old_base=old.base.name,
        new_base=new.base.name,
        scores=tuple(scores),
        forgotten=(_forgotten(store, old, generals), _forgotten(store, new, generals)),
        cost=(Cost.of_run(was), Cost.of_run(now)),
        notes=tuple(said),
    )


def _same_way(
    store: Registry, suite: Suite, old: Version, new: Version
) -> tuple[EvalRecord, EvalRecord] | None:
    befores, afters = (
        [
            record
            for record in store.evals(version.digest, suite.digest, base_weights=version.base.weights)
            if record.metric == suite.metric
        ]
        for version in (old, new)
    )
    pairs = [(x, y) for y in afters for x in befores if _protocol(x) == _protocol(y)]
    return pairs[0] if pairs else None


def _protocol(record: EvalRecord) -> Mapping[str, Any]:
    return {key: value for key, value in record.protocol_detail.items() if key not in _OF_THE_BASE}


def _base_score(store: Registry, record: EvalRecord) -> float | None:
    listed = store.evals("base", record.suite, base_weights=record.base_weights, protocol=record.protocol)
    return next((base.score for base in listed if base.comparable(record)), None)


def _forgotten(store: Registry, version: Version, suites: set[str]) -> tuple[float, float, float] | None:
    """What the newest report on exactly these general suites says was lost of held-out skills."""
    for kept in store.reports(version.digest, "forgetting"):
        if set(kept["suites"]) == suites:
            report = ForgettingReport.from_dict(kept)
            return (report.lost, *report.interval) if report.held_out.n else None
    return None
