"""What a serving engine would say about an exported adapter, before it is taken there.

Only what the engines' own sources and documentation state, read in November 2026:

    vLLM    --max-lora-rank is one of 1, 8, 16, 32, 64, 128, 256, 320, 512, by default 16
            https://github.com/vllm-project/vllm/blob/main/vllm/config/lora.py (MaxLoRARanks)
            modules are its linear layers and what a model class lists as `embedding_modules`
            https://github.com/vllm-project/vllm/blob/main/vllm/lora/utils.py (get_supported_lora_modules)
    SGLang  --max-lora-rank is inferred from --lora-paths where it is not given; any number
            https://docs.sglang.io/advanced_features/lora.html
            the modules that every model class has a size for
            https://github.com/sgl-project/sglang/blob/main/python/sglang/srt/lora/utils.py
    LoRAX   tensors named lora_A.weight and lora_B.weight only, a kind of layer in all layers or in none;
            ranks are padded when loaded; the vectorised kernels end at rank 128; the base is compared by name
            https://github.com/predibase/lorax/blob/main/server/lorax_server/adapters/lora.py
            https://github.com/predibase/lorax/blob/main/server/lorax_server/utils/adapter.py
    PEFT    AutoPeftModel loads the base by the name in the configuration (peft/auto.py, 0.21)

Pure data, no torch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from inlay.errors import InputError

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
VLLM_DEFAULT_RANK = 16
LORAX_VECTORISED_RANK = 128
SGLANG_MODULES = frozenset(
    {
        *("q_proj", "k_proj", "v_proj", "qkv_proj", "qkvr", "o_proj", "wo_ud", "out_proj"),
        *("in_proj", "in_proj_q", "in_proj_k", "in_proj_v", "in_proj_qkv", "in_proj_z", "in_proj_qkvz"),
        *("gate_proj", "up_proj", "gate_up_proj", "down_proj", "fc1_latent_proj", "fc2_latent_proj"),
        *("embed_tokens", "vocab_emb", "embeddings", "word_embeddings"),
        *("lm_head", "output", "unembed_tokens"),
        *("q_a_proj", "kv_a_proj_with_mqa", "fused_qkv_a_proj_with_mqa", "q_b_proj", "kv_b_proj"),
        *("wq_b", "wk", "weights_proj"),
    }
)
HEADS = frozenset({"lm_head", "embed_out"})


@dataclass(frozen=True)
class Finding:
    """One sentence about an adapter and an engine. An "error" is refused, a "warning" told, and a "note" says
    how the engine is to be started."""

    level: Literal["error", "warning", "note"]
    message: str
    fix: str = ""

    def sentence(self) -> str:
        """As a report has it."""
        return f"{self.message}: {self.fix}" if self.fix else self.message


@dataclass(frozen=True)
class Shape:
    """What an engine sees of an adapter. `embeddings` are those of `modules` that are looked up; `base` names
    it, `tensors` are the base's own, where they are known."""

    modules: tuple[str, ...]
    embeddings: frozenset[str]
    rank: int
    base: str | None
    tensors: Mapping[str, Any] | None = None


def lint(engine: str, shape: Shape) -> tuple[Finding, ...]:
    """What `engine` would say. InputError for an engine that nothing is known of."""
    known(engine)
    return tuple(ENGINES[engine](shape))


def known(engine: str) -> None:
    """InputError for an engine that nothing is known of."""
    if engine not in ENGINES:
        raise InputError(
            f"an export is checked for one of {', '.join(ENGINES)}, got {engine!r}",
            fix="leave it out: a plain adapter is what every engine reads",
        )


def _peft(shape: Shape) -> Iterator[Finding]:
    if not _on_the_hub(shape.base):
        yield Finding(
            "warning",
            f"AutoPeftModel loads the base by its name, and {_named(shape.base)} is no hub id",
            "load the base yourself and give it to PeftModel.from_pretrained",
        )


def _vllm(shape: Shape) -> Iterator[Finding]:
    fitting = next((rank for rank in VLLM_RANKS if rank >= shape.rank), None)
    if fitting is None:
        yield Finding(
            "error",
            f"vLLM takes ranks up to {VLLM_RANKS[-1]}, and this adapter has {shape.rank}",
            "merge it to a smaller rank (`rank:` in the recipe), or export it with --full",
        )
    elif fitting > VLLM_DEFAULT_RANK:
        yield Finding("note", f"start vLLM with --max-lora-rank {fitting} or more: the rank is {shape.rank}")
    special = sorted({_leaf(m) for m in shape.modules if m in shape.embeddings or _leaf(m) in HEADS})
    if special:
        yield Finding(
            "warning",
            f"vLLM adapts linear layers, and {', '.join(special)} only where the base's class in vLLM lists "
            "it as one of its embedding_modules",
        )


def _sglang(shape: Shape) -> Iterator[Finding]:
    yield Finding(
        "note",
        f"an SGLang server that loads this after its start needs --max-lora-rank {shape.rank} or more",
    )
    unknown = sorted({_leaf(m) for m in shape.modules} - SGLANG_MODULES)
    if unknown:
        yield Finding(
            "warning",
            f"SGLang knows no modules called {', '.join(unknown)} by itself: they load only where the base's "
            "class in SGLang says what they measure",
        )


def _lorax(shape: Shape) -> Iterator[Finding]:
    fix = "export it with --full and serve the folded checkpoint"
    if shape.embeddings:
        names = ", ".join(sorted(_leaf(m) for m in shape.embeddings))
        yield Finding(
            "error",
            f"LoRAX reads lora_A.weight and lora_B.weight, and would leave out what is added to {names}",
            fix,
        )
    have = Counter(map(_kind, shape.modules))
    of_base = Counter(_kind(name.removesuffix(".weight")) for name in shape.tensors or ())
    partly = [kind for kind, count in sorted(have.items()) if 0 < count < of_base[kind]]
    if partly:
        kind = partly[0]
        yield Finding(
            "error",
            f"LoRAX takes a kind of layer in all layers or not at all, and {kind} is adapted in {have[kind]} "
            f"of {of_base[kind]}",
            fix,
        )
    if shape.rank > LORAX_VECTORISED_RANK:
        yield Finding(
            "warning",
            f"LoRAX's vectorised kernels end at rank {LORAX_VECTORISED_RANK}, and this adapter has "
            f"{shape.rank}: it will be slower",
        )
    if not _on_the_hub(shape.base):
        yield Finding(
            "warning",
            f"LoRAX holds the adapter's base against its --model-id by name, and {_named(shape.base)} is no "
            "hub id: it cannot check the architecture",
        )


ENGINES: Mapping[str, Callable[[Shape], Iterator[Finding]]] = {
    "peft": _peft,
    "vllm": _vllm,
    "sglang": _sglang,
    "lorax": _lorax,
}


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]


def _kind(module: str) -> str:
    """Equal for the same layer in other blocks, whatever stands before: `model.layers.3.mlp.up_proj` and
    `layers.0.mlp.up_proj` are `layers.*.mlp.up_proj`."""
    found = re.search(r"([^.]+)\.\d+\.(.+)$", module)
    return f"{found[1]}.*.{found[2]}" if found else module


def _on_the_hub(base: str | None) -> bool:
    """Does it look like `owner/name`?"""
    return base is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None and base[0] not in "./"


def _named(base: str | None) -> str:
    return "none" if base is None else repr(base)
