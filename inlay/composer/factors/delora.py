"""DeLoRA (arXiv:2503.18225): strength and direction apart, measured by the base's own columns.

    delta = B @ diag(lambda / r / (|A_i| |B_i|)) @ A @ diag(w_norm)

Norms below 1e-4 count as 1e-4, as in PEFT. w_norm, the norms of the base's columns, is kept in the adapter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inlay.composer.factors.adapter import Size
from inlay.composer.factors.held import Held, Reader

if TYPE_CHECKING:
    from inlay.composer.factors.adapter import Pair


def size(held: Held) -> Size:
    rank, inputs = held.shape("delora_A")
    outputs = held.shape("delora_B")[0]
    held.exactly(
        {
            "delora_A": (rank, inputs),
            "delora_B": (outputs, rank),
            "delora_lambda": (1,),
            "delora_w_norm": (inputs,),
        }
    )
    held.rank(rank)
    return Size(rank, inputs, outputs)


def factors(held: Held) -> Pair:
    a, b = held.get("delora_A"), held.get("delora_B")
    norms = a.norm(dim=1).clamp(min=1e-4) * b.norm(dim=0).clamp(min=1e-4)
    return a * held.get("delora_w_norm"), b * (held.get("delora_lambda") / a.shape[0] / norms)


DELORA = Reader("DELORA", size, factors)
