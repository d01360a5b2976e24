"""Paired statistics on right-or-wrong outcomes, in plain Python: a promote must judge in milliseconds.

Two models answered the same items, so everything here is paired. What matters is in the *discordant*
items: `lost` (the base was right, the model is wrong) and `gained` (the other way round). An item both got
right or both got wrong says how good they are, and nothing about the difference.

Intervals that a report shows are two-sided 95%. Bounds that a guard uses are one-sided 95%: the interval's
ends at 90%. All proportions are fractions of the items, not percent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from inlay.errors import InputError

Z_TWO_SIDED = NormalDist().inv_cdf(0.975)  # 1.9600: both ends of a 95% interval
Z_ONE_SIDED = NormalDist().inv_cdf(0.95)  # 1.6449: one 95% bound


@dataclass(frozen=True)
class Paired:
    """Counts of two models on the same `n` items: both right, right turned wrong, wrong turned right.

    `clusters` is empty where items are independent; else it counts the clusters by what happened in them:
    (items, gained − lost, how many clusters like it).
    """

    n: int
    lost: int
    gained: int
    both: int
    clusters: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        if min(self.n, self.lost, self.gained, self.both) < 0 or self.both + self.lost + self.gained > self.n:
            raise InputError(
                f"paired counts must fit into n={self.n}: both {self.both}, lost {self.lost}, "
                f"gained {self.gained}"
            )

    @classmethod
    def of(cls, base: Sequence[bool], model: Sequence[bool]) -> Paired:
        """Counts from two outcome lists in the same item order; InputError where their lengths differ."""
        if len(base) != len(model):
            raise InputError(
                f"paired outcomes must cover the same items, got {len(base)} and {len(model)}",
                fix="score both on the same suite",
            )
        pairs = [(bool(before), bool(after)) for before, after in zip(base, model, strict=True)]
        return cls(
            n=len(pairs),
            lost=pairs.count((True, False)),
            gained=pairs.count((False, True)),
            both=pairs.count((True, True)),
        )

    def __add__(self, other: Paired) -> Paired:
        """The counts of two disjoint sets of items, pooled."""
        return Paired(
            self.n + other.n, self.lost + other.lost, self.gained + other.gained, self.both + other.both
        )

    @property
    def base_score(self) -> float:
        """Fraction of items the base got right; 0 for no items."""
        return (self.both + self.lost) / self.n if self.n else 0.0

    @property
    def model_score(self) -> float:
        """Fraction of items the model got right; 0 for no items."""
        return (self.both + self.gained) / self.n if self.n else 0.0

    @property
    def delta(self) -> float:
        """Model minus base: (gained − lost) / n, in −1…1; 0 for no items."""
        return (self.gained - self.lost) / self.n if self.n else 0.0

    @property
    def loss(self) -> float:
        """Base minus model: what was forgotten, net; −`delta`."""
        return -self.delta if self.delta else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Two-sided 95% score interval of `delta` (Tango 1998)."""
        return tango_interval(self.n, self.lost, self.gained, z=Z_TWO_SIDED)

    @property
    def loss_interval(self) -> tuple[float, float]:
        """Two-sided 95% score interval of `loss`."""
        low, high = self.interval
        return -high, -low

    @property
    def loss_upper(self) -> float:
        """One-sided upper 95% bound of `loss`: what a guard holds against the allowance."""
        return -tango_interval(self.n, self.lost, self.gained, z=Z_ONE_SIDED)[0]

    @property
    def loss_lower(self) -> float:
        """One-sided lower 95% bound of `loss`: at least this much is gone."""
        return -tango_interval(self.n, self.lost, self.gained, z=Z_ONE_SIDED)[1]

    @property
    def gain_lower(self) -> float:
        """One-sided lower 95% bound of `delta`: at least this much was gained."""
        return tango_interval(self.n, self.lost, self.gained, z=Z_ONE_SIDED)[0]

    @property
    def p_value(self) -> float:
        """Exact two-sided McNemar p of "nothing changed"."""
        return mcnemar(self.lost, self.gained)


