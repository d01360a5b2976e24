"""Guards judged on evidence made by hand: bounds decide, missing evidence is no pass."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inlay.evals.guards import judge
from inlay.evals.statistics import Paired
from inlay.registry import EvalRecord, Evidence, Guard

SUITES = {"general": ("general-v1",), "target": ("acme-support",)}


def record(outcomes: list[bool], subject: str = "sha256:c", suite: str = "general-v1") -> EvalRecord:
    n = len(outcomes)
    return EvalRecord(
        subject, "w", "p", f"digest of {suite}", suite, "exact_match/1", "d", {}, sum(outcomes) / n, n,
        0.0, 1.0, tuple(outcomes),
    )  # fmt: skip


def general(n: int, lost: int, *, protected: int = 0) -> Evidence:
    """The base has everything right; the candidate lost `lost` of `n` held-out and all protected items."""
    return Evidence(
        role="general",
        suite="general-v1",
        candidate=record([k >= lost for k in range(n)] + [False] * protected),
        base=record([True] * (n + protected), "base"),
        current=None,
        held_out=(True,) * n + (False,) * protected,
        subject="acme@v2",
    )


def target(n: int, right: int, *, base: int = 0, live: int | None = None) -> Evidence:
    """The first items are right: `right` of the candidate's, `base` of the base's, `live` of what is live."""
    return Evidence(
        role="target",
        suite="acme-support",
        candidate=record([k < right for k in range(n)], suite="acme-support"),
        base=record([k < base for k in range(n)], "base", "acme-support"),
        current=None if live is None else record([k < live for k in range(n)], "sha256:l", "acme-support"),
        held_out=None,
        has_current=live is not None,
        subject="acme@v2",
    )


FORGET = Guard(forget=0.05, suites={"general": ("general-v1",)})


def test_forgetting_is_refused_with_numbers_in_one_line() -> None:
    verdict = judge(FORGET, [general(480, 198)])
    assert not verdict.passed
    bound = 100 * Paired(480, 198, 0, 282).loss_upper
    assert verdict.reasons == [
        f"forgets 41.2 points of held-out general skills on general-v1 (upper bound {bound:.1f}, guard "
        "allows 5.0; n=480)"
    ]
    (check,) = verdict.checks
    assert (check["lost"], check["n"], check["limit"]) == (198, 480, 0.05)


def test_the_bound_decides_and_not_the_estimate() -> None:
    outcomes = [judge(FORGET, [general(400, lost)]).passed for lost in range(30)]
    first_refused = outcomes.index(False)
    assert not any(outcomes[first_refused:])
    assert first_refused == next(k for k in range(30) if Paired(400, k, 0, 0).loss_upper > 0.05)
    assert first_refused / 400 < 0.04  # well before the estimate reaches five points


def test_only_held_out_items_count() -> None:
    assert judge(FORGET, [general(400, 0, protected=300)]).passed
    everything = replace(general(400, 0, protected=300), held_out=None)
    assert not judge(FORGET, [everything]).passed


@pytest.mark.parametrize(("n", "enough"), [(60, False), (399, False), (400, True)])
def test_five_points_need_400_items(n: int, enough: bool) -> None:
    verdict = judge(FORGET, [general(n, 0, protected=500)])
    assert verdict.passed is enough
    if not enough:
        assert verdict.reasons[0].startswith(f"not enough evidence: n={n} held-out items of general-v1")
        assert "guard needs 400" in verdict.reasons[0] and "probability" in verdict.reasons[0]


def test_other_limits_need_other_numbers() -> None:
    assert judge(replace(FORGET, forget=0.1), [general(200, 0)]).passed
    assert not judge(replace(FORGET, forget=0.02), [general(999, 0)]).passed
    assert judge(replace(FORGET, forget=0.02), [general(1000, 0)]).passed
    assert not judge(replace(FORGET, forget=0.0), [general(5000, 0)]).passed


def test_missing_scores_say_what_to_run() -> None:
    unscored = replace(general(480, 0), candidate=None, base=None)
    assert judge(FORGET, [unscored]).reasons == [
        "not enough evidence: acme@v2 has no score on general-v1; run `inlay eval acme@v2 --suite general-v1`"
    ]
    no_base = replace(general(480, 0), base=None)
    assert judge(FORGET, [no_base]).reasons == [
        "not enough evidence: the base has no score on general-v1; run `inlay eval base --suite general-v1`"
    ]
    assert not judge(FORGET, []).passed
    assert "nothing is known on general-v1" in judge(FORGET, []).reasons[0]
    assert "names no general suite" in judge(Guard(forget=0.05), []).reasons[0]


def test_gain_is_held_against_its_lower_bound() -> None:
    guard = Guard(gain=0.1, suites={"target": ("acme-support",)})
    assert judge(guard, [target(400, 60)]).passed  # estimate 15, lower bound above 10
    verdict = judge(guard, [target(400, 42)])  # estimate 10.5, lower bound below
    assert not verdict.passed
    assert verdict.reasons[0].startswith("gains 10.5 points over the base on acme-support (lower bound ")
    assert "n=59 items of acme-support, `gain` needs 60" in judge(guard, [target(59, 59)]).reasons[0]


def test_regress_is_against_what_is_live() -> None:
    guard = Guard(regress=0.02, suites={"target": ("acme-support",)})
    assert judge(guard, [target(400, 300)]).passed
    assert "nothing is live yet" in judge(guard, [target(400, 300)]).reasons[0]
    assert judge(guard, [target(400, 300, live=300)]).passed
    verdict = judge(guard, [target(400, 292, live=300)])
    assert not verdict.passed and "loses 2.0 points against what is live" in verdict.reasons[0]
    unscored = replace(target(400, 300), has_current=True)
    assert "what is live has no score on acme-support" in judge(guard, [unscored]).reasons[0]


def test_the_same_bytes_cannot_regress() -> None:
    guard = Guard(regress=0.0, suites={"target": ("acme-support",)})
    entry = target(400, 300, live=300)
    assert entry.current is not None
    assert not judge(guard, [entry]).passed  # no proof that nothing was lost
    assert judge(guard, [replace(entry, current=replace(entry.current, subject="sha256:c"))]).passed


def test_a_refusal_names_only_what_stands_in_the_way_once() -> None:
    guard = Guard(forget=0.05, gain=0.1, regress=0.02, suites=SUITES)
    unscored = replace(target(400, 300, live=300), candidate=None, current=None)
    verdict = judge(guard, [general(480, 0), unscored])
    assert verdict.reasons == [
        "not enough evidence: acme@v2 has no score on acme-support; "
        "run `inlay eval acme@v2 --suite acme-support`"
    ]
    assert len(verdict.checks) == 3 and [c["passed"] for c in verdict.checks] == [False, False, True]
    good = judge(guard, [general(480, 1), target(400, 300, live=299)])
    assert good.passed and len(good.reasons) == 3


def test_every_suite_must_pass() -> None:
    guard = Guard(forget=0.05, suites={"general": ("general-v1", "other")})
    other = replace(general(480, 100), suite="other")
    assert not judge(guard, [general(480, 0), other]).passed
    assert "nothing is known on other" in judge(guard, [general(480, 0)]).reasons[0]


def test_a_guard_that_asks_for_nothing_passes() -> None:
    assert judge(Guard(), []).passed


def test_a_score_that_does_not_count_is_told_from_none() -> None:
    for foreign, said in ((True, "but under another base, metric or protocol"), (False, "has no score on")):
        verdict = judge(FORGET, [replace(general(480, 0), candidate=None, foreign=foreign)])
        assert not verdict.passed and said in verdict.reasons[0]
