"""The learning–forgetting frontier: what each of several candidates learned of its targets and lost of
general skills, on the same items, and which of them no other beats in both.

Knows outcomes and their statistics. Does not know adapters, gates or recipes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from inlay.evals.blame import Measured, Outcomes
from inlay.evals.forgetting import Target
from inlay.evals.guard_figures import MIN_TARGET_ITEMS
from inlay.evals.means import PairedMeans, beyond_share
from inlay.evals.statistics import Paired, wilson
from inlay.evals.suites import Suite
from inlay.registry.canonical import now

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 1
MOST_ASKED = 1000
"""Items of a target suite that a retention of nearly 1 asks for, at most."""


@dataclass(frozen=True)
class Kept:
    """What a candidate keeps of what one member gains by itself on one suite.

    `alone`: base -> member; `whole`: base -> candidate; `beyond`: base + `asked` · (member − base) ->
    candidate, so that its delta is how far the candidate is above what is asked.
    """

    member: str
    suite: str
    asked: float
    alone: Paired
    whole: Paired
    beyond: PairedMeans

    @property
    def share(self) -> float:
        """Estimate of the share kept; above 1 where the candidate gains more."""
        return self.whole.delta / self.alone.delta

    @property
    def shown(self) -> bool:
        """Is it shown that the share asked for is kept: lower bound, on enough items?"""
        return self.beyond.gain_lower >= 0.0 and self.beyond.n >= needed_to_show(self.asked)

    @property
    def missing(self) -> bool:
        """Is it shown that it is not?"""
        return self.beyond.loss_lower > 0.0


def needed_to_show(share: float) -> int:
    """Items from which on keeping everything shows that `share` is kept: with fewer than 3 / (1 − share) the
    loss might be larger and unseen (the rule of three); 60 at least, as target guards ask."""
    rule = math.ceil(3.0 / (1.0 - share) - 1e-9) if share < 1.0 else MOST_ASKED
    return min(MOST_ASKED, max(MIN_TARGET_ITEMS, rule))


@dataclass(frozen=True)
class Point:
    """One candidate. `general`: base -> candidate on held-out items of skills that the base has; `targets`:
    the same suite by suite. `kept` has the members that are shown to gain by themselves. `kind`: "base",
    "alone", "stack", "merge", "cat" or "route". `whole`: is it on all the items that others are on?
    `outcomes`: suite by suite, in item order, of the targets."""

    name: str
    kind: str
    general: Paired
    targets: tuple[Target, ...]
    kept: tuple[Kept, ...] = ()
    whole: bool = True
    outcomes: Outcomes = field(default=(), repr=False)

    @cached_property
    def learned(self) -> float:
        """The mean of the scores on the target suites, each of the same weight."""
        return math.fsum(each.counts.model_score for each in self.targets) / len(self.targets)

    @property
    def interval(self) -> tuple[float, float]:
        """Two-sided 95% interval of `learned`: Wilson's, for as many items as would tell as much in one
        suite: k² / Σ 1/n of k suites."""
        n = len(self.targets) ** 2 / math.fsum(1.0 / each.counts.n for each in self.targets)
        return wilson(self.learned * n, n)

    @property
    def lost(self) -> float:
        """Estimate of the net fraction of general items lost."""
        return self.general.loss

    @property
    def n(self) -> int:
        """Target items, of all suites together."""
        return sum(each.counts.n for each in self.targets)

    @property
    def least(self) -> Kept | None:
        """The member whose gain is kept worst; None where no member is shown to gain."""
        return min(self.kept, key=lambda kept: kept.beyond.delta, default=None)

    def as_good_as(self, best: Point) -> bool:
        """Is what it learned within one standard error of what `best` did, on the same items? The error is
        that of the mean over the suites of the paired differences."""
        means, variances = [], []
        for mine, other in zip(self.outcomes, best.outcomes, strict=True):
            differences = [int(b) - int(a) for a, b in zip(mine, other, strict=True)]
            mean = sum(differences) / len(differences)
            means.append(mean)
            variances.append(sum((d - mean) ** 2 for d in differences) / len(differences) ** 2)
        return math.fsum(means) <= math.sqrt(math.fsum(variances)) + 1e-12

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: counts, and the figures that follow from them for readers."""
        low, high = self.general.loss_interval
        learned_low, learned_high = self.interval
        return {
            "name": self.name,
            "kind": self.kind,
            "whole": self.whole,
            "learned": {"estimate": self.learned, "low": learned_low, "high": learned_high, "n": self.n},
            "lost": {
                "estimate": self.lost,
                "low": low,
                "high": high,
                "upper_bound": self.general.loss_upper,
                "n": self.general.n,
            },
            "general": asdict(self.general),
            "targets": [asdict(each) for each in self.targets],
            "kept": [
                {**asdict(each), "share": each.share, "shown": each.shown, "missing": each.missing}
                for each in self.kept
            ],
        }


