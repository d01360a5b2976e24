"""The report on a terminal: every width is kept, nothing is obeyed, differences are marked."""

from __future__ import annotations

import io
import random
from itertools import pairwise
from typing import Literal

import pytest
from report_fakes import EVIL, full_report
from rich.console import Console

from inlay.evals.forgetting import Flip
from inlay.evals.report_flips import differences, sides
from inlay.evals.report_tables import sentences, tables
from inlay.evals.report_text import print_report


def printed(width: int, *, terminal: bool = False) -> str:
    out = io.StringIO()
    colours: Literal["standard"] | None = "standard" if terminal else None
    console = Console(file=out, width=width, force_terminal=terminal, color_system=colours)
    print_report(full_report(), console)
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_it_fits_and_obeys_nobody(width: int) -> None:
    text = printed(width)
    assert all(len(line) <= width for line in text.splitlines())
    assert not any(c in text for c in "\x1b\x07\u202e\ud800")
    assert "\\x1b[31mred" in text.replace("\n", "").replace(" ", "")
    for heading in (
        "General skills",
        "By skill",
        "By slice",
        "Targets",
        "Graded suites",
        "Overhead",
        "Weights",
    ):
        assert f"\n{heading}\n" in text
    assert "10.3 [6.6, 14.4]" in text and "13.7" in text  # 45 lost, 8 gained of 360; Tango


def test_more_room_shows_more_columns() -> None:
    narrow, wide = printed(60), printed(140)
    assert wide.count("lost/gained") == 4 and "Not shown for want of room: lost/gained" not in wide
    assert "Not shown for want of room: lost/gained, p." in narrow
    for width in (60, 80, 120):
        assert "points lost [95%]" in printed(width) and "points gained [95%]" in printed(width)


def test_differences_are_marked_with_and_without_colour() -> None:
    plain, coloured = printed(120), printed(120, terminal=True)
    assert "base the «red» car" in plain and "now  the «blue» car" in plain
    assert "«" not in coloured and "\x1b[4;31mblue" in coloured
    assert "now  (nothing)" in plain and "now  (not kept)" in plain
    assert "Wrong before, right now" in plain and "base «a» red «boat»" in plain


def test_every_table_has_a_cell_for_each_column() -> None:
    found = tables(full_report())
    assert [table.title for table in found] == [
        *("General skills", "By skill", "By slice", "Targets", "Graded suites", "Routing"),
        *("Routing by expert", "Confusion matrix", "Confidence", "Against the oracle"),
        *("Rigidity on general suites", "Overhead", "Weights"),
    ]
    for table in found:
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert table.columns[0].rank == 1
    by_title = {table.title: table.rows for table in found}
    assert by_title["Overhead"][0] == ("batch of 1", "250", "200", "25.0 [20.0, 31.0]", "25.0 [20.0, 31.0]")
    assert by_title["Weights"][1][:3] == ("tickets@v3", "–", "9.3")
    assert by_title["Rigidity on general suites"][1][4:6] == ("13.3 [7.7, 20.1]", "4.7")


def test_what_the_weights_show_is_said_once() -> None:
    said = sentences(full_report())
    assert any("never trained" in sentence for sentence in said)
    assert not any("is large" in sentence for sentence in said)  # the table says it
    assert said[0].endswith(f"not counted: multiply, {EVIL}.")


def test_differences_against_brute_force() -> None:
    """The spans give the texts back; what is not marked is the same words in both."""
    rng = random.Random(0)
    for _ in range(200):
        one, two = (" ".join(rng.choices("a bb c. d-e", k=rng.randrange(8))) for _ in "12")
        left, right = differences(one, two)
        assert "".join(s.text for s in left) == one and "".join(s.text for s in right) == two
        same = ["".join(s.text for s in side if not s.differs).split() for side in (left, right)]
        assert same[0] == same[1]
        assert all(a.differs is not b.differs for side in (left, right) for a, b in pairwise(side))
    assert differences("same", "same")[0][0].differs is False


def test_long_answers_are_cut_and_counted() -> None:
    flip = Flip("s", "i", "copy", True, "p" * 900, "answer", "x" * 100_000, None)
    seen = sides(flip, lost=True, kept=800)
    assert seen.model is not None and len(seen.model[0].text) == 800 and seen.hidden == 100 + 99_200
    assert seen.base is not None and seen.base[0].text == "answer" and seen.expected
    gained = sides(Flip("s", "i", "copy", True, "p", "right", None, "wrong"), lost=False)
    assert [s.text for s in gained.model or ()] == ["right"] and [s.text for s in gained.base or ()] == [
        "wrong"
    ]
