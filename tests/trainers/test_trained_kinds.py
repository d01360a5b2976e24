"""Kinds and placement: each is trained, registered, loaded, and says what the trained model said."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import set_seed

import inlay
from inlay.builtin.tasks import rows
from inlay.composer import compose
from inlay.composer.alone import twin_of
from inlay.composer.bank import BankLayer
from inlay.errors import InputError
from inlay.evals import Suite
from inlay.evals.inference import Base, base_answers, encode_prompt, load_base
from inlay.registry import Registry
from inlay.trainers.anchor import Anchor
from inlay.trainers.data import read_dataset
from inlay.trainers.fit import Fitted, fit, release, save_adapter
from inlay.trainers.kinds import KINDS, config_of, put_on, said, take_off
from inlay.trainers.pissa import initial
from inlay.trainers.placement import layer_numbers, targets_of
from inlay.trainers.settings import Settings

PROMPTS = ["Write these words in upper case: river garden", "Which number is larger, 14 or 52?", "Copy: lamp"]
QUICK: dict[str, Any] = {
    "max_steps": 3,
    "batch_size": 4,
    "kl_batch_size": 2,
    "rank": 2,
    "alpha": 4.0,
    "learning_rate": 1e-2,
    "warmup": 0.0,
    "virtual_tokens": 3,
}
LOHA = {"peft_type": "LOHA", "r": 2, "alpha": 4, "target_modules": ["q_proj", "down_proj"]}
OFFERED: dict[str, Any] = {
    **{kind: kind for kind in KINDS if kind != "qlora"},
    "loha": LOHA,
    "lora that trains biases and a norm": {
        "peft_type": "lora",
        "r": 2,
        "target_modules": ["q_proj"],
        "modules_to_save": ["norm"],
    },
    "prompt tuning": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3},
}
BEGIN_ELSEWHERE = ("prefix", "prompt tuning")
"""Kinds whose fresh adapter already says something else than the base."""
ALONE = ("dora", "prefix", "ia3", "lora that trains biases and a norm", "prompt tuning")


def settings(**more: Any) -> Settings:
    return Settings().replaced(**{**QUICK, **more})


def fitted_on(base: Base, chosen: Settings) -> Fitted:
    answers = base_answers(base, PROMPTS, max_new_tokens=8)
    return fit(base, read_dataset(rows("ticket-queue", "train", 12, 0)), chosen, general=(PROMPTS, answers))


def logits(model: Any, base: Base) -> torch.Tensor:
    ids = torch.tensor([encode_prompt(base.tokenizer, PROMPTS[0])])
    with torch.inference_mode():
        said = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return said[:, -ids.shape[1] :]


@pytest.mark.parametrize("name", OFFERED)
def test_what_is_registered_speaks_as_what_was_trained(
    name: str, base: Base, store: Registry, tmp_path: Path
) -> None:
    bare = logits(base.model, base)
    fitted = fitted_on(base, settings(kind=OFFERED[name]))
    trained = logits(fitted.model, base)
    assert float((trained - bare).abs().max()) > 1e-2, "three steps must have done something"
    first, *later = [row["kl"] for row in fitted.curve]
    assert (first > 1e-3) if name in BEGIN_ELSEWHERE else (abs(first) < 1e-5), "its teacher is the base"
    assert all(kl > 1e-5 for kl in later)
    save_adapter(fitted, tmp_path / "adapter")
    release(fitted)
    assert torch.equal(logits(base.model, base), bare)
    version = store.add("kind", tmp_path / "adapter", base=base.fingerprint, why="test")
    composed = compose(version, store=store, base=base)
    try:
        assert (composed.plan.alone is not None) == (name in ALONE)
        assert torch.allclose(logits(composed.model, base), trained, atol=1e-4)
        assert len(composed.generate(PROMPTS, max_new_tokens=4)) == 3
    finally:
        composed.detach()
    assert store.fsck() == []


@pytest.mark.parametrize("kind", ["dora", "prefix", "ia3", "pissa"])
def test_a_run_is_measured_whatever_its_kind(kind: str, base: Base, store: Registry) -> None:
    suite = Suite("small", Suite.load("general-v1").items[::100])
    given = {**QUICK, "general": [suite], "general_prompts": PROMPTS, "kind": kind}
    data = rows("ticket-queue", "train", 12, 0)
    result = inlay.train(base, data, name="kind", store=store, **given)
    assert result.run["settings"]["kind"] == kind
    assert {e.suite_name for e in store.evals(result.version.digest)} == {"small"}
    again = inlay.train(base, data, name="kind", store=store, **given)
    assert again.version.digest == result.version.digest, "the same seed gives the same bytes"


@pytest.mark.parametrize("kind", ["pissa", "prefix", "ia3"])
def test_preferences_train_every_kind(kind: str, base: Base, store: Registry) -> None:
    """DPO's reference is the model as training found it, so that its first loss is ln 2."""
    pairs = [
        {"prompt": row["input"], "chosen": row["output"], "rejected": "none"}
        for row in rows("ticket-queue", "train", 12, 0)
    ]
    suite = Suite("small", Suite.load("general-v1").items[::100])
    given = {**QUICK, "general": [suite], "general_prompts": PROMPTS, "kind": kind, "learning_rate": 1e-3}
    result = inlay.train(base, pairs, name="kind", store=store, method="dpo", held_out_share=0.2, **given)
    losses = [row["loss"] for row in result.run["curve"]]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4) and losses[-1] != losses[0]


