"""A base at chance has no skill to lose: neither the report nor a guard counts what it only guesses."""

from __future__ import annotations

from dataclasses import replace

from evals_fakes import result_of

from inlay.evals.forgetting import compare
from inlay.evals.guards import judge
from inlay.evals.scoring import EvalResult, to_record
from inlay.evals.suites import Item, Suite
from inlay.registry import Evidence, Guard, Registry
from inlay.registry.evidence import _guess, _items

KNOWN, GUESSED = 440, 60
SUITE = Suite(
    "s",
    (
        *(Item(f"k{n}", f"Say {n}", f"{n}", "known") for n in range(KNOWN)),
        *(
            Item(f"g{n}", f"Which, {n}?", "yes", "guessed", choices=("yes", "no"), metric="multiple_choice")
            for n in range(GUESSED)
        ),
    ),
)


def scored(guessed_right: int, *, last: bool = False, subject: str = "base") -> EvalResult:
    """All known items right, and so many of the guessed ones: the first, or the last."""
    first = 0 if not last else GUESSED - guessed_right
    right = [first <= n < first + guessed_right for n in range(GUESSED)]
    return result_of(SUITE, [True] * KNOWN + right, subject=subject)


def test_flips_among_guesses_are_not_in_the_report() -> None:
    # A base at 50% on two choices, and a model at 50% on others: 60 flips that mean nothing.
    report = compare(scored(30), scored(30, last=True, subject="m"))
    assert report.unreached == ("guessed",)
    assert (report.held_out.n, report.held_out.lost, report.held_out.gained) == (KNOWN, 0, 0)
    assert report.flips == ()
    # At 36 of 60 a tenth beyond guessing is reached: (36 - 30) / 30 is two tenths.
    report = compare(scored(36), scored(24, last=True, subject="m"))
    assert report.unreached == () and report.held_out.lost == 36 and report.held_out.gained == 24


def test_a_guard_judges_by_the_same_items(store: Registry) -> None:
    base, model = scored(30), replace(scored(0, subject="m"), subject="sha256:" + "c" * 64)
    store.put_suite("s", SUITE.digest, SUITE.to_jsonl(), metric=SUITE.metric, skills=SUITE.skill_summary())
    row = store.suite("s")
    guesses = tuple(map(_guess, _items(store._store, row)))
    assert guesses == tuple(item.guess for item in SUITE.items) == (0.0,) * KNOWN + (0.5,) * GUESSED
    evidence = Evidence(
        role="general",
        suite="s",
        candidate=to_record(model),
        base=to_record(base),
        current=None,
        held_out=(True,) * len(SUITE),
        subject="m@v1",
        skills=tuple(item.skill for item in SUITE.items),
        guesses=guesses,
    )
    guard = Guard(forget=0.05, suites={"general": ("s",)})
    verdict = judge(guard, [evidence])
    assert verdict.passed and verdict.checks[0]["unreached"] == ["guessed"]
    assert verdict.checks[0]["n"] == KNOWN
    without = judge(guard, [replace(evidence, guesses=())])
    assert not without.passed  # taken for a skill, the guesses would count as 30 items lost
