"""Uni-LoRA (arXiv:2506.00799): all values of all A and B are drawn from one shared vector.

    delta = B @ A;  A = theta[indices_A] * scales_A, and B likewise

The indices must have been saved (`save_indices`): without them only PEFT's order of the modules tells which
value goes where.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inlay.composer.factors.adapter import Size
from inlay.composer.factors.held import Held, Reader
from inlay.errors import InputError

if TYPE_CHECKING:
    import torch

    from inlay.composer.factors.adapter import Pair


def size(held: Held) -> Size:
    rank, inputs = held.shape("unilora_indices_A")
    outputs = held.shape("unilora_indices_B")[0]
    left, right = (rank, inputs), (outputs, rank)
    held.exactly(
        {
            "unilora_indices_A": left,
            "unilora_indices_B": right,
            "unilora_scales_A": left,
            "unilora_scales_B": right,
        }
    )
    held.shared_shape("unilora_theta_d", 1)
    held.rank(rank)
    return Size(rank, inputs, outputs)


def factors(held: Held) -> Pair:
    return _drawn(held, "A"), _drawn(held, "B")


def _drawn(held: Held, side: str) -> torch.Tensor:
    theta, places = held.get("unilora_theta_d"), held.tensors[f"unilora_indices_{side}"].long()
    if places.numel() and not 0 <= int(places.min()) <= int(places.max()) < theta.numel():
        raise InputError(
            f"{held.adapter}: the indices of {held.module} must be below {theta.numel()}, "
            f"they go from {int(places.min())} to {int(places.max())}"
        )
    return theta[places] * held.get(f"unilora_scales_{side}")


UNILORA = Reader("UNILORA", size, factors)
