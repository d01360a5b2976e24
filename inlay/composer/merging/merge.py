"""`merge`: one adapter out of several, module by module: memory holds the matrices of one at a time.

    Δ = U f(M_1, …, M_T; w) Vᵀ  in core space,  Δ = f(Δ_1, …, Δ_T; w)  in dense space

cut to a rank by its exact singular value decomposition. float64 inside, float32 in and out. A module that an
adapter leaves alone counts as a zero delta of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from inlay.composer.factors import Adapter
from inlay.composer.merging.core import CLOSE, Core, Pair, close_together, core_of, dense_of, lift, unit
from inlay.composer.merging.methods import Settings
from inlay.composer.merging.sums import summed
from inlay.errors import InputError


def merge(
    adapters: Sequence[Adapter],
    *,
    weights: Sequence[float] | None = None,
    method: str = "linear",
    space: str = "core",
    rank: int | None = None,
    energy: float | None = None,
    seed: int = 0,
    params: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Adapter:
    """One adapter out of `adapters` by a method of docs/merging.md.

    `weights`: one for each adapter, 1 by default; a method without weights of its own sees the scaled delta.
    `space`: "core" (the method works in the adapters' shared singular bases) or "dense" (on the deltas).
    At most one of `rank`, the most a module may have, and `energy`, the share of each module's squared norm
    that is kept; by default nothing is cut. `seed`: for the methods that draw.

    The result has `.truncation`, for each module the relative Frobenius error of the cut, and `.notes`.
    The same inputs give the same bytes (one machine, one version of torch and mergekit, any threads).
    Raises InputError, before anything is computed, for an unknown method or parameter, one out of range,
    the wrong number of inputs, or modules of different shapes.
    """
    inputs = list(adapters)
    settings = Settings.of(
        method, len(inputs), params=params, space=space, rank=rank, energy=energy, seed=seed
    )
    values = [1.0] * len(inputs) if weights is None else [float(weight) for weight in weights]
    if len(values) != len(inputs):
        raise InputError(f"a merge needs one weight for each adapter, got {len(values)} for {len(inputs)}")
    settings.check_weights(values)
    return merged(inputs, values, settings, name or f"{method}({', '.join(a.name for a in inputs)})")


def merged(inputs: Sequence[Adapter], weights: Sequence[float], settings: Settings, name: str) -> Adapter:
    """`merge` with checked settings."""
    check_factors(inputs)
    factors: dict[str, Pair] = {}
    truncation: dict[str, float] = {}
    free: list[str] = []
    with _one_thread(), torch.no_grad():
        for module in sorted({module for adapter in inputs for module in adapter.factors}):
            pairs = [adapter.factors.get(module) for adapter in inputs]
            a, b, error, unsettled = _module(pairs, weights, settings, module)
            if unsettled:
                free.append(module)
            if a.shape[0]:
                factors[module] = (a, b)
                truncation[module] = error
    cut = max(truncation.values(), default=0.0)
    exactness = f"merged by {settings.method.name} in {settings.space} space"
    if cut > 1e-6:
        exactness += f", cut by up to {cut:.2g} of a module's norm"
    return Adapter(
        name,
        factors,
        exactness=exactness,
        embeddings=frozenset(factors) & frozenset().union(*(adapter.embeddings for adapter in inputs)),
        truncation=truncation,
        notes=_notes(free, len(factors), settings),
    )


def _module(
    pairs: Sequence[Pair | None], weights: Sequence[float], settings: Settings, module: str
) -> tuple[torch.Tensor, torch.Tensor, float, bool]:
    """A, B, the error of the cut, and whether the result hangs on a basis that is one of many."""
    method = settings.method
    if method.sums and settings.space == "core" and settings.rank is None and settings.energy is None:
        scales = [1.0] * len(pairs) if method.weighted else weights
        found = summed(
            pairs, scales, settings, lambda deltas: _by(method.home, deltas, weights, settings, module)
        )
        if found is not None:
            if not (_finite(found[0]) and _finite(found[1])):
                raise _not_finite(method.name, module)
            return *found, 0.0, False
    if settings.space == "core":
        core = core_of(pairs, method.basis)
    else:
        core = Core(dense_of(pairs), unit, unit, False)
    deltas, unsettled = core.cores, core.free
    if not method.weighted:
        deltas = deltas * torch.tensor(weights, dtype=deltas.dtype).reshape(-1, 1, 1)
    if method.basis == "left":
        unsettled = close_together(torch.linalg.eigvalsh((deltas @ deltas.mT).sum(dim=0)).flip(0))
    if not deltas.numel():
        result = deltas.sum(dim=0)
    else:
        result = _by(method.home, deltas, weights, settings, module)
    if not bool(result.isfinite().all()):
        raise _not_finite(method.name, module)
    return *lift(result, core.left, core.right, rank=settings.rank, energy=settings.energy), unsettled


def _not_finite(method: str, module: str) -> InputError:
    return InputError(f"{method} gives no finite numbers for {module} with these weights")


def _by(
    home: str, deltas: torch.Tensor, weights: Sequence[float], settings: Settings, module: str
) -> torch.Tensor:
    kernel = importlib.import_module(f"inlay.composer.merging.{home}").merged
    with torch.random.fork_rng(devices=[]):
        if settings.method.random:
            # Each module draws for itself, so that what one draws does not hang on which others there are.
            drawn = hashlib.sha256(f"{settings.seed}:{module}".encode()).digest()
            torch.manual_seed(int.from_bytes(drawn[:8], "big") >> 1)
        try:
            return kernel(deltas, weights, settings)
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"{settings.method.name} cannot merge {module}: {str(error).splitlines()[0][:160]}",
                fix="try another method, or other weights",
            ) from error


def check_factors(inputs: Sequence[Adapter]) -> None:
    shapes: dict[str, tuple[tuple[int, int], str]] = {}
    for adapter in inputs:
        for module, (a, b) in adapter.factors.items():
            if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
                raise InputError(
                    f"{adapter.name}: the factors of {module} do not fit: A {tuple(a.shape)}, "
                    f"B {tuple(b.shape)}"
                )
            if not (_finite(a) and _finite(b)):
                raise InputError(f"{adapter.name}: the factors of {module} must be finite")
            shape = (int(b.shape[0]), int(a.shape[1]))
            known, other = shapes.setdefault(module, (shape, adapter.name))
            if known != shape:
                raise InputError(
                    f"the deltas of {module} must have one shape: {other} has {known}, "
                    f"{adapter.name} has {shape}",
                    fix="merge adapters of one base only",
                )


def _finite(factor: torch.Tensor) -> bool:
    """In one pass and without a copy: the ends of the range are finite only where all is."""
    if not factor.numel():
        return True
    low, high = torch.aminmax(factor)
    return math.isfinite(float(low)) and math.isfinite(float(high))


def _notes(free: list[str], modules: int, settings: Settings) -> tuple[str, ...]:
    if not free:
        return ()
    return (
        f"in {len(free)} of {modules} modules (first {free[0]}) singular values agree to {CLOSE:g}, so that "
        f"the basis is one of many and what {settings.method.name} gives hangs on rounding",
    )


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in another order round differently: with one thread the bytes do not depend on the machine's load
    or on OMP_NUM_THREADS."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
