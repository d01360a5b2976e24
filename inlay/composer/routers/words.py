"""Words: the probe's regression on the words of a prompt instead of a model's states. Shipped because what
looks into the model must beat it.

    x[w] = (1 + log count of w) · idf[w], then divided by its norm; w: words and pairs of neighbours

TF-IDF as in Salton and Buckley (1988), idf smoothed; words are hashed into a fixed number of buckets
(Weinberger et al. 2009), so that there is no vocabulary to keep.
"""

from __future__ import annotations

import itertools
import math
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from inlay.composer.routers.fitted import Fitted, Solved
from inlay.composer.routers.probe import solve_ridge, standardised
from inlay.composer.routers.seen import Seen

BUCKETS = 2048
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Words(Fitted):
    name: ClassVar[str] = "words"
    reads_states: ClassVar[bool] = False

    @classmethod
    def learn_features(
        cls, seen: Seen, share: torch.Tensor, seed: int
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        counts = counted(seen.texts)
        prompts = len(counts)
        idf = ((1 + prompts) / (1 + (counts > 0).double().sum(0))).log() + 1
        mean = (share[:, None] * _weighed(counts, idf)).sum(0)
        return {"seed": seed}, {"idf": idf.float(), "mean": mean.float()}

    def features(self, seen: Seen) -> torch.Tensor:
        return (_weighed(counted(seen.texts), self.tensors["idf"].double()) - self.tensors["mean"]).float()

    def raw(self, x: torch.Tensor) -> torch.Tensor:
        return standardised(super().raw(x), x, self)

    @classmethod
    def solve(
        cls,
        x: torch.Tensor,
        labels: torch.Tensor,
        share: torch.Tensor,
        groups: list[torch.Tensor],
        experts: int,
    ) -> Solved:
        return solve_ridge(x, labels, share, groups, experts)


def counted(texts: list[str]) -> torch.Tensor:
    """(texts, BUCKETS), float64: how often each hashed word and pair of words stands in a text."""
    found = torch.zeros(len(texts), BUCKETS, dtype=torch.float64)
    for row, text in enumerate(texts):
        words = _WORD.findall(text.lower())
        terms = Counter([*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))])
        for term, count in terms.items():
            found[row, zlib.crc32(term.encode()) % BUCKETS] += count
    return found


def _weighed(counts: torch.Tensor, idf: torch.Tensor) -> torch.Tensor:
    x = torch.where(counts > 0, counts.clamp_min(1).log() + 1, 0) * idf
    return x / x.norm(dim=1, keepdim=True).clamp_min(math.ulp(1.0))
