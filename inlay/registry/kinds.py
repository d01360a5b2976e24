"""The kinds of adapters that PEFT 0.21 writes, as data: what each is worth in a composition, and how it is
kept.

`classify` reads a configuration alone; the shapes of the tensors are in `shapes`, and both meet in `ingest`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from inlay.errors import InputError
from inlay.registry import shapes
from inlay.registry.peft_config import CONFIG, PeftConfig
from inlay.registry.shapes import Expected, Place, Shape, Shared

EXACT = "exact"
"""Its delta is a product B @ A that follows from the tensors: composed by stack, merge and route."""
CONVERSION = "needs-conversion"
"""Exact once the part of the base that its initialisation moved is known (the composer's to convert)."""
STRUCTURE = "by-structure"
"""Its delta is a low-rank product, which the composer does not read."""
ALONE = "alone"
"""No low-rank delta on the plain base: used through PEFT, by itself."""


@dataclass(frozen=True)
class Kind:
    """One peft_type.

    `tensors` gives what is kept for a module and `shared` what is kept once (see `shapes`); `marks` begins
    the names of both. `on` says what a key's module is: "weight" (it has a weight in the base), "block" (the
    base has something below it) or "prompt" (no module at all). `defaults` are PEFT's for fields that are
    missing. `refused` says why it cannot be checked, and `fix` what to do.
    """

    peft_type: str
    exactness: str = ALONE
    tensors: Callable[[Place], Expected] | None = None
    marks: tuple[str, ...] = ()
    shared: Callable[[Shared], dict[str, Shape]] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    on: str = "weight"
    refused: str | None = None
    fix: str | None = None


def _kind(
    peft_type: str, exactness: str, tensors: Callable[[Place], Expected], mark: str, **defaults: Any
) -> Kind:
    return Kind(peft_type, exactness, tensors, (mark,), defaults=defaults)


def _shared(
    peft_type: str,
    exactness: str,
    tensors: Callable[[Place], Expected],
    shared: Callable[[Shared], dict[str, Shape]],
    mark: str,
    **defaults: Any,
) -> Kind:
    return Kind(peft_type, exactness, tensors, (mark,), shared=shared, defaults=defaults)


def _prompt(peft_type: str, **defaults: Any) -> Kind:
    return Kind(peft_type, on="prompt", defaults=defaults)


_ALL = (
    _kind("LORA", EXACT, shapes.lora, "lora_", r=8, lora_alpha=8, qalora_group_size=16),
    _kind("ADALORA", EXACT, shapes.adalora, "lora_", init_r=12, lora_alpha=8),
    _kind("LOHA", EXACT, shapes.loha, "hada_", r=8, alpha=8),
    _kind("LOKR", EXACT, shapes.lokr, "lokr_", r=8, alpha=8),
    _kind("DELORA", EXACT, shapes.delora, "delora_", r=8),
    _kind("MISS", EXACT, shapes.miss, "miss_", r=64, mini_r=1, init_weights=True),
    _kind("GRALORA", EXACT, shapes.gralora, "gralora_", r=32, alpha=64, gralora_k=2, hybrid_r=0),
    _shared("VERA", EXACT, shapes.vera, shapes.vera_shared, "vera_", r=256, save_projection=True),
    _shared(
        "VBLORA", EXACT, shapes.vblora, shapes.vblora_shared, "vblora_",
        r=4, num_vectors=256, vector_length=256, topk=2, save_only_topk_weights=False,
    ),
    _shared(
        "TINYLORA", STRUCTURE, shapes.tinylora, shapes.tinylora_shared, "tinylora_",
        r=2, u=64, save_projection=True,
    ),
    _shared(
        "UNILORA", EXACT, shapes.unilora, shapes.unilora_shared, "unilora_",
        r=4, theta_d_length=256, save_indices=False,
    ),
    _kind("HIRA", ALONE, shapes.hira, "hira_", r=32),
    _shared(
        "RANDLORA", ALONE, shapes.randlora, shapes.randlora_shared, "randlora_", r=32, save_projection=True
    ),
    _shared("PVERA", ALONE, shapes.pvera, shapes.pvera_shared, "pvera_", r=256, save_projection=True),
    _shared("FROD", ALONE, shapes.frod, shapes.frod_shared, "frod_", save_projection=True),
    _kind("FOURIERFT", ALONE, shapes.fourierft, "fourierft_", n_frequency=1000),
    _kind("WAVEFT", ALONE, shapes.waveft, "waveft_", n_frequency=2592, proportional_parameters=False),
    _kind("C3A", ALONE, shapes.c3a, "c3a_", block_size=256),
    _kind("SHIRA", ALONE, shapes.shira, "shira_", r=32),
    _kind("OFT", ALONE, shapes.oft, "oft_", block_share=False),
    _kind(
        "BOFT", ALONE, shapes.boft, "boft_", boft_block_size=4, boft_block_num=0, boft_n_butterfly_factor=1
    ),
    _kind("HRA", ALONE, shapes.hra, "hra_", r=8),
    _kind("PSOFT", ALONE, shapes.psoft, "psoft_", r=32, psoft_orth=True, psoft_mag_a=True, psoft_mag_b=True),
    _kind("IA3", ALONE, shapes.ia3, "ia3_"),
    _kind("BEFT", ALONE, shapes.beft, "beft_"),
    _kind("ROAD", ALONE, shapes.road, "road_", variant="road_1"),
    _kind("OSF", ALONE, shapes.osf, "osf_"),
    _kind("DEFT", ALONE, shapes.deft, "deft_", r=8, para=False),
    _kind("LILY", ALONE, shapes.lily, "lily_", r=32, num_B=2),
    _kind("PEANUT", ALONE, shapes.peanut, "peanut_", r=32, depth=0),
    _kind("GLORA", ALONE, shapes.glora, "glora_", r=8),
    _kind("POLY", ALONE, shapes.poly, "poly_", r=8, n_tasks=1, n_skills=4, n_splits=1),
    _kind("SUPERTUNING", ALONE, shapes.supertuning, "supertuning_", save_precomputed_indices=True),
    _kind("LN_TUNING", ALONE, shapes.ln_tuning, "ln_tuning_"),
    _kind("TRAINABLE_TOKENS", ALONE, shapes.trainable_tokens, "trainable_tokens_"),
    Kind("ADAPTION_PROMPT", marks=("adaption_",), on="block"),
    _prompt("PROMPT_TUNING"),
    _prompt("P_TUNING"),
    _prompt("CPT"),
    _prompt("MULTITASK_PROMPT_TUNING", num_ranks=1, num_tasks=1),
    _prompt("PREFIX_TUNING"),
    _prompt("CARTRIDGE", num_frozen_tokens=1),
    Kind(
        "XLORA",
        refused="mixes other adapters that its configuration names by path, and those are not in the folder",
        fix="register each of them, and route between them in a recipe",
    ),
    Kind(
        "ADAMSS",
        refused="keeps subspaces found by clustering the base's weights, and nothing fixes their sizes",
        fix="train another kind, or extract a LoRA from the merged model",
    ),
    Kind(
        "SHADOW",
        refused="keeps a second model beside the base, and nothing fixes its sizes",
        fix="train another kind",
    ),
    Kind(
        "BONE",
        refused="is no longer read by PEFT",
        fix="convert it to MISS with the script of PEFT 0.18 (scripts/convert-bone-to-miss.py)",
    ),
)  # fmt: skip

KINDS: Mapping[str, Kind] = {kind.peft_type: kind for kind in _ALL}

# Initialisations of LoRA that leave the base alone, so that B @ A is the delta on it.
_PLAIN_STARTS = ("true", "false", "gaussian", "orthogonal", "eva", "mica")
# Those whose factors are relative to an altered base: exact only after conversion.
_ALTERING = re.compile(r"(pissa|olora|corda|lora_ga|loftq)(_niter_\d+)?", re.IGNORECASE)
# Switches of PEFT's LoRA whose effect is not B @ A on the plain module.
_NOT_PLAIN = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)


