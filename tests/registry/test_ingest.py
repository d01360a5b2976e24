"""What may come in, and that whatever may not leaves the store exactly as it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from registry_fakes import (
    MODULES,
    WIDTH,
    adapter_tensors,
    make_adapter,
    make_base,
    safetensors,
    snapshot,
    with_header,
)

from inlay.errors import BaseMismatch, InputError
from inlay.registry import BaseFingerprint, Registry
from inlay.registry.ingest import check
from inlay.registry.module_names import find_in_base

FIRST = f"base_model.model.{MODULES[0]}"
Break = Callable[[Path], object]


def rewrite(**changes: np.ndarray | None) -> Break:
    """Replace, add or (None) remove tensors; "/" stands for "." in the names."""

    def apply(folder: Path) -> None:
        tensors = adapter_tensors(1)
        for name, tensor in changes.items():
            key = name.replace("/", ".")
            if tensor is None:
                del tensors[key]
            else:
                tensors[key] = tensor
        (folder / "adapter_model.safetensors").write_bytes(safetensors(tensors))

    return apply


def configure(**changes: object) -> Break:
    def apply(folder: Path) -> None:
        make_adapter(folder, seed=1, config=changes)

    return apply


def raw(data: bytes) -> Break:
    return lambda folder: (folder / "adapter_model.safetensors").write_bytes(data)


def filled(value: float) -> np.ndarray:
    factor = np.ones((2, WIDTH), np.float32)
    factor[1, 3] = value
    return factor


def pickled(name: str) -> Break:
    return lambda folder: (folder / "adapter_model.safetensors").rename(folder / name)


def link(name: str) -> Break:
    def apply(folder: Path) -> None:
        (folder / name).rename(folder.parent / f"outside-{name}")
        os.symlink(folder.parent / f"outside-{name}", folder / name)

    return apply


BAD: dict[str, tuple[Break, str]] = {
    "NaN": (rewrite(**{f"{FIRST}.lora_A.weight": filled(np.nan)}), r"lora_A\.weight' holds NaN or infinity"),
    "infinity": (rewrite(**{f"{FIRST}.lora_A.weight": filled(np.inf)}), "holds NaN or infinity"),
    "bf16 NaN": (
        rewrite(**{f"{FIRST}.lora_A.weight": np.full((2, WIDTH), 0x7FC0, np.uint16)}),
        "holds NaN or infinity",
    ),
    "pickle .bin": (pickled("adapter_model.bin"), r"a pickle runs code.*convert it.*weights_only=True"),
    "pickle .pt": (pickled("adapter.pt"), "a pickle runs code"),
    "pickle .pth": (pickled("adapter.pth"), "a pickle runs code"),
    "unknown key": (
        rewrite(**{"base_model.model.extra.gate": np.ones(3, np.float32)}),
        r"'base_model\.model\.extra\.gate' fits nothing",
    ),
    "foreign prefix": (rewrite(**{"model.x.lora_A.weight": filled(1)}), "PEFT's keys start with"),
    "adapter's name in the key": (
        rewrite(**{f"{FIRST}.lora_A.default.weight": filled(1)}),
        r"lora_A\.default\.weight' fits nothing: it carries the name of an adapter, 'default'",
    ),
    "module the base lacks": (
        rewrite(
            **{
                "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": filled(1),
                "base_model.model.model.layers.9.self_attn.q_proj.lora_B.weight": filled(1).T,
            }
        ),
        r"layers\.9\.self_attn\.q_proj' is not in the base base \(which has model\.layers\.0",
    ),
    "A without B": (rewrite(**{f"{FIRST}.lora_B.weight": None}), "has lora_A without lora_B"),
    "B without A": (rewrite(**{f"{FIRST}.lora_A.weight": None}), "has lora_B without lora_A"),
    "wrong input size": (
        rewrite(**{f"{FIRST}.lora_A.weight": np.ones((2, WIDTH + 1), np.float32)}),
        r"lora_A\.weight must be \[2, 8\] for model\.layers\.0.*got \[2, 9\]",
    ),
    "wrong output size": (
        rewrite(**{f"{FIRST}.lora_B.weight": np.ones((WIDTH + 1, 2), np.float32)}),
        r"lora_B\.weight must be \[8, 2\] for .*got \[9, 2\]",
    ),
    "ranks of A and B differ": (
        rewrite(**{f"{FIRST}.lora_A.weight": np.ones((3, WIDTH), np.float32)}),
        r"lora_A\.weight must be \[2, 8\] for .*got \[3, 8\]",
    ),
    "rank is not the configuration's": (configure(r=4), "has rank 2, adapter_config.json says"),
    "no factors at all": (raw(safetensors({})), "hold no LORA factors"),
    "LoRA on a vector": (
        lambda folder: make_adapter(
            folder,
            tensors={
                "base_model.model.model.norm.lora_A.weight": filled(1),
                "base_model.model.model.norm.lora_B.weight": filled(1).T,
            },
            config={"target_modules": ["norm"]},
        ),
        r"module 'model\.norm': LORA is checked on a matrix only, model\.norm\.weight is \[8\]",
    ),
    "module that is not targeted": (
        configure(target_modules=["q_proj"]),
        r"module 'model\.layers\.0\.self_attn\.v_proj' fits nothing: the target_modules",
    ),
    "magnitudes without DoRA": (
        rewrite(**{f"{FIRST}.lora_magnitude_vector": np.ones(WIDTH, np.float32)}),
        r"q_proj\.lora_magnitude_vector' fits nothing.*has lora_A\.weight, lora_B\.weight",
    ),
    "bias without lora_bias": (
        rewrite(**{f"{FIRST}.lora_B.bias": np.ones(WIDTH, np.float32)}),
        r"q_proj\.lora_B\.bias' fits nothing.*has lora_A\.weight, lora_B\.weight",
    ),
    "saved module of another shape": (
        lambda folder: make_adapter(
            folder,
            tensors={**adapter_tensors(1), "base_model.model.model.norm.weight": np.ones(5, np.float32)},
            config={"modules_to_save": ["norm"]},
        )
       ,
        r"has shape \[5\], model\.norm\.weight of the base base has \[8\]",
    ),
    "other kind": (configure(peft_type="QUANTUM"), "peft_type 'QUANTUM', which is no kind"),
    "no rank": (configure(r=None), "r must be a positive whole number"),
    "auto_map": (configure(auto_map={"AutoModel": "evil.Model"}), "auto_map"),
    "auto_map below": (configure(extra=[{"auto_map": {"a": "b"}}]), "auto_map"),
    "configuration is a list": (
        lambda folder: (folder / "adapter_config.json").write_text("[1]"),
        "must hold a JSON object",
    ),
    "configuration is broken": (
        lambda folder: (folder / "adapter_config.json").write_text("{"),
        r"adapter_config\.json is not sound JSON",
    ),
    "configuration is nested": (
        lambda folder: (folder / "adapter_config.json").write_text("[" * 200_000),
        r"adapter_config\.json is not sound JSON",
    ),
    "no configuration": (
        lambda folder: (folder / "adapter_config.json").unlink(),
        r"needs adapter_config\.json",
    ),
    "empty folder": (
        lambda folder: [p.unlink() for p in folder.iterdir()],
        r"needs adapter_config\.json",
    ),
    "linked weights": (link("adapter_model.safetensors"), "is a link"),
    "linked configuration": (link("adapter_config.json"), "is a link"),
    "lying header": (
        raw(with_header(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', b"1234")),
        "instead of",
    ),
    "10 GB claim in 1 KB": (
        raw((10 * 2**30).to_bytes(8, "little") + b"{}" * 500),
        "its header claims 10737418240",
    ),
    "cut file": (
        lambda folder: os.truncate(folder / "adapter_model.safetensors", 700),
        "not a sound safetensors file",
    ),
    "weights are a folder": (
        lambda folder: [
            (folder / "adapter_model.safetensors").unlink(),
            (folder / "adapter_model.safetensors").mkdir(),
        ]
       ,
        "no regular file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_says_what_and_leaves_the_store_as_it_was(
    name: str, three: Registry, base: Path, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "bad", seed=1)
    breaking, said = BAD[name]
    breaking(folder)
    before = snapshot(three)
    with pytest.raises(InputError, match=said) as caught:
        three.add("legal", folder, base=base)
    assert "\n" not in str(caught.value)
    assert snapshot(three) == before


@pytest.mark.parametrize("name", ["../legal", "legal/../../x", "Legal", "base", "", "legal@v1"])
def test_bad_names_leave_the_store_as_it_was(name: str, three: Registry, base: Path, tmp_path: Path) -> None:
    before = snapshot(three)
    with pytest.raises(InputError):
        three.add(name, make_adapter(tmp_path / "a"), base=base)
    assert snapshot(three) == before


def test_a_pipe_in_the_place_of_weights_is_refused_at_once(
    registry: Registry, base: Path, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "bad")
    (folder / "README.md").unlink(missing_ok=True)
    os.mkfifo(folder / "README.md")
    with pytest.raises(InputError, match="no regular file"):
        registry.add("legal", folder, base=base)


def test_another_base_is_refused(three: Registry, base: Path, tmp_path: Path) -> None:
    other, here = BaseFingerprint.of(make_base(tmp_path / "other", seed=5)), BaseFingerprint.of(base)
    folder = make_adapter(tmp_path / "a", seed=77)
    run = {"base": {"weights": other.weights, "prompt": other.prompt}}
    before = snapshot(three)
    with pytest.raises(BaseMismatch, match=r"was trained on sha256:.*allow-base-mismatch"):
        three.add("legal", folder, base=base, run=run)
    assert snapshot(three) == before
    version = three.add("legal", folder, base=base, run=run, allow_base_mismatch=True)
    assert version.base_mismatch
    assert version.trained_on == {"weights": other.weights, "prompt": other.prompt}
    assert version.base.weights == here.weights
    assert three.journal("legal")[0].detail["base_mismatch"]["weights"] == other.weights


def test_a_changed_chat_template_must_be_acknowledged(three: Registry, base: Path, tmp_path: Path) -> None:
    trained = BaseFingerprint.of(base)
    fixed = make_base(tmp_path / "fixed", template="{{ fixed }}")
    folder = make_adapter(tmp_path / "a", seed=77)
    run = {"base": {"weights": trained.weights, "prompt": trained.prompt}}
    with pytest.raises(BaseMismatch, match="accept-prompt-change"):
        three.add("legal", folder, base=fixed, run=run)
    version = three.add("legal", folder, base=fixed, run=run, accept_prompt_change=True)
    assert not version.base_mismatch
    assert version.base.prompt == BaseFingerprint.of(fixed).prompt


@pytest.mark.parametrize(
    ("config", "kind", "exactness"),
    [
        ({}, "lora", "exact"),
        ({"use_rslora": True}, "rslora", "exact"),
        ({"init_lora_weights": "gaussian"}, "lora", "exact"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa", "needs-conversion"),
        ({"init_lora_weights": "olora"}, "olora", "needs-conversion"),
        ({"bias": "all"}, "lora", "alone"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "lora", "alone"),
        ({"rank_pattern": {"q_proj|v_proj": 2}, "r": 16}, "lora", "exact"),
    ],
)
def test_kind_and_exactness_come_from_the_configuration(
    config: dict[str, object], kind: str, exactness: str, base: Path, tmp_path: Path
) -> None:
    checked = check(make_adapter(tmp_path / "a", config=config), BaseFingerprint.of(base))
    assert (checked.kind, checked.exactness, checked.rank) == (kind, exactness, 2)
    assert checked.targets == ("q_proj", "v_proj")
    assert checked.parameters == 4 * 2 * 2 * WIDTH


def test_dora_and_saved_modules_are_for_use_alone(base: Path, tmp_path: Path) -> None:
    fingerprint = BaseFingerprint.of(base)
    magnitudes = {f"base_model.model.{m}.lora_magnitude_vector": np.ones(WIDTH, np.float32) for m in MODULES}
    dora = make_adapter(
        tmp_path / "d", tensors={**adapter_tensors(), **magnitudes}, config={"use_dora": True}
    )
    assert (check(dora, fingerprint).kind, check(dora, fingerprint).exactness) == ("dora", "alone")
    head = {"base_model.model.score.weight": np.ones((3, WIDTH), np.float32)}
    saved = make_adapter(
        tmp_path / "s", tensors={**adapter_tensors(), **head}, config={"modules_to_save": ["score"]}
    )
    assert check(saved, fingerprint).exactness == "alone"


def test_conv1d_bases_keep_their_weights_the_other_way_round(tmp_path: Path) -> None:
    base = make_base(tmp_path / "gpt2")
    weight = {"h.0.attn.c_attn.weight": np.ones((8, 24), np.float32)}
    (base / "model.safetensors").write_bytes(safetensors(weight))
    factors = {
        "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight": np.ones((2, 8), np.float32),
        "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight": np.ones((24, 2), np.float32),
    }
    folder = make_adapter(
        tmp_path / "a", tensors=factors, config={"fan_in_fan_out": True, "target_modules": ["c_attn"]}
    )
    assert check(folder, BaseFingerprint.of(base)).targets == ("c_attn",)
    with pytest.raises(InputError, match=r"lora_A\.weight must be \[2, 24\]"):
        check(
            make_adapter(tmp_path / "b", tensors=factors, config={"target_modules": ["c_attn"]}),
            BaseFingerprint.of(base),
        )


def test_embeddings_and_tied_heads(base: Path, tmp_path: Path) -> None:
    fingerprint = BaseFingerprint.of(base)
    factors = {
        "base_model.model.model.embed_tokens.lora_embedding_A": np.ones((2, 32), np.float32),
        "base_model.model.model.embed_tokens.lora_embedding_B": np.ones((WIDTH, 2), np.float32),
        "base_model.model.lm_head.lora_A.weight": np.ones((2, WIDTH), np.float32),
        "base_model.model.lm_head.lora_B.weight": np.ones((32, 2), np.float32),
    }
    targets = {"target_modules": ["embed_tokens", "lm_head"]}
    checked = check(make_adapter(tmp_path / "a", tensors=factors, config=targets), fingerprint)
    assert checked.targets == ("embed_tokens", "lm_head")
    assert find_in_base("lm_head.weight", fingerprint) == ("model.embed_tokens.weight", (32, WIDTH))


def test_only_known_files_are_taken_and_the_rest_is_named(
    registry: Registry, base: Path, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "a")
    (folder / "training_args.bin").write_bytes(b"a pickle")
    (folder / "README.md").write_text("# a card")
    (folder / "checkpoint-1").mkdir()
    version = registry.add("legal", folder, base=base)
    assert {p.name for p in version.path.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert version.notes == ("not taken: checkpoint-1, training_args.bin",)


@pytest.mark.parametrize(
    ("module", "checkpoint"),
    [
        ("model.language_model.layers.0.self_attn.q_proj", "language_model.model.layers.0.self_attn.q_proj"),
        ("language_model.model.layers.0.self_attn.q_proj", "model.language_model.layers.0.self_attn.q_proj"),
        ("model.language_model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj"),
        ("model.layers.0.self_attn.q_proj", "model.language_model.layers.0.self_attn.q_proj"),
        ("model.visual.blocks.0.attn.qkv", "visual.blocks.0.attn.qkv"),
        ("lm_head", "language_model.lm_head"),
        ("transformer.h.0.attn.c_attn", "h.0.attn.c_attn"),
        ("h.0.attn.c_attn", "transformer.h.0.attn.c_attn"),
    ],
)
def test_modules_are_found_where_checkpoints_keep_them(module: str, checkpoint: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    weight = {f"{checkpoint}.weight": np.ones((4, 8), np.float32), "vision_tower.x.weight": np.ones((4, 8))}
    (base / "model.safetensors").write_bytes(safetensors(weight))
    assert find_in_base(f"{module}.weight", BaseFingerprint.of(base)) == (f"{checkpoint}.weight", (4, 8))
    assert find_in_base("vision_tower.y.weight", BaseFingerprint.of(base)) is None