@dataclass(frozen=True)
class PairedMeans:
    """Two models on the same `n` items with a graded metric: `before` and `after` are means in its unit.

    `error` is the standard error of after − before, `skew` the skewness of the differences, over `units`
    independent ones: the items, or the clusters of items where `clustered`.
    """

    n: int
    before: float
    after: float
    error: float
    skew: float
    units: int
    clustered: bool = False
    higher_is_better: bool = True

    @property
    def base_score(self) -> float:
        """The base's mean."""
        return self.before

    @property
    def model_score(self) -> float:
        """The model's mean."""
        return self.after

    @property
    def delta(self) -> float:
        """Improvement of the mean: after − before, its sign turned where lower is better."""
        return self.after - self.before if self.higher_is_better else self.before - self.after

    @property
    def loss(self) -> float:
        """What got worse; −`delta`."""
        return -self.delta if self.delta else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Two-sided 95% interval of `delta`."""
        return self._edge(0.025), self._edge(0.975)

    @property
    def loss_interval(self) -> tuple[float, float]:
        """Two-sided 95% interval of `loss`."""
        low, high = self.interval
        return -high, -low

    @property
    def loss_upper(self) -> float:
        """One-sided upper 95% bound of `loss`."""
        return -self._edge(0.05)

    @property
    def loss_lower(self) -> float:
        """One-sided lower 95% bound of `loss`."""
        return -self._edge(0.95)

    @property
    def gain_lower(self) -> float:
        """One-sided lower 95% bound of `delta`."""
        return self._edge(0.05)

    def _edge(self, share: float) -> float:
        """The `share` quantile of what `delta` may truly be, by Student's t over the units."""
        if self.units < 2:
            return math.inf if share > 0.5 else -math.inf
        return self.delta + self.error * student_quantile(share, self.units - 1)


def tango_score(n: int, lost: int, gained: int, delta: float) -> float:
    """Score statistic of "the true difference p_gained − p_lost is `delta`"; falls as `delta` rises.

    T(δ) = (gained − lost − nδ) / sqrt(n (2q + δ(1 − δ))), where q is the maximum-likelihood p_lost under
    p_gained = q + δ: the larger root of 2n q² + (−gained − lost + (2n − gained + lost) δ) q − lost δ(1 − δ)
    = 0. Tango, Statistics in Medicine 17 (1998), 891–908. ±inf where the variance vanishes.
    """
    linear = -gained - lost + (2 * n - gained + lost) * delta
    constant = -lost * delta * (1.0 - delta)
    root = math.sqrt(max(linear * linear - 8.0 * n * constant, 0.0))
    # The larger root, without cancellation where `linear` is positive.
    if linear > 0.0:
        lost_rate = -2.0 * constant / (linear + root)
    else:
        lost_rate = (root - linear) / (4.0 * n)
    variance = n * (2.0 * lost_rate + delta * (1.0 - delta))
    distance = gained - lost - n * delta
    if variance <= 0.0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def tango_interval(n: int, lost: int, gained: int, *, z: float = Z_TWO_SIDED) -> tuple[float, float]:
    """The differences p_gained − p_lost that a score test at ±`z` does not reject, by bisection to 1e-12.

    Valid with no discordant item at all, where it is ±z²/(n + z²); the whole (−1, 1) for n = 0. Wald's
    interval, which is a single point there, covered 51% instead of 95% at n = 60 in our simulation. Counts
    are discrete, so the coverage of this one swings around its 95% as well, down to 93.2% in single cells of
    the grid in its test; the upper bound of a loss, which guards use, stays above 93.5% in all of them.
    """
    if n == 0:
        return -1.0, 1.0
    estimate = (gained - lost) / n

    def edge(outside: float, target: float) -> float:
        inside = estimate
        for _ in range(60):
            middle = (inside + outside) / 2.0
            if abs(tango_score(n, lost, gained, middle)) <= target:
                inside = middle
            else:
                outside = middle
            if abs(outside - inside) < 1e-12:
                break
        return (inside + outside) / 2.0

    return edge(-1.0, z), edge(1.0, z)


def wilson(right: int, n: int, *, z: float = Z_TWO_SIDED) -> tuple[float, float]:
    """Score interval of one proportion (Wilson 1927); (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    rate, square = right / n, z * z
    centre = (rate + square / (2 * n)) / (1 + square / n)
    half = z / (1 + square / n) * math.sqrt(rate * (1 - rate) / n + square / (4 * n * n))
    # At the ends one bound is the end itself; rounding must not put it outside.
    low = 0.0 if right == 0 else max(0.0, centre - half)
    high = 1.0 if right == n else min(1.0, centre + half)
    return low, high


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided p of McNemar's test: the discordant items are fair coins (binomial, p = ½).

    2 · P(X ≤ min(lost, gained)), at most 1; 1 where nothing is discordant. McNemar 1947; exact form as in
    Agresti, Categorical Data Analysis.
    """
    flips, fewer = lost + gained, min(lost, gained)
    if flips == 0:
        return 1.0
    # In integers until the end: binomials of thousands of flips overflow a float.
    tail, term = 0, 1
    for k in range(fewer + 1):
        tail += term
        term = term * (flips - k) // (k + 1)
    shift = max(tail.bit_length() - 60, 0)
    return min(1.0, math.ldexp(float(tail >> shift), shift + 1 - flips))


