"""VB-LoRA (arXiv:2405.15179): every piece of A and B is a mixture of the best of a shared bank of vectors.

    delta = B @ A;  a piece = sum over the topk largest logits of softmax(logits) * vector

Saved whole (the logits) or as the chosen places and all of their weights but the last, which is one minus
the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inlay.composer.factors.adapter import Size
from inlay.composer.factors.held import Held, Reader, Shape
from inlay.errors import InputError

if TYPE_CHECKING:
    import torch

    from inlay.composer.factors.adapter import Pair

_A, _B = "vblora_logits_A", "vblora_logits_B"


def size(held: Held) -> Size:
    count, length = held.shared_shape("vblora_vector_bank")
    short = held.config.flag("save_only_topk_weights")
    first = "_topk_indices" if short else ""
    rank, across, _ = held.shape(f"{_A}{first}", 3)
    down = held.shape(f"{_B}{first}", 3)[0]
    held.rank(rank)
    top = held.config.count("topk")
    expected: dict[str, Shape] = {}
    for name, pieces in ((_A, (rank, across)), (_B, (down, rank))):
        if short:
            expected |= {f"{name}_topk_indices": (*pieces, top), f"{name}_topk_weights": (*pieces, top - 1)}
        else:
            expected[name] = (*pieces, count)
    held.exactly(expected)
    return Size(rank, across * length, down * length)


def factors(held: Held) -> Pair:
    a, b = _mixed(held, _A), _mixed(held, _B)  # (r, pieces of in, length), (pieces of out, r, length)
    return a.reshape(a.shape[0], -1), b.transpose(1, 2).reshape(-1, b.shape[1]).contiguous()


def _mixed(held: Held, name: str) -> torch.Tensor:
    import torch

    bank = held.get("vblora_vector_bank")
    if held.config.flag("save_only_topk_weights"):
        chosen = held.tensors[f"{name}_topk_indices"].long()
        if chosen.numel() and not 0 <= int(chosen.min()) <= int(chosen.max()) < bank.shape[0]:
            raise InputError(
                f"{held.adapter}: the indices of {held.module} must be below {bank.shape[0]}, "
                f"they go from {int(chosen.min())} to {int(chosen.max())}"
            )
        weights = held.get(f"{name}_topk_weights")
        weights = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], dim=-1)
    else:
        logits, chosen = held.get(name).topk(held.config.count("topk"), dim=-1)
        weights = logits.softmax(dim=-1)
    return (weights.unsqueeze(-1) * bank[chosen]).sum(-2)


VBLORA = Reader("VBLORA", size, factors)
