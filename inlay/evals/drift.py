"""Drift: how far a model's next-token distribution moved from its base's, on the base's own answers.

An alarm, not a verdict: near the base no such number ranks models (flips decide). The base's side, its
final hidden states and its answers, is computed once per (base, prompts, protocol) and kept on disk;
logits are recomputed from hidden states in chunks, so that no (positions × vocabulary) matrix is ever held.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError
from inlay.registry.canonical import canonical, digest_of, digest_of_json
from inlay.registry.fingerprint import cache_dir

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.evals.inference import Prompt
    from inlay.evals.scoring import Model

FORMAT = 1
CHUNK = 512
"""Positions whose logits exist at once: 512 × 150,000 float32 is 300 MB, twice."""


@dataclass(frozen=True)
class Drift:
    """Means over `positions` next-token predictions of `items` answers.

    `forward_kl` = mean KL(base ‖ model), `reverse_kl` = mean KL(model ‖ base), `nll_change` = mean rise of
    the negative log-likelihood of the base's own answers: nats a token. `disagreement`: fraction of
    positions whose most likely token differs. `base_from_cache`: whether the base's side was read from disk.
    """

    items: int
    positions: int
    forward_kl: float
    reverse_kl: float
    disagreement: float
    nll_change: float
    base_from_cache: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Drift:
        """What `to_dict` wrote."""
        return cls(**data)


@dataclass(frozen=True)
class BaseSide:
    """What is kept of the base: `hidden`, the model's dtype, (positions, hidden size); `targets`, long
    (positions,), both on the CPU; `order`, the items in the order of their positions; `counts`, positions an
    item has; `answers`, by item."""

    hidden: Tensor
    targets: Tensor
    order: tuple[int, ...]
    counts: tuple[int, ...]
    answers: tuple[str, ...]


def measure_drift(
    base: Model,
    model: Model,
    prompts: Sequence[Prompt],
    *,
    answers: Sequence[str] | None = None,
    max_new_tokens: int = 32,
    cache: Path | None = None,
    keep: bool = True,
    chunk: int = CHUNK,
) -> Drift:
    """Compare `model` with `base` wherever a token of `base`'s own greedy answers to `prompts` is predicted.

    Per position, with p = softmax(base logits), q = softmax(model logits), y = the answer's token, in
    float32: forward = Σ p (log p − log q), reverse = Σ q (log q − log p), disagreement = argmax p ≠ argmax q,
    NLL change = log p[y] − log q[y]. `answers`: the base's answers, where they are known already. With
    `keep`, the base's side is kept under `cache` (by default the registry's `cache_dir()`); every file is
    verified by digest when read and recomputed if it is broken. As signals of forgetting: RL's Razor
    (arXiv 2509.04259).

    Raises InputError for no prompts, or where the two models do not predict the same tokens in the same order
    (another tokenizer or chat template).
    """
    import torch

    if not prompts:
        raise InputError("drift needs at least one prompt")
    side, from_cache = _base_side(
        base, prompts, answers, max_new_tokens, (cache or cache_dir()) if keep else None
    )
    sums = torch.zeros(4, dtype=torch.float64)
    start, order = 0, []
    with torch.inference_mode():
        for rows, hidden, targets, _counts in model.states(prompts, side.answers):
            stop = start + len(targets)
            if not torch.equal(side.targets[start:stop], targets.cpu()):
                raise InputError(
                    "drift needs both models to predict the same tokens, and they differ",
                    fix="compare a model with its own base, under one tokenizer and chat template",
                )
            for at in range(0, len(targets), chunk):
                here = slice(at, at + chunk)
                there = slice(start + at, min(start + at + chunk, stop))
                base_hidden = side.hidden[there].to(hidden.device)
                sums += _sums(base.head(base_hidden), model.head(hidden[here]), targets[here]).cpu()
            start = stop
            order += rows
    if tuple(order) != side.order or start != len(side.targets):
        raise InputError("drift needs both models to batch the same items in the same order, and they differ")
    forward, reverse, disagreement, nll = (sums / start).tolist()
    return Drift(len(prompts), start, forward, reverse, disagreement, nll, from_cache)


def _sums(base_logits: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """Sums over the rows of (forward KL, reverse KL, disagreement, NLL change): float64 (4,)."""
    import torch

    log_p = torch.log_softmax(base_logits.float(), dim=-1)
    log_q = torch.log_softmax(logits.float(), dim=-1)
    gap = log_p - log_q
    forward = (log_p.exp() * gap).sum(-1)
    reverse = -(log_q.exp() * gap).sum(-1)
    disagreement = (log_p.argmax(-1) != log_q.argmax(-1)).float()
    nll = gap.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return torch.stack([x.double().sum() for x in (forward, reverse, disagreement, nll)])


def _base_side(
    base: Model,
    prompts: Sequence[Prompt],
    answers: Sequence[str] | None,
    max_new_tokens: int,
    cache: Path | None,
) -> tuple[BaseSide, bool]:
    """The base's side, from the cache where it is there and whole; and whether it was."""
    import torch

    key = {
        "format": FORMAT,
        "weights": base.fingerprint.weights,
        "prompts": list(prompts),
        "answers": None if answers is None else list(answers),
        "max_new_tokens": max_new_tokens,
        "protocol": base.protocol,
        # Another kernel gives other last bits, which would read as drift.
        "device": base.device.partition(":")[0],
        "torch": torch.__version__,
    }
    name = digest_of_json(key).removeprefix("sha256:")
    if cache is not None:
        held = read_side(cache / "drift", name)
        if held is not None and len(held.answers) == len(prompts):
            return held, True
    texts = list(answers) if answers is not None else base.generate(prompts, max_new_tokens=max_new_tokens)
    side = compute_side(base, prompts, texts)
    if cache is not None:
        write_side(cache / "drift", name, side)
    return side, False


