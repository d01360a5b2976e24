"""Adapters whose start moved a part of the base into them become plain ones, given that start.

PiSSA (arXiv:2404.02948), OLoRA (arXiv:2406.01775), CorDA (arXiv:2406.05223) and LoRA-GA (arXiv:2407.05000)
begin with factors A₀, B₀ made from the base or its gradients, and take their product out of the base:

    W + delta = (W − s B₀ A₀) + s B A,  so  delta = s [B, −B₀] @ [A; A₀]

exactly, at twice the rank; what W − s B₀ A₀ lost when it was rounded to the base's own type stays lost.
Without A₀ and B₀ the delta is not known: the adapter as it was saved before training has to be there.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.composer.factors.reading import CONFIG, WEIGHTS, config_of, refusal, shapes_of, sizes_of
from inlay.errors import InputError
from inlay.registry.canonical import digest_of
from inlay.registry.kinds import CONVERSION, KINDS, classify
from inlay.registry.peft_config import PeftConfig

if TYPE_CHECKING:
    import torch

    from inlay.registry import Registry, Version

# What says how a start was made; it is of no use to a plain adapter.
_STARTS = ("corda_config", "eva_config", "lora_ga_config", "loftq_config")
PAPERS = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")
# What the scaling and the ranks hang on: both adapters must say the same.
_ALIKE = ("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
# Starts whose base is quantised as well: W is then not (base + s B₀ A₀).
_QUANTISING = ("loftq",)


@dataclass(frozen=True)
class Converted:
    """What was written. `lineage`: the digests of both inputs' weights and how they were put together."""

    folder: Path
    lineage: Mapping[str, str]


def convert(folder: str | Path, initial: str | Path, out: str | Path) -> Converted:
    """Write the adapter in `folder`, started as the one in `initial`, as a plain LoRA into the folder `out`.

    The tensors keep their values; rank and alpha double (with rsLoRA alpha grows by √2), so that the scaling
    stays. The README and the licence come along; the same input gives the same bytes. Raises InputError where
    `folder` needs no conversion or cannot be converted, `initial` is not its start (other modules, ranks or
    scaling, or the same weights), a file is a link, or `out` holds something.
    """
    from safetensors.torch import save_file

    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(
            f"a conversion needs a folder of its own, and {str(target)!r} holds something already",
            fix="name a new one",
        )
    trained_config, trained_bytes = _read(Path(folder))
    initial_config, initial_bytes = _read(Path(initial))
    start = _start(trained_config, str(folder))
    _refuse_other(trained_config, initial_config, str(initial))
    plain = {**trained_config, "init_lora_weights": True}
    shapes, initial_shapes = shapes_of(trained_bytes, str(folder)), shapes_of(initial_bytes, str(initial))
    sizes_of(plain, shapes, str(folder))
    if shapes != initial_shapes:
        differing = sorted(
            key for key in {*shapes, *initial_shapes} if shapes.get(key) != initial_shapes.get(key)
        )
        raise InputError(
            f"the initial adapter must have the tensors of the trained one, and differs in {differing[0]}",
            fix="give the adapter as it was saved before its training",
        )
    tensors = _joined(_load(trained_bytes, folder), _load(initial_bytes, initial))
    papers = [Path(folder) / paper for paper in PAPERS if regular(Path(folder) / paper)]
    target.mkdir(parents=True, exist_ok=True)
    config = json.dumps(_doubled(plain), indent=2, sort_keys=True) + "\n"
    (target / CONFIG).write_text(config, encoding="utf-8")
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    for paper in papers:
        shutil.copyfile(paper, target / paper.name)
    lineage = {
        "converted_from": digest_of(trained_bytes),
        "initial": digest_of(initial_bytes),
        "how": f"{start}: A = [A; A0], B = [B, -B0]",
    }
    return Converted(target, lineage)


