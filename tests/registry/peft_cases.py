"""Adapters of every kind, built and saved by PEFT itself on tiny random models: the oracle of the tests.

Not a conftest, so that helpers are imported by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inlay.registry.kinds import ALONE, CONVERSION, EXACT, STRUCTURE

HIDDEN = 16


@dataclass(frozen=True)
class Case:
    """`config` names PEFT's configuration class; what follows is what the registry must say of it."""

    config: str
    kind: str
    exactness: str
    rank: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    base: str = "llama"

    def build(self, model: Any) -> Any:
        import peft

        settings = {"task_type": "CAUSAL_LM", **self.settings}
        if self.targets and "target_modules" not in settings and self.config != "AdaptionPromptConfig":
            settings["target_modules"] = list(self.targets)
        settings = {key: value(peft) if callable(value) else value for key, value in settings.items()}
        return peft.get_peft_model(model, getattr(peft, self.config)(**settings))


def _inner(name: str, **settings: Any) -> Callable[[Any], Any]:
    """A configuration inside the configuration, made when PEFT is there."""

    def make(_: Any) -> Any:
        from peft.tuners.lora import config

        return getattr(config, name)(**settings)

    return make


_VB = {"r": 2, "num_vectors": 8, "vector_length": 4}
_EMBED = ("embed_tokens", "q_proj")
_MLP = ("down_proj", "up_proj")