def compute_side(base: Model, prompts: Sequence[Prompt], answers: Sequence[str]) -> BaseSide:
    """One pass of the base over its answers."""
    import torch

    hidden, targets, order, counts = [], [], [], []
    for rows, states, ids, per_item in base.states(prompts, answers):
        hidden.append(states.cpu())
        targets.append(ids.cpu())
        order += rows
        counts += per_item
    return BaseSide(torch.cat(hidden), torch.cat(targets), tuple(order), tuple(counts), tuple(answers))


def write_side(folder: Path, name: str, side: BaseSide) -> None:
    """Keep `side` as `name`.safetensors and `name`.json; the JSON, written last, has the digest of both."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    tensors = save({"hidden": side.hidden.contiguous(), "targets": side.targets.contiguous()})
    about = {
        "tensors": digest_of(tensors),
        "order": list(side.order),
        "counts": list(side.counts),
        "answers": list(side.answers),
    }
    _replace(folder / f"{name}.safetensors", tensors)
    record = canonical({"about": about, "digest": digest_of_json(about)})
    # An answer may hold half of a surrogate pair, which UTF-8 refuses.
    _replace(folder / f"{name}.json", record.encode("utf-8", "surrogatepass"))


def read_side(folder: Path, name: str) -> BaseSide | None:
    """The side kept as `name`; None where there is none or where a byte of it is not what was written."""
    from safetensors.torch import load

    try:
        held = json.loads((folder / f"{name}.json").read_bytes().decode("utf-8", "surrogatepass"))
        tensors = (folder / f"{name}.safetensors").read_bytes()
        about = held["about"]
        whole = held["digest"] == digest_of_json(about)
        if not whole or about["tensors"] != digest_of(tensors):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        # A cache that cannot be read is no cache: the pass is made again and the file replaced.
        return None
    loaded = load(tensors)
    return BaseSide(
        loaded["hidden"],
        loaded["targets"],
        tuple(about["order"]),
        tuple(about["counts"]),
        tuple(about["answers"]),
    )


def _replace(path: Path, data: bytes) -> None:
    """Write beside and rename, so that a reader sees the old file or the new one, whole."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
