"""What may come in. A folder is looked at as a whole before a byte of it is stored.

PEFT's layout (https://huggingface.co/docs/peft/developer_guides/checkpoint): `adapter_config.json` and
`adapter_model.safetensors`, whose keys are `base_model.model.<module>.lora_A.weight` (r, in),
`…lora_B.weight` (out, r), `…lora_embedding_A` (r, vocabulary), `…lora_embedding_B` (dim, r),
`…lora_magnitude_vector`, biases, and whole tensors of modules_to_save. PEFT only warns about keys that fit
nothing; here they are refused, because such an adapter does not do what it was trained to do.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inlay.errors import InputError
from inlay.registry.cards import read_papers
from inlay.registry.fingerprint import BaseFingerprint, read_json, refuse_remote_code
from inlay.registry.safetensors_header import TensorInfo, read_header, refuse_non_finite

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TAKEN = (CONFIG, WEIGHTS, "README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_CONFIG = 4 << 20
MAX_TEXT = 16 << 20
MAX_WEIGHTS = 64 << 30

CONVERT = (
    'python -c "import torch, safetensors.torch as s; '
    "t = torch.load('adapter_model.bin', map_location='cpu', weights_only=True); "
    "s.save_file({k: v.contiguous() for k, v in t.items()}, 'adapter_model.safetensors')\""
)
"""What turns a pickle of weights into safetensors, run beside it."""

# Initialisations whose saved factors are relative to an altered base: exact only after conversion (composer).
_ALTERS_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
# Switches of PEFT's LoRA whose effect is not B @ A on the plain module.
_NOT_PLAIN = (
    "layer_replication",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "monteclora_config",
    "velora_config",
    "arrow_config",
)
# Heads that PEFT saves whole for a task, without a word in the configuration.
_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
_TIED_TO = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_LORA_KEY = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<factor>[AB])\.(?P<what>weight|bias)|lora_embedding_(?P<embedding>[AB])"
    r"|lora_(?P<magnitude>magnitude_vector)(?:\.weight)?)"
)
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Checked:
    """An adapter folder that passed: what to store and what was found out on the way.

    `files` maps a file's name in the store to where it lies; `exactness` is "exact" (its delta is B @ A),
    "needs-conversion" (exact after the composer converted it) or "alone" (usable through PEFT, not in a
    composition). `licence` and `card` are what its model card says, see `cards`.
    """

    files: Mapping[str, Path]
    stamps: Mapping[str, tuple[int, ...]]
    config: Mapping[str, Any]
    kind: str
    rank: int
    targets: tuple[str, ...]
    parameters: int
    exactness: str
    notes: tuple[str, ...]
    licence: str | None = None
    card: Mapping[str, Any] = field(default_factory=dict)

    def refuse_changed(self) -> None:
        """Raise InputError if a file was written to since it was checked."""
        for name, path in self.files.items():
            if _stamp(path) != self.stamps[name]:
                raise InputError(
                    f"{name} changed while it was registered", fix="wait for its writer, then add again"
                )


@dataclass
class _Module:
    """The tensors of one adapted module, as they are met."""

    factors: dict[str, TensorInfo] = field(default_factory=dict)
    embedding: bool = False


def check(folder: str | Path, base: BaseFingerprint) -> Checked:
    """Look at everything in `folder` that would be stored, against `base`. Reads, writes nothing.

    Raises InputError that names the file, the key or the value, and what to do.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"an adapter is a folder, {str(folder)!r} is none", fix="give the folder PEFT saved")
    names = sorted(os.listdir(root))
    if WEIGHTS not in names:
        pickles = [n for n in names if n.endswith(PICKLES) and n != "training_args.bin"]
        if pickles:
            raise InputError(
                f"weights must be safetensors, {str(folder)!r} has only {pickles[0]}, "
                "and a pickle runs code when it is read",
                fix=f"convert it in that folder: {CONVERT}",
            )
    for needed in (CONFIG, WEIGHTS):
        if needed not in names:
            raise InputError(
                f"an adapter needs {needed}, {str(folder)!r} has none", fix="save it with PEFT again"
            )
    files = {name: root / name for name in TAKEN if name in names}
    bounds = {CONFIG: MAX_CONFIG, WEIGHTS: MAX_WEIGHTS}
    stamps = {name: _regular(path, bounds.get(name, MAX_TEXT)) for name, path in files.items()}

    config = read_json(files[CONFIG], bound=MAX_CONFIG)
    refuse_remote_code(config, CONFIG)
    kind, exactness, notes = _kind(config)
    tensors = read_header(files[WEIGHTS])
    rank, targets, whole = _match(tensors, config, base)
    if whole and exactness == "exact":
        exactness = "alone"
    refuse_non_finite(files[WEIGHTS], tensors)
    papers = read_papers(files, config)
    notes += papers.notes
    ignored = [n for n in names if n not in files]
    if ignored:
        notes.append(f"not taken: {', '.join(ignored[:20])}{' …' if len(ignored) > 20 else ''}")
    if not any(name.startswith(("LICENSE", "README")) for name in files):
        notes.append("neither a licence nor a model card came with it")
    return Checked(
        files=files,
        stamps=stamps,
        config=config,
        kind=kind,
        rank=rank,
        targets=targets,
        parameters=sum(t.size for t in tensors.values()),
        exactness=exactness,
        notes=tuple(notes),
        licence=papers.licence,
        card=papers.card,
    )