CASES: dict[str, Case] = {
    "lora": Case("LoraConfig", "lora", EXACT, 2, {"r": 2}),
    "rslora": Case("LoraConfig", "rslora", EXACT, 2, {"r": 2, "use_rslora": True}),
    "lora by rank_pattern": Case(
        "LoraConfig", "lora", EXACT, 6, {"r": 2, "rank_pattern": {r"layers\.1\..*q_proj": 6, "v_proj": 3}}
    ),
    "lora by regex": Case("LoraConfig", "lora", EXACT, 2, {"r": 2, "target_modules": r".*\.(q|v)_proj"}),
    "lora all-linear": Case(
        "LoraConfig",
        "lora",
        EXACT,
        2,
        {"r": 2, "target_modules": "all-linear"},
        ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"),
    ),
    "lora in one layer": Case("LoraConfig", "lora", EXACT, 2, {"r": 2, "layers_to_transform": [1]}),
    "lora on embeddings": Case("LoraConfig", "lora", ALONE, 2, {"r": 2}, _EMBED),
    "lora on the head": Case("LoraConfig", "lora", ALONE, 2, {"r": 2}, ("lm_head", "q_proj")),
    "lora on parameters": Case(
        "LoraConfig",
        "lora",
        ALONE,
        2,
        {"r": 2, "target_modules": [], "target_parameters": ["q_proj.weight"]},
        ("q_proj",),
    ),
    "lora orthogonal": Case("LoraConfig", "lora", EXACT, 2, {"r": 2, "init_lora_weights": "orthogonal"}),
    "pissa": Case("LoraConfig", "pissa", CONVERSION, 2, {"r": 2, "init_lora_weights": "pissa_niter_4"}),
    "olora": Case("LoraConfig", "olora", CONVERSION, 2, {"r": 2, "init_lora_weights": "olora"}),
    "mica": Case("LoraConfig", "lora", EXACT, 2, {"r": 2, "init_lora_weights": "mica"}),
    "dora": Case("LoraConfig", "dora", ALONE, 2, {"r": 2, "use_dora": True}),
    "dora on embeddings": Case("LoraConfig", "dora", ALONE, 2, {"r": 2, "use_dora": True}, _EMBED),
    "lora with biases": Case("LoraConfig", "lora", ALONE, 2, {"r": 2, "lora_bias": True}),
    "qalora": Case("LoraConfig", "lora", ALONE, 2, {"r": 2, "use_qalora": True, "qalora_group_size": 4}),
    "bdlora": Case(
        "LoraConfig",
        "lora",
        ALONE,
        4,
        {
            "r": 4,
            "use_bdlora": _inner(
                "BdLoraConfig", target_modules_bd_a=["q_proj"], target_modules_bd_b=["v_proj"], nblocks=2
            ),
        },
    ),
    "alora": Case("LoraConfig", "lora", ALONE, 2, {"r": 2, "alora_invocation_tokens": [3, 4]}),
    "kasa": Case("LoraConfig", "lora", ALONE, 2, {"r": 2, "kasa_config": _inner("KasaConfig")}),
    "velora": Case("LoraConfig", "lora", ALONE, 2, {"r": 2, "velora_config": _inner("VeloraConfig")}),
    "monteclora": Case(
        "LoraConfig", "lora", ALONE, 2, {"r": 2, "monteclora_config": _inner("MontecloraConfig")}
    ),
    "lora on new tokens": Case("LoraConfig", "lora", ALONE, 2, {"r": 2, "trainable_token_indices": [1, 2]}),
    "lora with replicated layers": Case(
        "LoraConfig", "lora", ALONE, 2, {"r": 2, "layer_replication": [[0, 2], [1, 2]]}
    ),
    "lora with saved modules": Case(
        "LoraConfig", "lora", ALONE, 2, {"r": 2, "modules_to_save": ["lm_head", "norm"]}
    ),
    "lora for classes": Case(
        "LoraConfig", "lora", ALONE, 2, {"r": 2, "task_type": "SEQ_CLS"}, base="classes"
    ),
    "lora with a bias": Case(
        "LoraConfig", "lora", ALONE, 2, {"r": 2, "bias": "lora_only"}, ("c_attn",), base="gpt2"
    ),
    "lora with all biases": Case(
        "LoraConfig", "lora", ALONE, 2, {"r": 2, "bias": "all"}, ("c_fc",), base="gpt2"
    ),
    "lora on conv1d": Case(
        "LoraConfig", "lora", EXACT, 2, {"r": 2}, ("c_attn", "c_fc", "c_proj"), base="gpt2"
    ),
    "lora on conv1d and a head": Case(
        "LoraConfig", "lora", ALONE, 2, {"r": 2}, ("c_attn", "lm_head"), base="gpt2"
    ),
    "lora on a convolution": Case(
        "LoraConfig",
        "lora",
        ALONE,
        2,
        {"r": 2, "task_type": "FEATURE_EXTRACTION"},
        ("projection",),
        base="vit",
    ),
    "dora on a convolution": Case(
        "LoraConfig",
        "dora",
        ALONE,
        2,
        {"r": 2, "use_dora": True, "task_type": "FEATURE_EXTRACTION"},
        ("projection",),
        base="vit",
    ),
    "lora on experts": Case(
        "LoraConfig",
        "lora",
        ALONE,
        2,
        {
            "r": 2,
            "target_modules": ["q_proj"],
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
        },
        ("experts", "q_proj"),
        base="experts",
    ),
    "adalora": Case("AdaLoraConfig", "adalora", EXACT, 4, {"init_r": 4, "target_r": 2, "total_step": 10}),
    "adalora on conv1d": Case(
        "AdaLoraConfig", "adalora", EXACT, 4, {"init_r": 4, "total_step": 10}, ("c_attn",), base="gpt2"
    ),
    "loha": Case("LoHaConfig", "loha", EXACT, 3, {"r": 2, "rank_pattern": {"up_proj": 3}}, _MLP),
    "lokr": Case("LoKrConfig", "lokr", EXACT, 2, {"r": 2}, _MLP),
    "lokr of products": Case(
        "LoKrConfig", "lokr", EXACT, 1, {"r": 1, "decompose_both": True, "decompose_factor": 4}, _MLP
    ),
    "delora": Case("DeloraConfig", "delora", EXACT, 3, {"r": 3}),
    "miss": Case("MissConfig", "miss", EXACT, 4, {"r": 4}),
    "miss bat": Case("MissConfig", "miss", ALONE, 4, {"r": 4, "init_weights": "bat"}),
    "miss mini": Case("MissConfig", "miss", EXACT, 4, {"r": 4, "mini_r": 2, "init_weights": "mini"}),
    "gralora": Case("GraloraConfig", "gralora", EXACT, 4, {"r": 4}),
    "gralora hybrid": Case("GraloraConfig", "gralora", EXACT, 6, {"r": 4, "hybrid_r": 2}),
    "gralora on conv1d": Case("GraloraConfig", "gralora", EXACT, 4, {"r": 4}, ("c_attn",), base="gpt2"),
    "vera": Case("VeraConfig", "vera", EXACT, 8, {"r": 8}, _MLP),
    "vera without projection": Case("VeraConfig", "vera", STRUCTURE, 8, {"r": 8, "save_projection": False}),
    "vera on conv1d": Case("VeraConfig", "vera", EXACT, 8, {"r": 8}, ("c_attn", "c_fc"), base="gpt2"),
    "vblora": Case("VBLoRAConfig", "vblora", EXACT, 2, _VB),
    "vblora topk": Case("VBLoRAConfig", "vblora", EXACT, 2, {**_VB, "save_only_topk_weights": True}),
    "tinylora": Case("TinyLoraConfig", "tinylora", STRUCTURE, 2, {"r": 2, "u": 5}),
    "tinylora without projection": Case(
        "TinyLoraConfig", "tinylora", STRUCTURE, 2, {"r": 2, "u": 5, "save_projection": False}
    ),
    "unilora": Case("UniLoraConfig", "unilora", STRUCTURE, 0, {"r": 2, "theta_d_length": 20}),
    "unilora with indices": Case(
        "UniLoraConfig", "unilora", EXACT, 2, {"r": 2, "theta_d_length": 20, "save_indices": True}
    ),
    "hira": Case("HiraConfig", "hira", ALONE, 2, {"r": 2}),
    "hira on embeddings": Case("HiraConfig", "hira", ALONE, 2, {"r": 2}, _EMBED),
    "randlora": Case("RandLoraConfig", "randlora", ALONE, 3, {"r": 3}, (*_MLP, "v_proj")),
    "randlora without projection": Case(
        "RandLoraConfig", "randlora", ALONE, 3, {"r": 3, "save_projection": False}
    ),
    "pvera": Case("PveraConfig", "pvera", ALONE, 8, {"r": 8}, _MLP),
    "frod": Case("FrodConfig", "frod", ALONE, 0, {"progressbar": False}, ("down_proj", "up_proj", "v_proj")),
    "fourierft": Case("FourierFTConfig", "fourierft", ALONE, 0, {"n_frequency": 10}),
    "fourierft on conv1d": Case(
        "FourierFTConfig", "fourierft", ALONE, 0, {"n_frequency": 10}, ("c_attn",), "gpt2"
    ),
    "waveft": Case("WaveFTConfig", "waveft", ALONE, 0, {"n_frequency": 10}),
    "c3a": Case("C3AConfig", "c3a", ALONE, 0, {"block_size": 4, "block_size_pattern": {"v_proj": 8}}),
    "shira": Case("ShiraConfig", "shira", ALONE, 0, {"r": 2}),
    "oft": Case("OFTConfig", "oft", ALONE, 0, {"oft_block_size": 4}),
    "oft shared": Case("OFTConfig", "oft", ALONE, 0, {"r": 4, "oft_block_size": 0, "block_share": True}),
    "boft": Case("BOFTConfig", "boft", ALONE, 0, {"boft_block_size": 4, "boft_n_butterfly_factor": 2}),
    "boft by number": Case("BOFTConfig", "boft", ALONE, 0, {"boft_block_size": 0, "boft_block_num": 8}),
    "hra": Case("HRAConfig", "hra", ALONE, 0, {"r": 4}, _MLP),
    "psoft": Case("PsoftConfig", "psoft", ALONE, 0, {"r": 4}),
    "psoft free": Case("PsoftConfig", "psoft", ALONE, 0, {"r": 4, "psoft_orth": False, "psoft_mag_a": False}),
    "ia3": Case(
        "IA3Config", "ia3", ALONE, 0, {"feedforward_modules": ["down_proj"]}, ("down_proj", "k_proj")
    ),
    "ia3 on conv1d": Case(
        "IA3Config", "ia3", ALONE, 0, {"feedforward_modules": ["c_proj"]}, ("c_attn", "c_proj"), base="gpt2"
    ),
    "beft": Case("BeftConfig", "beft", ALONE, 0),
    "road": Case("RoadConfig", "road", ALONE, 0, {"group_size": 4}),
    "road 4": Case("RoadConfig", "road", ALONE, 0, {"group_size": 4, "variant": "road_4"}),
    "osf": Case("OSFConfig", "osf", ALONE, 0),
    "deft": Case("DeftConfig", "deft", ALONE, 4, {"r": 4}),
    "deft removing": Case("DeftConfig", "deft", ALONE, 4, {"r": 4, "para": True}),
    "lily": Case("LilyConfig", "lily", ALONE, 0, {"r": 4}),
    "peanut": Case("PeanutConfig", "peanut", ALONE, 0, {"r": 4, "depth": 2}),
    "glora": Case("GloraConfig", "glora", ALONE, 4, {"r": 4}),
    "glora vector": Case(
        "GloraConfig", "glora", ALONE, 4, {"r": 4, "config_A_B": "vector", "config_D_E": "vector"}
    ),
    "glora with biases": Case(
        "GloraConfig",
        "glora",
        ALONE,
        4,
        {"r": 4, "config_A_B": "constant", "task_type": "FEATURE_EXTRACTION"},
        ("q_lin",),
        base="distilbert",
    ),
    "poly": Case("PolyConfig", "poly", ALONE, 0, {"r": 4, "n_tasks": 3, "n_splits": 2}),
    "supertuning": Case("SupertuningConfig", "supertuning", ALONE, 0, {"sparsity": 0.9}),
    "supertuning and lora": Case(
        "SupertuningConfig", "supertuning", ALONE, 0, {"sparsity": 0.9, "r": 3, "lora_alpha": 6}
    ),
    "ln_tuning": Case("LNTuningConfig", "ln_tuning", ALONE, 0, {}, ("input_layernorm", "norm")),
    "ln_tuning with biases": Case("LNTuningConfig", "ln_tuning", ALONE, 0, {}, ("ln_1",), base="gpt2"),
    "trainable_tokens": Case(
        "TrainableTokensConfig", "trainable_tokens", ALONE, 0, {"token_indices": [1, 2, 5]}, ("embed_tokens",)
    ),
    "adaption_prompt": Case(
        "AdaptionPromptConfig",
        "adaption_prompt",
        ALONE,
        0,
        {"adapter_len": 3, "adapter_layers": 1},
        ("self_attn",),
    ),
    "prompt_tuning": Case("PromptTuningConfig", "prompt_tuning", ALONE, 0, {"num_virtual_tokens": 3}, ()),
    "prompt_tuning for classes": Case(
        "PromptTuningConfig",
        "prompt_tuning",
        ALONE,
        0,
        {"num_virtual_tokens": 3, "task_type": "SEQ_CLS"},
        (),
        base="classes",
    ),
    "p_tuning": Case("PromptEncoderConfig", "p_tuning", ALONE, 0, {"num_virtual_tokens": 3}, ()),
    "prefix_tuning": Case("PrefixTuningConfig", "prefix_tuning", ALONE, 0, {"num_virtual_tokens": 3}, ()),
    "prefix_tuning by projection": Case(
        "PrefixTuningConfig",
        "prefix_tuning",
        ALONE,
        0,
        {"num_virtual_tokens": 3, "prefix_projection": True, "encoder_hidden_size": 8},
        (),
    ),
    "prefix_tuning on conv1d": Case(
        "PrefixTuningConfig", "prefix_tuning", ALONE, 0, {"num_virtual_tokens": 3}, (), base="gpt2"
    ),
    "multitask_prompt_tuning": Case(
        "MultitaskPromptTuningConfig",
        "multitask_prompt_tuning",
        ALONE,
        0,
        {"num_virtual_tokens": 3, "num_tasks": 2, "num_ranks": 2},
        (),
    ),
    "cpt": Case(
        "CPTConfig",
        "cpt",
        ALONE,
        0,
        {"cpt_token_ids": [1, 2, 3], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 2]},
        (),
    ),
    "cartridge": Case("CartridgeConfig", "cartridge", ALONE, 0, {"num_virtual_tokens": 3}, ()),
}
"""Every kind the registry takes, with the options that change which tensors are kept."""


