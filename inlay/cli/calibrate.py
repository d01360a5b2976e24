"""inlay eval --calibrate"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inlay.cli.console import emit, points, printable_lines, progress
from inlay.errors import InputError

if TYPE_CHECKING:
    from inlay.evals.calibration import Calibration
    from inlay.registry import Registry


def calibrate_base(
    ref: str | None, suites: Sequence[str], base: str | None, device: str, registry: Registry, as_json: bool
) -> None:
    """Calibrate the drift alarm of the base that is named, of REF's, or of the only one in the registry."""
    from inlay.cli.bases import base_named
    from inlay.composer.calibrating import calibrate
    from inlay.composer.measure import GENERAL
    from inlay.evals.inference import load_base

    loaded = load_base(base_named(base) if base else _whereabouts(registry, ref), device=device)
    with progress() as say:
        found = calibrate(loaded, store=registry, general=suites or (GENERAL,), say=say)
    emit("eval", as_json, found.to_dict(), lambda: printable_lines(_lines(found, loaded.fingerprint.name)))


def _whereabouts(registry: Registry, ref: str | None) -> str:
    """Where the base of REF lies, or that of all adapters."""
    from inlay.composer.bases import whereabouts

    if ref is not None:
        return str(whereabouts(registry.resolve(ref).base))
    newest = [registry.versions(row.name, limit=1) for row in registry.names("adapter")]
    bases = {versions[0].base.weights: versions[0].base for versions in newest if versions}
    if len(bases) != 1:
        raise InputError(
            f"calibrating is about one base, and the registry's adapters have {len(bases)}",
            fix="name it with --base",
        )
    return str(whereabouts(next(iter(bases.values()))))


def _lines(found: Calibration, base: str) -> list[str]:
    """The models in the order of their drift, and what follows."""
    from inlay.evals.calibration import share

    rows = [
        f"{share(k.drift.disagreement):>8}  lost {points(k.held_out.loss):>5}, at least "
        f"{points(k.held_out.loss_lower):>5}{' *' if k.harmful else '  '}  {k.name}"
        for k in sorted(found.known, key=lambda k: (k.drift.disagreement, k.name))
    ]
    return [f"{base}: drift and points lost of each model (* counts as harmful)", *rows, found.said()]
