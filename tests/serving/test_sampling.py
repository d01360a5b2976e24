"""Draws held against the distribution they are from, computed naively."""

from __future__ import annotations

import math

import pytest
import torch

from inlay.serving.requests import Sampling
from inlay.serving.sampling import Drawn, Sampler, draw, sampled


def some_logits(rows: int = 1, vocabulary: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 2


def nucleus(logits: torch.Tensor, temperature: float, top_p: float) -> list[float]:
    """The oracle, one number at a time."""
    weights = [math.exp(x / temperature) for x in logits.double().tolist()]
    p = [w / sum(weights) for w in weights]
    kept, held = set(), 0.0
    for i in sorted(range(len(p)), key=lambda i: -p[i]):
        if held >= top_p:
            break
        kept.add(i)
        held += p[i]
    return [x / held if i in kept else 0.0 for i, x in enumerate(p)]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.3, 1.0), (1.7, 0.8), (1.0, 0.3)])
def test_draws_are_from_the_nucleus(temperature: float, top_p: float) -> None:
    (logits,) = some_logits()
    expected = nucleus(logits, temperature, top_p)
    sampling = Sampling(1, temperature, top_p)
    # A grid in the place of random numbers measures the distribution function itself.
    grid = [(i + 0.5) / 20_000 for i in range(20_000)]
    counts = [0] * len(expected)
    for token in sampled(logits.expand(len(grid), -1), [sampling] * len(grid), grid):
        counts[token] += 1
    assert [c / len(grid) for c in counts] == pytest.approx(expected, abs=1.01 / len(grid))


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_what_can_be_drawn(uniform: float) -> None:
    logits = torch.tensor([[-1e9, 0.0, 1.0, -1e9]] * 4)
    ways = [Sampling(1, 1.0), Sampling(1, 1e-6), Sampling(1, 1.0, 1e-9), Sampling(1, 1e-300)]
    first, *others = sampled(logits, ways, [uniform] * 4)
    assert first == (1 if uniform == 0 else 2) and others == [2, 2, 2]


def test_a_batch_of_greedy_and_drawn_rows() -> None:
    logits = some_logits(rows=5, vocabulary=300)
    alone = [
        [drawn.id for drawn in (draw(logits[i : i + 1], [s])[0] for _ in range(20))]
        for i, s in enumerate([Sampler(Sampling(9, 1.3, 0.9, seed=i)) for i in range(5)])
    ]
    samplers = [Sampler(Sampling(9, 1.3, 0.9, seed=i)) for i in range(4)]
    together = [draw(logits, [*samplers, Sampler(Sampling(9))]) for _ in range(20)]
    for i in range(4):
        assert [drawn[i].id for drawn in together] == alone[i], "its numbers are its own"
        assert len(set(alone[i])) > 1
    assert {drawn[4].id for drawn in together} == {int(logits[4].argmax())}
    assert alone[0] != alone[1] or not torch.equal(logits[0], logits[1])


def test_without_a_seed_draws_differ() -> None:
    logits = torch.zeros(1, 1000)
    first, second = (
        [draw(logits, [s])[0].id for _ in range(8)] for s in (Sampler(Sampling(1, 1.0)) for _ in range(2))
    )
    assert first != second


def test_logprobs_are_of_the_models_own_distribution() -> None:
    logits = some_logits(rows=2)
    found = draw(logits, [Sampler(Sampling(1, 0.5, 0.5, seed=3, logprobs=2)), Sampler(Sampling(1))])
    norm = math.log(sum(math.exp(x) for x in logits[0].double().tolist()))
    expected = {i: x - norm for i, x in enumerate(logits[0].double().tolist())}
    best = sorted(expected, key=lambda i: -expected[i])[:2]
    assert found[0].id is not None and found[0].logprob == pytest.approx(expected[found[0].id])
    assert [i for i, _ in found[0].top] == best
    assert [x for _, x in found[0].top] == pytest.approx([expected[i] for i in best])
    assert found[1] == Drawn(int(logits[1].argmax()))
    (none,) = draw(logits[:1], [Sampler(Sampling(1, logprobs=0))])
    assert none.top == () and none.logprob == pytest.approx(max(expected.values()))


def test_a_row_that_is_not_finite_is_told_and_the_others_are_not_disturbed() -> None:
    logits = some_logits(rows=4)
    logits[0, 3], logits[1, 2] = float("nan"), float("inf")
    logits[2] = float("-inf")
    found = draw(logits, [Sampler(Sampling(1, t, seed=1, logprobs=1)) for t in (0.0, 1.0, 1.0, 0.0)])
    assert [drawn.id for drawn in found] == [None, None, None, int(logits[3].argmax())]


def test_an_infinitely_unlikely_token_is_no_error() -> None:
    logits = torch.tensor([[0.0, -math.inf, 1.0]])
    drawn = {draw(logits, [Sampler(Sampling(1, 1.0, seed=s))])[0].id for s in range(40)}
    assert drawn == {0, 2}
