"""What two subjects scored on the same items: the change of each suite, and how sure it is.

Two scores are held against each other only where base, suite, metric and protocol are the same
(`EvalRecord.comparable`); every other suite is named with the reason why not. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError, IntegrityError, ReferenceNotFound
from inlay.evals.metrics import Unit, unit_of
from inlay.evals.statistics import Paired, holm
from inlay.registry.records import EvalRecord

if TYPE_CHECKING:
    from inlay.registry import Registry

SURE = 0.05
"""A change is called more than chance where its p, adjusted by Holm over all suites, is below this."""


@dataclass(frozen=True)
class Part:
    """Some items of a suite: one skill, or all held-out or protected ones. `p_adjusted`: Holm over the
    suite's skills; the unadjusted p of a split."""

    name: str
    held_out: bool
    counts: Paired
    p_adjusted: float

    def to_dict(self) -> dict[str, Any]:
        low, high = self.counts.interval
        figures = {"delta": self.counts.delta, "low": low, "high": high, "p": self.counts.p_value}
        return {
            "name": self.name,
            "held_out": self.held_out,
            **asdict(self.counts),
            **figures,
            "p_adjusted": self.p_adjusted,
        }


@dataclass(frozen=True)
class ScoreChange:
    """One suite. Scores, `delta` (after minus before) and its two-sided 95% interval are fractions.

    Right-or-wrong outcomes: Tango's interval and McNemar's exact p. Graded ones: the interval and p of
    Student's paired t; None where there is but one item. `won` and `lost` count items that went up and down.
    `p_adjusted`: Holm over all suites compared. `base` is the base's score on the same items, None where it
    has no comparable one. Of graded outcomes the scores are means, so that `delta` is their difference (of
    perplexity: nats a token); where less is better, `won` counts items that went down. `setting` tells apart
    two protocols of one suite. `splits`, `skills`: only where the outcomes are right or wrong and the suite
    is in the store.
    """

    suite: str
    digest: str
    metric: str
    protocol: str
    n: int
    before: float
    after: float
    base: float | None
    delta: float
    low: float | None
    high: float | None
    won: int
    lost: int
    p: float | None
    p_adjusted: float | None = None
    setting: str = ""
    splits: tuple[Part, ...] = ()
    skills: tuple[Part, ...] = ()

    @property
    def sure(self) -> bool:
        """Whether the change is more than chance."""
        return self.p_adjusted is not None and self.p_adjusted < SURE

    @property
    def unit(self) -> Unit:
        """In which unit its scores are read out."""
        return unit_of(self.metric)

    @property
    def label(self) -> str:
        """The suite's name, with its protocol where that is needed to tell it from another."""
        return f"{self.suite} ({self.setting})" if self.setting else self.suite

    @property
    def held_out(self) -> Part | None:
        """The held-out items, where the suite has protected ones beside them."""
        return next((part for part in self.splits if part.held_out), None)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        parts = {
            "splits": [part.to_dict() for part in self.splits],
            "skills": [part.to_dict() for part in self.skills],
        }
        values = {key: getattr(self, key) for key in self.__dataclass_fields__ if key not in parts}
        better = {"higher_is_better": self.unit.higher_is_better}
        return {**values, **better, "more_than_chance": self.sure, **parts}


@dataclass(frozen=True)
class NotComparable:
    """A suite that says nothing about the change, and why."""

    suite: str
    reason: str