def student_quantile(share: float, freedom: int) -> float:
    """The value under which `share` of Student's t lies, by bisection of the distribution to 1e-12."""
    if share == 0.5:
        return 0.0
    if share < 0.5:
        return -student_quantile(1.0 - share, freedom)
    low, high = 0.0, 1.0
    while student_cdf(high, freedom) < share:
        low, high = high, 2.0 * high
    for _ in range(100):
        middle = (low + high) / 2.0
        low, high = (middle, high) if student_cdf(middle, freedom) < share else (low, middle)
        if high - low < 1e-12 * high:
            break
    return (low + high) / 2.0


def student_cdf(t: float, freedom: int) -> float:
    """P(T ≤ `t`) for Student's t: 1 − I(ν / (ν + t²); ν/2, ½) / 2 for t ≥ 0."""
    tail = _incomplete_beta(freedom / (freedom + t * t), freedom / 2.0, 0.5) / 2.0
    return 1.0 - tail if t >= 0.0 else tail


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I(x; a, b), by its continued fraction (Lentz's method).

    Abramowitz and Stegun, 26.5.8.
    """
    if x <= 0.0 or x >= 1.0:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1.0) / (a + b + 2.0):  # the fraction converges fast on the other side only
        return 1.0 - _incomplete_beta(1.0 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    tiny = 1e-300
    fraction, above, below = 1.0, 1.0, 0.0
    for step in range(1000):
        half = step // 2
        if step == 0:
            term = 1.0
        elif step % 2 == 0:
            term = half * (b - half) * x / ((a + step - 1.0) * (a + step))
        else:
            term = -(a + half) * (a + b + half) * x / ((a + step - 1.0) * (a + step))
        below = 1.0 / (_off_zero(1.0 + term * below, tiny))
        above = _off_zero(1.0 + term / above, tiny)
        fraction *= above * below
        if step and abs(1.0 - above * below) < 1e-15:
            break
    return front * (fraction - 1.0) / a


def _off_zero(value: float, tiny: float) -> float:
    return tiny if abs(value) < tiny else value


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p, in the order given (Holm 1979): family-wise error over all skills."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def needed_items(limit: float) -> int:
    """Items a forgetting guard needs before its verdict counts: 20 lost items must fit into the allowance.

    20 / `limit`, so 400 for 5 points and 1,000 for 2; never under 100 nor over 1,000. With fewer, a lucky
    draw of 60 items with no flip would pass a 5-point guard (its upper bound is 4.3 points).
    """
    return min(1000, max(100, math.ceil(20.0 / limit - 1e-9))) if limit > 0.0 else 1000


def loss_within(n: int, lost: int, gained: int, limit: float) -> bool:
    """Whether the one-sided upper 95% bound of the loss is at most `limit` (one score, no bisection)."""
    if n == 0 or lost - gained > limit * n:
        return False
    return tango_score(n, lost, gained, -limit) >= Z_ONE_SIDED


def probability_of_passing(n: int, true_loss: float, limit: float, *, gained_rate: float = 0.01) -> float:
    """Probability that a model which truly loses `true_loss` (net) passes "upper bound ≤ `limit`" on n items.

    Exact, without simulation: sum over the trinomial law of (lost, gained) with rates `true_loss` +
    `gained_rate` and `gained_rate`. For each `gained` the passing counts of `lost` are 0…k, found by
    bisection; terms further than nine standard deviations out are left away (< 1e-16).
    """
    lost_rate = true_loss + gained_rate
    if min(gained_rate, lost_rate) < 0.0 or lost_rate + gained_rate > 1.0:
        raise InputError(f"rates must be in 0…1: lost {lost_rate:g}, gained {gained_rate:g}")
    reach = 9.0 * math.sqrt(n * gained_rate * (1.0 - gained_rate)) + 20.0
    first = max(0, math.floor(n * gained_rate - reach))
    last = min(n, math.ceil(n * gained_rate + reach))
    total = 0.0
    for gained in range(first, last + 1):
        rest = n - gained
        passing = _most_passing(n, gained, limit)
        if passing >= 0:
            share = lost_rate / (1.0 - gained_rate) if gained_rate < 1.0 else 0.0
            total += _binomial(gained, n, gained_rate) * sum(
                _binomial(lost, rest, min(1.0, share)) for lost in range(min(passing, rest) + 1)
            )
    return min(1.0, total)


def _most_passing(n: int, gained: int, limit: float) -> int:
    """The largest `lost` that passes beside `gained`, −1 where none does."""
    low, high = -1, n - gained
    while low < high:
        middle = (low + high + 1) // 2
        if loss_within(n, middle, gained, limit):
            low = middle
        else:
            high = middle - 1
    return low


def _binomial(k: int, n: int, rate: float) -> float:
    """Binomial probability of k out of n."""
    if rate <= 0.0 or rate >= 1.0:
        return 1.0 if k == (n if rate >= 1.0 else 0) else 0.0
    log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(log + k * math.log(rate) + (n - k) * math.log1p(-rate))
