"""A stack or a merge leaves as one plain PEFT adapter, which whatever reads a LoRA reads alike.

    A = [A₁; …; A_k], B = [g₁B₁, …, g_kB_k] per module, so that B @ A is the sum of the weighted deltas

All scaling is in B, every module has the same rank (padded with zeros), and the configuration says nothing
that a reader could take in two ways: lora_alpha == r, no rsLoRA, no patterns, no bias, modules by name.
A route chooses for each request and has no such form. For an engine, what it would say is said here first
(lint.py); in full, the base leaves with the deltas in its weights (folding.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.composer.factors import Adapter
from inlay.composer.factors.lora import EMBEDDING, LINEAR
from inlay.composer.lint import Finding, Shape, known, lint
from inlay.composer.merging.loading import adapter_of
from inlay.composer.plan import Plan, make_plan
from inlay.composer.stacking import stacked
from inlay.errors import InputError, StoreBusy
from inlay.registry import BaseRef, Lock, Registry, Version

if TYPE_CHECKING:
    import torch

    from inlay.composer.model import ComposedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

Factors = dict[str, tuple["torch.Tensor", "torch.Tensor"]]


@dataclass(frozen=True)
class Exported:
    """What was written. `rank` is that of every module; `nbytes` the size of the weights' files; `members`
    the exported versions and merges, with the weight of each. `findings`: what the engine would say.
    `full`: a folded checkpoint, whose `modules` are those with another weight than the base's."""

    folder: Path
    ref: str
    rank: int
    modules: int
    parameters: int
    nbytes: int
    members: tuple[tuple[str, float], ...]
    findings: tuple[Finding, ...] = ()
    full: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As `inlay export --json` prints it."""
        return {**asdict(self), "folder": str(self.folder)}


@dataclass(frozen=True)
class _Sum:
    """The sum to be written: summed factors, the base they are for, and what PEFT has to know of it."""

    ref: str
    factors: Factors
    members: tuple[tuple[str, float], ...]
    base: BaseRef | None = None
    task: str | None = "CAUSAL_LM"
    fan_in_fan_out: bool = False
    base_tensors: Mapping[str, Any] | None = None
    embeddings: frozenset[str] = frozenset()


def export(
    what: str | Lock | Version | Plan | Adapter | ComposedModel,
    folder: str | Path,
    *,
    store: Registry | str | Path | None = None,
    engine: str | None = None,
    full: bool = False,
    base: str | Path | None = None,
    accept_prompt_change: bool = False,
) -> Exported:
    """Write `what` into `folder` as one PEFT LoRA in float32: adapter_config.json, adapter_model.safetensors.

    The folder must not exist, or be empty; it appears whole or not at all. The same input gives the same
    bytes. `engine` ("peft", "vllm", "sglang", "lorax"): refuse what it could not load, and say in `findings`
    what it needs. `full`: write the base with the deltas in its weights instead, in its own dtype; `base`
    says where it lies, by default where the registry last saw it.

    Raises InputError for a route, a member without exact factors, a folder that holds something, an engine's
    refusal or a module that cannot be folded, BaseMismatch, ReferenceNotFound, IntegrityError, StoreBusy
    where the folder cannot be written.
    """
    target = Path(folder).expanduser()
    _refuse_taken(target)
    if full and engine is not None:
        raise InputError(
            f"a folded checkpoint is a model and no adapter, so that nothing is checked for {engine!r}",
            fix="leave one of the two out",
        )
    if engine is not None:
        known(engine)
    summed = _summed(what, store)
    if full:
        return _folded(summed, target, base, accept_prompt_change)
    return _exported(summed, target, engine)


def export_made(
    adapter: Adapter, members: Sequence[Version], folder: str | Path, *, store: Registry
) -> Exported:
    """`export` of an adapter that was made out of `members`, all of one base, which the config names."""
    target = Path(folder).expanduser()
    _refuse_taken(target)
    base = members[0].base
    return _exported(_sum_of(store, adapter, members, base, ((adapter.name, 1.0),)), target)


def _exported(summed: _Sum, target: Path, engine: str | None = None) -> Exported:
    rank = _rank(summed)
    findings = () if engine is None else _checked(engine, summed, rank)
    tensors = _padded(summed, rank)
    config = json.dumps(_config(summed, rank), indent=2, sort_keys=True) + "\n"
    nbytes = _write(target, config, tensors)
    return Exported(
        folder=target,
        ref=summed.ref,
        rank=rank,
        modules=len(summed.factors),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        nbytes=nbytes,
        members=summed.members,
        findings=findings,
    )


def _rank(summed: _Sum) -> int:
    if not summed.factors:
        raise InputError(
            f"{summed.ref} adds nothing to its base, so there is nothing to export",
            fix="export what has an adapter of a weight other than 0",
        )
    return max(int(a.shape[0]) for a, _ in summed.factors.values())


def _checked(engine: str, summed: _Sum, rank: int) -> tuple[Finding, ...]:
    """What the engine would say, where it refuses nothing."""
    base = None if summed.base is None else summed.base.name
    shape = Shape(tuple(summed.factors), summed.embeddings, rank, base, summed.base_tensors)
    findings = lint(engine, shape)
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        raise InputError("; ".join(error.message for error in errors), fix=errors[0].fix)
    return findings


def _folded(summed: _Sum, target: Path, base: str | Path | None, accept_prompt_change: bool) -> Exported:
    from inlay.composer.bases import check_fingerprint, whereabouts
    from inlay.composer.folding import write_folded
    from inlay.registry.fingerprint import BaseFingerprint

    rank = _rank(summed)
    if summed.base is None:
        if base is None:
            raise InputError(f"nobody told which base {summed.ref} is for", fix="name it with `base=`")
        found = BaseFingerprint.of(base)
    else:
        found = BaseFingerprint.of(base if base is not None else whereabouts(summed.base))
        check_fingerprint(summed.base, found, summed.ref, accept_prompt_change=accept_prompt_change)
    if target.resolve().is_relative_to(found.path):
        raise InputError(
            f"a folded checkpoint needs a folder outside of its base's, and {str(target)!r} lies in it",
            fix="name another one",
        )
    with _whole(target) as temporary:
        parameters, nbytes = write_folded(temporary, summed.factors, found, summed.ref)
    return Exported(
        folder=target,
        ref=summed.ref,
        rank=rank,
        modules=len(summed.factors),
        parameters=parameters,
        nbytes=nbytes,
        members=summed.members,
        full=True,
    )


def _summed(what: Any, store: Registry | str | Path | None) -> _Sum:
    if isinstance(what, Adapter):
        return _Sum(what.name, dict(what.factors), ((what.name, 1.0),), embeddings=what.embeddings)
    if not isinstance(what, str | Lock | Version | Plan):
        what, store = what.plan, what.store  # a composed model knows both
    registry = store if isinstance(store, Registry) else Registry.open(store)
    plan = what
    if not isinstance(plan, Plan):
        plan = make_plan(registry, registry.resolve(plan) if isinstance(plan, str) else plan)
    if plan.routed:
        places = ", ".join(route.path or "the root" for route in plan.routes)
        raise InputError(
            f"{plan.ref} routes at {places}: it chooses an adapter for each request, and one adapter cannot",
            fix="serve it with Inlay, or export its experts one by one",
        )
    used = [(slot, gate) for slot, gate in zip(plan.slots, plan.gate(), strict=True) if gate]
    versions = [version for slot, _ in used for version in slot.versions]
    adapter = stacked([(adapter_of(registry, slot), gate) for slot, gate in used], plan.ref)
    return _sum_of(registry, adapter, versions, plan.base, tuple((slot.ref, gate) for slot, gate in used))


def _sum_of(
    store: Registry,
    adapter: Adapter,
    versions: Sequence[Version],
    base: BaseRef,
    members: tuple[tuple[str, float], ...],
) -> _Sum:
    configs = [json.loads(store.read_file(version, CONFIG)) for version in versions]
    tasks = {config.get("task_type") for config in configs}
    return _Sum(
        ref=adapter.name,
        factors=adapter.factors,
        members=members,
        base=base,
        task=tasks.pop() if len(tasks) == 1 else "CAUSAL_LM",
        fan_in_fan_out=any(config.get("fan_in_fan_out") for config in configs),
        base_tensors=store.base_tensors(base.weights),
        embeddings=adapter.embeddings,
    )


def _padded(summed: _Sum, rank: int) -> dict[str, torch.Tensor]:
    """PEFT's keys -> tensors, every module at `rank`: further rows of A and columns of B are zero."""
    from torch.nn.functional import pad

    tensors = {}
    for module, (a, b) in summed.factors.items():
        missing = rank - int(a.shape[0])
        down, up = EMBEDDING if module in summed.embeddings else LINEAR
        prefix = f"base_model.model.{module}"
        tensors[f"{prefix}.{down}"] = pad(a.float(), (0, 0, 0, missing)).contiguous()
        tensors[f"{prefix}.{up}"] = pad(b.float(), (0, missing)).contiguous()
    return tensors


