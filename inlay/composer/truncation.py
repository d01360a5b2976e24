"""An adapter that is no product of small factors becomes one, of what a rank can keep of it.

    D = W' - W,  D = U S Vᵀ,  A = √S_r V_rᵀ,  B = U_r √S_r,  residual = ‖D - B A‖ / ‖D‖ (Frobenius)

W' is what PEFT's own merge makes of a module's weight W, in float32. The cut is the best of its rank
(Eckart and Young 1936); what it leaves out is measured for every module and kept with the version. Whether
the merged weights answer as the adapter does is looked at first: what PEFT cannot merge is not cut either.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.composer.alone import put_on, refusal_alone, twin_of
from inlay.composer.conversion import PAPERS, regular
from inlay.composer.factors import Adapter, read_adapter
from inlay.composer.factors.reading import CONFIG, WEIGHTS, config_of
from inlay.errors import InputError
from inlay.registry.canonical import digest_of
from inlay.registry.kinds import KINDS
from inlay.registry.printable import printable

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from inlay.registry import Registry, Version
    from inlay.registry.fingerprint import BaseFingerprint

AGREE = 1e-4
"""How far PEFT's merged model may be from its unmerged one, relative to the largest logit."""


@dataclass(frozen=True)
class Truncated:
    """What was written. `residual`: for each module the relative Frobenius error of the cut; `overall` that
    of all deltas together. `lineage`: the digests of the original's files and how it was cut.
    """

    folder: Path
    rank: int
    residual: Mapping[str, float]
    overall: float
    lineage: Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """A parameter that differs. `module`: whose weight it is, None where no matrix holds it (a bias, a norm);
    `delta`: its change, float32, (out, in) of a matrix and on an embedding transposed, as factors have it;
    `before`: what it was, as the base has it.
    """

    key: str
    module: str | None
    delta: torch.Tensor
    before: torch.Tensor
    looked_up: bool = False


