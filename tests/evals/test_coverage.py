"""A few cells of benchmarks/coverage.py: our bounds hold the truth, and others that were tried do not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

DRAWS = 300
"""In these, 93.5% has a standard error of 1.4%; the cells are those in which the others fail most."""


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    """benchmarks/coverage.py, by its path: a package of that name may be installed."""
    path = Path(__file__).parents[2] / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_benchmark", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("clusters", "size", "lost", "gained", "rho"),
    [
        (20, 20, 0.03, 0.0, 0.6),
        (40, 10, 0.05, 0.01, 0.3),
        (200, 5, 0.15, 0.05, 0.3),
        (80, 5, 0.005, 0.0, 0.0),
    ],
)
def test_clusters(
    coverage: ModuleType, clusters: int, size: int, lost: float, gained: float, rho: float
) -> None:
    random = np.random.default_rng(7)
    cells = {c.method: c for c in coverage.clustered(clusters, size, lost, gained, rho, DRAWS, random)}
    assert cells["ours"].bound >= 0.935 and cells["ours"].two >= 0.935
    if rho >= 0.3:
        assert cells["Tango, clusters ignored"].bound < 0.9
    if lost < 0.04:  # it sees no more than what has flipped
        assert cells["cluster bootstrap"].bound < 0.9


def test_flips_of_a_cluster_agree_as_told(coverage: ModuleType) -> None:
    """The intraclass correlation of the simulation, from the variance of the clusters' sums."""
    for rho in (0.0, 0.3):
        right, _ = coverage.flips(2000, 10, 0.2, 0.1, rho, 1, np.random.default_rng(8))
        variance = right.var() / (10 * 0.2 * 0.8)
        assert (variance - 1) / 9 == pytest.approx(rho, abs=0.04)


def test_graded(coverage: ModuleType) -> None:
    cells = coverage.graded(100, 200, np.random.default_rng(9))
    ours = {c.cell: c.bound for c in cells if c.method == "ours"}
    boot = {c.cell: c.bound for c in cells if c.method == "percentile bootstrap"}
    assert min(value for cell, value in ours.items() if "log-normal" not in cell) >= 0.935
    assert ours["n=100, log-normal losses"] >= 0.9
    assert boot["n=100, 0.01 of items fall by up to 1"] < 0.75
