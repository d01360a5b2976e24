"""The forgetting report: held-out items decide; counts, flips and text follow from the outcomes."""

from __future__ import annotations

import io
import json

import pytest
from evals_fakes import result_of, suite_of
from rich.console import Console

from inlay.errors import InputError
from inlay.evals.drift import Drift
from inlay.evals.forgetting import (
    FLIPS_KEPT,
    ForgettingReport,
    compare,
    percent,
    reached_part,
    uninformative,
)
from inlay.evals.statistics import Paired, holm
from inlay.evals.suites import Suite

FIRST_SCHEMA = (
    "subject", "base_weights", "suites", "created", "verdict", "lost", "held_out", "protected", "skills",
    "targets", "flips", "drift",
)  # fmt: skip


def report_of(
    n: int, lost: set[int], gained: set[int] | frozenset[int] = frozenset(), *, label: str = "acme@v2"
) -> ForgettingReport:
    """The base has `gained` wrong, the model `lost`; item k is of skill k % 4, 0 and 1 are held out."""
    suite, target = suite_of(n), suite_of(100, name="acme-support")
    base = result_of(suite, [k not in gained for k in range(n)])
    model = result_of(
        suite,
        [k not in lost for k in range(n)],
        subject=label,
        answers={f"i{k}": f"wrong \x1b[31m[red]{k}" for k in sorted(lost)[:10]},
    )
    return compare(
        base,
        model,
        targets=[
            (
                result_of(target, [False] * 100),
                result_of(target, [k < 90 for k in range(100)], subject=label),
            )
        ],
        drift=Drift(
            items=40, positions=500, forward_kl=0.1, reverse_kl=0.2, disagreement=0.05, nll_change=0.01
        ),
    )


def test_the_verdict_is_about_held_out_items() -> None:
    report = report_of(800, {k for k in range(800) if k % 4 >= 2})  # every protected item lost
    assert report.lost == 0 and report.held_out == Paired(400, 0, 0, 400)
    assert report.protected == Paired(400, 400, 0, 0)
    assert report.verdict.startswith("acme@v2 keeps the held-out general skills (lost: estimate 0.0 points)")
    assert "upper bound 0.7, n=400" in report.verdict


def test_verdict_names_what_was_forgotten() -> None:
    report = report_of(800, {k for k in range(800) if k % 4 < 2 and k < 320}, {799, 797})
    assert report.held_out.lost == 160
    low, high = report.interval
    assert report.verdict == (
        "acme@v2 forgets 39.8 points of held-out general skills: 95% interval "
        f"{percent(low)} to {percent(high)}, upper bound {percent(report.upper)}, n=400, p < 0.001."
    )
    assert report.interval[0] < report.lost < report.upper < report.interval[1]


def test_other_verdicts() -> None:
    better = report_of(800, set(), {k for k in range(80) if k % 4 < 2})
    assert "improves held-out general skills by 10.0 points" in better.verdict
    few = report_of(40, {0, 1})
    assert "is not shown to keep the held-out general skills (lost: estimate 10.0)" in few.verdict
    lucky = report_of(400, set())  # no flip, and the bound is under five points, on 200 items
    assert lucky.upper < 0.05 and "is not shown to keep" in lucky.verdict
    only_protected = compare(*(result_of(suite_of(8, held_out=0), [True] * 8) for _ in range(2)))
    assert "no item is held out" in only_protected.verdict


def test_skills_are_adjusted_and_sorted() -> None:
    report = report_of(800, set(range(0, 200, 4)) | {1})
    assert [s.name for s in report.skills] == ["skill0", "skill1", "skill2", "skill3"]
    assert [s.counts.lost for s in report.skills] == [50, 1, 0, 0]
    assert [s.p_adjusted for s in report.skills] == pytest.approx(holm([s.p for s in report.skills]))
    assert report.skills[0].p_adjusted == pytest.approx(4 * report.skills[0].p)
    assert sum((s.counts for s in report.skills), Paired(0, 0, 0, 0)) == report.held_out + report.protected


def test_flips_are_bounded_and_readable() -> None:
    report = report_of(800, set(range(300)))
    assert len(report.flips) == FLIPS_KEPT
    first = report.flips[0]
    assert (first.id, first.prompt, first.expected, first.held_out) == ("i0", "q0", "a0", True)
    assert first.model_answer == "wrong \x1b[31m[red]0"
    assert report.flips[-1].model_answer is None


