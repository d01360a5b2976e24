"""How large adapters are beside the weights they change: no data, no forward pass. A diagnosis, never a gate.

    relative size    ‖ΔW‖ / ‖W‖                                       Frobenius norms
    effective rank   exp(−Σ p_k ln p_k),  p_k = σ_k / Σ σ             Roy & Vetterli, EUSIPCO 2007
    intruders        of the k largest left singular vectors of W + ΔW, those whose cosine with every one of
                     W's is under ε                                   Shuttleworth et al., arXiv:2410.21228

With B = Q_B R_B and Aᵀ = Q_A R_A (QR, float64), ΔW = B A has the singular values of R_B R_Aᵀ, (r, r): exact,
and the dense delta is never made. Intruders need it, and the singular vectors of W; they are counted only
where somebody asks. ‖W‖ is read from the base's files, or from the model where one is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from inlay.composer.overlaps import Overlap, overlaps
from inlay.composer.plan import Plan, make_plan
from inlay.composer.slots import MergedSlot
from inlay.errors import BaseMismatch, InlayError, InputError
from inlay.registry import Lock, Registry, Version
from inlay.registry.fingerprint import BaseFingerprint, shards_of
from inlay.registry.module_names import find_in_base

if TYPE_CHECKING:
    import torch

    from inlay.composer.model import ComposedModel

    Factors = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    """Module -> A (r, in), B (out, r); the delta is B @ A."""

NEAR_ZERO = 1e-6
"""A delta under this part of its weight's norm is lost in the rounding of a float32 sum."""
TOP, APART = 10, 0.5
"""Intruders: how many singular vectors are looked at, and the cosine under which one is an intruder."""
_ROWS = 1024  # of a weight looked at in one go: bounds the memory of its float32 copy
_FLOATS = ("F64", "F32", "F16", "BF16")

Trouble = Literal["not finite", "untrained", "zero", "constant", "near zero"]
"""What is wrong with a delta. `untrained`: B is zero and A is not, as PEFT starts a LoRA. `zero`: it adds
nothing, for another reason. `constant`: B has one value only. `near zero`: under `NEAR_ZERO` of W."""


@dataclass(frozen=True)
class ModuleWeight:
    """One module's delta. `norm`, `base_norm`: Frobenius norms of ΔW and W; `rank`: that of the factors.

    `norm` and `effective_rank` are None where the factors are not finite, `base_norm` where the base was not
    at hand or keeps the weight quantised.
    """

    module: str
    rank: int
    norm: float | None
    base_norm: float | None
    effective_rank: float | None
    trouble: Trouble | None = None

    @property
    def relative(self) -> float | None:
        """‖ΔW‖ / ‖W‖; None where one of them is not known, or W is zero."""
        return self.norm / self.base_norm if self.norm is not None and self.base_norm else None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "rank": self.rank,
            "norm": self.norm,
            "base_norm": self.base_norm,
            "relative": self.relative,
            "effective_rank": self.effective_rank,
            "trouble": self.trouble,
        }


@dataclass(frozen=True)
class Weighed:
    """One delta over all modules that it changes: a member, a merge, or the sum of a stack."""

    ref: str
    modules: tuple[ModuleWeight, ...]

    @property
    def norm(self) -> float | None:
        """‖ΔW‖ of all modules as one vector: the root of the sum of squares."""
        return _root(module.norm for module in self.modules)

    @property
    def relative(self) -> float | None:
        """That over ‖W‖ of the same modules; None where one is not known."""
        norm, base = self.norm, _root(module.base_norm for module in self.modules)
        return norm / base if norm is not None and base else None

    @property
    def effective_rank(self) -> float | None:
        """The mean over the modules."""
        values = [m.effective_rank for m in self.modules if m.effective_rank is not None]
        return math.fsum(values) / len(values) if len(values) == len(self.modules) else None

    @property
    def largest(self) -> ModuleWeight | None:
        """The module that is changed most, relative to its weight where that is known for all."""
        known = [m for m in self.modules if m.norm is not None]
        relative = all(m.relative is not None for m in known)
        return max(known, key=lambda m: (m.relative if relative else m.norm) or 0.0, default=None)

    @property
    def troubles(self) -> dict[Trouble, list[str]]:
        """What is wrong -> the modules where it is."""
        found: dict[Trouble, list[str]] = {}
        for module in self.modules:
            if module.trouble is not None:
                found.setdefault(module.trouble, []).append(module.module)
        return found

    def to_dict(self, *, modules: bool = True) -> dict[str, Any]:
        """As plain JSON; `modules=False` leaves the single modules out."""
        largest = self.largest
        figures: dict[str, Any] = {
            "ref": self.ref,
            "norm": self.norm,
            "relative": self.relative,
            "effective_rank": self.effective_rank,
            "rank": max((module.rank for module in self.modules), default=0),
            "largest": largest.module if largest else None,
            "troubles": {trouble: list(where) for trouble, where in self.troubles.items()},
        }
        if modules:
            figures["modules"] = {module.module: module.to_dict() for module in self.modules}
        return figures


