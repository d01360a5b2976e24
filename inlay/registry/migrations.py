"""The schema as a diary: numbered functions, never edited after they land. Every `create table` is here.

`SCHEMA` is the number of migrations and is kept in the file's `user_version`, so that opening a current
store needs neither sqlite-utils nor a look at its table of applied migrations.

The traps this avoids are real: `Migrations.apply` races on a fresh file (the caller holds BEGIN IMMEDIATE),
nothing refuses a newer database (the caller compares `user_version`), and REPLACE walks round a BEFORE UPDATE
trigger (BEFORE DELETE catches it, with recursive_triggers on).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlite_utils import Database, Migrations

SCHEMA = 3
SET = "inlay"

# Rows of these are written once. Nothing that can change is kept in a column: which version is live, what was
# yanked, which guard holds are all read from the journal.
_FIRST = (
    "names",
    "bases",
    "versions",
    "version_files",
    "locks",
    "lock_members",
    "suites",
    "evals",
    "reports",
    "journal",
)
_KEYS = ("api_keys", "key_revocations")
IMMUTABLE = (*_FIRST, *_KEYS)


def triggers(tables: Sequence[str] = IMMUTABLE) -> dict[str, str]:
    """Name -> SQL of every trigger that a store must have on these tables, word for word."""
    return {
        f"{table}_refuse_{verb}": (
            f"CREATE TRIGGER {table}_refuse_{verb} BEFORE {verb.upper()} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} are immutable: {verb} refused'); END"
        )
        for table in tables
        for verb in ("update", "delete")
    }


@cache
def migrations() -> Migrations:
    """The migrations as sqlite-utils knows them (0.18 s to import, so only where one must be applied)."""
    from sqlite_utils import Migrations

    diary = Migrations(SET)
    diary()(m001_registry)
    diary()(m002_upkeep)
    diary()(m003_keys)
    return diary


def _table(
    db: Database, name: str, columns: dict[str, Any], *, optional: tuple[str, ...] = (), **options: Any
) -> None:
    """A STRICT table whose columns are NOT NULL unless named in `optional`."""
    required = [column for column in columns if column not in optional and column != options.get("pk")]
    db.create_table(name, columns, not_null=required, strict=True, **options)


def m001_registry(db: Database) -> None:
    """Names, bases, versions, locks, suites, evals, reports, journal."""
    _table(db, "names", {"name": str, "kind": str, "owner": str, "created": str}, pk="name")

    # `tensors` is an object: {tensor name: [dtype, shape]}. `source` is where the base was found when it was
    # used.
    _table(
        db,
        "bases",
        {
            "id": int,
            "weights": str,
            "prompt": str,
            "name": str,
            "revision": str,
            "architecture": str,
            "source": str,
            "tensors": str,
            "created": str,
        },
        pk="id",
        optional=("revision",),
    )
    db.table("bases").create_index(["weights", "prompt", "source"], unique=True)

    _table(
        db,
        "versions",
        {
            "id": int,
            "name": str,
            "number": int,
            "digest": str,
            "base": int,
            "kind": str,
            "rank": int,
            "targets": str,
            "parameters": int,
            "exactness": str,
            "size": int,
            "trained_on": str,
            "mismatch": int,
            "run": str,
            "lineage": str,
            "notes": str,
            "author": str,
            "why": str,
            "created": str,
        },
        pk="id",
        optional=("trained_on", "run", "lineage"),
        foreign_keys=[("name", "names", "name"), ("base", "bases", "id")],
    )
    db.table("versions").create_index(["name", "number"], unique=True)
    db.table("versions").create_index(["name", "digest"], unique=True)
    db.table("versions").create_index(["digest"])

    _table(
        db,
        "version_files",
        {"version": int, "path": str, "size": int, "digest": str},
        pk=("version", "path"),
        foreign_keys=[("version", "versions", "id")],
    )

    _table(
        db,
        "locks",
        {
            "id": int,
            "name": str,
            "number": int,
            "digest": str,
            "base": int,
            "recipe": str,
            "tree": str,
            "guard": str,
            "provenance": str,
            "author": str,
            "why": str,
            "created": str,
        },
        pk="id",
        optional=("guard", "provenance"),
        foreign_keys=[("name", "names", "name"), ("base", "bases", "id")],
    )
    db.table("locks").create_index(["name", "number"], unique=True)
    db.table("locks").create_index(["name", "digest"])
    db.table("locks").create_index(["digest"])

    # Members at every depth: an adapter's version, or another variant's lock whose own members follow it.
    _table(
        db,
        "lock_members",
        {
            "lock": int,
            "position": int,
            "path": str,
            "version": int,
            "used_lock": int,
            "digest": str,
            "weight": float,
        },
        pk=("lock", "position"),
        optional=("version", "used_lock"),
        foreign_keys=[("lock", "locks", "id"), ("version", "versions", "id"), ("used_lock", "locks", "id")],
    )
    db.table("lock_members").create_index(["version"])
    db.table("lock_members").create_index(["used_lock"])

    _table(
        db,
        "suites",
        {
            "id": int,
            "name": str,
            "digest": str,
            "items": str,
            "metric": str,
            "skills": str,
            "n": int,
            "created": str,
        },
        pk="id",
    )
    db.table("suites").create_index(["name"])
    db.table("suites").create_index(["digest"])

    _table(
        db,
        "evals",
        {
            "id": int,
            "key": str,
            "subject": str,
            "base_weights": str,
            "base_prompt": str,
            "suite": str,
            "suite_name": str,
            "metric": str,
            "protocol": str,
            "protocol_detail": str,
            "score": float,
            "n": int,
            "low": float,
            "high": float,
            "outcomes": str,
            "splits": str,
            "device": str,
            "versions": str,
            "created": str,
        },
        pk="id",
    )
    db.table("evals").create_index(["key"], unique=True)
    db.table("evals").create_index(["subject", "suite"])
    db.table("evals").create_index(["suite"])

    _table(
        db,
        "reports",
        {"id": int, "subject": str, "kind": str, "object": str, "created": str},
        pk="id",
    )
    db.table("reports").create_index(["subject", "kind"])

    # `moves` is 1 where the row changes what (name, alias) points to; `to_number` is null where it points to
    # nothing.
    _table(
        db,
        "journal",
        {
            "seq": int,
            "at": str,
            "who": str,
            "verb": str,
            "name": str,
            "alias": str,
            "moves": int,
            "from_number": int,
            "from_ref": str,
            "from_digest": str,
            "to_number": int,
            "to_ref": str,
            "to_digest": str,
            "why": str,
            "verdict": str,
            "detail": str,
            "previous": str,
            "hash": str,
        },
        pk="seq",
        optional=(
            "alias",
            "from_number",
            "from_ref",
            "from_digest",
            "to_number",
            "to_ref",
            "to_digest",
            "verdict",
        ),
        foreign_keys=[("name", "names", "name")],
    )
    db.execute("CREATE INDEX journal_live ON journal (name, alias, seq) WHERE moves = 1")
    db.execute("CREATE INDEX journal_yanked ON journal (name, from_number) WHERE verb = 'yank'")
    db.execute("CREATE INDEX journal_guards ON journal (name, alias, seq) WHERE verb = 'guard'")
    db.table("journal").create_index(["name", "seq"])
    for sql in triggers(_FIRST).values():
        db.execute(sql)


def m002_upkeep(db: Database) -> None:
    """Licence and card of a version; look-ups that stay quick over 100,000 versions and a million evals."""
    db.execute("ALTER TABLE versions ADD COLUMN licence TEXT")
    db.execute("ALTER TABLE versions ADD COLUMN card TEXT")
    # Which aliases ever pointed to a version or lock: dependents, and whether it may be retired.
    db.execute("CREATE INDEX journal_targets ON journal (name, to_number, alias, seq) WHERE moves = 1")
    # Yanked, retired, purged: what must not go live again. Takes the place of journal_yanked.
    db.execute(
        "CREATE INDEX journal_states ON journal (name, from_number, verb)"
        " WHERE verb IN ('yank', 'retire', 'purge')"
    )
    db.execute("DROP INDEX journal_yanked")
    db.execute("CREATE INDEX journal_described ON journal (name, seq) WHERE verb = 'describe'")
    # Rows that came in a bundle keep their times, so the newest time is not always the last row's.
    db.table("journal").create_index(["at"])
    db.table("evals").create_index(["suite_name"])
    # Whose bytes these are: what shares them may stop a purge.
    db.table("version_files").create_index(["digest"])


def m003_keys(db: Database) -> None:
    """API keys, of whose secrets `digest` is the sha256, and what was revoked."""
    _table(
        db,
        "api_keys",
        {
            "id": str,
            "tenant": str,
            "name": str,
            "digest": str,
            "allow": str,
            "rate": int,
            "concurrent": int,
            "admin": int,
            "who": str,
            "created": str,
        },
        pk="id",
        optional=("name", "rate", "concurrent"),
    )
    db.table("api_keys").create_index(["digest"], unique=True)
    _table(
        db,
        "key_revocations",
        {"key": str, "at": str, "who": str, "why": str},
        pk="key",
        foreign_keys=[("key", "api_keys", "id")],
    )
    for sql in triggers(_KEYS).values():
        db.execute(sql)