def test_gains_stand_beside_losses() -> None:
    (target,) = report_of(80, set()).targets
    assert (target.suite, target.counts.delta) == ("acme-support", 0.9)


def test_round_trip_through_json() -> None:
    report = report_of(400, {0, 2, 5}, {9})
    again = ForgettingReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again == report and again.verdict == report.verdict
    with pytest.raises(InputError, match="schema 2, got 3"):
        ForgettingReport.from_dict({**report.to_dict(), "schema": 3})


def test_a_report_of_the_first_schema_is_still_read() -> None:
    written = report_of(400, {0, 2, 5}, {9}).to_dict()
    old = {key: value for key, value in written.items() if key in FIRST_SCHEMA} | {"schema": 1}
    for counts in (old["held_out"], old["protected"], *(row["counts"] for row in old["skills"])):
        del counts["clusters"]
    for flip in old["flips"]:
        del flip["base_answer"]
    again = ForgettingReport.from_dict(json.loads(json.dumps(old)))
    assert again.verdict == written["verdict"] and again.slices == () and again.alarm is None


def test_several_suites_are_pooled() -> None:
    one, two = suite_of(40), suite_of(80, name="other")
    report = compare(
        [result_of(one, [True] * 40), result_of(two, [True] * 80)],
        [result_of(one, [False] * 40, subject="m"), result_of(two, [True] * 80, subject="m")],
    )
    assert report.suites == ("general-v1", "other")
    assert report.held_out == Paired(60, 20, 0, 40)


ROWS = [
    {
        "id": f"i{k}", "prompt": f"q{k}", "answer": f"a{k}", "skill": f"skill{k % 4}",
        "split": "held_out" if k % 2 else "protected", "cluster": f"t{k // 8}",
        "slice": "long" if k < 80 else "short",
    }
    for k in range(400)
]  # fmt: skip
CLUSTERED = Suite.of_rows("general-v1", ROWS)


def test_clusters_decide_the_verdict() -> None:
    base = result_of(CLUSTERED, [True] * 400)
    whole = compare(base, result_of(CLUSTERED, [k >= 32 for k in range(400)], subject="m"))
    spread = compare(base, result_of(CLUSTERED, [k % 25 > 1 for k in range(400)], subject="m"))
    assert whole.held_out.clusters == ((4, -4, 4), (4, 0, 46))
    assert whole.lost == spread.lost == 0.08
    assert whole.upper > spread.upper > Paired(200, 16, 0, 184).loss_upper
    assert "n=200 (50 clusters, worth 49 items), p = 0.125" in whole.verdict
    again = ForgettingReport.from_dict(json.loads(json.dumps(whole.to_dict())))
    assert again == whole
    methods = whole.to_dict()["methods"]
    assert methods["held_out"] == "Tango's score interval; 200 items in 50 clusters count as 49"
    assert set(methods["skills"]) == {"skill1", "skill3", "skill0 (protected)", "skill2 (protected)"}
    assert set(methods["slices"]) == {"long", "short", "long (protected)", "short (protected)"}


def test_slices_stand_beside_skills_and_are_adjusted_apart() -> None:
    base = result_of(CLUSTERED, [True] * 400)
    report = compare(base, result_of(CLUSTERED, [k >= 32 for k in range(400)], subject="m"))
    first = report.slices[0]
    assert (first.name, first.held_out, first.counts.lost, first.counts.n) == ("long", True, 16, 40)
    assert [s.p_adjusted for s in report.slices] == pytest.approx(holm([s.p for s in report.slices]))
    assert len(report.slices) == 4 and len(report.skills) == 4
    assert report.levels["registration"] == ("general", "slices")
    assert compare(base, base).levels["load"] == ()


def test_what_the_base_cannot_do_is_not_counted() -> None:
    suite = suite_of(800)
    can = [k % 4 != 0 or k % 40 == 0 for k in range(800)]  # a tenth of skill0
    can_not = [k % 4 != 0 for k in range(800)]
    after = [False] * 800
    assert compare(result_of(suite, can), result_of(suite, after, subject="m")).unreached == ()
    report = compare(result_of(suite, can_not), result_of(suite, [k == 4 for k in range(800)], subject="m"))
    assert report.unreached == ("skill0",)
    assert report.held_out == Paired(200, 200, 0, 0)  # of skill1 alone, undiluted
    assert [skill.name for skill in report.skills] == ["skill1", "skill2", "skill3"]
    assert report.gained == ()
    nothing = compare(result_of(suite, after), result_of(suite, after, subject="m"))
    assert "the base can do none of the held-out skills" in nothing.verdict


