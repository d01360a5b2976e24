"""How often intervals and bounds hold the truth, by simulation over a stated grid.

    python benchmarks/coverage.py            # the whole grid, about three minutes
    python benchmarks/coverage.py --draws 200

Asked of the bounds that guards use: at least 93.5% in every cell. `two` is the two-sided 95% interval,
`bound` the one-sided upper 95% bound of the loss. Our cells under 93.5% are listed.

Clustered flips: each cluster draws its own rates from a Dirichlet distribution around the cell's, so that two
of its items agree with the intraclass correlation rho; at rho = 1 a cluster flips as one.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from inlay.evals.means import PairedMeans
from inlay.evals.statistics import Z_ONE_SIDED, Z_TWO_SIDED, Paired, tango_score

ASKED = 0.935
SIZES = (60, 100, 200, 400, 1000)
RATES = (
    (0.005, 0.0), (0.005, 0.005), (0.01, 0.0), (0.01, 0.01), (0.02, 0.0), (0.03, 0.02), (0.05, 0.0),
    (0.05, 0.01), (0.15, 0.05), (0.4, 0.01), (0.01, 0.4),
)  # fmt: skip
"""(rate of right to wrong, rate of wrong to right)."""
CLUSTERS = ((20, 3), (20, 5), (20, 20), (40, 5), (40, 10), (80, 5), (50, 20), (100, 10), (200, 5))
"""(clusters, items in each)."""
CLUSTER_RATES = ((0.005, 0.0), (0.01, 0.01), (0.03, 0.0), (0.05, 0.01), (0.15, 0.05))
CORRELATIONS = (0.0, 0.1, 0.3, 0.6)
RESAMPLES = 1000


@dataclass(frozen=True)
class Cell:
    """Coverage of one method in one cell, as fractions of the draws."""

    method: str
    cell: str
    two: float
    bound: float


def independent(n: int, lost: float, gained: float, draws: int, random: np.random.Generator) -> list[Cell]:
    """Tango's and Wald's interval on independent items."""
    drawn = random.multinomial(n, [lost, gained, 1 - lost - gained], size=draws)
    counts, times = np.unique(drawn, axis=0, return_counts=True)
    truth = gained - lost
    tango, wald = np.zeros(2), np.zeros(2)
    for (right, won, _), many in zip(counts.tolist(), times.tolist(), strict=True):
        score = tango_score(n, right, won, truth)
        tango += np.array((abs(score) <= Z_TWO_SIDED, score <= Z_ONE_SIDED)) * many
        delta = (won - right) / n
        error = math.sqrt(max((won + right) / n - delta**2, 0.0) / n)
        off = delta - truth
        wald += np.array((abs(off) <= Z_TWO_SIDED * error, off <= Z_ONE_SIDED * error)) * many
    name = f"n={n}, {lost:g}/{gained:g}"
    return [
        Cell(method, name, float(two / draws), float(bound / draws))
        for method, (two, bound) in (("Tango", tango), ("Wald", wald))
    ]


def clustered(
    clusters: int, size: int, lost: float, gained: float, rho: float, draws: int, random: np.random.Generator
) -> list[Cell]:
    """Ours, Tango's without clusters and the percentile cluster bootstrap on items that share templates."""
    n, truth = clusters * size, gained - lost
    right, won = flips(clusters, size, lost, gained, rho, draws, random)
    nets = won - right
    hits = {"ours": np.zeros(2), "Tango, clusters ignored": np.zeros(2), "cluster bootstrap": np.zeros(2)}
    weights = random.multinomial(clusters, [1 / clusters] * clusters, size=RESAMPLES) / n
    for row in range(draws):
        kinds, times = np.unique(nets[row], return_counts=True)
        pair = Paired(
            n=n,
            lost=int(right[row].sum()),
            gained=int(won[row].sum()),
            both=0,
            clusters=tuple((size, int(net), int(many)) for net, many in zip(kinds, times, strict=True)),
        )
        low, high = pair.interval
        hits["ours"] += (low <= truth <= high, pair.loss_upper >= -truth)
        score = tango_score(n, pair.lost, pair.gained, truth)
        hits["Tango, clusters ignored"] += (abs(score) <= Z_TWO_SIDED, score <= Z_ONE_SIDED)
        low, one, high = np.quantile(weights @ nets[row], (0.025, 0.05, 0.975))
        hits["cluster bootstrap"] += (low <= truth + 1e-12 and truth - 1e-12 <= high, one <= truth + 1e-12)
    name = f"{clusters} clusters of {size}, {lost:g}/{gained:g}, rho {rho:g}"
    return [Cell(m, name, float(two / draws), float(one / draws)) for m, (two, one) in hits.items()]


