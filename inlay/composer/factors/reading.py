"""A folder or a version becomes factors. Every kind that has no exact ones is refused by name: loaded as if
it were LoRA it would give wrong numbers without a word.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.composer.factors.adalora import ADALORA
from inlay.composer.factors.adapter import Adapter, Size
from inlay.composer.factors.delora import DELORA
from inlay.composer.factors.gralora import GRALORA
from inlay.composer.factors.held import Held, Shape, Weights
from inlay.composer.factors.loha import LOHA
from inlay.composer.factors.lokr import LOKR
from inlay.composer.factors.lora import LORA
from inlay.composer.factors.miss import MISS
from inlay.composer.factors.unilora import UNILORA
from inlay.composer.factors.vblora import VBLORA
from inlay.composer.factors.vera import VERA
from inlay.errors import BaseMismatch, InputError
from inlay.registry.kinds import CONVERSION, EXACT, KINDS, classify
from inlay.registry.peft_config import PeftConfig

if TYPE_CHECKING:
    import torch

    from inlay.composer.factors.adapter import Pair
    from inlay.registry import Registry, Version
    from inlay.registry.fingerprint import BaseFingerprint

READERS = {
    reader.peft_type: reader
    for reader in (LORA, ADALORA, LOHA, LOKR, DELORA, MISS, GRALORA, VERA, VBLORA, UNILORA)
}

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MODULE = "base_model.model."
_SHARED = "base_model."


def read_adapter(
    source: str | Path | Version, *, base: str | Path | None = None, store: Registry | None = None
) -> Adapter:
    """Read a PEFT directory, or a version out of a registry, into factors.

    With `base`, every tensor is checked against the base's modules and shapes before one is loaded, as by
    `inlay add` (InputError, or BaseMismatch for a version of another base). MiSS and VeRA out of a directory
    need it: how far their factors reach only the base says. Bytes of a version are verified by their digest
    (IntegrityError).
    """
    from inlay.registry.fingerprint import BaseFingerprint

    fingerprint = None if base is None else BaseFingerprint.of(base)
    weight: Weights | None
    if isinstance(source, str | Path):
        folder = Path(source)
        for file in (folder / CONFIG, folder / WEIGHTS):
            if not file.is_file():
                raise InputError(f"an adapter needs {file.name}, and {folder} has none", fix="check the path")
        name, weight = folder.name, None
        config_bytes = (folder / CONFIG).read_bytes()
        weights = (folder / WEIGHTS).read_bytes()
    else:
        if store is None:
            raise InputError(f"reading {source.ref} needs the store that holds it", fix="pass store=")
        name, weight = source.ref, recorded_weights(source, store)
        config_bytes = store.read_file(source, CONFIG)
        weights = store.read_file(source, WEIGHTS)
        if fingerprint is not None and fingerprint.weights != source.base.weights:
            raise BaseMismatch(
                f"{name} was made for the base {source.base.name} ({source.base.weights[:19]}…), "
                f"and {fingerprint.name} has the weights {fingerprint.weights[:19]}…",
                fix="name the right base",
            )
    config, shapes = config_of(config_bytes, name), shapes_of(weights, name)
    if fingerprint is not None:
        weight = _weights_of(fingerprint)
    places = _checked(config, shapes, name, weight)
    if fingerprint is not None:
        _check_against(shapes, config, fingerprint)
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(weights)
    except SafetensorError as error:
        raise InputError(f"{name} is no readable adapter: {error}") from None
    embeddings = frozenset(held.module for held, size in places if size.looked_up)
    return Adapter(name, _computed(config, places, tensors), embeddings=embeddings)


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why an adapter with this configuration has no exact factors, or None if it has."""
    kind = str(config.get("peft_type") or "")[:40]
    if kind not in READERS:
        return f"its kind is {kind or 'not stated'}, which has no factors that can be composed"
    classified = classify(config)  # InputError for a field of the wrong type
    if config.get("use_dora"):
        return "it is a DoRA, whose magnitudes are no low-rank delta"
    if config.get("lora_bias"):
        return "it trains biases of its own (lora_bias)"
    if (config.get("bias") or "none") != "none":
        return f"it changes biases of the base (bias: {config['bias']})"
    if config.get("modules_to_save"):
        return f"it replaces whole modules ({', '.join(config['modules_to_save'])})"
    if config.get("trainable_token_indices"):
        return "it changes token embeddings (trainable_token_indices)"
    if classified.exactness == CONVERSION:
        initial = config.get("init_lora_weights")
        moved = f"it was initialised by {initial}, which moves part of the base into the adapter"
        if classified.kind == "loftq":
            return f"{moved} and quantises the rest"
        return f"{moved}; register it again with `inlay add --initial`, the adapter as it was before training"
    if classified.exactness != EXACT:
        return f"its kind is {kind}: {'; '.join(classified.notes)}"
    return None


def sizes_of(
    config: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    name: str,
    *,
    weight: Weights | None = None,
) -> dict[str, Size]:
    """Module -> the size its factors will have, from the tensors' names and shapes alone; no torch.

    Raises InputError for a configuration without exact factors, and for tensors that do not fit it or each
    other. Modules that were pruned to rank 0 are left out.
    """
    return {held.module: size for held, size in _checked(config, shapes, name, weight)}


