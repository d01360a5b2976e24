"""What is live: promote, roll back, yank; stacks, compare-and-swap, blast radius, all or nothing."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from registry_fakes import snapshot

from inlay.errors import Conflict, InputError, ReferenceNotFound
from inlay.registry import Registry


def live(registry: Registry, *refs: str) -> list[str]:
    return [registry.resolve(ref).ref for ref in refs]


def test_promote_moves_and_resolves(three: Registry) -> None:
    event = three.promote("legal@v1", "prod", why="first", expect="none", who="bert")
    assert (event.verb, event.name, event.alias, event.from_ref, event.to_ref) == (
        "promote",
        "legal",
        "prod",
        None,
        "legal@v1",
    )
    assert (event.who, event.why, event.verdict, event.forced) == ("bert", "first", None, False)
    assert live(three, "legal", "legal@prod") == ["legal@v1", "legal@v1"]
    three.promote(three.resolve("legal@v2").digest, "prod")
    three.promote("legal@prod", "staging")
    assert live(three, "legal@prod", "legal@staging") == ["legal@v2", "legal@v2"]
    assert three.current("legal", "prod") == three.resolve("legal@v2")
    assert three.current("style", "prod") is None


def test_promoting_what_is_live_changes_nothing(three: Registry) -> None:
    first = three.promote("legal@v1", "prod")
    before = snapshot(three)
    assert three.promote("legal@v1", "prod") == first
    assert snapshot(three) == before


def test_compare_and_swap(three: Registry) -> None:
    three.promote("legal@v1", "prod", expect="none")
    before = snapshot(three)
    for wrong in ("none", "v2", "legal@v2", three.resolve("legal@v3").digest):
        with pytest.raises(Conflict, match="it is at legal@v1"):
            three.promote("legal@v2", "prod", expect=wrong)
    with pytest.raises(InputError, match="named exactly"):
        three.promote("legal@v2", "prod", expect="staging")
    assert snapshot(three) == before
    three.promote("legal@v2", "prod", expect="v1")
    three.promote("legal@v3", "prod", expect="legal@v2")
    three.promote("legal@v1", "prod", expect=three.resolve("legal@v3").digest)
    assert live(three, "legal@prod") == ["legal@v1"]


def test_rollback_pops_and_twice_goes_back_two(three: Registry) -> None:
    for n in (1, 2, 3):
        three.promote(f"legal@v{n}", "prod")
    (event,) = three.rollback("legal@prod", why="wrong clauses")
    assert (event.verb, event.from_ref, event.to_ref, event.why) == (
        "rollback",
        "legal@v3",
        "legal@v2",
        "wrong clauses",
    )
    three.rollback("legal@prod", why="also wrong")
    assert live(three, "legal@prod") == ["legal@v1"]
    before = snapshot(three)
    with pytest.raises(Conflict, match="nothing was moved: legal@prod has no earlier version"):
        three.rollback("legal@prod", why="still")
    assert snapshot(three) == before
    three.promote("legal@v3", "prod")
    three.rollback("legal@prod", why="again")
    assert live(three, "legal@prod") == ["legal@v1"]  # v2 was popped and does not come back


def test_rollback_skips_what_was_yanked(three: Registry) -> None:
    for n in (1, 2, 3):
        three.promote(f"legal@v{n}", "prod")
    assert [e.verb for e in three.yank("legal@v2", why="trained on the wrong data")] == ["yank"]
    assert three.resolve("legal@v2").yanked
    three.rollback("legal@prod", why="bad")
    assert live(three, "legal@prod") == ["legal@v1"]


def test_rollback_to_a_version_and_to_a_time(three: Registry) -> None:
    times = {}
    for n in (1, 2, 3):
        times[n] = three.promote(f"legal@v{n}", "prod").at
    with pytest.raises(Conflict, match=r"legal@v3 is not below legal@v3.*it holds legal@v1, legal@v2"):
        three.rollback("legal@prod", why="x", to="v3")
    with pytest.raises(InputError, match="not both"):
        three.rollback("legal@prod", why="x", to="v1", to_time=times[1])
    with pytest.raises(Conflict, match="pointed to nothing at 2020"):
        three.rollback("legal@prod", why="x", to_time="2020-01-01")
    three.rollback("legal@prod", why="x", to="legal@v1")
    assert live(three, "legal@prod") == ["legal@v1"]
    with pytest.raises(Conflict, match=r"what legal@prod was at .*, legal@v2, is not below"):
        three.rollback("legal@prod", why="x", to_time=times[2])  # popped: it was rolled over on purpose
    three.promote("legal@v2", "prod")
    three.promote("legal@v3", "prod")
    three.rollback("legal@prod", why="x", to_time=times[1])
    assert live(three, "legal@prod") == ["legal@v1"]


def test_rollback_to_something_yanked_is_refused(three: Registry) -> None:
    three.promote("legal@v1", "prod")
    three.promote("legal@v2", "prod")
    three.yank("legal@v1", why="bad")
    with pytest.raises(Conflict, match="legal@v1 was yanked"):
        three.rollback("legal@prod", why="x", to="v1")


def test_resolve_at_any_moment(three: Registry) -> None:
    moments = []
    for n in (1, 2, 3):
        three.promote(f"legal@v{n}", "prod")
        moments.append(datetime.now(UTC))
        time.sleep(0.002)
    three.rollback("legal@prod", why="bad", to="v1")
    assert [three.resolve("legal@prod", at=m).ref for m in moments] == ["legal@v1", "legal@v2", "legal@v3"]
    assert three.resolve("legal", at=moments[1].isoformat()).ref == "legal@v2"
    assert three.resolve("legal", at=moments[1].replace(tzinfo=None)).ref == "legal@v2"
    assert three.resolve("legal@prod", at="2999-01-01").ref == "legal@v1"
    with pytest.raises(ReferenceNotFound, match="no alias 'prod' at 2020"):
        three.resolve("legal@prod", at="2020-03-04T12:00")
    with pytest.raises(ReferenceNotFound):
        three.resolve("legal@v1", at="2020-03-04")
    with pytest.raises(InputError, match="ISO 8601"):
        three.resolve("legal@prod", at="yesterday")


def test_a_reason_is_needed_where_others_will_ask(three: Registry) -> None:
    three.promote("legal@v1", "prod")
    three.promote("legal@v2", "prod")
    for deed in (
        lambda: three.rollback("legal@prod", why=" "),
        lambda: three.yank("legal@v2", why=""),
        lambda: three.promote("legal@v3", "prod", force=True),
    ):
        with pytest.raises(InputError, match="needs a reason"):
            deed()


def test_yanked_versions_are_not_promoted_but_still_resolve(three: Registry) -> None:
    three.yank("legal@v2", why="bad")
    assert three.yank("legal@v2", why="bad again") == []
    assert three.resolve("legal@v2").yanked
    with pytest.raises(InputError, match="legal@v2 was yanked"):
        three.promote("legal@v2", "prod", force=True, why="really")
    with pytest.raises(InputError, match="an exact version is yanked"):
        three.yank("legal@prod", why="x")


def test_yanking_what_is_live_takes_its_aliases_back(three: Registry) -> None:
    three.promote("legal@v1", "prod")
    three.promote("legal@v2", "prod")
    three.promote("legal@v2", "staging")
    before = snapshot(three)
    with pytest.raises(Conflict, match="legal@staging has no earlier version"):
        three.yank("legal@v2", why="bad")
    assert snapshot(three) == before
    events = three.yank("legal@v2", why="bad", otherwise="disable")
    assert [(e.verb, e.alias, e.to_ref) for e in events] == [
        ("yank", None, None),
        ("rollback", "prod", "legal@v1"),
        ("disable", "staging", None),
    ]
    with pytest.raises(ReferenceNotFound, match=r"legal@staging was disabled by anna on .*: bad"):
        three.resolve("legal@staging")
    three.promote("legal@v3", "staging", expect="none")
    assert live(three, "legal@staging") == ["legal@v3"]


@pytest.fixture
def served(three: Registry) -> Registry:
    """acme@prod and acme@staging hold legal@v2, outer@prod by way of house@v2; each has a clean one below."""
    three.promote("legal@v1", "prod")
    three.lock("acme", "stack: [legal@prod, style@v1]")
    three.lock("house", "stack: [legal@prod]")
    three.lock("outer", "stack: [house@v1, style@v1]")
    for ref, alias in (("acme@v1", "prod"), ("acme@v1", "staging"), ("outer@v1", "prod")):
        three.promote(ref, alias)
    three.promote("legal@v2", "prod")
    three.lock("acme", "stack: [legal@prod, style@v1]")
    three.lock("house", "stack: [legal@prod]")
    three.lock("outer", "stack: [house@v2, style@v1]")
    for ref, alias in (("acme@v2", "prod"), ("acme@v2", "staging"), ("outer@v2", "prod")):
        three.promote(ref, alias)
    return three


LIVE = ("legal@prod", "acme@prod", "acme@staging", "outer@prod")


@pytest.mark.parametrize("deed", ["rollback", "yank"])
def test_dependents_go_back_together(deed: str, served: Registry) -> None:
    def act(*, dry_run: bool = False) -> list[tuple[str, str | None, str | None]]:
        if deed == "rollback":
            events = served.rollback("legal@prod", why="bad", dependents=True, dry_run=dry_run)
        else:
            events = served.yank("legal@v2", why="bad", rollback_dependents=True, dry_run=dry_run)[1:]
        assert all(e.detail.get("because") == "legal@v2" for e in events[1:])
        return [(f"{e.name}@{e.alias}", e.from_ref, e.to_ref) for e in events]

    before = snapshot(served)
    blast = act(dry_run=True)
    assert snapshot(served) == before
    assert act() == blast
    assert blast == [
        ("legal@prod", "legal@v2", "legal@v1"),
        ("acme@prod", "acme@v2", "acme@v1"),
        ("acme@staging", "acme@v2", "acme@v1"),
        ("outer@prod", "outer@v2", "outer@v1"),
    ]
    assert live(served, *LIVE) == ["legal@v1", "acme@v1", "acme@v1", "outer@v1"]
    assert served.dependents("legal@v2") == []
    assert served.fsck() == []


@pytest.mark.parametrize("deed", ["rollback", "yank"])
def test_one_that_cannot_go_back_stops_all_and_is_named(deed: str, served: Registry) -> None:
    served.lock("only", "stack: [legal@v2]")
    served.promote("only@v1", "prod")

    def act(otherwise: str | None) -> None:
        if deed == "rollback":
            served.rollback("legal@prod", why="bad", dependents=True, otherwise=otherwise)
        else:
            served.yank("legal@v2", why="bad", rollback_dependents=True, otherwise=otherwise)

    before = snapshot(served)
    with pytest.raises(Conflict, match="nothing was moved: only@prod has no earlier lock free of legal@v2"):
        act(None)
    assert snapshot(served) == before
    with pytest.raises(InputError, match="otherwise is base or disable"):
        act("shrug")
    act("base")
    only = served.resolve("only@prod")
    assert (only.ref, only.tree, only.members) == ("only@v2", {"use": "base", "weight": 1.0}, ())
    assert only.base == served.resolve("legal@v1").base
    assert live(served, *LIVE) == ["legal@v1", "acme@v1", "acme@v1", "outer@v1"]
    assert served.fsck() == []


def test_disable_and_come_back(served: Registry) -> None:
    served.lock("only", "stack: [legal@v2]")
    served.promote("only@v1", "prod")
    served.rollback("legal@prod", why="bad", dependents=True, otherwise="disable")
    with pytest.raises(ReferenceNotFound, match="only@prod was disabled"):
        served.resolve("only")
    assert {r.name: r.aliases for r in served.names("variant")}["only"] == {"prod": "disabled"}
    served.rollback("only@prod", why="it was a false alarm")
    assert live(served, "only@prod") == ["only@v1"]


def test_dependents_of_everything_left_behind(served: Registry) -> None:
    """Going back over two versions takes back what holds either of them."""
    served.promote("legal@v3", "prod")
    served.lock("acme", "stack: [legal@prod]")
    served.promote("acme@v3", "prod")
    events = served.rollback("legal@prod", why="both bad", to="v1", dependents=True)
    assert [(f"{e.name}@{e.alias}", e.to_ref) for e in events[1:]] == [
        ("acme@prod", "acme@v1"),
        ("acme@staging", "acme@v1"),
        ("outer@prod", "outer@v1"),
    ]


def test_a_plain_rollback_moves_no_variant(served: Registry) -> None:
    served.rollback("legal@prod", why="bad")
    assert live(served, *LIVE) == ["legal@v1", "acme@v2", "acme@v2", "outer@v2"]
    assert {f"{d.variant}@{d.alias}" for d in served.drifted()} == {"acme@prod", "acme@staging"}


def test_a_variant_rolls_back_past_locks_with_yanked_members(served: Registry) -> None:
    served.lock("acme", "stack: [legal@v3]")
    served.promote("acme@v3", "prod")
    served.yank("legal@v2", why="bad")
    served.rollback("acme@prod", why="v3 is slow")
    assert live(served, "acme@prod") == ["acme@v1"]


def test_yanking_a_lock_takes_back_what_nests_it(served: Registry) -> None:
    events = served.yank("house@v2", why="bad", rollback_dependents=True)
    assert [(e.verb, e.name, e.to_ref) for e in events] == [
        ("yank", "house", None),
        ("rollback", "outer", "outer@v1"),
    ]
    with pytest.raises(InputError, match="house@v2 was yanked"):
        served.promote("house@v2", "prod")
    with pytest.raises(InputError, match="outer@v2 contains house@v2, which was yanked"):
        served.promote("outer@v2", "prod")


def test_what_was_never_promoted_cannot_be_rolled_back(three: Registry) -> None:
    with pytest.raises(Conflict, match="was never promoted"):
        three.rollback("legal@prod", why="x")
    with pytest.raises(ReferenceNotFound):
        three.rollback("nobody@prod", why="x")
    with pytest.raises(InputError, match="only an alias"):
        three.rollback("legal@v1", why="x")


def test_the_bare_base_is_locked_anew_where_its_lock_was_yanked(three: Registry) -> None:
    three.lock("acme", {"stack": ["legal@v1"]})
    three.promote("acme@v1", "prod")
    three.rollback("acme@prod", why="worse", otherwise="base")
    three.yank("acme@v2", why="even worse", otherwise="disable")
    three.lock("acme", {"stack": ["legal@v2"]})
    three.promote("acme@v3", "staging")
    three.rollback("acme@staging", why="bad", otherwise="base")
    landed = three.resolve("acme@staging")
    assert (landed.ref, landed.state) == ("acme@v4", "active")
    three.yank("acme@v4", why="no", otherwise="disable")
    with pytest.raises(InputError, match=r"this recipe resolves to acme@v5, which was yanked"):
        three.lock("acme", {"stack": ["legal@v3"]})
        three.yank("acme@v5", why="no")
        three.lock("acme", {"stack": ["legal@v3"]})
