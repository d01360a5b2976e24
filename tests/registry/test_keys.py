"""API keys: what is kept of a secret, what a key may say, and that none of it leaves the store."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
import shutil
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from inlay.errors import InputError, ReferenceNotFound, StoreBusy
from inlay.registry import ApiKey, Registry, keys
from inlay.registry.canonical import digest_of


def meddle(store: Path, sql: str, *values: Any) -> None:
    """Change rows as somebody with an SQLite shell would."""
    with contextlib.closing(sqlite3.connect(store / "registry.db")) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(sql, values)
        for _, trigger in triggers:
            connection.execute(trigger)
        connection.commit()


def test_of_a_secret_only_the_hash_is_kept(registry: Registry) -> None:
    key, secret = registry.add_key("acme-corp", name="phone")
    assert re.fullmatch(r"inlay-[A-Za-z0-9_-]{43}", secret)
    row = registry._store.db.row("SELECT * FROM api_keys")
    assert row is not None and row["digest"] == "sha256:" + hashlib.sha256(secret.encode()).hexdigest()
    connection = sqlite3.connect(registry.path / "registry.db")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    files = [path for path in registry.path.rglob("*") if path.is_file()]
    assert files and not any(secret[6:].encode() in path.read_bytes() for path in files)
    assert secret not in repr(key) and key.digest not in repr(key)


def test_every_secret_is_another(registry: Registry) -> None:
    made = [registry.add_key("acme-corp") for _ in range(20)]
    assert len({secret for _, secret in made}) == len({key.id for key, _ in made}) == 20
    assert [registry.key_of(secret) for _, secret in made] == [key for key, _ in made] == registry.keys()


def test_a_key_is_what_was_asked_for(registry: Registry) -> None:
    allow = ["acme", "legal@v3", "acme", "base"]
    key, _ = registry.add_key(
        "acme-corp", name="phone", allow=allow, rate=60, concurrent=4, admin=True, who="bob"
    )
    assert dataclasses.asdict(key) | {"id": "", "created": "", "digest": ""} == {
        "id": "",
        "tenant": "acme-corp",
        "name": "phone",
        "allow": ("acme", "legal@v3", "base"),
        "rate": 60,
        "concurrent": 4,
        "admin": True,
        "who": "bob",
        "created": "",
        "revoked": None,
        "why": None,
        "damaged": False,
        "digest": "",
    }
    plain, _ = registry.add_key("acme-corp")
    assert (plain.name, plain.allow, plain.rate, plain.concurrent) == (None, ("*",), None, None)
    assert (plain.admin, plain.who, plain.active) == (False, "anna", True)


def test_only_the_secret_itself_lets_in(registry: Registry) -> None:
    key, secret = registry.add_key("acme-corp")
    assert registry.key_of(secret) == key
    for other in (
        "", secret[:-1], secret + "A", secret.upper(), secret[6:], f" {secret}", key.id, key.digest, "\udc80",
        "' OR 1 --",
    ):  # fmt: skip
        assert registry.key_of(other) is None


def test_a_revoked_key_lets_nobody_in(registry: Registry) -> None:
    (key, secret), (other, others) = registry.add_key("acme-corp"), registry.add_key("acme-corp")
    gone = registry.revoke_key(key.id, "found in a log")
    assert (gone.id, gone.why, gone.active) == (key.id, "found in a log", False)
    assert gone.revoked is not None and gone.revoked >= key.created
    assert registry.key_of(secret) is None and registry.key_of(others) == other
    assert registry.revoke_key(key.id, "again") == gone, "the first reason stays"
    assert registry.keys() == [gone, other]


def test_two_who_revoke_at_once_revoke_once(registry: Registry) -> None:
    key, _ = registry.add_key("acme-corp")
    start, found = threading.Barrier(4), list[ApiKey]()

    def work(n: int) -> None:
        with Registry.open(registry.path) as mine:
            start.wait()
            found.append(mine.revoke_key(key.id, f"reason {n}"))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len({gone.why for gone in found}) == 1 and found[0].revoked


def test_what_cannot_be_revoked(registry: Registry) -> None:
    key, secret = registry.add_key("acme-corp")
    with pytest.raises(ReferenceNotFound, match="there is no key 000000000000"):
        registry.revoke_key("000000000000", "lost")
    with pytest.raises(InputError, match="a reason"):
        registry.revoke_key(key.id, "  ")
    for wrong in (secret, secret[6:18], key.id[:11], key.id + "\n", "", None):
        with pytest.raises(InputError, match="named by its id") as caught:
            registry.revoke_key(wrong, "lost")  # type: ignore[arg-type]
        assert not wrong or wrong not in str(caught.value), "a secret in the id's place is not repeated"
    assert registry.keys() == [key]


@pytest.mark.parametrize(
    "entry",
    [
        "*",
        "base",
        "acme",
        "team/acme",
        "acme@prod",
        "acme@v12",
        f"acme@sha256:{'ab' * 4}",
        f"sha256:{'0' * 64}",
    ],
)
def test_what_may_be_allowed(entry: str, registry: Registry) -> None:
    key, secret = registry.add_key("acme-corp", allow=[entry])
    assert key.allow == (entry,) and registry.key_of(secret) == key


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tenant": "Acme"}, "a tenant must match"),
        ({"tenant": "acme corp"}, "a tenant must match"),
        ({"tenant": "../acme"}, "a tenant must match"),
        ({"tenant": "acme\n"}, "a tenant must match"),
        ({"tenant": ""}, "a tenant must match"),
        ({"tenant": "a" * 64}, "a tenant must match"),
        ({"tenant": "local"}, "whoever needs no key"),
        ({"allow": []}, "1 to 256 entries"),
        ({"allow": "acme"}, "1 to 256 entries"),
        ({"allow": ["acme"] * 257}, "1 to 256 entries"),
        ({"allow": ["acme*"]}, "a name must match"),
        ({"allow": ["ac*me@prod"]}, "a name must match"),
        ({"allow": ["base@prod"]}, "reserved"),
        ({"allow": ["acme@v0"]}, "counts from v1"),
        ({"allow": ["acme@"]}, "an alias must match"),
        ({"allow": [7]}, "a reference must be text"),
        ({"rate": 0}, "rate must be a whole number"),
        ({"rate": -5}, "rate must be a whole number"),
        ({"rate": 1.5}, "rate must be a whole number"),
        ({"rate": True}, "rate must be a whole number"),
        ({"rate": 10**9}, "rate must be a whole number"),
        ({"concurrent": 0}, "concurrent must be a whole number"),
        ({"concurrent": "4"}, "concurrent must be a whole number"),
        ({"name": ""}, "1 to 200 characters"),
        ({"name": "x" * 201}, "1 to 200 characters"),
        ({"name": "\udc80"}, "UTF-8"),
    ],
)
def test_what_no_key_can_be(given: dict[str, Any], said: str, registry: Registry) -> None:
    with pytest.raises(InputError, match=said):
        registry.add_key(**{"tenant": "acme-corp", **given})
    assert registry.keys() == []


def test_what_is_allowed_but_not_there(three: Registry) -> None:
    three.promote("legal@v1", "prod")
    digest = three.resolve("legal@v2").digest
    there = ["*", "base", "legal", "style", "legal@prod", "legal@v3", digest, f"legal@{digest[:15]}"]
    absent = ["acme", "legal@staging", "legal@v9", "style@prod", "acme@v1", f"sha256:{'0' * 64}"]
    key, _ = three.add_key("acme-corp", allow=[*there, *absent])
    assert three.absent(key) == absent


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("allow", '["*"]'), ("admin", 1), ("rate", 1000), ("concurrent", None), ("tenant", "other"),
        ("name", "x"), ("who", "bob"), ("created", "2026-01-01T00:00:00.000000Z"), ("allow", "{["),
    ],
)  # fmt: skip
def test_a_row_that_was_edited_lets_nobody_in(column: str, value: Any, registry: Registry) -> None:
    key, secret = registry.add_key("acme-corp", allow=["acme"], rate=60, concurrent=4)
    other, others = registry.add_key("acme-corp")
    meddle(registry.path, f"UPDATE api_keys SET {column} = ? WHERE id = ?", value, key.id)
    assert registry.key_of(secret) is None and registry.key_of(others) == other
    found = registry.keys()[0]
    assert (found.damaged, found.active, found.allow, found.admin) == (True, False, (), False)
    assert registry.fsck() == [f"key {key.id}: its row was edited after it was made"]


@pytest.mark.parametrize(
    "change", [{"allow": "{["}, {"allow": "[1]"}, {"allow": "[]"}, {"rate": -1}, {"tenant": "local"}]
)
def test_a_row_that_was_made_by_hand_id_and_all_must_be_sound(
    change: dict[str, Any], registry: Registry
) -> None:
    _, secret = registry.add_key("acme-corp", allow=["acme"], rate=60)
    row = registry._store.db.row("SELECT * FROM api_keys")
    assert row is not None
    forged = {**dict(row), **change}
    identity = keys._id(forged)
    for column, value in {**change, "id": identity}.items():
        meddle(registry.path, f"UPDATE api_keys SET {column} = ?", value)
    assert registry.key_of(secret) is None
    assert registry.fsck() == [f"key {identity}: its row was edited after it was made"]


def test_the_head_tells_of_every_key_and_every_revocation(registry: Registry, tmp_path: Path) -> None:
    seen = [registry.keys_head()]
    with Registry.open(registry.path) as other:
        for deed in (
            lambda: other.add_key("acme-corp"),
            lambda: registry.add_key("acme-corp"),
            lambda: other.revoke_key(other.keys()[1].id, "lost"),
            lambda: registry.revoke_key(other.keys()[0].id, "lost"),
        ):
            assert registry.keys_head() == seen[-1]
            deed()
            seen.append(registry.keys_head())
            assert other.keys_head() == seen[-1]
        assert len(set(seen)) == 5
        registry.revoke_key(registry.keys()[0].id, "again")
        assert registry.keys_head() == seen[-1]


def test_another_file_in_the_stores_place_is_read_from_then_on(registry: Registry, tmp_path: Path) -> None:
    key, secret = registry.add_key("acme-corp")
    shutil.copytree(registry.path, tmp_path / "copy")
    with Registry.open(tmp_path / "copy") as copy:
        copy.revoke_key(key.id, "lost")
    before = registry.keys_head()
    registry.path.rename(tmp_path / "away")
    with pytest.raises(StoreBusy, match="gone"):
        registry.keys_head()
    (tmp_path / "copy").rename(registry.path)
    assert registry.keys_head() != before
    assert registry.key_of(secret) is None and registry.keys()[0].why == "lost"


def test_keys_stay_in_their_store(three: Registry, tmp_path: Path) -> None:
    """Neither journal nor bundle knows that there are any: the bundle is the same, byte for byte."""
    three.promote("legal@v1", "prod")
    before, head = three.bundle(tmp_path / "before.bundle"), three.journal_head()
    key, secret = three.add_key("acme-corp", name="phone", allow=["legal"], admin=True)
    three.revoke_key(three.add_key("acme-corp")[0].id, "lost")
    assert three.journal_head() == head and three.fsck() == []
    assert three.bundle(tmp_path / "after.bundle").digest == before.digest
    written = (tmp_path / "after.bundle").read_bytes()
    assert written == (tmp_path / "before.bundle").read_bytes()
    assert not any(word.encode() in written for word in (secret[6:], key.id, key.digest[7:], "acme-corp"))
    with Registry.open(tmp_path / "mirror", create=True) as mirror:
        mirror.unbundle(tmp_path / "after.bundle")
        assert mirror.keys() == [] and mirror.key_of(secret) is None
    three.unbundle(tmp_path / "after.bundle")
    assert three.key_of(secret) == key, "what is taken over leaves the store's own keys"
    assert three.gc(grace=0) == [] and three.key_of(secret) == key


def test_a_hash_that_is_there_already_is_refused(registry: Registry) -> None:
    """Two keys cannot have one secret; the error does not say which."""
    key, secret = registry.add_key("acme-corp")
    row = dict(registry._store.db.row("SELECT * FROM api_keys") or {})
    with pytest.raises(sqlite3.IntegrityError) as caught, registry._store.db.transaction():
        registry._store.db.insert("api_keys", {**row, "id": "0" * 12})
    assert digest_of(secret)[7:] not in str(caught.value)
    assert registry.keys() == [key]