@dataclass(frozen=True)
class Yardstick:
    """What candidates are held against: the base's outcomes on suites, and on each target suite those of the
    member that it is for. `asked`: the share of a member's gain that is to be kept."""

    general: Sequence[Suite]
    target: Sequence[Suite]
    base: Measured
    members: Sequence[str]
    alone: Outcomes
    asked: float

    def point(self, name: str, kind: str, own: Measured, *, whole: bool = True) -> Point:
        """The point of a candidate whose outcomes are `own`. All general items count: leave out what the base
        cannot do before."""
        counts = [_paired(suite, self.base.target[i], own.target[i]) for i, suite in enumerate(self.target)]
        general = Paired(0, 0, 0, 0)
        for i, suite in enumerate(self.general):
            general += _paired(suite, self.base.general[i], own.general[i])
        kept = []
        for i, (member, suite) in enumerate(zip(self.members, self.target, strict=True)):
            alone = _paired(suite, self.base.target[i], self.alone[i])
            if alone.gain_lower > 0.0:
                clusters = [item.cluster for item in suite.items]
                beyond = beyond_share(self.base.target[i], self.alone[i], own.target[i], self.asked, clusters)
                kept.append(Kept(member, suite.name, self.asked, alone, counts[i], beyond))
        targets = tuple(Target(suite.name, each) for suite, each in zip(self.target, counts, strict=True))
        return Point(name, kind, general, targets, tuple(kept), whole, own.target)


def pareto(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats: none learned as much and lost less, or more and lost no more (estimates);
    what learned least first."""
    kept = [
        point
        for point in points
        if not any(
            other.learned >= point.learned
            and other.lost <= point.lost
            and (other.learned, other.lost) != (point.learned, point.lost)
            for other in points
        )
    ]
    return sorted(kept, key=lambda point: (point.learned, point.lost))


@dataclass(frozen=True)
class FrontierReport:
    """What was measured to choose, what was chosen, and how it did on items that had no part in it.

    `points`: on dev items, the base's first; what was given up early is on fewer and not `whole`. `choice`: a
    point's name, None where none was taken; `tested`: the choice on test items, `passed` whether it met the
    guard there. `explanation`: two sentences. `notes`: what was left out or not tried, and why.
    `items`: {suite: (dev, test)}, how many of each were asked.
    """

    subject: str
    base_weights: str
    adapters: Mapping[str, str]
    general: tuple[str, ...]
    targets: Mapping[str, str]
    items: Mapping[str, tuple[int, int]]
    forget: float
    retention: float
    seed: int
    points: tuple[Point, ...]
    choice: str | None
    passed: bool
    tested: Point | None
    explanation: tuple[str, str]
    notes: tuple[str, ...] = ()
    recipe: str | None = None
    passes: int = 0
    remembered: int = 0
    seconds: float = 0.0
    created: str = field(default_factory=now)

    @property
    def frontier(self) -> list[Point]:
        """What no other beats, of what was not given up."""
        return pareto([point for point in self.points if point.whole])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "schema": SCHEMA,
            "subject": self.subject,
            "base_weights": self.base_weights,
            "adapters": dict(self.adapters),
            "general": list(self.general),
            "targets": dict(self.targets),
            "items": {suite: {"dev": dev, "test": test} for suite, (dev, test) in self.items.items()},
            "guard": {"forget": self.forget, "retention": self.retention},
            "seed": self.seed,
            "explanation": list(self.explanation),
            "choice": self.choice,
            "passed": self.passed,
            "tested": None if self.tested is None else self.tested.to_dict(),
            "frontier": [point.name for point in self.frontier],
            "points": [point.to_dict() for point in self.points],
            "notes": list(self.notes),
            "recipe": self.recipe,
            "passes": self.passes,
            "remembered": self.remembered,
            "seconds": self.seconds,
            "created": self.created,
        }

    def print(self, console: Console | None = None) -> None:
        """The report as a table and a plot that fit 60 columns and use more."""
        from inlay.evals.frontier_text import print_frontier

        print_frontier(self, console)


def _paired(suite: Suite, before: Sequence[bool], after: Sequence[bool]) -> Paired:
    return Paired.of(
        before, after, [None if item.cluster is None else (suite.name, item.cluster) for item in suite.items]
    )
