"""The drift study: its arithmetic by hand, its page against its points, and one short run of it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def study() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("drift_study", ROOT / "benchmarks" / "drift_study.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["drift_study"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["drift_study"]


def row(signal: float, lost: int, method: str = "lora") -> dict[str, Any]:
    return {"method": method, "trained": True, "n": 100, "lost": lost, "gained": 0, "signals": {"x": signal}}


def test_fits_and_ranks_by_hand(study: ModuleType) -> None:
    x, y = np.array([0.0, 1.0, 1.0, 2.0, 3.0]), np.array([0.0, 0.2, 0.4, 0.1, 0.9])
    # Pooled: at 1 the mean 0.3, which is above 0.1 at 2: both become (0.6 + 0.1) / 3.
    assert study.monotone(x, y, np.array([0.0, 1.0, 2.0, 2.5, 9.0])).tolist() == pytest.approx(
        [0.0, 0.7 / 3, 0.7 / 3, (0.7 / 3 + 0.9) / 2, 0.9]
    )
    assert study.r2_line(x, 2 * x + 1) == pytest.approx(1.0)
    assert study.r2_monotone(x, x**3) == pytest.approx(1.0)
    assert study.r2_line(x, x**3) < 0.9
    rising = [row(k / 10, k) for k in range(20)]
    assert study.ranked(rising, "x") == "1.00 [1.00, 1.00]"
    assert study.unseen([*rising, *(row(k / 10, 20 - k, "odd") for k in range(20))], "x") < 0


def test_the_page_says_what_the_points_say(study: ModuleType) -> None:
    points = study.read_points(study.POINTS)
    trained = [point for point in points if point["trained"]]
    page = (ROOT / "docs" / "drift.md").read_text(encoding="utf-8")
    assert len(trained) >= 50 and len({point["method"] for point in trained}) == len(study.METHODS)
    assert all(point["n"] == 540 for point in points) and len({p["name"] for p in points}) == len(points)
    for key, name in study.SHOWN:
        x, y = study.columns(trained, key)
        assert f"| {name} | {study.r2_line(x, y):.2f} | {study.r2_monotone(x, y):.2f} |" in page
    losses = sorted(map(study.lost, trained))
    assert losses[0] <= 0.0 and losses[-1] > 0.9


@pytest.mark.slow
def test_one_short_run(study: ModuleType, tmp_path: Path) -> None:
    bench = study.Bench.make(tmp_path)
    assert sum(bench.before) >= 530
    delta = study.train(bench, study.Run("a", "attention", ("order-slip",), 5e-3, 2, 4, 0))
    assert {name.split(".")[-1] for name, d in delta.items() if d.abs().sum() > 0} == {"q_proj", "v_proj"}
    point = bench.point(delta)
    assert point["n"] == 540 and set(point["signals"]) == {key for key, _ in study.SHOWN} | {
        "task/reverse_kl", "task/nll_change",
    }  # fmt: skip
    nothing = bench.point({name: d * 0 for name, d in delta.items()})
    assert nothing["lost"] == nothing["gained"] == 0 and not any(nothing["signals"].values())