def score_changes(
    store: Registry,
    a: str,
    b: str,
    *,
    labels: tuple[str, str] = ("the first", "the second"),
    parts: bool = True,
) -> tuple[tuple[ScoreChange, ...], tuple[NotComparable, ...]]:
    """Every suite that the subjects `a` (a digest or "base") and `b` were scored on, in alphabetical order.

    `labels` call them in reasons; `parts` adds splits and skills, for which each suite is read. Raises
    IntegrityError where a stored suite does not fit its outcomes.
    """
    second = {_key(record): record for record in reversed(store.evals(b))}
    # The base was scored on everything there is: of it only what the other was scored on is read.
    suites = dict.fromkeys(record.suite for record in second.values()) if a == "base" else [None]
    listed = [record for suite in suites for record in store.evals(a, suite)]
    first = {_key(record): record for record in reversed(listed)}
    pairs = [(first[key], second[key]) for key in first if key in second]
    pairs.sort(key=lambda pair: (pair[1].suite_name, pair[1].suite, pair[1].metric, pair[1].protocol))
    rows = [_change(store, before, after, parts) for before, after in pairs]
    adjusted = iter(holm([row.p for row in rows if row.p is not None]))
    rows = [
        replace(row, p_adjusted=next(adjusted) if row.p is not None else None, setting=setting)
        for row, setting in zip(rows, _settings([after for _, after in pairs]), strict=True)
    ]
    left = _incomparable(list(first.values()), list(second.values()), {row.suite for row in rows}, labels)
    return tuple(rows), tuple(left)


def _key(record: EvalRecord) -> tuple[str, ...]:
    return (record.base_weights, record.base_prompt, record.suite, record.metric, record.protocol)


def _change(store: Registry, before: EvalRecord, after: EvalRecord, parts: bool) -> ScoreChange:
    base = next(
        (r for r in store.evals("base", before.suite, protocol=before.protocol) if r.comparable(before)), None
    )
    known: dict[str, Any] = {
        "suite": after.suite_name,
        "digest": after.suite,
        "metric": after.metric,
        "protocol": after.protocol,
        "n": after.n,
        "before": before.score,
        "after": after.score,
        "base": base.score if base is not None else None,
    }
    if len(before.outcomes) != len(after.outcomes):
        raise IntegrityError(
            f"two scores on {after.suite_name} must have the same items, they have {before.n} and {after.n}"
        )
    if not all(isinstance(outcome, bool) for outcome in (*before.outcomes, *after.outcomes)):
        known |= {
            "before": _mean(before.outcomes),
            "after": _mean(after.outcomes),
            "base": _mean(base.outcomes) if base is not None else None,
        }
        up = unit_of(after.metric).higher_is_better
        return ScoreChange(**known, **_graded(before.outcomes, after.outcomes, up=up))
    was, now = [bool(x) for x in before.outcomes], [bool(x) for x in after.outcomes]
    counts = Paired.of(was, now)
    low, high = counts.interval
    splits, skills = _parts(store, after, was, now) if parts else ((), ())
    return ScoreChange(
        **known,
        delta=counts.delta,
        low=low,
        high=high,
        won=counts.gained,
        lost=counts.lost,
        p=counts.p_value,
        splits=splits,
        skills=skills,
    )


def _mean(outcomes: Sequence[float]) -> float:
    return math.fsum(outcomes) / len(outcomes)


def _graded(before: Sequence[float], after: Sequence[float], *, up: bool) -> dict[str, Any]:
    """Student's paired t (Biometrika 6, 1908) on outcomes that are numbers; `up`: more of them is better."""
    differences = [float(y) - float(x) for x, y in zip(before, after, strict=True)]
    n = len(differences)
    mean = math.fsum(differences) / n
    figures: dict[str, Any] = {
        "delta": mean,
        "won": sum(d > 0 if up else d < 0 for d in differences),
        "lost": sum(d < 0 if up else d > 0 for d in differences),
    }
    if n < 2:
        return {**figures, "low": None, "high": None, "p": None}
    error = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    if error == 0.0:
        return {**figures, "low": mean, "high": mean, "p": 1.0 if mean == 0.0 else 0.0}
    from scipy.special import stdtr, stdtrit

    reach = float(stdtrit(n - 1, 0.975)) * error
    p = 2.0 * float(stdtr(n - 1, -abs(mean) / error))
    return {**figures, "low": mean - reach, "high": mean + reach, "p": p}


