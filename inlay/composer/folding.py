"""A base with a sum of deltas in its weights, as a checkpoint that needs no adapter.

    W' = W + B A        per adapted module, summed in float32, kept in the dtype of W

Every shard of the base is read, rewritten and saved beside it in turn, so that memory holds one at a time;
what is not adapted keeps its bytes. The base's own folder is only read.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError
from inlay.registry.fingerprint import BaseFingerprint, shards_of
from inlay.registry.module_names import spellings_of

if TYPE_CHECKING:
    import torch

COPIED = ("*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "NOTICE*")
NOT_COPIED = frozenset({"inlay.json"})
"""What says which model it is, and would now be wrong."""


def write_folded(
    folder: Path,
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    base: BaseFingerprint,
    ref: str,
) -> tuple[int, int]:
    """Write the base with the deltas of `factors` into the empty `folder`: shards, configuration, tokenizer.

    factors: module -> (A (r, in), B (out, r)). Returns (parameters, bytes) of the shards. InputError, before
    anything is written, for a module the base lacks or keeps under another name, one whose weight another
    module shares, and a weight that is no floating point number.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    places = _places(factors, base, ref)
    parameters = nbytes = 0
    for shard in shards_of(base.path, base.name):
        tensors = {}
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safe_open is no mapping
                weight = file.get_tensor(name)
                if name in places:
                    module, transposed = places[name]
                    a, b = factors[module]
                    delta = b.float() @ a.float()
                    wide = torch.promote_types(weight.dtype, torch.float32)
                    folded = weight.to(wide) + (delta.T if transposed else delta).to(wide)
                    weight = folded.to(weight.dtype)
                    if not bool(weight.isfinite().all()):
                        raise InputError(f"{ref}: the folded weight of {module} must be finite, and is not")
                tensors[name] = weight.contiguous()
                parameters += weight.numel()
        save_file(tensors, folder / shard.name, metadata={"format": "pt"})
        nbytes += (folder / shard.name).stat().st_size
    for pattern in COPIED:
        for file_ in sorted(base.path.glob(pattern)):
            if file_.is_file() and file_.name not in NOT_COPIED:
                shutil.copyfile(file_, folder / file_.name)
    return parameters, nbytes


def _places(factors: Mapping[str, Any], base: BaseFingerprint, ref: str) -> dict[str, tuple[str, bool]]:
    """The checkpoint's tensor of each module, and whether it is kept as (in, out)."""
    import torch
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM

    from inlay.composer.bank import in_out
    from inlay.evals.inference import quiet_transformers

    with quiet_transformers(), torch.device("meta"):
        config = AutoConfig.from_pretrained(str(base.path), trust_remote_code=False)
        if getattr(config, "quantization_config", None):
            raise InputError(
                f"only floating point weights can be folded, and {base.name} is quantised",
                fix="export one adapter, or fold into the base that it was made from",
            )
        model = AutoModelForCausalLM.from_config(config)
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.removesuffix(".weight"))
    places: dict[str, tuple[str, bool]] = {}
    for module, (a, b) in factors.items():
        try:
            layer = model.get_submodule(module)
        except AttributeError:
            raise InputError(f"{ref} adapts {module}, which the base {base.name} does not have") from None
        if in_out(layer) != (int(a.shape[1]), int(b.shape[0])):
            raise InputError(
                f"{ref}: {module} is a {type(layer).__name__} of {in_out(layer)}, its delta "
                f"{(int(a.shape[1]), int(b.shape[0]))}"
            )
        others = [name for name in owners[id(layer.weight)] if name != module]
        if others:
            raise InputError(
                f"{ref} adapts {module}, whose weight in {base.name} is that of {', '.join(others)} as well: "
                "folded, the delta would change both",
                fix="export it as one adapter, which changes one of them",
            )
        name = next((n for n in spellings_of(f"{module}.weight") if n in base.tensors), None)
        if name is None or tuple(base.tensors[name][1]) != tuple(layer.weight.shape):
            raise InputError(
                f"{ref} adapts {module}, and the files of {base.name} have no tensor of its own for it",
                fix="export it as one adapter",
            )
        if base.tensors[name][0] not in ("F64", "F32", "F16", "BF16"):
            raise InputError(
                f"only floating point weights can be folded, and {name} is {base.tensors[name][0]}"
            )
        places[name] = (module, not isinstance(layer, nn.Linear))
    return places
