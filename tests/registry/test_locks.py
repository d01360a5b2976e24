"""Locks: pinned for ever, the same digest for the same meaning, at any depth."""

from __future__ import annotations

from pathlib import Path

import pytest
from registry_fakes import make_adapter, make_base, put_suite, snapshot

from inlay.errors import BaseMismatch, InputError, IntegrityError, ReferenceNotFound
from inlay.registry import BaseFingerprint, Registry


def test_a_lock_pins_every_reference(three: Registry) -> None:
    three.promote("legal@v2", "prod")
    recipe = {"stack": ["legal@prod", {"use": "style@v1", "weight": 0.6}]}
    lock = three.lock("acme", recipe, why="first", provenance={"torch": "2.13"})
    legal, style = three.resolve("legal@v2"), three.resolve("style@v1")
    assert (lock.ref, lock.name, lock.number, lock.why, lock.author) == (
        "acme@v1",
        "acme",
        1,
        "first",
        "anna",
    )
    assert lock.tree == {
        "stack": [
            {"use": legal.digest, "name": "legal@v2", "weight": 1.0},
            {"use": style.digest, "name": "style@v1", "weight": 0.6},
        ]
    }
    assert [(m.ref, m.digest, m.weight, m.path) for m in lock.members] == [
        ("legal@v2", legal.digest, 1.0, "stack.0"),
        ("style@v1", style.digest, 0.6, "stack.1"),
    ]
    assert lock.base == legal.base
    assert lock.provenance == {"torch": "2.13"}
    assert three.resolve("acme@v1") == three.resolve(lock.digest) == lock
    three.promote("legal@v3", "prod")
    assert three.resolve("acme@v1") == lock


def test_the_digest_is_the_meaning(three: Registry) -> None:
    one = three.lock("one", "stack: [legal@v1, {use: style@v1, weight: 1}]")
    same = three.lock("two", {"compose": {"stack": ["legal@v1", "style@v1"]}})
    assert one.digest == same.digest
    others = [
        "stack: [style@v1, legal@v1]",
        "stack: [legal@v1, {use: style@v1, weight: 0.9}]",
        "stack: [legal@v1, style@v2]",
        "merge: [legal@v1, style@v1]",
        "{merge: [legal@v1, style@v1], seed: 1}",
        "{merge: [legal@v1, style@v1], energy: 0.9}",
        "{stack: [legal@v1, style@v1], weight: 2}",
        "route: {by: request, experts: [legal@v1, style@v1]}",
        "route: {by: arrow, experts: [legal@v1, style@v1]}",
    ]
    digests = [three.lock("other", recipe).digest for recipe in others]
    assert len({one.digest, *digests}) == len(others) + 1


def test_the_energy_of_a_merge_is_pinned_where_there_is_one(three: Registry) -> None:
    given = three.lock("given", "{merge: [legal@v1, style@v1], energy: 0.9}")
    assert given.tree["energy"] == 0.9
    # Locks from before there was an energy keep their digests.
    assert set(three.lock("plain", "merge: [legal@v1, style@v1]").tree) == {
        "merge", "method", "params", "rank", "seed", "space",
    }  # fmt: skip


def test_the_same_again_is_the_same_lock_until_something_differs(three: Registry) -> None:
    first = three.lock("acme", "stack: [legal@v1]")
    assert three.lock("acme", "stack: [legal@v1]") == first
    put_suite(three, "general")
    guarded = three.lock("acme", "stack: [legal@v1]\nguard: {forget: 0.05, suites: {general: [general]}}")
    assert (guarded.number, guarded.digest) == (2, first.digest)
    assert guarded.guard == {
        "forget": 0.05,
        "suites": {"general": ["general"]},
        "pinned": {"general": three.suite("general").digest},
    }
    assert [lock.number for lock in three.locks("acme")] == [2, 1]


def test_routers_are_objects_and_must_be_there(three: Registry) -> None:
    recipe = {"stack": ["style@v1", {"route": {"by": "probe", "experts": ["legal@v1", "legal@v2"]}}]}
    with pytest.raises(InputError, match=r"needs its router's weights, there are none for 'stack\.1'"):
        three.lock("acme", recipe)
    missing = "sha256:" + "0" * 64
    with pytest.raises(IntegrityError, match="router is missing"):
        three.lock("acme", recipe, routers={"stack.1": missing})
    one, two = three.put_object(b"weights one"), three.put_object(b"weights two")
    with pytest.raises(InputError, match=r"no fitted route at 'stack\.0'"):
        three.lock("acme", recipe, routers={"stack.1": one, "stack.0": two})
    lock = three.lock("acme", recipe, routers={"stack.1": one})
    assert lock.tree["stack"][1]["route"] == {
        "by": "probe",
        "fallback": "base",
        "experts": [
            {"use": three.resolve(f"legal@v{n}").digest, "name": f"legal@v{n}", "weight": 1.0} for n in (1, 2)
        ],
        "router": one,
    }
    assert three.lock("acme", recipe, routers={"stack.1": two}).digest != lock.digest
    assert three.get_object(one) == b"weights one"
    assert three.gc(grace=0) == []
    assert three.fsck() == []


