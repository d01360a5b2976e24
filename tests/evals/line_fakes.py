"""Lines of versions with chosen outcomes: adapters of a base of small matrices; no model answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from difference_fakes import keep
from registry_fakes import make_adapter, make_base, score

import inlay
from inlay.registry import Registry

PER_SKILL = 100


def answered(*rates: int) -> tuple[bool, ...]:
    """Outcomes on a suite of `keep` with one skill a rate: the first `rate` of each skill's 100 items right.

    The suite deals its items to the skills in turn.
    """
    return tuple(k // len(rates) < rates[k % len(rates)] for k in range(PER_SKILL * len(rates)))


def grown(
    folder: Path,
    *,
    base: Mapping[str, Sequence[int]],
    versions: Sequence[Mapping[str, Sequence[int] | None]],
    held_out: Mapping[str, int] | None = None,
    runs: Sequence[Mapping[str, Any] | None] = (),
    name: str = "legal",
) -> Registry:
    """A store with versions of `name`; for each suite how many of each skill's 100 items base and versions
    answer. `held_out`: how many of a suite's skills are; all by default."""
    registry = inlay.Registry.open(folder / "store", create=True)
    path = make_base(folder / "base")
    for number in range(len(versions)):
        run = runs[number] if number < len(runs) else None
        adapter = make_adapter(folder / f"{name}{number}", seed=number + 1)
        registry.add(name, adapter, base=path, run=None if run is None else dict(run))
    for suite, rates in base.items():
        keep(registry, suite, PER_SKILL * len(rates), skills=len(rates), held_out=(held_out or {}).get(suite))
        score(registry, "base", suite, answered(*rates), like=f"{name}@v1")
    for number, scores in enumerate(versions, 1):
        for suite, rates_ in scores.items():
            if rates_ is not None:
                score(registry, f"{name}@v{number}", suite, answered(*rates_), like=f"{name}@v1")
    return registry
