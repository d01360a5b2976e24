"""A pass over prompts that was made to choose experts, kept as the first step of answering them.

Where the answer is the base's, its keys and values are what generation starts from; the rows of experts are
computed once more, with their gate, and put in the place of the base's. The prompt's last token is left for
generation itself, which begins with it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel


PLAIN_ONLY = ("num_beams", "num_return_sequences")
"""Settings of `generate` under which a row is no longer a prompt's own."""
OTHERS = ("cache_implementation", "past_key_values", "assistant_model", "prompt_lookup_num_tokens")


def keeps_rows(settings: Mapping[str, Any]) -> bool:
    """Can generation with these settings start from a cache of its prompts, one row each?"""
    return (
        all((settings.get(key) or 1) == 1 for key in PLAIN_ONLY)
        and not any(settings.get(key) for key in OTHERS)
        and settings.get("use_cache", True) is not False
    )


def passed(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, *, states: bool = False
) -> tuple[DynamicCache | None, tuple[torch.Tensor, ...]]:
    """One pass over left-padded prompts, long (rows, length): the cache, None where it is of a kind that
    cannot be cut and mended (windows, states of recurrent layers), and where asked the hidden states of every
    layer, each (rows, length, hidden)."""
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": True, "logits_to_keep": 1}
    if "position_ids" in inspect.signature(model.forward).parameters:
        given["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.inference_mode():
        out = model(**given, output_hidden_states=states)
    cache = getattr(out, "past_key_values", None)
    return (cache if _plain(cache) else None), tuple(out.hidden_states or ())


def without_last(cache: DynamicCache) -> DynamicCache:
    """The same cache without its last position."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[..., :-1, :], layer.values[..., :-1, :]
    return cache


def put_rows(cache: DynamicCache, rows: torch.Tensor, other: DynamicCache) -> None:
    """Rows of `cache` (long tensor) become those of `other`, in its order; both are as long."""
    for layer, mine in zip(cache.layers, other.layers, strict=True):
        where = rows.to(layer.keys.device)
        layer.keys = layer.keys.index_copy(0, where, mine.keys)
        layer.values = layer.values.index_copy(0, where, mine.values)


def _plain(cache: Any) -> bool:
    from transformers.cache_utils import DynamicCache, DynamicLayer

    return type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)