@pytest.mark.parametrize("name", OFFERED)
def test_the_teacher_is_the_bare_base(name: str, base: Base) -> None:
    """Whatever the adapter has become, the anchor's teacher says what the base says."""
    answers = base_answers(base, PROMPTS, max_new_tokens=8)
    chosen = settings(kind=OFFERED[name])
    fitted = fitted_on(base, chosen)
    beside = fitted.model.get_base_model() is not base.model
    anchor = Anchor(
        base.tokenizer,
        PROMPTS,
        answers,
        rows=3,
        prompt_weight=1.0,
        seed=0,
        device="cpu",
        teacher=base.model if beside else None,
    )
    order = [0, 1, 2]
    with torch.no_grad():
        anchor.kl(fitted.model)
        taught = anchor._base_hidden(fitted.model, order)
        release(fitted)
        bare = anchor._hidden(base.model, order)
    assert torch.allclose(taught, bare, atol=1e-5)


def test_lora_is_what_it_always_was(base: Base) -> None:
    """By default PEFT gets the configuration that it got before there were kinds."""
    before = LoraConfig(
        r=16,
        lora_alpha=32.0,
        lora_dropout=0.0,
        target_modules="all-linear",
        bias="none",
        task_type="CAUSAL_LM",
    )
    assert config_of(Settings(), base.model).to_dict() == before.to_dict()


def test_pissa_trains_as_peft_trains_it(base: Base) -> None:
    """Three steps of SGD on PEFT's own PiSSA, which changes its base, and on ours, which does not: the same
    function after each."""
    chosen = settings(kind="pissa", target_modules="q_proj,down_proj")
    config = LoraConfig(
        r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], init_lora_weights="pissa_niter_16"
    )
    torch.manual_seed(0)
    theirs = get_peft_model(twin_of(base.model), config)
    torch.manual_seed(0)
    mine = put_on(base.model, config_of(chosen, base.model), chosen)
    assert torch.allclose(logits(mine, base), logits(base.model, base), atol=1e-5), "it begins at the base"
    ids = torch.tensor([encode_prompt(base.tokenizer, PROMPTS[1])])
    found = []
    for model in (mine, theirs):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
        found.append(logits(model, base))
    layer = mine.get_base_model().get_submodule("model.layers.0.self_attn.q_proj")
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert not torch.allclose(a[:2], a[2:]) and not torch.allclose(b[:, :2], -b[:, 2:])
    with mine.disable_adapter():
        assert torch.equal(logits(mine, base), logits(base.model, base))
    take_off(base.model, mine)
    assert float((found[1] - logits(base.model, base)).abs().max()) > 1e-2
    assert torch.allclose(found[0], found[1], atol=1e-4)


