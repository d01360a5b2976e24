"""LoKr (arXiv:2212.10650): a Kronecker product, by its exact structure.

    delta = alpha / r * kron(w1, w2),  kron(B1 @ A1, B2 @ A2) = kron(B1, B2) @ kron(A1, A2)

w1 and w2 are each whole or a product of rank r; a whole one is its own factor, beside an identity. The
rank is the product of the two, or that of the dense delta where that is less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inlay.composer.factors.adapter import Size
from inlay.composer.factors.held import Held, Reader, at_most_dense, dense_pair

if TYPE_CHECKING:
    import torch

    from inlay.composer.factors.adapter import Pair


def size(held: Held) -> Size:
    expected = {}
    rank, inputs, outputs = 1, 1, 1
    for name in ("lokr_w1", "lokr_w2"):
        if name in held.shapes:
            up, down = held.shape(name)
            expected[name] = (up, down)
            rank *= min(up, down)
        else:
            own, down = held.shape(f"{name}_b")
            up = held.shape(f"{name}_a")[0]
            expected |= {f"{name}_a": (up, own), f"{name}_b": (own, down)}
            held.rank(own)
            rank *= own
        inputs, outputs = inputs * down, outputs * up
    held.exactly(expected)
    return at_most_dense(rank, inputs, outputs)


def factors(held: Held) -> Pair:
    import torch

    scale = held.alpha("alpha") / held.rank()
    (a1, b1), (a2, b2) = _pair(held, "lokr_w1"), _pair(held, "lokr_w2")
    rank = a1.shape[0] * a2.shape[0]
    if rank > min(a1.shape[1] * a2.shape[1], b1.shape[0] * b2.shape[0]):
        return dense_pair(scale * torch.kron(b1 @ a1, b2 @ a2))
    return torch.kron(a1, a2), torch.kron(b1, b2) * scale


def _pair(held: Held, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    if name in held.shapes:
        return dense_pair(held.get(name))
    return held.get(f"{name}_b"), held.get(f"{name}_a")


LOKR = Reader("LOKR", size, factors)
