"""How well a router chooses: how often the right expert, what goes to the base, what that costs, and how
honest its confidences are.

Every prompt is of a group, which says what would be right:

    task           of a target suite                                            the expert the suite is for
    general        held-out general skills                                      the base
    protected      general skills of which fitting the router may have seen     the base
    out-of-scope   what no expert is for, from whoever runs it                  the base; shown, not judged

Knows choices and outcomes. Does not know routers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from inlay.errors import InputError
from inlay.evals.forgetting import percent
from inlay.evals.scoring import EvalResult, check_comparable
from inlay.evals.statistics import Z_TWO_SIDED, Paired, wilson
from inlay.evals.student import student_quantile
from inlay.evals.suites import Suite
from inlay.registry.recipes import BASE, TOKEN_ROUTERS

SCHEMA = 1
TASK, GENERAL, PROTECTED, OUTSIDE = "task", "general", "protected", "out-of-scope"
GROUPS = (TASK, GENERAL, PROTECTED, OUTSIDE)
JUDGED = (TASK, GENERAL)
"""Groups that the calibration is about: what is right is known, and no router saw the prompts."""
BINS = 10
"""Bins of equal width for confidences, as in Guo et al. 2017."""
ABOVE_FLOOR = 0.10
"""A task counts where its own expert beats the floor: the most frequent answer's share, or guessing among
choices, plus this."""


@dataclass(frozen=True)
class Routed:
    """Where one prompt went. `expected`, `chosen`: an expert's label or "base". `confidence`: the probability
    that the router itself gave its choice, None where it gives none. `cluster`: what it shares a template
    with, None for a prompt of its own."""

    group: str
    suite: str
    item: str
    expected: str
    chosen: str
    confidence: float | None = None
    cluster: str | None = None

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise InputError(f"a routed prompt must be of {', '.join(GROUPS)}, and is of {self.group!r}")
        if (self.group == TASK) is (self.expected == BASE):
            raise InputError(
                f"a prompt of a task expects an expert and any other the base, and one of {self.group} "
                f"expects {self.expected!r}"
            )
        if self.confidence is not None and not 0.0 <= self.confidence <= 1.0 + 1e-6:
            raise InputError(f"a confidence must be between 0 and 1, and is {self.confidence!r}")

    @property
    def right(self) -> bool:
        return self.chosen == self.expected

    @property
    def row(self) -> str:
        """Its row of the confusion matrix: the expert for prompts of a task, else the group."""
        return self.expected if self.group == TASK else self.group


@dataclass(frozen=True)
class Share:
    """`right` of `n` prompts, which tell as much as `effective` independent ones."""

    right: int
    n: int
    effective: float

    @classmethod
    def of(cls, right: Sequence[bool], clusters: Sequence[Hashable] = ()) -> Share:
        """`clusters` as for `Paired.of`. Effective prompts are n over the design effect, times (z / t)² for
        clusters (Korn & Graubard 1998), against a reference that is right everywhere."""
        counts = Paired.of([True] * len(right), right, clusters)
        effective = counts.effective
        if counts.clusters and not counts.few_clusters:
            effective *= (Z_TWO_SIDED / student_quantile(0.975, counts.units - 1)) ** 2
        return cls(sum(right), len(right), effective)

    @property
    def value(self) -> float:
        """0 for no prompts."""
        return self.right / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Two-sided 95% score interval (Wilson 1927) on the effective prompts."""
        return wilson(self.value * self.effective, self.effective)


@dataclass(frozen=True)
class Group:
    """Prompts that belong together: a group, or those of one expert. `confidence`: the mean one."""

    name: str
    share: Share
    confidence: float | None


@dataclass(frozen=True)
class Bin:
    """Prompts whose confidence is at least `low` and under `high` (1 is in the last bin). `confidence`: their
    mean one."""

    low: float
    high: float
    n: int
    right: int
    confidence: float


