"""Several processes that train one adapter together, as `accelerate launch` and torchrun start them.

All of them train; the main one alone keeps checkpoints, registers, measures and speaks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

PATIENCE = timedelta(days=1)
"""How long the others wait for the main process, which measures before it trains."""


def count() -> int:
    """How many there are: 1 where nobody launched several."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def index() -> int:
    """This one's number, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def is_main() -> bool:
    return index() == 0


def device(asked: str) -> str:
    """The device of this process: where several share a machine, `auto` and `cuda` are one GPU each."""
    if count() == 1 or asked not in ("auto", "cuda"):
        return asked
    kind = _state(asked).device
    return str(kind) if kind.type == "cuda" else kind.type


@contextlib.contextmanager
def main_first(asked: str = "auto") -> Iterator[None]:
    """Inside, the main process goes first and the others after it: they find what it left in the cache."""
    if count() == 1:
        yield
        return
    with _state(asked).main_process_first():
        yield


def together(figures: Sequence[float], on: Any) -> list[float]:
    """The sum over all processes of each figure, which every one of them must ask for; `on`: the device they
    train on."""
    if count() == 1:
        return list(figures)
    import torch

    summed = torch.tensor(figures, dtype=torch.float64, device=on)
    torch.distributed.all_reduce(summed)
    return summed.tolist()


def _state(asked: str) -> Any:
    from accelerate import PartialState

    return PartialState(cpu=asked == "cpu" or not _cuda(), timeout=PATIENCE)


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()
