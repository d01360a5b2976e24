"""From recipes to models that answer: stacks and routes on the built-in base, through the registry."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from composer_fakes import dense_sum_logits, some_ids, write_lora

import inlay
from inlay.composer import compose, forgetting, lock, make_plan, read_adapter
from inlay.composer.bank import BankLayer
from inlay.errors import BaseMismatch, InputError, IntegrityError
from inlay.evals import Suite
from inlay.evals.inference import Base
from inlay.registry import Registry

QUEUES = [
    f"Which queue handles this message?\nMy {thing} is late."
    for thing in ["parcel", "order", "invoice", "card", "phone"]
]
SLIPS = [
    f"Write the order slip.\n{n} blue chairs for {name}"
    for n, name in enumerate(["Anna", "Tom", "Mia", "Ben"], 2)
]
GENERAL = ["Write these words in upper case: river garden", "Which number is larger, 14 or 52?"]


@pytest.fixture
def filled(store: Registry, base: Base, tmp_path: Path) -> Registry:
    """Two adapters, live, each with examples of what it is for."""
    for seed, (name, examples) in enumerate((("queue", QUEUES), ("slip", SLIPS)), 1):
        folder = write_lora(tmp_path / name, base, seed=seed, r=2 + seed, strength=0.1)
        store.add(name, folder, base=base.fingerprint, why="test", run={"examples": examples})
        store.promote(f"{name}@v1", "prod")
    return store


def test_stack_is_the_weighted_sum_of_its_members(filled: Registry, base: Base) -> None:
    recipe = {"stack": ["queue@prod", {"use": "slip@v1", "weight": 0.5}], "weight": 2.0}
    ids = some_ids(base)
    one, two = (read_adapter(filled.resolve(f"{n}@v1"), store=filled) for n in ("queue", "slip"))  # type: ignore[arg-type]
    deltas = [(w, {m: a.delta(m) for m in a.factors}) for w, a in ((2.0, one), (1.0, two))]
    expected = dense_sum_logits(base, deltas, ids)
    model = compose(recipe, store=filled, base=base)
    try:
        with torch.inference_mode():
            found = model.model(input_ids=ids).logits.clone()
        assert model.decide(QUEUES) == [()] * len(QUEUES), "a stack has nothing to choose"
    finally:
        model.detach()
    assert (found - expected).abs().max() < 1e-3 * expected.abs().max()


def test_adapter_used_twice_takes_one_slot_and_both_weights(filled: Registry) -> None:
    made = filled.lock(
        "twice", {"stack": ["queue@v1", {"stack": [{"use": "queue@v1", "weight": 0.25}], "weight": 2.0}]}
    )
    plan = make_plan(filled, made)
    assert len(plan.slots) == 1
    assert plan.gate() == [1.5]
    assert any("stands 2 times" in warning for warning in plan.warnings)


def test_route_chooses_or_leaves_it_to_the_base(filled: Registry, base: Base) -> None:
    made = lock(filled, "acme", {"route": {"by": "probe", "experts": ["queue@prod", "slip@prod"]}}, base=base)
    prompts = [QUEUES[0], SLIPS[0], *GENERAL]
    with_bank = compose("acme@v1", store=filled, base=base)
    try:
        chosen = [decided.expert for (decided,) in with_bank.decide(prompts)]
        assert chosen == ["queue@v1", "slip@v1", "base", "base"]
        mixed = with_bank.generate(prompts, max_new_tokens=6)
        bare = with_bank.base_chat.generate(prompts, max_new_tokens=6)
    finally:
        with_bank.detach()
    alone = []
    for ref, prompt in (("queue@v1", prompts[0]), ("slip@v1", prompts[1])):
        model = compose(ref, store=filled, base=base)
        alone += model.generate([prompt], max_new_tokens=6)
        model.detach()
    assert mixed[:2] == alone
    assert mixed[2:] == bare[2:]
    assert made.tree["route"]["router"].startswith("sha256:")


def test_route_inside_a_stack_keeps_what_always_speaks(filled: Registry, base: Base) -> None:
    route = {"route": {"by": "probe", "experts": ["queue@v1", "slip@v1"]}}
    made = lock(filled, "nested", {"stack": [{"use": "slip@v1", "weight": 0.5}, route]}, base=base)
    plan = make_plan(filled, made)
    order = [slot.version.name for slot in plan.slots]
    gates = {choice: dict(zip(order, plan.gate((choice,)), strict=True)) for choice in (None, 0, 1)}
    assert gates[None] == {"slip": 0.5, "queue": 0.0}
    assert gates[0] == {"slip": 0.5, "queue": 1.0}
    assert gates[1] == {"slip": 1.5, "queue": 0.0}


def test_swap_changes_the_lock_and_a_failed_one_changes_nothing(filled: Registry, base: Base) -> None:
    first = filled.lock("acme", {"stack": ["queue@v1"]})
    second = filled.lock("acme", {"stack": ["slip@v1"]})
    model = compose(first, store=filled, base=base)
    ids = some_ids(base)
    try:
        with torch.inference_mode():
            before = model.model(input_ids=ids).logits.clone()
            model.swap(second.ref)
            other = model.model(input_ids=ids).logits.clone()
            model.swap(first.ref)
            assert torch.equal(model.model(input_ids=ids).logits, before)
            assert not torch.equal(other, before)
            with pytest.raises(inlay.ReferenceNotFound):
                model.swap("acme@v9")
            assert torch.equal(model.model(input_ids=ids).logits, before)
        assert model.target.ref == "acme@v1"
    finally:
        model.detach()
    assert not any(isinstance(m, BankLayer) for m in base.model.modules())


def test_forgetting_is_measured_once_and_kept(filled: Registry, base: Base) -> None:
    suite = Suite.load("general-v1")
    small = Suite("small", suite.items[::25])
    asked: list[str] = []
    model = compose("queue@v1", store=filled, base=base)
    try:
        report = forgetting(model, general=[small], say=lambda what, done, total: asked.append(what))
        reached = [item for item in small.items if item.skill not in report.unreached]
        assert report.held_out.n == sum(item.held_out for item in reached) > 10
        assert report.drift is not None and report.drift.forward_kl > 0
        assert asked
        asked.clear()
        again = forgetting(model, general=[small], say=lambda what, done, total: asked.append(what))
    finally:
        model.detach()
    assert not asked, "nothing is scored twice"
    assert again.held_out == report.held_out
    assert {e.subject for e in filled.evals(suite=small.digest)} == {
        "base",
        filled.resolve("queue@v1").digest,
    }
    assert filled.reports(filled.resolve("queue@v1").digest, "forgetting")[0]["verdict"] == again.verdict


def test_expert_without_examples_is_refused(filled: Registry, base: Base, tmp_path: Path) -> None:
    filled.add("silent", write_lora(tmp_path / "silent", base, seed=9), base=base.fingerprint)
    with pytest.raises(InputError, match=r"examples of what silent@v1 is for"):
        lock(filled, "x", {"route": {"by": "probe", "experts": ["queue@v1", "silent@v1"]}}, base=base)
    assert [row.name for row in filled.names("variant")] == []


def test_another_base_is_refused(filled: Registry, base: Base, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    other = tmp_path / "other"
    torch.manual_seed(0)
    LlamaForCausalLM(base.model.config).save_pretrained(other)
    base.tokenizer.save_pretrained(other)
    with pytest.raises(BaseMismatch, match=r"queue@v1 was made for the base"):
        compose("queue@v1", store=filled, base=other)


def test_changed_bytes_are_never_loaded(filled: Registry, base: Base) -> None:
    version = filled.resolve("queue@v1")
    file = (version.path / "adapter_model.safetensors").resolve()  # type: ignore[union-attr]
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(IntegrityError, match="adapter_model"):
        compose("queue@v1", store=filled, base=base)


def test_plan_needs_no_torch(filled: Registry) -> None:
    filled.lock("acme", {"stack": ["queue@v1", "slip@v1"]})
    code = (
        "import sys; from inlay.registry import Registry; from inlay.composer import make_plan; "
        f"r = Registry.open({str(filled.path)!r}); p = make_plan(r, r.resolve('acme@v1')); "
        "assert p.nbytes > 0 and p.flops_per_token > 0; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
