"""Which versions of a line changed a column by more than chance.

Paired tests (McNemar's exact one; Student's paired t for graded metrics; both by cluster where items share
one) of each version

- against the one before it that was scored, adjusted by Holm over all versions and columns;
- against the best before it. The best of many noisy scores is too good, so p is multiplied by the number of
  versions there were to choose from (Bonferroni), and then adjusted by Holm over all versions and columns.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace

from inlay.evals.line_records import Against, Change, Column
from inlay.evals.means import PairedMeans
from inlay.evals.statistics import Paired, holm

SURE = 0.05
"""A change is more than chance where its adjusted p is below this."""

Outcomes = tuple[bool | float, ...]


def changes(
    columns: Sequence[Column],
    outcomes: Sequence[Sequence[Outcomes | None]],
    clusters: Sequence[Sequence[Hashable]],
) -> list[Change]:
    """Both tests of every column; those beyond the base, which has nothing there to lose, are left out.

    outcomes: for each column those of each row, None for a gap; clusters: for each column those of its items,
    empty where all are independent.
    """
    found: dict[Against, list[Change]] = {"before": [], "best": []}
    for j, column in enumerate(columns):
        if column.role == "beyond":
            continue
        cells = {row: cell for row, cell in enumerate(outcomes[j]) if cell is not None}
        sign = 1.0 if column.higher_is_better else -1.0
        totals = {row: sign * sum(map(float, cell)) for row, cell in cells.items()}
        rows = list(cells)
        for place, row in enumerate(rows[1:], 1):
            earlier = rows[:place]
            # Of equals the latest: the shortest way that the fall can have taken.
            best = max(reversed(earlier), key=totals.__getitem__)
            tests: tuple[tuple[Against, int, int], ...] = (
                ("before", earlier[-1], 1),
                ("best", best, len(earlier)),
            )
            for kind, against, choices in tests:
                found[kind].append(_test(column, j, row, against, kind, cells, clusters[j], choices))
    adjusted = []
    for family in found.values():
        for test, p in zip(family, holm([test.p for test in family]), strict=True):
            fell, rose = p < SURE and test.delta < 0.0, p < SURE and test.delta > 0.0
            adjusted.append(replace(test, p_adjusted=p, fell=fell, rose=rose))
    return adjusted


def _test(
    column: Column,
    number: int,
    row: int,
    against: int,
    kind: Against,
    cells: dict[int, Outcomes],
    clusters: Sequence[Hashable],
    choices: int,
) -> Change:
    was, now = cells[against], cells[row]
    sign = 1.0 if column.higher_is_better else -1.0
    steps = [sign * (float(y) - float(x)) for x, y in zip(was, now, strict=True)]
    counts: Paired | PairedMeans
    if all(isinstance(x, bool) for x in (*was, *now)):
        counts = Paired.of(was, now, clusters)
    else:
        before, after = [float(x) for x in was], [float(x) for x in now]
        counts = PairedMeans.of(before, after, clusters, higher_is_better=column.higher_is_better)
    low, high = counts.interval
    p = min(1.0, choices * counts.p_value)
    return Change(
        column=number,
        row=row,
        against=against,
        kind=kind,
        delta=counts.delta,
        low=low if math.isfinite(low) else None,
        high=high if math.isfinite(high) else None,
        worse=sum(step < 0 for step in steps),
        better=sum(step > 0 for step in steps),
        p=p,
        p_adjusted=p,
    )
