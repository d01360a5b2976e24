"""TF-IDF: how often a prompt has each word, and how telling that word is.

    x[w] = (1 + log count of w) · idf[w], then divided by its norm; w: words and pairs of neighbours

As in Salton and Buckley (1988), idf smoothed; words are hashed into a fixed number of buckets (Weinberger et
al. 2009), so that there is no vocabulary to keep.
"""

from __future__ import annotations

import itertools
import math
import re
import zlib
from collections import Counter

import torch

BUCKETS = 2048
_WORD = re.compile(r"\w+")


def inverse_frequency(counts: torch.Tensor) -> torch.Tensor:
    """idf (BUCKETS,) of `counted` prompts."""
    prompts = len(counts)
    return ((1 + prompts) / (1 + (counts > 0).double().sum(0))).log() + 1


def counted(texts: list[str]) -> torch.Tensor:
    """(texts, BUCKETS), float64: how often each hashed word and pair of words stands in a text."""
    found = torch.zeros(len(texts), BUCKETS, dtype=torch.float64)
    for row, text in enumerate(texts):
        words = _WORD.findall(text.lower())
        terms = Counter([*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))])
        for term, count in terms.items():
            found[row, zlib.crc32(term.encode()) % BUCKETS] += count
    return found


def weighed(counts: torch.Tensor, idf: torch.Tensor) -> torch.Tensor:
    """x (rows, BUCKETS), rows of norm one."""
    x = torch.where(counts > 0, counts.clamp_min(1).log() + 1, 0) * idf
    return x / x.norm(dim=1, keepdim=True).clamp_min(math.ulp(1.0))
