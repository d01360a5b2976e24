"""A folded checkpoint: transformers alone must compute with it what the bank computes on the base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from composer_fakes import some_ids, write_lora
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import inlay
from inlay.composer import compose, lock, read_adapter
from inlay.composer.factors import Adapter
from inlay.composer.folding import write_folded
from inlay.errors import BaseMismatch, InputError
from inlay.evals.inference import Base, load_base
from inlay.registry import Registry
from inlay.registry.fingerprint import BaseFingerprint

RECIPE = {"stack": [{"use": "one@v1", "weight": 0.7}, {"use": "two@v1", "weight": -1.5}]}


def saved(base: Base, folder: Path, dtype: torch.dtype, max_shard_size: str = "1GB") -> Path:
    """The built-in base, which lies in float16, in another precision, or in several files."""
    shutil.copytree(base.fingerprint.path, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    model = AutoModelForCausalLM.from_pretrained(base.fingerprint.path, dtype=dtype)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


@pytest.fixture
def wide(base: Base, tmp_path: Path) -> Base:
    return load_base(saved(base, tmp_path / "wide", torch.float32))


@pytest.fixture
def half(base: Base, tmp_path: Path) -> Base:
    folder = saved(base, tmp_path / "half", torch.bfloat16, "500KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return load_base(folder, dtype="bfloat16")


@pytest.fixture
def filled(store: Registry, base: Base, tmp_path: Path) -> Registry:
    add(store, base, tmp_path)
    return store


def add(store: Registry, base: Base, tmp_path: Path) -> None:
    for seed, (name, config) in enumerate(
        {
            "one": {"r": 4},
            "two": {"r": 9, "use_rslora": True, "target_modules": ["q_proj", "up_proj"]},
        }.items()
    ):
        folder = write_lora(tmp_path / name, base, seed=seed, strength=0.1, **config)
        store.add(name, folder, base=base.fingerprint, run={"examples": ["a b", "c d"]})
    store.lock("acme", RECIPE)


def of_bank(store: Registry, ref: str, base: Base, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    model = compose(ref, store=store, base=base)
    try:
        return asked(model.model, ids)
    finally:
        model.detach()


def asked(model: torch.nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and what greedy decoding adds."""
    with torch.inference_mode():
        logits = model(input_ids=ids).logits.clone()
        mask = torch.ones_like(ids)
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False)  # type: ignore[operator]
    return logits, out[:, ids.shape[1] :]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_transformers_computes_what_the_bank_computes(store: Registry, wide: Base, tmp_path: Path) -> None:
    add(store, wide, tmp_path)
    ids = some_ids(wide)
    expected, greedy = of_bank(store, "acme@v1", wide, ids)
    before = files_of(wide.fingerprint.path)
    made = inlay.export("acme@v1", tmp_path / "out", store=store, full=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    found, answered = asked(model, ids)
    assert (found - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
    assert torch.equal(answered, greedy)
    assert (expected - wide.model(input_ids=ids).logits).abs().max() > 0.1, "the adapters do something"
    assert files_of(wide.fingerprint.path) == before, "the base is only read"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == wide.tokenizer.chat_template
    assert (made.full, made.rank, made.modules) == (True, 13, 16)
    assert made.parameters == sum(p.numel() for p in wide.model.parameters())
    assert made.nbytes == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert not (tmp_path / "out" / "inlay.json").exists()


def test_what_is_not_adapted_keeps_its_bytes(store: Registry, wide: Base, tmp_path: Path) -> None:
    add(store, wide, tmp_path)
    inlay.export("acme@v1", tmp_path / "out", store=store, full=True)
    before = load_file(wide.fingerprint.path / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    expected = {
        f"model.layers.{n}.{m}.weight"
        for n in range(4)
        for m in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj", "mlp.up_proj")
    }
    assert changed == expected
    for name in changed:
        delta = sum(
            weight * read_adapter(store.resolve(f"{ref}@v1"), store=store).delta(module)  # type: ignore[arg-type]
            for ref, weight in (("one", 0.7), ("two", -1.5))
            if (module := name.removesuffix(".weight"))
            in read_adapter(store.resolve(f"{ref}@v1"), store=store).factors  # type: ignore[arg-type]
        )
        assert (after[name] - before[name] - delta).abs().max() < 1e-6


def test_a_half_precision_base_in_shards_keeps_both(store: Registry, half: Base, tmp_path: Path) -> None:
    add(store, half, tmp_path)
    inlay.export("acme@v1", tmp_path / "out", store=store, full=True)
    source = half.fingerprint.path
    names = {path.name for path in source.glob("*.safetensors*")}
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors*")} == names
    for name in names:
        if name.endswith(".safetensors"):
            before, after = load_file(source / name), load_file(tmp_path / "out" / name)
            assert {k: (t.dtype, t.shape) for k, t in before.items()} == {
                k: (t.dtype, t.shape) for k, t in after.items()
            }
    ids = some_ids(half)
    unrounded = load_base(source)
    expected, _ = of_bank(store, "acme@v1", unrounded, ids)  # the half-precision weights, computed in float32
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)(input_ids=ids).logits
    moved = (expected - unrounded.model(input_ids=ids).logits).norm()
    assert (found - expected).norm() < 0.02 * moved, "only the rounding of the folded weights differs"


def test_layers_that_keep_their_weight_transposed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=50, n_positions=16, n_embd=8, n_layer=2, n_head=2, tie_word_embeddings=False
    )
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path / "base")
    factors = {
        "transformer.h.0.attn.c_proj": (torch.randn(3, 8), torch.randn(8, 3)),  # square, so nothing warns
        "transformer.h.1.attn.c_attn": (torch.randn(2, 8), torch.randn(24, 2)),
        "transformer.wte": (torch.randn(2, 50), torch.randn(8, 2)),
        "lm_head": (torch.randn(2, 8), torch.randn(50, 2)),
    }
    (tmp_path / "out").mkdir()
    write_folded(tmp_path / "out", factors, BaseFingerprint.of(tmp_path / "base"), "x")
    with torch.no_grad():
        for module, (a, b) in factors.items():
            delta = b @ a
            model.get_submodule(module).weight.add_(delta if module == "lm_head" else delta.T)
    ids = torch.arange(12).reshape(2, 6)
    found = GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()(input_ids=ids).logits
    assert (found - model(input_ids=ids).logits).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("module", "other"), [("model.embed_tokens", "lm_head"), ("lm_head", "model.embed_tokens")]
)
def test_tied_embeddings_are_refused_by_name(module: str, other: str, base: Base, tmp_path: Path) -> None:
    wide, narrow = base.model.config.vocab_size, base.model.config.hidden_size
    inputs, outputs = (wide, narrow) if module == "model.embed_tokens" else (narrow, wide)
    adapter = Adapter("tied", {module: (torch.ones(2, inputs), torch.ones(outputs, 2))})
    with pytest.raises(InputError, match=rf"{module}, whose weight in .* is that of {other} as well"):
        inlay.export(adapter, tmp_path / "out", full=True, base=base.fingerprint.path)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_folded_is_refused(filled: Registry, base: Base, tmp_path: Path) -> None:
    lock(filled, "routed", {"route": {"by": "probe", "experts": ["one@v1", "two@v1"]}}, base=base)
    with pytest.raises(InputError, match="routes at the root"):
        inlay.export("routed@v1", tmp_path / "out", store=filled, full=True)
    with pytest.raises(InputError, match="a model and no adapter"):
        inlay.export("acme@v1", tmp_path / "out", store=filled, full=True, engine="vllm")
    adapter = Adapter("x", {"model.layers.9.mlp.up_proj": (torch.ones(1, 4), torch.ones(4, 1))})
    with pytest.raises(InputError, match=r"which the base .* does not have"):
        inlay.export(adapter, tmp_path / "out", full=True, base=base.fingerprint.path)
    with pytest.raises(InputError, match="nobody told which base"):
        inlay.export(adapter, tmp_path / "out", full=True)
    narrow = Adapter("x", {"model.layers.0.mlp.up_proj": (torch.ones(1, 4), torch.ones(4, 1))})
    with pytest.raises(InputError, match=r"a Linear of \(192, 512\), its delta \(4, 4\)"):
        inlay.export(narrow, tmp_path / "out", full=True, base=base.fingerprint.path)
    huge = Adapter(
        "x", {"model.layers.0.mlp.up_proj": (torch.full((1, 192), 1e30), torch.full((512, 1), 1e30))}
    )
    with pytest.raises(InputError, match="must be finite"):
        inlay.export(huge, tmp_path / "out", full=True, base=base.fingerprint.path)
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "nothing is left behind"


