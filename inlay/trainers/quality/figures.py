"""A data file in numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from inlay.trainers.quality.defects.preferences import longer_and_shorter
from inlay.trainers.quality.material import Material
from inlay.trainers.quality.wordings import effective, wordings


@dataclass(frozen=True)
class Quantiles:
    """Of measured values, by nearest rank."""

    least: float
    median: float
    p95: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quantiles | None:
        """None of nothing; what is not finite does not count."""
        held = sorted(value for value in values if math.isfinite(value))
        if not held:
            return None
        return cls(held[0], held[(len(held) - 1) // 2], held[math.ceil(0.95 * len(held)) - 1], held[-1])


@dataclass(frozen=True)
class Wording:
    """`different`: wordings; `effective`: how many equally frequent ones would be as varied; `share`: of the
    commonest."""

    different: int
    effective: float
    commonest: str
    share: float


@dataclass(frozen=True)
class Figures:
    """`lines`: of the file, or documents of raw text; `rows`: that could be read; `words`: of the answers, of
    pairs the chosen ones, or of the documents; `tokens`: of rows, prompt and answer, the longer one of a
    pair, and `limit` of them; `nats`: mean negative log-likelihood a token of the answers or documents under
    the base; `classes`: rows of each, the commonest first, where the answers are classes; `longer`: share of
    the pairs whose chosen answer has more words than the other."""

    lines: int
    rows: int
    words: Quantiles | None
    wording: Wording | None
    classes: tuple[tuple[str, int], ...] | None
    tokens: Quantiles | None
    limit: int | None
    nats: Quantiles | None
    longer: float | None = None

    @classmethod
    def of(cls, material: Material) -> Figures:
        """The numbers of what a check looked at."""
        classes = material.classes if material.reads == "rows" else None
        return cls(
            lines=len(material),
            rows=len(material.rows),
            words=Quantiles.of([len((row.answer or row.prompt).split()) for row in material.rows]),
            wording=_wording(material),
            classes=tuple(classes.most_common()) if classes is not None else None,
            tokens=Quantiles.of(material.tokens or ()),
            limit=material.limit,
            nats=Quantiles.of(material.nats or ()),
            longer=longer_and_shorter(material)[0] if material.reads == "pairs" and material.rows else None,
        )


def _wording(material: Material) -> Wording | None:
    if not material.rows or material.reads == "texts":
        return None
    counted = wordings(material)
    commonest, count = counted.most_common(1)[0]
    return Wording(len(counted), effective(counted), commonest, count / counted.total())
