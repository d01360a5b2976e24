"""Guards judged on evidence made by hand: bounds decide, missing evidence is no pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scipy import stats

from inlay.evals.guard_general import skill_items
from inlay.evals.guards import judge
from inlay.evals.statistics import Paired
from inlay.registry import EvalRecord, Evidence, Guard
from inlay.registry.guards import Perturbed

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


def in_skills(entry: Evidence, *names: str) -> Evidence:
    """The same with skills of equal size, one after the other."""
    assert entry.candidate is not None
    n = entry.candidate.n
    return replace(entry, skills=tuple(names[k * len(names) // n] for k in range(n)))


SKILL = Guard(skill=0.1, suites={"general": ("general-v1",)})


def test_a_skill_that_fell_is_found_where_the_total_hardly_moved() -> None:
    entry = in_skills(general(480, 12), "sort", "count", "copy", "dates", "sums", "echo", "json", "facts")
    assert judge(FORGET, [entry]).passed
    verdict = judge(SKILL, [entry])
    bound = 100 * Paired(60, 12, 0, 48).loss_upper
    assert verdict.reasons == [
        f"forgets 20.0 points of sort on general-v1 (upper bound {bound:.1f}, guard allows 10.0 "
        "of a skill; n=60)"
    ]
    (check,) = verdict.checks
    assert [row["skill"] for row in check["skills"]] == sorted(set(entry.skills))
    assert [row["lost"] for row in check["skills"] if row["skill"] == "sort"] == [12]
    good = judge(SKILL, [in_skills(general(480, 0), *"abcdefgh")])
    assert good.passed and good.reasons[0].startswith("keeps each of 8 held-out skills on general-v1")


@pytest.mark.parametrize(("limit", "needed"), [(0.1, 60), (0.2, 30), (0.05, 120), (0.0, 1000)])
def test_a_skill_needs_items_of_its_own(limit: float, needed: int) -> None:
    assert skill_items(limit) == needed
    few = judge(replace(SKILL, skill=limit), [in_skills(general(2 * needed - 2, 0), "a", "b")])
    assert (
        f"a has {needed - 1} of {needed} items" in few.reasons[0] and "not enough evidence" in few.reasons[0]
    )
    enough = judge(replace(SKILL, skill=limit), [in_skills(general(2 * needed, 0), "a", "b")])
    assert enough.passed is (limit > 0.0)


def test_skills_may_have_limits_of_their_own() -> None:
    entry = in_skills(general(240, 20), "sort", "count")  # 20 of 120 are lost of sort
    assert not judge(replace(SKILL, skill={"*": 0.1}), [entry]).passed
    assert judge(replace(SKILL, skill={"*": 0.1, "sort": 0.3}), [entry]).passed
    assert judge(replace(SKILL, skill={"count": 0.1}), [entry]).passed
    unknown = judge(replace(SKILL, skill={"count": 0.1, "poems": 0.1}), [entry])
    assert unknown.reasons == ["not enough evidence: no general suite has held-out items of poems"]
    other = replace(entry, suite="other", skills=("poems",) * 240)
    both = replace(SKILL, skill={"count": 0.1}, suites={"general": ("general-v1", "other")})
    assert judge(both, [entry, other]).passed  # nothing of the other suite is limited


def test_what_the_base_cannot_do_neither_dilutes_nor_is_held_against_anybody() -> None:
    entry = in_skills(general(800, 40), "sort", "poems")
    assert entry.base is not None and entry.candidate is not None
    base = [k < 400 or k >= 762 for k in range(800)]  # poems: 38 of 400
    cannot = replace(entry, base=record(base, "base"))
    verdict = judge(FORGET, [cannot])
    (check,) = verdict.checks
    assert (check["n"], check["lost"], check["unreached"]) == (400, 40, ["poems"])
    assert [row["skill"] for row in judge(SKILL, [cannot]).checks[0]["skills"]] == ["sort"]
    few = replace(cannot, held_out=tuple(k < 60 or k >= 400 for k in range(800)))
    assert (
        "n=60 held-out items of general-v1 (not counting poems, which the base cannot do)"
        in (judge(FORGET, [few]).reasons[0])
    )
    assert judge(replace(SKILL, skill={"poems": 0.1}), [cannot]).reasons == [
        "not enough evidence by skill on general-v1: the base can do none of the skills it limits"
    ]


def test_clusters_count_and_too_few_are_no_evidence() -> None:
    together = replace(general(800, 16), clusters=tuple(f"t{k // 16}" for k in range(800)))
    assert judge(FORGET, [general(800, 16)]).passed
    verdict = judge(FORGET, [together])  # the same flips, all in one template
    (check,) = verdict.checks
    assert check["bound"] > Paired(800, 16, 0, 784).loss_upper and "50 clusters" in check["method"]
    few = replace(general(800, 0), clusters=tuple(f"t{k // 50}" for k in range(800)))
    assert judge(FORGET, [few]).reasons == [
        "not enough evidence: the 800 items of general-v1 share 16 clusters, `forget` needs 20"
    ]
    one_skill = judge(SKILL, [replace(in_skills(few, "a", "b"))])
    assert one_skill.passed  # a skill is its templates, and the method says so
    assert "speak for these alone" in one_skill.checks[0]["skills"][0]["method"]
    targets = replace(target(400, 300), clusters=("t",) * 400)
    assert "share 1 clusters" in judge(Guard(gain=0.1, suites=SUITES), [targets]).reasons[0]


def rigid(n: int, right: int, rigid_right: int, kinds: int = 2) -> Evidence:
    """Each source item `kinds` times; of each kind the first `rigid_right` are right."""
    entry = target(n, right)
    outcomes = [k < rigid_right for k in range(n) for _ in range(kinds)]
    form = Perturbed(
        "acme-support--rigid",
        record(outcomes, suite="acme-support--rigid"),
        tuple(k for k in range(n) for _ in range(kinds)),
        tuple(f"i{k}" for k in range(n) for _ in range(kinds)),
        "sha256:r",
    )
    return replace(entry, perturbed=form)


RIGIDITY = Guard(rigidity=0.1, suites={"target": ("acme-support",)})


def test_rigidity_pairs_clean_and_perturbed_by_source() -> None:
    assert judge(RIGIDITY, [rigid(400, 300, 290)]).passed
    verdict = judge(RIGIDITY, [rigid(400, 300, 250)])
    (check,) = verdict.checks
    # Both forms of an item fall together, so 800 pairs are worth 400.
    expected = Paired.of(
        [k < 300 for k in range(400) for _ in range(2)],
        [k < 250 for k in range(400) for _ in range(2)],
        [k for k in range(400) for _ in range(2)],
    )
    assert not verdict.passed and check["bound"] == expected.loss_upper
    assert check["bound"] > Paired(800, 100, 0, 500).loss_upper
    assert verdict.reasons[0].startswith("loses 12.5 points on acme-support where it is asked less neatly")
    assert set(check["evidence"]) == {"candidate", "base", "perturbed", "perturbed_suite"}
    unknown = replace(target(400, 300), perturbed=Perturbed("acme-support--rigid"))
    assert judge(RIGIDITY, [unknown]).reasons == [
        "not enough evidence: acme@v2 has no score on acme-support--rigid; run `inlay forget acme@v2 "
        "--eval acme-support --rigidity`"
    ]
    assert not judge(RIGIDITY, [target(400, 300)]).passed


RETAIN = Guard(retention=0.8, suites={"target": ("acme-support",)})


def with_members(whole: int, members: dict[str, int | None], n: int = 400, base: int = 40) -> Evidence:
    entry = target(n, whole, base=base)
    scored = {
        ref: None if right is None else record([k < right for k in range(n)], ref, "acme-support")
        for ref, right in members.items()
    }
    return replace(entry, members=tuple(scored.items()))


def test_a_variant_keeps_its_members_gains() -> None:
    """The bound is on the mean of v − b − r (m − b): against scipy's t on the same numbers."""
    assert judge(RETAIN, [with_members(340, {"faq@v1": 340})]).passed
    verdict = judge(RETAIN, [with_members(292, {"faq@v1": 340})])  # 252 of 300: an estimate of 84%
    (check,) = verdict.checks
    assert check["kept"] == pytest.approx(0.84)
    x = [float(k < 292) - float(k < 40) - 0.8 * (float(k < 340) - float(k < 40)) for k in range(400)]
    low = stats.ttest_1samp(x, 0.0).confidence_interval(0.9).low
    assert check["bound"] <= low and check["bound"] == pytest.approx(low, abs=0.004)
    assert verdict.passed is (check["bound"] >= 0)
    refused = judge(RETAIN, [with_members(200, {"faq@v1": 340})])
    assert not refused.passed
    assert refused.reasons[0].startswith(
        "keeps 53.3% of what faq@v1 gains by itself on acme-support (40.0 of 75.0 points; guard asks 80.0%"
    )
    assert refused.checks[0]["member"] == "faq@v1"


