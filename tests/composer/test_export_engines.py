"""What serving engines would say about an export, each limit as their sources state it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from composer_fakes import write_lora
from safetensors.torch import load_file

import inlay
from inlay.composer.factors import Adapter
from inlay.composer.lint import ENGINES, Finding, Shape, lint
from inlay.errors import InputError
from inlay.evals.inference import Base
from inlay.registry import Registry

LAYERS = tuple(f"model.layers.{n}.self_attn.q_proj" for n in range(4))
TENSORS = {
    **{
        f"model.layers.{n}.self_attn.{m}.weight": ("F32", (8, 8))
        for n in range(4)
        for m in ("q_proj", "v_proj")
    },
    "model.embed_tokens.weight": ("F32", (40, 8)),
}


def shape(
    rank: int = 8,
    modules: tuple[str, ...] = LAYERS,
    embeddings: frozenset[str] = frozenset(),
    base: str | None = "acme/base",
) -> Shape:
    return Shape(modules, embeddings, rank, base, TENSORS)


def levels(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.level for finding in findings]


@pytest.mark.parametrize("engine", list(ENGINES))
def test_a_plain_adapter_is_refused_by_none(engine: str) -> None:
    assert "error" not in levels(lint(engine, shape())) and "warning" not in levels(lint(engine, shape()))


@pytest.mark.parametrize(
    ("rank", "told"), [(1, None), (16, None), (17, 32), (256, 256), (257, 320), (321, 512), (512, 512)]
)
def test_vllm_is_started_with_the_next_rank_it_allows(rank: int, told: int | None) -> None:
    found = lint("vllm", shape(rank))
    assert levels(found) == ([] if told is None else ["note"])
    assert told is None or f"--max-lora-rank {told} or more" in found[0].message


def test_vllm_takes_no_rank_above_its_last() -> None:
    (found,) = lint("vllm", shape(513))
    assert found.level == "error" and "ranks up to 512" in found.message and found.fix


def test_vllm_adapts_heads_and_embeddings_of_some_models_only() -> None:
    modules = (*LAYERS, "model.embed_tokens", "lm_head")
    (found,) = lint("vllm", shape(modules=modules, embeddings=frozenset({"model.embed_tokens"})))
    assert found.level == "warning" and "embed_tokens, lm_head only where" in found.message


def test_sglang_is_told_the_rank_and_asked_for_modules_it_does_not_know() -> None:
    note, warning = lint("sglang", shape(24, modules=("transformer.h.0.attn.c_attn",)))
    assert (note.level, warning.level) == ("note", "warning")
    assert "--max-lora-rank 24" in note.message and "c_attn" in warning.message


def test_lorax_leaves_out_embeddings_and_kinds_that_are_not_in_all_layers() -> None:
    embedding = "model.embed_tokens"
    (found,) = lint("lorax", shape(modules=(*LAYERS, embedding), embeddings=frozenset({embedding})))
    assert found.level == "error" and "leave out what is added to embed_tokens" in found.message
    (found,) = lint("lorax", shape(modules=LAYERS[1:]))
    assert found.level == "error" and "layers.*.self_attn.q_proj is adapted in 3 of 4" in found.message
    bare = Shape(
        LAYERS, frozenset(), 8, "acme/base", {k.removeprefix("model."): v for k, v in TENSORS.items()}
    )
    assert lint("lorax", bare) == (), "a checkpoint may leave out the leading model."


def test_lorax_is_slower_above_rank_128_and_compares_names_of_bases() -> None:
    assert lint("lorax", shape(128)) == ()
    (slow,) = lint("lorax", shape(129))
    (unnamed,) = lint("lorax", shape(base="my-base"))
    assert (slow.level, unnamed.level) == ("warning", "warning")
    assert "end at rank 128" in slow.message and "'my-base' is no hub id" in unnamed.message


@pytest.mark.parametrize("base", ["my-base", None, "/models/base", "./base"])
def test_peft_finds_a_base_by_a_hub_id_only(base: str | None) -> None:
    assert levels(lint("peft", shape(base=base))) == ["warning"]


def test_an_export_is_refused_before_anything_is_written(store: Registry, base: Base, tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "part", base, seed=1, target_modules=["layers.1.self_attn.q_proj"])
    store.add("part", folder, base=base.fingerprint)
    with pytest.raises(InputError, match=r"in all layers or not at all.*1 of 4") as caught:
        inlay.export("part@v1", tmp_path / "out", store=store, engine="lorax")
    assert caught.value.fix is not None and "--full" in caught.value.fix
    with pytest.raises(InputError, match="one of peft, vllm, sglang, lorax, got 'tgi'"):
        inlay.export("part@v1", tmp_path / "out", store=store, engine="tgi")
    assert not (tmp_path / "out").exists()


def test_the_check_changes_no_byte(store: Registry, base: Base, tmp_path: Path) -> None:
    store.add("one", write_lora(tmp_path / "one", base, seed=1, r=20), base=base.fingerprint)
    plain = inlay.export("one@v1", tmp_path / "plain", store=store)
    checked = inlay.export("one@v1", tmp_path / "vllm", store=store, engine="vllm")
    assert plain.findings == () and levels(checked.findings) == ["note"]
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "vllm" / name).read_bytes()


def test_an_adapter_without_a_base_is_checked_as_far_as_it_goes(tmp_path: Path) -> None:
    adapter = Adapter("loose", {LAYERS[0]: (torch.ones(600, 8), torch.ones(8, 600))})
    with pytest.raises(InputError, match="vLLM takes ranks up to 512, and this adapter has 600"):
        inlay.export(adapter, tmp_path / "out", engine="vllm")
    inlay.export(adapter, tmp_path / "out", engine="lorax")
    assert len(load_file(tmp_path / "out" / "adapter_model.safetensors")) == 2


def test_the_verb(store: Registry, base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from inlay.cli import run

    store.add("one", write_lora(tmp_path / "one", base, seed=1, r=20), base=base.fingerprint)
    asked = ["export", "one@v1", "--store", str(store.path)]
    assert run([*asked, str(tmp_path / "a"), "--for", "vllm"]) == 0
    assert "note: start vLLM with --max-lora-rank 32 or more: the rank is 20" in capsys.readouterr().out
    assert run([*asked, str(tmp_path / "b"), "--for", "sglang", "--json"]) == 0
    (finding,) = json.loads(capsys.readouterr().out)["result"]["findings"]
    assert finding["level"] == "note" and "--max-lora-rank 20" in finding["message"]
    assert run([*asked, str(tmp_path / "c"), "--for", "vllm", "--full"]) == 2
    assert "leave one of the two out" in capsys.readouterr().err
