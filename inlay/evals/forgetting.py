"""The forgetting report: what a model lost of the base's skills, what it gained, and how sure that is.

The verdict is about held-out items only. Protected items, which training may have seen, stand beside it.
Every figure says whether it is an estimate, a 95% interval (two-sided) or a 95% bound (one-sided).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError
from inlay.evals.drift import Drift
from inlay.evals.means import PairedMeans, span_of
from inlay.evals.scoring import EvalResult, check_comparable
from inlay.evals.statistics import Paired, holm, needed_items, reached
from inlay.registry.canonical import now

if TYPE_CHECKING:
    from rich.console import Console

    from inlay.evals.suites import Item

SCHEMA = 2
READ = (1, 2)
"""Schemas that `from_dict` understands."""
FLIPS_KEPT = 50
UNINFORMATIVE_BELOW = 0.03
KEPT_WITHIN = 0.05
"""The verdict says "keeps" where the upper bound of the loss is at most this, on as many items as a guard
would ask for."""


@dataclass(frozen=True)
class Skill:
    """One skill's row: paired counts, and McNemar's p adjusted over all skills of the report (Holm)."""

    name: str
    held_out: bool
    counts: Paired
    p: float
    p_adjusted: float


@dataclass(frozen=True)
class Slice:
    """One slice's row (a way of asking, a dialect, a source): as a skill's, adjusted over all slices."""

    name: str
    held_out: bool
    counts: Paired
    p: float
    p_adjusted: float


@dataclass(frozen=True)
class Graded:
    """One suite with a graded metric: mean before and after, and the difference, in the metric's unit.

    `role`: `general` (its held-out items) or `target` (all of them).
    """

    suite: str
    role: str
    metric: str
    means: PairedMeans


@dataclass(frozen=True)
class Target:
    """What was gained on one target suite."""

    suite: str
    counts: Paired


@dataclass(frozen=True)
class Flip:
    """An item that one of the two answered right and the other wrong. An answer is None where it was not
    kept."""

    suite: str
    id: str
    skill: str
    held_out: bool
    prompt: str
    expected: str
    model_answer: str | None
    base_answer: str | None = None


@dataclass(frozen=True)
class ForgettingReport:
    """One subject against its base. `held_out` is what the verdict is about; fractions, not percent.

    `skills` and the pools hold reached skills only; `unreached` names the general skills of which the base
    itself answers less than `REACHED` of the items beyond guessing. `flips`: right before and wrong now;
    `gained`: the other way round. `levels`: what was measured at which level, {"weights" | "load" |
    "registration": names}.
    `rigidity`, `overhead`, `weights`, `alarm`, `routing` and `earlier` (the tasks of the versions that this
    one was trained on from, `inlay.evals.earlier_tasks`): plain JSON of what measured them, None where
    nothing did.
    """

    subject: str
    base_weights: str
    suites: tuple[str, ...]
    held_out: Paired
    protected: Paired
    skills: tuple[Skill, ...]
    targets: tuple[Target, ...] = ()
    flips: tuple[Flip, ...] = ()
    drift: Drift | None = None
    slices: tuple[Slice, ...] = ()
    graded: tuple[Graded, ...] = ()
    gained: tuple[Flip, ...] = ()
    unreached: tuple[str, ...] = ()
    rigidity: Mapping[str, Any] | None = None
    overhead: Mapping[str, Any] | None = None
    weights: Mapping[str, Any] | None = None
    alarm: Mapping[str, Any] | None = None
    routing: Mapping[str, Any] | None = None
    earlier: Mapping[str, Any] | None = None
    created: str = field(default_factory=now)

    @property
    def lost(self) -> float:
        """Estimate of the net fraction of held-out items lost: (right→wrong − wrong→right) / n."""
        return self.held_out.loss

    @property
    def interval(self) -> tuple[float, float]:
        """Two-sided 95% interval of `lost` (Tango 1998)."""
        return self.held_out.loss_interval

    @property
    def upper(self) -> float:
        """One-sided upper 95% bound of `lost`: what a guard compares with its allowance."""
        return self.held_out.loss_upper

    @property
    def levels(self) -> dict[str, tuple[str, ...]]:
        """What was measured at which level: `weights` (no data), `load` (one pass over a fixed probe),
        `registration` (suites)."""
        measured: dict[str, dict[str, Any]] = {
            "weights": {"weights": self.weights},
            "load": {"drift": self.drift, "alarm": self.alarm},
            "registration": {
                "general": self.held_out.n
                or self.protected.n
                or self.unreached
                or any(row.role == "general" for row in self.graded),
                "target": self.targets,
                "slices": self.slices,
                "rigidity": self.rigidity,
                "overhead": self.overhead,
                "routing": self.routing,
                "earlier": self.earlier,
            },
        }
        return {level: tuple(k for k, v in parts.items() if v) for level, parts in measured.items()}

    @property
    def methods(self) -> dict[str, Any]:
        """How interval and bound of each figure were found, in words."""
        return {
            "held_out": self.held_out.method,
            "protected": self.protected.method,
            "skills": {_row_name(row): row.counts.method for row in self.skills},
            "slices": {_row_name(row): row.counts.method for row in self.slices},
            "targets": {row.suite: row.counts.method for row in self.targets},
            "graded": {row.suite: row.means.method for row in self.graded},
        }

    @property
    def verdict(self) -> str:
        """One sentence about held-out skills; for what was trained on from a version, one about its tasks."""
        earlier = str((self.earlier or {}).get("verdict", ""))
        return f"{self._of_general} {earlier}" if earlier else self._of_general

    @property
    def _of_general(self) -> str:
        counts = self.held_out
        if self.alarm is not None and not self.levels["registration"]:
            return f"{self.subject}: measured at load only. {self.alarm['said']}"
        if counts.n == 0:
            why = "the base can do none of the held-out skills" if self.unreached else "no item is held out"
            graded = [row for row in self.graded if row.role == "general"]
            said = "; ".join(map(graded_text, graded)) or f"forgetting was not measured, since {why}"
            return f"{self.subject}: {said}."
        low, high = self.interval
        if counts.loss_lower > 0.0 and counts.p_value < 0.05:
            what = f"forgets {percent(self.lost)} points of held-out general skills"
        elif counts.gain_lower > 0.0 and counts.p_value < 0.05:
            what = f"improves held-out general skills by {percent(-self.lost)} points"
        elif self.upper <= KEPT_WITHIN and counts.n >= needed_items(KEPT_WITHIN) and not counts.few_clusters:
            what = f"keeps the held-out general skills (lost: estimate {percent(self.lost)} points)"
        else:
            what = f"is not shown to keep the held-out general skills (lost: estimate {percent(self.lost)})"
        return (
            f"{self.subject} {what}: 95% interval {percent(low)} to {percent(high)}, upper bound "
            f"{percent(self.upper)}, n={counts.n}{_worth(counts)}, p {p_text(counts.p_value)}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: counts, from which every figure follows, and the figures themselves for readers."""
        low, high = self.interval
        return {
            "schema": SCHEMA,
            "subject": self.subject,
            "base_weights": self.base_weights,
            "suites": list(self.suites),
            "created": self.created,
            "verdict": self.verdict,
            "lost": {"estimate": self.lost, "low": low, "high": high, "upper_bound": self.upper},
            "methods": self.methods,
            "held_out": asdict(self.held_out),
            "protected": asdict(self.protected),
            "skills": [asdict(skill) for skill in self.skills],
            "targets": [asdict(target) for target in self.targets],
            "flips": [asdict(flip) for flip in self.flips],
            "drift": self.drift.to_dict() if self.drift else None,
            "slices": [asdict(row) for row in self.slices],
            "graded": [asdict(row) for row in self.graded],
            "gained": [asdict(flip) for flip in self.gained],
            "unreached": list(self.unreached),
            "levels": {level: list(names) for level, names in self.levels.items()},
            "rigidity": self.rigidity,
            "overhead": self.overhead,
            "weights": self.weights,
            "alarm": self.alarm,
            "routing": self.routing,
            "earlier": self.earlier,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ForgettingReport:
        """The report that `to_dict` wrote; InputError for a schema this version does not know."""
        if data.get("schema") not in READ:
            raise InputError(f"a forgetting report must have schema {SCHEMA}, got {data.get('schema')!r}")
        return cls(
            subject=data["subject"],
            base_weights=data["base_weights"],
            suites=tuple(data["suites"]),
            held_out=_paired(data["held_out"]),
            protected=_paired(data["protected"]),
            skills=tuple(Skill(**{**row, "counts": _paired(row["counts"])}) for row in data["skills"]),
            targets=tuple(Target(row["suite"], _paired(row["counts"])) for row in data["targets"]),
            flips=tuple(Flip(**row) for row in data["flips"]),
            drift=Drift.from_dict(data["drift"]) if data["drift"] else None,
            slices=tuple(
                Slice(**{**row, "counts": _paired(row["counts"])}) for row in data.get("slices", ())
            ),
            graded=tuple(
                Graded(**{**row, "means": PairedMeans(**row["means"])}) for row in data.get("graded", ())
            ),
            gained=tuple(Flip(**row) for row in data.get("gained", ())),
            unreached=tuple(data.get("unreached", ())),
            rigidity=data.get("rigidity"),
            overhead=data.get("overhead"),
            weights=data.get("weights"),
            alarm=data.get("alarm"),
            routing=data.get("routing"),
            earlier=data.get("earlier"),
            created=data["created"],
        )

    def print(self, console: Console | None = None) -> None:
        """The report as tables that fit 80 columns; markup in model answers is not interpreted."""
        from inlay.evals.report_text import print_report

        print_report(self, console)


def _paired(row: Mapping[str, Any]) -> Paired:
    """Counts as `asdict` wrote them; a report of schema 1 has none by cluster."""
    return Paired(**{**row, "clusters": tuple(tuple(kind) for kind in row.get("clusters", ()))})


def compare(
    base: EvalResult | Sequence[EvalResult],
    model: EvalResult | Sequence[EvalResult],
    *,
    targets: Sequence[tuple[EvalResult, EvalResult]] = (),
    drift: Drift | None = None,
) -> ForgettingReport:
    """The report of `model` against `base` on the same general suites, item by item.

    `targets`: (base's result, model's result) on each target suite. Several general suites are pooled.
    Raises InputError where suite, metric, protocol, base or order do not agree.
    """
    bases = [base] if isinstance(base, EvalResult) else list(base)
    models = [model] if isinstance(model, EvalResult) else list(model)
    if not models or len(bases) != len(models):
        raise InputError(
            "a forgetting report needs the base's and the model's result on each suite, got "
            f"{len(bases)} and {len(models)}"
        )
    for before, after in [*zip(bases, models, strict=True), *targets]:
        check_comparable(before, after.suite, after.protocol)
        if before.base_weights != after.base_weights:
            raise InputError(
                f"a model is compared with its own base: {after.label} sits on {after.base_weights[:15]}, "
                f"{before.label} is {before.base_weights[:15]}"
            )
    general = [
        row
        for before, after in zip(bases, models, strict=True)
        if not after.suite.graded
        for row in _rows(before, after)
    ]
    skills = _by(general, lambda row: (row.item.skill, row.item.held_out))
    able = _able(bases)
    counted = [row for row in general if (row.item.skill, row.item.held_out) in able]
    slices = _by(
        [row for row in counted if row.item.slice is not None],
        lambda row: (str(row.item.slice), row.item.held_out),
    )
    graded = [(before, after, "general") for before, after in zip(bases, models, strict=True)]
    graded += [(before, after, "target") for before, after in targets]
    return ForgettingReport(
        subject=models[0].label,
        base_weights=models[0].base_weights,
        suites=tuple(result.suite.name for result in models),
        held_out=_counts([row for row in counted if row.item.held_out]),
        protected=_counts([row for row in counted if not row.item.held_out]),
        skills=tuple(Skill(*fields) for fields in _tested({k: v for k, v in skills.items() if k in able})),
        targets=tuple(Target(a.suite.name, _counts(_rows(b, a))) for b, a in targets if not a.suite.graded),
        flips=_flips(row for row in counted if row.was and not row.right),
        drift=drift,
        slices=tuple(Slice(*fields) for fields in _tested(slices)),
        graded=tuple(row for pair in graded for row in _graded(*pair)),
        gained=_flips(row for row in counted if row.right and not row.was),
        unreached=tuple(sorted({skill for skill, _ in skills} - {skill for skill, _ in able})),
    )


def reached_part(bases: Sequence[EvalResult]) -> list[EvalResult]:
    """The base's results on the held-out items of skills that it has (`statistics.reached`): what can be
    lost. Graded suites know no such skills and keep all their held-out items; suites of which nothing is left
    are left out."""
    able, parts = _able(bases), []
    for result in bases:
        kept = [
            (item, outcome)
            for item, outcome in zip(result.suite.items, result.outcomes, strict=True)
            if item.held_out and (result.suite.graded or (item.skill, True) in able)
        ]
        if kept:
            suite = replace(result.suite, items=tuple(item for item, _ in kept))
            parts.append(replace(result, suite=suite, outcomes=tuple(outcome for _, outcome in kept)))
    return parts


def _able(bases: Sequence[EvalResult]) -> set[tuple[str, bool]]:
    """(skill, held out) of what the base has, over the right-or-wrong suites together."""
    answered: dict[tuple[str, bool], list[tuple[bool | float, float]]] = {}
    for result in bases:
        if not result.suite.graded:
            for item, outcome in zip(result.suite.items, result.outcomes, strict=True):
                answered.setdefault((item.skill, item.held_out), []).append((outcome, item.guess))
    return {
        key
        for key, rows in answered.items()
        if reached([outcome for outcome, _ in rows], [guess for _, guess in rows])
    }


@dataclass(frozen=True)
class _Row:
    """One item, answered twice. `cluster` is None where the item shares none."""

    before: EvalResult
    after: EvalResult
    item: Item
    was: bool | float
    right: bool | float

    @property
    def cluster(self) -> tuple[str, str] | None:
        return None if self.item.cluster is None else (self.after.suite.name, self.item.cluster)


def _rows(before: EvalResult, after: EvalResult) -> list[_Row]:
    return [
        _Row(before, after, item, was, right)
        for item, was, right in zip(after.suite.items, before.outcomes, after.outcomes, strict=True)
    ]


def _by(rows: Iterable[_Row], key: Callable[[_Row], tuple[str, bool]]) -> dict[tuple[str, bool], list[_Row]]:
    groups: dict[tuple[str, bool], list[_Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _counts(rows: Sequence[_Row]) -> Paired:
    return Paired.of([r.was for r in rows], [r.right for r in rows], [r.cluster for r in rows])


def _tested(
    groups: Mapping[tuple[str, bool], Sequence[_Row]],
) -> list[tuple[str, bool, Paired, float, float]]:
    """(name, held out, counts, p, p adjusted over all groups), held-out first, then the worst loss."""
    counts = {key: _counts(rows) for key, rows in groups.items()}
    p_values = [pair.p_value for pair in counts.values()]
    rows = [
        (name, held_out, pair, p, adjusted)
        for ((name, held_out), pair), p, adjusted in zip(
            counts.items(), p_values, holm(p_values), strict=True
        )
    ]
    return sorted(rows, key=lambda row: (not row[1], -row[2].loss, row[0]))


def _graded(before: EvalResult, after: EvalResult, role: str) -> list[Graded]:
    """The row of a graded suite; none for another suite, or where a general one has no held-out item."""
    suite = after.suite
    rows = [row for row in _rows(before, after) if role == "target" or row.item.held_out]
    if not suite.graded or not rows:
        return []
    means = PairedMeans.of(
        [row.was for row in rows],
        [row.right for row in rows],
        [row.cluster for row in rows],
        higher_is_better=suite.higher_is_better,
        span=span_of(suite.metrics),
    )
    return [Graded(suite.name, role, suite.metric, means)]


def _flips(rows: Iterable[_Row]) -> tuple[Flip, ...]:
    flips = [
        Flip(
            row.after.suite.name,
            row.item.id,
            row.item.skill,
            row.item.held_out,
            row.item.text,
            row.item.answer,
            row.after.answers.get(row.item.id),
            row.before.answers.get(row.item.id),
        )
        for row in rows
    ]
    # The ones with an answer to read, held-out ones first.
    return tuple(sorted(flips, key=lambda flip: (flip.model_answer is None, not flip.held_out))[:FLIPS_KEPT])


def uninformative(plain: ForgettingReport | Paired, *, below: float = UNINFORMATIVE_BELOW) -> str | None:
    """The sentence that a comparison with plain LoRA needs where plain LoRA hardly forgets, else None.

    Where its loss of held-out skills has a one-sided lower 95% bound under `below` (3 points), keeping what
    it did not lose proves nothing.
    """
    counts = plain.held_out if isinstance(plain, ForgettingReport) else plain
    if counts.loss_lower >= below:
        return None
    return (
        f"The comparison is uninformative: plain LoRA loses {percent(counts.loss)} points here (lower bound "
        f"{percent(counts.loss_lower)}, under {percent(below)}), so there is little forgetting to prevent."
    )


def _row_name(row: Skill | Slice) -> str:
    """Its name; a skill or slice may have items of both splits."""
    return row.name if row.held_out else f"{row.name} (protected)"


def _worth(counts: Paired) -> str:
    """` (40 clusters, worth 211 items)` where items share templates, else nothing."""
    if not counts.clusters:
        return ""
    worth = "for these alone" if counts.few_clusters else f"worth {counts.effective:.0f} items"
    return f" ({counts.units} clusters, {worth})"


def graded_text(row: Graded) -> str:
    """`wiki loses 0.021 of bits_per_byte/1 (95% interval …, upper bound …, n=…)`, in the metric's unit."""
    means = row.means
    low, high = means.loss_interval
    verb = "loses" if means.loss > 0.0 else "gains"
    return (
        f"{row.suite} {verb} {abs(means.loss):.3g} of {row.metric} (95% interval of the loss {low:.3g} to "
        f"{high:.3g}, upper bound {means.loss_upper:.3g}, n={means.n})"
    )


def percent(fraction: float) -> str:
    """A fraction as percentage points with one decimal: 0.412 -> '41.2'; no '-0.0'."""
    text = f"{100.0 * fraction:.1f}"
    return "0.0" if text == "-0.0" else text


def p_text(p: float) -> str:
    """A p-value for a reader: `< 0.001` or `= 0.042`."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
