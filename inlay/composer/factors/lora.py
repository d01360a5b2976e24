"""LoRA (arXiv:2106.09685) and rsLoRA (arXiv:2312.03732), with rank and alpha patterns.

    delta = alpha / r * B @ A, or alpha / √r; r and alpha are those of the module's pattern

On an embedding (V, d) PEFT keeps A (r, V) and B (d, r), and the delta is of the transposed weight, as on
GPT-2's Conv1D, whose weight is (in, out). How the factors were started does not matter, unless the start
changed the base (`kinds`); LoRA-FA trains B alone and is kept like any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inlay.composer.factors.adapter import Size
from inlay.composer.factors.held import Held, Reader, over_root

if TYPE_CHECKING:
    from inlay.composer.factors.adapter import Pair

LINEAR = ("lora_A.weight", "lora_B.weight")
EMBEDDING = ("lora_embedding_A", "lora_embedding_B")


def parts(held: Held) -> tuple[str, str]:
    """The names of A and B: an embedding's differ."""
    return EMBEDDING if any(part in held.shapes for part in EMBEDDING) else LINEAR


def size(held: Held) -> Size:
    down, up = parts(held)
    rank, inputs = held.shape(down)
    outputs = held.shape(up)[0]
    held.exactly({down: (rank, inputs), up: (outputs, rank)})
    held.rank(rank)
    return Size(rank, inputs, outputs, looked_up=down == EMBEDDING[0])


def factors(held: Held) -> Pair:
    down, up = parts(held)
    a, b = held.get(down), held.get(up)
    # float32: in half precision a scale that is no power of two would be rounded into B.
    scale = over_root(held.alpha("lora_alpha"), int(a.shape[0]), held.config.flag("use_rslora"))
    return a, b * scale


LORA = Reader("LORA", size, factors)