def _config(summed: _Sum, rank: int) -> dict[str, Any]:
    return {
        "alpha_pattern": {},
        "base_model_name_or_path": None if summed.base is None else summed.base.name,
        "bias": "none",
        "fan_in_fan_out": summed.fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "target_modules": _target_modules(sorted(summed.factors), summed.base_tensors),
        "task_type": summed.task,
        "use_dora": False,
        "use_rslora": False,
    }


def _target_modules(modules: list[str], base: Mapping[str, Any] | None) -> list[str]:
    """The modules' last names where those mean exactly these modules of the base, else their whole names.

    Engines know last names ("q_proj"); PEFT would adapt every module that has one of them.
    """
    leaves = sorted({module.rpartition(".")[2] for module in modules})
    meant = [
        name
        for name in base or ()
        if name.removesuffix(".weight").rpartition(".")[2] in leaves and name.endswith(".weight")
    ]
    return leaves if len(meant) == len(modules) else modules


def _refuse_taken(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        raise InputError(
            f"an export needs a folder of its own, and {str(folder)!r} holds something already",
            fix="name a new one",
        )


def _write(folder: Path, config: str, tensors: dict[str, torch.Tensor]) -> int:
    """Both files in one step; the size of the weights."""
    from safetensors.torch import save_file

    with _whole(folder) as temporary:
        (temporary / CONFIG).write_text(config, encoding="utf-8")
        # One key of metadata only: with more, their order in the file would differ from run to run.
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        return (temporary / WEIGHTS).stat().st_size


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `folder` at the end, or leaves no trace."""
    from safetensors import SafetensorError

    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        yield temporary
        temporary.chmod(0o755)
        os.replace(temporary, folder)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StoreBusy(
            f"cannot write {str(folder)!r}: {reason}", fix="check the disk and its permissions"
        ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