def factors_of(
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    name: str,
    *,
    weight: Weights | None = None,
) -> dict[str, Pair]:
    """Factors from PEFT's configuration and tensors, in float32; all scaling is in B.

    Raises InputError as `sizes_of` does, before anything is computed.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    return _computed(config, _checked(config, shapes, name, weight), tensors)


def config_of(data: bytes, name: str) -> dict[str, Any]:
    """The object in the bytes of an adapter_config.json; InputError where there is none."""
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is no readable adapter: {CONFIG} {str(error)[:120]}") from None
    if not isinstance(config, dict):
        raise InputError(f"{name} is no readable adapter: {CONFIG} must hold an object")
    return config


def shapes_of(weights: bytes, name: str = "it") -> dict[str, Shape]:
    """The name and shape of every tensor in the bytes of a safetensors file; InputError where it is none."""
    try:
        (length,) = struct.unpack("<Q", weights[:8])
        header = json.loads(weights[8 : 8 + length])
        return {key: tuple(entry["shape"]) for key, entry in header.items() if key != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise InputError(f"{name} is no readable adapter: {WEIGHTS} {str(error)[:120]}") from None


def recorded_weights(version: Version, store: Registry) -> Weights:
    """The shapes of the base that a version was registered for, read when the first is asked for."""
    found: list[Weights] = []

    def weight(module: str) -> Shape | None:
        if not found:
            found.append(_weights_of(_recorded_base(version, store)))
        return found[0](module)

    return weight


def _checked(
    config: Mapping[str, Any], shapes: Mapping[str, Shape], name: str, weight: Weights | None
) -> list[tuple[Held, Size]]:
    """Every module that has factors, and their size; InputError where something does not fit."""
    reason = refusal(config)
    if reason:
        raise InputError(f"{name} cannot be composed: {reason}", fix="use it alone, through PEFT")
    read = READERS[config["peft_type"]]
    places = [(held, read.size(held)) for held in _held(config, shapes, name, weight)]
    return [(held, size) for held, size in places if size.rank]


def _computed(
    config: Mapping[str, Any], places: list[tuple[Held, Size]], tensors: Mapping[str, torch.Tensor]
) -> dict[str, Pair]:
    read = READERS[config["peft_type"]]
    return {held.module: read.factors(held.with_tensors(tensors)) for held, _ in places}


def _held(
    config: Mapping[str, Any], shapes: Mapping[str, Shape], name: str, weight: Weights | None
) -> list[Held]:
    modules: dict[str, dict[str, str]] = {}
    shared: dict[str, str] = {}
    for key in shapes:
        module, part = _split(key, config)
        if part is None:
            raise InputError(
                f"{name} holds {key}, which is no factor of a linear layer or an embedding",
                fix="save it again with save_embedding_layers=False"
                if key.endswith(".base_layer.weight")
                else "use it alone, through PEFT",
            )
        if module:
            modules.setdefault(module, {})[part] = key
        else:
            shared[part] = key
    if not modules:
        raise InputError(f"{name} holds no factors", fix="save the trained adapter with PEFT again")
    read = PeftConfig(config, KINDS[config["peft_type"]].defaults)
    shared_shapes = {part: shapes[key] for part, key in shared.items()}
    return [
        Held(
            adapter=name,
            module=module,
            config=read,
            shapes={part: shapes[key] for part, key in keys.items()},
            shared_shapes=shared_shapes,
            weight=weight,
            keys={**shared, **keys},
        )
        for module, keys in sorted(modules.items())
    ]


def _split(key: str, config: Mapping[str, Any]) -> tuple[str, str | None]:
    """(module, part); ("", part) for what all modules share; (key, None) for what is none of the kind's."""
    marks = KINDS[config["peft_type"]].marks
    if not key.startswith(_MODULE):
        rest = key.removeprefix(_SHARED)
        return ("", rest) if rest != key and rest.startswith(marks) else (key, None)
    pieces = key.removeprefix(_MODULE).split(".")
    for i in range(len(pieces) - 1, 0, -1):
        if pieces[i].startswith(marks):
            return ".".join(pieces[:i]), ".".join(pieces[i:])
    return key, None


def _recorded_base(version: Version, store: Registry) -> BaseFingerprint:
    from inlay.registry.fingerprint import BaseFingerprint

    base = version.base
    return BaseFingerprint(
        weights=base.weights,
        prompt=base.prompt,
        name=base.name,
        revision=base.revision,
        path=Path(),
        architecture="",
        tensors=store.base_tensors(base.weights),
        source=base.source,
    )


def _weights_of(base: BaseFingerprint) -> Weights:
    from inlay.registry.module_names import find_in_base

    def weight(module: str) -> Shape | None:
        found = find_in_base(f"{module}.weight", base)
        return None if found is None else found[1]

    return weight


def _check_against(shapes: Mapping[str, Shape], config: Mapping[str, Any], base: BaseFingerprint) -> None:
    from inlay.registry.fitting import fit
    from inlay.registry.safetensors_header import TensorInfo

    fit({key: TensorInfo(key, "F32", shape, 0, 0) for key, shape in shapes.items()}, config, base)