def flips(
    clusters: int, size: int, lost: float, gained: float, rho: float, draws: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(right turned wrong, wrong turned right) of each cluster, each (draws, clusters)."""
    rates = np.array([lost, gained, 1.0 - lost - gained])
    shape = (draws, clusters)
    if rho <= 0.0:
        own = np.broadcast_to(rates, (*shape, 3))
    else:
        weight = random.gamma(np.maximum(rates, 1e-12) * (1.0 / rho - 1.0), size=(*shape, 3))
        total = weight.sum(-1, keepdims=True)
        whole = np.eye(3)[random.choice(3, size=shape, p=rates)]  # where a float cannot tell the rates apart
        own = np.where(total > 0.0, weight / np.where(total > 0.0, total, 1.0), whole)
    right = random.binomial(size, np.clip(own[..., 0], 0.0, 1.0))
    rest = np.clip(1.0 - own[..., 0], 1e-15, 1.0)
    return right, random.binomial(size - right, np.clip(own[..., 1] / rest, 0.0, 1.0))


def differences(
    n: int, draws: int, random: np.random.Generator
) -> Iterator[tuple[str, np.ndarray, float, float | None]]:
    """(name, (draws, n) differences after minus before, their true mean, the metric's span)."""
    yield "normal", random.normal(-0.01, 0.1, (draws, n)), -0.01, None
    for rate in (0.01, 0.05, 0.3):
        fell = np.where(random.random((draws, n)) < rate, -random.random((draws, n)), 0.0)
        yield f"{rate:g} of items fall by up to 1", fell, -rate / 2, 1.0
    sign = random.choice([-1.0, 1.0], size=(draws, n))
    moved = np.where(random.random((draws, n)) < 0.1, sign * random.beta(2, 2, (draws, n)), 0.0)
    yield "0.1 of items move either way", moved, 0.0, 1.0
    yield "log-normal losses", -random.lognormal(-3.0, 1.0, (draws, n)), -math.exp(-2.5), None


def graded(n: int, draws: int, random: np.random.Generator) -> list[Cell]:
    """Ours, Student's t, and the percentile bootstrap on graded differences of independent items."""
    from scipy import stats

    quantiles = stats.t.ppf((0.975, 0.95), n - 1)
    weights = random.multinomial(n, [1 / n] * n, size=RESAMPLES) / n
    cells = []
    for name, rows, truth, span in differences(n, draws, random):
        hits = {"ours": np.zeros(2), "Student's t": np.zeros(2), "percentile bootstrap": np.zeros(2)}
        for row in rows:
            means = PairedMeans.of([0.0] * n, row.tolist(), span=span)
            low, high = means.interval
            hits["ours"] += (low <= truth <= high, means.loss_upper >= -truth)
            error = row.std(ddof=1) / math.sqrt(n)
            off = row.mean() - truth
            hits["Student's t"] += (abs(off) <= quantiles[0] * error, off <= quantiles[1] * error)
            low, one, high = np.quantile(weights @ row, (0.025, 0.05, 0.975))
            hits["percentile bootstrap"] += (low <= truth <= high, one <= truth)
        cells += [Cell(m, f"n={n}, {name}", float(a / draws), float(b / draws)) for m, (a, b) in hits.items()]
    return cells


def table(title: str, cells: Sequence[Cell]) -> None:
    """Per method the mean and the worst cell; then the cells of ours (Tango on independent items) that fall
    short of what is asked."""
    print(f"\n{title}\n")
    print("| method | cells | two, mean | two, worst | bound, mean | bound, worst | bounds under 93.5% |")
    print("|---|---|---|---|---|---|---|")
    for method in dict.fromkeys(cell.method for cell in cells):
        mine = [cell for cell in cells if cell.method == method]
        two, bound = [cell.two for cell in mine], [cell.bound for cell in mine]
        figures = (np.mean(two), min(two), np.mean(bound), min(bound))
        short = sum(value < ASKED for value in bound)
        print(f"| {method} | {len(mine)} | {' | '.join(f'{x:.1%}' for x in figures)} | {short} |")
    method = cells[0].method
    short_cells = sorted((c for c in cells if c.method == method and c.bound < ASKED), key=lambda c: c.bound)
    if short_cells:
        print(f"\nBounds of {method} under 93.5%:")
    for cell in short_cells:
        print(f"- {cell.cell}: {cell.bound:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--draws", type=int, default=1000, help="draws in a cell; 20 times as many without clusters"
    )
    parser.add_argument("--seed", type=int, default=20260304)
    given = parser.parse_args()
    random = np.random.default_rng(given.seed)
    print(f"{given.draws} draws in a cell ({20 * given.draws} on independent items), seed {given.seed}")
    table(
        "Independent items, right or wrong",
        [
            c
            for n in SIZES
            for lost, won in RATES
            for c in independent(n, lost, won, 20 * given.draws, random)
        ],
    )
    table(
        "Items that share templates, right or wrong",
        [
            cell
            for clusters, size in CLUSTERS
            for lost, won in CLUSTER_RATES
            for rho in CORRELATIONS
            for cell in clustered(clusters, size, lost, won, rho, given.draws, random)
        ],
    )
    table("Graded outcomes", [cell for n in SIZES for cell in graded(n, given.draws, random)])


if __name__ == "__main__":
    main()