def test_only_the_right_base_is_folded_and_never_in_its_own_folder(
    filled: Registry, half: Base, tmp_path: Path
) -> None:
    with pytest.raises(BaseMismatch, match="was made for the base"):
        inlay.export("acme@v1", tmp_path / "out", store=filled, full=True, base=half.fingerprint.path)
    names = sorted(path.name for path in half.fingerprint.path.iterdir())
    adapter = Adapter("x", {"model.layers.0.mlp.up_proj": (torch.ones(1, 192), torch.ones(512, 1))})
    with pytest.raises(InputError, match="outside of its base's"):
        inlay.export(adapter, half.fingerprint.path / "out", full=True, base=half.fingerprint.path)
    assert sorted(path.name for path in half.fingerprint.path.iterdir()) == names


def test_the_verb(filled: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from inlay.cli import run

    asked_for = ["export", "acme@v1", str(tmp_path / "out"), "--full", "--store", str(filled.path)]
    assert run([*asked_for, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert result["full"] is True and result["modules"] == 16
    assert run([*asked_for[:2], str(tmp_path / "more"), *asked_for[3:], "--base", "builtin"]) == 0
    assert "16 modules of the base changed" in capsys.readouterr().out
    same = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "more")]
    assert same[0] == same[1], "the same input gives the same bytes"


def test_a_quantised_base_is_refused(base: Base, tmp_path: Path) -> None:
    folder = saved(base, tmp_path / "quantised", torch.float32)
    config = json.loads((folder / "config.json").read_text())
    quantised = {**config, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (folder / "config.json").write_text(json.dumps(quantised))
    adapter = Adapter("x", {"model.layers.0.mlp.up_proj": (torch.ones(1, 192), torch.ones(512, 1))})
    with pytest.raises(
        InputError, match="only floating point weights can be folded, and quantised is quantised"
    ):
        inlay.export(adapter, tmp_path / "out", full=True, base=folder)
    assert not (tmp_path / "out").exists()