@dataclass(frozen=True)
class WeightReport:
    """`members`: every version that is used, each as it was trained, and the merges made of them. `whole`:
    what is added to the base for any request; None where a route decides for each. Nothing here says that
    something was forgotten: weight norms predict that badly (`docs/forgetting.md`, "Weights").
    """

    ref: str
    members: tuple[Weighed, ...]
    whole: Weighed | None
    overlaps: tuple[Overlap, ...] = ()
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """What there is to say, a sentence each: the sizes, then `findings`."""
        sizes = [] if self.whole is None else [_size(self.whole)]
        sizes += [_size(member) for member in self.members if member != self.whole]
        return [*sizes, *self.findings()]

    def findings(self) -> list[str]:
        """What is wrong with a member, which members overlap strongly, and what could not be measured."""
        said = [line for member in self.members for line in _trouble_lines(member)]
        said += [f"{pair.warning()}." for pair in self.overlaps if pair.strong and pair.together]
        return [*said, *self.notes]

    def to_dict(self, *, modules: bool = True) -> dict[str, Any]:
        """As plain JSON, the sentences of `lines` among it; `modules=False` leaves the single modules out."""
        pairs = [pair.to_dict() for pair in self.overlaps]
        if not modules:
            pairs = [{key: value for key, value in pair.items() if key != "modules"} for pair in pairs]
        return {
            "ref": self.ref,
            "whole": self.whole.to_dict(modules=modules) if self.whole else None,
            "members": [member.to_dict(modules=modules) for member in self.members],
            "overlaps": pairs,
            "notes": list(self.notes),
            "lines": self.lines(),
        }


def weigh(
    what: ComposedModel | Plan | Lock | Version | str,
    *,
    store: Registry | None = None,
    base: str | Path | BaseFingerprint | None = None,
) -> WeightReport:
    """The deltas of a composed model, or of what a plan, lock, version or reference names, beside its base.

    ‖W‖ comes from the loaded model, else from the files of `base`, by default from where the registry last
    saw it; where they are not there, a note says so and no size is relative. Raises BaseMismatch for a base
    that was named and is another, and what `make_plan` and `read_adapter` raise.
    """
    from inlay.composer.model import ComposedModel

    notes: list[str] = []
    if isinstance(what, ComposedModel):
        plan, store = what.plan, what.store
    else:
        store = store or Registry.open()
        plan = what if isinstance(what, Plan) else make_plan(store, _target(store, what))
    if plan.alone is not None:
        note = f"{plan.alone.ref} has no factors that could be weighed: {plan.alone.alone}."
        return WeightReport(plan.ref, (), None, notes=(note,))
    slots, members = _factors(store, plan)
    modules = sorted({module for factors in members.values() for module in factors})
    if isinstance(what, ComposedModel):
        norms = model_norms(what.model, modules)
    else:
        norms = _norms_at(plan, base, modules, notes)
    lacking = [module for module in modules if module not in norms]
    if norms and lacking:
        notes.append(
            f"{len(lacking)} of {len(modules)} modules have no floating point weight to be held against: "
            f"{', '.join(lacking[:3])}{', …' if len(lacking) > 3 else ''}."
        )
    weighed = {ref: weigh_factors(ref, factors, norms) for ref, factors in members.items()}
    whole = None
    if not plan.routed:
        gate = plan.gate()
        if len(slots) == 1 and gate == [1.0]:
            whole = weighed[plan.slots[0].ref]
        else:
            whole = weigh_factors(plan.ref, _sum(slots, gate), norms)
    several = len({version.ref for slot in plan.slots for version in slot.versions}) > 1
    broken = any("not finite" in each.troubles for each in weighed.values())
    return WeightReport(
        ref=plan.ref,
        members=tuple(weighed.values()),
        whole=whole,
        overlaps=overlaps(store, plan) if several and not broken else (),
        notes=tuple(notes),
    )


def weigh_factors(ref: str, factors: Factors, norms: Mapping[str, float]) -> Weighed:
    """The deltas of `factors`, module by module; `norms`: module -> ‖W‖, as far as it is known."""
    return Weighed(ref, tuple(_module(m, *factors[m], norms.get(m)) for m in sorted(factors)))


