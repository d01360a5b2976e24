"""Student's t in plain Python: its distribution and quantiles, to about 1e-11."""

from __future__ import annotations

import math
from functools import lru_cache


@lru_cache(maxsize=1024)
def student_quantile(share: float, freedom: int) -> float:
    """The value under which `share` of Student's t lies, by bisection of the distribution to 1e-12."""
    if share == 0.5:
        return 0.0
    if share < 0.5:
        return -student_quantile(1.0 - share, freedom)
    low, high = 0.0, 1.0
    while student_cdf(high, freedom) < share:
        low, high = high, 2.0 * high
    for _ in range(100):
        middle = (low + high) / 2.0
        low, high = (middle, high) if student_cdf(middle, freedom) < share else (low, middle)
        if high - low < 1e-12 * high:
            break
    return (low + high) / 2.0


def student_cdf(t: float, freedom: int) -> float:
    """P(T ≤ `t`) for Student's t: 1 − I(ν / (ν + t²); ν/2, ½) / 2 for t ≥ 0."""
    tail = _incomplete_beta(freedom / (freedom + t * t), freedom / 2.0, 0.5) / 2.0
    return 1.0 - tail if t >= 0.0 else tail


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I(x; a, b), by its continued fraction (Lentz's method).

    Abramowitz and Stegun, 26.5.8.
    """
    if x <= 0.0 or x >= 1.0:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1.0) / (a + b + 2.0):  # the fraction converges fast on the other side only
        return 1.0 - _incomplete_beta(1.0 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    tiny = 1e-300
    fraction, above, below = 1.0, 1.0, 0.0
    for step in range(1000):
        half = step // 2
        if step == 0:
            term = 1.0
        elif step % 2 == 0:
            term = half * (b - half) * x / ((a + step - 1.0) * (a + step))
        else:
            term = -(a + half) * (a + b + half) * x / ((a + step - 1.0) * (a + step))
        below = 1.0 / (_off_zero(1.0 + term * below, tiny))
        above = _off_zero(1.0 + term / above, tiny)
        fraction *= above * below
        if step and abs(1.0 - above * below) < 1e-15:
            break
    return front * (fraction - 1.0) / a


def _off_zero(value: float, tiny: float) -> float:
    return tiny if abs(value) < tiny else value
