"""Guards: what the judge is shown, what its word does, and what it never stops."""

from __future__ import annotations

from typing import Any

import pytest
from registry_fakes import put_suite, score, snapshot

from inlay.errors import GuardRefused, InlayError, InputError, ReferenceNotFound
from inlay.registry import Evidence, Guard, Registry, Verdict

GUARD = {
    "forget": 0.05,
    "gain": 0.1,
    "regress": 0.02,
    "suites": {"general": ["general"], "target": ["legal-suite"]},
}


class FakeJudge:
    """Answers as told and remembers what it was shown."""

    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)
        self.shown: list[tuple[Guard, list[Evidence]]] = []

    def __call__(self, guard: Guard, evidence: list[Evidence]) -> Verdict:
        self.shown.append((guard, evidence))
        passed = self.answers.pop(0)
        return Verdict(
            passed, [] if passed else ["forgets 41.2 points (upper bound 44.0, allowed 5.0)"], [{"n": 4}]
        )


@pytest.fixture
def guarded(three: Registry) -> Registry:
    put_suite(three, "general")
    put_suite(three, "legal-suite", held_out=False)
    three.promote("legal@v1", "prod")
    three.set_guard("legal@prod", GUARD, why="the contract")
    return three


def judge_with(registry: Registry, monkeypatch: pytest.MonkeyPatch, *answers: bool) -> FakeJudge:
    judge = FakeJudge(*answers)
    monkeypatch.setattr(Registry, "judge", judge)
    return judge


def test_a_guard_is_journaled_and_pinned(guarded: Registry) -> None:
    guard = guarded.guard("legal", "prod")
    assert guard is not None
    assert (guard.forget, guard.gain, guard.regress) == (0.05, 0.1, 0.02)
    assert guard.suites == {"general": ("general",), "target": ("legal-suite",)}
    assert guard.pinned == {n: guarded.suite(n).digest for n in ("general", "legal-suite")}
    event = guarded.journal("legal")[0]
    assert (event.verb, event.alias, event.moves, event.why) == ("guard", "prod", False, "the contract")
    put_suite(guarded, "general", n=9)  # another content under the same name
    assert guarded.guard("legal", "prod") == guard
    guarded.set_guard("legal@prod", None, why="lifted")
    assert guarded.guard("legal", "prod") is None
    assert guarded.guard("legal", "staging") is None


