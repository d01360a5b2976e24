"""A stack leaves as one PEFT adapter: PEFT itself loads it and must compute what the bank computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from composer_fakes import peft_logits, some_ids, write_lora
from safetensors.torch import load_file

import inlay
from inlay.composer import compose, lock, read_adapter
from inlay.composer.factors import Adapter
from inlay.errors import InputError, StoreBusy
from inlay.evals.inference import Base
from inlay.registry import Registry

# Different ranks, targets, scalings and patterns, so that nothing lines up by luck.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8},
    "rooted": {"r": 9, "lora_alpha": 5, "use_rslora": True, "target_modules": ["q_proj", "o_proj"]},
    "patterned": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"v_proj": 7},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 3},
        "target_modules": ["q_proj", "v_proj"],
    },
}
PROMPTS = ["Which number is larger, 14 or 52?", "Write these words in upper case: river garden"]


@pytest.fixture
def filled(store: Registry, base: Base, tmp_path: Path) -> Registry:
    for seed, (name, config) in enumerate(KINDS.items(), 1):
        folder = write_lora(tmp_path / name, base, seed=seed, strength=0.1, **config)
        store.add(name, folder, base=base.fingerprint, run={"examples": PROMPTS})
    return store


def bank_logits(store: Registry, ref: str, base: Base, ids: torch.Tensor) -> torch.Tensor:
    model = compose(ref, store=store, base=base)
    try:
        with torch.inference_mode():
            return model.model(input_ids=ids).logits.clone()
    finally:
        model.detach()


def greedy(base: Base, folder: Path) -> list[list[int]]:
    """What PEFT answers with the adapter in `folder`, token by token."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(base.model, folder)
    model.eval()
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([encoded(base, prompt)])
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
            )
        found.append(out[0, ids.shape[1] :].tolist())
    model.unload()
    base.model.eval()
    return found


def encoded(base: Base, prompt: str) -> list[int]:
    from inlay.evals.inference import encode_prompt

    return encode_prompt(base.tokenizer, prompt)


