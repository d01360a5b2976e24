"""The forgetting report: what a model lost of the base's skills, what it gained, and how sure that is.

The verdict is about held-out items only. Protected items, which training may have seen, stand beside it.
Every figure says whether it is an estimate, a 95% interval (two-sided) or a 95% bound (one-sided).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError
from inlay.evals.drift import Drift
from inlay.evals.scoring import EvalResult, check_comparable
from inlay.evals.statistics import Paired, holm, needed_items
from inlay.registry.canonical import now

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 1
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
class Target:
    """What was gained on one target suite."""

    suite: str
    counts: Paired


@dataclass(frozen=True)
class Flip:
    """An item the base answered right and the model wrong. `model_answer` is None where it was not kept."""

    suite: str
    id: str
    skill: str
    held_out: bool
    prompt: str
    expected: str
    model_answer: str | None


@dataclass(frozen=True)
class ForgettingReport:
    """One subject against its base. `held_out` is what the verdict is about; fractions, not percent."""

    subject: str
    base_weights: str
    suites: tuple[str, ...]
    held_out: Paired
    protected: Paired
    skills: tuple[Skill, ...]
    targets: tuple[Target, ...] = ()
    flips: tuple[Flip, ...] = ()
    drift: Drift | None = None
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
    def verdict(self) -> str:
        """One sentence about held-out skills."""
        counts = self.held_out
        if counts.n == 0:
            return f"{self.subject}: forgetting was not measured, since no item is held out."
        low, high = self.interval
        if counts.loss_lower > 0.0 and counts.p_value < 0.05:
            what = f"forgets {percent(self.lost)} points of held-out general skills"
        elif counts.gain_lower > 0.0 and counts.p_value < 0.05:
            what = f"improves held-out general skills by {percent(-self.lost)} points"
        elif self.upper <= KEPT_WITHIN and counts.n >= needed_items(KEPT_WITHIN):
            what = f"keeps the held-out general skills (lost: estimate {percent(self.lost)} points)"
        else:
            what = f"is not shown to keep the held-out general skills (lost: estimate {percent(self.lost)})"
        return (
            f"{self.subject} {what}: 95% interval {percent(low)} to {percent(high)}, upper bound "
            f"{percent(self.upper)}, n={counts.n}, p {p_text(counts.p_value)}."
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
            "held_out": asdict(self.held_out),
            "protected": asdict(self.protected),
            "skills": [asdict(skill) for skill in self.skills],
            "targets": [asdict(target) for target in self.targets],
            "flips": [asdict(flip) for flip in self.flips],
            "drift": self.drift.to_dict() if self.drift else None,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ForgettingReport:
        """The report that `to_dict` wrote; InputError for a schema this version does not know."""
        if data.get("schema") != SCHEMA:
            raise InputError(f"a forgetting report must have schema {SCHEMA}, got {data.get('schema')!r}")
        return cls(
            subject=data["subject"],
            base_weights=data["base_weights"],
            suites=tuple(data["suites"]),
            held_out=Paired(**data["held_out"]),
            protected=Paired(**data["protected"]),
            skills=tuple(Skill(**{**row, "counts": Paired(**row["counts"])}) for row in data["skills"]),
            targets=tuple(Target(row["suite"], Paired(**row["counts"])) for row in data["targets"]),
            flips=tuple(Flip(**row) for row in data["flips"]),
            drift=Drift.from_dict(data["drift"]) if data["drift"] else None,
            created=data["created"],
        )

    def print(self, console: Console | None = None) -> None:
        """The report as tables that fit 80 columns; markup in model answers is not interpreted."""
        from inlay.evals.report_text import print_report

        print_report(self, console)


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
    pairs = list(zip(bases, models, strict=True))
    return ForgettingReport(
        subject=models[0].label,
        base_weights=models[0].base_weights,
        suites=tuple(result.suite.name for result in models),
        held_out=_pooled(pairs, held_out=True),
        protected=_pooled(pairs, held_out=False),
        skills=_skills(pairs),
        targets=tuple(Target(a.suite.name, Paired.of(b.outcomes, a.outcomes)) for b, a in targets),
        flips=_flips(pairs),
        drift=drift,
    )


def _pooled(pairs: Sequence[tuple[EvalResult, EvalResult]], *, held_out: bool) -> Paired:
    counts = Paired(0, 0, 0, 0)
    for before, after in pairs:
        counts += Paired.of(before.split(held_out), after.split(held_out))
    return counts


def _skills(pairs: Sequence[tuple[EvalResult, EvalResult]]) -> tuple[Skill, ...]:
    rows: dict[tuple[str, bool], Paired] = {}
    for before, after in pairs:
        for item, was, right in zip(after.suite.items, before.outcomes, after.outcomes, strict=True):
            key = (item.skill, item.held_out)
            rows[key] = rows.get(key, Paired(0, 0, 0, 0)) + Paired.of([was], [right])
    p_values = [counts.p_value for counts in rows.values()]
    skills = [
        Skill(name, held_out, counts, p, adjusted)
        for ((name, held_out), counts), p, adjusted in zip(
            rows.items(), p_values, holm(p_values), strict=True
        )
    ]
    # Held-out first, the worst loss first.
    return tuple(sorted(skills, key=lambda skill: (not skill.held_out, -skill.counts.loss, skill.name)))


def _flips(pairs: Sequence[tuple[EvalResult, EvalResult]]) -> tuple[Flip, ...]:
    flips = [
        Flip(
            after.suite.name,
            item.id,
            item.skill,
            item.held_out,
            item.text,
            item.answer,
            after.answers.get(item.id),
        )
        for before, after in pairs
        for item, was, right in zip(after.suite.items, before.outcomes, after.outcomes, strict=True)
        if was and not right
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


def percent(fraction: float) -> str:
    """A fraction as percentage points with one decimal: 0.412 -> '41.2'; no '-0.0'."""
    text = f"{100.0 * fraction:.1f}"
    return "0.0" if text == "-0.0" else text


def p_text(p: float) -> str:
    """A p-value for a reader: `< 0.001` or `= 0.042`."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
