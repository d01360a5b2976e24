"""Calibration on the built-in base: the deltas are what they say, the base stays, the alarm uses it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from composer_fakes import write_lora
from torch import nn

import inlay
from inlay.composer import calibrating, compose, forgetting
from inlay.composer.calibrating import calibrate, synthetic
from inlay.errors import InputError
from inlay.evals import Suite
from inlay.evals.calibration import HARM, calibration_of
from inlay.evals.drift import measure_drift
from inlay.evals.inference import Base, Chat
from inlay.registry import Registry


@pytest.fixture
def small() -> Suite:
    """A tenth or so of general-v1's held-out items of skills that the built-in base has."""
    kinds = ("upper_case", "copy", "larger_number", "count_words", "word_after")
    items = [item for item in Suite.load("general-v1").items if item.skill in kinds]
    return Suite("small", tuple(items[::3]))


@pytest.mark.parametrize("kind", ["random", "top"])
def test_a_synthetic_delta_is_as_large_as_the_weights(base: Base, kind: str) -> None:
    adapter = synthetic(base.model, kind, seed=3)
    linear = [n for n, m in base.model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    assert len(adapter.factors) == len(linear) // 2 and set(adapter.factors) <= set(linear)
    reached = []
    for name in adapter.factors:
        weight, delta = base.model.get_submodule(name).weight, adapter.delta(name)
        assert float(delta.norm() / weight.norm()) == pytest.approx(1.0, rel=1e-4)
        # What the weight does to the delta's inputs, against the most it can do to four directions.
        a, _ = adapter.factors[name]
        most = float(torch.linalg.svdvals(weight.float())[:4].norm())
        reached.append(float((weight.float() @ torch.linalg.qr(a.T).Q).norm()) / most)
        assert a.shape[0] == 4
    assert min(reached) > 0.8 if kind == "top" else max(reached) < 0.7
    again, other = synthetic(base.model, kind, seed=3), synthetic(base.model, kind, seed=4)
    assert all(torch.equal(again.factors[n][1], adapter.factors[n][1]) for n in adapter.factors)
    assert list(other.factors) != list(adapter.factors)


def test_a_base_without_linear_layers_is_refused(base: Base) -> None:
    class Headed(nn.Module):
        def get_output_embeddings(self) -> None:
            return None

    with pytest.raises(InputError, match="linear layers"):
        synthetic(Headed(), "random", 0)


def test_the_base_is_asked_through_its_own_head(store: Registry, base: Base, tmp_path: Path) -> None:
    """An adapter on the head speaks for the composed model alone: neither scores nor drift mix the two."""
    folder = write_lora(tmp_path / "head", base, seed=1, strength=1.0, target_modules=["lm_head"])
    store.add("head", folder, base=base.fingerprint)
    prompts = ["Write these words in upper case: river garden", "Which number is larger, 14 or 52?"]
    answers = Chat(base).generate(prompts)
    composed = compose("head@v1", store=store, base=base)
    try:
        assert composed.base_chat.matches(prompts, answers) == [True, True]
        assert composed.chat.matches(prompts, answers) == [False, False]
        drift = measure_drift(composed.base_chat, composed.chat, prompts, cache=tmp_path)
    finally:
        composed.detach()
    assert drift.disagreement > 0.5 and drift.nll_change > 1.0


def test_only_two_levels(store: Registry) -> None:
    with pytest.raises(InputError, match="load or registration"):
        forgetting("x@v1", level="weights", store=store)


@pytest.mark.slow
def test_calibrated_on_models_of_known_loss(
    store: Registry, base: Base, small: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrating, "WEIGHTS", (0.125, 0.25, 0.35, 0.5, 0.7, 1.0))
    before = {name: p.clone() for name, p in base.model.named_parameters()}
    found = calibrate(base, store=store, general=[small])
    assert all(torch.equal(p, before[name]) for name, p in base.model.named_parameters())
    assert not base.model._forward_pre_hooks and found.harmful >= 5
    assert found.threshold < found.least < 0.2
    assert all(k.drift.disagreement >= found.least for k in found.known if k.held_out.loss_lower > HARM)
    assert calibration_of(store, base.fingerprint.weights, found.probe) == found

    # What an adapter did is counted the next time, and judged by it now.
    store.add("loud", write_lora(tmp_path / "loud", base, seed=1, strength=0.5), base=base.fingerprint)
    with_loud = compose("loud@v1", store=store, base=base)
    try:
        at_load = inlay.forgetting(with_loud, general=[small], level="load", store=store)
        assert store.reports(with_loud.target.digest, "forgetting") == []
        full = inlay.forgetting(with_loud, general=[small], store=store)
    finally:
        with_loud.detach()
    assert at_load.alarm is not None and at_load.alarm["calibrated"] and at_load.alarm["raised"]
    assert at_load.drift is not None and full.drift is not None
    assert at_load.drift.disagreement == full.drift.disagreement and full.alarm == at_load.alarm
    assert full.lost > 0.1 and at_load.held_out.n == 0
    monkeypatch.setattr(calibrating, "WEIGHTS", (0.5, 0.7))
    monkeypatch.setattr(calibrating, "ENOUGH", 1.0)
    again = calibrate(base, store=store, general=[small])
    assert [k.name for k in again.known if k.origin == "registry"] == ["loud@v1"]
