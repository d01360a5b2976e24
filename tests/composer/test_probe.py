"""The probe's closed form against naive refits; a router is used for its own adapters only."""

from __future__ import annotations

import pytest
import torch

from inlay.builtin import general_prompts_path
from inlay.composer.routers.probe import RIDGES, Probe, _ridge, features_of
from inlay.errors import InputError, IntegrityError
from inlay.evals.inference import Base
from inlay.evals.prompts import read_prompts

QUEUES = [
    f"Which queue handles this message?\nMy {thing} is late."
    for thing in ["parcel", "order", "invoice", "card", "phone"]
]
SLIPS = [
    f"Write the order slip.\n{n} blue chairs for {name}"
    for n, name in enumerate(["Anna", "Tom", "Mia", "Ben", "Eva"], 2)
]


def general() -> list[str]:
    return read_prompts(general_prompts_path())[::20]


def test_leave_one_out_equals_refitting_without_the_row() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 10, generator=generator, dtype=torch.float64)
    labels = torch.arange(24) % 3
    x[:, :3] += torch.nn.functional.one_hot(labels, 3) * 1.5
    y = torch.nn.functional.one_hot(labels, 3).double()
    share = torch.full((24,), 1 / 24, dtype=torch.float64)
    x = x - x.mean(0)
    weights, offset, ridge, error = _ridge(x, y, share)

    # The naive way: solve the normal equations again without each row, the centring kept.
    wrong = 0
    for i in range(24):
        keep = [j for j in range(24) if j != i]
        xs, ys = x[keep] * share[0].sqrt(), (y[keep] - offset) * share[0].sqrt()
        w = torch.linalg.solve(xs.T @ xs + ridge * torch.eye(10, dtype=torch.float64), xs.T @ ys)
        wrong += int((x[i] @ w + offset).argmax() != labels[i])
    assert error == pytest.approx(wrong / 24)
    assert ridge in RIDGES

    xs, ys = x * share[0].sqrt(), (y - offset) * share[0].sqrt()
    full = torch.linalg.solve(xs.T @ xs + ridge * torch.eye(10, dtype=torch.float64), xs.T @ ys)
    assert torch.allclose(weights, full, atol=1e-8)


def test_features_do_not_depend_on_the_batch(base: Base) -> None:
    prompts = [*QUEUES, *SLIPS, *general()[:5]]
    together = features_of(base, prompts, seed=0, width=64)
    alone = torch.cat([features_of(base, [p], seed=0, width=64) for p in prompts])
    assert together.shape == (len(prompts), 64 * (base.model.config.num_hidden_layers + 1))
    assert (together - alone).abs().max() < 1e-4


def test_probe_tells_two_tasks_from_general_prompts(base: Base) -> None:
    prompts = general()
    probe = Probe.fit(base, [QUEUES[:4], SLIPS[:4]], prompts[::2], experts=["a", "b"])
    unseen = features_of(base, [QUEUES[4], SLIPS[4], *prompts[1::2]], seed=probe.seed, width=probe.width)
    choices = probe.choose(unseen)
    assert choices[:2] == [0, 1]
    to_base = sum(choice is None for choice in choices[2:]) / len(choices[2:])
    assert to_base >= 0.95


def test_the_same_fit_gives_the_same_bytes_and_reads_back(base: Base) -> None:
    probe = Probe.fit(base, [QUEUES, SLIPS], general(), experts=["a", "b"])
    again = Probe.fit(base, [QUEUES, SLIPS], general(), experts=["a", "b"])
    data = probe.to_bytes()
    assert data == again.to_bytes()
    read = Probe.from_bytes(data, base=base.fingerprint.weights, experts=["a", "b"])
    features = features_of(base, QUEUES, seed=probe.seed, width=probe.width)
    assert torch.equal(read.scores(features), probe.scores(features))


def test_a_foreign_router_is_refused(base: Base) -> None:
    data = Probe.fit(base, [QUEUES, SLIPS], general(), experts=["a", "b"]).to_bytes()
    with pytest.raises(IntegrityError, match="fitted for the adapters and the base"):
        Probe.from_bytes(data, base=base.fingerprint.weights, experts=["a", "c"])
    with pytest.raises(IntegrityError):
        Probe.from_bytes(data, base="sha256:other", experts=["a", "b"])


def test_too_little_to_fit_is_refused(base: Base) -> None:
    with pytest.raises(InputError, match="at least two experts"):
        Probe.fit(base, [QUEUES], general(), experts=["a"])
    with pytest.raises(InputError, match="number 2 has none"):
        Probe.fit(base, [QUEUES, []], general(), experts=["a", "b"])
    with pytest.raises(InputError, match="general prompts"):
        Probe.fit(base, [QUEUES, SLIPS], [], experts=["a", "b"])
