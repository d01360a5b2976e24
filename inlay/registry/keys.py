"""API keys: who may ask a server, for what, how often. A key is made once and revoked at most once.

Of a secret only the sha256 is kept; 256 random bits need neither salt nor a slow hash, and are found by it
without comparing. A key's id is the digest of its row, so an edited row shows, and lets nobody in. Keys stay
in their store: the journal, bundles and exports have none.
"""

from __future__ import annotations

import json
import re
import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field

from inlay.errors import InputError, ReferenceNotFound
from inlay.registry.canonical import PREFIX, canonical, digest_of, digest_of_json, now
from inlay.registry.lookup import resolve
from inlay.registry.names import RESERVED, parse_reference
from inlay.registry.rows import load
from inlay.registry.store import Store

SECRET_PREFIX = "inlay-"
"""What every secret begins with, so that scanners find one that went astray."""
SECRET_BYTES = 32
ALL = "*"
LOCAL = "local"
"""The tenant of those who need no key; no key is of it."""
MOST_RATE = 1_000_000
MOST_CONCURRENT = 100_000
MOST_ENTRIES = 256
MOST_NAME = 200

_TENANT = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_ID = re.compile(r"[0-9a-f]{12}")
_SEALED = ("tenant", "name", "digest", "allow", "rate", "concurrent", "admin", "who", "created")
_KEYS = "SELECT k.*, r.at, r.why FROM api_keys k LEFT JOIN key_revocations r ON r.key = k.id"
_HEAD = """
    SELECT coalesce((SELECT rowid || ' ' || id FROM api_keys ORDER BY rowid DESC LIMIT 1), '0')
    || ', ' || coalesce((SELECT rowid || ' ' || key || ' ' || at FROM key_revocations
        ORDER BY rowid DESC LIMIT 1), '0')"""


@dataclass(frozen=True)
class ApiKey:
    """A key without its secret. `allow`: "*", names, exact references, "base"; `rate`: requests a minute,
    `concurrent`: at once, None for as many as they like; `revoked`: when, and `why`.

    `damaged`: its row is not what its id says; it lets nobody in. `digest` is the secret's.
    """

    id: str
    tenant: str
    name: str | None
    allow: tuple[str, ...]
    rate: int | None
    concurrent: int | None
    admin: bool
    who: str
    created: str
    revoked: str | None = None
    why: str | None = None
    damaged: bool = False
    digest: str = field(default="", repr=False)

    @property
    def active(self) -> bool:
        """Whether it lets somebody in."""
        return self.revoked is None and not self.damaged


def add(
    store: Store,
    tenant: str,
    *,
    name: str | None,
    allow: Sequence[str],
    rate: int | None,
    concurrent: int | None,
    admin: bool,
    who: str,
) -> tuple[ApiKey, str]:
    """See `Registry.add_key`."""
    check(tenant, name, allow, rate, concurrent)
    secret = SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    row = {
        "tenant": tenant,
        "name": name,
        "digest": digest_of(secret),
        "allow": canonical(list(dict.fromkeys(allow))),
        "rate": rate,
        "concurrent": concurrent,
        "admin": int(admin),
        "who": who,
        "created": now(),
    }
    identity = _id(row)
    with store.db.transaction():
        store.db.insert("api_keys", {"id": identity, **row})
    return by_id(store, identity), secret


def revoke(store: Store, identity: str, *, why: str, who: str) -> ApiKey:
    """See `Registry.revoke_key`."""
    if not isinstance(identity, str) or not _ID.fullmatch(identity):
        # Unlike elsewhere the value is not repeated: it may be a secret, pasted in the id's place.
        raise InputError("a key is named by its id, twelve hexadecimal digits", fix="see `inlay keys ls`")
    if not why.strip():
        raise InputError("a reason that others can read later is needed", fix="give why")
    with store.db.transaction():
        if by_id(store, identity).revoked is None:
            row = {"key": identity, "at": now(), "who": who, "why": why}
            store.db.insert("key_revocations", row)
        return by_id(store, identity)


