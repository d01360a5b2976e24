"""What a guard's wider thresholds are judged by: perturbed suites, members, times, alarms."""

from __future__ import annotations

import json
from typing import Any

import pytest
from registry_fakes import put_suite, score, snapshot

from inlay.errors import GuardRefused, InputError
from inlay.evals.guards import judge
from inlay.registry import Evidence, Guard, Registry, Verdict, digest_of

TARGET = {"target": ["legal-suite"]}
SUITES = {"general": ["general"], **TARGET}


class Seen:
    """A judge that lets everything pass and keeps what it was shown."""

    def __init__(self) -> None:
        self.guard = Guard()
        self.evidence: list[Evidence] = []

    def __call__(self, guard: Guard, evidence: list[Evidence]) -> Verdict:
        self.guard, self.evidence = guard, evidence
        return Verdict(True, [])


@pytest.fixture
def seen(three: Registry, monkeypatch: pytest.MonkeyPatch) -> Seen:
    put_suite(three, "general")
    put_suite(three, "legal-suite", held_out=False)
    watching = Seen()
    monkeypatch.setattr(Registry, "judge", watching)
    return watching


def put_rows(registry: Registry, name: str, rows: list[dict[str, Any]]) -> str:
    items = "".join(json.dumps(row) + "\n" for row in rows).encode()
    registry.put_suite(name, digest_of(items), items, metric="exact_match/1", skills={})
    return digest_of(items)


def rigid_rows(count: int = 4, name: str = "legal-suite") -> list[dict[str, Any]]:
    """Two perturbed forms of the first items of the suite."""
    return [
        {"id": f"{name}-{k}~{kind}", "prompt": "?", "answer": "!", "cluster": f"{name}-{k}", "slice": kind}
        for k in range(count)
        for kind in ("typo", "case")
    ]


def test_items_say_their_skill_and_cluster(three: Registry, seen: Seen) -> None:
    rows = [{"id": "a", "skill": "sort", "cluster": "t1"}, {"id": "b", "skill": "sort"}, {"id": "c"}]
    put_rows(three, "mixed", rows)
    three.set_guard("legal@prod", {"forget": 0.1, "suites": {"general": ["mixed"]}})
    three.promote("legal@v1", "prod")
    (entry,) = seen.evidence
    assert entry.skills == ("sort", "sort", "all")
    assert entry.clusters == ("t1", None, None) and entry.held_out is None


def test_rigidity_is_shown_the_perturbed_form_under_the_same_protocol(three: Registry, seen: Seen) -> None:
    digest = put_rows(three, "legal-suite--rigid", rigid_rows(3))
    three.set_guard("legal@prod", {"rigidity": 0.1, "suites": TARGET})
    assert three.guard("legal", "prod").pinned["legal-suite--rigid"] == digest  # type: ignore[union-attr]
    score(three, "legal@v1", "legal-suite", (True, True, False, True))
    score(three, "legal@v1", "legal-suite--rigid", (True,) * 6, protocol={"template": "other"})
    three.promote("legal@v1", "prod")
    assert seen.evidence[0].perturbed is not None and seen.evidence[0].perturbed.record is None
    kept = score(three, "legal@v1", "legal-suite--rigid", (True, False) * 3)
    three.verdict("legal@v1", "prod")
    form = seen.evidence[0].perturbed
    assert form is not None and form.record == kept and form.digest == digest
    assert form.sources == (0, 0, 1, 1, 2, 2)
    assert form.clusters[:3] == ("legal-suite-0", "legal-suite-0", "legal-suite-1")


def test_a_perturbed_suite_of_other_items_does_not_count(three: Registry, seen: Seen) -> None:
    three.set_guard("legal@prod", {"rigidity": 0.1, "suites": TARGET})  # before there is a perturbed form
    score(three, "legal@v1", "legal-suite", (True,) * 4)
    put_rows(three, "legal-suite--rigid", rigid_rows(4, "another"))
    score(three, "legal@v1", "legal-suite--rigid", (True,) * 8)
    three.promote("legal@v1", "prod")
    assert seen.evidence[0].perturbed is not None and seen.evidence[0].perturbed.record is None
    put_rows(three, "legal-suite--rigid", rigid_rows(4))
    kept = score(three, "legal@v1", "legal-suite--rigid", (False,) * 8)
    three.verdict("legal@v1", "prod")
    assert seen.evidence[0].perturbed.record == kept