def test_members_without_a_gain_or_without_a_score() -> None:
    entry = with_members(300, {"faq@v1": 340, "style@v3": 40})
    verdict = judge(replace(RETAIN, retention=0.5), [entry])
    assert verdict.passed
    assert any("style@v3 is not shown to gain on any target suite" in reason for reason in verdict.reasons)
    unknown = with_members(340, {"faq@v1": None})
    assert judge(RETAIN, [unknown]).reasons == [
        "not enough evidence: what faq@v1 gains by itself is not known; run `inlay eval faq@v1 --suite "
        "acme-support`"
    ]
    # One suite on which it is shown to gain is enough.
    other = replace(with_members(340, {"faq@v1": 340}), suite="other")
    both = replace(RETAIN, suites={"target": ("acme-support", "other")})
    assert judge(both, [unknown, other]).passed
    assert "has no members" in judge(RETAIN, [target(400, 300)]).reasons[0]
    unscored = replace(unknown, candidate=None)
    assert "acme@v2 has no score on acme-support" in judge(RETAIN, [unscored]).reasons[0]


def times(upper: float) -> Evidence:
    report = {"extra_time": {"estimate": upper - 0.05, "upper": upper}, "device": "cpu", "base_weights": "w"}
    return Evidence("overhead", "", None, None, None, None, "sha256:t", subject="acme@v2", report=report)


