"""GraLoRA (arXiv:2505.20355): k by k blocks, each a LoRA of rank r / k, and one LoRA over the whole beside.

    delta[block j of out, block n of in] = alpha / (r + hybrid_r) * B[j, ns : ns + s]ᵀ @ A[n, :, js : js + s]ᵀ
    with s = r / k, A (k, in / k, r), B (k, r, out / k); hybrid_r ranks B_general @ A_general are added

so its rank is k r + hybrid_r, or that of the dense delta where that is less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inlay.composer.factors.adapter import Size
from inlay.composer.factors.held import Held, Reader, at_most_dense, dense_pair
from inlay.errors import InputError

if TYPE_CHECKING:
    from inlay.composer.factors.adapter import Pair

_GENERAL = ("gralora_A_general.weight", "gralora_B_general.weight")


def size(held: Held) -> Size:
    k, width, rank = held.shape("gralora_A", 3)
    height = held.shape("gralora_B", 3)[2]
    inputs, outputs = k * width, k * height
    hybrid = held.config.count("hybrid_r", least=0)
    expected: dict[str, tuple[int, ...]] = {"gralora_A": (k, width, rank), "gralora_B": (k, rank, height)}
    if hybrid:
        expected |= {_GENERAL[0]: (hybrid, inputs), _GENERAL[1]: (outputs, hybrid)}
    held.exactly(expected)
    if (held.config.count("gralora_k"), held.config.count("r")) != (k, rank) or rank % k:
        raise InputError(
            f"{held.module} must have the blocks and the rank its configuration says, a multiple of the "
            f"blocks, and has {k} blocks of rank {rank}"
        )
    return at_most_dense(k * rank + hybrid, inputs, outputs)


def factors(held: Held) -> Pair:
    import torch

    down, up = held.get("gralora_A"), held.get("gralora_B")
    k, width, rank = down.shape
    height, share = up.shape[2], rank // k
    hybrid = held.config.count("hybrid_r", least=0)
    # One row of A for each (block of in n, block of out j, i), in that order.
    a, b = torch.zeros(k, k, share, k, width), torch.zeros(k, height, k, k, share)
    for n in range(k):
        for j in range(k):
            a[n, j, :, n] = down[n, :, j * share : (j + 1) * share].T
            b[j, :, n, j] = up[j, n * share : (n + 1) * share].T
    a, b = a.reshape(k * rank, k * width), b.reshape(k * height, k * rank)
    if hybrid:
        a, b = torch.cat([a, held.get(_GENERAL[0])]), torch.cat([b, held.get(_GENERAL[1])], dim=1)
    alpha = held.config.number("alpha")
    assert alpha is not None  # the kinds table has PEFT's default
    b = b * (alpha / (rank + hybrid))
    return dense_pair(b @ a) if a.shape[0] > min(a.shape[1], b.shape[0]) else (a, b)


GRALORA = Reader("GRALORA", size, factors)
