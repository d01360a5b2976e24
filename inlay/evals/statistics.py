"""Paired statistics in plain Python: a promote must judge in milliseconds.

Two models answered the same items, so everything here is paired. For right-or-wrong outcomes what matters is
in the *discordant* items: `lost` (the base was right, the model is wrong) and `gained` (the other way round).
An item both got right or both got wrong says how good they are, and nothing about the difference.

Intervals that a report shows are two-sided 95%. Bounds that a guard uses are one-sided 95%: the interval's
ends at 90%. Proportions are fractions of the items, not percent; graded figures are in the metric's unit.
`benchmarks/coverage.py` says how often each of them holds the truth.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from inlay.errors import InputError
from inlay.evals.student import student_quantile

Z_TWO_SIDED = NormalDist().inv_cdf(0.975)  # 1.9600: both ends of a 95% interval
Z_ONE_SIDED = NormalDist().inv_cdf(0.95)  # 1.6449: one 95% bound
MIN_CLUSTERS = 20
"""From so many clusters on a figure speaks for others made like them. With fewer it speaks for these alone:
their items are then counted as independent, and guards that ask about more do not take it."""
REACHED = 0.10
"""A general skill counts where the base answers at least this share of its items beyond guessing: what the
base cannot do cannot be forgotten, and must not dilute what was. Of the outcomes only the base's are looked
at."""


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
    def of(
        cls,
        base: Sequence[bool | float],
        model: Sequence[bool | float],
        clusters: Sequence[Hashable] = (),
    ) -> Paired:
        """Counts from two outcome lists in the same item order; InputError where their lengths differ.

        `clusters` says for each item which cluster it is of, None for an item of its own; empty where all
        items are independent.
        """
        _check_lengths(len(base), len(model), len(clusters))
        pairs = [(bool(before), bool(after)) for before, after in zip(base, model, strict=True)]
        return cls(
            n=len(pairs),
            lost=pairs.count((True, False)),
            gained=pairs.count((False, True)),
            both=pairs.count((True, True)),
            clusters=_kinds([after - before for before, after in pairs], clusters),
        )

    def __add__(self, other: Paired) -> Paired:
        """The counts of two disjoint sets of items, pooled; no cluster may have items in both."""
        kinds: tuple[tuple[int, int, int], ...] = ()
        if self.clusters or other.clusters:
            counts: Counter[tuple[int, int]] = Counter()
            for items, net, times in (*self._kinds, *other._kinds):
                counts[items, net] += times
            kinds = tuple((items, net, times) for (items, net), times in sorted(counts.items()) if times)
        return Paired(
            n=self.n + other.n,
            lost=self.lost + other.lost,
            gained=self.gained + other.gained,
            both=self.both + other.both,
            clusters=kinds,
        )

    @property
    def _kinds(self) -> tuple[tuple[int, int, int], ...]:
        """`clusters`, with each independent item as a cluster of its own."""
        rest = self.n - self.lost - self.gained
        return self.clusters or ((1, -1, self.lost), (1, 0, rest), (1, 1, self.gained))

    @property
    def units(self) -> int:
        """How many independent units there are: clusters, or items where none share one."""
        return sum(times for _, _, times in self.clusters) if self.clusters else self.n

    @property
    def few_clusters(self) -> bool:
        """Whether items share clusters and these are fewer than `MIN_CLUSTERS`."""
        return bool(self.clusters) and self.units < MIN_CLUSTERS

    @property
    def design_effect(self) -> float:
        """How many items of these clusters tell as much as one independent item, at least 1.

        The variance of the difference over clusters, K/(K−1) Σ (net_k − items_k delta)², over that of
        independent items, Σ (d_i − delta)², both as if one more cluster (of the mean size of the cluster that
        an item is in) had flipped as a whole: where little has flipped, nobody knows yet that flips would not
        come together. As if only three of its items had, the bound covered 69% in our worst cell; so, 95%.
        """
        count = self.units
        if not self.clusters or self.few_clusters:
            return 1.0
        spread = sum(times * (net - items * self.delta) ** 2 for items, net, times in self.clusters)
        alone = self.lost + self.gained - self.n * self.delta**2
        unseen = sum(times * items**2 for items, _, times in self.clusters) / self.n
        return max(1.0, (spread * count / (count - 1) + unseen**2) / (alone + unseen))

    @property
    def effective(self) -> float:
        """How many independent items would tell as much: n / `design_effect`."""
        return self.n / self.design_effect

    @property
    def method(self) -> str:
        """How interval and bounds were found, for a reader."""
        if not self.clusters:
            return "Tango's score interval"
        if self.few_clusters:
            return f"Tango's score interval; {self.units} clusters speak for these alone"
        worth = f"{self.n} items in {self.units} clusters count as {self.effective:.0f}"
        return f"Tango's score interval; {worth}"

    def _interval(self, share: float) -> tuple[float, float]:
        """Score interval of `delta` whose ends are one-sided bounds at `share`, on effective items.

        Korn and Graubard's effective sample size (Survey Methodology 24 (1998), 193–201): n over the design
        effect, times (z / t)² for the design effect's being estimated from K − 1 degrees of freedom.
        """
        z = NormalDist().inv_cdf(share)
        if not self.clusters or self.few_clusters:
            return tango_interval(self.n, self.lost, self.gained, z=z)
        shrink = self.design_effect * (student_quantile(share, self.units - 1) / z) ** 2
        return tango_interval(self.n / shrink, self.lost / shrink, self.gained / shrink, z=z)

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
        return self._interval(0.975)

    @property
    def loss_interval(self) -> tuple[float, float]:
        """Two-sided 95% score interval of `loss`."""
        low, high = self.interval
        return -high, -low

    @property
    def loss_upper(self) -> float:
        """One-sided upper 95% bound of `loss`: what a guard holds against the allowance."""
        return -self._interval(0.95)[0]

    @property
    def loss_lower(self) -> float:
        """One-sided lower 95% bound of `loss`: at least this much is gone."""
        return -self._interval(0.95)[1]

    @property
    def gain_lower(self) -> float:
        """One-sided lower 95% bound of `delta`: at least this much was gained."""
        return self._interval(0.95)[0]

    @property
    def p_value(self) -> float:
        """Two-sided p of "nothing changed": exact McNemar, or the same test with clusters for items."""
        if not self.clusters or self.few_clusters:
            return mcnemar(self.lost, self.gained)
        return sign_flips([(abs(net), times) for _, net, times in self.clusters], self.gained - self.lost)


def tango_score(n: float, lost: float, gained: float, delta: float) -> float:
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


def tango_interval(n: float, lost: float, gained: float, *, z: float = Z_TWO_SIDED) -> tuple[float, float]:
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


def wilson(right: float, n: float, *, z: float = Z_TWO_SIDED) -> tuple[float, float]:
    """Score interval of one proportion (Wilson 1927); (0, 1) for n = 0. Effective counts may be fractions."""
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


def sign_flips(nets: Iterable[tuple[int, int]], total: int) -> float:
    """Two-sided p of "each cluster's net might as well have the other sign": exact, by convolution.

    `nets`: (size of a cluster's net, how many clusters have it); `total`: the sum of the nets as observed.
    P(|Σ ± net_k| ≥ |total|), which for clusters of one item is McNemar's exact test. Past `_EXACT_STEPS`
    steps the normal approximation of the same sum.
    """
    counts = [(size, times) for size, times in nets if size and times]
    reach = sum(size * times for size, times in counts)
    if total == 0 or not counts:
        return 1.0
    if reach * sum(times for _, times in counts) > _EXACT_STEPS:
        spread = math.sqrt(sum(size * size * times for size, times in counts))
        return math.erfc(abs(total) / spread / math.sqrt(2.0))
    # chances[k]: the probability that the sum so far is 2k − what all have together so far.
    chances = [1.0]
    for size, times in counts:
        for _ in range(times):
            longer = [chance / 2.0 for chance in chances] + [0.0] * size
            for at, chance in enumerate(chances):
                longer[at + size] += chance / 2.0
            chances = longer
    return min(1.0, 2.0 * sum(chances[(reach + abs(total)) // 2 :]))


_EXACT_STEPS = 2_000_000


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p, in the order given (Holm 1979): family-wise error over all skills."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def reached(base: Sequence[bool | float], guesses: Sequence[float] = ()) -> bool:
    """Whether outcomes of the base on one skill's items make it a skill of this base: at least `REACHED`.

    `guesses`: each item's chance of being right by guessing (1/choices; none given: 0). They are taken off,
    as in the correction of a test's score for guessing: (right − Σ guesses) / (n − Σ guesses).
    """
    expected = sum(guesses)
    asked = REACHED * (len(base) - expected)
    return sum(map(bool, base)) - expected >= asked - 1e-9 and asked > 0.0


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


def _kinds(nets: Sequence[int], clusters: Sequence[Hashable]) -> tuple[tuple[int, int, int], ...]:
    """The clusters counted by (items, net); nothing where no two items share one."""
    items: Counter[Hashable] = Counter(cluster for cluster in clusters if cluster is not None)
    if not items or max(items.values()) < 2:
        return ()
    sums: Counter[Hashable] = Counter()
    alone = [(1, net) for net, cluster in zip(nets, clusters, strict=True) if cluster is None]
    for net, cluster in zip(nets, clusters, strict=True):
        if cluster is not None:
            sums[cluster] += net
    kinds = Counter([*alone, *((size, sums[cluster]) for cluster, size in items.items())])
    return tuple((size, net, times) for (size, net), times in sorted(kinds.items()))


def _check_lengths(base: int, model: int, clusters: int) -> None:
    if base != model or clusters not in (0, base):
        said = f"{base} and {model}" if base != model else f"{base}, in clusters {clusters}"
        raise InputError(
            f"paired outcomes must cover the same items, got {said}", fix="score both on the same suite"
        )


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
