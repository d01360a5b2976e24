"""Paired statistics against independent oracles: scipy, brute force, simulation."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from statistics import NormalDist

import numpy as np
import pytest
from scipy import optimize, stats

from inlay.errors import InputError
from inlay.evals.statistics import (
    Z_ONE_SIDED,
    Z_TWO_SIDED,
    Paired,
    holm,
    loss_within,
    mcnemar,
    needed_items,
    probability_of_passing,
    reached,
    sign_flips,
    tango_interval,
    tango_score,
    wilson,
)


def oracle_score(n: int, lost: int, gained: int, delta: float) -> float:
    """Tango's statistic with the constrained maximum likelihood found numerically, not in closed form."""

    def minus_log_likelihood(q: float) -> float:
        terms = ((gained, q + delta), (lost, q), (n - gained - lost, 1 - 2 * q - delta))
        return -sum(count * math.log(max(rate, 1e-300)) for count, rate in terms if count)

    low, high = max(0.0, -delta), (1.0 - delta) / 2
    q = optimize.minimize_scalar(
        minus_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-13}
    ).x
    # A bounded search stays off its ends; the maximum may be exactly there.
    q = min((low, high, q), key=minus_log_likelihood)
    return (gained - lost - n * delta) / math.sqrt(n * (2 * q + delta - delta**2))


@pytest.mark.parametrize(
    ("n", "lost", "gained"),
    [(60, 0, 0), (60, 3, 0), (60, 0, 5), (60, 4, 2), (400, 20, 1), (400, 150, 3), (1000, 7, 7), (44, 43, 0)],
)
@pytest.mark.parametrize("z", [Z_ONE_SIDED, Z_TWO_SIDED])
def test_tango_solves_the_score_equation(n: int, lost: int, gained: int, z: float) -> None:
    low, high = tango_interval(n, lost, gained, z=z)
    assert -1 < low < (gained - lost) / n < high < 1
    assert oracle_score(n, lost, gained, low) == pytest.approx(z, abs=2e-4)
    assert oracle_score(n, lost, gained, high) == pytest.approx(-z, abs=2e-4)


def test_tango_score_equals_the_numeric_one_and_falls() -> None:
    for delta in (-0.4, -0.1, -0.02, 0.0, 0.03, 0.2):
        assert tango_score(200, 9, 4, delta) == pytest.approx(oracle_score(200, 9, 4, delta), abs=2e-4)
    scores = [tango_score(200, 9, 4, d) for d in np.linspace(-0.9, 0.9, 181)]
    assert all(a > b for a, b in itertools.pairwise(scores))


@pytest.mark.parametrize("n", [1, 60, 400])
def test_no_discordant_item_has_a_closed_form(n: int) -> None:
    low, high = tango_interval(n, 0, 0, z=Z_TWO_SIDED)
    edge = Z_TWO_SIDED**2 / (n + Z_TWO_SIDED**2)
    assert (low, high) == pytest.approx((-edge, edge), abs=1e-9)


def test_extremes_stay_inside() -> None:
    assert tango_interval(0, 0, 0) == (-1.0, 1.0)
    low, high = tango_interval(50, 50, 0)
    assert low == pytest.approx(-1.0) and -1 < high < -0.85
    low, high = tango_interval(50, 0, 50)
    assert high == pytest.approx(1.0) and 0.85 < low < 1


def coverage(n: int, lost_rate: float, gained_rate: float, random: np.random.Generator) -> np.ndarray:
    """Shares of 20,000 draws in which the truth is inside (the two-sided interval, the lower bound of the
    difference, which is the upper bound of the loss)."""
    rates = [lost_rate, gained_rate, 1 - lost_rate - gained_rate]
    draws, counts = np.unique(random.multinomial(n, rates, size=20_000), axis=0, return_counts=True)
    covered = np.zeros(2)
    for (lost, gained, _), count in zip(draws.tolist(), counts.tolist(), strict=True):
        score = tango_score(n, lost, gained, gained_rate - lost_rate)
        covered += np.array((abs(score) <= Z_TWO_SIDED, score <= Z_ONE_SIDED)) * count
    return covered / 20_000


def test_interval_covers() -> None:
    """Every bound on what was lost holds at least 93.5%; discreteness lets the two-sided interval dip below
    that in single cells (n = 400 with 1% lost: 93.2%), never below 93%, and it averages above 95%."""
    random = np.random.default_rng(20260304)
    losses = [(0.005, 0.0), (0.005, 0.005), (0.01, 0.0), (0.02, 0.0), (0.03, 0.02), (0.05, 0.0), (0.15, 0.05)]
    cells = [
        coverage(n, lost, gained, random)
        for n in (60, 100, 200, 400, 1000)
        for lost, gained in [*losses, (0.4, 0.01), (0.01, 0.4), (0.0, 0.9)]
    ]
    two_sided, one_sided = np.array(cells).T
    assert one_sided.min() >= 0.935
    assert two_sided.min() >= 0.93 and two_sided.mean() >= 0.95