def _parts(
    store: Registry, record: EvalRecord, was: Sequence[bool], now: Sequence[bool]
) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """(splits, skills) of a suite whose items are known; a suite of one skill or one split has no such
    rows."""
    from inlay.evals.suites import Suite

    try:
        items = Suite.from_store(store, record.suite).items
    except (ReferenceNotFound, InputError):
        # An eval may be put without its suite, or of items in a layout that is not ours.
        return (), ()
    if len(items) != len(now):
        raise IntegrityError(f"{record.suite_name} has {len(items)} items, its score {len(now)} outcomes")
    skills: dict[tuple[str, bool], Paired] = {}
    splits: dict[bool, Paired] = {}
    for item, x, y in zip(items, was, now, strict=True):
        one = Paired.of([x], [y])
        key = (item.skill, item.held_out)
        skills[key] = skills.get(key, Paired(0, 0, 0, 0)) + one
        splits[item.held_out] = splits.get(item.held_out, Paired(0, 0, 0, 0)) + one
    adjusted = holm([counts.p_value for counts in skills.values()])
    by_skill = [
        Part(name, held_out, counts, p)
        for ((name, held_out), counts), p in zip(skills.items(), adjusted, strict=True)
    ]
    # Held-out ones first, the worst loss first, as in the forgetting report.
    by_skill.sort(key=lambda part: (not part.held_out, part.counts.delta, part.name))
    by_split = [
        Part("held out" if held_out else "protected", held_out, splits[held_out], splits[held_out].p_value)
        for held_out in (True, False)
        if held_out in splits
    ]
    return tuple(by_split if len(by_split) > 1 else ()), tuple(by_skill if len(by_skill) > 1 else ())


def _settings(records: Sequence[EvalRecord]) -> list[str]:
    """For each record what tells it from others of the same suite: "dtype float32"; "" where nothing must."""
    found = []
    for record in records:
        others = [r for r in records if r.suite_name == record.suite_name and r is not record]
        differing = [key for other in others for key in _differing(record, other)]
        if others and not differing:
            differing = ["items"] if any(o.suite != record.suite for o in others) else ["metric"]
        detail = {**record.protocol_detail, "items": record.suite[7:15], "metric": record.metric}
        found.append(", ".join(f"{key} {detail.get(key)}" for key in dict.fromkeys(differing)))
    return found


def _differing(one: EvalRecord, other: EvalRecord) -> list[str]:
    x, y = one.protocol_detail, other.protocol_detail
    return sorted(key for key in {*x, *y} if x.get(key) != y.get(key))


def _incomparable(
    first: Sequence[EvalRecord], second: Sequence[EvalRecord], compared: set[str], labels: tuple[str, str]
) -> list[NotComparable]:
    names = sorted({r.suite_name for r in (*first, *second)} - compared)
    found = []
    for name in names:
        mine = [r for r in first if r.suite_name == name]
        theirs = [r for r in second if r.suite_name == name]
        if not mine or not theirs:
            scored, unscored = labels if mine else labels[::-1]
            fix = f"`inlay eval {unscored} --suite {name}` would measure it"
            found.append(NotComparable(name, f"only {scored} was scored on it; {fix}"))
            continue
        # Of all pairs the one that comes nearest says what stands in the way.
        reasons = min((_obstacles(x, y, labels) for x in mine for y in theirs), key=len)
        found.append(NotComparable(name, "; ".join(reasons)))
    return found


def _obstacles(x: EvalRecord, y: EvalRecord, labels: tuple[str, str]) -> list[str]:
    reasons = []
    if x.base_weights != y.base_weights:
        reasons.append("the bases are not the same")
    if x.base_prompt != y.base_prompt:
        reasons.append("the bases' tokenizers or chat templates differ")
    if x.suite != y.suite:
        reasons.append(f"two contents under one name ({x.suite[7:15]} and {y.suite[7:15]})")
    if x.metric != y.metric:
        reasons.append(f"the metric was {x.metric} for {labels[0]} and {y.metric} for {labels[1]}")
    if x.protocol != y.protocol:
        reasons += [
            f"{key} was {_said(x.protocol_detail, key)} for {labels[0]} and {_said(y.protocol_detail, key)} "
            f"for {labels[1]}"
            for key in _differing(x, y)
        ] or ["the protocols differ"]
    return reasons


def _said(detail: Mapping[str, Any], key: str) -> str:
    return repr(detail[key]) if key in detail else "not said"