def listed(store: Store) -> list[ApiKey]:
    """See `Registry.keys`."""
    return [_key(row) for row in store.db.rows(f"{_KEYS} ORDER BY k.rowid")]


def head(store: Store) -> str:
    """See `Registry.keys_head`. Both tables only grow, so the last row of each tells."""
    row = store.db.row(_HEAD)
    assert row is not None
    return str(row[0])


def by_id(store: Store, identity: str) -> ApiKey:
    """The key with an id; ReferenceNotFound if there is none."""
    row = store.db.row(f"{_KEYS} WHERE k.id = ?", [identity])
    if row is None:
        raise ReferenceNotFound(f"there is no key {identity}", fix="see `inlay keys ls`")
    return _key(row)


def by_digest(store: Store, digest: str) -> ApiKey | None:
    """The key whose secret has the digest; None where there is none or it lets nobody in."""
    row = store.db.row(f"{_KEYS} WHERE k.digest = ?", [digest])
    return key if row is not None and (key := _key(row)).active else None


def absent(store: Store, key: ApiKey) -> list[str]:
    """See `Registry.absent`."""
    return [entry for entry in key.allow if entry not in (ALL, *RESERVED) and not _there(store, entry)]


def problems(store: Store) -> list[str]:
    """A sentence for each key whose row was edited."""
    return [f"key {k.id[:40]}: its row was edited after it was made" for k in listed(store) if k.damaged]


def check(
    tenant: str, name: str | None, allow: Sequence[str], rate: int | None, concurrent: int | None
) -> None:
    """InputError that says which part of a key cannot be so."""
    if not isinstance(tenant, str) or not _TENANT.fullmatch(tenant):
        raise InputError(
            f"a tenant must match [a-z0-9][a-z0-9._-]{{0,62}}, got {ascii(tenant)[:80]}",
            fix="use lower-case letters, digits, dots, underscores and hyphens",
        )
    if tenant == LOCAL:
        raise InputError(f"the tenant {LOCAL!r} is whoever needs no key", fix="choose another")
    if name is not None and (not isinstance(name, str) or not 0 < len(name) <= MOST_NAME):
        raise InputError(f"a key's name has 1 to {MOST_NAME} characters, got {ascii(name)[:80]}")
    if isinstance(allow, str) or not 0 < len(allow) <= MOST_ENTRIES:
        raise InputError(
            f"a key allows 1 to {MOST_ENTRIES} entries, got {ascii(allow)[:80]}", fix=f"{ALL!r} means all"
        )
    for entry in allow:
        if entry not in (ALL, *RESERVED):
            parse_reference(entry)
    for what, number, most in (("rate", rate, MOST_RATE), ("concurrent", concurrent, MOST_CONCURRENT)):
        if number is not None and (type(number) is not int or not 1 <= number <= most):
            raise InputError(f"{what} must be a whole number from 1 to {most}, got {ascii(number)[:80]}")


def _there(store: Store, entry: str) -> bool:
    if "@" not in entry and not entry.startswith(PREFIX):  # a name, whichever of its references are there
        return store.db.row("SELECT 1 FROM names WHERE name = ?", [entry]) is not None
    try:
        resolve(store, entry)
    except ReferenceNotFound:
        return False
    return True


def _id(row: sqlite3.Row | dict[str, str | int | None]) -> str:
    return digest_of_json({column: row[column] for column in _SEALED})[len(PREFIX) :][:12]


def _key(row: sqlite3.Row) -> ApiKey:
    allow: list[str] = []
    damaged = row["id"] != _id(row)
    if not damaged:
        try:
            allow = load(row["allow"], list)
            check(row["tenant"], row["name"], allow, row["rate"], row["concurrent"])
        except (InputError, json.JSONDecodeError):  # made by hand, id and all
            damaged, allow = True, []
    return ApiKey(
        id=row["id"],
        tenant=row["tenant"],
        name=row["name"],
        allow=tuple(allow),
        rate=row["rate"],
        concurrent=row["concurrent"],
        admin=bool(row["admin"]) and not damaged,
        who=row["who"],
        created=row["created"],
        revoked=row["at"],
        why=row["why"],
        damaged=damaged,
        digest=row["digest"],
    )
