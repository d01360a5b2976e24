"""Points and reports of a choice by measured result, without a model."""

from __future__ import annotations

from typing import Any

from inlay.evals.forgetting import Target
from inlay.evals.frontier import FrontierReport, Point
from inlay.evals.statistics import Paired


def point(name: str, learned: int, lost: int, kind: str = "stack", n: int = 100, whole: bool = True) -> Point:
    """Learned and lost in items of `n`, from a base that knows nothing of the target and all else."""
    targets = (Target("t", Paired(n, 0, learned, 0)),)
    return Point(name, kind, Paired(n, lost, 0, n - lost), targets, whole=whole)


def report(**changes: Any) -> FrontierReport:
    points = (
        point("base", 0, 0, "base"),
        point("route by probe", 97, 1, "route"),
        point("a alone", 50, 0, "alone"),
        *(point(f"stack at {i}", 30 + i, 10 + 3 * i) for i in range(6)),
        point("ties at 1", 5, 2, "merge", n=20, whole=False),
    )
    held = {
        "subject": "acme@v1",
        "base_weights": "sha256:0",
        "adapters": {"a@v1": "sha256:1", "b@v1": "sha256:2"},
        "general": ("g",),
        "targets": {"t": "a"},
        "items": {"t": (100, 100)},
        "forget": 0.05,
        "retention": 0.95,
        "seed": 0,
        "points": points,
        "choice": "route by probe",
        "passed": True,
        "tested": point("route by probe", 96, 1, "route"),
        "explanation": ("A route by probe wins.", "The best static composition does not."),
        "notes": ("Not tried for want of time: cat at 1.",),
        "recipe": "compose:\n  route:\n    by: probe\n",
    }
    return FrontierReport(**{**held, **changes})