@dataclass(frozen=True)
class Classified:
    """What a configuration alone says: `kind` in the field's word (lora, rslora, dora, pissa, loha, ia3, …),
    its exactness (one of the four above) and notes worth keeping.
    """

    kind: str
    exactness: str
    notes: tuple[str, ...]


def kind_of(fields: Mapping[str, Any]) -> Kind:
    """The kind a configuration is of; InputError if it is none that can be checked."""
    peft_type = fields.get("peft_type")
    kind = KINDS.get(peft_type) if isinstance(peft_type, str) else None
    if kind is None:
        shown = repr(peft_type[:40]) if isinstance(peft_type, str) else f"a {type(peft_type).__name__}"
        raise InputError(
            f"{CONFIG} has peft_type {shown}, which is no kind of adapter that PEFT 0.21 writes",
            fix="save the adapter with PEFT again",
        )
    if kind.refused:
        raise InputError(
            f"an adapter of peft_type {kind.peft_type} is not taken: it {kind.refused}", fix=kind.fix
        )
    return kind


def classify(fields: Mapping[str, Any]) -> Classified:
    """Kind and exactness of an adapter by its adapter_config.json alone.

    Raises InputError for a peft_type that is not taken, or a field of the wrong type.
    """
    kind = kind_of(fields)
    config = PeftConfig(fields, kind.defaults)
    notes: list[str] = []
    name, exactness = kind.peft_type.lower(), kind.exactness
    if kind.peft_type == "LORA":
        config.count("r")
        config.number("lora_alpha")
        config.numbers("alpha_pattern")
        name, exactness = _lora(config, notes)
    missing = _not_saved(config, kind.peft_type)
    if missing:
        exactness = STRUCTURE
        notes.append(f"not composed, because {missing}")
    if kind.peft_type == "MISS" and config.get("init_weights") == "bat":
        exactness = ALONE
        notes.append("usable alone only, because init_weights 'bat' multiplies the base's own weights")
    if kind.on == "prompt":
        notes.append(f"{config.count('num_virtual_tokens')} virtual tokens")
    if config.names("modules_to_save"):
        exactness = ALONE
    if config.text("bias") not in (None, "none"):
        exactness = ALONE
        notes.append(f"usable alone only, because of bias {str(config.text('bias'))[:40]!r}")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        notes.append("ranks or alphas differ by pattern")
    return Classified(name, exactness, tuple(notes))