def add_converted(
    store: Registry, name: str, folder: str | Path, initial: str | Path, **given: Any
) -> Version:
    """Convert, and register what came of it with its lineage; `given` is what `Registry.add` takes.

    Raises InputError as `convert` and `Registry.add` do.
    """
    with tempfile.TemporaryDirectory(prefix="inlay-convert-") as scratch:
        converted = convert(folder, initial, Path(scratch) / "adapter")
        lineage = {**(given.pop("lineage", None) or {}), **converted.lineage}
        return store.add(name, converted.folder, lineage=lineage, **given)


def _read(folder: Path) -> tuple[dict[str, Any], bytes]:
    for file in (CONFIG, WEIGHTS):
        if not regular(folder / file):
            raise InputError(f"an adapter needs {file}, and {str(folder)!r} has none", fix="check the path")
    name, weights = str(folder), (folder / WEIGHTS).read_bytes()
    config = config_of((folder / CONFIG).read_bytes(), name)
    return config, weights


def regular(path: Path) -> bool:
    """Whether there is such a file; InputError where it is a link, which could lead anywhere."""
    if path.is_symlink():
        raise InputError(
            f"{path.name} is a link, only regular files are taken", fix="copy the file itself there"
        )
    return path.is_file()


def _start(config: Mapping[str, Any], name: str) -> str:
    """The initialisation that has to be undone; InputError where there is none, or it cannot be."""
    said = classify(config)
    reason = refusal({**config, "init_lora_weights": True})
    if reason is not None:
        raise InputError(f"{name} cannot be converted: {reason}", fix="use it alone, through PEFT")
    if said.exactness != CONVERSION:
        raise InputError(
            f"only an adapter whose start changed the base is converted, and {name} is {said.kind} "
            f"({said.exactness})",
            fix="register it without --initial",
        )
    if said.kind in _QUANTISING:
        raise InputError(
            f"{name} cannot be converted: {said.kind} quantises the base, and what it lost is in no adapter",
            fix="use it alone, through PEFT, on the quantised base",
        )
    return str(config["init_lora_weights"]).lower()


def _refuse_other(trained: Mapping[str, Any], initial: Mapping[str, Any], name: str) -> None:
    for field in _ALIKE:
        if (trained.get(field) or None) != (initial.get(field) or None):
            raise InputError(
                f"the initial adapter must have the {field} of the trained one ({trained.get(field)}), "
                f"and {name} has {initial.get(field)}",
                fix="give the adapter as it was saved before its training",
            )


def _load(weights: bytes, name: str | Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(weights)
    except SafetensorError as error:
        raise InputError(f"{str(name)!r} is no readable adapter: {error}") from None


def _joined(
    trained: Mapping[str, torch.Tensor], initial: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """[A; A₀] and [B, −B₀] of every module."""
    import torch

    if all(torch.equal(tensor, initial[key]) for key, tensor in trained.items()):
        raise InputError(
            "the initial adapter must be the one before training, and holds the weights of the trained one",
            fix="give the adapter as it was saved before its training",
        )
    joined = {}
    for key, tensor in trained.items():
        start = initial[key]  # cat keeps the wider of two types
        if key.rpartition(".lora_")[2].removeprefix("embedding_").startswith("A"):
            joined[key] = torch.cat([tensor, start])
        else:
            joined[key] = torch.cat([tensor, -start], dim=1)
    return joined


def _doubled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Twice the rank at the same scaling: alpha / r, or alpha / √r with rsLoRA."""
    grown = math.sqrt(2) if config.get("use_rslora") else 2
    read = PeftConfig(config, KINDS["LORA"].defaults)
    targets = config.get("target_modules")
    return {
        **{key: value for key, value in config.items() if key not in _STARTS},
        # PEFT saves a set: sorted, the same adapter gives the same bytes.
        "target_modules": sorted(targets) if isinstance(targets, list) else targets,
        "r": 2 * read.count("r"),
        "lora_alpha": grown * read.get("lora_alpha"),
        "rank_pattern": {key: 2 * rank for key, rank in (config.get("rank_pattern") or {}).items()},
        "alpha_pattern": {key: grown * alpha for key, alpha in (config.get("alpha_pattern") or {}).items()},
    }
