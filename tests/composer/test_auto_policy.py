"""What `auto` does without a model: items dealt, time kept, candidates named, one of them taken."""

from __future__ import annotations

import random
from typing import Any

import pytest

from inlay.composer.ablations import Ablation
from inlay.composer.choosing.budget import MARGIN, Budget
from inlay.composer.choosing.candidates import Candidate, neighbours
from inlay.composer.choosing.items import FIRST, STAGES, TEST, deal
from inlay.composer.choosing.material import Material
from inlay.composer.choosing.policy import Bounds, Ranked, choose, explain, ranked
from inlay.composer.experts import to_yaml
from inlay.errors import InputError
from inlay.evals import Suite
from inlay.evals.blame import Measured
from inlay.evals.frontier import Yardstick
from inlay.registry import Recipe

BOUNDS = Bounds(0.05, 0.95)


def suite(name: str, n: int, *, skills: int = 1, clusters: int = 0) -> Suite:
    rows = [
        {"id": f"{name}{i}", "prompt": f"{name} {i}", "answer": "x", "skill": f"s{i % skills}"}
        for i in range(n)
    ]
    if clusters:
        rows = [{**row, "cluster": f"c{i % clusters}"} for i, row in enumerate(rows)]
    return Suite.of_rows(name, rows)


def test_items_are_dealt_once_evenly_and_by_the_seed() -> None:
    general, target = suite("g", 120, skills=5), suite("t", 200, skills=4)
    counted = [i for i in range(120) if i % 3]
    items = deal([(general, counted)], [target], seed=1)
    for role, rows, whole in (("general", counted, general), ("target", range(200), target)):
        parts = items.of(range(TEST + 1), role)
        assert sorted(row for part in parts for row in part.rows) == list(rows)
        assert all([whole.items[row] for row in part.rows] == list(part.suite.items) for part in parts)
        sizes = [len(part.rows) for part in parts]
        assert sizes[0] == min(FIRST[role], -(-sum(sizes[:STAGES]) // 4))
        assert sizes[0] + sizes[1] == round((sizes[0] * sum(sizes[:STAGES])) ** 0.5)
        assert abs(sum(sizes[:STAGES]) - sizes[TEST]) <= whole.items[0].skill.count("s") * 5
        for part in parts:  # no skill has more of a part than its share, and one
            share = len(part.rows) / len(rows)
            for skill in whole.skills:
                everywhere = sum(whole.items[row].skill == skill for row in rows)
                here = sum(item.skill == skill for item in part.suite.items)
                assert abs(here - share * everywhere) <= 2
    assert deal([(general, counted)], [target], seed=1) == items
    assert deal([(general, counted)], [target], seed=2) != items
    assert [len(s) for s in items.suites(range(STAGES), "target")] == [100]


def test_what_belongs_together_stays_together() -> None:
    tied = suite("t", 60, clusters=12)
    twice = [{"id": f"u{i}", "prompt": f"same {i // 2}", "answer": "x"} for i in range(40)]
    items = deal([(suite("g", 8), range(8))], [tied, Suite.of_rows("u", twice)])
    homes: dict[Any, set[int]] = {}
    for part in items.of(range(TEST + 1), "target"):
        for item in part.suite.items:
            homes.setdefault(item.cluster or item.text, set()).add(part.stage)
    assert all(len(stages) == 1 for stages in homes.values()) and len(homes) == 12 + 20


@pytest.mark.parametrize(("n", "clusters"), [(1, 0), (30, 1)])
def test_what_cannot_be_dealt_is_refused(n: int, clusters: int) -> None:
    with pytest.raises(InputError, match="t must have two items or clusters at least"):
        deal([(suite("g", 8), range(8))], [suite("t", n, clusters=clusters)])
    with pytest.raises(InputError, match="what is general must have two items"):
        deal([(suite("g", 8), [])], [suite("t", 8)])


def test_time_is_kept_for_the_end() -> None:
    now = [0.0]
    budget = Budget(100.0, lambda: now[0])
    assert budget.allows(10**9), "nothing is known of the pace yet"
    budget.reserve = 30
    with budget.asking(20):
        now[0] += 10.0
    # Half a second a row: 10 + 1.25 · 0.5 · (rows + 30) is at most 100 up to 114 rows.
    assert MARGIN == 1.25 and budget.allows(114) and not budget.allows(115)
    assert budget.over(0.09) and not budget.over(0.11)
    now[0] = 99.0
    assert not budget.allows(0)


def candidate(kind: str, method: str = "", weights: tuple[float, ...] = ()) -> Candidate:
    return Candidate(kind, method, weights, Ablation(((method or kind, 1.0, ()),)))


def test_candidates_say_what_they_are_and_what_a_recipe_says_of_them() -> None:
    refs, names = ["a@prod", "b@v2"], ["a", "b"]
    said = {
        candidate("alone", "b", (0.0, 1.0)): ("b alone", "b alone", "b@v2"),
        candidate("stack", "stack", (0.5, 0.5)): (
            "stack at 0.5",
            "The stack 0.5 a + 0.5 b",
            {"stack": [{"use": "a@prod", "weight": 0.5}, {"use": "b@v2", "weight": 0.5}]},
        ),
        candidate("stack", "stack", (1.0, 0.7)): (
            "stack at 1/0.7",
            "The stack 1 a + 0.7 b",
            {"stack": ["a@prod", {"use": "b@v2", "weight": 0.7}]},
        ),
        candidate("merge", "ties", (1.5,)): (
            "ties at 1.5",
            "The merge ties(a, b) at 1.5",
            {"merge": ["a@prod", "b@v2"], "method": "ties", "weight": 1.5},
        ),
        candidate("cat", "cat", (0.6,)): (
            "cat at 0.6",
            "The merge cat(a, b) at 0.6",
            {"use": "acme-cat@v1", "weight": 0.6},
        ),
        candidate("route", "words"): (
            "route by words",
            "A route by words over a, b",
            {"route": {"by": "words", "experts": ["a@prod", "b@v2"]}},
        ),
    }
    for each, (name, described, recipe) in said.items():
        assert (each.name, each.described(names)) == (name, described)
        node = each.node(refs, "acme-cat@v1")
        written = Recipe.of(to_yaml(Recipe(None, node, None)))
        assert written.compose == node
        assert written.compose == Recipe.of({"compose": recipe}).compose
        assert each.static is (each.kind != "route")


def test_neighbours_change_all_weights_or_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        merges = {"ties": "sha256:t"}  # noqa: RUF012

        def stack(self, weights: Any) -> Ablation:
            return Ablation(tuple(("s", weight, ()) for weight in weights))

        single = Material.single

    found = neighbours(Fake(), candidate("stack", "stack", (1.0, 0.5)), 0.2)  # type: ignore[arg-type]
    assert [each.weights for each in found] == [
        (1.2, 0.6),
        (0.8, 0.4),
        (1.2, 0.5),
        (0.8, 0.5),
        (1.0, 0.6),
        (1.0, 0.4),
    ]
    found = neighbours(Fake(), candidate("merge", "ties", (1.0,)), 0.2)  # type: ignore[arg-type]
    assert [(each.method, each.weights) for each in found] == [("ties", (1.2,)), ("ties", (0.8,))]
    assert found[0].ablation == Ablation((("sha256:t", 1.2, ()),))
    assert neighbours(Fake(), candidate("route", "probe"), 0.2) == []  # type: ignore[arg-type]


def measured(
    each: Candidate, kept: tuple[float, float], lost: int = 0, n: int = 100, general: int = 200
) -> Ranked:
    """A candidate that keeps so much of what two members gain (all of `n` items each)."""
    target = [suite("s", n), suite("t", n)]
    base = Measured([[True] * general], [[False] * n] * 2)
    own = Measured(
        [[False] * lost + [True] * (general - lost)],
        [[i < round(share * n) for i in range(n)] for share in kept],
    )
    yardstick = Yardstick([suite("g", general)], target, base, ["a", "b"], [[True] * n] * 2, 0.95)
    return Ranked(each, yardstick.point(each.name, each.kind, own))


STACK, TIES = candidate("stack", "stack", (1.0, 1.0)), candidate("merge", "ties", (1.0,))
PROBE, WORDS = candidate("route", "probe"), candidate("route", "words")


@pytest.mark.parametrize(
    ("kept", "lost", "n", "taken"),
    [
        ((1.0, 1.0), 0, 100, STACK),
        ((1.0, 0.96), 0, 100, PROBE),  # kept by estimate, not shown
        ((1.0, 1.0), 0, 50, PROBE),  # too few items to show anything
        ((1.0, 1.0), 20, 100, PROBE),  # forgets a tenth
    ],
)
def test_a_static_composition_must_be_shown_to_keep_everything(
    kept: tuple[float, float], lost: int, n: int, taken: Candidate
) -> None:
    pool = [
        measured(STACK, kept, lost, n),
        measured(WORDS, (0.98, 0.98), 0, n),
        measured(PROBE, (1.0, 1.0), 0, n),
    ]
    found = choose(pool, BOUNDS, members=2)
    assert found is not None and found.candidate == taken


def test_of_several_the_one_that_learned_most_is_taken_then_the_one_that_lost_least() -> None:
    pool = [measured(STACK, (1.0, 0.98), 1), measured(TIES, (1.0, 1.0), 2), measured(WORDS, (1.0, 1.0))]
    found = choose(pool, BOUNDS, members=2)
    assert found is not None and found.candidate == TIES, "two items ahead on the same items, by no chance"
    pool.append(measured(candidate("merge", "iso_c", (1.0,)), (1.0, 1.0), 1))
    found = choose(pool, BOUNDS, members=2)
    assert found is not None and found.candidate.method == "iso_c"


def test_a_route_is_refused_where_it_is_shown_to_lose_what_members_gain_or_forgets() -> None:
    static = measured(STACK, (0.1, 0.1))
    for kept, lost, taken in (((0.94, 1.0), 0, True), ((0.8, 1.0), 0, False), ((1.0, 1.0), 12, False)):
        found = choose([static, measured(PROBE, kept, lost)], BOUNDS, members=2)
        assert (found is not None) is taken, (kept, lost)


def test_the_faults_are_the_guards_own_figures() -> None:
    point = measured(STACK, (0.31, 0.97), lost=30).point
    faults = BOUNDS.faults(point, static=True)
    assert [fault.said.split(",")[0] for fault in faults] == [
        "keeps 31.0% of what a gains",
        "loses 15.0 points of general skills (upper bound 19.6",
        "keeps 97.0% of what b gains",
    ]
    assert faults[2].said == "keeps 97.0% of what b gains, which so few items do not show to be 95% (n=100)"
    assert [fault.distance for fault in faults] == sorted((f.distance for f in faults), reverse=True)
    assert len(BOUNDS.faults(point, static=False)) == 2, "a route must be shown to lose it"
    borne_out = BOUNDS.faults(measured(STACK, (0.96, 0.97)).point, static=True, tested=True)
    assert borne_out == [], "on test items an estimate does"
    assert BOUNDS.faults(measured(STACK, (0.94, 1.0)).point, static=True, tested=True)


def test_the_nearest_to_the_bounds_comes_first_in_any_order() -> None:
    pool = [
        measured(candidate("merge", str(i), (1.0,)), (kept, kept), lost)
        for i, (kept, lost) in enumerate(((0.2, 0), (0.9, 40), (0.9, 0), (1.0, 0), (0.97, 0)))
    ]
    rng = random.Random(0)
    for _ in range(5):
        rng.shuffle(pool)
        assert [each.candidate.method for each in ranked(pool, BOUNDS)] == ["3", "4", "2", "1", "0"]


def test_two_sentences_with_figures() -> None:
    stack, probe = measured(STACK, (0.3, 0.5)), measured(PROBE, (0.99, 1.0), 1)
    assert explain(probe, probe.point, [stack, probe], BOUNDS, ["a", "b"]) == (
        "A route by probe over a, b keeps 99.0 to 100.0% of what each gains alone and loses 0.5 points of "
        "general skills (upper bound of the loss 2.2; n=200) on test items.",
        "The best static composition, stack at 1, keeps 30.0% of what a gains, less than 95% (n=100) on dev "
        "items.",
    )
    good = measured(TIES, (1.0, 1.0))
    first, second = explain(good, good.point, [stack, probe, good], BOUNDS, ["a", "b"])
    assert first.startswith("The merge ties(a, b) at 1 keeps 100.0% of what each gains alone")
    assert second == "The best route, by probe, scores 99.5% on the targets on dev items."
    bad = measured(PROBE, (0.5, 1.0))
    assert explain(probe, bad.point, [stack, probe], BOUNDS, ["a", "b"])[0] == (
        "A route by probe over a, b, chosen on dev items, keeps 50.0% of what a gains, less than 95% (n=100) "
        "on test items, so nothing is locked."
    )
    assert explain(None, None, [stack, bad], BOUNDS, ["a", "b"]) == (
        "No candidate meets the guard on dev items: the best route, by probe, keeps 50.0% of what a gains, "
        "less than 95% (n=100).",
        "The best static composition, stack at 1, keeps 30.0% of what a gains, less than 95% (n=100).",
    )
    assert explain(None, None, [stack], BOUNDS, ["a", "b"])[0].endswith(": no route was measured.")
    alone = measured(candidate("alone", "a", (1.0,)), (1.0, 1.0), 40)
    first, second = explain(alone, alone.point, [alone], BOUNDS, ["a"])
    assert "loses 20.0 points" in first and second.startswith("It is the only adapter")