def test_flips_both_ways_with_both_answers() -> None:
    suite = suite_of(8, skills=2, held_out=1)
    base = result_of(suite, [True] * 7 + [False], answers={"i0": "a0", "i7": "before"})
    model = result_of(suite, [False] + [True] * 7, subject="m", answers={"i0": "oops", "i7": "a7"})
    report = compare(base, model)
    (lost,), (won,) = report.flips, report.gained
    assert (lost.id, lost.base_answer, lost.model_answer) == ("i0", "a0", "oops")
    assert (won.id, won.base_answer, won.model_answer) == ("i7", "before", "a7")


def test_graded_suites_are_rows_in_their_unit() -> None:
    rows = [dict(row, metric="token_f1") for row in ROWS]
    suite = Suite.of_rows("wiki", rows)
    base = result_of(suite, [0.8] * 400)
    model = result_of(suite, [0.7 if k % 2 else 0.9 for k in range(400)], subject="m")
    plain = result_of(CLUSTERED, [True] * 400)
    report = compare([plain, base], [plain, model], targets=[(base, model)])
    general, target = report.graded
    assert (general.role, target.role, general.suite, general.metric) == (
        "general", "target", "wiki", "token_f1/1",
    )  # fmt: skip
    assert general.means.delta == pytest.approx(-0.1) and general.means.n == 200  # held-out items only
    assert target.means.delta == pytest.approx(0.0) and target.means.units == 50
    assert report.held_out.n == 200 and report.targets == ()
    again = ForgettingReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again == report
    alone = compare(base, model)
    assert alone.verdict.startswith("m: wiki loses 0.1 of token_f1/1 (95% interval of the loss ")


def test_what_cannot_be_compared() -> None:
    suite = suite_of(8)
    base = result_of(suite, [True] * 8)
    with pytest.raises(InputError, match="compared with its own base"):
        compare(base, result_of(suite, [True] * 8, weights="sha256:other"))
    with pytest.raises(InputError, match="one suite and metric"):
        compare(base, result_of(suite_of(9), [True] * 9))
    with pytest.raises(InputError, match="got 1 and 0"):
        compare([base], [])


def test_uninformative_where_plain_lora_hardly_forgets() -> None:
    sentence = uninformative(Paired(400, 8, 0, 392))
    assert sentence is not None and "uninformative: plain LoRA loses 2.0 points" in sentence
    assert uninformative(Paired(400, 200, 0, 200)) is None
    assert uninformative(report_of(800, {k for k in range(800) if k % 4 < 2})) is None


@pytest.mark.parametrize("lost", [set(), set(range(1000)), {0, 1, 2}])
def test_text_fits_80_columns_and_obeys_nobody(lost: set[int]) -> None:
    out = io.StringIO()
    report_of(1000, lost, label="team/a-rather-long-adapter-name@v12").print(
        Console(file=out, width=80, force_terminal=False)
    )
    text = out.getvalue()
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "…" not in "".join(line for line in text.splitlines() if "held out (verdict)" in line)
    assert "\x1b" not in text
    if lost:
        assert "[red]" in text  # shown, not interpreted


def test_percent_has_no_negative_zero() -> None:
    assert [percent(x) for x in (0.412, -0.0001, 1.0)] == ["41.2", "0.0", "100.0"]


def test_what_can_be_lost_is_held_out_and_of_a_skill_that_the_base_has() -> None:
    suite = suite_of(80, skills=4, held_out=3)
    lacked = suite.skills[1]
    base = result_of(suite, [item.skill != lacked for item in suite.items], subject="base")
    (part,) = reached_part([base])
    assert [item.id for item in part.suite.items] == [
        item.id for item in suite.items if item.held_out and item.skill != lacked
    ]
    assert len(part.outcomes) == 40 and all(part.outcomes)
    assert reached_part([result_of(suite, [False] * 80, subject="base")]) == []
