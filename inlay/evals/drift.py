"""Drift: how far a model's next-token distribution moved from its base's, on the base's own answers.

An alarm, not a verdict: near the base no such number ranks models (flips decide). The base's side, its
final hidden states and its answers, is computed once per (base, prompts, protocol) and kept in the cache;
logits are recomputed from hidden states in chunks, so that no (positions × vocabulary) matrix is ever held.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError
from inlay.evals.cache import Cache
from inlay.registry.canonical import digest_of_json

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.evals.inference import Prompt
    from inlay.evals.scoring import Model

FORMAT = 2
KIND = "drift"
"""What the cache calls a base's side."""
CHUNK = 512
"""Positions whose logits exist at once: 512 × 150,000 float32 is 300 MB, twice."""


@dataclass(frozen=True)
class Drift:
    """Means over `positions` next-token predictions of `items` answers.

    `forward_kl` = mean KL(base ‖ model), `reverse_kl` = mean KL(model ‖ base), `nll_change` = mean rise of
    the negative log-likelihood of the base's own answers: nats a token. `disagreement`: fraction of
    positions whose most likely token differs. `base_from_cache`: whether the base's side was read from disk.
    `probe`: digest of what was asked and how, which two drifts must share to be compared; empty in reports
    from before it was kept. `scored`: items to which the base's own answer is right by exact match, `flips`
    those of them that the model answers otherwise; None where the items have no expected answers.
    """

    items: int
    positions: int
    forward_kl: float
    reverse_kl: float
    disagreement: float
    nll_change: float
    base_from_cache: bool = False
    probe: str = ""
    scored: int | None = None
    flips: int | None = None

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
    `keep`, the base's side is kept under `cache` (by default the registry's `cache_dir()`); it is verified by
    digest when read and recomputed if it is broken. As signals of forgetting: RL's Razor
    (arXiv 2509.04259).

    Raises InputError for no prompts, for logits that are not finite, or where the two models do not predict
    the same tokens in the same order (another tokenizer or chat template).
    """
    return pass_over(
        base,
        model,
        prompts,
        answers=answers,
        max_new_tokens=max_new_tokens,
        cache=cache,
        keep=keep,
        chunk=chunk,
    ).drift


@dataclass(frozen=True)
class Pass:
    """One pass of a model along its base's answers: the drift, those answers, and for each item whether
    greedy decoding gives exactly the answer, from the base (which may tokenize its own text otherwise than it
    wrote it, or have been cut) and from the model."""

    drift: Drift
    answers: tuple[str, ...]
    base_gives: tuple[bool, ...]
    model_gives: tuple[bool, ...]


def pass_over(
    base: Model,
    model: Model,
    prompts: Sequence[Prompt],
    *,
    answers: Sequence[str] | None = None,
    max_new_tokens: int = 32,
    cache: Path | None = None,
    keep: bool = True,
    chunk: int = CHUNK,
) -> Pass:
    """`measure_drift`, and what the same pass says about each item."""
    import torch

    if not prompts:
        raise InputError("drift needs at least one prompt")
    side, from_cache = _base_side(
        base, prompts, answers, max_new_tokens, Cache.of_environment(cache) if keep else None
    )
    sums = torch.zeros(4, dtype=torch.float64)
    start, order = 0, []
    tops: list[Tensor] = []
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
                part, top = _compared(base.head(base_hidden), model.head(hidden[here]), targets[here])
                sums += part.cpu()
                tops.append(top.cpu())
            start = stop
            order += rows
    if tuple(order) != side.order or start != len(side.targets):
        raise InputError("drift needs both models to batch the same items in the same order, and they differ")
    forward, reverse, disagreement, nll = (sums / start).tolist()
    if not all(map(math.isfinite, (forward, reverse, nll))):
        raise InputError(
            "drift needs finite logits, and the model's are not all so on the base's own answers",
            fix="the adapter is broken (a training that diverged), or too large for this precision",
        )
    drift = Drift(
        items=len(prompts),
        positions=start,
        forward_kl=forward,
        reverse_kl=reverse,
        disagreement=disagreement,
        nll_change=nll,
        base_from_cache=from_cache,
        probe=probe_digest(base, prompts, answers, max_new_tokens),
    )
    base_top, model_top = torch.cat(tops, dim=1)
    return Pass(
        drift,
        side.answers,
        _whole(base_top == side.targets, side),
        _whole(model_top == side.targets, side),
    )


def probe_digest(
    base: Model, prompts: Sequence[Prompt], answers: Sequence[str] | None = None, max_new_tokens: int = 32
) -> str:
    """Digest of what a base is asked and how; not of the base."""
    return digest_of_json(
        {
            "prompts": list(prompts),
            "answers": None if answers is None else list(answers),
            "max_new_tokens": max_new_tokens,
            "protocol": base.protocol,
        }
    )


def _whole(right: Tensor, side: BaseSide) -> tuple[bool, ...]:
    """For each item, whether all its positions are right."""
    found = [False] * len(side.order)
    for item, part in zip(side.order, right.split(list(side.counts)), strict=True):
        found[item] = bool(part.all())
    return tuple(found)


def _compared(base_logits: Tensor, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Float64 (4,): sums over the rows of (forward KL, reverse KL, disagreement, NLL change); and long
    (2, rows): the most likely tokens of both.

    With z, z' the logits, d = z − z', Z = logsumexp z: log p − log q = d − (Z − Z'), so that
    forward = Σ p d − (Z − Z') and reverse = (Z − Z') − Σ q d: two softmaxes, no matrix of log-probabilities.
    """
    import torch

    z, other = base_logits.float(), logits.float()
    p, q = z.softmax(-1), other.softmax(-1)
    p_most, p_top = p.max(-1)
    q_most, q_top = q.max(-1)
    gap = z - other
    # log p_top = z_top − Z, and p_top is at least one over the vocabulary: its logarithm is exact enough.
    shift = (z.gather(-1, p_top[:, None]) - other.gather(-1, q_top[:, None])).squeeze(-1)
    shift = shift - (p_most.log() - q_most.log())
    forward = torch.linalg.vecdot(p, gap) - shift
    reverse = shift - torch.linalg.vecdot(q, gap)
    nll = gap.gather(-1, targets[:, None]).squeeze(-1) - shift
    parts = (forward, reverse, (p_top != q_top).float(), nll)
    return torch.stack([x.double().sum() for x in parts]), torch.stack([p_top, q_top])


