"""Four figures of a line of versions, from the matrix of what each of them scores on each task.

    R[i][j]   score of row i on column j; row 0 is the base, rows 1…T the versions in their order
    l_j       the row at which column j was learnt: 0 for what the base could do already

A cell that nobody measured is None. A figure that needs one is None as well and says which; nothing is filled
in. Columns count alike, however many items they have. With l_j = j these are the papers' own definitions:
Lopez-Paz & Ranzato, Gradient Episodic Memory, arXiv:1706.08840 (average accuracy, BWT, FWT), and Chaudhry et
al., Riemannian Walk, arXiv:1801.10112 (forgetting measure).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Row = Sequence[float | None]
Cell = tuple[int, int]
"""(row, column)"""


@dataclass(frozen=True)
class Figure:
    """`value` in the unit of the scores, over `columns` columns; None where no column counts, or where the
    cells in `missing` were not measured."""

    value: float | None
    columns: int
    missing: tuple[Cell, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)


def average_accuracy(matrix: Sequence[Row], learned: Sequence[int]) -> Figure:
    """What the last version can do: mean over the columns learnt by then of R[T][j]."""
    last = len(matrix) - 1
    columns = [j for j, at in enumerate(learned) if at <= last]
    return _figure(matrix, columns, lambda j: [(last, j)], lambda scores: scores[0])


def backward_transfer(matrix: Sequence[Row], learned: Sequence[int]) -> Figure:
    """BWT: mean over the columns learnt before T of R[T][j] − R[l_j][j]. Below zero: forgetting, net of what
    later training improved."""
    last = len(matrix) - 1
    columns = [j for j, at in enumerate(learned) if at < last]
    return _figure(
        matrix, columns, lambda j: [(last, j), (learned[j], j)], lambda scores: scores[0] - scores[1]
    )


def forward_transfer(matrix: Sequence[Row], learned: Sequence[int]) -> Figure:
    """FWT: mean over the columns learnt at row 2 or later of R[l_j − 1][j] − b_j, where b_j = R[0][j] is what
    the base scores: what earlier training did for a task before it was learnt."""
    columns = [j for j, at in enumerate(learned) if 2 <= at < len(matrix)]
    return _figure(
        matrix, columns, lambda j: [(learned[j] - 1, j), (0, j)], lambda scores: scores[0] - scores[1]
    )


def forgetting_measure(matrix: Sequence[Row], learned: Sequence[int]) -> Figure:
    """F: mean over the columns learnt before T of max over k < T of R[k][j] − R[T][j], the best that any
    version before the last had. Not netted over the rows, so at least −BWT. The base is among the k where the
    column was its own."""
    last = len(matrix) - 1
    columns = [j for j, at in enumerate(learned) if at < last]

    def cells(j: int) -> list[Cell]:
        return [(last, j), *((k, j) for k in range(min(1, learned[j]), last))]

    return _figure(matrix, columns, cells, lambda scores: max(scores[1:]) - scores[0])


def _figure(
    matrix: Sequence[Row],
    columns: Sequence[int],
    cells: Callable[[int], list[Cell]],
    term: Callable[[list[float]], float],
) -> Figure:
    """The mean of `term` over the columns, each given the scores in its `cells`."""
    needed = {j: cells(j) for j in columns}
    missing = [(i, j) for places in needed.values() for i, j in places if matrix[i][j] is None]
    if missing or not columns:
        return Figure(None, len(columns), tuple(sorted(set(missing))))
    scores = {j: [float(matrix[i][j] or 0.0) for i, j in places] for j, places in needed.items()}
    return Figure(math.fsum(term(scores[j]) for j in columns) / len(columns), len(columns))
