"""An orthogonal start: exact, refused where there is no room, and held by a penalty that a loop confirms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import inlay
from inlay.builtin.tasks import rows
from inlay.composer.factors import Adapter, read_adapter
from inlay.errors import BaseMismatch, InputError
from inlay.evals import Suite
from inlay.evals.inference import Base, base_answers
from inlay.registry import Registry
from inlay.trainers.data import read_dataset
from inlay.trainers.fit import fit, release
from inlay.trainers.orthogonal import Penalty, others_of, row_space, stacked, start
from inlay.trainers.settings import Settings

Q_PROJ = "model.layers.0.self_attn.q_proj"


def adapter(*ranks: int, width: int, module: str = Q_PROJ, seed: int = 0) -> list[Adapter]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Adapter(
            f"a{i}@v1", {module: (torch.randn(rank, width, generator=generator), torch.randn(width, rank))}
        )
        for i, rank in enumerate(ranks)
    ]


@pytest.fixture
def fresh(base: Base) -> Any:
    torch.manual_seed(0)
    model = get_peft_model(base.model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    yield model
    model.unload()
    base.model.eval()


def a_of(model: Any, module: str = Q_PROJ) -> torch.Tensor:
    return model.get_submodule(f"base_model.model.{module}").lora_A["default"].weight


def test_start_is_orthogonal_to_every_row_of_the_others(base: Base, fresh: Any) -> None:
    width = base.model.config.hidden_size
    others = adapter(8, 3, width=width)
    before = a_of(fresh).detach().clone()
    elsewhere = a_of(fresh, "model.layers.1.self_attn.q_proj").detach().clone()
    assert start(fresh, stacked(others)) == 1
    a = a_of(fresh).detach()
    for other in others:
        old = other.factors[Q_PROJ][0]
        cosines = torch.nn.functional.normalize(old) @ torch.nn.functional.normalize(a).T
        assert cosines.abs().max() < 1e-6
        assert (old @ a.T).abs().max() < 1e-5  # of rows as long as the square root of the width
    assert torch.allclose(a.norm(dim=1), before.norm(dim=1), rtol=1e-5)
    assert torch.linalg.matrix_rank(a) == 4
    assert torch.equal(a_of(fresh, "model.layers.1.self_attn.q_proj"), elsewhere)


def test_projection_is_the_naive_one(base: Base, fresh: Any) -> None:
    """Gram–Schmidt by a loop in float64, then the same lengths."""
    others = adapter(5, 2, width=base.model.config.hidden_size)
    before = a_of(fresh).detach().double()
    start(fresh, stacked(others))
    basis: list[torch.Tensor] = []
    for other in others:
        for row in other.factors[Q_PROJ][0].double():
            for each in basis:
                row = row - (row @ each) * each
            basis.append(row / row.norm())
    for was, now in zip(before, a_of(fresh).detach().double(), strict=True):
        row = was
        for each in basis:
            row = row - (row @ each) * each
        assert torch.allclose(row * was.norm() / row.norm(), now, atol=1e-6)


def test_row_space_is_of_the_numerical_rank() -> None:
    one = torch.randn(3, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    twice = torch.cat([one, 2.0 * one, torch.zeros(1, 10, dtype=torch.float64)])
    q = row_space(twice)
    assert q.shape == (10, 3)
    assert torch.allclose(q.T @ q, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(one @ q @ q.T, one, atol=1e-12)


def test_rank_must_fit_what_the_others_leave(base: Base, fresh: Any) -> None:
    width = base.model.config.hidden_size
    start(fresh, stacked(adapter(width - 8, 4, width=width)))  # four directions are left for rank 4
    assert torch.linalg.matrix_rank(a_of(fresh)) == 4
    with pytest.raises(InputError, match=f"of the {width} inputs of {Q_PROJ} they leave 3 for rank 4"):
        start(fresh, stacked(adapter(width - 8, 5, width=width)))


def test_other_kinds_are_refused(base: Base) -> None:
    from peft import IA3Config

    others = stacked(adapter(2, width=base.model.config.hidden_size))
    pisa = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    scaled = IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    for config, says in ((pisa, "begins at zero"), (scaled, "is one of LoRA's A")):
        model = get_peft_model(base.model, config)
        try:
            with pytest.raises(InputError, match=says):
                start(model, others)
        finally:
            model.unload()
            base.model.eval()


def test_penalty_is_the_naive_sum_and_pulls_apart(base: Base, fresh: Any) -> None:
    width = base.model.config.hidden_size
    others = [*adapter(3, 2, width=width), *adapter(2, width=width, module="model.layers.2.self_attn.v_proj")]
    penalty = Penalty(fresh, stacked(others), 0.25)
    expected = 0.0
    for other in others:
        for module, (old, _) in other.factors.items():
            for row in old.double():
                for mine in a_of(fresh, module).detach().double():
                    expected += 0.25 * float(row @ mine) ** 2
    value = penalty()
    assert float(value.detach()) == pytest.approx(expected, rel=1e-5)
    value.backward()
    old, a = torch.cat([o.factors[Q_PROJ][0] for o in others[:2]]), a_of(fresh)
    assert a.grad is not None and torch.allclose(a.grad, 0.5 * a.detach() @ old.T @ old, atol=1e-4)


def test_training_with_the_penalty_stays_orthogonal(base: Base) -> None:
    """A moves out of the complement in training; the penalty holds it there, at the same loss to a tenth."""
    data = read_dataset(rows("ticket-queue", "train", 32, 0))
    others = adapter(8, width=base.model.config.hidden_size)

    def overlap(weight: float) -> float:
        settings = Settings().replaced(
            max_steps=15, batch_size=4, rank=4, kl=0.0, learning_rate=1e-2, orthogonal_penalty=weight
        )
        fitted = fit(base, data, settings, others=others)
        assert fitted.remembering["orthogonal"] == {"to": ["a0@v1"], "modules": 1}
        found = float((others[0].factors[Q_PROJ][0] @ a_of(fitted.model).detach().T).norm())
        release(fitted)
        return found

    assert overlap(1.0) < 0.2 * overlap(0.0)


def test_a_run_begins_orthogonal_to_the_members_of_a_variant(base: Base, store: Registry) -> None:
    data, small = rows("ticket-queue", "train", 24, 0), Suite("small", Suite.load("general-v1").items[::100])
    quick: dict[str, Any] = {"general": [small], "max_steps": 1, "batch_size": 4, "rank": 4, "kl": 0.0}
    for name in ("faq", "style"):
        inlay.train(base, data, name=name, store=store, seed=len(name), learning_rate=1e-2, **quick)
    store.lock("acme", "compose:\n  stack:\n    - use: faq@v1\n    - use: style@v1\n")
    versions = others_of(store, ["acme@v1", "faq@v1"], base)
    assert [each.ref for each in versions] == ["faq@v1", "style@v1"]
    result = inlay.train(
        base, data, name="tickets", store=store, orthogonal_to=["acme@v1"], learning_rate=1e-12, **quick
    )
    began = result.run["remembering"]["orthogonal"]
    assert began["to"] == ["faq@v1", "style@v1"]
    assert result.remembering == [f"It began orthogonal to faq@v1, style@v1 in {began['modules']} modules."]
    mine, old = (read_adapter(store.resolve(ref), store=store) for ref in ("tickets@v1", "faq@v1"))  # type: ignore[arg-type]
    for module, (a, _) in mine.factors.items():
        normal = torch.nn.functional.normalize
        assert (normal(old.factors[module][0]) @ normal(a).T).abs().max() < 1e-5


def test_an_adapter_of_another_base_and_a_penalty_against_none_are_refused(
    base: Base, store: Registry, tmp_path: Path
) -> None:
    from dataclasses import replace

    inlay.train(
        base,
        rows("ticket-queue", "train", 8, 0),
        name="faq",
        store=store,
        general=[Suite("small", Suite.load("general-v1").items[::100])],
        max_steps=1,
        kl=0.0,
    )
    other = replace(base, fingerprint=replace(base.fingerprint, weights="sha256:" + "0" * 64))
    with pytest.raises(BaseMismatch, match="faq@v1 was made for"):
        others_of(store, ["faq@v1"], other)
    with pytest.raises(InputError, match="none are named"):
        fit(
            base,
            read_dataset(rows("ticket-queue", "train", 8, 0)),
            Settings().replaced(kl=0.0, orthogonal_penalty=1.0),
        )
    assert base_answers(base, ["Copy the word: lamp"], max_new_tokens=4)  # the base is bare again
