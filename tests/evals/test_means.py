"""Paired means of graded metrics, against scipy, numpy and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from inlay.errors import InputError
from inlay.evals.means import PairedMeans, span_of
from inlay.evals.metrics import metric
from inlay.evals.student import student_cdf, student_quantile


@pytest.mark.parametrize("freedom", [1, 2, 5, 19, 59, 999, 20_000])
def test_student_is_scipys(freedom: int) -> None:
    for share in (0.001, 0.025, 0.05, 0.5, 0.95, 0.975):
        expected = stats.t.ppf(share, freedom)
        assert student_quantile(share, freedom) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    for t in (-40.0, -2.0, -0.01, 0.0, 0.7, 3.0):
        assert student_cdf(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), rel=1e-8)


def test_without_skew_and_without_ties_it_is_the_paired_t_test() -> None:
    random = np.random.default_rng(1)
    half = random.normal(0.0, 0.1, 40)
    before = random.random(80)
    after = before - 0.02 + np.concatenate([half, -half])
    means = PairedMeans.of(before.tolist(), after.tolist(), span=1.0)
    test = stats.ttest_rel(after, before)
    interval = test.confidence_interval(0.95)
    assert means.delta == pytest.approx(-0.02) and means.skew == pytest.approx(0.0, abs=1e-9)
    assert means.interval == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert means.p_value == pytest.approx(test.pvalue, rel=1e-9)
    assert means.loss_upper == pytest.approx(-test.confidence_interval(0.9).low, abs=1e-9)
    assert (means.units, means.clustered) == (80, False)


def test_the_correction_is_the_inverse_of_halls_transformation() -> None:
    random = np.random.default_rng(2)
    loss = random.lognormal(-3.0, 1.0, 200)
    means = PairedMeans.of([0.0] * 200, (-loss).tolist())
    skew = ((-loss + loss.mean()) ** 3).mean() / loss.std(ddof=1) ** 3
    assert means.skew == pytest.approx(skew)
    bound, root = -means.loss_upper, math.sqrt(200)
    t = (means.delta - bound) / means.error
    turned = t + skew / root * (t**2 / 3 + 1 / 6) + skew**2 / 200 * t**3 / 27
    assert turned == pytest.approx(stats.t.ppf(0.95, 199), abs=1e-9)
    assert bound < means.delta - means.error * stats.t.ppf(0.95, 199)  # the long tail is on this side


def test_clusters_are_the_units() -> None:
    random = np.random.default_rng(3)
    sizes = random.integers(1, 9, 50)
    clusters = np.repeat(np.arange(50), sizes)
    before = random.random(len(clusters))
    after = before + np.repeat(random.normal(0, 0.2, 50), sizes) + random.normal(0, 0.01, len(clusters))
    means = PairedMeans.of(before.tolist(), after.tolist(), clusters.tolist())
    d = after - before
    nets = np.array([(d[clusters == k] - d.mean()).sum() for k in range(50)])
    assert means.error == pytest.approx(math.sqrt(50 / 49 * (nets**2).sum()) / len(d))
    assert (means.units, means.clustered, means.few_clusters) == (50, True, False)
    assert means.error > 2 * PairedMeans.of(before.tolist(), after.tolist()).error


def test_where_nothing_changed_the_interval_still_has_a_width() -> None:
    means = PairedMeans.of([0.5] * 100, [0.5] * 100, span=1.0)
    assert means.delta == 0.0 and means.p_value == 1.0
    assert 0.015 < means.loss_upper < 0.03  # the score interval of 100 items without a flip has 2.6
    assert means.interval[0] == pytest.approx(-means.interval[1])
    assert PairedMeans.of([0.5], [0.4]).loss_upper == math.inf


def test_lower_can_be_better() -> None:
    before, after = [3.0 + 0.01 * k for k in range(60)], [2.9 + 0.0101 * k for k in range(60)]
    means = PairedMeans.of(before, after, higher_is_better=False)
    assert means.delta == pytest.approx(sum(before) / 60 - sum(after) / 60) and means.gain_lower > 0.09
    mirrored = PairedMeans.of([-x for x in before], [-x for x in after])
    assert means.interval == pytest.approx(mirrored.interval)


def test_what_cannot_be_paired() -> None:
    with pytest.raises(InputError, match="same items, got 2 and 1"):
        PairedMeans.of([0.1, 0.2], [0.1])
    with pytest.raises(InputError, match="finite"):
        PairedMeans.of([0.1, math.nan], [0.1, 0.2])


def test_the_span_is_the_metrics_own() -> None:
    assert span_of([metric("token_f1")]) == 1.0
    assert span_of([metric("token_f1"), metric("perplexity")]) is None


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
def test_bounds_cover_where_most_items_do_not_change(rate: float) -> None:
    """Scores that fall on a share of the items: the bootstrap's percentile bound covers 57% at n = 100."""
    random = np.random.default_rng(4)
    covered = 0
    for _ in range(400):
        loss = np.where(random.random(100) < rate, random.random(100), 0.0)
        covered += PairedMeans.of([1.0] * 100, (1.0 - loss).tolist(), span=1.0).loss_upper >= rate / 2
    assert covered / 400 >= 0.935
