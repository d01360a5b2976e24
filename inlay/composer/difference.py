"""What differs between two versions or two locks, the norms of their deltas among it.

    ΔW = B A;  with [B_a B_b] = Q R and [A_a; A_b]ᵀ = P S (QR, float64):  ΔW_i = Q (R_i S_iᵀ) Pᵀ

Q and P are isometries, so norms, inner products and the norm of ΔW_b − ΔW_a are those of the small cores
R_i S_iᵀ, (r_a + r_b) square: exact, and the dense product is never made. The Gram matrices would do as well
for the norms; for the difference of two deltas that nearly agree they lose half of the digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from inlay.errors import InputError, IntegrityError
from inlay.evals.comparing import LET_GO, difference, member_changes, resolved
from inlay.evals.difference import Difference, ModuleChange, Norms
from inlay.registry import Lock, Registry, Version

if TYPE_CHECKING:
    import torch

    Factors = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


def diff(
    a: str | Version | Lock,
    b: str | Version | Lock,
    *,
    store: Registry | str | Path | None = None,
    norms: bool = True,
) -> Difference:
    """What differs from `a` to `b`: two versions (of one name or of two) or two locks.

    `norms` adds the norms of the deltas, module by module, and needs torch. Of two stacks or merges they are
    those of the sums; of other locks, of each member that is pinned anew. What has no exact factors is named
    in `notes`. Raises InputError for a version against a lock, ReferenceNotFound, IntegrityError.
    """
    store = store if isinstance(store, Registry) else Registry.open(store)
    first, second = resolved(a, b, store)
    found = difference(first, second, store=store)
    if not norms:
        return found
    notes: list[str] = []
    pairs = [] if found.same else _pairs(store, first, second, notes)
    measured = [pair for one, other in pairs if (pair := _norms(store, one, other, notes)) is not None]
    if found.base and any(change.what == "weights" for change in found.base):
        notes.append("the bases differ: the norms compare the deltas, not what they do")
    return replace(found, norms=tuple(measured), notes=(*found.notes, *dict.fromkeys(notes)))


def module_changes(first: Factors, second: Factors) -> tuple[ModuleChange, ...]:
    """The deltas of every module of either, as norms.

    first, second: module -> (A (r, in), B (out, r)), delta = B @ A; float64 inside. InputError where a
    module's deltas have different shapes.
    """
    return tuple(
        _module_change(module, first.get(module), second.get(module)) for module in sorted({*first, *second})
    )


def _module_change(
    module: str,
    first: tuple[torch.Tensor, torch.Tensor] | None,
    second: tuple[torch.Tensor, torch.Tensor] | None,
) -> ModuleChange:
    import torch

    held = [side for side in (first, second) if side is not None]
    shapes = {(int(b.shape[0]), int(a.shape[1])) for a, b in held}
    if len(shapes) > 1:
        one, other = sorted(shapes)
        raise InputError(f"the deltas of {module} must have one shape, they have {one} and {other}")
    ranks = [None if side is None else int(side[0].shape[0]) for side in (first, second)]
    if first is not None and second is not None and all(map(torch.equal, first, second)):
        # The same factors: rounding must not make a difference of them.
        norm = float(torch.linalg.norm(_cores([first])[0]))
        return ModuleChange(module, ranks[0], ranks[1], norm, norm, 0.0, norm * norm)
    cores = iter(_cores(held))
    zero = torch.zeros((), dtype=torch.float64)
    before = next(cores) if first is not None else zero
    after = next(cores) if second is not None else zero
    return ModuleChange(
        module=module,
        rank_a=ranks[0],
        rank_b=ranks[1],
        norm_a=float(torch.linalg.norm(before)),
        norm_b=float(torch.linalg.norm(after)),
        change=float(torch.linalg.norm(after - before)),
        inner=float((before * after).sum()),
    )


def _cores(sides: list[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
    """Each delta in the coordinates that all of them share: (R_i S_iᵀ), at most (Σr, Σr), float64."""
    import torch

    right = torch.linalg.qr(torch.cat([b.double() for _, b in sides], dim=1), mode="r").R
    left = torch.linalg.qr(torch.cat([a.double().T for a, _ in sides], dim=1), mode="r").R
    cores, start = [], 0
    for a, _ in sides:
        end = start + int(a.shape[0])
        cores.append(right[:, start:end] @ left[:, start:end].T)
        start = end
    return cores


def _pairs(
    store: Registry, first: Version | Lock, second: Version | Lock, notes: list[str]
) -> list[tuple[Version | Lock, Version | Lock]]:
    """What is held against what: the two, or their members where the two have no one delta."""
    if isinstance(first, Version) or isinstance(second, Version):
        return [(first, second)]
    reasons = [reason for lock in (first, second) if (reason := _no_one_delta(store, lock)) is not None]
    if not reasons:
        return [(first, second)]
    notes += [f"{reason}: its members are compared one by one" for reason in dict.fromkeys(reasons)]
    pairs: dict[tuple[str, str], tuple[Version | Lock, Version | Lock]] = {}
    for member in member_changes(first, second):
        if member.before is not None and member.after is not None and "pinned anew" in member.how:
            before, after = member.before.ref, member.after.ref
            pairs[before, after] = (store.resolve(before), store.resolve(after))
    return list(pairs.values())


def _no_one_delta(store: Registry, lock: Lock) -> str | None:
    """Why a lock is not one sum of exact deltas; None if it is."""
    from inlay.composer.plan import make_plan

    try:
        plan = make_plan(store, lock)
    except InputError as error:
        return f"{lock.ref} is no plain stack ({error.message})"
    except IntegrityError as error:
        return f"{lock.ref} cannot be read whole ({_lost(store, lock, error)})"
    return f"{lock.ref} is routed, so that its delta depends on the request" if plan.routed else None


def _norms(store: Registry, first: Version | Lock, second: Version | Lock, notes: list[str]) -> Norms | None:
    """The norms of one pair; None, with the reason in `notes`, where a side cannot be read as factors."""
    factors = []
    for thing in (first, second):
        try:
            factors.append(_factors(store, thing))
        except InputError as error:
            notes.append(f"no norms of {first.ref} and {second.ref}: {error.message}")
        except IntegrityError as error:
            notes.append(f"no norms of {first.ref} and {second.ref}: {_lost(store, thing, error)}")
    if len(factors) < 2:
        return None
    try:
        return Norms((first.ref, second.ref), module_changes(*factors))
    except InputError as error:
        notes.append(f"no norms of {first.ref} and {second.ref}: {error.message}")
        return None


def _lost(store: Registry, thing: Version | Lock, error: IntegrityError) -> str:
    """Which bytes of `thing` were let go on purpose; raises `error` where none were."""
    versions = [thing] if isinstance(thing, Version) else [store.resolve(m.ref) for m in thing.members]
    lost = [version.ref for version in versions if version.state in LET_GO]
    if not lost:
        raise error
    return f"the bytes of {', '.join(lost)} are gone"


def _factors(store: Registry, thing: Version | Lock) -> Factors:
    """Module -> (A, B) of a version, or of the sum that a lock without routes is."""
    import torch

    from inlay.composer.factors import read_adapter
    from inlay.composer.merging.loading import adapter_of
    from inlay.composer.plan import make_plan

    if isinstance(thing, Version):
        return read_adapter(thing, store=store).factors
    plan = make_plan(store, thing)
    parts: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for slot, weight in zip(plan.slots, plan.gate(), strict=True):
        for module, (a, b) in adapter_of(store, slot).factors.items():
            parts.setdefault(module, []).append((a.double(), b.double() * weight))
    return {
        module: (torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], dim=1))
        for module, pairs in parts.items()
    }
