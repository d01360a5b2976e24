"""A composed model in use: weights by request, swaps that load only what is new, folding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from composer_fakes import some_ids, write_lora

from inlay.composer import ComposedModel, compose, lock
from inlay.composer import model as model_module
from inlay.composer.bank import BankLayer
from inlay.errors import InputError, IntegrityError
from inlay.evals.inference import Base
from inlay.registry import Registry

PROMPTS = [
    "What is it?",
    "Which queue handles this message?\nMy parcel is late.",
    "Say something about the river",
    "Which number is larger, 14 or 52?",
    "Write these words in upper case: river garden",
]


@pytest.fixture
def filled(store: Registry, base: Base, tmp_path: Path) -> Registry:
    """Three adapters of different ranks and targets."""
    for seed, name in enumerate(("one", "two", "three"), 1):
        targets = ["q_proj", "down_proj"] if seed < 3 else ["v_proj", "down_proj"]
        folder = write_lora(
            tmp_path / name, base, seed=seed, r=1 + seed, strength=0.1, target_modules=targets
        )
        store.add(name, folder, base=base.fingerprint, why="test")
    return store


@pytest.fixture
def stacked(filled: Registry, base: Base) -> Iterator[ComposedModel]:
    made = filled.lock("acme", {"stack": ["one@v1", {"use": "two@v1", "weight": 0.5}]})
    model = compose(made, store=filled, base=base)
    yield model
    model.detach()


def logits(model: ComposedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.model(input_ids=ids).logits.clone()


def test_each_request_gets_its_own_weights(stacked: ComposedModel, filled: Registry, base: Base) -> None:
    weights = [{"one@v1": 1.0}, None, {}, {"two@v1": 2.0, "one@v1": -0.5}, {"two@v1": 1.0}]
    mixed = stacked.generate(PROMPTS, max_new_tokens=6, weights=weights)
    small = stacked.chat.batch_tokens
    stacked.chat.batch_tokens = 40
    assert stacked.generate(PROMPTS, max_new_tokens=6, weights=weights) == mixed, "in batches of few rows"
    stacked.chat.batch_tokens = small
    as_composed = stacked.generate(PROMPTS, max_new_tokens=6)
    bare = stacked.base_chat.generate(PROMPTS, max_new_tokens=6)
    beams = stacked.generate(PROMPTS, max_new_tokens=6, weights=weights, num_beams=2)
    beams_bare = stacked.base_chat.generate(PROMPTS, max_new_tokens=6, num_beams=2)
    stacked.detach()
    assert (mixed[1], mixed[2]) == (as_composed[1], bare[2])
    assert beams[2] == beams_bare[2]
    for i, recipe in (
        (0, {"stack": ["one@v1"]}),
        (3, {"stack": [{"use": "one@v1", "weight": -0.5}, {"use": "two@v1", "weight": 2.0}]}),
        (4, {"stack": ["two@v1"]}),
    ):
        alone = compose(recipe, store=filled, base=base)
        assert alone.generate([PROMPTS[i]], max_new_tokens=6) == [mixed[i]]
        assert alone.generate([PROMPTS[i]], max_new_tokens=6, num_beams=2) == [beams[i]]
        alone.detach()
    assert len({as_composed[0], bare[0], mixed[0]}) > 1, "the weights must be seen in the answers"


def test_weights_are_checked_before_anything_runs(stacked: ComposedModel) -> None:
    with pytest.raises(InputError, match="there are 5 and 1"):
        stacked.generate(PROMPTS, weights=[None])
    with pytest.raises(InputError, match=r"'three@v1' is none") as caught:
        stacked.generate(PROMPTS[:1], weights=[{"three@v1": 1.0}])
    assert caught.value.fix == "its members: one@v1, two@v1"
    with pytest.raises(InputError, match="must be finite"):
        stacked.generate(PROMPTS[:1], weights=[{"one@v1": float("inf")}])


def test_weights_beside_a_route(filled: Registry, base: Base, tmp_path: Path) -> None:
    examples = {"four": [f"Say {w}" for w in PROMPTS], "five": [f"Count {w}" for w in PROMPTS]}
    for seed, (name, prompts) in enumerate(examples.items(), 4):
        folder = write_lora(tmp_path / name, base, seed=seed, strength=0.1)
        filled.add(name, folder, base=base.fingerprint, why="test", run={"examples": prompts})
    lock(filled, "routed", {"route": {"by": "probe", "experts": ["four@v1", "five@v1"]}}, base=base)
    model = compose("routed@v1", store=filled, base=base)
    try:
        asked = [examples["four"][0], examples["five"][0], PROMPTS[0]]
        routed = model.generate(asked, max_new_tokens=6)
        given = model.generate(asked, max_new_tokens=6, weights=[None, {"four@v1": 1.0}, {}])
        bare = model.base_chat.generate(asked, max_new_tokens=6)
        with pytest.raises(InputError, match="has a route"):
            model.fold()
    finally:
        model.detach()
    assert given[0] == routed[0] and given[2] == bare[2]
    alone = compose("four@v1", store=filled, base=base)
    assert alone.generate([asked[1]], max_new_tokens=6) == [given[1]]
    alone.detach()


def test_swap_reads_only_what_is_not_in_the_bank(
    stacked: ComposedModel, filled: Registry, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    adapter_of = model_module.adapter_of

    def counting(store: Registry, slot: object) -> object:
        adapter = adapter_of(store, slot)  # type: ignore[arg-type]
        read.append(adapter.name)
        return adapter

    monkeypatch.setattr(model_module, "adapter_of", counting)
    ids = some_ids(base)
    before = logits(stacked, ids)
    wrappers = {name: m for name, m in base.model.named_modules() if isinstance(m, BankLayer)}
    second = filled.lock("acme", {"stack": ["one@v1", "three@v1"]})
    other_weights = filled.lock("acme", {"stack": [{"use": "three@v1", "weight": 0.25}, "one@v1"]})
    stacked.swap(second)
    assert read == ["three@v1"]
    after = logits(stacked, ids)
    stacked.swap(other_weights)
    assert read == ["three@v1"], "another weight needs no reading"
    now = {name: m for name, m in base.model.named_modules() if isinstance(m, BankLayer)}
    assert wrappers.items() <= now.items(), "no wrapper is rebuilt"
    weighed = logits(stacked, ids)
    stacked.swap("acme@v1")
    assert read == ["three@v1", "two@v1"]
    assert torch.equal(logits(stacked, ids), before)
    stacked.detach()
    for made, found in ((second, after), (other_weights, weighed)):
        alone = compose(made, store=filled, base=base)
        assert (logits(alone, ids) - found).abs().max() < 1e-5 * found.abs().max()
        alone.detach()


def test_swap_that_fails_leaves_the_old_one_serving(
    stacked: ComposedModel, filled: Registry, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = some_ids(base)
    before = logits(stacked, ids)
    target = filled.lock("acme", {"stack": ["three@v1"]})
    place = BankLayer.place

    def out_of_memory(layer: BankLayer, slot: int, rank: int) -> tuple[int, int]:
        if layer.features_in > layer.features_out:
            raise MemoryError
        return place(layer, slot, rank)

    monkeypatch.setattr(BankLayer, "place", out_of_memory)
    with pytest.raises(MemoryError):
        stacked.swap(target)
    monkeypatch.undo()
    assert torch.equal(logits(stacked, ids), before)
    version = filled.resolve("three@v1")
    file = (version.path / "adapter_model.safetensors").resolve()  # type: ignore[union-attr]
    file.chmod(0o644)
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(IntegrityError):
        stacked.swap(target)
    assert stacked.target.ref == "acme@v1" and torch.equal(logits(stacked, ids), before)
    file.write_bytes(good)
    stacked.swap(target)
    assert stacked.target.ref == "acme@v2" and not torch.equal(logits(stacked, ids), before)


def test_memory_is_steady_over_swaps(stacked: ComposedModel, filled: Registry, base: Base) -> None:
    locks = [
        filled.lock("acme", {"stack": ["three@v1", "two@v1"]}),
        filled.lock("acme", {"stack": ["one@v1"]}),
        filled.lock("acme", {"stack": ["three@v1"]}),
    ]
    sizes = []
    for i in range(30):
        stacked.swap(locks[i % 3])
        sizes.append((stacked._bank.nbytes, stacked._bank.slots))
    assert len(set(sizes[6:])) == 1
    assert len(stacked._held) == len(stacked.plan.slots)


def test_folded_answers_alike_and_a_swap_lets_go(
    stacked: ComposedModel, filled: Registry, base: Base
) -> None:
    ids = some_ids(base)
    weights = {name.replace(".inner", ""): p for name, p in base.model.named_parameters()}
    kept = {name: p.detach().clone() for name, p in weights.items()}
    unfolded, bare = logits(stacked, ids), stacked.base_chat.generate(PROMPTS, max_new_tokens=6)
    answers = stacked.generate(PROMPTS, max_new_tokens=6)
    stacked.fold()
    assert stacked._bank.folded_nbytes > 0
    folded = logits(stacked, ids)
    assert 0 < (folded - unfolded).abs().max() < 1e-4 * unfolded.abs().max()
    assert stacked.generate(PROMPTS, max_new_tokens=6) == answers
    assert stacked.base_chat.generate(PROMPTS, max_new_tokens=6) == bare
    stacked.unfold()
    assert torch.equal(logits(stacked, ids), unfolded)
    stacked.fold()
    stacked.swap(filled.lock("acme", {"stack": ["one@v1", {"use": "two@v1", "weight": 0.25}]}))
    assert stacked._bank.folded_nbytes == 0, "the same adapters, other weights"
    assert not torch.equal(logits(stacked, ids), unfolded)
    stacked.detach()
    after = dict(base.model.named_parameters())
    assert all(after[name] is p and torch.equal(p, kept[name]) for name, p in weights.items())


def test_detached_model_says_so_until_it_is_swapped_to(stacked: ComposedModel, base: Base) -> None:
    answers = stacked.generate(PROMPTS, max_new_tokens=6)
    bare = stacked.base_chat.generate(PROMPTS, max_new_tokens=6)
    stacked.detach()
    for weights in (None, [{"one@v1": 1.0}] * len(PROMPTS)):
        with pytest.raises(InputError, match="acme@v1 was detached"):
            stacked.generate(PROMPTS, max_new_tokens=6, weights=weights)
    assert stacked.base_chat.generate(PROMPTS, max_new_tokens=6) == bare
    stacked.swap("acme@v1")
    assert stacked.generate(PROMPTS, max_new_tokens=6) == answers
