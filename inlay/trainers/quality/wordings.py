"""How a request is worded: the instruction, else the words a prompt begins or ends with."""

from __future__ import annotations

import math
import re
from collections import Counter

from inlay.evals.contamination import normalised
from inlay.trainers.quality.material import Material

WORDS = 4
"""Words at a prompt's beginning or end that are its wording where no line of it is an instruction."""

_DIGITS = re.compile(r"\d+")


def wordings(material: Material) -> Counter[str]:
    """Rows of each wording. A prompt without an instruction has its first `WORDS` words, or its last ones
    where those repeat more; numbers are one and the same."""
    instructed = Counter(
        row.instruction.strip() for row in material.rows if row.instruction and row.instruction.strip()
    )
    texts = [
        _DIGITS.sub("#", normalised(row.example.text)).split()
        for row in material.rows
        if not (row.instruction and row.instruction.strip())
    ]
    openings = Counter(" ".join(words[:WORDS]) + " …" for words in texts)
    endings = Counter("… " + " ".join(words[-WORDS:]) for words in texts)
    free = max(openings, endings, key=lambda counted: max(counted.values(), default=0))
    return instructed + free


def effective(counted: Counter[str]) -> float:
    """exp(entropy): how many equally frequent wordings would be as varied."""
    total = sum(counted.values())
    return math.exp(-sum(n / total * math.log(n / total) for n in counted.values())) if total else 0.0