def _not_saved(config: PeftConfig, peft_type: str) -> str | None:
    """What the delta needs and the adapter does not hold."""
    if peft_type == "VERA" and not config.flag("save_projection"):
        return "its projections were not saved (save_projection)"
    if peft_type == "UNILORA" and not config.flag("save_indices"):
        return "its indices were not saved (save_indices)"
    if peft_type == "TINYLORA":
        return "which of its shared vectors a module uses was not saved"
    return None


def _lora(config: PeftConfig, notes: list[str]) -> tuple[str, str]:
    name, exactness = ("rslora" if config.flag("use_rslora") else "lora"), EXACT
    start = config.get("init_lora_weights")
    if start is not None and not isinstance(start, bool | str):
        raise config.wrong("init_lora_weights", "true, false or a name", start)
    said = "true" if start is None else str(start).lower()
    altering = _ALTERING.fullmatch(said)
    if altering:
        name, exactness = altering[1], CONVERSION
    elif said not in _PLAIN_STARTS:
        exactness = ALONE
        notes.append(f"usable alone only, because of the initialisation {said[:40]!r}, which is not known")
    if config.flag("use_dora"):
        name, exactness = "dora", ALONE
    switches = [switch for switch in _NOT_PLAIN if config.fields.get(switch)]
    if switches:
        exactness = ALONE
        notes.append(f"usable alone only, because of {', '.join(switches)}")
    if exactness == CONVERSION:
        notes.append(f"init_lora_weights {said!r}: exact in a composition only after conversion")
    return name, exactness