def test_inside_the_interval_means_not_rejected() -> None:
    """The shortcut of the coverage test is the interval itself."""
    for lost, gained in ((0, 0), (5, 1), (40, 9)):
        low, high = tango_interval(300, lost, gained)
        for delta in np.linspace(-0.3, 0.2, 101):
            assert (low <= delta <= high) == (
                abs(tango_score(300, lost, gained, float(delta))) <= Z_TWO_SIDED
            )


def test_walds_interval_is_why() -> None:
    """At n = 60 and 1% lost, Wald's interval covers about half; this one holds."""
    n, rate = 60, 0.01
    wald = tango = 0.0
    for lost in range(8):
        weight = stats.binom.pmf(lost, n, rate)
        half = 1.96 * math.sqrt(max(lost / n - (lost / n) ** 2, 0) / n)
        wald += weight * (abs(-lost / n + rate) <= half)
        tango += weight * (tango_interval(n, lost, 0)[0] <= -rate <= tango_interval(n, lost, 0)[1])
    assert wald < 0.55 and tango > 0.95


@pytest.mark.parametrize(
    ("lost", "gained"), [(0, 0), (1, 0), (5, 5), (9, 2), (31, 60), (700, 560), (0, 1100)]
)
def test_mcnemar_is_scipys_binomial(lost: int, gained: int) -> None:
    expected = stats.binomtest(lost, lost + gained, 0.5).pvalue if lost + gained else 1.0
    assert mcnemar(lost, gained) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_very_many_flips_stays_a_number() -> None:
    assert mcnemar(6000, 5900) == pytest.approx(stats.binomtest(5900, 11900, 0.5).pvalue, rel=1e-9)
    assert mcnemar(20_000, 3) < 1e-300


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (3, 10), (380, 400), (1, 1)])
def test_wilson_is_scipys(right: int, n: int) -> None:
    expected = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_holm_against_its_definition() -> None:
    random = np.random.default_rng(3)
    for size in (1, 2, 7, 18):
        p = random.random(size) ** 3
        ordered = np.sort(p)
        # Adjusted p of the k-th smallest: the largest of (m − j) p_(j) over j ≤ k, at most 1.
        naive = [
            min(1.0, max((size - j) * ordered[j] for j in range(int(np.searchsorted(ordered, value)) + 1)))
            for value in p
        ]
        assert holm(list(p)) == pytest.approx(naive)
    assert holm([]) == []


def test_paired_counts_and_figures() -> None:
    base = [True] * 6 + [False] * 4
    model = [True] * 4 + [False] * 2 + [True] * 1 + [False] * 3
    pair = Paired.of(base, model)
    assert (pair.n, pair.lost, pair.gained, pair.both) == (10, 2, 1, 4)
    assert (pair.base_score, pair.model_score) == (0.6, 0.5)
    assert pair.delta == pytest.approx(-0.1) and pair.loss == pytest.approx(0.1)
    low, high = pair.loss_interval
    assert low < pair.loss_lower < pair.loss < pair.loss_upper < high
    assert pair.gain_lower == pytest.approx(-pair.loss_upper)
    assert pair + pair == Paired(20, 4, 2, 8)


def test_paired_refuses_what_cannot_be() -> None:
    with pytest.raises(InputError, match="same items, got 2 and 1"):
        Paired.of([True, False], [True])
    with pytest.raises(InputError, match="must fit into n=3"):
        Paired(3, 2, 1, 1)


def test_needed_items_is_400_for_five_points() -> None:
    assert [needed_items(x) for x in (0.05, 0.02, 0.1, 0.5, 0.01, 0.0)] == [400, 1000, 200, 100, 1000, 1000]


def test_passing_is_the_bound() -> None:
    for lost in range(40):
        assert loss_within(400, lost, 3, 0.05) == (Paired(400, lost, 3, 300).loss_upper <= 0.05)
    assert not loss_within(0, 0, 0, 0.05)


def test_probability_of_passing_is_the_sum_over_all_outcomes() -> None:
    n, loss, gained_rate, limit = 60, 0.02, 0.03, 0.1
    rates = [loss + gained_rate, gained_rate, 1 - loss - 2 * gained_rate]
    brute = sum(
        stats.multinomial.pmf([lost, gained, n - lost - gained], n, rates)
        for lost in range(n + 1)
        for gained in range(n + 1 - lost)
        if Paired(n, lost, gained, 0).loss_upper <= limit
    )
    assert probability_of_passing(n, loss, limit, gained_rate=gained_rate) == pytest.approx(brute, abs=1e-9)


def test_probability_of_passing_falls_with_the_loss_and_is_5_percent_at_the_limit() -> None:
    chances = [probability_of_passing(400, loss, 0.05) for loss in (0.0, 0.02, 0.035, 0.05, 0.08)]
    assert chances == sorted(chances, reverse=True)
    assert chances[0] > 0.99 and chances[3] < 0.07
    with pytest.raises(InputError, match="rates must be in 0…1"):
        probability_of_passing(400, 1.2, 0.05)


CLUSTERED = Paired.of(
    [True] * 60, [k % 6 != 0 or k > 30 for k in range(60)], [f"t{k // 3}" for k in range(60)]
)


