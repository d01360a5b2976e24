"""The shelf: what is loaded answers as the dense sum would, shares its slots, goes when it is unused longest,
and never takes more than its budget."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
import torch
from serving_fakes import ask, request, write_adapter
from shelf_fakes import Told, at_once, damage, put, shelving

from inlay.composer import compose, read_adapter
from inlay.composer import lock as lock_recipe
from inlay.composer.bank import Bank
from inlay.errors import BaseMismatch, InputError, IntegrityError
from inlay.evals.inference import Base
from inlay.registry import Registry, Version
from inlay.serving import shelf as shelf_module
from inlay.serving.shelf import Loaded, MemoryFull, Shelf

SMALL = ("q_proj",)


def ids_of(base: Base, rows: int = 2, length: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(5, base.model.config.vocab_size, (rows, length), generator=generator)


def dense_logits(base: Base, store: Registry, ref: str, ids: torch.Tensor) -> torch.Tensor:
    """The naive oracle: the delta added to the base's weights, which are put back bit for bit."""
    version = store.resolve(ref)
    assert isinstance(version, Version)
    adapter, kept = read_adapter(version, store=store), {}
    with torch.no_grad():
        for module in adapter.factors:
            layer = base.model.get_submodule(module)
            weight = getattr(layer, "inner", layer).weight
            kept[weight] = weight.detach().clone()
            weight.add_(adapter.delta(module))
        logits = base.model(input_ids=ids).logits.clone()
        for weight, before in kept.items():
            weight.copy_(before)
    return logits


def size_of(store: Registry, base: Base, ref: str) -> int:
    """Bytes of a version's factors in the bank, from its file."""
    version = store.resolve(ref)
    assert isinstance(version, Version)
    return sum(a.nbytes + b.nbytes for a, b in read_adapter(version, store=store).factors.values())


def test_what_is_taken_answers_as_the_dense_sum_does(store: Registry, base: Base, tmp_path: Path) -> None:
    refs = [put(store, base, tmp_path, name, seed=seed) for seed, name in enumerate(("one", "two"), 1)]
    ids, told = ids_of(base), Told()
    expected = {ref: dense_logits(base, store, ref, ids) for ref in refs}
    bare = base.model(input_ids=ids).logits
    with shelving(store, base, observer=told) as (shelf, scheduler):
        for ref in refs:
            loaded = shelf.take(store.resolve(ref))
            assert (loaded.ref, loaded.digest) == (ref, store.resolve(ref).digest)
            assert loaded.nbytes == size_of(store, base, ref)
            found = scheduler.logits(loaded, ids)
            assert (found - expected[ref]).abs().max() < 1e-3 * expected[ref].abs().max()
            assert (found - bare).abs().max() > 0.1
        nothing = shelf.take(None)
        assert (nothing.ref, nothing.digest) == ("base", base.fingerprint.weights)
        assert torch.equal(scheduler.logits(nothing, ids), bare)
        shelf.give_back(nothing)
        assert [each.ref for each in shelf.loaded()] == told.loads == refs
        assert shelf.nbytes == sum(size_of(store, base, ref) for ref in refs) <= scheduler.bank.nbytes


def test_targets_share_the_slots_of_what_both_contain(store: Registry, base: Base, tmp_path: Path) -> None:
    one, two, three = (put(store, base, tmp_path, name, seed=i) for i, name in enumerate("abc", 1))
    both = store.lock("both", {"stack": [one, two]})
    other = store.lock("other", {"stack": [two, three]})
    sizes = {ref: size_of(store, base, ref) for ref in (one, two, three)}
    told = Told()
    with shelving(store, base, budget=sum(sizes.values()), observer=told) as (shelf, scheduler):
        first = shelf.take(both)
        second = shelf.take(other)
        single = shelf.take(store.resolve(two))
        assert first.slots[1] == second.slots[0] == single.slots[0]
        assert shelf.nbytes == sum(sizes.values()), "an adapter counts once, however many have it"
        assert first.nbytes == sizes[one] + sizes[two]
        shelf.give_back(first)
        shelf.give_back(single)
        # What goes is `both` alone: of its adapters only `one` is nobody else's.
        late = shelf.take(store.resolve(put(store, base, tmp_path, "late", seed=9)))
        assert told.away == ["both@v1"] and scheduler.forgotten == [both.digest]
        assert late.slots == (first.slots[0],)
        assert {each.ref for each in shelf.loaded()} == {"other@v1", two, "late@v1"}
        stands = scheduler.bank.names[second.slots[0]]
        assert stands is not None and shelf.uses(second) == 1 and shelf.uses(first) == 0


