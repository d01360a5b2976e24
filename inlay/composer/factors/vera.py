"""VeRA (arXiv:2310.11454): random A and B, shared by all modules, and two vectors for each.

    delta = diag(b) @ B[:out] @ diag(d) @ A[:, :in]

The shared A and B are as large as the largest module wants, so how far a module reaches into A only its
base says. They must have been saved (`save_projection`): a seed alone need not draw the same numbers again
elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inlay.composer.factors.adapter import Size
from inlay.composer.factors.held import Held, Reader
from inlay.errors import InputError

if TYPE_CHECKING:
    from inlay.composer.factors.adapter import Pair


def size(held: Held) -> Size:
    outputs, rank = held.shape("vera_lambda_b", 1)[0], held.shape("vera_lambda_d", 1)[0]
    held.exactly({"vera_lambda_b": (outputs,), "vera_lambda_d": (rank,)})
    weight = held.base_shape()
    inputs = weight[0] * weight[1] // outputs
    down, up = held.shared_shape("vera_A"), held.shared_shape("vera_B")
    fits = outputs in weight and down[0] == up[1] == rank and down[1] >= inputs and up[0] >= outputs
    if not fits:
        raise InputError(
            f"{held.adapter}: the shared vera_A {list(down)} and vera_B {list(up)} do not fit {held.module}, "
            f"whose weight is {list(weight)} and whose rank is {rank}"
        )
    return Size(rank, inputs, outputs)


def factors(held: Held) -> Pair:
    _, inputs, outputs, _ = size(held)
    a = held.get("vera_A")[:, :inputs] * held.get("vera_lambda_d").unsqueeze(1)
    return a, held.get("vera_B")[:outputs] * held.get("vera_lambda_b").unsqueeze(1)


VERA = Reader("VERA", size, factors)