def test_a_met_guard_lets_pass_and_is_kept_with_the_row(
    guarded: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = judge_with(guarded, monkeypatch, True)
    event = guarded.promote("legal@v2", "prod", expect="v1")
    assert event.verdict == {"passed": True, "reasons": [], "checks": [{"n": 4}]}
    assert guarded.resolve("legal@prod").ref == "legal@v2"
    assert len(judge.shown) == 1


def test_a_refusal_is_journaled_then_raised_with_its_numbers(
    guarded: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_with(guarded, monkeypatch, False)
    with pytest.raises(GuardRefused) as caught:
        guarded.promote("legal@v2", "prod", why="newer")
    assert str(caught.value) == (
        "legal@v2 may not become legal@prod: forgets 41.2 points (upper bound 44.0, allowed 5.0); "
        "measure or improve it, or force it by name with --force --why TEXT"
    )
    assert caught.value.exit_code == 1
    event = guarded.journal("legal")[0]
    assert (event.verb, event.moves, event.from_ref, event.to_ref) == (
        "refused",
        False,
        "legal@v1",
        "legal@v2",
    )
    assert event.verdict is not None and not event.verdict["passed"]
    assert "anna was refused legal@v2 for legal@prod (it stays at legal@v1): forgets 41.2" in event.sentence()
    assert guarded.resolve("legal@prod").ref == "legal@v1"


def test_force_passes_by_name_and_says_so(guarded: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    judge_with(guarded, monkeypatch, False)
    event = guarded.promote("legal@v2", "prod", force=True, why="the customer insists", who="bert")
    assert event.forced and event.verdict is not None and not event.verdict["passed"]
    assert (
        "bert promoted legal@prod to legal@v2 by force (before: legal@v1): the customer insists"
        in event.sentence()
    )


def test_rollback_and_yank_ask_nobody(guarded: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = judge_with(guarded, monkeypatch, True)
    guarded.promote("legal@v2", "prod")
    guarded.rollback("legal@prod", why="bad")
    guarded.yank("legal@v1", why="bad too", otherwise="disable")
    assert len(judge.shown) == 1


def test_a_guard_without_a_judge_stops_loudly(guarded: Registry) -> None:
    before = snapshot(guarded)
    with pytest.raises(InlayError, match="no judge is installed"):
        guarded.promote("legal@v2", "prod")
    assert snapshot(guarded) == before
    assert guarded.promote("legal@v2", "prod", force=True, why="by hand").forced
    assert guarded.promote("legal@v3", "staging").verdict is None  # nothing guards it


def test_the_judge_sees_comparable_evidence_only(guarded: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    up, down = (True, True, True, True), (True, False, False, False)
    score(guarded, "base", "general", up)
    score(guarded, "legal@v2", "general", down)
    score(
        guarded, "legal@v2", "general", up, protocol={"template": "other"}
    )  # newer, but nothing to compare with
    for subject in ("base", "legal@v2"):
        score(guarded, subject, "general", up, metric="rouge/1")  # not the suite's own metric
    score(guarded, "legal@v1", "legal-suite", down)
    score(guarded, "legal@v1", "legal-suite", up, protocol={"template": "other"})
    score(guarded, "legal@v2", "legal-suite", up)
    judge = judge_with(guarded, monkeypatch, True)
    guarded.promote("legal@v2", "prod")
    ((guard, evidence),) = judge.shown
    assert guard == guarded.guard("legal", "prod")
    general, target = evidence
    assert (general.role, general.suite, general.subject) == ("general", "general", "legal@v2")
    assert general.candidate is not None and general.candidate.outcomes == down
    assert general.base is not None and general.base.outcomes == up
    assert (general.current, general.has_current) == (None, True)
    assert general.held_out == (True, True, True, True)
    assert (target.role, target.base) == ("target", None)
    assert target.candidate is not None and target.candidate.outcomes == up
    assert target.current is not None and target.current.outcomes == down
    assert target.held_out == (False, False, False, False)


def test_evidence_on_another_content_of_the_suite_does_not_count(
    guarded: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_suite(guarded, "general", n=6)
    score(guarded, "base", "general", (True,) * 6)
    score(guarded, "legal@v2", "general", (True,) * 6)
    judge = judge_with(guarded, monkeypatch, False)
    with pytest.raises(GuardRefused):
        guarded.promote("legal@v2", "prod")
    general = judge.shown[0][1][0]
    assert (general.candidate, general.base) == (None, None)


@pytest.mark.parametrize(
    ("asked", "measured", "counts"),
    [
        ({}, {"template": "chat"}, True),
        ({}, {"decoding": "greedy", "few_shot": 0, "dtype": "bfloat16"}, True),
        ({}, {"decoding": "greedy", "few_shot": 5}, False),
        ({}, {"decoding": "sampled", "few_shot": 0}, False),
        ({"few_shot": 5}, {"decoding": "greedy", "few_shot": 5}, True),
        ({"few_shot": 5}, {"decoding": "greedy", "few_shot": 0}, False),
        ({"dtype": "float32"}, {"dtype": "bfloat16"}, False),
        ({"dtype": "float32"}, {"template": "chat"}, False),  # it does not say: that is not enough
        ({"quantisation": None}, {"quantisation": "int4"}, False),
    ],
)
def test_evidence_under_a_foreign_protocol_does_not_count(
    asked: dict[str, Any],
    measured: dict[str, Any],
    counts: bool,
    guarded: Registry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guarded.set_guard("legal@prod", {**GUARD, "protocol": asked})
    for subject in ("base", "legal@v2"):
        score(guarded, subject, "general", (True,) * 4, protocol=measured)
    judge = judge_with(guarded, monkeypatch, True)
    guarded.promote("legal@v2", "prod")
    general = judge.shown[0][1][0]
    assert (general.candidate is not None, general.base is not None) == (counts, counts)
    assert general.foreign is not counts


def test_a_recipe_cannot_ask_for_an_easier_protocol(guarded: Registry) -> None:
    strict = Guard.of({**GUARD, "protocol": {"few_shot": 0}})
    loose = Guard.of(
        {"forget": 0.5, "suites": GUARD["suites"], "protocol": {"few_shot": 5, "dtype": "float32"}}
    )
    assert strict.stricter(loose).protocol == {"few_shot": 0, "dtype": "float32"}


def test_a_recipe_tightens_and_never_loosens(guarded: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe: dict[str, Any] = {"stack": ["legal@v1"]}
    put_suite(guarded, "extra")
    guarded.lock("acme", {**recipe, "guard": {"forget": 0.01, "suites": {"general": ["extra"]}}})
    guarded.lock("acme", {**recipe, "guard": {"forget": 0.5, "gain": 0.2, "suites": GUARD["suites"]}})
    guarded.set_guard("acme@prod", GUARD)
    judge = judge_with(guarded, monkeypatch, True, True, True)
    guarded.promote("acme@v1", "prod")
    guarded.promote("acme@v2", "prod")
    guarded.promote("acme@v1", "staging")
    tight, loose, own = (guard for guard, _ in judge.shown)
    assert (tight.forget, tight.gain, tight.regress) == (0.01, 0.1, 0.02)
    assert tight.suites == {"general": ("extra", "general"), "target": ("legal-suite",)}
    assert (loose.forget, loose.gain) == (0.05, 0.2)
    assert (own.forget, own.gain) == (0.01, None)


@pytest.mark.parametrize(
    ("guard", "said"),
    [
        ({"forgt": 1}, "unknown key 'forgt'"),
        ({"forget": "a"}, "forget must be a number"),
        ({"forget": True, "suites": {"general": ["general"]}}, "must be a number"),
        ({"forget": 5}, "between 0 and 1"),
        ({"forget": float("nan")}, "must be a number"),
        ({"gain": 0.1, "suites": {"general": ["general"]}}, "needs target suites"),
        ({"suites": {"genral": []}}, "unknown key 'genral'"),
        ({"suites": [1]}, "must map general and target"),
        ({"suites": {"general": [1]}}, "list of names"),
        ([1], "must be a mapping"),
        ({"protocol": [1]}, "protocol must map fields"),
        ({"protocol": {"few_shot": [1]}}, "protocol must map fields"),
    ],
)
def test_bad_guards_are_refused(guard: Any, said: str, guarded: Registry) -> None:
    before = snapshot(guarded)
    with pytest.raises(InputError, match=said):
        guarded.set_guard("legal@prod", guard)
    assert snapshot(guarded) == before


def test_unknown_suites_and_names_are_refused(guarded: Registry) -> None:
    with pytest.raises(ReferenceNotFound, match=r"no suite 'generl'.*did you mean general"):
        guarded.set_guard("legal@prod", {"forget": 0.1, "suites": {"general": ["generl"]}})
    with pytest.raises(ReferenceNotFound):
        guarded.set_guard("nobody@prod", {})


def test_a_judge_whose_numbers_cannot_be_kept_moves_nothing(
    guarded: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Registry, "judge", lambda g, e: Verdict(True, [], [{"bound": float("inf")}]))
    before = snapshot(guarded)
    with pytest.raises(InputError, match="plain JSON"):
        guarded.promote("legal@v2", "prod")
    assert snapshot(guarded) == before