def _module(module: str, a: torch.Tensor, b: torch.Tensor, base_norm: float | None) -> ModuleWeight:
    rank = int(a.shape[0])
    if not bool(a.isfinite().all()) or not bool(b.isfinite().all()):
        return ModuleWeight(module, rank, None, base_norm, None, "not finite")
    values = singular_values(a, b)
    norm, trouble = float(values.norm()), None
    if norm == 0.0:
        trouble = "untrained" if not bool(b.any()) and bool(a.any()) else "zero"
    elif b.numel() > 1 and bool((b == b.flatten()[0]).all()):
        trouble = "constant"
    elif base_norm and norm < NEAR_ZERO * base_norm:
        trouble = "near zero"
    return ModuleWeight(module, rank, norm, base_norm, effective_rank(values), trouble)  # type: ignore[arg-type]


def singular_values(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Those of B A, descending, at most r of them, float64; A (r, in), B (out, r)."""
    import torch

    right = torch.linalg.qr(a.double().T, mode="r").R
    left = torch.linalg.qr(b.double(), mode="r").R
    return torch.linalg.svdvals(left @ right.T)


def effective_rank(values: torch.Tensor) -> float:
    """exp of the entropy (nats) of the singular values over their sum: from 1 to their number, 0 of zeros."""
    total = float(values.sum())
    if total == 0.0:
        return 0.0
    shares = [share for value in values.tolist() if (share := value / total) > 0.0]
    return math.exp(-math.fsum(share * math.log(share) for share in shares))


def model_norms(model: torch.nn.Module, modules: Iterable[str]) -> dict[str, float]:
    """‖W‖ of the modules of a loaded model; one whose weight is quantised is left out."""
    found = {}
    for module in modules:
        weight: torch.Tensor = model.get_submodule(module).weight  # type: ignore[assignment]
        # The numbers of a float8 weight say nothing without their scales.
        if weight.is_floating_point() and weight.dtype.itemsize > 1:
            found[module] = _norm(weight.detach())
    return found


def file_norms(base: BaseFingerprint, modules: Iterable[str]) -> dict[str, float]:
    """‖W‖ of the modules out of a base's files; what is not there, or no plain float, is left out."""
    from safetensors import safe_open

    places: dict[str, list[str]] = {}
    for module in modules:
        found = find_in_base(f"{module}.weight", base)
        if found is not None and base.tensors[found[0]][0] in _FLOATS:
            places.setdefault(found[0], []).append(module)
    norms = {}
    for shard in shards_of(base.path, base.name):
        with safe_open(shard, framework="pt") as file:
            for name in places.keys() & set(file.keys()):
                norm = _norm(file.get_tensor(name))
                norms.update(dict.fromkeys(places[name], norm))
    return norms


def _norm(weight: torch.Tensor) -> float:
    """Frobenius to about 1e-6: each row in float32, which is many times faster, and the rows in float64."""
    import torch

    blocks = (torch.linalg.vector_norm(rows.float(), dim=-1) for rows in weight.split(_ROWS))
    return math.sqrt(math.fsum(float(norms.double().square().sum()) for norms in blocks))


def intruders(
    model: ComposedModel,
    modules: Sequence[str] | None = None,
    *,
    top: int = TOP,
    apart: float = APART,
) -> dict[str, int]:
    """Module -> how many intruder dimensions the composed model has there, of `top`.

    `modules`: some of those that it adapts, by default all. Takes the singular vectors of each weight, before
    and after: seconds a module on a large base. InputError for a route, and for a module it does not adapt.
    """
    if model.plan.routed:
        raise InputError(f"{model.target.ref} has a route, so that its weights depend on the request")
    if model.plan.alone is not None:
        raise InputError(f"{model.target.ref} has no factors: {model.plan.alone.alone}")
    slots, _ = _factors(model.store, model.plan)
    factors = _sum(slots, model.plan.gate())
    counts = {}
    for module in sorted(factors) if modules is None else modules:
        if module not in factors:
            raise InputError(
                f"intruders are counted where an adapter is, and {model.target.ref} leaves {module} alone"
            )
        layer = model.model.get_submodule(module)
        weight: torch.Tensor = layer.weight.detach()
        a, b = factors[module]
        # Embeddings and GPT-2's layers keep (in, out), which a square shape would not tell.
        counts[module] = intruder_count(weight if _out_in(layer) else weight.T, a, b, top=top, apart=apart)
    return counts


def intruder_count(
    weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, top: int = TOP, apart: float = APART
) -> int:
    """Of the `top` left singular vectors of W + B A, those with |cosine| < `apart` to every one of W's.

    weight (out, in), a (r, in), b (out, r); float64 inside. A W of fewer columns than rows leaves directions
    free that it never writes: a vector there is an intruder, too.
    """
    import torch

    wide = weight.double()
    delta = b.to(wide) @ a.to(wide)
    before = torch.linalg.svd(wide, full_matrices=False)[0]
    after = torch.linalg.svd(wide + delta, full_matrices=False)[0][:, :top]
    return int(((before.T @ after).abs().amax(dim=0) < apart).sum())


def _out_in(layer: torch.nn.Module) -> bool:
    from torch import nn

    return isinstance(getattr(layer, "inner", layer), nn.Linear)


def _target(store: Registry, what: Lock | Version | str) -> Lock | Version:
    return store.resolve(what) if isinstance(what, str) else what


def _factors(store: Registry, plan: Plan) -> tuple[list[Factors], dict[str, Factors]]:
    """The factors of each slot, and those of every version and merge by reference."""
    from inlay.composer.factors import read_adapter
    from inlay.composer.merging.loading import adapter_of

    members: dict[str, Factors] = {}
    for slot in plan.slots:
        for version in slot.versions:
            if version.ref not in members:
                members[version.ref] = read_adapter(version, store=store).factors
        if isinstance(slot, MergedSlot):
            members[slot.ref] = adapter_of(store, slot).factors
    return [members[slot.ref] for slot in plan.slots], members


def _sum(slots: Sequence[Factors], gate: Sequence[float]) -> Factors:
    """What a gate adds up to, as factors; all scaling in B."""
    import torch

    parts: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for factors, weight in zip(slots, gate, strict=True):
        for module, (a, b) in factors.items():
            parts.setdefault(module, []).append((a.double(), b.double() * weight))
    return {
        module: (torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], dim=1))
        for module, pairs in parts.items()
    }