def test_members_share_one_base(three: Registry, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", seed=5)
    three.add("foreign", make_adapter(tmp_path / "f", seed=50), base=other)
    before = snapshot(three)
    with pytest.raises(BaseMismatch, match="all members must share one base"):
        three.lock("acme", {"stack": ["legal@v1", "foreign@v1"]})
    with pytest.raises(BaseMismatch, match=r"legal@v1 is for base .*, not for other"):
        three.lock("acme", {"base": str(other), "compose": {"stack": ["legal@v1"]}})
    assert snapshot(three) == before
    assert three.lock("acme", {"base": str(other), "stack": ["foreign@v1"]}).base.name == "other"


def test_members_with_two_templates_need_a_base_to_be_named(three: Registry, tmp_path: Path) -> None:
    fixed = make_base(tmp_path / "fixed", template="{{ fixed }}")
    three.add("newer", make_adapter(tmp_path / "n", seed=60), base=fixed)
    with pytest.raises(BaseMismatch, match="another tokenizer or chat template"):
        three.lock("acme", {"stack": ["legal@v1", "newer@v1"]})
    lock = three.lock("acme", {"stack": ["legal@v1", "newer@v1"]}, base=fixed)
    assert lock.base.prompt == BaseFingerprint.of(fixed).prompt


def test_a_variant_in_a_variant_is_copied_in(three: Registry) -> None:
    three.lock("house", "stack: [legal@v1, {use: style@v1, weight: 0.5}]")
    three.lock("single", "{use: legal@v2, weight: 3}")
    three.lock("loud", "{stack: [legal@v1], weight: 3}")
    lock = three.lock("acme", "stack: [{use: house@v1, weight: 2}, single@v1]")
    house, single = three.resolve("house@v1"), three.resolve("single@v1")
    assert lock.tree["stack"][0] == {**house.tree, "weight": 2.0, "lock": house.digest, "name": "house@v1"}
    assert lock.tree["stack"][1] == {"stack": [single.tree], "lock": single.digest, "name": "single@v1"}
    assert [(m.ref, m.weight, m.path) for m in lock.members] == [
        ("legal@v1", 1.0, "stack.0.stack.0"),
        ("style@v1", 0.5, "stack.0.stack.1"),
        ("legal@v2", 3.0, "stack.1.stack.0"),
    ]
    assert three.lock("louder", "{use: loud@v1, weight: 0.5}").tree["weight"] == 1.5
    outer = three.lock("outer", "acme@v1")
    assert [m.ref for m in outer.members] == ["legal@v1", "style@v1", "legal@v2"]
    assert outer.digest == lock.digest  # it means the same


def test_a_recipe_can_be_tried_without_being_kept(three: Registry) -> None:
    before = snapshot(three)
    with (
        Registry.open(three.path) as second,
        second._store.db.transaction(),
    ):  # somebody is writing: no matter
        tried = three.pin("stack: [legal@v1, style@v1]", routers={})
    assert snapshot(three) == before
    kept = three.lock("acme", "stack: [legal@v1, style@v1]")
    assert (tried.digest, tried.tree, tried.members, tried.base) == (
        kept.digest,
        kept.tree,
        kept.members,
        kept.base,
    )


def test_unknown_and_yanked_members_are_refused(three: Registry) -> None:
    three.lock("house", "stack: [legal@v2]")
    three.yank("legal@v2", why="wrong")
    before = snapshot(three)
    with pytest.raises(InputError, match="legal@v2 was yanked"):
        three.lock("acme", "stack: [legal@v2]")
    with pytest.raises(InputError, match="house@v1 contains legal@v2, which was yanked"):
        three.lock("acme", "stack: [house@v1]")
    with pytest.raises(ReferenceNotFound, match="did you mean legal"):
        three.lock("acme", "stack: [lega@v1]")
    with pytest.raises(ReferenceNotFound, match="there is no suite 'general'"):
        three.lock("acme", "compose: legal@v1\nguard: {forget: 0.1, suites: {general: [general]}}")
    assert snapshot(three) == before


def test_dependents_at_any_depth(three: Registry) -> None:
    three.lock("house", "stack: [legal@v1]")
    three.lock("mid", "stack: [house@v1, style@v1]")
    three.lock("outer", "route: {by: request, experts: [mid@v1, style@v2]}")
    three.lock("other", "stack: [style@v1]")
    for variant, alias in (("mid", "prod"), ("outer", "prod"), ("outer", "staging"), ("other", "prod")):
        three.promote(f"{variant}@v1", alias)
    found = three.dependents("legal@v1")
    assert [d.ref for d in found] == ["mid@prod", "outer@prod", "outer@staging"]  # house is not live
    assert [m.path for m in found[1].members] == ["route.0.stack.0.stack.0"]
    assert [d.ref for d in three.dependents("house@v1")] == ["mid@prod", "outer@prod", "outer@staging"]
    assert [d.ref for d in three.dependents("mid@v1")] == ["outer@prod", "outer@staging"]
    assert three.dependents("legal@v2") == []
    three.lock("outer", "stack: [style@v2]")
    three.promote("outer@v2", "prod")
    assert [d.ref for d in three.dependents(three.resolve("legal@v1"))] == ["mid@prod", "outer@staging"]


def test_moving_an_alias_changes_no_lock_and_shows_as_drift(three: Registry) -> None:
    three.promote("legal@v1", "prod")
    lock = three.lock("acme", "stack: [legal@prod, style@v1]")
    three.promote("acme@v1", "prod")
    assert three.drifted() == []
    three.promote("legal@v2", "prod")
    (drift,) = three.drifted("acme")
    assert (drift.variant, drift.alias, drift.lock) == ("acme", "prod", lock)
    assert drift.changes == (("legal@prod", "legal@v1", "legal@v2"),)
    assert three.resolve("acme@prod") == lock
    three.rollback("legal@prod", why="back")
    assert three.drifted() == []
    three.yank("legal@v1", why="gone", otherwise="disable")
    assert three.drifted()[0].changes == (("legal@prod", "legal@v1", "nothing"),)
    assert [d.variant for d in three.drifted(using=["legal"])] == ["acme"]
    assert three.drifted(using=["nobody"]) == []
