"""Calibrating the drift alarm of a base: models made to forget, by how much is measured.

Random low-rank deltas go through the bank at growing weights, so nothing is loaded anew and the base is
never written. Along `random` directions a delta disturbs what the base hardly uses, along `top` ones (its
leading singular vectors, turned among themselves) what it uses most. What the registry has measured before
counts as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from inlay.composer.bank import Bank
from inlay.composer.factors import Adapter
from inlay.composer.measure import GENERAL, SuiteLike, suite_of
from inlay.errors import InputError
from inlay.evals.calibration import Calibration, Known, keep, known_in
from inlay.evals.drift import Drift, measure_drift, probe_digest
from inlay.evals.forgetting import compare, reached_part
from inlay.evals.inference import Base, Chat
from inlay.evals.ledger import Say, scored
from inlay.evals.load_time import probe_prompts
from inlay.evals.scoring import evaluate_model
from inlay.registry import Registry
from inlay.registry.fingerprint import cache_dir

if TYPE_CHECKING:
    from inlay.evals.inference import Prompt

KINDS = ("random", "top")
SEEDS = (0, 1)
RANK = 4
WEIGHTS = tuple(2.0 ** (k / 2) for k in range(-14, 3))
"""What a delta is multiplied with; at 1 its norm in each module is that of the module's weight."""
ENOUGH = 0.06
"""Disagreement beyond which nobody needs to be told that something is lost; the study's harmful models that
drifted least lie far below."""


def calibrate(
    base: Base, *, store: Registry, general: Sequence[SuiteLike] = (GENERAL,), say: Say | None = None
) -> Calibration:
    """Find the threshold of `base`'s alarm on the probe of `general`, and keep it in `store`.

    Costs some twenty scorings of the held-out items of `general` that can be lost. The base is as before
    afterwards. Raises InputError where too few models lost enough to be sure of it, for suites without
    held-out items of a skill that the base has, and for a base without linear layers in floating point.
    """
    suites = [suite_of(suite, store) for suite in general]
    bank = Bank(base.model)
    bank.refuse_others()
    bare, chat = Chat(base, route=lambda _: bank.gate.held_at(None)), Chat(base)
    before = reached_part(
        [scored(bare, suite, subject="base", label="base", store=store, say=say) for suite in suites]
    )
    if not before:
        raise InputError(
            "calibrating needs held-out items of skills that the base has, and there are none",
            fix="name another general suite with --suite",
        )
    prompts = probe_prompts([part.suite for part in before])
    found: list[Known] = []
    # All before the first is loaded: the bank's layers stand between the base's modules and their names.
    made = [synthetic(base.model, kind, seed) for kind in KINDS for seed in SEEDS]
    try:
        for done, adapter in enumerate(made):
            if say:
                say("calibrating", done, len(made))
            slot = bank.load(adapter)
            for weight, drift in _drifting(bank, slot, bare, chat, prompts):
                after = [evaluate_model(chat, part.suite, subject="synthetic") for part in before]
                name = f"{adapter.name}, weight {weight:.3g}"
                found.append(Known(name, "synthetic", drift, compare(before, after).held_out))
            bank.gate.set(None)
            bank.unload(slot)
    finally:
        bank.detach()
    weights, probe = base.fingerprint.weights, probe_digest(bare, prompts)
    calibration = Calibration(weights, probe, (*known_in(store, weights, probe), *found))
    keep(store, calibration)
    return calibration


def _drifting(
    bank: Bank, slot: int, bare: Chat, chat: Chat, prompts: Sequence[Prompt]
) -> Iterator[tuple[float, Drift]]:
    """The weights at which a loaded delta changes what is said, and the drift at each, until it is `ENOUGH`;
    the gate stands at that weight while the caller looks."""
    for weight in WEIGHTS:
        gate = torch.zeros(bank.slots)
        gate[slot] = weight
        bank.gate.set(gate)
        drift = measure_drift(bare, chat, prompts, cache=cache_dir())
        if drift.disagreement > 0.0:
            yield weight, drift
        if drift.disagreement > ENOUGH:
            return


def synthetic(model: nn.Module, kind: str, seed: int, rank: int = RANK) -> Adapter:
    """A random delta of a rank on a random half of the model's linear layers, in each as large (Frobenius)
    as the weight itself.

    `random`: B A of normal factors. `top`: U R Vᵀ, with U, V the leading singular vectors of the weight and
    R a random rotation. The head is left alone.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    layers = [
        (name, module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and module.weight.is_floating_point()
    ]
    if not layers:
        raise InputError("calibrating needs linear layers in floating point, and this base has none")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(layers), generator=generator)[: max(1, len(layers) // 2)].tolist()
    factors = {}
    for name, weight in (layers[i] for i in sorted(chosen)):
        matrix = weight.detach().float().cpu()
        some = min(rank, *matrix.shape)
        if kind == "top":
            u, v = _leading(matrix, some, generator)
            turn, _ = torch.linalg.qr(torch.randn(some, some, generator=generator))
            a, b = v.T, u @ turn
        else:
            a = torch.randn(some, matrix.shape[1], generator=generator)
            b = torch.randn(matrix.shape[0], some, generator=generator)
        size = torch.linalg.matrix_norm(b @ a)
        factors[name] = (a.contiguous(), b * (torch.linalg.matrix_norm(matrix) / size))
    return Adapter(f"{kind} directions, seed {seed}", factors)


def _leading(
    matrix: torch.Tensor, rank: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """About the `rank` leading singular vectors, left (out, rank) and right (in, rank): two rounds of
    subspace iteration, since the SVD of a large layer takes minutes."""
    right = torch.randn(matrix.shape[1], rank, generator=generator)
    for _ in range(2):
        left, _ = torch.linalg.qr(matrix @ right)
        right, _ = torch.linalg.qr(matrix.T @ left)
    left, _ = torch.linalg.qr(matrix @ right)
    return left, right
