"""LoHa (arXiv:2108.06098): the element-wise product of two products, by its exact structure.

    delta = alpha / r * (w1_a @ w1_b) * (w2_a @ w2_b)
    B[:, i r + j] = w1_a[:, i] * w2_a[:, j],  A[i r + j, :] = w1_b[i, :] * w2_b[j, :]

so its rank is r², or that of the dense delta where that is less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inlay.composer.factors.adapter import Size
from inlay.composer.factors.held import Held, Reader, at_most_dense, dense_pair

if TYPE_CHECKING:
    from inlay.composer.factors.adapter import Pair


def size(held: Held) -> Size:
    rank, inputs = held.shape("hada_w1_b")
    outputs = held.shape("hada_w1_a")[0]
    left, right = (outputs, rank), (rank, inputs)
    held.exactly({"hada_w1_a": left, "hada_w1_b": right, "hada_w2_a": left, "hada_w2_b": right})
    held.rank(rank)
    return at_most_dense(rank * rank, inputs, outputs)


def factors(held: Held) -> Pair:
    left = held.get("hada_w1_a"), held.get("hada_w2_a")
    right = held.get("hada_w1_b"), held.get("hada_w2_b")
    rank, inputs = right[0].shape
    scale = held.alpha("alpha") / rank
    if rank * rank > min(inputs, left[0].shape[0]):
        return dense_pair(scale * (left[0] @ right[0]) * (left[1] @ right[1]))
    a = (right[0].unsqueeze(1) * right[1].unsqueeze(0)).reshape(rank * rank, inputs)
    b = (left[0].unsqueeze(2) * left[1].unsqueeze(1)).reshape(-1, rank * rank)
    return a, b * scale


LOHA = Reader("LOHA", size, factors)
