"""Full fine-tuning: a base left bit for bit, and the adapter in what it made of a copy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_runs import ANSWERS, PROMPTS, fitted, tickets

import inlay
from inlay.composer.factors import read_adapter
from inlay.errors import InputError
from inlay.evals import Suite
from inlay.evals.inference import Base, Chat
from inlay.registry import Registry
from inlay.trainers.anchor import Anchor
from inlay.trainers.extraction import copy_of, extracted
from inlay.trainers.fit import Fitted, release, save_adapter

FULL: dict[str, Any] = {"max_steps": 3, "learning_rate": 1e-3}


def deltas(made: Fitted, folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(module -> W' − W of the trained model, module -> B A of what is saved), (out, in), float64."""
    save_adapter(made, folder)
    adapter = read_adapter(folder, base=made.base.fingerprint.path)
    assert made.whole is not None
    after = dict(made.whole.named_parameters(remove_duplicate=False))
    trained, held = {}, {}
    for key, weight in base_weights(made.base).items():
        module = key.removesuffix(".weight")
        if module in adapter.factors:
            change = (after[key].detach() - weight).double().numpy()
            trained[module] = change.T if module in adapter.embeddings else change
            held[module] = adapter.delta(module).double().numpy()
    return trained, held


def base_weights(base: Base) -> dict[str, torch.Tensor]:
    """The base's weights under its own names, whatever adapter is on it."""
    named = dict(base.model.named_parameters(remove_duplicate=False))
    return {name.replace(".base_layer.", "."): p.detach() for name, p in named.items() if "lora" not in name}


def test_at_full_rank_the_adapter_is_the_difference(base: Base, tmp_path: Path) -> None:
    made = fitted(base, "full", rank=192, **FULL)
    try:
        trained, held = deltas(made, tmp_path)
        assert len(trained) == 30  # 4 layers of 7, the embedding and the head that is tied to it
        for module, change in trained.items():
            assert np.abs(change).max() > 1e-4
            np.testing.assert_allclose(held[module], change, atol=1e-5)
        record = made.method["extraction"]
        assert record["residual"] < 1e-5
    finally:
        release(made)


def test_at_a_lower_rank_it_is_the_truncated_svd(base: Base, tmp_path: Path) -> None:
    made = fitted(base, "full", rank=3, **FULL)
    try:
        trained, held = deltas(made, tmp_path)
        record = made.method["extraction"]
        lost = whole = 0.0
        for module, change in trained.items():
            u, s, vt = np.linalg.svd(change, full_matrices=False)
            np.testing.assert_allclose(held[module], (u[:, :3] * s[:3]) @ vt[:3], atol=1e-5)
            residual = math.sqrt((s[3:] ** 2).sum() / (s**2).sum())
            assert record["residual_of"][module] == pytest.approx(residual, rel=1e-4)
            lost, whole = lost + (s[3:] ** 2).sum(), whole + (s**2).sum()
        assert record["residual"] == pytest.approx(math.sqrt(lost / whole), rel=1e-4)
        assert record["rank"] == 3
    finally:
        release(made)


def test_what_no_matrix_holds_is_listed(base: Base) -> None:
    made = fitted(base, "full", rank=192, **FULL)
    assert made.whole is not None
    before, after = base_weights(base), dict(made.whole.named_parameters(remove_duplicate=False))
    changes = {key: (after[key].detach() - p).double() for key, p in before.items()}
    record = made.method["extraction"]
    release(made)
    norms = {key for key in changes if "norm" in key}
    assert set(record["left_out"]) == norms and len(norms) == 9
    for key in norms:
        relative = float(changes[key].norm() / before[key].double().norm())
        assert record["left_out"][key] == pytest.approx(relative, rel=1e-5)
    squares = {key: float(change.square().sum()) for key, change in changes.items()}
    missing = math.sqrt(sum(squares[key] for key in norms) / sum(squares.values()))
    assert record["missing"] == pytest.approx(missing, rel=1e-3)


def test_the_base_is_untouched_and_teaches(base: Base) -> None:
    """While a copy is trained the anchor's teacher is the base: the divergence from it is 0 at the start and
    grows, and the base has its bits afterwards (the fixture compares them all)."""
    before = {key: p.clone() for key, p in base_weights(base).items()}
    teacher = copy_of(base)
    made = fitted(base, "full", **FULL)
    assert all(torch.equal(p, before[key]) for key, p in base_weights(base).items())
    probe = Anchor(
        base.tokenizer, PROMPTS, ANSWERS, rows=2, prompt_weight=1.0, seed=0, device="cpu", teacher=teacher
    )
    with torch.no_grad():
        moved = probe.kl(made.whole)
    release(made)
    with torch.no_grad():
        still = probe.kl(base.model)
    assert made.whole is None
    assert moved is not None and float(moved) > 1e-3
    assert still is not None and float(still) == pytest.approx(0.0, abs=1e-6)


def test_the_anchor_holds_the_whole_model(base: Base) -> None:
    def drift(kl: float) -> float:
        made = fitted(base, "full", kl=kl, max_steps=8, learning_rate=3e-3)
        release(made)
        return made.curve[-1]["kl"]

    assert drift(20.0) < 0.5 * drift(1e-6)


def test_the_whole_model_can_be_asked_beside_the_adapter(base: Base, store: Registry, tmp_path: Path) -> None:
    made = fitted(base, "full", rank=192, **FULL)
    prompts = [row["instruction"] + "\n" + row["input"] for row in tickets(4)]
    answers = [row["output"] for row in tickets(4)]
    whole = [nats for nats, _ in Chat(base, model=made.whole).likelihoods(prompts, answers)]
    adapter = [nats for nats, _ in Chat(base, model=made.model).likelihoods(prompts, answers)]
    save_adapter(made, tmp_path / "adapter")
    release(made)
    bare = [nats for nats, _ in Chat(base).likelihoods(prompts, answers)]
    # All but the norms is in the adapter.
    assert sum(abs(w - a) for w, a in zip(whole, adapter, strict=True)) < 0.2 * sum(
        abs(w - b) for w, b in zip(whole, bare, strict=True)
    )
    store.add("whole", tmp_path / "adapter", base=base.fingerprint)
    model = inlay.compose("whole@v1", store=store, base=base)
    try:
        composed = [nats for nats, _ in model.chat.likelihoods(prompts, answers)]
    finally:
        model.detach()
    assert composed == pytest.approx(adapter, abs=1e-3)


def test_a_run_says_what_the_whole_model_scores(base: Base, store: Registry) -> None:
    target = Suite.of_rows("tickets-test", tickets(20, "test"))
    small = Suite("small", Suite.load("general-v1").items[::80])
    result = inlay.train(
        base, tickets(24), name="tickets", store=store, method="full", general=[small], target=[target],
        general_prompts=PROMPTS, max_steps=3, learning_rate=1e-3, rank=4,
    )  # fmt: skip
    scores = result.run["method"]["whole"]
    assert set(scores) == {"tickets-test", "small"} and 0.0 <= scores["small"] <= 1.0
    assert f"{100 * scores['small']:.1f}% on small" in result.verdict


def test_training_that_changes_no_matrix_gives_no_adapter(base: Base) -> None:
    with pytest.raises(InputError, match="changed no weight matrix"):
        extracted(base, copy_of(base), 4)
