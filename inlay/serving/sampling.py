"""The next token of each row, from its logits: greedy in one argmax, or drawn by the row's own numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from inlay.serving.requests import Sampling


@dataclass(frozen=True)
class Drawn:
    """`id`: None where the row's logits are not finite. `logprob`, `top` as in `requests.Token`."""

    id: int | None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """One row's way of drawing. Its numbers are its own: who else is in the batch changes none of them."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._generator: torch.Generator | None = None
        if sampling.temperature > 0:
            self._generator = torch.Generator()
            if sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(sampling.seed)

    def uniform(self) -> float:
        """In [0, 1)."""
        assert self._generator is not None
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))


def draw(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[Drawn]:
    """Logits (rows, vocabulary) -> what each row says next."""
    highest, best = logits.max(-1)
    finite, ids = highest.isfinite().tolist(), best.tolist()
    warm = [row for row, s in enumerate(samplers) if s.sampling.temperature > 0 and finite[row]]
    if warm:
        uniform = [samplers[row].uniform() for row in warm]
        found = sampled(logits[warm], [samplers[row].sampling for row in warm], uniform)
        for row, token in zip(warm, found, strict=True):
            ids[row] = token
    drawn = [Drawn(token if fine else None) for token, fine in zip(ids, finite, strict=True)]
    told = [row for row, s in enumerate(samplers) if s.sampling.logprobs is not None and finite[row]]
    if told:
        counts = [samplers[row].sampling.logprobs or 0 for row in told]
        logprobs = _logprobs(logits[told], [ids[row] for row in told], counts)
        for row, (own, top) in zip(told, logprobs, strict=True):
            drawn[row] = Drawn(ids[row], own, top)
    return drawn


def sampled(logits: torch.Tensor, samplings: Sequence[Sampling], uniform: Sequence[float]) -> list[int]:
    """Logits (rows, vocabulary) and a number in [0, 1) for each row -> a token of softmax(logits /
    temperature), of its nucleus only: the fewest of the likeliest tokens that hold `top_p` of the probability
    (arXiv:1904.09751).

    The inverse of the distribution function in the vocabulary's order, in float64: a batch rounds its logits
    a little otherwise than another, and what is drawn should not hang on which of two equals came first.
    """

    def column(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]

    wide = logits.double()
    p = ((wide - wide.amax(-1, keepdim=True)) / column([s.temperature for s in samplings])).softmax(-1)
    if any(s.top_p < 1 for s in samplings):
        ordered, order = p.sort(descending=True, stable=True)
        beyond = ordered.cumsum(-1) - ordered >= column([s.top_p if s.top_p < 1 else 2.0 for s in samplings])
        p = p.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)
    reached = p.cumsum(-1)
    place = torch.searchsorted(reached, column(uniform) * reached[:, -1:], right=True)
    # Rounding may leave the last sum below the number that was drawn: then it is the last that can be.
    last = (p > 0).long() * torch.arange(p.shape[1], device=p.device)
    return [int(i) for i in place.flatten().minimum(last.amax(-1)).tolist()]


def _logprobs(
    logits: torch.Tensor, tokens: Sequence[int], counts: Sequence[int]
) -> list[tuple[float, tuple[tuple[int, float], ...]]]:
    """For each row its token's, and the `counts` most likely with theirs."""
    logprobs = logits.double().log_softmax(-1)
    own = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None]).flatten().tolist()
    values, ids = (x.tolist() for x in logprobs.topk(min(max(counts), logprobs.shape[1])))
    return [
        (own[i], tuple(zip(ids[i][:count], values[i][:count], strict=True))) for i, count in enumerate(counts)
    ]
