"""Texts that are nearly the same: candidates by MinHash (Broder 1997), each then measured exactly.

Texts are compared by their runs of `RUN` characters, normalised; runs that many rows share belong to a
template and count on neither side. The similarity is Jaccard's: common runs over all runs.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence

from inlay.evals.contamination import normalised

RUN = 5
SAMPLES = 64
"""Hashes of a MinHash. At `LEAST` similar pairs, one in fourteen is missed; at 0.85 one in 10,000."""
LEAST = 0.7
TEMPLATE, TEMPLATE_ROWS = 0.05, 20
"""A run in more than this share of the texts, and in more than so many, belongs to a template."""
TELLING = 8
"""Runs of its own that a text must have to be compared."""
TEMPLATED = 0.15
"""Share of rows with a similar one from which a file is said to come from a template."""

_NUMBERS = re.compile(r"\d+")


def shingles(text: str) -> frozenset[int]:
    """Hashes of all runs of `RUN` characters of a normalised text, a space at either end."""
    padded = f" {normalised(text)} "
    runs = {padded[at : at + RUN] for at in range(max(1, len(padded) - RUN + 1))}
    return frozenset(zlib.crc32(run.encode()) for run in runs)


def telling(texts: Sequence[frozenset[int]]) -> list[frozenset[int]]:
    """The texts without their template's runs."""
    counted = Counter(run for text in texts for run in text)
    most = max(TEMPLATE_ROWS, TEMPLATE * len(texts))
    common = frozenset(run for run, count in counted.items() if count > most)
    return [text - common for text in texts]


def similarity(a: frozenset[int], b: frozenset[int]) -> float:
    """|a ∩ b| / |a ∪ b|."""
    both = len(a & b)
    return both / (len(a) + len(b) - both) if a or b else 0.0


def similar(texts: Sequence[frozenset[int]], first: int | None = None) -> Iterator[tuple[int, int, float]]:
    """Pairs of places (i, j), i < j, of texts at least `LEAST` similar, and how similar they are. Of texts
    with the same runs all are paired with the first, and only that one with others. `first`: instead only
    pairs of one of the first so many with one of the others, all of them."""
    from datasketch import MinHash, MinHashLSH

    long = [place for place, text in enumerate(texts) if len(text) >= TELLING]
    if first is None:
        leaders: dict[frozenset[int], int] = {}
        for place in long:
            if (leader := leaders.setdefault(texts[place], place)) != place:
                yield leader, place, 1.0
        long = list(leaders.values())
    hashes = MinHash.generator(([*texts[place]] for place in long), num_perm=SAMPLES, hashfunc=int, seed=1)
    index = MinHashLSH(threshold=LEAST, num_perm=SAMPLES)
    for place, hashed in zip(long, hashes, strict=True):
        if first is None or place >= first:
            for other in sorted(index.query(hashed)):
                if (alike := similarity(texts[other], texts[place])) >= LEAST:
                    yield other, place, alike
        if first is None or place < first:
            index.insert(place, hashed)


def same_numbers(a: str, b: str) -> bool:
    """Whether two texts have the same numbers in the same order: else they ask for different things."""
    return _NUMBERS.findall(a) == _NUMBERS.findall(b)
