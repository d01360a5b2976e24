"""What a training took: tokens, floating-point operations, seconds, memory.

FLOPs are counted while a step runs, by torch's own counter over every matrix product and attention of the
forward and the backward pass, and scaled by tokens. `formula` is what one expects of them.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SCHEMA = 1
MEMORY = {
    "cuda": "allocated by torch on the device",
    "resident": "resident in this process, the base among it",
    "lifetime": "resident in this process since it began",
}


@dataclass(frozen=True)
class Cost:
    """What a run took. `peak_bytes`: the most memory at a time, of the kind that `memory` (a key of `MEMORY`)
    names; None where the system does not say. `flops`: of training alone, None where they were not counted.
    """

    seconds: float
    task_tokens: int = 0
    general_tokens: int = 0
    flops: float | None = None
    peak_bytes: int | None = None
    memory: str = ""
    device: str = "cpu"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, as a run's record keeps it."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cost:
        """What `to_dict` wrote."""
        return cls(**{key: value for key, value in data.items() if key != "schema"})

    @classmethod
    def of_run(cls, run: Mapping[str, Any]) -> Cost:
        """The cost that a run's record keeps; records from before it was kept whole have seconds and
        tokens."""
        if "cost" in run:
            return cls.from_dict(run["cost"])
        tokens = run.get("tokens", {})
        return cls(float(run.get("seconds", 0.0)), tokens.get("task", 0), tokens.get("general", 0))


@dataclass
class Measured:
    """Filled in when `measuring` ends."""

    seconds: float = 0.0
    peak_bytes: int | None = None
    memory: str = ""


@contextlib.contextmanager
def measuring(device: str = "cpu") -> Iterator[Measured]:
    """Inside, time and the high-water mark of memory are taken: torch's on CUDA, else the process's own.

    Linux forgets a process's mark when asked (proc(5), clear_refs); elsewhere the mark is that of the whole
    life of the process, and is called so.
    """
    measured = Measured()
    cuda = device.startswith("cuda")
    if cuda:
        import torch

        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        measured.memory = "cuda"
    else:
        measured.memory = "resident" if _forget_mark() else "lifetime"
    start = time.perf_counter()
    try:
        yield measured
    finally:
        if cuda:
            torch.cuda.synchronize(device)
            measured.peak_bytes = int(torch.cuda.max_memory_allocated(device))
        else:
            measured.peak_bytes = _mark()
        measured.seconds = time.perf_counter() - start


@contextlib.contextmanager
def counting_flops() -> Iterator[FlopCount]:
    """Inside, what torch computes is counted, forward and backward; `flops` is there afterwards. A
    multiplication and an addition are two. Normalisations and activations are left out, as everywhere.

    By torch's own formulas, but not in its FlopCounterMode, which takes operations apart and so rounds
    otherwise: a step that is counted has the bits of one that is not.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import (
        flop_registry,
        sdpa_backward_flop_count,
        sdpa_flop_count,
        shape_wrapper,
    )

    aten = torch.ops.aten
    attention = {  # torch counts CUDA's kernels of attention, and not yet the CPU's
        aten._scaled_dot_product_flash_attention_for_cpu: shape_wrapper(
            lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: shape_wrapper(
            lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
        ),
    }
    count, formulas = FlopCount(), {**flop_registry, **attention}

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, operation: Any, types: Any, given: Any = (), named: Any = None) -> Any:
            named = named or {}
            made = operation(*given, **named)
            packet = operation._overloadpacket
            if packet in formulas:
                count.flops += formulas[packet](*given, **named, out_val=made)
            return made

    with Counter():
        yield count


@dataclass
class FlopCount:
    """Filled in when `counting_flops` ends."""

    flops: float = 0.0


def formula(
    *, weights: int, trainable: int, tokens: int, length: int = 0, layers: int = 0, width: int = 0
) -> float:
    """FLOPs expected of training on `tokens`, with sequences of `length` tokens.

    Kaplan et al. (arXiv:2001.08361, section 2.1): 2N a token forward and 4N backward, half of these for the
    inputs' gradients and half for the weights'. Here `weights` are the frozen ones, which take no gradient of
    their own, 4N a token, and `trainable` the others, 6A; both of those in matrix products, the head among
    them and embeddings not. Attention adds layers · length · width times 4 forward (masked positions too) and
    10 backward, which computes the scores anew (Dao et al., arXiv:2205.14135).
    """
    attention = 14.0 * layers * length * width
    return tokens * (4.0 * weights + 6.0 * trainable + attention)


def _forget_mark() -> bool:
    """Whether the system let go of this process's high-water mark."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _mark() -> int | None:
    """The most bytes that were resident; None where nobody says."""
    try:
        held = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    except OSError:
        held = None
    if held is not None:
        return int(held[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