def _regular(path: Path, bound: int) -> tuple[int, ...]:
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        raise InputError(
            f"{path.name} is a link, only regular files are taken", fix="copy the file itself there"
        )
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path.name} is no regular file", fix="remove it from the folder")
    if status.st_size > bound:
        raise InputError(f"{path.name} must be at most {bound} bytes, it has {status.st_size}")
    return _stamp(path)


def _stamp(path: Path) -> tuple[int, ...]:
    status = os.lstat(path)
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev


def _kind(config: Mapping[str, Any]) -> tuple[str, str, list[str]]:
    """(kind, exactness, notes) from the configuration alone."""
    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        raise InputError(
            f"adapter_config.json has peft_type {str(peft_type)[:40]!r}, only LORA and its variants "
            "(rsLoRA, DoRA, PiSSA, OLoRA, patterns, modules_to_save) are registered so far",
            fix="train a LoRA, or extract one from the merged model",
        )
    if not isinstance(config.get("r"), int) or isinstance(config["r"], bool) or config["r"] < 1:
        raise InputError(
            f"adapter_config.json must have a positive rank r, got {str(config.get('r'))[:40]!r}"
        )
    notes: list[str] = []
    init = config.get("init_lora_weights", True)
    initial = init.lower() if isinstance(init, str) else ""
    kind, exactness = ("rslora" if config.get("use_rslora") else "lora"), "exact"
    altering = next((name for name in _ALTERS_BASE if initial.startswith(name)), None)
    if altering:
        kind, exactness = altering, "needs-conversion"
        notes.append(f"init_lora_weights {init!r}: exact in a composition only after conversion")
    if config.get("use_dora"):
        kind, exactness = "dora", "alone"
    switches = [name for name in _NOT_PLAIN if config.get(name)]
    if switches:
        exactness = "alone"
        notes.append(f"usable alone only, because of {', '.join(switches)}")
    if config.get("bias") not in (None, "none"):
        exactness = "alone"
        notes.append(f"usable alone only, because of bias {str(config['bias'])[:40]!r}")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        notes.append("ranks or alphas differ by pattern")
    return kind, exactness, notes


def _match(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], base: BaseFingerprint
) -> tuple[int, tuple[str, ...], list[str]]:
    """(largest rank, targets, keys of whole tensors) once every key fits `base`; InputError otherwise."""
    modules: dict[str, _Module] = {}
    whole: list[str] = []
    saved = config.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(m, str) for m in saved):
        raise InputError("adapter_config.json: modules_to_save must be a list of names")
    saved = [*saved, *_HEADS.get(str(config.get("task_type")), ())]
    for key, tensor in tensors.items():
        if not key.startswith(_PREFIX):
            raise InputError(
                f"key {key!r} fits nothing: PEFT's keys start with {_PREFIX}", fix="save it with PEFT again"
            )
        rest = key[len(_PREFIX) :]
        match = _LORA_KEY.fullmatch(rest)
        if match is None:
            _check_whole(rest, key, tensor, config, saved, base)
            whole.append(key)
            continue
        module = modules.setdefault(match["module"], _Module())
        if match["embedding"]:
            module.embedding = True
            module.factors[match["embedding"]] = tensor
        elif match["magnitude"]:
            if not config.get("use_dora"):
                raise InputError(f"key {key!r} fits nothing: use_dora is off in adapter_config.json")
            module.factors["magnitude"] = tensor
        elif match["what"] == "bias":
            if match["factor"] != "B" or not config.get("lora_bias"):
                raise InputError(f"key {key!r} fits nothing: lora_bias is off in adapter_config.json")
            module.factors["bias"] = tensor
        else:
            module.factors[match["factor"]] = tensor
    if not modules:
        raise InputError(f"{WEIGHTS} has no LoRA factors", fix="save the trained adapter with PEFT again")
    ranks = [_check_module(name, module, config, base) for name, module in sorted(modules.items())]
    return max(ranks), tuple(sorted({name.rpartition(".")[2] for name in modules})), whole


