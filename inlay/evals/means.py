"""Paired statistics of graded metrics (token F1, ROUGE, bits per byte), in plain Python.

The unit is the item, or the cluster of items that share a template. Differences of graded scores are mostly
zeros with a few large ones, or skewed, which is where textbook intervals fail; see `PairedMeans.edge`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inlay.errors import InputError
from inlay.evals.statistics import MIN_CLUSTERS
from inlay.evals.student import student_cdf, student_quantile

if TYPE_CHECKING:
    from inlay.evals.metrics import Metric


@dataclass(frozen=True)
class PairedMeans:
    """Two models on the same `n` items with a graded metric: `before` and `after` are mean outcomes.

    `error` is the standard error of the mean difference and `skew` the skewness of the differences (positive
    is better), over `units` independent ones: items, or clusters of them where `clustered`. Everything is in
    the unit of the metric's outcomes (for perplexity: nats a token).
    """

    n: int
    before: float
    after: float
    error: float
    skew: float
    units: int
    clustered: bool = False
    higher_is_better: bool = True

    @classmethod
    def of(
        cls,
        base: Sequence[float],
        model: Sequence[float],
        clusters: Sequence[Hashable] = (),
        *,
        higher_is_better: bool = True,
        span: float | None = None,
    ) -> PairedMeans:
        """From two outcome lists in the same item order; `clusters` as for `Paired.of`.

        `span`: highest minus lowest value the metric can have; the largest difference seen where it has no
        bounds. InputError where the lengths differ, there is no item, or an outcome is not finite.
        """
        if len(base) != len(model) or not base or len(clusters) not in (0, len(base)):
            raise InputError(
                f"paired outcomes must cover the same items, got {len(base)} and {len(model)}",
                fix="score both on the same suite",
            )
        if not all(map(math.isfinite, (*base, *model))):
            raise InputError("graded outcomes must be finite numbers, got NaN or infinity")
        n, sign = len(base), 1.0 if higher_is_better else -1.0
        before, after = math.fsum(base) / n, math.fsum(model) / n
        delta = sign * (after - before)
        sums: dict[Hashable, list[float]] = {}
        for index, (was, now) in enumerate(zip(base, model, strict=True)):
            cluster = clusters[index] if clusters else None
            held = sums.setdefault(("item", index) if cluster is None else ("cluster", cluster), [0, 0.0])
            held[0] += 1
            held[1] += sign * (now - was)
        units = len(sums)
        differences = [net for _, net in sums.values()]
        # What each unit adds to the mean, on the scale of one item.
        parts = [(net - items * delta) * units / n for items, net in sums.values()]
        reach = max(map(abs, differences)) if span is None else span
        unseen = reach * differences.count(0.0) / units
        squares = math.fsum(part * part for part in parts) + 2.0 * unseen**2
        variance = squares / (units - 1) if units > 1 else 0.0
        cubes = math.fsum(part**3 for part in parts) / units
        return cls(
            n=n,
            before=before,
            after=after,
            error=math.sqrt(variance / units),
            skew=cubes / variance**1.5 if variance > 0.0 else 0.0,
            units=units,
            clustered=units < n,
            higher_is_better=higher_is_better,
        )

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
        return self.edge(0.025), self.edge(0.975)

    @property
    def loss_interval(self) -> tuple[float, float]:
        """Two-sided 95% interval of `loss`."""
        low, high = self.interval
        return -high, -low

    @property
    def loss_upper(self) -> float:
        """One-sided upper 95% bound of `loss`."""
        return -self.edge(0.05)

    @property
    def loss_lower(self) -> float:
        """One-sided lower 95% bound of `loss`."""
        return -self.edge(0.95)

    @property
    def gain_lower(self) -> float:
        """One-sided lower 95% bound of `delta`."""
        return self.edge(0.05)

    @property
    def p_value(self) -> float:
        """Two-sided p of "the mean did not change", by Student's t."""
        if self.units < 2:
            return 1.0
        if self.error == 0.0:
            return 1.0 if self.delta == 0.0 else 0.0
        return min(1.0, 2.0 * student_cdf(-abs(self.delta) / self.error, self.units - 1))

    @property
    def few_clusters(self) -> bool:
        """Whether items share clusters and these are fewer than `MIN_CLUSTERS`."""
        return self.clustered and self.units < MIN_CLUSTERS

    @property
    def method(self) -> str:
        """How interval and bounds were found, for a reader."""
        what = f"{self.units} clusters" if self.clustered else f"{self.units} items"
        said = f"Student's t and Hall's correction over {what}"
        return f"{said}, speaking for these clusters alone" if self.few_clusters else said

    def edge(self, share: float) -> float:
        """The one-sided bound of `delta` with `share` of the confidence below it; ±inf for a single unit.

        The wider of Student's t and t with Hall's correction for skewness (Annals of Statistics 20 (1992),
        681-694): g(T) = T + γ/√k (T²/3 + 1/6) + γ²/k T³/27 is close to symmetric, and its inverse is
        3√k/γ (cbrt(1 + γ/√k (x − γ/(6√k))) − 1). The standard error counts one more unit that got worse and
        one that got better by the metric's whole span, times the share of units that did not change at all:
        where nothing has changed yet, an interval without width would hold nothing.
        """
        if self.units < 2:
            return math.copysign(math.inf, share - 0.5)
        quantile = student_quantile(share, self.units - 1)
        plain = self.delta + self.error * quantile
        lean = self.skew / math.sqrt(self.units)
        if abs(lean) < 1e-9:
            return plain
        turned = 3.0 / lean * (math.cbrt(1.0 + lean * (-quantile - lean / 6.0)) - 1.0)
        corrected = self.delta - self.error * turned
        return max(plain, corrected) if share > 0.5 else min(plain, corrected)


def beyond_share(
    base: Sequence[bool | float],
    member: Sequence[bool | float],
    whole: Sequence[bool | float],
    share: float,
    clusters: Sequence[Hashable] = (),
    *,
    higher_is_better: bool = True,
    span: float | None = 1.0,
) -> PairedMeans:
    """Does `whole` keep `share` of what `member` gains over `base`? The mean of whole − (base + share ·
    (member − base)); its `gain_lower` must be at least 0 where that is to be shown."""
    asked = [before + share * (own - before) for before, own in zip(base, member, strict=True)]
    found = [float(outcome) for outcome in whole]
    return PairedMeans.of(asked, found, clusters, higher_is_better=higher_is_better, span=span)


def span_of(metrics: Iterable[Metric]) -> float | None:
    """Highest minus lowest outcome that these metrics can have; None where one of them has no bounds."""
    spans = [
        None if metric.lowest is None or metric.highest is None else metric.highest - metric.lowest
        for metric in metrics
    ]
    return max((span for span in spans if span is not None), default=None) if None not in spans else None