def truncate(
    folder: str | Path,
    out: str | Path,
    *,
    base: BaseFingerprint | str | Path,
    rank: int | None = None,
    energy: float | None = None,
) -> Truncated:
    """Write what `rank` keeps of the adapter in `folder` as a plain LoRA into the folder `out`.

    `rank`: at most so many directions of each module; `energy`: as many as hold this share of its squared
    norm. One of the two. The base is loaded in float32, its adapted modules twice. Raises InputError where
    `folder` has exact factors already, is of a kind without a delta of weights (prompts, prefixes), or
    changes what no matrix holds (biases, norms).
    """
    from inlay.composer.export import export
    from inlay.registry import ingest
    from inlay.registry.fingerprint import BaseFingerprint

    _check(rank, energy)
    fingerprint = base if isinstance(base, BaseFingerprint) else BaseFingerprint.of(base)
    source = Path(folder)
    kind = ingest.check(source, fingerprint).kind
    files = {name: (source / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    name = source.name
    _refuse(config_of(files[CONFIG], name), source, fingerprint)
    model = _load(fingerprint)
    found, residual, lost, whole = {}, {}, 0.0, 0.0
    embeddings = set()
    for module, delta, looked_up in _deltas(model, files, name):
        a, b, error = cut(delta, rank, energy)
        if not len(a):
            continue
        found[module], residual[module] = (a, b), error
        squared = float(delta.double().square().sum())
        lost, whole = lost + error**2 * squared, whole + squared
        if looked_up:
            embeddings.add(module)
    if not found:
        raise InputError(f"{name} leaves every weight of the base as it is", fix="train it first")
    made = export(Adapter(name, found, embeddings=frozenset(embeddings)), out)
    for paper in PAPERS:
        if regular(source / paper):
            shutil.copyfile(source / paper, made.folder / paper)
    overall = (lost / whole) ** 0.5
    worst = max(residual, key=lambda module: residual[module])
    lineage = {
        "truncated_from": digest_of(files[WEIGHTS]),
        "config": digest_of(files[CONFIG]),
        "kind": kind,
        "rank": rank,
        "energy": energy,
        "residual": overall,
        "residual_worst": residual[worst],
        "residual_worst_module": worst,
    }
    return Truncated(made.folder, made.rank, residual, overall, lineage)


def add_truncated(
    store: Registry,
    name: str,
    folder: str | Path,
    *,
    base: BaseFingerprint | str | Path,
    rank: int | None = None,
    energy: float | None = None,
    **given: Any,
) -> Version:
    """Truncate, and register what is left with its lineage and, in its record, the residual of each module.

    `given` is what else `Registry.add` takes. Raises InputError as `truncate` and `Registry.add` do.
    """
    with tempfile.TemporaryDirectory(prefix="inlay-truncate-") as scratch:
        made = truncate(folder, Path(scratch) / "adapter", base=base, rank=rank, energy=energy)
        lineage = {**(given.pop("lineage", None) or {}), **made.lineage}
        run = {**(given.pop("run", None) or {}), "truncation": dict(made.residual)}
        return store.add(name, made.folder, base=base, lineage=lineage, run=run, **given)


def said_of(lineage: Mapping[str, Any] | None) -> str | None:
    """What the lineage of a version that was cut says of it, in words; None for any other."""
    lineage = lineage or {}
    overall, worst = (lineage.get(key) for key in ("residual", "residual_worst"))
    if "truncated_from" not in lineage or not isinstance(overall, float) or not isinstance(worst, float):
        return None
    kind, module = (printable(str(lineage.get(key)))[:80] for key in ("kind", "residual_worst_module"))
    return (
        f"cut from an adapter of kind {kind}: {100 * overall:.2g}% of its delta's norm is not in it, "
        f"up to {100 * worst:.2g}% in {module}"
    )


def _check(rank: int | None, energy: float | None) -> None:
    if (rank is None) == (energy is None):
        raise InputError("a cut needs a rank or an energy, and one of them only")
    if rank is not None and rank < 1:
        raise InputError(f"the rank of a cut must be at least 1, got {rank}")
    if energy is not None and not 0 < energy <= 1:
        raise InputError(f"the energy of a cut must be above 0 and at most 1, got {energy}")


def _refuse(config: Mapping[str, Any], folder: Path, base: BaseFingerprint) -> None:
    reason = refusal_alone(config)
    if reason is None and KINDS[config["peft_type"]].on != "weight":
        reason = f"its kind is {config['peft_type']}, which changes no weights"
    if reason is not None:
        raise InputError(f"{folder.name} cannot be truncated: {reason}", fix="use it alone, through PEFT")
    try:
        read_adapter(folder, base=base.path)
    except InputError:
        return
    raise InputError(
        f"{folder.name} has exact factors, nothing of it need be cut", fix="register it without --truncate"
    )


def _load(base: BaseFingerprint) -> PreTrainedModel:
    """The base in float32 on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    from inlay.evals.inference import quiet_transformers

    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            str(base.path), dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
    return model.requires_grad_(False).eval()


def _deltas(
    model: PreTrainedModel, files: Mapping[str, bytes], name: str
) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """(module, delta (out, in) float32, whether it is an embedding) of every module with another weight.

    On an embedding the delta is the transposed one, as factors have it.
    """
    for change in changes(model, _merged(model, files, name)):
        if change.module is None:
            raise InputError(
                f"{name} cannot be truncated: it changes {change.key}, which is no weight of a linear layer "
                "or an embedding of the base",
                fix="use it alone, through PEFT",
            )
        yield change.module, change.delta, change.looked_up


def changes(before: torch.nn.Module, after: torch.nn.Module) -> Iterator[Change]:
    """Every parameter of `after` that is not what it is in `before`, tied ones under each of their names."""
    import torch
    from torch import nn

    from inlay.composer.bank import in_out

    modules = dict(before.named_modules())
    held = dict(before.named_parameters(remove_duplicate=False))
    for key, weight in after.named_parameters(remove_duplicate=False):
        new = weight.detach().float().cpu()
        old = held[key].detach().float().cpu() if key in held else torch.zeros_like(new)
        if key in held and torch.equal(old, new):
            continue
        name = key.removesuffix(".weight")
        layer = modules.get(name)
        if key not in held or name == key or layer is None or in_out(layer) is None:
            yield Change(key, None, new - old, old)
            continue
        delta = new - old if isinstance(layer, nn.Linear) else (new - old).T
        yield Change(key, name, delta, old, isinstance(layer, nn.Embedding))


def _merged(model: PreTrainedModel, files: Mapping[str, bytes], name: str) -> torch.nn.Module:
    """PEFT's own merge, on a twin; InputError where it does not answer as the adapter does."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch import nn

    adapted = put_on(twin_of(model), files, name)
    ids = torch.arange(2, 18).remainder(model.config.vocab_size).view(2, 8)
    with torch.inference_mode(False), torch.no_grad():
        expected = adapted(input_ids=ids).logits
        for layer in adapted.modules():
            if isinstance(layer, BaseTunerLayer):
                # A merge writes into the weight, which another module or the twin's base may share.
                for owner in layer.get_base_layer().modules():
                    for leaf, parameter in owner.named_parameters(recurse=False):
                        setattr(owner, leaf, nn.Parameter(parameter.data.clone(), requires_grad=False))
        try:
            merged = adapted.merge_and_unload()
        except (ValueError, TypeError, RuntimeError, NotImplementedError, AttributeError) as error:
            raise InputError(
                f"{name} cannot be truncated: PEFT cannot merge it ({str(error)[:120]})",
                fix="use it alone, through PEFT",
            ) from error
        found = merged(input_ids=ids).logits
    off = float((found - expected).abs().max() / expected.abs().max())
    if not off <= AGREE:
        raise InputError(
            f"{name} cannot be truncated: merged it must answer as unmerged, and is {off:.2g} off",
            fix="use it alone, through PEFT",
        )
    return merged


def cut(
    delta: torch.Tensor, rank: int | None, energy: float | None
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """A (r, in) and B (out, r), float32, of what `rank` or `energy` keep of a delta (out, in), and the
    relative Frobenius error."""
    from inlay.composer.merging.core import lift, unit

    return lift(delta.double(), unit, unit, rank=rank, energy=energy)
