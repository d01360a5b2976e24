"""What routers may know of the prompts of one batch, each thing found out once for all of them: token ids,
the text, and what the bare base makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from inlay.evals.inference import Base, Chat, Prompt, batches_by_length, encode_prompt, pad

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

POOLS = ("mean", "spread", "maximum", "last")
"""How the hidden states of a prompt become one vector a layer: over its tokens the mean, the standard
deviation, the maximum, and the state of the last token, after which the answer begins."""


@dataclass(frozen=True)
class Seen:
    """The prompts of a batch. `look` gives the pooled states, by a pass of the bare base that may serve for
    something else as well."""

    ids: Sequence[Sequence[int]]
    tokenizer: PreTrainedTokenizerBase
    look: Callable[[], torch.Tensor]

    @cached_property
    def texts(self) -> list[str]:
        """Without special tokens; what a template writes around the messages stands in all alike."""
        return self.tokenizer.batch_decode([list(row) for row in self.ids], skip_special_tokens=True)

    @cached_property
    def pooled(self) -> torch.Tensor:
        """(rows, pools, layers, hidden), float32, on the CPU."""
        return self.look()


def see(base: Base, ids: Sequence[Sequence[int]], *, batch_tokens: int | None = None) -> Seen:
    """Prompts of any number, asked of a bare base in batches."""
    return Seen(ids, base.tokenizer, lambda: pooled_states(base, ids, batch_tokens=batch_tokens))


def encoded(base: Base, prompts: Sequence[Prompt]) -> list[list[int]]:
    return [encode_prompt(base.tokenizer, prompt) for prompt in prompts]


def pooled_states(
    base: Base, ids: Sequence[Sequence[int]], *, batch_tokens: int | None = None
) -> torch.Tensor:
    """(prompts, pools, layers, hidden), float32, on the CPU, in the order of the prompts."""
    rows: list[torch.Tensor | None] = [None] * len(ids)
    for batch in batches_by_length([len(row) for row in ids], batch_tokens or Chat(base).batch_tokens):
        found = pooled(base.model, [ids[i] for i in batch], base.tokenizer.pad_token_id)
        for i, row in zip(batch, found, strict=True):
            rows[i] = row
    return torch.stack([row for row in rows if row is not None])


def pooled(model: PreTrainedModel, ids: Sequence[Sequence[int]], pad_id: int) -> torch.Tensor:
    """One batch in one pass: (rows, pools, layers, hidden), float32, on the CPU."""
    device = str(next(model.parameters()).device)
    padded, mask = pad(ids, pad_id, side="right", device=device)
    with torch.inference_mode():
        states = model(
            input_ids=padded,
            attention_mask=mask,
            output_hidden_states=True,
            use_cache=False,
            logits_to_keep=1,
        ).hidden_states
    return pool(states, mask)


def pool(states: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """States of every layer, each (rows, length, hidden), and the prompts' mask (rows, length), padded on
    either side -> (rows, pools, layers, hidden), float32, on the CPU."""
    with torch.inference_mode():
        share = (mask / mask.sum(1, keepdim=True)).float()[:, :, None]
        last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
        rows = torch.arange(len(mask), device=mask.device)
        layers = []
        for state in states:
            h = state.float()
            mean = (h * share).sum(1)
            spread = ((h - mean[:, None]) ** 2 * share).sum(1).sqrt()
            maximum = h.masked_fill(mask[:, :, None] == 0, -torch.inf).amax(1)
            layers.append(torch.stack([mean, spread, maximum, h[rows, last]], 1))
        return torch.stack(layers, 2).cpu()