def test_overhead_is_the_newest_measurements_upper_bound() -> None:
    guard = Guard(overhead=0.3)
    assert judge(guard, [times(0.29)]).passed
    verdict = judge(guard, [times(0.36)])
    assert verdict.reasons == [
        "takes 31.0% more time a token than the base on cpu (upper bound 36.0%, guard allows 30.0%)"
    ]
    assert verdict.checks[0]["evidence"] == {"report": "sha256:t"}
    assert (
        "run `inlay forget acme@v2 --overhead`" in judge(guard, [replace(times(0.1), report=None)]).reasons[0]
    )
    assert not judge(guard, []).passed


def test_an_alarm_that_nothing_answered_is_no_pass() -> None:
    raised = Evidence(
        "alarm", "", None, None, None, None, "sha256:a", subject="acme@v2",
        report={"raised": True, "said": "Alarm: disagreement is 9.1%; measure it."},
    )  # fmt: skip
    guard = Guard(gain=0.1, suites=SUITES)
    assert judge(guard, [target(400, 300)]).passed
    verdict = judge(guard, [target(400, 300), raised])
    assert verdict.reasons == [
        "not enough evidence: Alarm: disagreement is 9.1%; measure it, and nothing was measured since; "
        "run `inlay forget acme@v2`"
    ]


def graded(base: list[float], candidate: list[float], metric: str) -> Evidence:
    """A target suite with a graded metric; what is live has the base's outcomes."""

    def one(outcomes: list[float], subject: str) -> EvalRecord:
        return replace(
            record([True] * len(outcomes), subject, "wiki"), metric=metric, outcomes=tuple(outcomes)
        )

    return Evidence(
        "target", "wiki", one(candidate, "sha256:c"), one(base, "base"), one(base, "sha256:l"), None,
        has_current=True,
    )  # fmt: skip


def test_graded_targets_are_judged_in_their_unit_and_direction() -> None:
    base = [1.0 + 0.01 * (k % 7) for k in range(100)]
    better = [x - 0.05 - 0.001 * (k % 3) for k, x in enumerate(base)]
    guard = Guard(gain={"wiki": 0.04}, regress={"*": 0.01}, suites={"target": ("wiki",)})
    verdict = judge(guard, [graded(base, better, "bits_per_byte/1")])
    assert verdict.passed
    assert verdict.reasons[0].startswith(
        "gains 0.051 over the base on wiki (lower bound 0.0509, guard asks 0.04"
    )
    assert not judge(guard, [graded(better, base, "bits_per_byte/1")]).passed
    assert not judge(guard, [graded(base, better, "token_f1/1")]).passed  # there, less is worse
    loose = Guard(rigidity=0.5, suites={"target": ("wiki",)})
    said = judge(loose, [graded(base, better, "bits_per_byte/1")]).reasons[0]
    assert "`rigidity` is about right-or-wrong answers, and wiki is graded" in said
    few = judge(guard, [graded(base[:1], better[:1], "bits_per_byte/1")])
    assert "n=1 items of wiki" in few.reasons[0] and few.checks[0]["bound"] is None


def test_every_threshold_without_a_measurement_is_refused() -> None:
    for key in ("skill", "rigidity", "retention", "overhead"):
        verdict = judge(Guard(**{key: 0.1}), [])
        assert not verdict.passed and verdict.reasons[0].startswith("not enough evidence"), key