@dataclass(frozen=True)
class Matrix:
    """Counts, a row a kind of prompt and a column a choice. `left_out`: experts without a row and a column of
    their own; what was chosen among them is in the last column, "others"."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    left_out: int = 0


@dataclass(frozen=True)
class Choices:
    """What one route of a plan chose. `experts` in the recipe's order; `groups` and `by_expert` without those
    that have no prompts; `confusions`: (row, chosen, prompts), every pair that occurred. `bins` and `brier`
    are of the judged groups, empty and None where the router gives no confidence."""

    path: str
    by: str
    experts: tuple[str, ...]
    groups: tuple[Group, ...]
    by_expert: tuple[Group, ...]
    confusions: tuple[tuple[str, str, int], ...]
    bins: tuple[Bin, ...] = ()
    brier: float | None = None

    @classmethod
    def of(cls, path: str, by: str, experts: Sequence[str], routed: Sequence[Routed]) -> Choices:
        """Raises InputError for no prompts, or one that is expected at, or went to, an expert not listed."""
        strangers = {label for one in routed for label in (one.expected, one.chosen)} - {*experts, BASE}
        if not routed or strangers:
            what = f"and one names {min(strangers)!r}" if strangers else "and there are none"
            raise InputError(f"routed prompts must be for the experts of their route or for the base, {what}")
        rows = Counter((one.row, one.chosen) for one in routed)
        order = {name: place for place, name in enumerate((*experts, *GROUPS, BASE))}
        bins, brier = _calibration([one for one in routed if one.group in JUDGED])
        return cls(
            path,
            by,
            tuple(experts),
            tuple(_group(name, [one for one in routed if one.group == name]) for name in _seen(routed)),
            tuple(_group(name, found) for name, found in _tasks(routed, experts).items()),
            tuple((*pair, rows[pair]) for pair in sorted(rows, key=lambda p: (order[p[0]], order[p[1]]))),
            bins,
            brier,
        )

    def group(self, name: str) -> Group | None:
        """None where it has no prompts."""
        return next((group for group in self.groups if group.name == name), None)

    @property
    def macro(self) -> float | None:
        """Mean over the experts of how often each gets its own prompts; None without task prompts."""
        shares = [expert.share.value for expert in self.by_expert]
        return math.fsum(shares) / len(shares) if shares else None

    @property
    def ece(self) -> float | None:
        """Expected calibration error: Σ n_b / n · |right_b / n_b − mean confidence_b| over the bins (Naeini
        et al. 2015; Guo et al. 2017, arXiv:1706.04599)."""
        total = sum(one.n for one in self.bins)
        gaps = (abs(one.right - one.n * one.confidence) for one in self.bins)
        return math.fsum(gaps) / total if total else None

    def matrix(self, most: int) -> Matrix:
        """The confusion matrix; of more than `most` experts the ones with the most confusions."""
        confused: Counter[str] = Counter()
        for row, chosen, count in self.confusions:
            if chosen != (row if row in self.experts else BASE):
                confused[row] += count
                confused[chosen] += count
        # Stable: of experts alike, the first ones of the recipe.
        kept = set(sorted(self.experts, key=lambda expert: -confused[expert])[:most])
        shown = [expert for expert in self.experts if expert in kept]
        counts = {(row, chosen): count for row, chosen, count in self.confusions}
        present = {row for row, _, _ in self.confusions}
        rows = [row for row in (*shown, *GROUPS) if row in present]
        left_out = [expert for expert in self.experts if expert not in kept]
        lines = [[counts.get((row, chosen), 0) for chosen in (BASE, *shown)] for row in rows]
        if not left_out:
            return Matrix(tuple(rows), (BASE, *shown), tuple(map(tuple, lines)))
        rest = [sum(counts.get((row, chosen), 0) for chosen in left_out) for row in rows]
        lines = [[*line, others] for line, others in zip(lines, rest, strict=True)]
        return Matrix(tuple(rows), (BASE, *shown, "others"), tuple(map(tuple, lines)), len(left_out))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: counts, from which every figure follows, and the figures for readers."""
        return {**asdict(self), "macro": self.macro, "ece": self.ece}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Choices:
        """What `to_dict` wrote."""
        groups, by_expert = (
            tuple(Group(row["name"], Share(**row["share"]), row["confidence"]) for row in data[key])
            for key in ("groups", "by_expert")
        )
        return cls(
            data["path"],
            data["by"],
            tuple(data["experts"]),
            groups,
            by_expert,
            tuple((row, chosen, count) for row, chosen, count in data["confusions"]),
            tuple(Bin(**row) for row in data["bins"]),
            data["brier"],
        )


