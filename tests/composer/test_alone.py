"""Kinds without factors, one at a time through PEFT: its numbers, and the base as it was."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from composer_fakes import some_ids, write_lora
from peft_cases import CASES, make_model, save_adapter, save_base
from safetensors.torch import load_file, save_file

import inlay
from inlay.cli import run
from inlay.composer import compose, lock, make_plan
from inlay.composer.alone import load_alone, refusal_alone, twin_of
from inlay.composer.bank import Bank
from inlay.composer.plan import Plan
from inlay.errors import InputError
from inlay.evals import Suite
from inlay.evals.inference import Base, encode_prompt
from inlay.registry import Recipe, Registry, Version
from inlay.registry.kinds import ALONE, STRUCTURE

ALL = [name for name, case in CASES.items() if case.exactness in (ALONE, STRUCTURE)]
REFUSED = {
    "glora with biases": "FEATURE_EXTRACTION",
    "lora for classes": "SEQ_CLS",
    "lora on a convolution": "FEATURE_EXTRACTION",
    "dora on a convolution": "FEATURE_EXTRACTION",
    "multitask_prompt_tuning": "number of a task",
    "poly": "number of a task",
    "prompt_tuning for classes": "SEQ_CLS",
}
FAST = (
    *("dora", "hira", "randlora", "fourierft", "c3a", "shira", "oft", "boft", "hra", "ia3", "miss bat"),
    *("lora on embeddings", "lora on conv1d and a head", "lora with saved modules", "lora with all biases"),
    *("adaption_prompt", "prompt_tuning", "prefix_tuning", "p_tuning", "multitask_prompt_tuning"),
)
PROMPTS = [
    "Which queue handles this message?\nMy parcel is late.",
    "Hi",
    "Write these words in upper case: river garden, and some more of them, please",
]
FULL: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("LoraConfig", {"r": 2, "use_dora": True, "target_modules": ["q_proj", "down_proj"]}),
    "ia3": ("IA3Config", {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "modules": ("LoraConfig", {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["norm"]}),
    "head": ("LoraConfig", {"r": 2, "target_modules": ["q_proj", "lm_head"], "use_dora": True}),
    "prefix": ("PrefixTuningConfig", {"num_virtual_tokens": 3}),
    "prompt": ("PromptTuningConfig", {"num_virtual_tokens": 3}),
}


def disturb(folder: Path, strength: float, seed: int = 1) -> Path:
    """The adapter with noise on every number that was trained, so that it does something."""
    file = folder / "adapter_model.safetensors"
    generator = torch.Generator().manual_seed(seed)
    noisy = {
        key: (tensor + strength * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for key, tensor in sorted(load_file(file).items())
    }
    save_file(noisy, file)
    return folder


def snapshot(model: torch.nn.Module) -> tuple[list[tuple[str, int]], dict[str, torch.Tensor]]:
    """Which object each module is, and what every tensor holds."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return [(name, id(module)) for name, module in model.named_modules()], tensors


def unchanged(model: torch.nn.Module, before: tuple[list[tuple[str, int]], dict[str, torch.Tensor]]) -> bool:
    modules, tensors = snapshot(model)
    return modules == before[0] and all(torch.equal(tensors[k], v) for k, v in before[1].items())


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Registry, Path]:
    """A store for all kinds, and the folder of the tiny bases."""
    folder = tmp_path_factory.mktemp("kinds")
    for base in {CASES[name].base for name in ALL}:
        if base != "classes":
            save_base(base, folder / base)
    save_base("classes", folder / "classes")
    return inlay.Registry.open(folder / "store", create=True), folder


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in ALL]
)
def test_every_kind_answers_as_in_peft_and_leaves_the_base_alone(
    name: str, kinds: tuple[Registry, Path], tmp_path: Path
) -> None:
    case, (store, bases) = CASES[name], kinds
    save_adapter(case, tmp_path)
    disturb(tmp_path, 0.05)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    if name in REFUSED:
        assert REFUSED[name] in (refusal_alone(config) or "")
        return
    version = store.add(name.replace(" ", "-"), tmp_path, base=bases / case.base, why="test")
    plan = make_plan(store, version)
    assert plan.alone is not None and plan.alone.version == version
    assert plan.to_dict()["through_peft"] and plan.nbytes > 0 and not plan.buffers
    ids = torch.randint(1, 32, (2, 7), generator=torch.Generator().manual_seed(3))
    base = make_model(case.base).eval()
    before = snapshot(base)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        bare = base(input_ids=ids).logits
        found = load_alone(base, store, version)(input_ids=ids).logits
        expected = peft.PeftModel.from_pretrained(make_model(case.base).eval(), tmp_path)(
            input_ids=ids
        ).logits
        assert torch.equal(base(input_ids=ids).logits, bare)
    assert torch.equal(found, expected)
    assert unchanged(base, before)
    if name != "alora":  # speaks only after its words of invocation
        assert not torch.allclose(found[:, -7:], bare, atol=1e-5), "the adapter must do something"


