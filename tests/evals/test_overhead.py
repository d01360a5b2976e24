"""Times as pairs: the interval of a median against brute force, and cells against a clock that is told."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest

from inlay.errors import InputError
from inlay.evals.overhead import Overhead, measure_overhead, median_ratio


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed:
    """A model that takes `first` seconds to the first token and `step` for each further one."""

    def __init__(self, clock: Clock, first: float, step: float, log: list[str], name: str) -> None:
        self.clock, self.first, self.step, self.log, self.name = clock, first, step, log, name
        self.protocol: dict[str, Any] = {"dtype": "float32"}
        self.device = "cpu"

    def generate(self, prompts: Sequence[Any], *, max_new_tokens: int = 64, **decoding: Any) -> list[str]:
        assert decoding == {"min_new_tokens": max_new_tokens}
        self.log.append(self.name)
        self.clock.now += len(prompts) * self.first + (max_new_tokens - 1) * self.step
        return [""] * len(prompts)


def overhead(rounds: int = 6, prompts: int = 8, **more: Any) -> tuple[Overhead, list[str]]:
    clock, log = Clock(), []
    base, model = Timed(clock, 0.5, 0.1, log, "b"), Timed(clock, 0.75, 0.13, log, "m")
    found = measure_overhead(
        base,
        model,
        ["hello"] * prompts,
        subject="acme@v1",
        base_weights="sha256:" + "a" * 64,
        rounds=rounds,
        clock=clock,
        **more,
    )
    return found, log


def test_prefill_and_decoding_are_told_apart() -> None:
    found, _ = overhead()
    assert [cell.batch for cell in found.cells] == [1, 8]
    for cell in found.cells:
        assert cell.base_first == pytest.approx(0.5 * cell.batch)
        assert cell.first_ratio.estimate == pytest.approx(1.5)
        assert (cell.base_step, cell.model_step) == (pytest.approx(0.1), pytest.approx(0.13))
        assert cell.step_ratio.low == pytest.approx(1.3) and cell.step_ratio.upper == pytest.approx(1.3)
        assert cell.base_tokens == pytest.approx(cell.batch / 0.1)
    assert found.to_dict()["extra_time"]["upper"] == pytest.approx(0.3)
    assert Overhead.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_sides_take_turns_and_who_is_first_alternates() -> None:
    _, log = overhead(batches=(1,))
    rounds = ["".join(log[k : k + 4]) for k in range(0, len(log), 4)]
    assert rounds == ["mmbb", "bbmm", "mmbb", "bbmm", "mmbb", "bbmm", "mmbb"]  # the first warms up


def test_batches_without_prompts_are_left_out() -> None:
    assert [cell.batch for cell in overhead(prompts=3)[0].cells] == [1]
    with pytest.raises(InputError, match="there are 0 for batches of 1, 8"):
        overhead(prompts=0)
    with pytest.raises(InputError, match="at least 6 rounds and 2 new tokens, and was given 5 and 24"):
        overhead(rounds=5)


def test_the_interval_of_a_median_is_that_of_the_sign_test() -> None:
    """Oracle: over all 2^n ways values can fall about the true median, how often the interval misses it."""
    for n in (6, 7, 9, 12, 15):
        found = median_ratio(list(range(1, n + 1)))
        low, high, upper = int(found.low), int(found.high), int(found.upper)
        missed = beyond = tighter = 0
        for sides in product((0, 1), repeat=n):
            below = sum(sides)  # so many values lie below the true median
            missed += not low <= below < high
            beyond += upper <= below
            tighter += not low + 1 <= below < high - 1
        assert missed / 2**n <= 0.05 < tighter / 2**n
        assert beyond / 2**n <= 0.05
    assert median_ratio([3.0, 1.0, 2.0, 4.0, 6.0, 5.0]).estimate == 3.5
    with pytest.raises(InputError, match="at least 6 values, got 5"):
        median_ratio([1.0] * 5)


def test_the_interval_covers_the_median_of_skewed_times() -> None:
    rng, hits, trials = random.Random(0), 0, 2000
    for _ in range(trials):
        found = median_ratio([math.exp(rng.expovariate(2.0)) for _ in range(15)])
        hits += found.low <= math.exp(math.log(2.0) / 2.0) <= found.high
    assert 0.95 <= hits / trials <= 0.985  # exactly 0.9648 for n = 15