def _norms_at(
    plan: Plan, base: str | Path | BaseFingerprint | None, modules: Sequence[str], notes: list[str]
) -> dict[str, float]:
    """‖W‖ from the base's files; nothing, with a note, where nobody named it and it is not where it was."""
    from inlay.composer.bases import whereabouts

    try:
        fingerprint = BaseFingerprint.of(whereabouts(plan.base) if base is None else base)
    except InlayError as error:
        if base is not None:
            raise
        notes.append(f"The base is not at hand, so no size is relative to it: {error.message}.")
        return {}
    if fingerprint.weights != plan.base.weights:
        message = (
            f"{plan.ref} was made for the base {plan.base.name} ({plan.base.weights[:19]}…), "
            f"and {fingerprint.name} has the weights {fingerprint.weights[:19]}…"
        )
        if base is not None:
            raise BaseMismatch(message, fix="name the right base with --base")
        notes.append(f"The base is not where it was, so no size is relative to it: {message}.")
        return {}
    return file_norms(fingerprint, modules)


def _root(values: Iterable[float | None]) -> float | None:
    known = list(values)
    if any(value is None for value in known):
        return None
    return math.sqrt(math.fsum(value * value for value in known if value is not None))


def _size(weighed: Weighed) -> str:
    """One sentence about a delta that can be measured."""
    norm, relative, largest = weighed.norm, weighed.relative, weighed.largest
    count = f"{len(weighed.modules)} module{'' if len(weighed.modules) == 1 else 's'}"
    if norm is None:
        return f"{weighed.ref} has values that are not finite in its {count}."
    if norm == 0.0:
        return f"{weighed.ref} adds nothing to its {count}."
    if relative is None:
        said = f"{weighed.ref} has ‖ΔW‖ {norm:.3g} over {count}"
    else:
        said = f"{weighed.ref} changes {count} by {percent_of(relative)} of their norm"
    if largest is not None and len(weighed.modules) > 1:
        how = f"{largest.norm:.3g}" if largest.relative is None else percent_of(largest.relative)
        said += f", most in {largest.module} ({how})"
    rank = max(module.rank for module in weighed.modules)
    return f"{said}; effective rank {weighed.effective_rank:.1f} of {rank}."


def percent_of(relative: float) -> str:
    """A relative norm for a reader, two digits: 0.0132 -> "1.3%"; 3e-9 -> "3e-07%"."""
    return f"{100.0 * relative:.2g}%" if relative < 0.995 else f"{100.0 * relative:.0f}%"


_TROUBLES: dict[Trouble, str] = {
    "not finite": "has values that are not finite",
    "untrained": "was never trained: B is zero, as PEFT starts it,",
    "zero": "adds nothing: its delta is zero",
    "constant": "is constant: B has one value only",
    "near zero": f"adds next to nothing: its delta is under {NEAR_ZERO:g} of the weight",
}


def _trouble_lines(weighed: Weighed) -> list[str]:
    lines = []
    for trouble, where in weighed.troubles.items():
        every = len(where) == len(weighed.modules)
        named = "every module" if every else f"{len(where)} of {len(weighed.modules)} modules ({where[0]}, …)"
        if not every and len(where) == 1:
            named = where[0]
        lines.append(f"{weighed.ref} {_TROUBLES[trouble]} in {named}.")
    return lines