@dataclass(frozen=True)
class Task:
    """One target suite: scores of the base, of the model as routed, and of the model with the suite's own
    expert always on, the oracle. `counts`: oracle against routed, so that what is lost is the router's doing;
    None for a graded suite. `floor`: what the oracle must beat for the task to count."""

    suite: str
    expert: str
    base: float
    routed: float
    oracle: float
    floor: float | None
    counts: Paired | None

    @classmethod
    def of(cls, expert: str, base: EvalResult, routed: EvalResult, oracle: EvalResult) -> Task:
        """InputError where the three were not scored alike."""
        suite = routed.suite
        for other in (base, oracle):
            check_comparable(other, suite, routed.protocol)
        scores = (base.score, routed.score, oracle.score)
        if suite.graded:
            return cls(suite.name, expert, *scores, floor=None, counts=None)
        counts = Paired.of(oracle.outcomes, routed.outcomes, [item.cluster for item in suite.items])
        return cls(suite.name, expert, *scores, floor=floor_of(suite), counts=counts)

    @property
    def counted(self) -> bool:
        """Whether the expert does better than `floor`; never for a graded suite, whose scores are in a unit
        of their own."""
        return self.floor is not None and self.oracle > self.floor


@dataclass(frozen=True)
class RoutingReport:
    """Every route of one subject's plan, outermost first, and what routing costs on its tasks."""

    subject: str
    routes: tuple[Choices, ...]
    tasks: tuple[Task, ...] = ()

    def oracle_share(self, *, counted: bool, gain: bool = False) -> float | None:
        """Σ routed / Σ oracle over the right-or-wrong tasks, or over those that count; with `gain` the base's
        scores are taken off above and below. Tasks weigh alike. None where there is nothing to share."""
        tasks = [task for task in self.tasks if task.counts is not None and (task.counted or not counted)]
        routed = math.fsum(task.routed - gain * task.base for task in tasks)
        oracle = math.fsum(task.oracle - gain * task.base for task in tasks)
        return routed / oracle if oracle > 0.0 else None

    @property
    def verdict(self) -> str:
        """One sentence, about the outermost route."""
        said: list[str] = []
        for name, what, where in (
            (TASK, "task prompts", "the right adapter"),
            (GENERAL, "held-out general prompts", "the base"),
        ):
            group = self.routes[0].group(name)
            if group is not None:
                low, high = group.share.interval
                said.append(
                    f"{'' if said else 'sends '}{percent(group.share.value)}% of {what} to {where} "
                    f"(n={group.share.n}, 95% interval {percent(low)} to {percent(high)})"
                )
        share = self.oracle_share(counted=False)
        if share is not None:
            said.append(f"keeps {percent(share)}% of the oracle's score{self._counted_text()}")
        if not said:
            return f"{self.subject} was asked neither task prompts nor held-out general ones."
        return f"{self.subject} {', '.join(said[:-1])}{', and ' if said[1:] else ''}{said[-1]}."

    def _counted_text(self) -> str:
        """What the tasks that count say, where that are others than all."""
        tasks = [task for task in self.tasks if task.counts is not None]
        counted = sum(task.counted for task in tasks)
        share = self.oracle_share(counted=True)
        if counted == len(tasks):
            return ""
        if share is None:
            return f" (none of the {len(tasks)} experts beats the floor of its task)"
        return f" ({percent(share)}% over the {counted} of {len(tasks)} tasks whose expert beats the floor)"

    def sentences(self) -> list[str]:
        """The verdict, how honest the confidences are, and how to read a router that weighs tokens."""
        said = [self.verdict]
        for route in self.routes:
            at = f" at {route.path or 'the root'}" if len(self.routes) > 1 else ""
            total = sum(one.n for one in route.bins)
            if route.ece is not None and route.brier is not None:
                claimed = math.fsum(one.n * one.confidence for one in route.bins) / total
                right = sum(one.right for one in route.bins) / total
                said.append(
                    f"Confidence of the router{at}: {percent(claimed)}% on average where "
                    f"{percent(right)}% are right (tasks and held-out general prompts, n={total}); expected "
                    f"calibration error {percent(route.ece)} points, Brier score {route.brier:.3f}."
                )
            if route.by in TOKEN_ROUTERS:
                said.append(
                    f"{route.by}{at} weighs the experts token by token: a prompt counts for the one with the "
                    "largest share over its tokens and all modules, which stands for the confidence."
                )
        return said

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: counts, from which every figure follows, and the figures for readers."""
        return {
            "schema": SCHEMA,
            "subject": self.subject,
            "verdict": self.verdict,
            "routes": [route.to_dict() for route in self.routes],
            "tasks": [{**asdict(task), "counted": task.counted} for task in self.tasks],
            "oracle": {
                name: {
                    "score": self.oracle_share(counted=counted),
                    "gain": self.oracle_share(counted=counted, gain=True),
                }
                for name, counted in (("all", False), ("counted", True))
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RoutingReport:
        """What `to_dict` wrote; InputError for a schema this version does not know."""
        if data.get("schema") != SCHEMA:
            raise InputError(f"a routing report must have schema {SCHEMA}, got {data.get('schema')!r}")
        tasks = []
        for row in data["tasks"]:
            counts = row["counts"] and Paired(
                **{**row["counts"], "clusters": tuple(map(tuple, row["counts"]["clusters"]))}
            )
            known = {key: row[key] for key in ("suite", "expert", "base", "routed", "oracle", "floor")}
            tasks.append(Task(**known, counts=counts))
        return cls(data["subject"], tuple(map(Choices.from_dict, data["routes"])), tuple(tasks))


def floor_of(suite: Suite) -> float:
    """What an expert must beat to count as one: the share of the most frequent answer, or of guessing among
    choices where that is more, plus `ABOVE_FLOOR`."""
    most = max(Counter(item.answer for item in suite.items if item.answer).values(), default=0)
    return max(most, math.fsum(item.guess for item in suite.items)) / len(suite) + ABOVE_FLOOR


def _seen(routed: Sequence[Routed]) -> list[str]:
    """The groups that have prompts, in their order."""
    return [name for name in GROUPS if any(one.group == name for one in routed)]


def _tasks(routed: Sequence[Routed], experts: Sequence[str]) -> dict[str, list[Routed]]:
    """The prompts of each expert that has some."""
    found: dict[str, list[Routed]] = {expert: [] for expert in experts}
    for one in routed:
        if one.group == TASK:
            found[one.expected].append(one)
    return {expert: prompts for expert, prompts in found.items() if prompts}


def _group(name: str, routed: Sequence[Routed]) -> Group:
    confidences = [one.confidence for one in routed if one.confidence is not None]
    return Group(
        name,
        Share.of(
            [one.right for one in routed],
            [None if one.cluster is None else (one.suite, one.cluster) for one in routed],
        ),
        math.fsum(confidences) / len(confidences) if len(confidences) == len(routed) else None,
    )


def _calibration(routed: Sequence[Routed]) -> tuple[tuple[Bin, ...], float | None]:
    """The bins that hold prompts, and the Brier score of "the choice is right" (Brier 1950): the mean of
    (confidence − right)²."""
    rated = [(one.confidence, one.right) for one in routed if one.confidence is not None]
    if not rated or len(rated) < len(routed):
        return (), None
    held: dict[int, list[tuple[float, bool]]] = {}
    for confidence, right in rated:
        held.setdefault(min(int(confidence * BINS), BINS - 1), []).append((confidence, right))
    bins = tuple(
        Bin(
            place / BINS,
            (place + 1) / BINS,
            len(found),
            sum(right for _, right in found),
            math.fsum(confidence for confidence, _ in found) / len(found),
        )
        for place, found in sorted(held.items())
    )
    return bins, math.fsum((confidence - right) ** 2 for confidence, right in rated) / len(rated)
