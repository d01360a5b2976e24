"""Adapters in one canonical form: per module, two factors whose product is the delta.

    delta = B @ A, with A (r, in) and B (out, r); all scaling is in B

adapter.py   the form itself
held.py      what an adapter holds for one module, as the readers see it
reading.py   a folder or a version becomes factors; what has none is refused by name
lora.py, adalora.py, loha.py, lokr.py, delora.py, miss.py, gralora.py, vera.py, vblora.py, unilora.py
             one kind each: its paper, its algebra, its size and its factors

Nothing here imports torch before factors are computed, so that a plan needs none.
"""

from __future__ import annotations

from inlay.composer.factors.adapter import Adapter, Size
from inlay.composer.factors.reading import (
    READERS,
    factors_of,
    read_adapter,
    recorded_weights,
    refusal,
    shapes_of,
    sizes_of,
)

__all__ = [
    "READERS",
    "Adapter",
    "Size",
    "factors_of",
    "read_adapter",
    "recorded_weights",
    "refusal",
    "shapes_of",
    "sizes_of",
]
