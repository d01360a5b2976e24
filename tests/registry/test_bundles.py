"""Bundles: what went in comes out, wherever it is taken over, however often; and they mend a store."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from bundle_fakes import Forged, rows_of, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registry_fakes import make_adapter, make_base, put_suite, score, snapshot

from inlay.errors import Conflict, InlayError, InputError, IntegrityError, ReferenceNotFound
from inlay.registry import Registry, unbundling
from inlay.registry.archive import Writer

ALIASES = ("prod", "staging", "trial")


def told(registry: Registry, name: str) -> list[str]:
    """What the journal says about a name, without the places of the rows, oldest first."""
    return [event.sentence().split(" ", 1)[1] for event in reversed(registry.journal(name))]


def meaning(registry: Registry, name: str, times: list[str]) -> dict[str, Any]:
    """All that can be asked about a name: what its aliases meant at every moment, what is said of it."""
    found: dict[str, Any] = {"about": registry.about(name), "told": told(registry, name)}
    for alias in ALIASES:
        for when in (None, *times):
            try:
                thing = registry.resolve(f"{name}@{alias}", at=when)
                found[f"{alias} {when}"] = (thing.ref, thing.digest, thing.state)
            except ReferenceNotFound:
                found[f"{alias} {when}"] = None
        guard = registry.guard(name, alias)
        found[f"guard {alias}"] = guard.to_dict() if guard else None
    kept = registry.versions(name) if registry.about(name).kind == "adapter" else registry.locks(name)
    found["kept"] = [(thing.ref, thing.digest, thing.state, thing.created, thing.why) for thing in kept]
    return found


def same(one: Registry, other: Registry, names: tuple[str, ...]) -> None:
    times = [event.at for event in one.journal()]
    for name in names:
        assert meaning(other, name, times) == meaning(one, name, times)


def fresh(folder: Path) -> Registry:
    return Registry.open(folder, create=True)


@pytest.fixture
def elsewhere(rich_made: Path, tmp_path: Path) -> Registry:
    """A store with a journal of its own: other@v1 is live, over the same base."""
    registry = fresh(tmp_path / "elsewhere")
    base = make_base(rich_made.parent / "elsewhere-base")
    registry.add("other", make_adapter(tmp_path / "o1", seed=41), base=base)
    registry.promote("other@v1", "prod")
    return registry


NAMES = ("acme", "big", "legal", "plain", "style", "tone")


# Round trips


def test_a_whole_store_goes_into_an_empty_one_byte_for_byte(rich: Registry, tmp_path: Path) -> None:
    made = rich.bundle(tmp_path / "all.bundle")
    assert made.names == NAMES and made.versions == 8 and made.locks == 5
    assert made.bytes == (tmp_path / "all.bundle").stat().st_size
    with fresh(tmp_path / "copy") as copy:
        done = copy.unbundle(tmp_path / "all.bundle")
        assert done.digest == made.digest and len(done.versions) == 8 and len(done.locks) == 5
        assert (done.events, done.evals, done.objects) == (made.events, made.evals, made.objects)
        assert done.notes == ()
        assert copy.journal_head() == rich.journal_head() and copy.fsck(rich.journal_head()) == []
        assert tables(copy) == tables(rich)
        assert files(copy) == files(rich)
        copy.bundle(tmp_path / "again.bundle")
        assert (tmp_path / "again.bundle").read_bytes() == (tmp_path / "all.bundle").read_bytes()

        before = snapshot(copy)
        again = copy.unbundle(tmp_path / "all.bundle")
        assert (again.versions, again.locks, again.events, again.evals, again.objects) == ((), (), 0, 0, 0)
        assert snapshot(copy) == before


def tables(registry: Registry) -> dict[str, list[tuple[Any, ...]]]:
    """Every row, whatever the order in which SQLite wrote them."""
    with closing(sqlite3.connect(registry.path / "registry.db")) as db:
        names = [
            "names", "bases", "versions", "version_files", "locks", "lock_members", "suites", "evals",
            "reports", "journal",
        ]  # fmt: skip
        return {name: sorted(db.execute(f"SELECT * FROM {name}"), key=repr) for name in names}


def files(registry: Registry) -> dict[str, bytes]:
    return {digest: path.read_bytes() for digest, path in registry._store.objects.all()}


def test_a_later_bundle_brings_only_what_is_new(rich: Registry, tmp_path: Path) -> None:
    early = rich.bundle(tmp_path / "early.bundle").events
    with fresh(tmp_path / "copy") as copy:
        copy.unbundle(tmp_path / "early.bundle")
        base = make_base(tmp_path / "base")
        rich.add("style", make_adapter(tmp_path / "s3", seed=13), base=base)
        rich.promote("style@v3", "prod")
        rich.rollback("acme@prod", why="late", otherwise="base")
        rich.bundle(tmp_path / "late.bundle")
        done = copy.unbundle(tmp_path / "late.bundle")
        assert done.versions == ("style@v3",)
        assert done.events == rich.journal_head()[0] - early
        assert copy.journal_head() == rich.journal_head() and copy.fsck() == []
        assert tables(copy) == tables(rich)
        # An older bundle has nothing to say any more.
        before = snapshot(copy)
        assert copy.unbundle(tmp_path / "early.bundle").events == 0
        assert snapshot(copy) == before


def test_names_go_with_everything_that_their_locks_contain(rich: Registry, tmp_path: Path) -> None:
    assert rich.bundle(tmp_path / "big.bundle", ["big"]).names == ("acme", "big", "legal", "style")
    assert rich.bundle(tmp_path / "style.bundle", ["style"]).names == ("style",)
    assert rich.bundle(tmp_path / "two.bundle", ["plain", "style"]).names == ("plain", "style", "tone")
    with pytest.raises(ReferenceNotFound, match="did you mean legal"):
        rich.bundle(tmp_path / "no.bundle", ["legl"])
    assert not (tmp_path / "no.bundle").exists()


def test_some_names_go_into_a_store_with_a_journal_of_its_own(
    rich: Registry, elsewhere: Registry, tmp_path: Path
) -> None:
    rich.bundle(tmp_path / "some.bundle", ["big"])
    names = ("acme", "big", "legal", "style")
    rows = elsewhere.journal_head()[0]
    done = elsewhere.unbundle(tmp_path / "some.bundle")
    assert done.names == names and elsewhere.journal_head()[0] == rows + done.events
    assert elsewhere.fsck() == []
    same(rich, elsewhere, names)
    assert elsewhere.resolve("other@prod").ref == "other@v1"
    adopted = [event for event in elsewhere.journal() if "origin" in event.detail]
    assert len(adopted) == done.events
    origins = {event.detail["origin"]["hash"] for event in adopted}
    assert origins == {event.hash for event in rich.journal() if event.name in names}

    # From here on both do the same things, and mean the same by them.
    def go_on(registry: Registry) -> list[tuple[str, str | None, str | None]]:
        events = registry.rollback("legal@staging", why="x", otherwise="disable")
        registry.promote("legal@v2", "prod", force=True, why="x")
        events += registry.yank(
            "legal@v2", why="worse still", rollback_dependents=True, otherwise="disable", who="bo"
        )
        events.append(registry.promote("style@v1", "prod", why="local"))
        lock = registry.lock("acme", {"stack": ["legal@v1", "style@prod"]})
        events.append(registry.promote(lock.ref, "prod", force=True, why="x"))
        events += registry.rollback("acme@prod", why="y", otherwise="disable")
        return [(e.verb, e.from_ref, e.to_ref) for e in events]

    assert go_on(elsewhere) == go_on(rich)
    assert rich.fsck() == [] and elsewhere.fsck() == []


def test_rows_stay_who_they_are_over_two_hops(rich: Registry, elsewhere: Registry, tmp_path: Path) -> None:
    rich.bundle(tmp_path / "hop1.bundle", ["big"])
    elsewhere.unbundle(tmp_path / "hop1.bundle")
    elsewhere.promote("style@v1", "prod", why="made elsewhere")
    elsewhere.rollback("style@prod", why="made elsewhere", otherwise="disable")
    elsewhere.bundle(tmp_path / "hop2.bundle", ["big"])
    with fresh(tmp_path / "third") as third:
        base = make_base(tmp_path / "base")
        third.add("mine", make_adapter(tmp_path / "m", seed=51), base=base)
        third.unbundle(tmp_path / "hop2.bundle")
        assert third.fsck() == []
        same(elsewhere, third, ("acme", "big", "legal", "style"))
        # Straight from the first: known row by row, and nothing to add.
        before = snapshot(third)
        assert third.unbundle(tmp_path / "hop1.bundle").events == 0
        assert snapshot(third) == before
        # And back home, where only what was made elsewhere is new.
        third.bundle(tmp_path / "hop3.bundle", ["big"])
        home = rich.unbundle(tmp_path / "hop3.bundle")
        assert home.events == 2 and rich.fsck() == []
        same(third, rich, ("acme", "big", "legal", "style"))


def test_what_is_gone_arrives_as_gone(rich: Registry, tmp_path: Path, elsewhere: Registry) -> None:
    made = rich.bundle(tmp_path / "tone.bundle", ["tone"])
    assert made.versions == 3
    elsewhere.unbundle(tmp_path / "tone.bundle")
    assert [elsewhere.resolve(f"tone@v{n}").state for n in (1, 2, 3)] == ["active", "retired", "purged"]
    assert elsewhere.resolve("tone@v1").path.is_dir() and elsewhere.fsck() == []
    with pytest.raises(IntegrityError, match="missing"):
        _ = elsewhere.resolve("tone@v2").path
    base = make_base(tmp_path / "base")
    with pytest.raises(InputError, match=r"purged as tone@v3 by anna"):
        elsewhere.add("again", make_adapter(tmp_path / "again", seed=23), base=base)
    # Its training record does not arrive by another name either.
    assert elsewhere.resolve("tone@v3").run not in files(elsewhere)


def test_a_purge_that_comes_later_erases_here_as_well(rich: Registry, tmp_path: Path) -> None:
    with fresh(tmp_path / "copy") as copy:
        rich.bundle(tmp_path / "early.bundle")
        copy.unbundle(tmp_path / "early.bundle")
        folder, held = copy.resolve("legal@v2").path, files(copy)
        rich.rollback("acme@prod", why="law", otherwise="disable")
        rich.promote("legal@v1", "prod", force=True, why="law")
        rich.purge("legal@v2", why="law")
        rich.bundle(tmp_path / "late.bundle")
        copy.unbundle(tmp_path / "late.bundle")
        assert not folder.exists() and copy.fsck() == [] and copy.gc(grace=0) == []
        lost = held.keys() - files(copy).keys()
        event = rich.journal("legal", limit=1)[0]
        assert event.verb == "purge" and lost == set(event.detail["erased"])
        # The earlier bundle still has the bytes. They stay out.
        before = snapshot(copy)
        assert copy.unbundle(tmp_path / "early.bundle").events == 0
        assert snapshot(copy) == before


def test_bytes_that_were_purged_here_do_not_come_in_a_bundle(
    rich: Registry, elsewhere: Registry, tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base")
    elsewhere.add("private", make_adapter(tmp_path / "p", seed=1), base=base)  # the bytes of legal@v1
    elsewhere.purge("private@v1", why="law")
    before = rows_of(elsewhere)
    rich.bundle(tmp_path / "legal.bundle", ["legal"])
    for dry_run in (True, False):
        with pytest.raises(InputError, match=r"purged as private@v1"):
            elsewhere.unbundle(tmp_path / "legal.bundle", dry_run=dry_run)
    assert rows_of(elsewhere) == before


@pytest.mark.parametrize("how", ["retire", "purge"])
def test_what_was_let_go_elsewhere_must_not_be_needed_here(
    how: str, three: Registry, elsewhere: Registry, tmp_path: Path
) -> None:
    three.bundle(tmp_path / "early.bundle")
    elsewhere.unbundle(tmp_path / "early.bundle")
    elsewhere.lock("mine", {"stack": ["legal@v2", "other@v1"]})
    elsewhere.promote("mine@v1", "prod")
    getattr(three, how)("legal@v2", why="no more")
    three.bundle(tmp_path / "late.bundle")
    before = snapshot(elsewhere)
    with pytest.raises(Conflict, match=r"legal@v2 is (in mine@v1|live in mine@prod)"):
        elsewhere.unbundle(tmp_path / "late.bundle")
    assert snapshot(elsewhere) == before
    if how == "purge":  # what was live once is never retired
        elsewhere.rollback("mine@prod", why="law", otherwise="disable")
        elsewhere.unbundle(tmp_path / "late.bundle")
        assert elsewhere.resolve("legal@v2").state == "purged" and elsewhere.fsck() == []


def test_weights_that_another_name_has_here_are_not_erased(
    three: Registry, elsewhere: Registry, tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base")
    elsewhere.add("twin", make_adapter(tmp_path / "t", seed=2), base=base)  # the weights of legal@v2
    three.purge("legal@v2", why="law")
    three.bundle(tmp_path / "late.bundle")
    before = snapshot(elsewhere)
    with pytest.raises(Conflict, match=r"twin@v1 has the weights of legal@v2 too"):
        elsewhere.unbundle(tmp_path / "late.bundle")
    assert snapshot(elsewhere)["rows"] == before["rows"]
    elsewhere.gc(grace=0)
    assert snapshot(elsewhere) == before and elsewhere.fsck() == []


def test_scores_that_differ_are_kept_as_they_were_here(three: Registry, tmp_path: Path) -> None:
    with fresh(tmp_path / "copy") as copy:
        three.bundle(tmp_path / "early.bundle")
        copy.unbundle(tmp_path / "early.bundle")
        for registry, outcomes in ((three, (True,) * 4), (copy, (True, False, True, True))):
            put_suite(registry, "general")
            score(registry, "legal@v1", "general", outcomes)
        score(three, "legal@v2", "general", (False,) * 4)
        three.bundle(tmp_path / "late.bundle")
        done = copy.unbundle(tmp_path / "late.bundle")
        assert done.evals == 1
        assert done.notes == ("1 scores were measured here too, with other outcomes: ours were kept",)
        assert copy.evals("legal@v1")[0].score == 0.75 and copy.evals("legal@v2")[0].score == 0.0
        assert copy.fsck() == []


def test_suites_keep_their_order_and_other_contents_are_said(three: Registry, tmp_path: Path) -> None:
    first = put_suite(three, "general", 4)
    put_suite(three, "general", 6)
    assert put_suite(three, "general", 4) == first  # the first again, so it is the newest by name
    score(three, "legal@v1", "general", (True,) * 4)
    three.set_guard("legal@prod", {"forget": 0.1, "suites": {"general": ["general"]}})
    three.bundle(tmp_path / "all.bundle")
    with fresh(tmp_path / "copy") as copy:
        assert copy.unbundle(tmp_path / "all.bundle").notes == ()
        assert copy.suite("general").digest == first and copy.suite("general").n == 4
    with fresh(tmp_path / "third") as third:
        put_suite(third, "general", 8)
        (note, *_) = third.unbundle(tmp_path / "all.bundle").notes
        assert note == "the suite general has another content here; both are kept by digest"
        assert third.fsck() == []


def test_the_same_report_twice_stays_twice(three: Registry, tmp_path: Path) -> None:
    three.put_report("legal@v1", "forgetting", {"lost": 0.1})
    three.put_report("legal@v1", "forgetting", {"lost": 0.1})
    three.bundle(tmp_path / "all.bundle")
    with fresh(tmp_path / "copy") as copy:
        copy.unbundle(tmp_path / "all.bundle")
        copy.unbundle(tmp_path / "all.bundle")
        assert copy.reports("legal@v1") == [{"lost": 0.1}] * 2
        assert tables(copy) == tables(three)


def test_a_name_that_went_another_way_is_refused(rich: Registry, tmp_path: Path) -> None:
    rich.bundle(tmp_path / "early.bundle")
    with fresh(tmp_path / "copy") as copy:
        copy.unbundle(tmp_path / "early.bundle")
        rich.describe("legal", tag=["ours"])
        copy.describe("legal", tag=["theirs"])
        rich.promote("style@v1", "prod")
        rich.bundle(tmp_path / "late.bundle")
        before = snapshot(copy)
        for dry_run in (True, False):
            with pytest.raises(Conflict, match=r"legal went another way here \(row \d+: describe"):
                copy.unbundle(tmp_path / "late.bundle", dry_run=dry_run)
        assert snapshot(copy) == before
        rich.bundle(tmp_path / "style.bundle", ["style"])  # who did not part can go on
        assert copy.unbundle(tmp_path / "style.bundle").events == 1


def test_a_name_of_the_other_kind_is_refused(three: Registry, elsewhere: Registry, tmp_path: Path) -> None:
    elsewhere.lock("legal", "other@v1")
    three.bundle(tmp_path / "all.bundle")
    before = snapshot(elsewhere)
    with pytest.raises(Conflict, match="legal is a name of variants here, of adapters in the bundle"):
        elsewhere.unbundle(tmp_path / "all.bundle")
    assert snapshot(elsewhere) == before


# A bundle is there whole or not at all, and is taken over whole or not at all


def test_a_dry_run_verifies_and_stores_nothing(rich: Registry, tmp_path: Path) -> None:
    rich.bundle(tmp_path / "all.bundle")
    with fresh(tmp_path / "copy") as copy:
        before = snapshot(copy)
        planned = copy.unbundle(tmp_path / "all.bundle", dry_run=True)
        assert snapshot(copy) == before
        assert copy.unbundle(tmp_path / "all.bundle") == planned


def test_what_is_not_sound_is_not_bundled(three: Registry, tmp_path: Path) -> None:
    target = tmp_path / "all.bundle"
    digest, path = next(iter(three._store.objects.all()))
    good = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(IntegrityError, match="no longer has the bytes"):
        three.bundle(target)
    path.unlink()
    with pytest.raises(IntegrityError, match="is missing from the store"):
        three.bundle(target)
    assert list(tmp_path.glob("*.bundle*")) == [] and list(tmp_path.glob(".*")) == []
    path.write_bytes(good)
    three.bundle(target)
    with pytest.raises(InputError, match="is there already"):
        three.bundle(target)
    with pytest.raises(InputError, match="there is no folder"):
        three.bundle(tmp_path / "nowhere" / "all.bundle")
    assert digest in dict(three._store.objects.all())


def test_an_empty_store_has_nothing_to_bundle(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing in the registry"):
        registry.bundle(tmp_path / "all.bundle")
    assert not (tmp_path / "all.bundle").exists()


@pytest.mark.parametrize("step", ["rows", "object", "finish"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_bundle_leaves_no_file(
    step: str, error: BaseException, three: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = [], getattr(Writer, step)

    def fail(self: Writer, *arguments: Any, **more: Any) -> Any:
        calls.append(step)
        if len(calls) == 3 or step == "finish":
            raise error
        return real(self, *arguments, **more)

    monkeypatch.setattr(Writer, step, fail)
    with pytest.raises((KeyboardInterrupt, InlayError)) as raised:
        three.bundle(tmp_path / "all.bundle")
    if isinstance(error, OSError):
        assert raised.value.exit_code == 3 and "No space left" in str(raised.value)
    assert not (tmp_path / "all.bundle").exists() and list(tmp_path.glob(".*")) == []


def test_an_interrupted_unbundling_takes_nothing_over(
    rich_made: Path, elsewhere: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, kept = snapshot(elsewhere), rows_of(elsewhere)

    def fail(what: str, done: int, all_: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        elsewhere.unbundle(rich_made / "all.bundle", say=fail)
    monkeypatch.setattr("inlay.registry.journal.seal", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        elsewhere.unbundle(rich_made / "all.bundle")
    monkeypatch.undo()
    assert rows_of(elsewhere) == kept
    elsewhere.gc(grace=0)
    assert snapshot(elsewhere) == before
    elsewhere.unbundle(rich_made / "all.bundle")
    assert elsewhere.fsck() == []


# Repair


def broken(path: Path, how: str) -> None:
    data = path.read_bytes()
    path.chmod(0o644)
    if how == "deleted":
        path.unlink()
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


@pytest.mark.parametrize("how", ["flipped", "cut", "emptied", "deleted"])
def test_every_object_is_put_back_from_a_bundle(how: str, rich: Registry, rich_made: Path) -> None:
    before = snapshot(rich)
    objects = [path for _, path in rich._store.objects.all()]
    assert len(objects) > 15
    for path in objects:
        broken(path, how)
    found = rich.fsck()
    assert len([f for f in found if "missing" in f or "has changed" in f]) == len(objects)
    assert rich.repair() == [] and rich.fsck() == found
    said = rich.repair(rich_made / "all.bundle")
    assert len(said) == len(objects) and all(s.startswith("put ") for s in said)
    assert rich.fsck() == [] and snapshot(rich) == before
    assert rich.repair(rich_made / "all.bundle") == []


def test_what_the_bundle_lacks_stays_reported(rich: Registry, tmp_path: Path) -> None:
    rich.bundle(tmp_path / "style.bundle", ["style"])
    style, legal = (rich.resolve(f"{name}@v1").digest for name in ("style", "legal"))
    for digest in (style, legal):
        broken(rich._store.objects.path(digest), "deleted")
    assert rich.repair(tmp_path / "style.bundle") == [f"put manifest of style@v1 back ({style})"]
    assert rich.fsck() == [f"manifest of legal@v1 is missing from the store ({legal})"]


def test_triggers_are_put_back_without_a_bundle(three: Registry) -> None:
    three.close()
    with closing(sqlite3.connect(three.path / "registry.db")) as db:
        db.execute("DROP TRIGGER journal_refuse_delete")
        db.execute("DROP TRIGGER evals_refuse_update")
        db.execute("CREATE TRIGGER evals_refuse_update BEFORE UPDATE ON evals BEGIN SELECT 1; END")
        db.commit()
    with pytest.raises(IntegrityError, match="must have its triggers"):
        Registry.open(three.path)
    with Registry.open(three.path, check=False) as registry:
        assert registry.repair() == [
            "put the trigger evals_refuse_update back",
            "put the trigger journal_refuse_delete back",
        ]
        assert registry.fsck() == [] and registry.repair() == []
    Registry.open(three.path).close()


# Whatever is done: what the first means at any time, the second and the third mean as well

_RECIPES = (
    {"stack": ["legal@v1", "style@v1"]},
    {"stack": ["legal@v2", {"use": "style@v2", "weight": 0.5}]},
    {"merge": ["legal@v1", "legal@v3"]},
    {"merge": ["legal@v1", "legal@v3"], "energy": 0.9},
    "legal@prod",
)
_STEPS = st.one_of(
    st.tuples(
        st.just("promote"),
        st.sampled_from(["legal", "style", "acme"]),
        st.integers(1, 3),
        st.sampled_from(ALIASES[:2]),
    ),
    st.tuples(st.just("rollback"), st.sampled_from(["legal", "style", "acme"]), st.sampled_from(ALIASES[:2])),
    st.tuples(st.just("yank"), st.sampled_from(["legal", "style", "acme"]), st.integers(1, 3)),
    st.tuples(
        st.just("describe"), st.sampled_from(["legal", "style"]), st.sampled_from(["gdpr", "stage=pilot"])
    ),
    st.tuples(st.just("lock"), st.sampled_from(_RECIPES)),
    st.tuples(st.just("retire"), st.sampled_from(["legal", "style", "acme"]), st.integers(1, 3)),
    st.tuples(st.just("purge"), st.sampled_from(["legal", "style", "acme"]), st.integers(1, 3)),
    st.tuples(st.just("sync")),
)


def do(registry: Registry, step: tuple[Any, ...]) -> None:
    """One step; what the registry refuses is not done."""
    calls: dict[str, Callable[..., object]] = {
        "promote": lambda n, i, a: registry.promote(f"{n}@v{i}", a),
        "rollback": lambda n, a: registry.rollback(f"{n}@{a}", why="x", dependents=True, otherwise="disable"),
        "yank": lambda n, i: registry.yank(
            f"{n}@v{i}", why="x", rollback_dependents=True, otherwise="disable"
        ),
        "describe": lambda n, t: registry.describe(f"{n}@v1", tag=[t]) or registry.describe(n, untag=[t]),
        "lock": lambda recipe: registry.lock("acme", recipe),
        "retire": lambda n, i: registry.retire(f"{n}@v{i}", why="x"),
        "purge": lambda n, i: registry.purge(f"{n}@v{i}", why="x"),
    }
    try:
        calls[step[0]](*step[1:])
    except InlayError:
        return


def hop(source: Registry, target: Registry, file: Path) -> None:
    file.unlink(missing_ok=True)
    present = [row.name for row in source.names() if row.name in ("legal", "style", "acme")]
    source.bundle(file, present)
    target.unbundle(file)
    same(source, target, tuple(present))
    assert target.fsck() == []


def follow(steps: list[tuple[Any, ...]], folder: Path, made: Path, others: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made, folder / "a")
    for name in ("b", "c"):
        shutil.copytree(others, folder / name)
    a, b, c = (Registry.open(folder / name) for name in "abc")
    with a, b, c:
        b.promote("other@v1", "staging")  # so that no row has the place it had
        for number, step in enumerate([*steps, ("sync",)]):
            if step[0] != "sync":
                do(a, step)
                continue
            hop(a, b, folder / "ab.bundle")
            if number % 2 or number == len(steps):
                hop(b, c, folder / "bc.bundle")
        same(a, c, tuple(r.name for r in a.names()))


@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(_STEPS, min_size=4, max_size=14))
def test_what_is_done_here_means_the_same_two_stores_on(
    steps: list[tuple[Any, ...]], tmp_path: Path, three_made: Path, others_made: Path
) -> None:
    follow(steps, tmp_path / "run", three_made, others_made)


@pytest.mark.slow
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(_STEPS, min_size=8, max_size=40))
def test_what_is_done_here_means_the_same_two_stores_on_at_length(
    steps: list[tuple[Any, ...]], tmp_path: Path, three_made: Path, others_made: Path
) -> None:
    follow(steps, tmp_path / "run", three_made, others_made)


@pytest.fixture(scope="session")
def others_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed store with other@v1."""
    folder = tmp_path_factory.mktemp("others")
    with Registry.open(folder / "store", create=True) as registry:
        registry.add("other", make_adapter(folder / "o", seed=41), base=make_base(folder / "base"))
    return folder / "store"


