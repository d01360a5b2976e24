"""How far a value lies from the others, by median and MAD, which a few bad rows do not move."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

NORMAL = 1.4826
"""MAD of a normal distribution times this is its standard deviation."""


def robust_z(values: Sequence[float], least: float) -> list[float]:
    """(value - median) / max(1.4826 · MAD, `least`), Iglewicz and Hoaglin 1993. `least`, in the values' unit,
    keeps files whose values hardly differ from making outliers of nothing."""
    if not values:
        return []
    middle = statistics.median(values)
    scale = max(NORMAL * statistics.median(abs(value - middle) for value in values), least)
    return [(value - middle) / scale for value in values]
