"""Where a checkpoint keeps the tensors of a module: the two names differ by architecture and version."""

from __future__ import annotations

from inlay.registry.fingerprint import BaseFingerprint

EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "shared.weight",
)
HEADS = ("lm_head", "embed_out")
_MOVED = (
    ("model.language_model.", "language_model.model."),
    ("language_model.model.", "model.language_model."),
    ("model.language_model.", "model."),
    ("model.layers.", "model.language_model.layers."),
    ("lm_head.", "language_model.lm_head."),
    ("language_model.lm_head.", "lm_head."),
)


def find_in_base(tensor: str, base: BaseFingerprint) -> tuple[str, tuple[int, ...]] | None:
    """(name, shape) of the base's tensor that PEFT calls `tensor`, or None.

    Checkpoints differ from modules by a leading `model.` or `transformer.` (a bare body saved without its
    head, or the reverse), and a head tied to the embedding has no tensor of its own.
    """
    for candidate in spellings_of(tensor):
        if candidate in base.tensors:
            return candidate, base.tensors[candidate][1]
    module, _, leaf = tensor.rpartition(".")
    if leaf == "weight" and module.rpartition(".")[2] in HEADS:
        for name, (_, shape) in base.tensors.items():
            if name.endswith(EMBEDDINGS):
                return name, shape
    return None


def spellings_of(tensor: str) -> list[str]:
    """How a checkpoint may call a tensor, the likeliest first."""
    spellings = [tensor]
    head, _, tail = tensor.partition(".")
    if tail:
        spellings.append(tail)  # the checkpoint holds the body only: transformer.h.0… -> h.0…
    if head not in ("model", "transformer"):
        spellings += [f"model.{tensor}", f"transformer.{tensor}"]
    # The language model inside a vision-language one moved when transformers put all parts below `model`.
    for one, other in _MOVED:
        if tensor.startswith(one):
            spellings.append(other + tensor.removeprefix(one))
    return spellings


def embedding_width(base: BaseFingerprint) -> int:
    """The width of the base's embedding, 0 if it has none by a known name."""
    for name, (_, shape) in base.tensors.items():
        if name.endswith(EMBEDDINGS) and len(shape) == 2:
            return shape[1]
    return 0


def nearest(module: str, base: BaseFingerprint) -> str:
    """For a message: a tensor of the base whose module has the same last part, if there is one."""
    leaf = module.rpartition(".")[2]
    same = next((n for n in base.tensors if n.removesuffix(".weight").rpartition(".")[2] == leaf), None)
    return f" (which has {same})" if same else ""