# What is lawful passes


def test_whatever_a_registry_writes_is_taken_over(
    three: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inlay.evals.guards import judge

    monkeypatch.setattr(Registry, "judge", staticmethod(judge))
    base = make_base(tmp_path / "base")
    other = make_base(tmp_path / "other", template="{{ other }}")
    mismatched = {"base": {"weights": "sha256:" + "7" * 64, "prompt": "x"}}
    three.add("team/odd", make_adapter(tmp_path / "m", seed=61), base=base, run=mismatched,
              allow_base_mismatch=True, why="Grüße — 値", owner="Zoë")  # fmt: skip
    three.add("team/odd", make_adapter(tmp_path / "m2", seed=62), base=other, accept_prompt_change=True)
    put_suite(three, "general", 400)
    score(three, "base", "general", (True,) * 400)
    score(three, "legal@v1", "general", (True,) * 400)
    score(three, "legal@v2", "general", (False,) * 400)
    guard = {"forget": 0.2, "suites": {"general": ["general"]}, "protocol": {"template": "chat"}}
    three.set_guard("legal@prod", guard)
    three.promote("legal@v1", "prod")
    with pytest.raises(InlayError):
        three.promote("legal@v2", "prod")
    three.set_guard("legal@prod", None, why="off")
    three.promote("legal@v2", "prod", expect="v1")
    three.rollback("legal@prod", why="x", to="v1")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"base: {base}\nguard: {{forget: 0.1, suites: {{general: [general]}}}}\ncompose:\n"
                      "  merge: [legal@v1, {use: style@v1, weight: -0.5}]\n  rank: 2\n  seed: 7\n"
                      "  space: dense\n")  # fmt: skip
    three.lock("acme/one", recipe)
    three.lock("acme/two", {"base": str(base), "use": "base"})
    three.lock("acme/three", {"stack": ["legal@v1", {"use": "acme/one@v1", "weight": 2}], "weight": 0.5})
    three.lock("acme/four", {"stack": [{"use": "acme/three@v1", "weight": 3.0}, "acme/two@v1"]})
    three.lock("acme/four", "route: {by: request, experts: [acme/four@v1, style@v1]}")
    three.lock("acme/five", {"base": str(base), "use": "acme/two@v1", "weight": 2.0})
    three.lock("acme/six", f"sha256:{three.resolve('legal@v1').digest[7:27]}")
    three.lock("acme/seven", "route: {by: arrow, experts: [legal@v1, style@v1]}\nweight: 2")
    for name in ("one", "two", "three", "four", "five", "six", "seven"):
        three.promote(f"acme/{name}@v1", "prod", force=True, why="x")
    three.yank("acme/two@v1", why="x", otherwise="disable")
    three.rollback("acme/three@prod", why="x", otherwise="base")
    three.rollback("legal@prod", why="x", dependents=True, otherwise="disable")
    three.retire("acme/four@v2", why="tidy")
    three.describe("team/odd", owner="Zoë", description="ü \n\x00\u202e", tag=["a=b:c/d"], untag=["x"])
    three.describe("team/odd", tag=["x"], untag=["a=b:c/d"])
    assert three.fsck() == []
    three.bundle(tmp_path / "all.bundle")
    with fresh(tmp_path / "copy") as copy:
        copy.unbundle(tmp_path / "all.bundle")
        assert tables(copy) == tables(three) and copy.fsck(three.journal_head()) == []
    with fresh(tmp_path / "third") as third:
        third.add("before", make_adapter(tmp_path / "b", seed=63), base=base)
        third.unbundle(tmp_path / "all.bundle")
        assert third.fsck() == []
        same(three, third, tuple(row.name for row in three.names()))


