"""AdaLoRA (arXiv:2303.10512): a LoRA whose singular values are apart.

    delta = alpha / (init_r + 1e-5) * B @ diag(E) @ A

PEFT divides by the rank the module started with, whatever was pruned since, and multiplies by the rank it
has where alpha is not positive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inlay.composer.factors.adapter import Size
from inlay.composer.factors.held import Held, Reader

if TYPE_CHECKING:
    from inlay.composer.factors.adapter import Pair


def size(held: Held) -> Size:
    rank, inputs = held.shape("lora_A")
    outputs = held.shape("lora_B")[0]
    held.exactly({"lora_A": (rank, inputs), "lora_B": (outputs, rank), "lora_E": (rank, 1)})
    return Size(rank, inputs, outputs)


def factors(held: Held) -> Pair:
    a = held.get("lora_A") * held.get("lora_E")
    alpha = held.config.number("lora_alpha") or 0.0
    scale = alpha if alpha > 0 else float(a.shape[0])
    return a, held.get("lora_B") * (scale / (held.config.count("init_r") + 1e-5))


ADALORA = Reader("ADALORA", size, factors)
