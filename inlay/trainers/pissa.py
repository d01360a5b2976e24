"""PiSSA without a change to the base (arXiv:2404.02948).

PiSSA begins with the factors A₀, B₀ of W's main directions and trains on W − s B₀ A₀. The same function is

    W + s [B, −B₀] @ [A; A₀],  with B = B₀ and A = A₀ to begin with,

a LoRA of twice the rank whose second half is held fixed. It begins at the bare base, is the bare base when it
is off, and is in plain additive form when it is saved: what `composer.conversion` makes of a PiSSA. Its
second half is the adapter as it was before training.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from inlay.errors import InputError

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

    from inlay.trainers.settings import Settings

START = "pissa_niter_16"
"""The randomised SVD of PEFT with 16 iterations: seconds where the full one takes minutes."""


def doubled(settings: Settings, config: LoraConfig) -> LoraConfig:
    """The configuration at twice the rank and the same scaling."""
    if settings.weight_decay > 0:
        raise InputError(
            "PiSSA's factors hold a part of the base, and weight_decay would wear it off", fix="set it to 0"
        )
    return dataclasses.replace(
        config,
        r=2 * config.r,
        lora_alpha=2 * config.lora_alpha,
        rank_pattern={name: 2 * rank for name, rank in config.rank_pattern.items()},
        alpha_pattern={name: 2 * alpha for name, alpha in config.alpha_pattern.items()},
    )


def begun(model: PreTrainedModel, settings: Settings, config: LoraConfig) -> PeftModel:
    """`model` under an adapter of `config`, by `doubled`, where PiSSA begins; its first half is trained."""
    from peft import get_peft_model

    starts = initial(model, settings)
    adapted = get_peft_model(model, config)
    for name, (a, b) in _factors(adapted).items():
        a0, b0 = starts[name]
        with torch.no_grad():
            a.copy_(torch.cat([a0, a0]))
            b.copy_(torch.cat([b0, -b0], dim=1))
        rank = len(a0)
        a.register_hook(lambda gradient, rank=rank: _first(gradient, rank, 0))
        b.register_hook(lambda gradient, rank=rank: _first(gradient, rank, 1))
    return adapted


def initial(model: PreTrainedModel, settings: Settings) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Module -> A₀ (rank, in) and B₀ (out, rank), as PEFT makes them; on a twin, since PEFT takes their
    product out of the weights that it is given."""
    from peft import get_peft_model

    from inlay.composer.alone import twin_of
    from inlay.trainers.kinds import lora

    begun = get_peft_model(twin_of(model), lora(settings, model, init_lora_weights=START))
    return {name: (a.detach(), b.detach()) for name, (a, b) in _factors(begun).items()}


def _first(gradient: torch.Tensor, rank: int, dim: int) -> torch.Tensor:
    """The gradient of the first `rank` rows (dim 0) or columns (dim 1), zero elsewhere."""
    kept = torch.zeros_like(gradient)
    kept.narrow(dim, 0, rank).copy_(gradient.narrow(dim, 0, rank))
    return kept


def _factors(adapted: PeftModel) -> dict[str, tuple[Any, Any]]:
    """Module -> the parameters A and B. InputError for embeddings, which PiSSA has no start for."""
    found = {}
    for name, module in adapted.get_base_model().named_modules():
        if "default" in getattr(module, "lora_embedding_A", ()):
            raise InputError(f"PiSSA begins at linear layers, and {name} is an embedding", fix="leave it out")
        if "default" in getattr(module, "lora_A", ()):
            found[name] = (module.lora_A["default"].weight, module.lora_B["default"].weight)
    return found
