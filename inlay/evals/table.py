"""A table of plain text, as reports have them; the terminal and the page draw it.

A column has a rank: where there is little room, columns of rank 3 go first, then those of rank 2. Names come
as they are; whoever draws them makes them safe.
"""

from __future__ import annotations

from dataclasses import dataclass

from inlay.evals.forgetting import percent


@dataclass(frozen=True)
class Column:
    """A heading and what it is worth: 1 stays always, 3 goes first."""

    head: str
    rank: int = 1


@dataclass(frozen=True)
class Table:
    """A heading, columns, rows of as many cells, and a sentence to read them by. The first column names."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def columns(*heads: str | tuple[str, int]) -> tuple[Column, ...]:
    """Columns of rank 1, or of the rank that stands beside the heading."""
    return tuple(Column(head) if isinstance(head, str) else Column(*head) for head in heads)


def interval(estimate: float, low: float, high: float) -> str:
    """`4.1 [1.0, 7.9]`: points, estimate and two-sided 95% interval."""
    return f"{percent(estimate)} [{percent(low)}, {percent(high)}]"