def test_clusters_are_counted_by_what_happened_in_them() -> None:
    assert Paired(60, 6, 0, 54, clusters=((3, -1, 6), (3, 0, 14))) == CLUSTERED
    assert (CLUSTERED.units, CLUSTERED.few_clusters) == (20, False)
    alone = Paired.of([True, False, True], [False, True, True], ["a", None, "b"])
    assert alone.clusters == () and alone == Paired(3, 1, 1, 1)  # nobody shares a cluster
    mixed = CLUSTERED + Paired(10, 2, 1, 7)
    assert mixed.clusters == ((1, -1, 2), (1, 0, 7), (1, 1, 1), (3, -1, 6), (3, 0, 14))
    assert (mixed.n, mixed.units, mixed.delta) == (70, 30, pytest.approx(-7 / 70))
    with pytest.raises(InputError, match="in clusters 2"):
        Paired.of([True], [True], ["a", "b"])


def test_the_design_effect_is_the_ratio_of_the_two_variances() -> None:
    """Against numpy, item by item: with many flips the one unseen cluster hardly counts."""
    random = np.random.default_rng(5)
    clusters = np.repeat(np.arange(300), 7)
    whole = random.random(300) < 0.3
    model = ~np.repeat(whole, 7) & (random.random(2100) < 0.95)
    pair = Paired.of([True] * 2100, model.tolist(), clusters.tolist())
    d = model.astype(float) - 1.0
    nets = np.array([d[clusters == k].sum() for k in range(300)])
    variance = 300 / 299 * ((nets - 7 * d.mean()) ** 2).sum()
    assert pair.design_effect == pytest.approx(variance / ((d - d.mean()) ** 2).sum(), rel=0.01)
    assert pair.effective == pytest.approx(2100 / pair.design_effect)


def test_clusters_widen_and_never_narrow() -> None:
    together = Paired.of([True] * 400, [k >= 20 for k in range(400)], [k // 10 for k in range(400)])
    apart = Paired.of([True] * 400, [k % 20 != 0 for k in range(400)], [k // 10 for k in range(400)])
    plain = Paired(400, 20, 0, 380)
    assert together.loss_upper > apart.loss_upper > plain.loss_upper
    assert together.design_effect > 8 and 1.0 <= apart.design_effect < 4.0
    untouched = Paired.of([True] * 400, [True] * 400, [k // 10 for k in range(400)])
    assert untouched.design_effect == 10.0  # nobody knows yet whether flips come together
    assert untouched.loss_upper > Paired(400, 0, 0, 400).loss_upper
    assert "400 items in 40 clusters count as 40" in untouched.method
    few = Paired.of([True] * 60, [k > 3 for k in range(60)], [k // 20 for k in range(60)])
    assert few.few_clusters and few.method.endswith("3 clusters speak for these alone")
    assert few.interval == Paired(60, 4, 0, 56).interval and few.p_value == mcnemar(4, 0)


def test_sign_flips_against_every_combination_of_signs() -> None:
    random = np.random.default_rng(11)
    signs = np.array(list(itertools.product((-1, 1), repeat=11)))
    for _ in range(10):
        nets = random.integers(-4, 4, size=11)
        total = int(nets.sum())
        brute = (np.abs(signs @ nets) >= abs(total)).mean()
        assert sign_flips([(abs(int(x)), 1) for x in nets], total) == pytest.approx(brute, abs=1e-12)
    assert sign_flips([(1, 71)], 11) == pytest.approx(mcnemar(30, 41), rel=1e-9)
    assert sign_flips([], 0) == 1.0
    large = sign_flips([(2, 1500), (3, 1000)], 400)  # by the normal approximation
    assert large == pytest.approx(2 * stats.norm.sf(400 / math.sqrt(15_000)), rel=1e-9)
    assert CLUSTERED.p_value == pytest.approx(2 * 0.5**6)


def test_a_skill_is_reached_by_the_bases_outcomes() -> None:
    assert all(reached([True] * k + [False] * 9 * k) for k in range(1, 50))  # exactly a tenth
    assert not reached([True] + [False] * 10) and not reached([])


def test_what_guessing_gives_is_no_skill() -> None:
    right = [True] * 12 + [False] * 28
    assert reached(right) and reached(right, [0.0] * 40)
    assert not reached(right, [0.25] * 40)  # (12 - 10) / 30 is under a tenth
    assert reached([True] * 13 + [False] * 27, [0.25] * 40)  # (13 - 10) / 30
    assert not reached([True] * 19 + [False] * 21, [0.5] * 40)
    assert not reached([True], [1.0])


def test_quantiles() -> None:
    assert NormalDist().cdf(Z_TWO_SIDED) == pytest.approx(0.975)
    assert NormalDist().cdf(Z_ONE_SIDED) == pytest.approx(0.95)


def test_judging_imports_nothing_heavy() -> None:
    code = (
        "import sys, inlay.evals.guards; "
        "heavy = {'torch', 'numpy', 'scipy', 'rich', 'jinja2', 'safetensors'} & set(sys.modules); "
        "sys.exit(' '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