def test_retention_is_shown_each_member_once(three: Registry, seen: Seen) -> None:
    lock = three.lock("acme", {"stack": ["legal@v1", {"merge": ["style@v1", "legal@v1"]}]})
    three.set_guard("acme@prod", {"retention": 0.8, "suites": TARGET})
    score(three, lock.ref, "legal-suite", (True,) * 4)
    one = score(three, "legal@v1", "legal-suite", (True, True, False, True))
    score(three, "style@v1", "legal-suite", (False,) * 4, protocol={"template": "other"})
    three.promote(lock.ref, "prod")
    assert dict(seen.evidence[0].members) == {"legal@v1": one, "style@v1": None}
    three.set_guard("legal@prod", {"retention": 0.8, "suites": TARGET})
    three.promote("legal@v1", "prod")
    assert seen.evidence[0].members == ()


def test_overhead_is_the_newest_report_on_this_base(three: Registry, seen: Seen) -> None:
    three.set_guard("legal@prod", {"overhead": 0.3})
    three.promote("legal@v1", "prod")
    (entry,) = seen.evidence
    assert (entry.role, entry.report) == ("overhead", None)
    weights = three.resolve("legal@v1").base.weights
    for extra in (0.5, 0.1):
        three.put_report("legal@v1", "overhead", {"base_weights": weights, "extra_time": {"upper": extra}})
    three.put_report("legal@v1", "overhead", {"base_weights": "sha256:other", "extra_time": {"upper": 0.0}})
    three.verdict("legal@v1", "prod")
    (entry,) = seen.evidence
    assert entry.report is not None and entry.report["extra_time"] == {"upper": 0.1}
    assert three.get_object(entry.digest).startswith(b'{"base_weights"')


def test_an_alarm_is_shown_until_the_general_skills_were_measured(three: Registry, seen: Seen) -> None:
    three.set_guard("legal@prod", {"gain": 0.1, "suites": TARGET})
    three.put_report("legal@v1", "alarm", {"raised": False, "said": "No alarm."})
    three.promote("legal@v1", "prod")
    assert [entry.role for entry in seen.evidence] == ["target"]
    at_load = {"levels": {"load": ["drift"], "registration": []}, "alarm": {"raised": True, "said": "Alarm."}}
    three.put_report("legal@v1", "forgetting", at_load)
    three.verdict("legal@v1", "prod")
    assert [entry.role for entry in seen.evidence] == ["target", "alarm"]
    assert seen.evidence[1].report == at_load["alarm"] and seen.evidence[1].subject == "legal@v1"
    three.put_report("legal@v1", "forgetting", {**at_load, "levels": {"registration": ["general"]}})
    three.verdict("legal@v1", "prod")
    assert [entry.role for entry in seen.evidence] == ["target"]


WIDE = {
    "skill": {"sort": 0.1, "*": 0.2},
    "gain": {"legal-suite": 3.5},
    "regress": 0.02,
    "rigidity": 0.1,
    "retention": 0.8,
    "overhead": 1.5,
    "suites": {"general": ["general"], "target": ["legal-suite"]},
}


def test_the_wider_thresholds_are_kept_and_read_again(three: Registry, seen: Seen) -> None:
    three.set_guard("legal@prod", WIDE)
    guard = three.guard("legal", "prod")
    assert guard is not None and Guard.of(guard.to_dict()) == guard
    assert {key: guard.to_dict()[key] for key in WIDE} == WIDE
    assert (guard.limit("skill", "sort"), guard.limit("skill", "copy")) == (0.1, 0.2)
    assert (guard.limit("gain", "legal-suite"), guard.limit("gain", "other")) == (3.5, None)
    assert guard.limit("regress", "other") == 0.02
    lock = three.lock("acme", {"stack": ["legal@v1"], "guard": WIDE})
    assert {key: lock.guard[key] for key in WIDE} == WIDE  # type: ignore[index]