def test_pissa_keeps_its_start_in_its_second_half(base: Base, tmp_path: Path) -> None:
    chosen = settings(kind="pissa", target_modules="q_proj")
    fitted = fitted_on(base, chosen)
    save_adapter(fitted, tmp_path)
    release(fitted)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (4, 8, True)
    set_seed(chosen.seed)
    for name, (a0, b0) in initial(base.model, chosen).items():
        assert torch.equal(tensors[f"base_model.model.{name}.lora_A.weight"][2:], a0)
        assert torch.equal(tensors[f"base_model.model.{name}.lora_B.weight"][:, 2:], -b0)


def test_nothing_but_lora_touches_the_base_and_biases_are_its_own(base: Base) -> None:
    """A kind that trains tensors of the base's trains copies of them."""
    given = {"peft_type": "LN_TUNING", "target_modules": ["norm"]}
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    fitted = fitted_on(base, settings(kind=given, kl=0.0))
    assert not torch.equal(logits(fitted.model, base), logits(base.model, base))
    release(fitted)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.model.state_dict().items())


@pytest.mark.parametrize(
    ("layers", "count", "numbers"),
    [
        ("all", 4, [0, 1, 2, 3]),
        ("early", 8, [0, 1]),
        ("middle", 8, [2, 3, 4]),
        ("late", 8, [5, 6, 7]),
        ("0,2-3", 4, [0, 2, 3]),
        ("10-12", 28, [10, 11, 12]),
    ],
)
def test_layers_by_name_and_number(layers: str, count: int, numbers: list[int]) -> None:
    assert layer_numbers(layers, count) == numbers


@pytest.mark.parametrize("count", range(3, 40))
def test_thirds_are_all_layers_once(count: int) -> None:
    parts = [layer_numbers(third, count) for third in ("early", "middle", "late")]
    assert all(parts) and [*parts[0], *parts[1], *parts[2]] == list(range(count))


def adapted(base: Base, chosen: Settings) -> set[str]:
    model = put_on(base.model, config_of(chosen, base.model), chosen)
    names = {
        name.removeprefix("base_model.model.") for name, m in model.named_modules() if hasattr(m, "lora_A")
    }
    take_off(base.model, model)
    assert not any(isinstance(module, BankLayer) for module in base.model.modules())
    return names


def test_placement_is_where_the_adapter_is(base: Base) -> None:
    """Against PEFT's own all-linear, and its own choice by names and layers."""
    everywhere = adapted(base, settings())
    assert everywhere == set(targets_of(base.model, "all-linear", "all"))
    last = base.model.config.num_hidden_layers - 1
    assert adapted(base, settings(layers=str(last))) == {n for n in everywhere if f".{last}." in n}
    queries = adapted(base, settings(target_modules="q_proj", layers=f"1-{last}"))
    assert queries == {f"model.layers.{n}.self_attn.q_proj" for n in range(1, last + 1)}
    assert adapted(base, settings(target_modules=r".*\.0\..*(q|k)_proj")) == {
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.k_proj",
    }