def _base_side(
    base: Model,
    prompts: Sequence[Prompt],
    answers: Sequence[str] | None,
    max_new_tokens: int,
    cache: Cache | None,
) -> tuple[BaseSide, bool]:
    """The base's side, from the cache where it is there and whole; and whether it was."""
    import torch

    key = {
        "format": FORMAT,
        "weights": base.fingerprint.weights,
        "probe": probe_digest(base, prompts, answers, max_new_tokens),
        # Another kernel gives other last bits, which would read as drift.
        "device": base.device.partition(":")[0],
        "torch": torch.__version__,
    }
    name = digest_of_json(key).removeprefix("sha256:")
    if cache is not None:
        held = cache.read(KIND, name)
        if held is not None:
            return side_of(held), True
    texts = list(answers) if answers is not None else base.generate(prompts, max_new_tokens=max_new_tokens)
    side = compute_side(base, prompts, texts)
    if cache is not None:
        cache.write(KIND, name, bytes_of(side))
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


def bytes_of(side: BaseSide) -> bytes:
    """A safetensors file whose metadata has what is no tensor."""
    from safetensors.torch import save

    about = {"order": side.order, "counts": side.counts, "answers": side.answers}
    tensors = {"hidden": side.hidden.contiguous(), "targets": side.targets.contiguous()}
    # An answer may hold half of a surrogate pair, which UTF-8 refuses and JSON escapes.
    return save(tensors, metadata={"about": json.dumps(about)})


def side_of(held: bytes) -> BaseSide:
    """The side that `bytes_of` wrote."""
    from safetensors.torch import load

    length = int.from_bytes(held[:8], "little")
    about = json.loads(json.loads(held[8 : 8 + length])["__metadata__"]["about"])
    tensors = load(held)
    return BaseSide(
        tensors["hidden"],
        tensors["targets"],
        tuple(about["order"]),
        tuple(about["counts"]),
        tuple(about["answers"]),
    )
