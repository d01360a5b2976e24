"""Adapters in one canonical form: per module, two factors whose product is the delta.

delta = B @ A, with A (r, in) and B (out, r); all scaling is in B. LoRA (Hu et al., arXiv:2106.09685) and
rsLoRA (arXiv:2312.03732), with rank and alpha patterns, are exact. Every other kind is refused by name:
loaded as if it were LoRA it would give wrong numbers without a word.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError
from inlay.registry.kinds import CONVERSION, EXACT, classify

if TYPE_CHECKING:
    import torch

    from inlay.registry import Registry, Version

FACTOR_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")


@dataclass(frozen=True)
class Adapter:
    """One adapter as factors.

    `factors`: module name -> (A (r, in), B (out, r)), float32, on the CPU. `exactness` is "exact"
    where B @ A is the delta to rounding.
    """

    name: str
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]]
    exactness: str = "exact"

    @property
    def ranks(self) -> dict[str, int]:
        return {module: int(a.shape[0]) for module, (a, _) in self.factors.items()}

    def delta(self, module: str) -> torch.Tensor:
        """B @ A, float32 (out, in)."""
        a, b = self.factors[module]
        return b.float() @ a.float()


def read_adapter(
    source: str | Path | Version, *, base: str | Path | None = None, store: Registry | None = None
) -> Adapter:
    """Read a PEFT directory, or a version out of a registry, into factors.

    With `base`, every factor is checked against the base's modules and shapes (InputError or BaseMismatch
    otherwise). Bytes of a version are verified by their digest (IntegrityError).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if isinstance(source, str | Path):
        folder = Path(source)
        config_file, weights_file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
        for file in (config_file, weights_file):
            if not file.is_file():
                raise InputError(f"an adapter needs {file.name}, and {folder} has none", fix="check the path")
        name, config_bytes, weights = folder.name, config_file.read_bytes(), weights_file.read_bytes()
    else:
        if store is None:
            raise InputError(f"reading {source.ref} needs the store that holds it", fix="pass store=")
        name = source.ref
        config_bytes = store.read_file(source, "adapter_config.json")
        weights = store.read_file(source, "adapter_model.safetensors")
    try:
        config = json.loads(config_bytes)
        tensors = load(weights)
    except (json.JSONDecodeError, SafetensorError) as error:
        raise InputError(f"{name} is no readable adapter: {error}") from None
    adapter = Adapter(name, factors_of(config, tensors, name))
    if base is not None:
        _check_against(adapter, base)
    return adapter


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why an adapter with this configuration has no exact factors, or None if it has."""
    kind = str(config.get("peft_type", "")).upper()
    if kind != "LORA":
        return f"its kind is {kind or 'not stated'}, and only LoRA can be composed"
    if config.get("use_dora"):
        return "it is a DoRA, whose magnitudes are no low-rank delta"
    if config.get("lora_bias"):
        return "it trains biases of its own (lora_bias)"
    if config.get("bias", "none") != "none":
        return f"it changes biases of the base (bias: {config['bias']})"
    if config.get("modules_to_save"):
        return f"it replaces whole modules ({', '.join(config['modules_to_save'])})"
    if config.get("trainable_token_indices"):
        return "it changes token embeddings (trainable_token_indices)"
    classified = classify(config)
    if classified.exactness == CONVERSION:
        initial = config.get("init_lora_weights")
        return f"it was initialised by {initial}, which moves part of the base into the adapter"
    if classified.exactness != EXACT:
        return f"it is {'; '.join(classified.notes)}"
    return None


def factors_of(
    config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], name: str
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Factors from PEFT's configuration and tensors.

    B is multiplied by alpha / r, or alpha / √r for rsLoRA, with r and alpha of that module's pattern.
    """
    reason = refusal(config)
    if reason:
        raise InputError(f"{name} cannot be composed: {reason}", fix="use it alone, through PEFT")
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = FACTOR_KEY.match(key)
        if match is None:
            raise InputError(f"{name} holds {key}, which is no LoRA factor of a linear layer")
        sides.setdefault(match["module"], {})[match["side"]] = tensor
    factors = {}
    for module in sorted(sides):
        pair = sides[module]
        if set(pair) != {"A", "B"}:
            raise InputError(f"{name} must hold both factors of {module}, and holds only lora_{min(pair)}")
        a, b = pair["A"], pair["B"]
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise InputError(
                f"{name}: the factors of {module} do not fit: A {tuple(a.shape)}, B {tuple(b.shape)}"
            )
        scale = scaling(config, module, int(a.shape[0]))
        # float32: in half precision a scale that is no power of two would be rounded into B.
        factors[module] = (a.float(), b.float() * scale)
    return factors


def scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """What PEFT multiplies this module's delta with; `rank` is the one its tensors have."""
    declared = _by_pattern(config.get("rank_pattern"), module, config.get("r", rank))
    if declared != rank:
        raise InputError(f"{module} must have the rank its configuration says ({declared}), and has {rank}")
    alpha = float(_by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", rank)))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(pattern: Mapping[str, Any] | None, module: str, otherwise: Any) -> Any:
    """PEFT's rule: the first key that, as a regular expression, matches the end of the module's name."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return otherwise


def _check_against(adapter: Adapter, base: str | Path) -> None:
    from inlay.registry.fingerprint import BaseFingerprint
    from inlay.registry.module_names import find_in_base

    fingerprint = BaseFingerprint.of(base)
    for module, (a, b) in adapter.factors.items():
        held = find_in_base(f"{module}.weight", fingerprint)
        if held is None:
            raise InputError(f"{adapter.name} adapts {module}, which the base does not have")
        shape = (int(b.shape[0]), int(a.shape[1]))
        if tuple(held[1]) not in (shape, shape[::-1]):
            raise InputError(f"{adapter.name}: {module} must be {tuple(held[1])}, and the delta is {shape}")