def test_the_least_recently_used_goes_first_and_what_is_used_never(
    store: Registry, base: Base, tmp_path: Path
) -> None:
    refs = [put(store, base, tmp_path, f"n{i}", seed=i) for i in range(5)]
    size, told = size_of(store, base, refs[0]), Told()
    with shelving(store, base, budget=3 * size, observer=told) as (shelf, _):
        taken = [shelf.take(store.resolve(ref)) for ref in refs[:3]]
        for loaded in taken[1:]:
            shelf.give_back(loaded)
        shelf.give_back(shelf.take(store.resolve(refs[1])))  # used later than 2, whose turn it was before
        shelf.give_back(shelf.take(store.resolve(refs[3])))
        assert told.away == [refs[2]]
        shelf.give_back(shelf.take(store.resolve(refs[4])))
        assert told.away == [refs[2], refs[1]], "0 was used longest ago, and is in use"
        again = shelf.take(store.resolve(refs[0]))
        assert again is taken[0] and shelf.uses(again) == 2
        assert told.loads == refs, "each was read once"
        with pytest.raises(AssertionError, match="more often"):
            for _ in range(3):
                shelf.give_back(again)


def test_many_callers_load_once(
    store: Registry, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = store.resolve(put(store, base, tmp_path, "one", seed=1))
    read, reads = shelf_module.adapter_of, []

    def slowly(*args: object) -> object:
        reads.append(args)
        time.sleep(0.1)
        return read(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(shelf_module, "adapter_of", slowly)
    with shelving(store, base) as (shelf, scheduler):
        found = at_once(lambda _: shelf.take(target), 8)
        assert len(reads) == 1 and len({id(each) for each in found}) == 1
        assert shelf.uses(found[0]) == 8
        assert sum(name is not None for name in scheduler.bank.names) == 1
        for each in found:
            shelf.give_back(each)
        assert shelf.uses(found[0]) == 0


def test_a_failure_leaves_all_as_it_was(store: Registry, base: Base, tmp_path: Path) -> None:
    good = [put(store, base, tmp_path, f"good{i}", seed=i) for i in range(2)]
    broken = put(store, base, tmp_path, "broken", seed=7)
    loud = write_adapter(tmp_path / "loud", base, seed=8, strength=1e12)
    config = json.loads((loud / "adapter_config.json").read_text())
    (loud / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 1e29}))
    infinite = store.add("loud", loud, base=base.fingerprint).ref
    undo = damage(store, broken)
    size, told, ids = size_of(store, base, good[0]), Told(), ids_of(base)
    with shelving(store, base, budget=2 * size, observer=told) as (shelf, scheduler):
        for ref in good:
            shelf.give_back(shelf.take(store.resolve(ref)))
        before = shelf.loaded(), scheduler.bank.names, scheduler.bank.nbytes
        kept = scheduler.logits(before[0][0], ids)
        errors = at_once(lambda _: shelf.take(store.resolve(broken)), 4)
        assert all(isinstance(error, IntegrityError) for error in errors)
        with pytest.raises(InputError, match="must be finite"):
            shelf.take(store.resolve(infinite))
        assert (shelf.loaded(), scheduler.bank.names, scheduler.bank.nbytes) == before
        assert torch.equal(scheduler.logits(before[0][0], ids), kept) and told.away == []
        assert {ref for ref, _ in told.failures} == {broken, infinite}
        undo()
        assert shelf.take(store.resolve(broken)).ref == broken, "whoever asks later tries anew"
        assert told.away == [good[0]]