def test_peft_computes_what_the_bank_computes(filled: Registry, base: Base, tmp_path: Path) -> None:
    inner = {"stack": ["rooted@v1", {"use": "patterned@v1", "weight": -0.5}], "weight": 1.5}
    filled.lock("acme", {"stack": [{"use": "plain@v1", "weight": 0.7}, inner]})
    ids = some_ids(base)
    expected = bank_logits(filled, "acme@v1", base, ids)
    made = inlay.export("acme@v1", tmp_path / "out", store=filled)
    found = peft_logits(base, tmp_path / "out", ids)
    assert (found - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
    assert (expected - base.model(input_ids=ids).logits).abs().max() > 0.1, "the adapters do something"
    assert dict(made.members) == pytest.approx({"plain@v1": 0.7, "rooted@v1": 1.5, "patterned@v1": -0.75})
    # q_proj of every layer has all three: 4 + 9 + 4.
    assert made.rank == 17


def test_peft_answers_token_by_token_what_the_bank_answers(
    filled: Registry, base: Base, tmp_path: Path
) -> None:
    filled.lock("acme", {"stack": ["plain@v1", {"use": "rooted@v1", "weight": 0.5}]})
    inlay.export("acme@v1", tmp_path / "out", store=filled)
    model = compose("acme@v1", store=filled, base=base)
    try:
        with torch.inference_mode():
            expected = []
            for prompt in PROMPTS:
                ids = torch.tensor([encoded(base, prompt)])
                mask = torch.ones_like(ids)
                out = model.model.generate(
                    input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False
                )
                expected.append(out[0, ids.shape[1] :].tolist())
    finally:
        model.detach()
    assert greedy(base, tmp_path / "out") == expected


@pytest.mark.parametrize("name", list(KINDS))
def test_one_version_leaves_as_it_was(name: str, filled: Registry, base: Base, tmp_path: Path) -> None:
    version = filled.resolve(f"{name}@v1")
    ids = some_ids(base)
    inlay.export(version, tmp_path / "out", store=filled)  # type: ignore[arg-type]
    expected = peft_logits(base, version.path, ids)  # type: ignore[union-attr]
    assert (peft_logits(base, tmp_path / "out", ids) - expected).abs().max() < 1e-4


def test_the_configuration_can_be_read_in_one_way(filled: Registry, base: Base, tmp_path: Path) -> None:
    filled.lock("acme", {"stack": ["plain@v1", "patterned@v1"]})
    made = inlay.export("acme@v1", tmp_path / "out", store=filled)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"] == made.rank == 11
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert config["use_rslora"] is config["use_dora"] is False
    assert config["init_lora_weights"] is True
    assert config["bias"] == "none" and config["modules_to_save"] is None
    assert config["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    assert config["task_type"] == "CAUSAL_LM"
    assert config["base_model_name_or_path"] == base.fingerprint.name
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {t.shape[0] for k, t in tensors.items() if k.endswith("lora_A.weight")} == {11}
    assert {t.shape[1] for k, t in tensors.items() if k.endswith("lora_B.weight")} == {11}
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert made.parameters == sum(t.numel() for t in tensors.values())
    assert made.nbytes == (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    assert made.modules * 2 == len(tensors)


def test_modules_are_named_whole_where_a_last_name_would_mean_more(
    store: Registry, base: Base, tmp_path: Path
) -> None:
    folder = write_lora(
        tmp_path / "one", base, seed=3, strength=0.1, target_modules=["layers.1.self_attn.q_proj"]
    )
    store.add("one", folder, base=base.fingerprint)
    inlay.export("one@v1", tmp_path / "out", store=store)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.1.self_attn.q_proj"]
    ids = some_ids(base)
    expected = peft_logits(base, folder, ids)
    assert (peft_logits(base, tmp_path / "out", ids) - expected).abs().max() < 1e-5


def test_a_loaded_model_and_an_adapter_leave_as_well(filled: Registry, base: Base, tmp_path: Path) -> None:
    filled.lock("acme", {"stack": ["plain@v1"]})
    model = compose("acme@v1", store=filled, base=base)
    try:
        inlay.export(model, tmp_path / "model")
    finally:
        model.detach()
    inlay.export("acme@v1", tmp_path / "ref", store=filled)
    inlay.export(read_adapter(filled.resolve("plain@v1"), store=filled), tmp_path / "adapter")  # type: ignore[arg-type]
    weights = [(tmp_path / n / "adapter_model.safetensors").read_bytes() for n in ("model", "ref", "adapter")]
    assert weights[0] == weights[1] == weights[2]


def test_an_export_can_be_registered_again(filled: Registry, base: Base, tmp_path: Path) -> None:
    filled.lock("acme", {"stack": ["plain@v1", "rooted@v1"]})
    made = inlay.export("acme@v1", tmp_path / "out", store=filled)
    version = filled.add("flat", tmp_path / "out", base=base.fingerprint)
    assert (version.kind, version.rank, version.exactness) == ("lora", made.rank, "exact")
    assert version.parameters == made.parameters


def test_what_has_no_such_form_is_refused(filled: Registry, base: Base, tmp_path: Path) -> None:
    filled.lock("mixed", {"merge": ["plain@v1", {"route": {"by": "arrow", "experts": ["rooted@v1"]}}]})
    filled.lock("nothing", {"stack": [{"use": "plain@v1", "weight": 0}]})
    lock(filled, "routed", {"route": {"by": "probe", "experts": ["plain@v1", "rooted@v1"]}}, base=base)
    for ref, reason in (
        ("mixed@v1", "a merge makes one adapter for all requests, and merge.1 is a route"),
        ("nothing@v1", "adds nothing to its base"),
        ("routed@v1", "routes at the root: it chooses an adapter for each request"),
    ):
        with pytest.raises(InputError, match=reason):
            inlay.export(ref, tmp_path / "out", store=filled)
    with pytest.raises(InputError, match="adds nothing"):
        inlay.export(Adapter("empty", {}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(filled: Registry, tmp_path: Path) -> None:
    taken, empty = tmp_path / "taken", tmp_path / "empty"
    taken.mkdir()
    (taken / "mine.txt").write_text("keep")
    empty.mkdir()
    with pytest.raises(InputError, match="holds something already"):
        inlay.export("plain@v1", taken, store=filled)
    assert [p.name for p in taken.iterdir()] == ["mine.txt"]
    inlay.export("plain@v1", empty, store=filled)
    assert sorted(p.name for p in empty.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    (tmp_path / "file").write_text("")
    with pytest.raises((InputError, StoreBusy)):
        inlay.export("plain@v1", tmp_path / "file" / "below", store=filled)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")], "nothing half-written is left"


def test_the_verb(filled: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from inlay.cli import run

    filled.lock("acme", {"stack": ["plain@v1", {"use": "rooted@v1", "weight": 0.5}]})
    asked = ["export", "acme@v1", str(tmp_path / "out"), "--store", str(filled.path)]
    assert run([*asked, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert result["members"] == [["plain@v1", 1.0], ["rooted@v1", 0.5]]
    assert result["rank"] == 13
    assert Path(result["folder"]) == tmp_path / "out"
    assert run(asked) == 2
    assert "holds something already" in capsys.readouterr().err
    assert run(["export", "acme@v1", str(tmp_path / "more"), "--store", str(filled.path)]) == 0
    said = capsys.readouterr().out
    assert "plain@v1 + 0.5 × rooted@v1" in said and "rank 13" in said
