"""The four figures against the papers' own formulas, written out as loops over their indices."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.evals.transfer import (
    Figure,
    average_accuracy,
    backward_transfer,
    forgetting_measure,
    forward_transfer,
)


def of_the_papers(r: list[list[float]], b: list[float], tasks: int) -> tuple[float, float, float, float]:
    """r[i][j], i and j from 1: accuracy on task j after task i; b[j] before any (arXiv:1706.08840, eq. 2-4;
    arXiv:1801.10112, section 3)."""
    acc = sum(r[tasks][j] for j in range(1, tasks + 1)) / tasks
    bwt = sum(r[tasks][i] - r[i][i] for i in range(1, tasks)) / (tasks - 1)
    fwt = sum(r[i - 1][i] - b[i] for i in range(2, tasks + 1)) / (tasks - 1)
    forgotten = 0.0
    for j in range(1, tasks):
        best = r[1][j]
        for k in range(2, tasks):
            if r[k][j] > best:
                best = r[k][j]
        forgotten += best - r[tasks][j]
    return acc, bwt, fwt, forgotten / (tasks - 1)


@settings(max_examples=60, deadline=None)
@given(tasks=st.integers(2, 7), seed=st.integers(0, 10**6))
def test_tasks_learnt_one_after_the_other(tasks: int, seed: int) -> None:
    dice = random.Random(seed)
    r = [[0.0, *(dice.random() for _ in range(tasks))] for _ in range(tasks + 1)]
    b = r[0]
    matrix = [row[1:] for row in r]
    learned = list(range(1, tasks + 1))
    found = [
        figure(matrix, learned).value
        for figure in (average_accuracy, backward_transfer, forward_transfer, forgetting_measure)
    ]
    assert found == pytest.approx(of_the_papers(r, b, tasks), abs=1e-12)
    assert found[3] is not None and found[1] is not None and found[3] >= -found[1] - 1e-12


def test_what_the_base_brought_is_held_against_the_base() -> None:
    matrix = [[0.9, 0.8], [0.95, 0.6], [0.7, 0.7]]
    assert average_accuracy(matrix, [0, 0]).value == pytest.approx(0.7)
    assert backward_transfer(matrix, [0, 0]).value == pytest.approx((0.7 - 0.9 + 0.7 - 0.8) / 2)
    assert forgetting_measure(matrix, [0, 0]).value == pytest.approx((0.95 - 0.7 + 0.8 - 0.7) / 2)
    assert forward_transfer(matrix, [0, 0]) == Figure(None, 0)


def test_a_gap_is_no_number() -> None:
    matrix: list[list[float | None]] = [[0.1, 0.2, None], [0.9, None, 0.3], [None, 0.8, 0.4], [0.7, 0.8, 0.9]]
    learned = [1, 2, 3]
    assert average_accuracy(matrix, learned) == Figure(pytest.approx(0.8), 3)
    assert backward_transfer(matrix, learned).value == pytest.approx((0.7 - 0.9 + 0.8 - 0.8) / 2)
    # The best before the last is not known where one of those before was not measured.
    assert forgetting_measure(matrix, learned) == Figure(None, 2, ((1, 1), (2, 0)))
    assert forward_transfer(matrix, learned) == Figure(None, 2, ((0, 2), (1, 1)))
    assert forgetting_measure(matrix, learned).to_dict() == {
        "value": None,
        "columns": 2,
        "missing": ((1, 1), (2, 0)),
    }


def test_a_single_version_has_forgotten_nothing_it_learnt() -> None:
    matrix = [[0.5, 0.9], [0.8, 0.6]]
    assert average_accuracy(matrix, [1, 1]).value == pytest.approx(0.7)
    assert backward_transfer(matrix, [1, 1]) == forgetting_measure(matrix, [1, 1]) == Figure(None, 0)
    assert backward_transfer(matrix, [0, 0]).value == pytest.approx((0.3 - 0.3) / 2)
    assert average_accuracy([[0.5]], [1]) == Figure(None, 0), "not learnt by then"
