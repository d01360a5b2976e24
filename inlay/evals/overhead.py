"""What composing costs in time: base and composed model answer the same prompts in turn, timed as pairs.

Both sides are the same loaded model, once with its gate closed, so what differs is what the adapters add.
Prefill is the time to the first token, decoding what each further token takes; both are forced to the same
number of tokens. A time of this machine says little about another, the ratio more.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

from inlay.errors import InputError
from inlay.registry.canonical import now

if TYPE_CHECKING:
    from inlay.evals.inference import Prompt

SCHEMA = 1
BATCHES = (1, 8)
ROUNDS = 15
NEW_TOKENS = 24


class Timed(Protocol):
    """What is asked of a model here; `inference.Chat` is one."""

    @property
    def protocol(self) -> dict[str, Any]: ...
    @property
    def device(self) -> str: ...
    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 64, **decoding: Any
    ) -> list[str]: ...


@dataclass(frozen=True)
class Ratio:
    """Model's time over base's, pair by pair: the median, its two-sided 95% interval, and the one-sided
    upper 95% bound that a guard uses."""

    estimate: float
    low: float
    high: float
    upper: float


@dataclass(frozen=True)
class Cell:
    """One batch size. Seconds are medians over the rounds; `first`: prompts to their first token, `step`:
    each further token of the whole batch. `first_ratio` and `step_ratio` are model over base."""

    batch: int
    base_first: float
    model_first: float
    first_ratio: Ratio
    base_step: float
    model_step: float
    step_ratio: Ratio

    @property
    def base_tokens(self) -> float:
        """Tokens a second that the base decodes."""
        return self.batch / self.base_step

    @property
    def model_tokens(self) -> float:
        """Tokens a second that the model decodes."""
        return self.batch / self.model_step


@dataclass(frozen=True)
class Overhead:
    """One subject's times against its base's."""

    subject: str
    base_weights: str
    device: str
    dtype: str
    threads: int
    rounds: int
    new_tokens: int
    cells: tuple[Cell, ...]
    created: str = field(default_factory=now)

    @property
    def worst(self) -> Cell:
        """The batch size at which a further token costs most, by its upper bound: what a guard looks at."""
        return max(self.cells, key=lambda cell: cell.step_ratio.upper)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON. `extra_time` is the worst cell's ratio minus one: extra time a token, as fractions."""
        worst = self.worst.step_ratio
        extra = {key: value - 1.0 for key, value in asdict(worst).items()}
        return {
            "schema": SCHEMA,
            **asdict(self),
            "cells": [
                {**asdict(cell), "base_tokens": cell.base_tokens, "model_tokens": cell.model_tokens}
                for cell in self.cells
            ],
            "extra_time": {**extra, "batch": self.worst.batch},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Overhead:
        """What `to_dict` wrote; InputError for a schema this version does not know."""
        if data.get("schema") != SCHEMA:
            raise InputError(f"an overhead report must have schema {SCHEMA}, got {data.get('schema')!r}")
        cells = tuple(
            Cell(
                **{
                    **{key: row[key] for key in ("batch", "base_first", "model_first")},
                    **{key: row[key] for key in ("base_step", "model_step")},
                    "first_ratio": Ratio(**row["first_ratio"]),
                    "step_ratio": Ratio(**row["step_ratio"]),
                }
            )
            for row in data["cells"]
        )
        plain = ("subject", "base_weights", "device", "dtype", "threads", "rounds", "new_tokens", "created")
        return cls(**{key: data[key] for key in plain}, cells=cells)


def measure_overhead(
    base: Timed,
    model: Timed,
    prompts: Sequence[Prompt],
    *,
    subject: str,
    base_weights: str,
    batches: Sequence[int] = BATCHES,
    rounds: int = ROUNDS,
    new_tokens: int = NEW_TOKENS,
    clock: Callable[[], float] = time.perf_counter,
) -> Overhead:
    """Time both on the first prompts, `rounds` times in turn after a round to warm up.

    Which of the two goes first alternates. Batch sizes for which there are too few prompts are left out.
    InputError where none is left, for fewer than six rounds (no 95% interval of a median exists) or fewer
    than two new tokens.
    """
    if rounds < 6 or new_tokens < 2:
        raise InputError(
            f"timing needs at least 6 rounds and 2 new tokens, and was given {rounds} and {new_tokens}"
        )
    sizes = [size for size in batches if 1 <= size <= len(prompts)]
    if not sizes:
        raise InputError(
            f"timing needs as many prompts as a batch has, and there are {len(prompts)} for batches of "
            f"{', '.join(map(str, batches))}"
        )
    import torch

    def seconds(side: Timed, batch: Sequence[Prompt], tokens: int) -> float:
        start = clock()
        # Texts come back to the CPU, so a device has finished by then.
        side.generate(batch, max_new_tokens=tokens, min_new_tokens=tokens)
        return clock() - start

    cells = []
    for size in sizes:
        batch = prompts[:size]
        times: dict[str, list[tuple[float, float]]] = {"base": [], "model": []}
        for number in range(-1, rounds):
            order = [("base", base), ("model", model)]
            for name, side in order if number % 2 == 0 else reversed(order):
                first = seconds(side, batch, 1)
                whole = seconds(side, batch, new_tokens)
                if number >= 0:
                    times[name].append((first, (whole - first) / (new_tokens - 1)))
        cells.append(_cell(size, times["base"], times["model"]))
    return Overhead(
        subject=subject,
        base_weights=base_weights,
        device=model.device,
        dtype=str(model.protocol["dtype"]),
        threads=torch.get_num_threads(),
        rounds=rounds,
        new_tokens=new_tokens,
        cells=tuple(cells),
    )


def _cell(batch: int, base: Sequence[tuple[float, float]], model: Sequence[tuple[float, float]]) -> Cell:
    tiny = 1e-9  # a step faster than the clock can tell
    ratios = [
        [max(after[part], tiny) / max(before[part], tiny) for before, after in zip(base, model, strict=True)]
        for part in (0, 1)
    ]
    return Cell(
        batch=batch,
        base_first=median(first for first, _ in base),
        model_first=median(first for first, _ in model),
        first_ratio=median_ratio(ratios[0]),
        base_step=max(median(step for _, step in base), tiny),
        model_step=max(median(step for _, step in model), tiny),
        step_ratio=median_ratio(ratios[1]),
    )


def median_ratio(ratios: Sequence[float]) -> Ratio:
    """The median with its distribution-free interval: order statistics k and n + 1 − k, for the largest k
    with P(X < k) ≤ 2.5% (5% for the bound) under X ~ Binomial(n, ½): the sign test turned around.

    InputError for fewer than six: even the smallest and the largest then enclose the median in fewer than 95%
    of cases.
    """
    n = len(ratios)
    if n < 6:
        raise InputError(f"a 95% interval of a median needs at least 6 values, got {n}")
    ordered = sorted(ratios)
    both, one = _rank(n, 0.025), _rank(n, 0.05)
    return Ratio(median(ordered), ordered[both - 1], ordered[n - both], ordered[n - one])


def _rank(n: int, tail: float) -> int:
    """The largest k with P(Binomial(n, ½) < k) ≤ `tail`."""
    total, k = 0, 0
    while (total + math.comb(n, k)) <= tail * 2**n:
        total += math.comb(n, k)
        k += 1
    return k