def test_memory_that_ends_leaves_what_is_in_use(
    store: Registry, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = [put(store, base, tmp_path, f"n{i}", seed=i) for i in range(3)]
    size = size_of(store, base, refs[0])
    with shelving(store, base, budget=2 * size) as (shelf, scheduler):
        used = shelf.take(store.resolve(refs[0]))
        shelf.give_back(shelf.take(store.resolve(refs[1])))
        before = scheduler.logits(used, ids_of(base))

        def out_of_memory(*_: object) -> None:
            raise MemoryError

        monkeypatch.setattr("inlay.composer.bank.BankLayer.place", out_of_memory)
        with pytest.raises(MemoryFull, match="memory ended while n2@v1 was loaded"):
            shelf.take(store.resolve(refs[2]))
        monkeypatch.undo()
        assert shelf.loaded() == [used], "what was to make room has left, and is known to have"
        assert torch.equal(scheduler.logits(used, ids_of(base)), before)
        for ref in refs[1:]:
            shelf.give_back(shelf.take(store.resolve(ref)))


def test_room_is_waited_for_as_long_as_requests_use_it(store: Registry, base: Base, tmp_path: Path) -> None:
    one, two = (put(store, base, tmp_path, name, seed=i) for i, name in enumerate(("one", "two")))
    large = put(store, base, tmp_path, "large", seed=5, rank=9)
    size = size_of(store, base, one)
    with shelving(store, base, budget=size, patience=0.2) as (shelf, _):
        first = shelf.take(store.resolve(one))
        with pytest.raises(MemoryFull, match=r"two@v1 waited 0\.2 s for room"):
            shelf.take(store.resolve(two))
        with pytest.raises(MemoryFull, match=r"large@v1 takes .* bytes of adapters, and there are"):
            shelf.take(store.resolve(large))
        threading.Timer(0.05, shelf.give_back, [first]).start()
        assert shelf.take(store.resolve(two)).ref == two


def test_what_a_bank_cannot_hold_or_is_for_another_base_is_refused(
    store: Registry, base: Base, tmp_path: Path
) -> None:
    from dataclasses import replace

    target = store.resolve(put(store, base, tmp_path, "one", seed=1))
    other = replace(target, base=replace(target.base, weights="sha256:" + "0" * 64))
    changed = replace(target, base=replace(target.base, prompt="sha256:" + "0" * 64))
    with shelving(store, base) as (shelf, _):
        with pytest.raises(BaseMismatch, match="was made for the base"):
            shelf.take(other)
        with pytest.raises(BaseMismatch, match="another tokenizer or chat template"):
            shelf.take(changed)
        alone = write_layer_norm(tmp_path / "ia3", base)
        with pytest.raises(InputError, match="bank holds factors, and scale@v1 has none"):
            shelf.take(store.add("scale", alone, base=base.fingerprint))
        assert shelf.loaded() == []
    with shelving(store, base, accept_prompt_change=True) as (shelf, _):
        assert shelf.take(changed).ref == target.ref


def write_layer_norm(folder: Path, base: Base) -> Path:
    """An adapter that is no product of factors: PEFT's IA³."""
    from peft import IA3Config, get_peft_model

    config = IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    model = get_peft_model(base.model, config)
    model.save_pretrained(folder, save_embedding_layers=False)
    model.unload()
    (folder / "README.md").unlink(missing_ok=True)
    return folder


def test_routes_and_merges_are_loaded_with_what_they_choose_by(
    store: Registry, base: Base, tmp_path: Path
) -> None:
    one, two = (put(store, base, tmp_path, name, seed=i) for i, name in enumerate(("one", "two"), 1))
    arrow = lock_recipe(store, "arrow", {"route": {"by": "arrow", "experts": [one, two]}}, base=base)
    merge = lock_recipe(store, "merged", {"merge": [one, two], "method": "ties", "rank": 4}, base=base)
    ids = ids_of(base)
    model = compose(merge, store=store, base=base)
    try:
        with torch.inference_mode():
            expected = model.model(input_ids=ids).logits.clone()
    finally:
        model.detach()
    with shelving(store, base) as (shelf, scheduler):
        single = shelf.take(store.resolve(one))
        routed = shelf.take(arrow)
        assert routed.routing is not None and set(routed.routing.prototypes) == {0}
        assert routed.slots[0] == single.slots[0]
        merged = shelf.take(merge)
        found = scheduler.logits(merged, ids)
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_memory_is_flat_while_targets_pass(store: Registry, base: Base, tmp_path: Path, count: int) -> None:
    """Pairs out of 46 adapters of different ranks and modules; about 32 of them have room."""
    kinds = (("q_proj",), ("v_proj",), ("down_proj",), ("q_proj", "v_proj"), ("up_proj",))
    refs = [
        put(store, base, tmp_path, f"a{i}", seed=i, rank=1 + i % 3, targets=kinds[i % len(kinds)])
        for i in range(46)
    ]
    pairs = [[a, b] for i, a in enumerate(refs) for b in refs[i + 1 :]]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))[:count].tolist()
    targets = [store.lock(f"v{n}", {"stack": pairs[p]}) for n, p in enumerate(order)]
    budget = sum(size_of(store, base, ref) for ref in refs[:16])
    told, seen = Told(), []
    with shelving(store, base, budget=budget, observer=told) as (shelf, scheduler):
        running = shelf.take(targets[0])
        ids = ids_of(base, rows=1, length=4)
        before = scheduler.logits(running, ids)
        for number, target in enumerate(targets):
            loaded = shelf.take(target)
            shelf.give_back(loaded)
            seen.append((scheduler.bank.nbytes, scheduler.bank.slots, shelf.nbytes))
            assert shelf.nbytes <= budget and scheduler.bank.nbytes <= 2 * budget
            if number % 50 == 0:
                # Columns have been moved together under what runs all the while.
                assert torch.equal(scheduler.logits(running, ids), before)
        assert len(told.loads) == len(targets) == len(told.away) + len(shelf.loaded())
        held = {s.digest for each in shelf.loaded() for s in each.plan.slots}  # type: ignore[union-attr]
        assert sum(name is not None for name in scheduler.bank.names) == len(held)
        assert running in shelf.loaded() and len(shelf._uses) == len(shelf.loaded())
    early, late = seen[count // 10 : count // 2], seen[-count // 2 :]
    for what, (first, last) in enumerate(zip(zip(*early, strict=True), zip(*late, strict=True), strict=True)):
        assert max(last) <= 1.25 * max(first), f"{('buffers', 'slots', 'factors')[what]} grew"


def test_slots_that_leave_go_only_where_what_comes_fits(base: Base, store: Registry, tmp_path: Path) -> None:
    """`Bank.load_all(leaving=…)`, and `shrink`."""
    small, large = (
        read_adapter(store.resolve(put(store, base, tmp_path, name, seed=3, rank=rank)), store=store)  # type: ignore[arg-type]
        for name, rank in (("small", 2), ("large", 6))
    )
    bank = Bank(base.model)
    try:
        first, second = bank.load_all([small, large])
        factors = {module: (a.clone(), b) for module, (a, b) in small.factors.items()}
        next(iter(factors.values()))[0][0, 0] = float("nan")
        broken = type(small)("broken", factors)
        with pytest.raises(InputError, match="finite"):
            bank.load_all([broken], leaving=[first, second])
        with bank.gate.held_at(torch.tensor([0.0, 1.0])), pytest.raises(InputError, match=r"large.* speaks"):
            bank.load_all([small], leaving=[first, second])
        assert bank.names == (small.name, large.name)
        full = bank.nbytes
        assert bank.load_all([small], leaving=[second]) == [second]
        assert bank.nbytes == full, "what leaves makes room before anything grows"
        bank.shrink()
        assert bank.nbytes == full * 4 // 8
        with torch.inference_mode(), bank.gate.held_at(torch.tensor([0.0, 1.0])):
            found = base.model(input_ids=ids_of(base)).logits
    finally:
        bank.detach()
    expected = dense_logits(base, store, "small@v1", ids_of(base))
    assert (found - expected).abs().max() < 1e-3 * expected.abs().max()


def test_requests_that_run_are_untouched_by_a_stream_of_loads(
    store: Registry, base: Base, tmp_path: Path
) -> None:
    """With the real scheduler: answers are the composed model's own, while others come and go beside them."""
    from inlay.serving.scheduler import Scheduler

    refs = [put(store, base, tmp_path, f"n{i}", seed=i, rank=2 + i % 4) for i in range(12)]
    prompts = ["Which queue handles this message?\nMy parcel is late.", "Say something about the river"]
    expected = {}
    for ref in refs:
        model = compose(ref, store=store, base=base)
        try:
            expected[ref] = model.generate(prompts, max_new_tokens=24)
        finally:
            model.detach()
    scheduler = Scheduler(base, rows=8)
    shelf = Shelf(store, scheduler, base, budget=4 * size_of(store, base, refs[3]))
    wrong: list[str] = []

    def client(number: int) -> None:
        for turn in range(6):
            ref = refs[(5 * number + turn * (number + 1)) % len(refs)]
            loaded: Loaded = shelf.take(store.resolve(ref))
            prompt = (number + turn) % 2
            try:
                ear = ask(scheduler, loaded, request(base, prompts[prompt], max_tokens=24))
                ear.wait()
            finally:
                shelf.give_back(loaded)
            if ear.text.strip() != expected[ref][prompt].strip():
                wrong.append(f"{ref}: {ear.text!r} is not {expected[ref][prompt]!r}")

    try:
        scheduler.start()
        assert [each for each in at_once(client, 4) if each is not None] == []
        assert wrong == []
        assert len({text for texts in expected.values() for text in texts}) > len(refs)
    finally:
        scheduler.stop()
        scheduler.bank.detach()