def added(store: Registry, base: Base, folder: Path, name: str) -> Version:
    kind, settings = FULL[name]
    torch.manual_seed(0)  # PEFT draws a prompt
    config = getattr(peft, kind)(task_type="CAUSAL_LM", **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.get_peft_model(twin_of(base.model), config).save_pretrained(folder)  # type: ignore[arg-type]
    return store.add(name, disturb(folder, 0.2), base=base.fingerprint, why="test")


@pytest.mark.parametrize("name", FULL)
def test_composed_alone_it_generates_as_peft_does(
    name: str, store: Registry, base: Base, tmp_path: Path
) -> None:
    added(store, base, tmp_path / name, name)
    before = snapshot(base.model)
    plain = compose_bare(store, base)
    model = compose(f"{name}@v1", store=store, base=base)
    answers = model.generate(PROMPTS, max_new_tokens=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = peft.PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path / name)
    expected = []
    for prompt in PROMPTS:
        ids = torch.tensor([encode_prompt(base.tokenizer, prompt)])
        with torch.inference_mode():
            out = oracle.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False
            )
        expected.append(base.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip())
    assert answers == expected
    assert model.model is not base.model and isinstance(model.model, peft.PeftModel)
    assert model.base_chat.generate(PROMPTS, max_new_tokens=16) == plain
    assert model.chat.matches(PROMPTS, plain) == [a == b for a, b in zip(answers, plain, strict=True)]
    with pytest.raises(InputError, match="is run by PEFT"):
        model.generate(PROMPTS, weights=[None] * len(PROMPTS))
    with pytest.raises(InputError, match="is run by PEFT"):
        model.fold()
    model.detach()
    assert model.model is base.model and unchanged(base.model, before)
    with pytest.raises(InputError, match="was detached"):
        model.generate(PROMPTS[:1])


def compose_bare(store: Registry, base: Base) -> list[str]:
    from inlay.evals.inference import Chat

    return Chat(base).generate(PROMPTS, max_new_tokens=16)


def test_swaps_lead_to_it_and_back(store: Registry, base: Base, tmp_path: Path) -> None:
    added(store, base, tmp_path / "prompt", "prompt")
    added(store, base, tmp_path / "dora", "dora")
    store.add("plain", write_lora(tmp_path / "plain", base, seed=3), base=base.fingerprint, why="test")
    ids = some_ids(base)
    model = compose("plain@v1", store=store, base=base)
    chat = model.chat
    seen = {}
    for ref in ("plain@v1", "prompt@v1", "dora@v1", "plain@v1", "dora@v1", "prompt@v1"):
        model.swap(ref)
        with torch.inference_mode():
            logits = model.model(input_ids=ids).logits
        assert torch.equal(seen.setdefault(ref, logits), logits)
        assert chat is model.chat and chat.model is model.model
    assert len({str(logits.shape) + str(logits.sum()) for logits in seen.values()}) == 3
    with torch.inference_mode():
        assert torch.equal(model.base_chat.model(input_ids=ids).logits, base.model(input_ids=ids).logits)
    model.detach()
    assert not any(type(module).__name__ == "BankLayer" for module in base.model.modules())


def test_a_base_that_carries_another_composed_model_is_refused(
    store: Registry, base: Base, tmp_path: Path
) -> None:
    added(store, base, tmp_path / "dora", "dora")
    store.add("plain", write_lora(tmp_path / "plain", base, seed=3), base=base.fingerprint, why="test")
    other = compose("plain@v1", store=store, base=base)
    with pytest.raises(InputError, match="carries another composed model"):
        compose("dora@v1", store=store, base=base)
    other.detach()


def planned(store: Registry, recipe: dict[str, Any]) -> Plan:
    return make_plan(store, store.pin(Recipe.of(recipe), routers={}))


def test_company_is_refused_by_name_before_a_tensor_is_read(
    store: Registry, base: Base, tmp_path: Path
) -> None:
    for name in ("dora", "prefix"):
        added(store, base, tmp_path / name, name)
    store.add("plain", write_lora(tmp_path / "plain", base, seed=3), base=base.fingerprint, why="test")
    for number, node in enumerate(
        (
            {"stack": ["dora@v1", "plain@v1"]},
            {"stack": ["dora@v1", "dora@v1"]},
            {"merge": ["dora@v1", "plain@v1"], "method": "linear"},
        )
    ):
        with pytest.raises(InputError, match="dora@v1 cannot be composed with others: it is a D") as found:
            planned(store, node)
        assert "--truncate" in (found.value.fix or ""), number
    with pytest.raises(InputError, match="prefix@v1 cannot be composed with others") as found:
        planned(store, {"stack": ["prefix@v1", "plain@v1"]})
    assert "--truncate" not in (found.value.fix or "")
    with pytest.raises(InputError, match="must have weight 1"):
        planned(store, {"stack": [{"use": "dora@v1", "weight": 0.5}]})


def test_a_lock_of_it_alone_is_composed_scored_and_compared(
    store: Registry, base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    added(store, base, tmp_path / "prompt", "prompt")
    made = lock(store, "acme", {"stack": ["prompt@v1"]}, base=base)
    assert any("run by PEFT" in warning for warning in make_plan(store, made).warnings)
    assert run(["plan", "acme@v1", "--overlaps", "--store", str(store.path)]) == 0
    said_of_it = capsys.readouterr().out
    assert "no bank, PEFT runs it" in said_of_it and "alone" in said_of_it
    model = compose("acme@v1", store=store, base=base)
    suite = Suite.of_rows("words", [{"prompt": prompt, "answer": "parcel"} for prompt in PROMPTS])
    result = inlay.evaluate(model, suite, store=store)
    said = model.generate(PROMPTS, max_new_tokens=8)
    assert list(result.outcomes) == [answer == "parcel" for answer in said]
    report = inlay.forgetting(model, general=[suite], store=store)
    assert model.report is report and report.drift is not None and report.drift.forward_kl > 0
    model.detach()


def test_the_twin_shares_every_tensor_and_no_module() -> None:
    model = make_model("gpt2")
    bank = Bank(model)
    twin = twin_of(model)
    assert {p.data_ptr() for p in twin.parameters()} == {p.data_ptr() for p in model.parameters()}
    assert not {id(m) for m in twin.modules()} & {id(m) for m in model.modules()}
    assert twin.lm_head.weight is twin.transformer.wte.weight, "what was tied stays tied"
    assert bank.slots == 0