def test_patterns_reach_peft(base: Base) -> None:
    chosen = settings(target_modules="q_proj,v_proj", rank_pattern=["q_proj=5"], alpha_pattern={"q_proj": 1})
    model = put_on(base.model, config_of(chosen, base.model), chosen)
    attention = model.get_base_model().get_submodule("model.layers.0.self_attn")
    shapes = {n: getattr(attention, n).lora_A["default"].weight.shape[0] for n in ("q_proj", "v_proj")}
    scales = {n: getattr(attention, n).scaling["default"] for n in ("q_proj", "v_proj")}
    take_off(base.model, model)
    assert shapes == {"q_proj": 5, "v_proj": 2} and scales == {"q_proj": 1 / 5, "v_proj": 2.0}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layers": "7-2"}, "7-2 is not among them"),
        ({"layers": "0-99"}, "0-99 is not among them"),
        ({"target_modules": "q_prog"}, r"did you mean q_proj\?"),
        ({"target_modules": "lm_head"}, "the output head cannot be adapted"),
        ({"target_modules": "(q_proj"}, "no regular expression"),
        ({"rank_pattern": {"q_prog": 4}}, "q_prog is none of them"),
        ({"kind": "qlora"}, "QLoRA needs CUDA, and this run is on the cpu"),
        ({"kind": "prefix", "layers": "0"}, "prefix tuning is in every layer"),
        ({"kind": "ia3", "rank_pattern": {"q_proj": 4}}, "no use for them"),
        ({"kind": "pissa", "weight_decay": 0.1}, "weight_decay would wear it off"),
        ({"kind": {"peft_type": "LOHA", "rr": 2}}, "'rr' is no field of a LOHA"),
        ({"kind": {**LOHA, "target_modules": ["zz"]}}, "PEFT cannot make this LOHA: Target modules"),
        ({"kind": {**LOHA, "task_type": "SEQ_CLS"}}, "could not be asked"),
        ({"kind": {"peft_type": "LORA", "init_lora_weights": "olora"}}, "take kind: pissa"),
        ({"kind": LOHA, "layers": "0"}, "says where it is"),
    ],
)
def test_what_the_base_cannot_carry_is_refused(change: dict[str, Any], says: str, base: Base) -> None:
    with pytest.raises(InputError, match=says) as raised:
        chosen = settings(**change)
        put_on(base.model, config_of(chosen, base.model), chosen)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "lorra"}, "the kind must be lora or rslora"),
        ({"kind": {"r": 2}}, "says its peft_type"),
        ({"kind": {"peft_type": "LOHAH"}}, r"did you mean LOHA\?"),
        ({"kind": {"peft_type": "XLORA"}}, "XLORA cannot be registered"),
        ({"kind": {"peft_type": "LOHA", "r": {1, 2}}}, "must be plain data"),
        ({"kind": 3}, "must be a name or a PEFT configuration"),
        ({"method": "full", "kind": "dora"}, "full fine-tuning extracts a LoRA"),
        ({"layers": "some"}, "layers must be all, early, middle, late or numbers"),
        ({"target_modules": []}, "target_modules must be names"),
        ({"rank_pattern": ["q_proj"]}, "a pattern is NAME=NUMBER"),
        ({"rank_pattern": ["q_proj=1.5"]}, "a rank is a whole number"),
        ({"alpha_pattern": ["q_proj=0"]}, "numbers above zero"),
        ({"alpha_pattern": ["a=1", "a=2"]}, "names one twice"),
    ],
)
def test_what_no_base_could_carry_is_refused_at_once(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        settings(**change)


def test_a_saved_adapters_configuration_will_do(base: Base, tmp_path: Path) -> None:
    fitted = fitted_on(base, settings(kind=LOHA))
    save_adapter(fitted, tmp_path)
    release(fitted)
    given = json.loads((tmp_path / "adapter_config.json").read_text())
    assert given["inference_mode"] is True
    chosen = settings(kind=given)
    model = put_on(base.model, config_of(chosen, base.model), chosen)
    assert isinstance(model, PeftModel) and any(p.requires_grad for p in model.parameters())
    take_off(base.model, model)


def test_every_kind_says_what_it_is() -> None:
    assert all(len(said(kind)) > 20 and said(kind).endswith(".") for kind in KINDS)
    assert Settings.from_dict(settings(kind=LOHA, rank_pattern={"q_proj": 3}).to_dict()).kind == LOHA


@pytest.mark.cuda
def test_qlora_is_trained_in_four_bits_and_measured_on_the_base(store: Registry) -> None:
    pytest.importorskip("bitsandbytes")
    from inlay.builtin import base_path

    base = load_base(base_path(), device="cuda")
    suite = Suite("small", Suite.load("general-v1").items[::100])
    data = rows("ticket-queue", "train", 12, 0)
    given = {**QUICK, "general": [suite], "general_prompts": PROMPTS, "kind": "qlora"}
    before = logits(base.model.to("cpu"), base)
    base.model.to("cuda")
    result = inlay.train(base, data, name="kind", store=store, **given)
    assert result.run["settings"]["kind"] == "qlora"
    assert base.model.device.type == "cuda"
    assert torch.equal(logits(base.model.to("cpu"), base), before)
