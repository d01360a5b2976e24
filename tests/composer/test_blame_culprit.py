"""A planted culprit is found: the reduced case of benchmarks/blame.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from inlay.evals.inference import Base
from inlay.registry import Registry


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    file = Path(__file__).resolve().parents[2] / "benchmarks" / "blame.py"
    spec = importlib.util.spec_from_file_location("blame_benchmark", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_one_that_was_trained_to_forget_is_named(
    benchmark: ModuleType, store: Registry, base: Base, tmp_path: Path
) -> None:
    suite = benchmark.sampled(12)
    workshop = benchmark.Workshop(base, store, tmp_path, steps=30, prompts=128)
    culprit = workshop.culprit(0, "copy")
    harmless = [workshop.harmless(number) for number in (0, 10)]
    members = [(harmless[0], 0.9), (culprit, 0.7), (harmless[1], 1.0)]
    store.lock("acme", benchmark.stack(members))
    model = benchmark.compose("acme@v1", store=store, base=base)
    try:
        report = benchmark.blame(model, general=[suite])
    finally:
        model.detach()
    assert report.culprit is not None and report.culprit.name == culprit
    assert report.culprit.skills[0].name == "copy"
    assert report.culprit.skills[0].removed.loss > 0.5, "it forgot most of the skill"
    assert all(member.removed.loss < 0.05 for member in report.members if member.name != culprit)
