"""What to change where a training does not fit the memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from inlay.errors import InputError

if TYPE_CHECKING:
    from inlay.trainers.settings import Settings

_CPU = ("can't allocate memory", "not enough memory", "cannot allocate memory")
"""How torch's allocator on the CPU says it, in a bare RuntimeError."""


def is_out_of_memory(error: BaseException) -> bool:
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _CPU)


@contextlib.contextmanager
def said(settings: Settings, device: str) -> Iterator[None]:
    """Inside, running out of memory is an InputError that names the settings which decide over it, with their
    values, the one that costs least first."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"a step must fit the memory of {device}, and with {', '.join(_values(settings))} it does not",
            fix=" or ".join(_ways(settings)),
        ) from error


def _values(settings: Settings) -> list[str]:
    names = ["batch_size", "max_length"]
    if settings.kl > 0:
        names.insert(1, "kl_ratio" if settings.kl_ratio > 0 else "kl_batch_size")
    return [f"{name} {getattr(settings, name)}" for name in names]


def _ways(settings: Settings) -> list[str]:
    ways = []
    if settings.batch_size > 1:
        half, times = settings.batch_size // 2, 2 * settings.accumulate
        ways.append(f"--batch {half} --accumulate {times} (as many rows a step, half at once)")
    if settings.kl > 0 and settings.kl_ratio > 0:
        ways.append(f"--kl-ratio {settings.kl_ratio / 2:g}")
    elif settings.kl > 0 and settings.kl_batch_size > 1:
        ways.append(f"--kl-batch {settings.kl_batch_size // 2}")
    if not settings.gradient_checkpointing:
        ways.append("--gradient-checkpointing")
    return [*ways, f"rows shorter than {settings.max_length} tokens"]