def test_rows_of_the_first_schema_are_taken_over(rich_made: Path, tmp_path: Path) -> None:
    """They sealed no record and knew neither licence nor card."""
    forged = Forged(rich_made / "all.bundle")
    for row in forged.rows["journal"]:
        said = json.loads(row["detail"])
        said.pop("record", None)
        row["detail"] = written(said)
    for row in forged.rows["versions"]:
        del row["licence"], row["card"]
    forged.seal().write(tmp_path / "old.bundle")
    with fresh(tmp_path / "copy") as copy:
        assert len(copy.unbundle(tmp_path / "old.bundle").versions) == 8
        assert copy.fsck() == [] and copy.resolve("legal@v1").licence is None


# Others at the same time


def test_gc_in_the_middle_takes_nothing_that_is_needed(
    rich_made: Path, elsewhere: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, taken = unbundling._check_contents, []

    def then_gc(*arguments: Any) -> None:
        real(*arguments)
        with Registry.open(elsewhere.path) as other:
            taken.extend(other.gc(grace=0))

    monkeypatch.setattr(unbundling, "_check_contents", then_gc)
    elsewhere.unbundle(rich_made / "all.bundle")
    assert len(taken) > 15 and elsewhere.fsck() == []


def test_somebody_quicker_leaves_nothing_to_do(
    rich_made: Path, elsewhere: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = unbundling._check_contents

    def then_another(*arguments: Any) -> None:
        real(*arguments)
        monkeypatch.undo()
        with Registry.open(elsewhere.path) as other:
            assert other.unbundle(rich_made / "all.bundle").events > 0

    monkeypatch.setattr(unbundling, "_check_contents", then_another)
    done = elsewhere.unbundle(rich_made / "all.bundle")
    assert (done.events, done.evals, done.versions) == (0, 0, ()) and elsewhere.fsck() == []
