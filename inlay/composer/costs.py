"""Which way through a bank is the fastest: a small model of what each costs, and its measured constants.

Knows sizes only; benchmarks/bank_costs.py measures the constants on a machine and prints them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """What one layer has to do for one batch.

    `features`: in + out. `columns`: how many the dense path multiplies. `gathered`: columns of the row that
    has most, 0 where nothing can be gathered. `pieces`: for each run of columns the tokens that meet it,
    how many columns it has, and whether its rows must be copied together first. `lasting`: the same rows come
    again step after step, and there is room to hold on to what was gathered for them.
    """

    rows: int
    length: int
    features: int
    columns: int
    gathered: int
    pieces: tuple[tuple[int, int, bool], ...]
    lasting: bool = False


@dataclass(frozen=True)
class TokenShape:
    """What one layer has to do for one batch whose tokens choose experts of their own.

    `tokens`: in all rows that take part. `features`: in + out. `columns`: how many the dense path multiplies.
    `ranks`: the columns of each expert that can be chosen; `chosen`: how many a token takes.
    """

    tokens: int
    features: int
    columns: int
    ranks: tuple[int, ...]
    chosen: int


@dataclass(frozen=True)
class Costs:
    """Seconds: for starting an operation; for a multiply-add of a product and of a batched one; for reading
    an element of the factors from memory; for copying one."""

    call: float
    product: float
    batched: float
    read: float
    copy: float

    @classmethod
    def on(cls, device: str) -> Costs:
        """The constants for a torch device type; those of "cuda" where it is neither CPU nor CUDA."""
        return CPU if device == "cpu" else CUDA


# Measured: float32, one thread of a shared x86-64 machine, by benchmarks/bank_costs.py.
CPU = Costs(call=2.1e-6, product=2.4e-11, batched=3.0e-11, read=5.5e-11, copy=1.2e-10)

# Not measured, no device was at hand: orders of magnitude for one in a data centre, where starting a kernel
# is what costs. The same script prints those of yours.
CUDA = Costs(call=5e-6, product=1e-13, batched=2e-13, read=2e-12, copy=4e-12)


KEPT_STEPS = 16
"""How many steps of a decode are taken to share the copies that the first one makes."""


def estimate(shape: Shape, costs: Costs) -> dict[str, float]:
    """Seconds of each path that there is for this shape."""

    def product(tokens: int, columns: int) -> float:
        return shape.features * columns * (tokens * costs.product + costs.read)

    seconds = {"dense": 3 * costs.call + product(shape.rows * shape.length, shape.columns)}
    seconds["segmented"] = sum(
        3 * costs.call
        + product(tokens, columns)
        + (3 * costs.call + tokens * shape.features * costs.copy if apart else 0.0)
        for tokens, columns, apart in shape.pieces
    )
    if shape.gathered:
        copied = shape.rows * shape.gathered * shape.features
        seconds["gathered"] = 5 * costs.call + copied * (costs.copy + shape.length * costs.batched)
        if shape.lasting:
            each = costs.read + costs.batched + costs.copy / KEPT_STEPS
            seconds["kept"] = 2 * costs.call + copied * each
    return seconds


def estimate_tokens(shape: TokenShape, costs: Costs) -> dict[str, float]:
    """Seconds of each path once the tokens have chosen; experts are taken to be chosen equally often.

    Operations are counted with those that only look at a tensor anew. The copies of columns for each token
    soon outgrow a cache: they pass through memory three times, read, written and read back. Tokens set apart
    are copied out and their sums put back.
    """
    experts, picks = len(shape.ranks), shape.tokens * shape.chosen
    reached, width = min(experts, picks), sum(shape.ranks) / experts
    copied = picks * max(shape.ranks) * shape.features
    spread = shape.tokens * experts * shape.columns
    return {
        "dense": 11 * costs.call
        + shape.features * shape.columns * (shape.tokens * costs.product + costs.read)
        + spread * costs.product,
        "segmented": (14 + 13 * reached) * costs.call
        + shape.features * width * (picks * costs.product + reached * costs.read)
        + 2 * picks * shape.features * costs.copy,
        "gathered": 15 * costs.call + copied * (costs.copy + 3 * costs.read + costs.batched),
    }


def choose(shape: Shape | TokenShape, costs: Costs) -> str:
    """The path with the least estimate; of equals the one named first: dense, segmented, gathered,
    kept."""
    seconds = estimate(shape, costs) if isinstance(shape, Shape) else estimate_tokens(shape, costs)
    return min(seconds, key=lambda path: seconds[path])
