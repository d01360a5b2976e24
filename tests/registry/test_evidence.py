"""Suites, scores and reports: kept for good, found again, never quietly replaced."""

from __future__ import annotations

from dataclasses import replace

import pytest
from registry_fakes import put_suite, score

from inlay.errors import InputError, IntegrityError, ReferenceNotFound
from inlay.registry import EvalRecord, Registry, digest_of


def test_a_suite_comes_back_by_name_and_by_digest(three: Registry) -> None:
    first = put_suite(three, "general", n=3)
    assert put_suite(three, "general", n=3) == first
    second = put_suite(three, "general", n=5)
    assert three.suite("general").digest == second
    assert three.suite(first).n == 3
    assert [s.name for s in three.suites()] == ["general"]
    assert three.get_object(three.suite(second).items).count(b"\n") == 5
    assert digest_of(three.get_object(three.suite(second).items)) == second
    with pytest.raises(ReferenceNotFound, match="did you mean general"):
        three.suite("genral")
    with pytest.raises(InputError, match="a suite's digest is that of its items"):
        three.put_suite("copy", first, b"{}\n", metric="exact_match/1", skills={})


def test_an_eval_is_kept_once_and_for_good(three: Registry) -> None:
    put_suite(three, "general")
    kept = score(three, "legal@v1", "general", (True, False, True, True))
    assert kept.created
    assert three.evals("legal@v1") == [kept]
    assert score(three, "legal@v1", "general", (True, False, True, True)) == kept
    with pytest.raises(IntegrityError, match=r"scored before .* with 0\.7500, now with 0\.5000"):
        score(three, "legal@v1", "general", (True, False, True, False))
    other = score(three, "legal@v1", "general", (True, False, True, False), protocol={"template": "few-shot"})
    assert three.evals("legal@v1", "general") == [other, kept]
    assert other.key != kept.key and not other.comparable(kept)


def test_evals_are_found_by_what_they_are_about(three: Registry) -> None:
    put_suite(three, "general")
    put_suite(three, "legal-suite", n=2)
    one = score(three, "legal@v1", "general", (True,) * 4)
    two = score(three, "legal@v2", "legal-suite", (True, False))
    base = score(three, "base", "general", (False,) * 4)
    assert three.evals() == [base, two, one]
    assert three.evals(limit=1) == [base]
    assert three.evals("base") == [base]
    assert three.evals(suite="general") == [base, one]
    assert three.evals(suite=three.suite("legal-suite").digest) == [two]
    assert three.evals(three.resolve("legal@v1").digest, protocol=one.protocol) == [one]
    assert three.evals(base_weights="sha256:" + "0" * 64) == []
    assert one.comparable(base)


def test_outcomes_come_back_as_they_were(three: Registry) -> None:
    put_suite(three, "general", n=3)
    template = score(three, "legal@v1", "general", (True, False, True))
    graded = replace(template, subject=three.resolve("legal@v2").digest, outcomes=(0.25, 1.0, 0.5))
    three.put_eval(graded)
    assert three.evals("legal@v2")[0].outcomes == (0.25, 1.0, 0.5)
    assert three.evals("legal@v1")[0].outcomes == (True, False, True)
    assert all(isinstance(o, bool) for o in three.evals("legal@v1")[0].outcomes)


def test_bad_evals_are_refused(three: Registry) -> None:
    put_suite(three, "general")
    good = score(three, "legal@v1", "general", (True,) * 4)
    with pytest.raises(InputError, match="digest or base"):
        three.put_eval(replace(good, subject="legal@v1"))
    with pytest.raises(InputError, match="finite"):
        three.put_eval(replace(good, subject="base", score=float("nan")))
    with pytest.raises(InputError, match="one outcome for each"):
        EvalRecord(**{**vars(good), "n": 9})


def test_reports(three: Registry) -> None:
    three.put_report("legal@v1", "forgetting", {"lost": 0.1})
    three.put_report("legal@v1", "forgetting", {"lost": 0.2})
    three.put_report(three.resolve("legal@v1").digest, "blame", {"who": ["style@v1"]})
    assert three.reports("legal@v1", "forgetting") == [{"lost": 0.2}, {"lost": 0.1}]
    assert three.reports("legal@v1", limit=1) == [{"who": ["style@v1"]}]
    assert three.reports("legal@v2") == []
    with pytest.raises(InputError, match="plain JSON"):
        three.put_report("legal@v1", "forgetting", {"lost": float("inf")})
