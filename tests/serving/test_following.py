"""Following: what any process does to the registry is what new requests get within a second; what cannot be
loaded, or a store that cannot be read, stops nobody."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from registry_fakes import make_adapter, make_base
from serving_fakes import ask, request
from shelf_fakes import Told, at_once, damage, put, shelving

from inlay.composer import compose
from inlay.errors import InputError, IntegrityError, ReferenceNotFound, StoreBusy
from inlay.evals.inference import Base
from inlay.registry import Registry
from inlay.serving import following as following_module
from inlay.serving import shelf as shelf_module
from inlay.serving.following import Following
from inlay.serving.shelf import Shelf

_OTHER = """
import json, sys, time
from inlay.registry import Registry
with Registry.open(sys.argv[1]) as store:
    print("ready", flush=True)
    for line in sys.stdin:
        verb, *arguments, more = json.loads(line)
        getattr(store, verb)(*arguments, **more)
        print(time.monotonic(), flush=True)
"""


class Elsewhere:
    """Another process on the same store; each deed's end on the machine's monotonic clock."""

    def __init__(self, store: Registry) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _OTHER, str(store.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "ready"

    def __call__(self, verb: str, *arguments: str, **more: Any) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([verb, *arguments, more]) + "\n")
        self._process.stdin.flush()
        return float(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.communicate(timeout=30)


@pytest.fixture
def elsewhere(store: Registry) -> Iterator[Elsewhere]:
    process = Elsewhere(store)
    yield process
    process.close()


@pytest.fixture
def acme(store: Registry, base: Base, tmp_path: Path) -> Registry:
    """`acme` with three versions, v1 live."""
    for seed in (1, 2, 3):
        put(store, base, tmp_path, "acme", seed=seed)
    store.promote("acme@v1", "prod")
    return store


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def followed(acme: Registry, base: Base, told: Told) -> Iterator[Following]:
    with shelving(acme, base, observer=told) as (shelf, _):
        following = Following(acme, shelf, every=0.05, observer=told)
        following.start()
        try:
            yield following
        finally:
            following.stop()


def served(following: Following, ref: str) -> str:
    """The version that a request gets."""
    loaded = following.take(ref)
    following.shelf.give_back(loaded)
    return loaded.ref


def within(seconds: float, what: Callable[[], bool]) -> float:
    """How long it took until it was so."""
    started = time.monotonic()
    while not what():
        assert time.monotonic() - started < seconds, f"not within {seconds} s"
        time.sleep(0.005)
    return time.monotonic() - started


def slow_reads(monkeypatch: pytest.MonkeyPatch, seconds: float) -> threading.Event:
    """Reading an adapter takes this long; set once somebody does."""
    read, begun = shelf_module.adapter_of, threading.Event()

    def slowly(*args: Any) -> Any:
        begun.set()
        time.sleep(seconds)
        return read(*args)

    monkeypatch.setattr(shelf_module, "adapter_of", slowly)
    return begun


def test_every_way_to_write_a_reference(followed: Following, acme: Registry, base: Base, told: Told) -> None:
    digest = acme.resolve("acme@v2").digest
    acme.promote("acme@v3", "canary")
    for ref, expected in (
        ("acme", "acme@v1"),
        ("acme@prod", "acme@v1"),
        ("acme@canary", "acme@v3"),
        ("acme@v2", "acme@v2"),
        (f"acme@{digest[:20]}", "acme@v2"),
        (digest, "acme@v2"),
        ("base", "base"),
    ):
        assert served(followed, ref) == expected
    assert followed.take("base").digest == base.fingerprint.weights
    assert len(told.loads) == 3, "whatever it is called, a version is loaded once"
    assert followed.problems() == {} and followed.ready and followed.store_age() < 1


def test_what_is_unknown_is_looked_for_again_each_time(
    followed: Following, acme: Registry, base: Base, tmp_path: Path
) -> None:
    for ref in ("late", "late@v1", "acme@none", "acme@v9", "Not a name!", "base@prod", "", "acme@v01"):
        with pytest.raises(ReferenceNotFound):
            followed.take(ref)
    put(acme, base, tmp_path, "late", seed=5)
    assert served(followed, "late@v1") == "late@v1"
    acme.promote("late@v1", "prod")
    acme.promote("acme@v2", "none")
    assert served(followed, "late") == "late@v1" and served(followed, "acme@none") == "acme@v2"
    assert followed.problems() == {}


def test_another_process_is_followed_within_a_second(
    followed: Following, elsewhere: Elsewhere, told: Told
) -> None:
    assert served(followed, "acme") == "acme@v1"
    forward = ("promote", "acme@v2", "prod"), {}, "acme@v2"
    back = ("rollback", "acme@prod"), {"why": "bad"}, "acme@v1"
    onward = ("promote", "acme@v3", "prod"), {}, "acme@v3"
    yanked = ("yank", "acme@v3"), {"why": "rude"}, "acme@v2"  # gives way to what was live before it
    delays = []
    for arguments, more, expected in [*[forward, back] * 8, forward, back, forward, onward, yanked]:
        done = elsewhere(*arguments, **more)
        while served(followed, "acme") != expected:
            assert time.monotonic() - done < 1.0
            time.sleep(0.002)
        delays.append(time.monotonic() - done)
    assert len(told.swaps) == len(delays) == 21 and max(delays) < 1.0
    assert told.swaps[-1] == ("acme@prod", "acme@v3", "acme@v2")


def test_the_command_line_is_followed_too(followed: Following, acme: Registry) -> None:
    assert served(followed, "acme") == "acme@v1"
    for arguments, expected in (
        (["promote", "acme@v3", "--why", "better"], "acme@v3"),
        (["rollback", "acme@prod", "--why", "worse"], "acme@v1"),
    ):
        subprocess.run(
            [sys.executable, "-m", "inlay", *arguments, "--store", str(acme.path)],
            check=True,
            capture_output=True,
        )
        within(1.0, lambda expected=expected: served(followed, "acme") == expected)  # type: ignore[misc]


def test_the_old_one_goes_on_while_the_new_one_is_loaded(
    followed: Following, acme: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = followed.take("acme")
    begun = slow_reads(monkeypatch, 0.5)
    acme.promote("acme@v2", "prod")
    assert begun.wait(1.0)
    asked = time.monotonic()
    assert served(followed, "acme") == "acme@v1" and time.monotonic() - asked < 0.2
    within(2.0, lambda: served(followed, "acme") == "acme@v2")
    assert running.ref == "acme@v1" and followed.shelf.uses(running) == 1
    assert followed.shelf.holds(acme.resolve("acme@v1")), "what runs keeps what it has"


def test_a_version_that_cannot_be_loaded_leaves_the_old_one(
    followed: Following, acme: Registry, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following_module, "FIRST_PAUSE", 0.1)
    assert served(followed, "acme") == "acme@v1"
    undo = damage(acme, "acme@v2")
    acme.promote("acme@v2", "prod")
    within(1.0, lambda: "acme@prod" in followed.problems())
    assert "acme@v2 could not be loaded: " in followed.problems()["acme@prod"]
    assert "no longer has the bytes" in followed.problems()["acme@prod"]
    assert served(followed, "acme") == "acme@v1"
    within(3.0, lambda: len(told.failures) >= 4)
    known = followed._known["acme@prod"]
    assert known.pause >= 0.4, "each pause is twice the one before"
    assert served(followed, "acme@v1") == "acme@v1" and told.swaps == []
    undo()
    within(known.pause + 1.0, lambda: served(followed, "acme") == "acme@v2")
    assert followed.problems() == {} and told.swaps == [("acme@prod", "acme@v1", "acme@v2")]


def test_every_change_is_a_chance_for_what_could_not_be_loaded(
    followed: Following, acme: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following_module, "FIRST_PAUSE", 25.0)
    assert served(followed, "acme") == "acme@v1"
    undo = damage(acme, "acme@v2")
    acme.promote("acme@v2", "prod")
    within(1.0, lambda: "acme@prod" in followed.problems())
    undo()
    acme.describe("acme", description="whole again")
    within(1.0, lambda: served(followed, "acme") == "acme@v2")
    # From the broken one back to the one that is served: nothing is to be loaded, and nothing is wrong.
    damage(acme, "acme@v3")
    acme.promote("acme@v3", "prod")
    within(1.0, lambda: "acme@prod" in followed.problems())
    acme.rollback("acme@prod", why="broken")
    within(1.0, lambda: followed.problems() == {})
    assert served(followed, "acme") == "acme@v2"


def test_one_that_was_put_away_and_cannot_be_had_again_gives_way_to_the_old(
    acme: Registry, base: Base, told: Told
) -> None:
    """With room for one: the alias moves while its version is not in memory, so whoever asks next loads."""
    with shelving(acme, base) as (shelf, _):
        size = shelf.take(acme.resolve("acme@v1")).nbytes
    with shelving(acme, base, budget=size, observer=told) as (shelf, _):
        following = Following(acme, shelf, every=0.02, observer=told)
        following.start()
        try:
            assert served(following, "acme") == "acme@v1"
            assert served(following, "acme@v3") == "acme@v3"
            damage(acme, "acme@v2")
            acme.promote("acme@v2", "prod")
            within(1.0, lambda: told.swaps == [("acme@prod", "acme@v1", "acme@v2")])
            assert told.failures == [], "nobody asked for it"
            assert served(following, "acme") == "acme@v1"
            assert "acme@v2" in following.problems()["acme@prod"]
            assert told.swaps[1:] == [("acme@prod", "acme@v2", "acme@v1")]
            # The old one is out of memory again when something else is said about the name.
            assert served(following, "acme@v3") == "acme@v3"
            failures = len(told.failures)
            acme.describe("acme", description="looked into")
            within(1.0, lambda: len(told.failures) > failures)
            assert served(following, "acme") == "acme@v1"
        finally:
            following.stop()


def test_what_was_yanked_is_refused_and_what_runs_is_finished(followed: Following, acme: Registry) -> None:
    running = followed.take("acme")
    pinned = f"acme@{running.digest[:20]}"
    assert served(followed, pinned) == served(followed, "acme@v1") == "acme@v1"
    acme.yank("acme@v1", why="rude", otherwise="disable")
    within(1.0, lambda: _or(followed, "acme@v1") is None)
    assert followed.problems() == {}, "it was meant so"
    for ref in ("acme@v1", pinned):
        with pytest.raises(InputError, match="acme@v1, which was yanked and is not served") as caught:
            followed.take(ref)
        assert not isinstance(caught.value, ReferenceNotFound)
    with pytest.raises(ReferenceNotFound, match=r"disabled by .*rude"):
        followed.take("acme")
    assert followed.shelf.uses(running) == 1
    acme.promote("acme@v2", "prod")
    within(1.0, lambda: _or(followed, "acme") == "acme@v2")


def _or(following: Following, ref: str) -> str | None:
    try:
        return served(following, ref)
    except InputError:
        return None


def test_nobody_new_gets_what_was_yanked_not_even_while_its_successor_is_loaded(
    followed: Following, acme: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    acme.promote("acme@v2", "prod")
    assert served(followed, "acme") == "acme@v2"
    begun = slow_reads(monkeypatch, 0.5)
    acme.yank("acme@v2", why="rude")
    time.sleep(0.3)
    found = at_once(lambda _: served(followed, "acme"), 3)
    assert found == ["acme@v1"] * 3 and begun.is_set()


def test_a_target_of_another_base_is_unknown(
    followed: Following, acme: Registry, base: Base, tmp_path: Path
) -> None:
    other = make_base(tmp_path / "other")
    acme.add("foreign", make_adapter(tmp_path / "foreign", seed=1), base=other)
    acme.promote("foreign@v1", "prod")
    for ref in ("foreign", "foreign@v1"):
        with pytest.raises(ReferenceNotFound):
            followed.take(ref)
    assert followed.problems() == {}, "nobody was ever served it"
    assert served(followed, "acme") == "acme@v1"
    acme.add("acme", make_adapter(tmp_path / "moved", seed=2), base=other)
    acme.promote("acme@v4", "prod")
    within(1.0, lambda: "acme@prod" in followed.problems())
    assert "made for another base" in followed.problems()["acme@prod"]
    with pytest.raises(ReferenceNotFound):
        followed.take("acme")
    acme.rollback("acme@prod", why="another base")
    within(1.0, lambda: _or(followed, "acme") == "acme@v1")
    assert followed.problems() == {}


def test_a_store_that_is_gone_stops_nobody_and_comes_back_by_itself(
    followed: Following, acme: Registry, base: Base, tmp_path: Path
) -> None:
    assert served(followed, "acme") == "acme@v1"
    away = acme.path.with_name("away")
    acme.path.rename(away)
    time.sleep(0.5)
    assert served(followed, "acme") == "acme@v1" and followed.ready
    assert followed.store_age() > 0.3
    with pytest.raises(StoreBusy):
        followed.take("acme@v2")  # its bytes cannot be read
    assert [row.ref for row in followed.names()] == ["base"] or followed.names()[1].ref == "acme@prod"
    with Registry.open(away) as moved:
        moved.promote("acme@v2", "prod")
    away.rename(acme.path)
    within(1.0, lambda: served(followed, "acme") == "acme@v2")
    assert followed.store_age() < 0.3
    assert served(followed, "acme@v2") == "acme@v2"


def test_another_file_in_the_stores_place_is_opened(
    followed: Following, acme: Registry, tmp_path: Path
) -> None:
    """As a backup is put back: the folder is another one, and nobody tells the server."""
    assert served(followed, "acme") == "acme@v1"
    restored = tmp_path / "restored"
    shutil.copytree(acme.path, restored)
    with Registry.open(restored) as copy:
        copy.promote("acme@v3", "prod")
    acme.path.rename(tmp_path / "old")
    restored.rename(acme.path)
    within(1.0, lambda: served(followed, "acme") == "acme@v3")
    with Registry.open(acme.path) as other:
        other.promote("acme@v2", "prod")
    within(1.0, lambda: served(followed, "acme") == "acme@v2")
    # An older backup: the journal goes another way, and so do the aliases.
    older = tmp_path / "older"
    with Registry.open(older, create=True):
        pass
    acme.path.rename(tmp_path / "newer")
    older.rename(acme.path)
    within(1.0, lambda: _or(followed, "acme") is None)
    acme.path.rename(tmp_path / "older")
    (tmp_path / "newer").rename(acme.path)
    within(1.0, lambda: _or(followed, "acme") == "acme@v2")


def test_a_file_on_its_way_into_the_stores_place_is_left_alone(
    followed: Following, acme: Registry, tmp_path: Path
) -> None:
    assert served(followed, "acme") == "acme@v1"
    away, database = acme.path.with_name("away"), acme.path / "registry.db"
    whole = tmp_path / "whole.db"
    with sqlite3.connect(database) as source, sqlite3.connect(whole) as target:
        source.backup(target)
    acme.path.rename(away)
    acme.path.mkdir()
    for data in (b"", whole.read_bytes()[: whole.stat().st_size // 2]):
        database.write_bytes(data)
        time.sleep(0.3)
        assert database.read_bytes() == data, "nothing is made of it, or repaired in it"
        assert followed.store_age() > 0.2 and served(followed, "acme") == "acme@v1"
    acme.path.rename(tmp_path / "half")
    away.rename(acme.path)
    within(1.0, lambda: followed.store_age() < 0.2)
    acme.promote("acme@v2", "prod")
    within(1.0, lambda: served(followed, "acme") == "acme@v2")


def test_a_first_load_that_fails_is_not_repeated_by_every_request(
    followed: Following, acme: Registry, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following_module, "FIRST_PAUSE", 0.3)
    undo = damage(acme, "acme@v1")
    for _ in range(5):
        with pytest.raises(IntegrityError, match="no longer has the bytes"):
            followed.take("acme")
    assert len(told.failures) == 1 and "acme@prod" in followed.problems()
    undo()
    within(1.0, lambda: _unless_broken(followed) == "acme@v1")
    assert followed.problems() == {}


def _unless_broken(following: Following) -> str | None:
    try:
        return served(following, "acme")
    except IntegrityError:
        return None


def test_models_are_the_aliases_that_can_be_served(
    followed: Following, acme: Registry, base: Base, tmp_path: Path
) -> None:
    lock = acme.lock("both", {"stack": ["acme@v1", "acme@v2"]})
    acme.promote("both@v1", "prod")
    acme.promote("acme@v2", "canary")
    acme.promote("acme@v3", "gone")
    acme.yank("acme@v3", why="rude", otherwise="disable")
    acme.add("foreign", make_adapter(tmp_path / "f", seed=1), base=make_base(tmp_path / "other"))
    acme.promote("foreign@v1", "prod")

    def found() -> dict[str, str]:
        return {row.ref: row.digest for row in followed.names()}

    expected = {
        "base": base.fingerprint.weights,
        "acme@canary": acme.resolve("acme@v2").digest,
        "acme@prod": acme.resolve("acme@v1").digest,
        "both@prod": lock.digest,
    }
    within(1.0, lambda: found() == expected)
    assert followed.names()[0].created == "" and followed.names()[1].created.startswith("20")
    # What cannot be loaded is listed as what is served in its place.
    assert served(followed, "acme@prod") == "acme@v1"
    damage(acme, "acme@v2")
    acme.promote("acme@v2", "prod")
    within(1.0, lambda: "acme@prod" in followed.problems())
    assert found()["acme@prod"] == acme.resolve("acme@v1").digest


def test_no_more_references_are_followed_than_there_is_room_for(
    followed: Following, acme: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following_module, "KEPT", 8)
    digest = acme.resolve("acme@v2").digest
    for length in range(8, 64):
        assert served(followed, f"acme@{digest[: len('sha256:') + length]}") == "acme@v2"
        assert len(followed._known) <= 8


def test_no_request_is_more_than_a_second_behind(
    followed: Following, acme: Registry, elsewhere: Elsewhere
) -> None:
    """Threads that take and give back all the while; each must get what was live at most a second before."""
    over, lock = threading.Event(), threading.Lock()
    live = [(0.0, "acme@v1")]  # since when, which
    failures: list[str] = []

    def client(_: int) -> None:
        while not over.is_set():
            asked = time.monotonic()
            found = served(followed, "acme")
            with lock:
                known = list(live)
            ends = [start for start, _ in known[1:]] + [float("inf")]
            allowed = {ref for (_, ref), end in zip(known, ends, strict=True) if end > asked - 1.0}
            if found not in allowed and found != upcoming[0]:
                failures.append(f"{found} is not in {allowed}")
            time.sleep(0.001)

    upcoming = ["acme@v1"]
    clients = threading.Thread(target=lambda: at_once(client, 4))
    clients.start()
    try:
        for turn in range(30):
            upcoming[0] = f"acme@v{1 + (turn + 1) % 3}"
            done = elsewhere("promote", upcoming[0], "prod")
            with lock:
                live.append((done, upcoming[0]))
            time.sleep(0.07)
    finally:
        over.set()
        clients.join()
    assert failures == []
    assert all(followed.shelf.uses(each) == 0 for each in followed.shelf.loaded())


def test_answers_under_rollbacks_are_one_versions_own(
    acme: Registry, base: Base, elsewhere: Elsewhere
) -> None:
    """With the real scheduler: what is said is wholly what its digest says, greedily, and nothing fails."""
    from inlay.serving.scheduler import Scheduler

    prompts = ["Which queue handles this message?\nMy parcel is late.", "Say something about the river"]
    expected = {}
    for number in (1, 2):
        model = compose(f"acme@v{number}", store=acme, base=base)
        try:
            expected[model.target.digest] = model.generate(prompts, max_new_tokens=24)
        finally:
            model.detach()
    assert not set.intersection(*(set(texts) for texts in expected.values()))
    scheduler = Scheduler(base, rows=8)
    shelf = Shelf(acme, scheduler, base)
    following = Following(acme, shelf)
    over, wrong, seen = threading.Event(), [], []

    def client(number: int) -> None:
        while not over.is_set():
            loaded = following.take("acme")
            try:
                ear = ask(scheduler, loaded, request(base, prompts[number % 2], max_tokens=24))
                ear.wait()
            finally:
                shelf.give_back(loaded)
            seen.append(loaded.ref)
            if ear.text.strip() != expected[loaded.digest][number % 2].strip():
                wrong.append((loaded.ref, ear.text))

    try:
        scheduler.start()
        following.start()
        results: list[Any] = []
        clients = threading.Thread(target=lambda: results.extend(at_once(client, 4)))
        clients.start()
        for _ in range(4):
            for verb, arguments, more, ref in (
                ("promote", ("acme@v2", "prod"), {}, "acme@v2"),
                ("rollback", ("acme@prod",), {"why": "bad"}, "acme@v1"),
            ):
                done = elsewhere(verb, *arguments, **more)
                while served(following, "acme") != ref:
                    assert time.monotonic() - done < 1.0
                    time.sleep(0.005)
                time.sleep(0.2)
        over.set()
        clients.join()
        assert results == [None] * 4 and wrong == [] and set(seen) == {"acme@v1", "acme@v2"}
    finally:
        over.set()
        following.stop()
        scheduler.stop()
        scheduler.bank.detach()
