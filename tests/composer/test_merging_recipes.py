"""Merges in recipes: locked, planned without torch, loaded, exported; held against the dense weights."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from composer_fakes import dense_sum_logits, peft_logits, some_ids, write_lora

import inlay
from inlay.cli import run
from inlay.composer import compose, lock, make_plan, read_adapter
from inlay.composer.factors import Adapter
from inlay.composer.slots import MergedSlot
from inlay.errors import InputError
from inlay.evals.inference import Base
from inlay.registry import Registry

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8},
    "rooted": {"r": 6, "lora_alpha": 5, "use_rslora": True, "target_modules": ["q_proj", "o_proj"]},
    "patterned": {
        "r": 3,
        "lora_alpha": 6,
        "rank_pattern": {"v_proj": 5},
        "target_modules": ["q_proj", "v_proj"],
    },
}
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def filled(store: Registry, base: Base, tmp_path: Path) -> Registry:
    for seed, (name, config) in enumerate(KINDS.items(), 1):
        folder = write_lora(tmp_path / name, base, seed=seed, strength=0.1, **config)
        store.add(name, folder, base=base.fingerprint)
    return store


def bank_logits(store: Registry, ref: Any, base: Base, ids: torch.Tensor) -> torch.Tensor:
    model = compose(ref, store=store, base=base)
    try:
        with torch.inference_mode():
            return model.model(input_ids=ids).logits.clone()
    finally:
        model.detach()


def read(store: Registry, name: str) -> Adapter:
    return read_adapter(store.resolve(f"{name}@v1"), store=store)  # type: ignore[arg-type]


def deltas(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {module: adapter.delta(module) for module in adapter.factors}


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() < 1e-4 * expected.abs().max())


def test_a_merge_runs_in_the_bank_beside_the_rest(filled: Registry, base: Base) -> None:
    made = lock(
        filled,
        "acme",
        {
            "stack": [
                {"use": "plain@v1", "weight": 0.5},
                {
                    "merge": ["plain@v1", {"use": "rooted@v1", "weight": 0.8}, "patterned@v1"],
                    "method": "ties",
                    "params": {"density": 0.5},
                    "rank": 4,
                    "weight": 2.0,
                },
            ]
        },
    )
    plain, rooted, patterned = (read(filled, name) for name in KINDS)
    merged = inlay.merge(
        [plain, rooted, patterned], weights=[1.0, 0.8, 1.0], method="ties", params={"density": 0.5}, rank=4
    )
    ids = some_ids(base)
    expected = dense_sum_logits(base, [(0.5, deltas(plain)), (2.0, deltas(merged))], ids)
    assert near(bank_logits(filled, made, base, ids), expected)

    plan = make_plan(filled, made)
    slot = plan.slots[1]
    assert isinstance(slot, MergedSlot)
    assert slot.ref == "ties(plain@v1, 0.8 rooted@v1, patterned@v1)"
    assert slot.exactness == "merged: core space"
    assert plan.gate() == [0.5, 2.0]
    assert max(slot.ranks.values()) == 4
    assert slot.truncation == pytest.approx(merged.truncation)
    assert max(merged.truncation.values()) > 0.01
    assert set(slot.sizes) == set(merged.factors)
    assert all(merged.ranks[module] <= size.rank for module, size in slot.sizes.items())


def test_a_stack_inside_a_merge_is_one_input(filled: Registry, base: Base) -> None:
    made = lock(
        filled,
        "acme",
        {
            "merge": [
                {"stack": ["plain@v1", {"use": "rooted@v1", "weight": -0.5}], "weight": 0.7},
                {"merge": ["patterned@v1", "plain@v1"], "method": "tsv_m"},
            ],
            "method": "karcher",
        },
    )
    plain, rooted, patterned = (read(filled, name) for name in KINDS)
    inner = inlay.merge([patterned, plain], method="tsv_m")
    summed = {m: plain.delta(m) for m in plain.factors}
    for module, delta in deltas(rooted).items():
        summed[module] = summed.get(module, 0.0) - 0.5 * delta
    # The stack as one dense adapter: A is the delta, B the identity.
    dense = Adapter("stack", {m: (d, torch.eye(d.shape[0])) for m, d in summed.items()})
    expected = inlay.merge([dense, inner], weights=[0.7, 1.0], method="karcher")
    ids = some_ids(base)
    assert near(bank_logits(filled, made, base, ids), dense_sum_logits(base, [(1.0, deltas(expected))], ids))
    (slot,) = make_plan(filled, made).slots
    assert slot.ref == "karcher(0.7 (plain@v1 + -0.5 rooted@v1), tsv_m(patterned@v1, plain@v1))"
    assert [v.name for v in slot.versions] == ["plain", "rooted", "patterned", "plain"]


def test_a_variant_with_a_merge_can_be_used_again(filled: Registry, base: Base) -> None:
    inner = lock(filled, "inner", {"merge": ["plain@v1", "rooted@v1"], "method": "iso_c", "rank": 3})
    outer = lock(filled, "outer", {"stack": ["inner@v1", "patterned@v1"]})
    found, expected = make_plan(filled, outer).slots[0], make_plan(filled, inner).slots[0]
    assert isinstance(found, MergedSlot) and isinstance(expected, MergedSlot)
    assert found.digest == expected.digest
    assert found.truncation == expected.truncation and found.truncation


def test_a_router_chooses_between_merges(store: Registry, base: Base, tmp_path: Path) -> None:
    prompts = {
        "plain": ["Which number is larger, 14 or 52?", "Which number is larger, 3 or 8?"] * 6,
        "rooted": ["Which number is larger, 90 or 41?", "Which number is larger, 7 or 2?"] * 6,
        "patterned": ["Write these words in upper case: river", "Write these words in upper case: sun"] * 6,
    }
    for seed, (name, config) in enumerate(KINDS.items(), 1):
        folder = write_lora(tmp_path / name, base, seed=seed, strength=0.1, **config)
        store.add(name, folder, base=base.fingerprint, run={"examples": prompts[name]})
    merge = {"merge": ["plain@v1", "rooted@v1"], "method": "linear"}
    lock(store, "acme", {"route": {"by": "probe", "experts": [merge, "patterned@v1"]}}, base=base)
    model = compose("acme@v1", store=store, base=base)
    try:
        decided = model.decide([prompts["plain"][0], prompts["patterned"][0]])
        assert [each.expert for (each,) in decided] == ["plain@v1+rooted@v1", "patterned@v1"]
    finally:
        model.detach()
    plan = make_plan(store, store.resolve("acme@v1"))
    assert [plan.gate((choice,)) for choice in (0, 1, None)] == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]


def test_equal_merges_take_one_slot(filled: Registry) -> None:
    node = {"merge": ["plain@v1", "rooted@v1"], "method": "ties"}
    made = filled.lock(
        "acme", {"stack": [{**node, "weight": 0.5}, {**node, "seed": 3}, {**node, "method": "sce"}]}
    )
    plan = make_plan(filled, made)
    assert [slot.ref for slot in plan.slots] == ["ties(plain@v1, rooted@v1)", "sce(plain@v1, rooted@v1)"]
    assert plan.gate() == [1.5, 1.0], "ties draws nothing, so that its seed says nothing"


def test_a_merge_leaves_as_one_adapter_that_peft_reads(filled: Registry, base: Base, tmp_path: Path) -> None:
    lock(filled, "acme", {"merge": ["plain@v1", "rooted@v1", "patterned@v1"], "method": "ties", "rank": 5})
    made = inlay.export("acme@v1", tmp_path / "out", store=filled)
    assert made.rank == 5
    assert made.members == (("ties(plain@v1, rooted@v1, patterned@v1)", 1.0),)
    ids = some_ids(base)
    expected = bank_logits(filled, "acme@v1", base, ids)
    assert near(peft_logits(base, tmp_path / "out", ids), expected)
    merged = inlay.merge([read(filled, name) for name in KINDS], method="ties", rank=5)
    again = read_adapter(tmp_path / "out")
    for module in merged.factors:
        assert torch.allclose(again.delta(module), merged.delta(module), atol=1e-6)


def test_the_same_lock_gives_the_same_bytes_in_other_processes(
    filled: Registry, base: Base, tmp_path: Path
) -> None:
    lock(
        filled,
        "acme",
        {
            "merge": ["plain@v1", "rooted@v1", "patterned@v1"],
            "method": "dare_ties",
            "params": {"density": 0.6},
            "seed": 11,
        },
    )
    lock(
        filled,
        "other",
        {
            "merge": ["plain@v1", "rooted@v1", "patterned@v1"],
            "method": "dare_ties",
            "params": {"density": 0.6},
            "seed": 12,
        },
    )
    code = "import sys, inlay; inlay.export(sys.argv[1], sys.argv[2], store=sys.argv[3])"
    sums = {}
    for name, ref, threads in (("one", "acme", "1"), ("two", "acme", "2"), ("three", "other", "1")):
        arguments = [sys.executable, "-c", code, f"{ref}@v1", str(tmp_path / name), str(filled.path)]
        subprocess.run(arguments, check=True, env={**os.environ, "OMP_NUM_THREADS": threads})
        sums[name] = hashlib.sha256((tmp_path / name / WEIGHTS).read_bytes()).hexdigest()
    assert sums["one"] == sums["two"]
    assert sums["one"] != sums["three"]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"merge": ["plain@v1", "rooted@v1"], "method": "tie"}, "the merge at the root: .*no method 'tie'"),
        ({"stack": [{"merge": ["plain@v1"], "method": "iso_c"}]}, "the merge at stack.0: iso_c merges at"),
        (
            {"merge": ["plain@v1", "rooted@v1"], "method": "ties", "params": {"density": 2}},
            "the merge at the root: ties: density must be",
        ),
        (
            {"merge": ["plain@v1", {"use": "rooted@v1", "weight": -1.0}]},
            "divides by the sum of the weights, which is 0",
        ),
    ],
)
def test_what_its_method_does_not_allow_is_neither_locked_nor_planned(
    node: dict[str, Any], message: str, filled: Registry
) -> None:
    with pytest.raises(InputError, match=message):
        lock(filled, "acme", node)
    assert [row.name for row in filled.names("variant")] == []
    made = filled.lock("acme", node)  # the registry itself knows no methods
    with pytest.raises(InputError, match=message):
        make_plan(filled, made)


def test_a_plan_with_merges_needs_no_torch(filled: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    filled.lock("acme", {"merge": ["plain@v1", "rooted@v1"], "method": "dare_linear", "rank": 2, "seed": 5})
    code = (
        "import sys; from inlay.registry import Registry; from inlay.composer import make_plan;"
        "store = Registry.open(sys.argv[1]); plan = make_plan(store, store.resolve('acme@v1'));"
        "assert plan.slots[0].ranks; print(sorted({'torch', 'mergekit'} & set(sys.modules)))"
    )
    arguments = [sys.executable, "-c", code, str(filled.path)]
    assert subprocess.run(arguments, check=True, capture_output=True, text=True).stdout == "[]\n"

    assert run(["plan", "acme@v1", "--store", str(filled.path)]) == 0
    text = capsys.readouterr().out
    assert "dare_linear(plain@v1, rooted@v1): merged: core space, density 1.0" in text
    assert "seed 5, rank 2; what is cut is known once it is locked or loaded" in text
    lock(filled, "acme", {"merge": ["plain@v1", "rooted@v1"], "method": "linear", "rank": 2})
    assert run(["plan", "acme@v2", "--store", str(filled.path)]) == 0
    assert "rank 2; cut by up to 0." in capsys.readouterr().out
    assert run(["plan", "acme@v2", "--store", str(filled.path), "--json"]) == 0
    (slot,) = json.loads(capsys.readouterr().out)["result"]["slots"]
    assert slot["merge"]["method"] == "linear" and slot["merge"]["rank"] == 2
    assert [i["parts"][0]["ref"] for i in slot["merge"]["inputs"]] == ["plain@v1", "rooted@v1"]
    assert set(slot["merge"]["truncation"]) == {
        *read(filled, "plain").factors,
        *read(filled, "rooted").factors,
    }


def test_two_locks_with_merges_are_compared_as_sums(filled: Registry) -> None:
    lock(filled, "acme", {"merge": ["plain@v1", "rooted@v1"], "method": "ties"})
    lock(filled, "acme", {"merge": ["plain@v1", "rooted@v1"], "method": "linear"})
    found = inlay.diff("acme@v1", "acme@v2", store=filled)
    (norms,) = found.norms
    first, second = (
        inlay.merge([read(filled, "plain"), read(filled, "rooted")], method=method)
        for method in ("ties", "linear")
    )
    by_name = {module.module: module for module in norms.modules}
    for module in first.factors:
        change = float((second.delta(module) - first.delta(module)).norm())
        assert by_name[module].change == pytest.approx(change, rel=1e-3, abs=1e-5)
