"""The learning–forgetting frontier: points, what no other beats, text and page."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from frontier_fakes import point, report
from rich.console import Console

from inlay.evals import Suite
from inlay.evals.blame import Measured
from inlay.evals.frontier import Point, Yardstick, needed_to_show, pareto
from inlay.evals.frontier_html import write_frontier
from inlay.evals.frontier_tables import shown
from inlay.evals.frontier_text import scatter


def suite(name: str, n: int, clusters: int = 0) -> Suite:
    rows = [{"id": f"{name}{i}", "prompt": f"{name} {i}", "answer": "x"} for i in range(n)]
    if clusters:
        rows = [{**row, "cluster": f"c{i % clusters}"} for i, row in enumerate(rows)]
    return Suite.of_rows(name, rows)


def test_what_no_other_beats_is_kept() -> None:
    rng = random.Random(0)
    for _ in range(50):
        points = [point(str(i), rng.randint(0, 9), rng.randint(0, 9), n=10) for i in range(12)]
        beaten = {
            one.name
            for one, other in itertools.permutations(points, 2)
            if (other.learned > one.learned and other.lost <= one.lost)
            or (other.learned >= one.learned and other.lost < one.lost)
        }
        front = pareto(points)
        assert {each.name for each in front} == {each.name for each in points} - beaten
        assert [each.learned for each in front] == sorted(each.learned for each in front)


def test_a_point_counts_what_was_asked() -> None:
    general = [suite("g", 30), suite("h", 10)]
    target = [suite("s", 40), suite("t", 80)]
    base = Measured([[True] * 30, [True] * 10], [[False] * 40, [False] * 80])
    own = Measured([[True] * 28 + [False] * 2, [True] * 10], [[True] * 30 + [False] * 10, [True] * 80])
    alone = [[True] * 36 + [False] * 4, [True] * 80]
    found = Yardstick(general, target, base, ["a", "b"], alone, 0.95).point("x", "stack", own)
    assert (found.general.n, found.general.lost, found.general.gained) == (40, 2, 0)
    assert found.learned == pytest.approx((30 / 40 + 80 / 80) / 2), "each suite weighs the same"
    assert found.n == 120
    low, high = found.interval
    assert low < found.learned < high
    first, second = found.kept
    assert first.share == pytest.approx(30 / 36) and second.share == 1.0
    # candidate − 0.95 of the member: 30 items gain 0.05, six lose 0.95, four are wrong either way.
    assert first.beyond.delta == pytest.approx((30 * 0.05 - 6 * 0.95) / 40)
    assert found.least is first and not first.shown and first.missing
    assert second.shown and not second.missing
    data = json.loads(json.dumps(found.to_dict()))
    assert data["kept"][0]["share"] == first.share and data["lost"]["n"] == 40


def test_a_member_that_gains_nothing_has_nothing_to_keep() -> None:
    target = [suite("s", 80)]
    base = Measured([], [[False] * 80])
    found = Yardstick([], target, base, ["a"], [[False] * 80], 0.95).point("x", "stack", base)
    assert found.kept == () and found.least is None and found.learned == 0.0


def test_few_items_show_nothing_however_well_they_are_kept() -> None:
    def kept(n: int) -> Any:
        every = Measured([], [[True] * n])
        yardstick = Yardstick([], [suite("s", n)], Measured([], [[False] * n]), ["a"], every.target, 0.95)
        return yardstick.point("x", "stack", every).kept[0]

    assert not kept(59).shown and kept(60).shown
    assert [needed_to_show(share) for share in (0.8, 0.95, 0.97, 0.999, 1.0)] == [60, 60, 100, 1000, 1000]
    # What the rule says: with fewer, all could be kept by luck where less than 95% is.
    assert 0.95**60 < 0.05 < 0.95**58


def test_what_is_ahead_by_less_than_an_error_is_as_good() -> None:
    def learned(*right: int, n: int = 100) -> Point:
        """A point that is right on the first so many items of each suite."""
        outcomes = tuple(tuple(i < k for i in range(n)) for k in right)
        return replace(point("x", 0, 0), outcomes=outcomes)

    # One item of a hundred more: the mean of the differences is 0.01, and so is, nearly, their error.
    for ahead, good in ((0, True), (1, False), (2, False)):
        assert learned(50).as_good_as(learned(50 + ahead)) is good
        assert learned(50 + ahead).as_good_as(learned(50)), "whoever is ahead is as good"
    mine = tuple(i % 2 == 0 for i in range(100))
    other = tuple(not right if i < 40 else right for i, right in enumerate(mine))
    lucky = tuple(True if i < 4 else right for i, right in enumerate(other))
    noisy = [replace(point("x", 0, 0), outcomes=(outcomes,)) for outcomes in (mine, other, lucky)]
    differences = [int(b) - int(a) for a, b in zip(mine, lucky, strict=True)]
    mean = sum(differences) / 100
    error = (sum((d - mean) ** 2 for d in differences) / 100 / 100) ** 0.5
    assert 0 < mean < error, "ahead by two of forty items on which they differ"
    assert noisy[0].as_good_as(noisy[2]) and noisy[0].as_good_as(noisy[1])
    assert not learned(50, 50).as_good_as(learned(53, 51)), "suites are counted apart and weigh the same"


def test_clusters_count_once() -> None:
    base, own = [True] * 60, [False] * 6 + [True] * 54
    free, tied = suite("g", 60), suite("g", 60, clusters=30)
    plain, shared = (
        Yardstick([each], [], Measured([base], []), [], [], 0.95).point("x", "stack", Measured([own], []))
        for each in (free, tied)
    )
    assert plain.general.clusters == () and sum(t for *_, t in shared.general.clusters) == 30


def test_the_report_fits_sixty_columns_and_uses_more() -> None:
    for width in (60, 100):
        console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        report().print(console)
        text = console.export_text()
        assert max(len(line.rstrip()) for line in text.splitlines()) <= width
        assert "A route by probe wins." in text and "Not tried for want of time: cat at 1." in text
        assert "chosen" in text and "frontier" in text
        assert ("least kept" in text.split("Not shown")[0].split("Learned:")[0]) is (width == 100)
    names = [each.name for each in shown(report())]
    assert names[0] == "route by probe" and "ties at 1" not in names, "what was given up is not shown"
    assert sum(name.startswith("stack") for name in names) == 3, "three of a kind, and the frontier"


def test_the_plot_puts_points_where_they_are() -> None:
    points = [point("base", 0, 0, "base"), point("x", 100, 0), point("y", 50, 10)]
    lines = scatter(points, ["·", "#", "*"], columns=45, lines=9)
    assert lines[0].startswith("100 ┤#") and lines[8] == "  0 ┤·"
    assert lines[4].rstrip().endswith("*") and len(lines[4]) == 45, "half learned, most lost: far right"
    assert lines[10].split() == ["0.0", "10.0"] and all(len(line) <= 45 for line in lines)


def test_the_page_says_the_same_and_runs_nothing(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\u202e"
    points = tuple(replace(each, name=evil) if each.kind == "alone" else each for each in report().points)
    page = write_frontier(tmp_path / "deep" / "page.html", report(points=points, subject=evil)).read_text()
    assert "<script" not in page and "\u202e" not in page and "\\u202e" in page
    assert "A route by probe wins." in page and "data:image/svg+xml;base64," in page
    assert "route:\n    by: probe" in page and "default-src 'none'" in page


def test_nothing_measured_is_a_report_as_well(tmp_path: Path) -> None:
    empty = report(points=(), choice=None, passed=False, tested=None, recipe=None)
    console = Console(width=60, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    empty.print(console)
    assert "no dev items" in console.export_text()
    assert empty.to_dict()["frontier"] == []
    assert "Recipe" not in write_frontier(tmp_path / "page.html", empty).read_text()
