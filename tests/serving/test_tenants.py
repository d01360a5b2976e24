"""Who is let in, what they may reach, how often; from another process within a second."""

from __future__ import annotations

import gc
import logging
import math
import random
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.errors import InlayError
from inlay.registry import Registry
from inlay.serving import tenants as module
from inlay.serving.tenants import Caller, Limits, Refused, Tenants


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


Open = Callable[..., Tenants]


@pytest.fixture
def opened(store: Registry) -> Iterator[Open]:
    """Makes Tenants of the store that look only when they are told to; closed after the test."""
    made: list[Tenants] = []

    def make(*, required: bool = False, every: float = 3600.0, **options: Any) -> Tenants:
        made.append(Tenants(store, required=required, every=every, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def one_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    """Tenants of a store with one key, whose secret nobody has."""
    with Registry.open(tmp_path_factory.mktemp("one") / "store", create=True) as store:
        store.add_key("acme-corp")
        tenants = Tenants(store, required=False, every=3600.0)
        yield tenants
        tenants.close()


def refusal(tenants: Tenants, authorization: str | None) -> Refused:
    with pytest.raises(Refused) as caught:
        tenants.of(authorization)
    return caught.value


def bearer(secret: str) -> str:
    return f"Bearer {secret}"


# Who is let in.


def test_without_keys_everybody_on_this_machine_is_local(opened: Open) -> None:
    tenants = opened()
    for header in (None, "", "Bearer anything", "Basic YTpi", "\x00"):
        caller = tenants.of(header)
        assert (caller.tenant, caller.key, caller.admin) == ("local", None, True)
        assert caller.may("acme@prod", "acme") and caller.may("base", "base")
    with tenants.admitted(caller), tenants.admitted(caller):
        pass


def test_without_keys_nobody_is_let_in_from_elsewhere(opened: Open) -> None:
    assert refusal(opened(required=True), "Bearer anything").status == 401


@pytest.mark.parametrize("required", [False, True])
def test_from_the_first_key_on_one_is_needed(required: bool, store: Registry, opened: Open) -> None:
    tenants = opened(required=required)
    key, secret = store.add_key("acme-corp", name="phone", allow=["acme"], admin=True)
    tenants.look()
    caller = tenants.of(bearer(secret))
    assert (caller.tenant, caller.key, caller.name, caller.admin) == ("acme-corp", key.id, "phone", True)
    assert refusal(tenants, None).status == 401
    store.revoke_key(key.id, "lost")
    tenants.look()
    assert refusal(tenants, bearer(secret)).status == refusal(tenants, None).status == 401, (
        "that all keys are revoked opens no door"
    )
    again = opened(required=required)
    assert refusal(again, None).status == refusal(again, bearer(secret)).status == 401


def test_missing_wrong_and_revoked_are_refused_alike(store: Registry, opened: Open) -> None:
    (_, secret), (gone, revoked) = store.add_key("acme-corp"), store.add_key("acme-corp")
    store.revoke_key(gone.id, "lost")
    tenants = opened()
    assert tenants.of(bearer(secret)).tenant == "acme-corp"
    wrong = [
        None, "", "Bearer", "Bearer ", bearer("inlay-wrong"), bearer(revoked), secret, f"Basic {secret}",
        f"Token {secret}", bearer(secret[:-1]), bearer(secret + "x"), bearer(f"{secret} {secret}"),
        bearer(gone.digest), bearer(gone.id), bearer("é" * 1000), "\ud800", bearer("x" * 1_000_000),
    ]  # fmt: skip
    found = [refusal(tenants, header) for header in wrong]
    assert {(str(e), e.status, e.retry_after) for e in found} == {
        (
            "an API key that is valid here is needed; send it as `Authorization: Bearer …`",
            401,
            None,
        )
    }


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER {}", "Bearer   {}", "Bearer {} "])
def test_how_a_key_is_sent(form: str, store: Registry, opened: Open) -> None:
    key, secret = store.add_key("acme-corp")
    assert opened().of(form.format(secret)).key == key.id


@settings(max_examples=200, deadline=None)
@given(header=st.one_of(st.text(), st.text().map(bearer), st.binary().map(lambda b: b.decode("latin-1"))))
def test_no_other_header_lets_in(header: str, one_key: Tenants) -> None:
    assert refusal(one_key, header).status == 401


def test_a_damaged_key_lets_nobody_in_and_stops_nobody(store: Registry, opened: Open) -> None:
    (bad, secret), (_, others) = store.add_key("acme-corp", allow=["acme"]), store.add_key("acme-corp")
    connection = store._store.db.connection
    connection.execute("DROP TRIGGER api_keys_refuse_update")
    connection.execute("UPDATE api_keys SET allow = '[\"*\"]' WHERE id = ?", [bad.id])
    tenants = opened()
    assert refusal(tenants, bearer(secret)).status == 401
    assert tenants.of(bearer(others)).tenant == "acme-corp"


# What they may reach.


def caller(*allow: str) -> Caller:
    return Caller("acme-corp", "0" * 12, None, frozenset(allow), False, Limits(None, None))


DIGEST = f"sha256:{'ab' * 32}"


@pytest.mark.parametrize(
    ("allow", "ref", "name", "may"),
    [
        ("*", "acme@prod", "acme", True),
        ("*", "base", "base", True),
        ("*", DIGEST, "acme", True),
        ("acme", "acme", "acme", True),
        ("acme", "acme@prod", "acme", True),
        ("acme", "acme@v3", "acme", True),
        ("acme", f"acme@{DIGEST}", "acme", True),
        ("acme", DIGEST, "acme", True),
        ("acme", "acme2@prod", "acme2", False),
        ("acme", "team/acme", "team/acme", False),
        ("acme", "base", "base", False),
        ("acme", "", "", False),
        ("acme@prod", "acme", "acme", True),
        ("acme@prod", "acme@prod", "acme", True),
        ("acme@prod", "acme@v3", "acme", False),
        ("acme@prod", "acme@prod2", "acme", False),
        ("acme@prod", "acme@canary", "acme", False),
        ("acme@v3", "acme@v3", "acme", True),
        ("acme@v3", "acme@v33", "acme", False),
        ("acme@v3", "acme", "acme", False),
        (f"acme@{DIGEST}", f"acme@{DIGEST}", "acme", True),
        (f"acme@{DIGEST[:15]}", f"acme@{DIGEST}", "acme", False),
        (f"acme@{DIGEST}", f"other@{DIGEST}", "other", False),
        ("base", "base", "base", True),
        ("base", "acme", "acme", False),
        ("team/acme", "team/acme@v1", "team/acme", True),
    ],
)
def test_what_an_entry_allows(allow: str, ref: str, name: str, may: bool) -> None:
    assert caller(allow).may(ref, name) is may
    assert caller("other@v1", allow, "third").may(ref, name) is may, "an entry is not less beside others"


NAMES = st.sampled_from(["acme", "legal", "team/acme"])
ENDS = st.sampled_from(["", "@prod", "@canary", "@v1", "@v12", f"@{DIGEST}"])
ENTRIES = st.one_of(st.just("*"), st.just("base"), st.tuples(NAMES, ENDS).map("".join))


@given(allow=st.lists(ENTRIES, max_size=4), name=NAMES, end=ENDS)
def test_what_a_list_allows_is_what_any_of_its_entries_does(allow: list[str], name: str, end: str) -> None:
    ref = name + end
    exact = ref if "@" in ref else f"{ref}@prod"
    assert caller(*allow).may(ref, name) is any(entry in ("*", name, exact) for entry in allow)
    assert caller(*allow).may("base", "base") is any(entry in ("*", "base") for entry in allow)


# How often.


def admits(limits: Limits) -> int | None:
    """None where a request was admitted and has ended, else the seconds after which to try again."""
    try:
        with limits.admitted():
            return None
    except Refused as error:
        assert error.status == 429 and error.retry_after is not None
        return error.retry_after


def bucket(rate: int, times: Sequence[Fraction]) -> list[bool]:
    """A token bucket by its definition, in exact arithmetic."""
    tokens, before, found = Fraction(rate), times[0], []
    for now in times:
        tokens, before = min(Fraction(rate), tokens + (now - before) * rate / 60), now
        found.append(tokens >= 1)
        tokens -= tokens >= 1
    return found


STEPS = st.lists(
    st.one_of(st.just(0), st.integers(0, 3_000), st.integers(0, 90_000)), min_size=1, max_size=120
)


@settings(max_examples=300, deadline=None)
@given(rate=st.integers(1, 100), steps=STEPS)
def test_the_rate_is_a_token_bucket(rate: int, steps: list[int]) -> None:
    """`steps`: milliseconds between requests."""
    clock = Clock()
    limits = Limits(rate, None, clock)
    times, at = [], 0
    for step in steps:
        at += step
        times.append(Fraction(at, 1000))
    found = []
    for time_ in times:
        clock.at = 1000.0 + float(time_)
        found.append(admits(limits) is None)
    assert found == bucket(rate, times)
    admitted = [t for t, yes in zip(times, found, strict=True) if yes]
    for first in range(len(admitted)):
        for last in range(first, len(admitted)):
            assert last - first + 1 <= rate + rate * (admitted[last] - admitted[first]) / 60


@settings(max_examples=200, deadline=None)
@given(rate=st.integers(1, 2000), late=st.floats(0, 120, allow_nan=False))
def test_whoever_waits_as_told_is_admitted_and_not_told_to_wait_for_long(rate: int, late: float) -> None:
    clock = Clock()
    limits = Limits(rate, None, clock)
    assert [admits(limits) for _ in range(rate)] == [None] * rate
    clock.at += late * 0.01
    wait = admits(limits)
    if wait is not None:
        assert 1 <= wait <= math.ceil(60 / rate)
        clock.at += wait
        assert admits(limits) is None


def test_what_is_refused_uses_nothing_up() -> None:
    clock = Clock()
    limits = Limits(2, 1, clock)
    with limits.admitted():
        for _ in range(10):  # over `concurrent`: not counted by the rate
            assert admits(limits) == 1
    assert admits(limits) is None
    for _ in range(10):  # over the rate: neither counted again nor left running
        assert admits(limits) == 30
    clock.at += 30
    assert admits(limits) is None


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    clock = Clock()
    limits = Limits(3, None, clock)
    assert [admits(limits) for _ in range(3)] == [None] * 3
    clock.at -= 500
    assert admits(limits) == 520
    clock.at += 500
    assert admits(limits) == 20


def test_threads_get_no_more_than_the_rate_together() -> None:
    limits, admitted = Limits(500, None, Clock()), list[int]()

    def work(n: int) -> None:
        for _ in range(200):
            if admits(limits) is None:
                admitted.append(n)

    in_threads(work, 8)
    assert len(admitted) == 500


def test_threads_never_run_more_at_once_than_may() -> None:
    limits = Limits(None, 3)
    running, most, done, refused = [0], [0], [0], [0]
    count = threading.Lock()

    def work(n: int) -> None:
        dice = random.Random(n)
        left = 60
        while left:
            try:
                with limits.admitted():
                    with count:
                        running[0] += 1
                        most[0] = max(most[0], running[0])
                    time.sleep(dice.random() * 0.0005)
                    with count:
                        running[0] -= 1
                        done[0] += 1
                    left -= 1
                    if dice.random() < 0.2:
                        raise KeyError("a request that failed")
            except Refused as error:
                assert (error.status, error.retry_after) == (429, 1)
                refused[0] += 1
                time.sleep(0.0002)
            except KeyError:
                pass

    in_threads(work, 12)
    assert (most[0], done[0]) == (3, 12 * 60) and refused[0] > 0
    with limits.admitted(), limits.admitted(), limits.admitted():
        assert admits(limits) == 1
    assert admits(limits) is None


def in_threads(work: Callable[[int], None], n: int) -> None:
    failures: list[BaseException] = []

    def guarded(i: int) -> None:
        try:
            work(i)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_request_that_was_forgotten_is_not_counted_for_ever() -> None:
    limits = Limits(None, 1)
    running = limits.admitted()
    running.__enter__()
    assert admits(limits) == 1
    del running
    gc.collect()
    assert admits(limits) is None


def test_every_key_has_limits_of_its_own_and_keeps_what_it_used(store: Registry, opened: Open) -> None:
    (_, one), (other, two) = (store.add_key("acme-corp", rate=1, concurrent=1) for _ in range(2))
    clock = Clock()
    tenants = opened(now=clock)

    def ask(secret: str) -> None:
        with tenants.admitted(tenants.of(bearer(secret))):
            pass

    ask(one)
    with pytest.raises(Refused, match="may send 1 requests a minute; try again in 60 s"):
        ask(one)
    store.add_key("further")
    tenants.look()
    with pytest.raises(Refused):
        ask(one)
    ask(two)
    clock.at += 60
    with tenants.admitted(tenants.of(bearer(two))):
        store.revoke_key(other.id, "lost")
        tenants.look()  # what runs goes on
        ask(one)
    assert refusal(tenants, bearer(two)).status == 401


# Following the store.

REVOKE = """
import sys
from inlay.registry import Registry
with Registry.open(sys.argv[1]) as registry:
    print("ready", flush=True)
    for line in sys.stdin:
        verb, _, what = line.strip().partition(" ")
        said = registry.add_key(what)[1] if verb == "add" else registry.revoke_key(what, "lost").id
        print(said, flush=True)
"""


def test_another_process_is_heard_of_within_a_second(store: Registry, opened: Open) -> None:
    tenants = opened(every=0.5)
    other = subprocess.Popen(
        [sys.executable, "-c", REVOKE, str(store.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdin is not None and other.stdout is not None

    def says(line: str) -> str:
        assert other.stdin is not None and other.stdout is not None
        other.stdin.write(line + "\n")
        other.stdin.flush()
        return other.stdout.readline().strip()

    try:
        assert other.stdout.readline() == "ready\n"
        assert tenants.of(None).tenant == "local"
        for round_ in range(2):
            secret = says("add acme-corp")
            took(lambda secret=secret: lets_in(tenants, bearer(secret)))
            took(lambda: not lets_in(tenants, None))
            says(f"revoke {store.keys()[round_].id}")
            took(lambda secret=secret: not lets_in(tenants, bearer(secret)))
    finally:
        other.stdin.close()
        other.wait(timeout=30)
        other.stdout.close()
    assert other.returncode == 0


def lets_in(tenants: Tenants, header: str | None) -> bool:
    try:
        tenants.of(header)
    except Refused:
        return False
    return True


def took(happens: Callable[[], bool]) -> None:
    begun = time.monotonic()
    while not happens():
        assert time.monotonic() - begun < 1.0
        time.sleep(0.005)


def test_while_the_store_is_gone_the_last_known_keys_hold(
    store: Registry, opened: Open, tmp_path: Path
) -> None:
    key, secret = store.add_key("acme-corp")
    tenants = opened()
    store.path.rename(tmp_path / "away")
    tenants.look()
    assert tenants.problem is not None and "is gone" in tenants.problem
    assert tenants.of(bearer(secret)).key == key.id and refusal(tenants, None).status == 401
    with Registry.open(tmp_path / "away") as elsewhere:
        elsewhere.revoke_key(key.id, "lost")
    tenants.look()
    assert tenants.of(bearer(secret)).key == key.id
    (tmp_path / "away").rename(store.path)
    tenants.look()
    assert tenants.problem is None and refusal(tenants, bearer(secret)).status == 401


def test_a_store_that_was_restored_from_a_copy_is_followed(
    store: Registry, opened: Open, tmp_path: Path
) -> None:
    key, secret = store.add_key("acme-corp")
    shutil.copytree(store.path, tmp_path / "copy")
    tenants = opened()
    with Registry.open(tmp_path / "copy") as copy:
        copy.revoke_key(key.id, "lost")
        _, newer = copy.add_key("acme-corp")
    store.path.rename(tmp_path / "away")
    (tmp_path / "copy").rename(store.path)
    tenants.look()
    assert refusal(tenants, bearer(secret)).status == 401
    assert tenants.of(bearer(newer)).tenant == "acme-corp"


def test_a_store_without_keys_in_the_place_of_one_with_opens_no_door(
    store: Registry, opened: Open, tmp_path: Path
) -> None:
    _, secret = store.add_key("acme-corp")
    tenants = opened()
    Registry.open(tmp_path / "empty", create=True).close()
    store.path.rename(tmp_path / "away")
    (tmp_path / "empty").rename(store.path)
    tenants.look()
    assert refusal(tenants, None).status == refusal(tenants, bearer(secret)).status == 401


def test_a_locked_store_keeps_no_request_waiting(
    store: Registry, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, secret = store.add_key("acme-corp")
    tenants, entered, leave = opened(every=0.01), threading.Event(), threading.Event()

    def hang() -> str:
        entered.set()
        leave.wait(30)
        raise OSError("the disk is gone")

    monkeypatch.setattr(store, "keys_head", hang)
    assert entered.wait(5)
    begun = time.monotonic()
    for _ in range(1000):
        assert tenants.of(bearer(secret)).key == key.id
    assert time.monotonic() - begun < 1.0
    leave.set()
    took(lambda: tenants.problem == "OSError: the disk is gone")
    monkeypatch.undo()
    store.revoke_key(key.id, "lost")
    took(lambda: not lets_in(tenants, bearer(secret)))
    assert tenants.problem is None


def test_a_store_that_cannot_be_read_at_the_start_is_an_error(
    store: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> str:
        raise InlayError("the store is gone")

    monkeypatch.setattr(store, "keys_head", gone)
    with pytest.raises(InlayError, match="the store is gone"):
        Tenants(store, required=True)


def following() -> int:
    return sum(thread.name == "inlay-keys" for thread in threading.enumerate())


@pytest.mark.parametrize("closed", [True, False])
def test_the_thread_ends_with_them(closed: bool, store: Registry) -> None:
    before = following()
    tenants = Tenants(store, required=True, every=0.01)
    assert following() == before + 1
    if closed:
        tenants.close()
    else:
        del tenants
        gc.collect()
    took(lambda: following() == before)


# Nothing shows a secret.


def test_neither_records_nor_errors_nor_logs_nor_tracebacks_show_a_secret(
    store: Registry, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    (_, secret), (gone, revoked) = store.add_key("acme-corp", rate=1), store.add_key("acme-corp")
    store.revoke_key(gone.id, "lost")
    tenants = opened()
    known = tenants.of(bearer(secret))
    said = [repr(known), str(known), repr(tenants), repr(vars(tenants)), repr(store.keys())]
    for header in (bearer(revoked), bearer(secret + "x")):
        try:
            tenants.of(header)
        except Refused as error:
            said += [str(error), repr(error), repr(vars(error))]
            frames = traceback.TracebackException.from_exception(error, capture_locals=True).stack
            said += [repr(frame.locals) for frame in frames if frame.filename == module.__file__]
            assert error.__context__ is None and error.__cause__ is None
    assert len(said) == 5 + 2 * 4
    with tenants.admitted(known), pytest.raises(Refused) as caught, tenants.admitted(known):
        pass
    said += [str(caught.value), caplog.text]
    for text in said:
        assert secret[6:] not in text and revoked[6:] not in text