def test_the_stricter_of_two_asks_for_both() -> None:
    one = Guard.of({**WIDE, "retention": 0.5, "overhead": 0.1})
    other = Guard.of(
        {"skill": 0.15, "gain": {"*": 0.1}, "rigidity": 0.05, "retention": 0.9, "overhead": 0.3,
         "suites": {"general": ["general"], "target": ["more"]}}
    )  # fmt: skip
    strict = one.stricter(other)
    assert strict.skill == {"sort": 0.1, "*": 0.15}
    assert strict.gain == {"legal-suite": 3.5, "*": 0.1}
    assert (strict.regress, strict.rigidity, strict.retention, strict.overhead) == (0.02, 0.05, 0.9, 0.1)
    assert other.stricter(one).to_dict() | {"suites": 0} == strict.to_dict() | {"suites": 0}
    assert one.stricter(None) == one


@pytest.mark.parametrize(
    ("guard", "said"),
    [
        ({"skill": 0.1, "suites": TARGET}, "a guard with skill needs general suites"),
        ({"rigidity": 0.1, "suites": {"general": ["general"]}}, "a guard with rigidity needs target suites"),
        ({"retention": 1.1, "suites": TARGET}, "retention must be between 0 and 1, got 1.1"),
        ({"overhead": 101}, "overhead must be between 0 and 100"),
        ({"overhead": {"*": 1}}, "overhead must be a number"),
        ({"skill": {}, "suites": SUITES}, "skill must be a number or map 1 to 256 names of a skill"),
        ({"skill": {3: 0.1}, "suites": SUITES}, "names of a skill"),
        ({"skill": {"sort": 2}, "suites": SUITES}, "skill.sort must be between 0 and 1"),
        ({"gain": {"legal-suite": -1}, "suites": SUITES}, "gain.legal-suite must be at least 0"),
        ({"gain": {"general": 0.1}, "suites": SUITES}, "'general', which is no target suite of the guard"),
        ({"gain": {"legal-suite": float("inf")}, "suites": SUITES}, "must be at least 0, got"),
    ],
)
def test_bad_wider_guards_are_refused(guard: Any, said: str, three: Registry, seen: Seen) -> None:
    before = snapshot(three)
    with pytest.raises(InputError, match=said):
        three.set_guard("legal@prod", guard)
    assert snapshot(three) == before


def test_a_promotion_is_judged_by_all_of_them_and_keeps_what_by(
    three: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Registry, "judge", judge)
    put_suite(three, "general", n=400)
    put_suite(three, "legal-suite", n=100)
    put_rows(three, "legal-suite--rigid", rigid_rows(100))
    lock = three.lock("acme", {"stack": ["legal@v1", "style@v1"]})
    three.set_guard("acme@prod", {**WIDE, "skill": 0.1, "forget": 0.05, "gain": 0.5, "rigidity": 0.2})
    right = {"base": 10, lock.ref: 90, "legal@v1": 92, "style@v1": 12}
    evals = {ref: score(three, ref, "legal-suite", first(many, 100)) for ref, many in right.items()}
    for ref in ("base", lock.ref):
        score(three, ref, "general", first(390, 400))
    rigid = score(three, lock.ref, "legal-suite--rigid", tuple(k // 2 < 60 for k in range(200)))
    times = {
        "base_weights": lock.base.weights,
        "extra_time": {"estimate": 0.1, "upper": 0.2},
        "device": "cpu",
    }
    digest = three.put_report(lock.ref, "overhead", times)
    with pytest.raises(
        GuardRefused, match=r"loses 30\.0 points on legal-suite where it is asked less neatly"
    ):
        three.promote(lock.ref, "prod")
    kept = three.journal("acme")[0].verdict
    assert kept is not None
    checks = {check["check"]: check for check in kept["checks"]}
    assert sorted(checks) == ["forget", "gain", "overhead", "regress", "retention", "rigidity", "skill"]
    assert [name for name, check in checks.items() if not check["passed"]] == ["rigidity"]
    assert checks["rigidity"]["evidence"]["perturbed"] == rigid.key
    assert checks["overhead"]["evidence"] == {"report": digest}
    members = [check for check in kept["checks"] if check["check"] == "retention"]
    assert [check.get("member_eval") for check in members] == [evals["legal@v1"].key, None]
    assert "style@v1 is not shown to gain" in members[1]["reason"]
    three.set_guard("acme@prod", {**WIDE, "skill": 0.1, "gain": 0.5, "rigidity": 0.4})
    event = three.promote(lock.ref, "prod")
    assert event.verdict is not None and event.verdict["passed"]


def first(right: int, n: int) -> tuple[bool, ...]:
    return tuple(k < right for k in range(n))
