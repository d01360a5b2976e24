"""Was it worth it: one decision in words, and the paired comparisons that it rests on.

An adapter has to earn its place. It is shipped where it is better than the base alone, than the base with its
best few-shot prompt and than a bag of words; reaches the minimum that was declared; and keeps the general
skills. "Within noise" is a reason against it: what costs nothing to keep is then as good.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from inlay.evals.earlier_tasks import EarlierTasks, paired_counts
from inlay.evals.forgetting import KEPT_WITHIN, ForgettingReport, percent
from inlay.evals.metrics import unit_of
from inlay.evals.rigidity import Rigidity
from inlay.evals.rigidity import Row as RigidRow
from inlay.evals.scoring import EvalResult
from inlay.evals.statistics import holm, needed_items, wilson
from inlay.trainers.baselines import IMPORTED, Baseline, Baselines

LEVEL = 0.05
"""Adjusted p from which on a difference is noise, as is one whose 95% interval holds 0."""
ENOUGH = 100
"""Items from which on "within noise" is a result; under it, it is a lack of items."""

Standing = Literal["better", "behind", "within noise", "unknown"]
Decision = Literal["ship", "do not ship", "not enough evidence"]


@dataclass(frozen=True)
class Comparison:
    """The adapter against one baseline on one suite.

    `delta`: how much better the adapter is (negative: worse) in the metric's unit, `low` and `high` its
    two-sided 95% interval, None where nothing says how many items a score from elsewhere is of. `p` is
    two-sided, `p_adjusted` Holm's over all paired comparisons of the run; 1.0 for what is not paired.
    """

    baseline: str
    kind: str
    suite: str
    metric: str
    delta: float
    low: float | None
    high: float | None
    p: float
    p_adjusted: float
    n: int | None
    standing: Standing
    method: str


@dataclass(frozen=True)
class Verdict:
    """`sentences`: the decision and its first reason, then whatever else speaks against or for it."""

    subject: str
    decision: Decision
    sentences: tuple[str, ...]
    comparisons: tuple[Comparison, ...]

    def __str__(self) -> str:
        return " ".join(self.sentences)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "sentences": list(self.sentences)}


def judge(
    subject: str,
    results: Sequence[EvalResult],
    baselines: Baselines,
    forgetting: ForgettingReport,
    *,
    minimum: float | None = None,
    allowed: float = KEPT_WITHIN,
) -> Verdict:
    """The verdict on an adapter: `results` are its own on the target suites.

    `minimum`: what each target score must reach. `allowed`: the share of held-out general skills that may be
    lost, and of the tasks of the version that it was trained on from; as for a guard, the one-sided upper 95%
    bound is held against it, on as many items as a guard asks for. Scores from elsewhere are compared in
    words and decide nothing: what people reach is no alternative to the adapter.
    """
    comparisons = compared(results, baselines)
    findings = [_against(each) for each in comparisons if each.kind != IMPORTED]
    findings += [_minimum(result, minimum) for result in results if minimum is not None]
    findings += [_forgotten(forgetting, allowed), *_earlier(forgetting, allowed), *_rigid(forgetting)]
    if not results:
        findings.insert(0, ("open", "no target suite was declared, so nothing says what it gained"))
    no = [said for tone, said in findings if tone == "no"]
    unsure = [said for tone, said in findings if tone == "open"]
    yes = [said for tone, said in findings if tone == "yes"]
    if no:
        decision: Decision = "do not ship"
        sentences = [f"Do not ship {subject}: {no[0]}.", *_each("Also", [*no[1:], *unsure])]
    elif unsure:
        decision = "not enough evidence"
        sentences = [f"Not enough evidence to ship {subject}: {unsure[0]}.", *_each("Also", unsure[1:])]
    else:
        decision = "ship"
        sentences = [f"Ship {subject}: {_best_case(comparisons, yes)}.", *_each("And", yes)]
    sentences += [_elsewhere(each) for each in comparisons if each.kind == IMPORTED]
    return Verdict(subject, decision, tuple(sentences), tuple(comparisons))


def compared(results: Sequence[EvalResult], baselines: Baselines) -> list[Comparison]:
    """Each result against each baseline on its suite, item by item where the baseline has outcomes."""
    found = [_one(result, each) for result in results for each in baselines.on(result.suite.digest)]
    paired = [index for index, each in enumerate(found) if each.kind != IMPORTED]
    adjusted = holm([found[index].p for index in paired])
    for index, p in zip(paired, adjusted, strict=True):
        each = found[index]
        assert each.low is not None and each.high is not None
        standing = _standing(each.low, each.high) if p < LEVEL else "within noise"
        found[index] = replace(each, p_adjusted=p, standing=standing)
    return found


def newcombe(right: int, n: int, other_right: int, other_n: int) -> tuple[float, float]:
    """Two-sided 95% interval of right/n − other_right/other_n, two independent shares.

    Newcombe's hybrid score interval (Statistics in Medicine 17 (1998), 873–890, method 10): with Wilson's
    limits (l, u) of each, δ − √((p₁ − l₁)² + (u₂ − p₂)²) to δ + √((u₁ − p₁)² + (p₂ − l₂)²).
    """
    one, two = right / n, other_right / other_n
    (low, high), (other_low, other_high) = wilson(right, n), wilson(other_right, other_n)
    return (
        one - two - math.hypot(one - low, other_high - two),
        one - two + math.hypot(high - one, two - other_low),
    )


def _one(result: EvalResult, baseline: Baseline) -> Comparison:
    about = (baseline.name, baseline.kind, result.suite.name, result.metric)
    if baseline.outcomes is None:
        return _unpaired(result, baseline, about)
    counts = paired_counts(baseline.outcomes, result)
    low, high = counts.interval
    p = counts.p_value
    return Comparison(*about, counts.delta, low, high, p, p, counts.n, "unknown", counts.method)


def _unpaired(result: EvalResult, baseline: Baseline, about: tuple[str, str, str, str]) -> Comparison:
    sign = 1.0 if result.suite.higher_is_better else -1.0
    delta = sign * (result.score - baseline.score)
    if baseline.n is None or result.graded:
        return Comparison(*about, delta, None, None, 1.0, 1.0, baseline.n, "unknown", "as given")
    right = sum(bool(x) for x in result.outcomes)
    low, high = newcombe(right, result.n, round(baseline.score * baseline.n), baseline.n)
    method = "Newcombe's interval for independent shares"
    return Comparison(*about, delta, low, high, 1.0, 1.0, baseline.n, _standing(low, high), method)


def _standing(low: float, high: float) -> Standing:
    return "better" if low > 0.0 else "behind" if high < 0.0 else "within noise"


Finding = tuple[Literal["yes", "no", "open"], str]


def _against(each: Comparison) -> Finding:
    said = f"on {each.suite} (the adapter is {figures(each)})"
    the = f"the {each.baseline}" + (" alone" if each.kind == "base" else "")
    if each.standing == "better":
        return "yes", f"it beats {the} {said}"
    if each.standing == "behind":
        return "no", f"{the} does better than it {said}"
    if each.n is not None and each.n < ENOUGH:
        return "open", f"{the} is within noise of it {said}, and {each.n} items are too few to tell"
    return "no", f"{the} is within noise of it {said}"


def _minimum(result: EvalResult, minimum: float | None) -> Finding:
    assert minimum is not None
    unit, (low, high) = unit_of(result.metric), result.interval
    higher = result.suite.higher_is_better
    score = (
        f"{unit.score(result.score)} on {result.suite.name} (95% interval {unit.bare(low)} to "
        f"{unit.bare(high)}, n={result.n})"
    )
    declared = f"{unit.score(minimum)} declared before training"
    if result.score < minimum if higher else result.score > minimum:
        return "no", f"it scores {score}, {'below' if higher else 'above'} the {declared}"
    edge = low < minimum if higher else high > minimum
    reached = f"it scores {score}, at {'least' if higher else 'most'} the {declared}"
    return "yes", reached + (", though not surely so" if edge else "")


def _forgotten(report: ForgettingReport, allowed: float) -> Finding:
    counts = report.held_out
    if counts.n == 0:
        if report.unreached:
            return "yes", "there was nothing to forget: the base has none of the general skills measured"
        if any(row.role == "general" for row in report.graded):
            return "yes", report.verdict.rstrip(".")
        return "open", "forgetting was not measured"
    low, high = counts.loss_interval
    lost = (
        f"{percent(counts.loss)} points of held-out general skills (95% interval {percent(low)} to "
        f"{percent(high)}, upper bound {percent(counts.loss_upper)}, n={counts.n})"
    )
    limit = f"{percent(allowed)} points"
    if counts.loss > allowed:
        sure = "" if counts.loss_lower > allowed else ", though not surely more"
        return "no", f"it forgets {lost}, more than {limit}{sure}"
    if counts.loss_upper > allowed:
        return "open", f"it forgets {lost}, and that this is at most {limit} is not shown"
    if counts.n < needed_items(allowed) or counts.few_clusters:
        return "open", f"it forgets {lost}, and a guard of {limit} asks for {needed_items(allowed)} items"
    return "yes", f"it forgets {lost}, at most {limit}"


def _earlier(report: ForgettingReport, allowed: float) -> list[Finding]:
    """What it kept of the tasks of the version that it was trained on from, held against the same limit."""
    if report.earlier is None:
        return []
    found = EarlierTasks.from_dict(report.earlier)
    counts = found.lost
    if counts.n == 0:
        return []
    low, high = counts.loss_interval
    lost = (
        f"{percent(counts.loss)} points of {found.parent}'s tasks (95% interval {percent(low)} to "
        f"{percent(high)}, n={counts.n})"
    )
    if counts.loss > allowed:
        return [("no", f"it loses {lost}, more than {percent(allowed)} points")]
    if counts.loss_upper > allowed:
        return [("open", f"it loses {lost}, and that this is at most {percent(allowed)} points is not shown")]
    return [("yes", f"it loses {lost}, at most {percent(allowed)} points")]


def _rigid(report: ForgettingReport) -> list[Finding]:
    """Asked less neatly, is it still better than the base on what it was trained for?"""
    whole = rigid_row(report)
    if whole is None:
        return []
    low, high = whole.between.interval
    better = (
        f"better than the base by {percent(whole.between.delta)} points, 95% interval {percent(low)} to "
        f"{percent(high)}, n={whole.between.n}"
    )
    lost = f"it loses {percent(whole.model.loss)} points to typos and the like"
    if whole.between.gain_lower > 0.0 and whole.between.p_value < LEVEL:
        return [("yes", f"asked less neatly it holds ({lost}, and stays {better})")]
    return [("no", f"it is rigid: asked less neatly it is not shown to beat the base ({lost}; {better})")]


def rigid_row(report: ForgettingReport) -> RigidRow | None:
    """All kinds of noise on the target suites together; None where that was not measured."""
    if report.rigidity is None:
        return None
    parts = [part for part in Rigidity.from_dict(report.rigidity).parts if part.role == "target"]
    return parts[0].rows[0] if parts and parts[0].rows else None


def _best_case(comparisons: Sequence[Comparison], yes: list[str]) -> str:
    """What "ship" rests on: the nearest baseline, taken out of `yes`."""
    against = [each for each in comparisons if each.kind != IMPORTED]
    if not against:
        return yes.pop(0)
    nearest = min(against, key=lambda each: each.delta)
    for each in against:
        yes.remove(_against(each)[1])
    return (
        f"it beats all it was compared with, of which the {nearest.baseline} comes nearest on "
        f"{nearest.suite} (the adapter is {figures(nearest)})"
    )


def _elsewhere(each: Comparison) -> str:
    stands = {
        "better": "is below it",
        "behind": "is above it",
        "within noise": "is within noise of it",
        "unknown": "stands beside it, of unknown certainty",
    }[each.standing]
    return f"Imported: {each.baseline} {stands} on {each.suite} (the adapter is {figures(each)})."


def figures(each: Comparison) -> str:
    """`ahead by 3.2 points, 95% interval 1.1 to 5.4, n=500`: how the adapter stands, in the metric's unit."""
    unit, ahead = unit_of(each.metric), each.delta >= 0.0
    said = f"{'ahead' if ahead else 'behind'} by {unit.change(unit.bare(abs(each.delta)))}"
    if each.low is not None and each.high is not None:
        ends = (each.low, each.high) if ahead else (-each.high, -each.low)
        said += f", 95% interval {unit.bare(ends[0])} to {unit.bare(ends[1])}"
    return said + (f", n={each.n}" if each.n is not None else "")


def _each(word: str, clauses: Sequence[str]) -> list[str]:
    return [f"{word}, {clause}." for clause in clauses]