def make_model(base: str) -> Any:
    """A tiny random model: 2 layers, width 16."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    torch.set_num_threads(1)
    if base == "gpt2":
        return t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=32, n_embd=HIDDEN, n_layer=2, n_head=4, n_positions=32)
        )
    if base == "distilbert":
        return t.DistilBertModel(
            t.DistilBertConfig(vocab_size=32, dim=HIDDEN, hidden_dim=32, n_layers=2, n_heads=4)
        )
    if base == "vit":
        return t.ViTModel(
            t.ViTConfig(
                hidden_size=HIDDEN,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
                image_size=8,
                patch_size=4,
            )
        )
    if base == "experts":
        return t.GptOssForCausalLM(
            t.GptOssConfig(
                vocab_size=32,
                hidden_size=HIDDEN,
                intermediate_size=24,
                num_hidden_layers=1,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=4,
                num_local_experts=3,
                num_experts_per_tok=2,
                layer_types=["full_attention"],
            )
        )
    config = t.LlamaConfig(
        vocab_size=32,
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        num_labels=3,
    )
    return (t.LlamaForSequenceClassification if base == "classes" else t.LlamaForCausalLM)(config)


def save_base(base: str, folder: Path) -> Path:
    """The folder of what `make_model` makes; the base of the model for classes has no head for them."""
    make_model("llama" if base == "classes" else base).save_pretrained(folder)
    return folder


def save_adapter(case: Case, folder: Path) -> int:
    """Build and save with PEFT alone; how many numbers PEFT says it keeps."""
    from peft import get_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = case.build(make_model(case.base))
        model.save_pretrained(folder)
        return sum(tensor.numel() for tensor in get_peft_model_state_dict(model).values())