def _check_module(name: str, module: _Module, config: Mapping[str, Any], base: BaseFingerprint) -> int:
    """The rank of one adapted module whose factors fit `base`; InputError otherwise."""
    for one, other in (("A", "B"), ("B", "A")):
        if one not in module.factors:
            raise InputError(
                f"module {name!r} has lora_{other} without lora_{one}", fix="save the adapter again"
            )
    a, b = module.factors["A"].shape, module.factors["B"].shape
    found = find_in_base(f"{name}.weight", base)
    if found is None:
        near = _nearest(name, base)
        raise InputError(
            f"module {name!r} is not in the base {base.name}{near}", fix="give the base it was trained on"
        )
    base_name, shape = found
    if len(shape) != 2 or len(a) != 2 or len(b) != 2:
        raise InputError(
            f"module {name!r}: factors {list(a)} and {list(b)} must be matrices on a matrix, "
            f"{base_name} is {list(shape)}"
        )
    rank = a[0]
    # A Conv1D base (GPT-2) keeps its weight as (in, out); PEFT then sets fan_in_fan_out. An embedding is
    # (rows, dim).
    transposed = bool(config.get("fan_in_fan_out")) or module.embedding
    inputs, outputs = (shape[0], shape[1]) if transposed else (shape[1], shape[0])
    if rank < 1 or b[1] != rank or a[1] != inputs or b[0] != outputs:
        raise InputError(
            f"module {name!r}: A must be (r, {inputs}) and B ({outputs}, r) for {base_name} {list(shape)}, "
            f"got {list(a)} and {list(b)}",
            fix="give the base it was trained on",
        )
    pattern = config.get("rank_pattern") or {}
    allowed = {config["r"], *(pattern.values() if isinstance(pattern, dict) else ())}
    if rank not in allowed:
        raise InputError(
            f"module {name!r} has rank {rank}, adapter_config.json says {sorted(map(str, allowed))}",
            fix="save the adapter together with its configuration again",
        )
    for extra in ("magnitude", "bias"):
        tensor = module.factors.get(extra)
        if tensor is not None and tensor.size != outputs:
            raise InputError(f"module {name!r}: {extra} must have {outputs} values, got {list(tensor.shape)}")
    return rank


def _check_whole(
    rest: str,
    key: str,
    tensor: TensorInfo,
    config: Mapping[str, Any],
    saved: list[str],
    base: BaseFingerprint,
) -> None:
    """Refuse a key that is no factor unless it is a whole tensor that the configuration announces and the
    base fits.
    """
    module, _, leaf = rest.rpartition(".")
    announced = any(module == m or module.endswith(f".{m}") or f".{m}." in f".{module}." for m in saved)
    is_bias = leaf == "bias" and config.get("bias") in ("all", "lora_only")
    found = find_in_base(rest, base)
    # PEFT saves resized embeddings whole, without saying so in the configuration.
    is_embedding = found is not None and (found[0].endswith(_TIED_TO) or module.endswith("lm_head"))
    if not announced and not (is_bias and found) and not is_embedding:
        raise InputError(
            f"key {key!r} fits nothing: no LoRA factor, and neither modules_to_save nor bias announces it",
            fix="save the adapter again, or remove the key",
        )
    # A head for classification (task_type SEQ_CLS) is new; anything the base has must keep its shape.
    if found is not None and found[1] != tensor.shape:
        raise InputError(
            f"key {key!r} has shape {list(tensor.shape)}, "
            f"{found[0]} of the base {base.name} has {list(found[1])}",
            fix="give the base it was trained on",
        )


def find_in_base(tensor: str, base: BaseFingerprint) -> tuple[str, tuple[int, ...]] | None:
    """(name, shape) of the base's tensor that PEFT calls `tensor`, or None.

    Checkpoints differ from modules by a leading `model.` or `transformer.` (a bare body saved without its
    head, or the reverse), and a head tied to the embedding has no tensor of its own.
    """
    for candidate in _spellings(tensor):
        if candidate in base.tensors:
            return candidate, base.tensors[candidate][1]
    if tensor.rpartition(".")[0].rpartition(".")[2] in ("lm_head", "embed_out") and tensor.endswith(
        ".weight"
    ):
        for name, (_, shape) in base.tensors.items():
            if name.endswith(_TIED_TO):
                return name, shape
    return None


def _spellings(tensor: str) -> list[str]:
    spellings = [tensor]
    head, _, tail = tensor.partition(".")
    if tail:
        spellings.append(tail)  # the checkpoint holds the body only: transformer.h.0… -> h.0…
    if head not in ("model", "transformer"):
        spellings += [f"model.{tensor}", f"transformer.{tensor}"]
    return spellings


def _nearest(module: str, base: BaseFingerprint) -> str:
    leaf = module.rpartition(".")[2]
    same = next((n for n in base.tensors if n.removesuffix(".weight").rpartition(".")[2] == leaf), None)
    return f" (which has {same})" if same else ""
