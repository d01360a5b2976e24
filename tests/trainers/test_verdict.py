"""The verdict: what it decides, in which words, and the statistics under it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from evals_fakes import result_of, suite_of

from inlay.evals import Suite
from inlay.evals.earlier_tasks import EarlierTasks, Task
from inlay.evals.forgetting import ForgettingReport, compare
from inlay.evals.means import PairedMeans
from inlay.evals.rigidity import Part, Rigidity, Row
from inlay.evals.scoring import EvalResult
from inlay.evals.statistics import Paired, holm
from inlay.trainers.baselines import BAG_OF_WORDS, BASE, FEW_SHOT, Baseline, Baselines
from inlay.trainers.imported import Imported
from inlay.trainers.verdict import Verdict, judge, newcombe

N = 200
TARGET = suite_of(N, name="tickets")
GENERAL = suite_of(800, skills=2, held_out=1)


def right(share: float, n: int = N) -> list[bool]:
    """The first `share` of the items right."""
    return [k < round(share * n) for k in range(n)]


def adapter(share: float) -> EvalResult:
    return result_of(TARGET, right(share), subject="tickets@v1")


def baselines(**shares: float) -> Baselines:
    kinds = {"base": BASE, "few_shot": FEW_SHOT, "words": BAG_OF_WORDS}
    rows = [
        Baseline.of(kinds[kind], kinds[kind], result_of(TARGET, right(share)), {})
        for kind, share in shares.items()
    ]
    return Baselines(tuple(rows))


def forgetting(lost: int = 0, general: Suite = GENERAL) -> ForgettingReport:
    """`lost` of the held-out items, right before, wrong now."""
    held = [index for index, item in enumerate(general.items) if item.held_out]
    gone = set(held[:lost])
    after = [index not in gone for index in range(len(general))]
    return compare(result_of(general, [True] * len(general)), result_of(general, after, subject="tickets@v1"))


def verdict(share: float, lost: int = 0, minimum: float | None = None, **shares: float) -> Verdict:
    return judge("tickets@v1", [adapter(share)], baselines(**shares), forgetting(lost), minimum=minimum)


def test_what_beats_everything_and_keeps_its_manners_is_shipped() -> None:
    said = verdict(0.9, base=0.1, few_shot=0.5, words=0.7, minimum=0.8)
    assert said.decision == "ship"
    assert said.sentences[0].startswith(
        "Ship tickets@v1: it beats all it was compared with, of which the bag of words comes nearest on "
        "tickets (the adapter is ahead by 20.0 points, 95% interval "
    )
    assert any("scores 90.0% on tickets" in sentence for sentence in said.sentences)
    assert any("forgets 0.0 points" in sentence and "n=400" in sentence for sentence in said.sentences)
    assert {each.standing for each in said.comparisons} == {"better"}


@pytest.mark.parametrize("kind", ["base", "few_shot", "words"])
def test_what_a_baseline_does_as_well_is_not_shipped(kind: str) -> None:
    level = verdict(0.9, **{"base": 0.1, "few_shot": 0.5, "words": 0.5, kind: 0.89})
    assert level.decision == "do not ship"
    names = {"base": "the base alone", "few_shot": "the few-shot prompt", "words": "the bag of words"}
    low, high = Paired.of(right(0.89), right(0.9)).interval
    assert level.sentences[0] == (
        f"Do not ship tickets@v1: {names[kind]} is within noise of it on tickets (the adapter is ahead by "
        f"1.0 points, 95% interval {100 * low:.1f} to {100 * high:.1f}, n=200)."
    )
    behind = verdict(0.5, **{"base": 0.1, "few_shot": 0.1, "words": 0.1, kind: 0.9})
    assert behind.decision == "do not ship" and f"{names[kind]} does better than it" in behind.sentences[0]
    assert "behind by 40.0 points, 95% interval 3" in behind.sentences[0]


def test_few_items_are_no_evidence_of_a_tie_but_are_of_a_gain() -> None:
    suite = suite_of(40, name="few")
    mine = result_of(suite, right(0.6, 40), subject="a@v1")

    def against(share: float) -> Verdict:
        row = Baseline.of(FEW_SHOT, FEW_SHOT, result_of(suite, right(share, 40)), {})
        return judge("a@v1", [mine], Baselines((row,)), forgetting())

    assert against(0.55).decision == "not enough evidence"
    assert "40 items are too few to tell" in against(0.55).sentences[0]
    assert against(0.1).decision == "ship"


def test_minimum_and_forgetting() -> None:
    below = verdict(0.8, base=0.1, minimum=0.9)
    assert below.decision == "do not ship"
    assert "it scores 80.0% on tickets" in below.sentences[0]
    assert "below the 90.0% declared before training" in below.sentences[0]
    close = verdict(0.9, base=0.1, minimum=0.88)
    assert close.decision == "ship" and any("though not surely so" in s for s in close.sentences)
    much = verdict(0.9, base=0.1, lost=80)
    assert much.decision == "do not ship" and "it forgets 20.0 points of held-out" in much.sentences[0]
    perhaps = verdict(0.9, base=0.1, lost=22)
    assert perhaps.decision == "do not ship" and "though not surely more" in perhaps.sentences[0]
    unsure = verdict(0.9, base=0.1, lost=16)  # 4 points, with an upper bound over 5
    assert unsure.decision == "not enough evidence"
    assert "that this is at most 5.0 points is not shown" in unsure.sentences[0]
    kept = verdict(0.9, base=0.1, lost=4)
    assert kept.decision == "ship"
    small = judge("a@v1", [adapter(0.9)], baselines(base=0.1), forgetting(0, suite_of(200)))
    assert small.decision == "not enough evidence" and "asks for 400 items" in small.sentences[0]
    wider = judge("a@v1", [adapter(0.9)], baselines(base=0.1), forgetting(16), allowed=0.1)
    assert wider.decision == "ship"


def test_nothing_declared_and_nothing_to_forget() -> None:
    nothing = judge("a@v1", [], Baselines(), forgetting())
    assert nothing.decision == "not enough evidence" and "no target suite" in nothing.sentences[0]
    never = [False] * len(GENERAL)
    unable = compare(result_of(GENERAL, never), result_of(GENERAL, never, subject="a@v1"))
    said = judge("a@v1", [adapter(0.9)], baselines(base=0.1), unable)
    assert said.decision == "ship" and any("nothing to forget" in sentence for sentence in said.sentences)


@pytest.mark.parametrize(("gained", "decision"), [(40, "ship"), (3, "do not ship")])
def test_rigid_is_what_beats_the_base_only_when_asked_neatly(gained: int, decision: str) -> None:
    lost = Paired(150, 90, 0, 45)
    row = Row("all kinds", Paired(150, 2, 0, 8), lost, Paired(150, 2, gained, 5))
    rigid = Rigidity("a@v1", "w", (Part("target", ("tickets",), 150, (row,)),)).to_dict()
    said = judge("a@v1", [adapter(0.9)], baselines(base=0.1), replace(forgetting(), rigidity=rigid))
    assert said.decision == decision
    words = "it holds" if decision == "ship" else "it is rigid"
    assert any(words in s and "loses 60.0 points to typos" in s for s in said.sentences)
    if decision != "ship":
        assert "it is rigid" in said.sentences[0]


@pytest.mark.parametrize(
    ("n", "lost", "decision"),
    [(400, 4, "ship"), (40, 1, "not enough evidence"), (400, 40, "do not ship")],
)
def test_what_the_version_before_it_could_do_counts(n: int, lost: int, decision: str) -> None:
    task = Task("clauses", "sha256:x", "exact_match/1", "tickets@v1", False, Paired(n, lost, 0, n - lost))
    earlier = EarlierTasks("tickets@v2", "tickets@v1", ("tickets@v1", "tickets@v2"), (task,))
    assert EarlierTasks.from_dict(earlier.to_dict()) == earlier
    report = replace(forgetting(0), earlier=earlier.to_dict())
    said = judge("tickets@v2", [adapter(0.9)], baselines(base=0.1), report)
    assert said.decision == decision
    assert f"it loses {100 * lost / n:.1f} points of tickets@v1's tasks" in str(said)


def test_p_is_adjusted_over_all_paired_comparisons() -> None:
    """Each figure against the statistic called by itself; scores from elsewhere take no part."""
    rows = Baselines(
        (
            *baselines(base=0.83, few_shot=0.86, words=0.87).rows,
            Baseline.imported(Imported("people", 0.95, 60), TARGET),
        )
    )
    said = judge("a@v1", [adapter(0.9)], rows, forgetting())
    counts = [Paired.of(right(share), right(0.9)) for share in (0.83, 0.86, 0.87)]
    adjusted = holm([pair.p_value for pair in counts])
    for each, pair, p in zip(said.comparisons, counts, adjusted, strict=False):
        assert (each.delta, each.low, each.high) == (pair.delta, *pair.interval)
        assert (each.p, each.p_adjusted) == (pair.p_value, p)
    # 0.87 against 0.90: 6 flips all one way, p 0.031 alone and after Holm.
    assert said.comparisons[2].p == pytest.approx(2 / 2**6)
    people = said.comparisons[3]
    assert (people.low, people.high) == newcombe(180, 200, 57, 60) and people.n == 60
    assert said.sentences[-1].startswith("Imported: people is within noise of it on tickets")
    assert said.decision == "ship"


def test_a_score_from_elsewhere_decides_nothing() -> None:
    rows = Baselines(
        (
            *baselines(base=0.1).rows,
            Baseline.imported(Imported("people", 0.99, 500), TARGET),
            Baseline.imported(Imported("rules", 0.2), TARGET),
        )
    )
    said = judge("a@v1", [adapter(0.8)], rows, forgetting())
    assert said.decision == "ship"
    assert "Imported: people is above it" in str(said) and "of unknown certainty" in str(said)
    assert said.comparisons[2].low is None and said.comparisons[2].standing == "unknown"


def test_newcombe_gives_the_published_interval() -> None:
    """Newcombe 1998, table II, method 10: (a) 56/70 − 48/80, (g) 10/10 − 0/20."""
    assert newcombe(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert newcombe(10, 10, 0, 20) == pytest.approx((0.6791, 1.0), abs=5e-5)


def test_graded_suites_are_compared_by_means_and_in_their_direction() -> None:
    suite = Suite.of_rows(
        "nats", [{"prompt": f"p{k}", "answer": "a"} for k in range(120)], metric="perplexity"
    )
    base = [2.0 + 0.01 * (k % 7) for k in range(120)]
    mine = [1.0 + 0.01 * (k % 5) for k in range(120)]
    before = replace(result_of(TARGET, right(0.1)), suite=suite, outcomes=tuple(base))
    after = replace(before, outcomes=tuple(mine), subject="a@v1", label="a@v1")
    said = judge(
        "a@v1", [after], Baselines((Baseline.of(BASE, BASE, before, {}),)), forgetting(), minimum=3.0
    )
    expected = PairedMeans.of(base, mine, higher_is_better=False, span=None)
    (each,) = said.comparisons
    assert (each.delta, each.low, each.high) == (expected.delta, *expected.interval) and each.delta > 0.9
    assert said.decision == "ship" and any("at most the 3 declared" in s for s in said.sentences)
    worse = judge("a@v1", [after], Baselines(), forgetting(), minimum=2.0)
    assert "above the 2 declared before training" in worse.sentences[0]


def test_to_dict_is_plain() -> None:
    kept = verdict(0.9, base=0.1).to_dict()
    assert kept["decision"] == "ship" and kept["comparisons"][0]["standing"] == "better"
