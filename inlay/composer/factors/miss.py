"""MiSS (arXiv:2409.15371): one block D (r, out), repeated along the input.

    delta = Dᵀ @ A,  A[k, j] = 1 where j mod r = k, else 0

"mini" keeps the first columns of D only, which repeat along the output. Its third form, "bat", multiplies
the base's own weight and is no low-rank delta (`kinds`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inlay.composer.factors.adapter import Size
from inlay.composer.factors.held import Held, Reader
from inlay.errors import InputError

if TYPE_CHECKING:
    from inlay.composer.factors.adapter import Pair


def size(held: Held) -> Size:
    outputs, inputs = held.base_shape()
    rank = held.config.count("r")
    held.exactly({"miss_block": (rank, _width(held, outputs))})
    if outputs % _width(held, outputs) or rank > inputs:
        raise InputError(
            f"{held.adapter}: a block of {rank} by {_width(held, outputs)} does not fit {held.module}, "
            f"which is {[outputs, inputs]}"
        )
    return Size(rank, inputs, outputs)


def factors(held: Held) -> Pair:
    import torch

    outputs, inputs = held.base_shape()
    block = held.get("miss_block")
    rank = int(block.shape[0])
    a = torch.eye(rank).repeat(1, -(-inputs // rank))[:, :inputs].contiguous()
    return a, block.repeat(1, outputs // block.shape[1]).T.contiguous()


def _width(held: Held, outputs: int) -> int:
    return held.config.count("mini_r") if held.config.get("init_weights") == "mini" else outputs


MISS = Reader("MISS", size, factors)
