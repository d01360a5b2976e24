"""One connection to one registry file: how it is opened, how transactions begin, what is asserted first.

Reading uses the standard library alone. sqlite-utils applies the migrations and writes the wide records;
it is imported when either happens. All transactions that write start with BEGIN IMMEDIATE: a deferred one
that reads a maximum and then inserts loses the race (375 of 400 times with eight processes).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.errors import InlayError, InputError, IntegrityError, StoreBusy
from inlay.registry import migrations

if TYPE_CHECKING:
    import sqlite_utils

WAIT_SECONDS = 20.0
_BUSY_WORDS = ("locked", "busy", "readonly", "read-only", "disk is full", "disk i/o", "unable to open")
_ATTEMPTS = 5

Stamp = tuple[int, ...]
"""What tells that a file was written to: inode, size and mtime in ns of it and of its -wal."""


class Database:
    """The open file. Threads may share it; each statement or transaction is one at a time.

    Where nobody may write (a read-only disk, another's folder), it is read all the same. SQLite needs a -shm
    beside a WAL database; where that is missing and cannot be made, the file is opened as immutable, which
    takes no locks. That is sound as long as no one writes, so every read checks before and after that
    neither the file nor a -wal changed (https://www.sqlite.org/wal.html#read_only_databases).
    """

    def __init__(self, path: Path, *, create: bool = False, check: bool = True, used: bool = False) -> None:
        """Open `path`; make it where `create` and it is not there; bring its schema up to date.

        `used` says that something was registered in it before. Raises InputError if it is newer than this
        code, StoreBusy if it cannot be used now, IntegrityError if it is no registry, empty though it was
        used, or a trigger is gone (`check=False` leaves the triggers to `fsck`).
        """
        self.path = path
        self._lock = threading.RLock()
        self._unlocked: Stamp | None = None
        self._proven_writable = False
        self._file: tuple[int, int] | None = None
        with _as_our_errors(path):
            found = self._connect(create=create)
        try:
            if found == 0 and used:
                raise IntegrityError(
                    f"{str(path)!r} is empty, and there are objects in the store: its rows were lost",
                    fix="restore it from a backup or a bundle",
                )
            self._bring_up_to_date(found)
            if check:
                missing = self.missing_triggers()
                if missing:
                    raise IntegrityError(
                        f"a registry must have its triggers, {path.name} lacks {', '.join(missing)}",
                        fix="run `inlay fsck` and restore the file from a backup",
                    )
        except BaseException:
            self.connection.close()
            raise

    def _connect(self, *, create: bool = False) -> int:
        """Open the file as it can be opened; its schema's number."""
        self._unlocked = None
        self._file = self._identity()  # before it is opened: a file put here in between is seen as another
        self.connection = self._open("mode=rwc" if create else "mode=rw")
        self._file = self._file or self._identity()  # made a moment ago
        try:
            return self._schema()  # the first look at the file, which is where a -shm is needed
        except sqlite3.DatabaseError as error:
            self.connection.close()
            before = self._stamp()
            if not isinstance(error, sqlite3.OperationalError) or self._may_write() or self._logged():
                raise
        self.connection = self._open("mode=ro&immutable=1")
        self._unlocked = before
        return self._schema()

    def _open(self, query: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self.path.resolve().as_uri()}?{query}",
            uri=True,
            timeout=WAIT_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA recursive_triggers=ON")  # so that REPLACE fires the delete triggers
        return connection

    def _bring_up_to_date(self, found: int) -> None:
        with _as_our_errors(self.path):
            if found == migrations.SCHEMA:
                return
            if found < migrations.SCHEMA:
                if not self._may_write():
                    raise StoreBusy(
                        f"the registry {str(self.path)!r} has schema {found} and must be brought up to "
                        f"{migrations.SCHEMA}, which needs leave to write",
                        fix="run `inlay ls` once as somebody who may write to it",
                    )
                self._use_wal()
                self._migrate()
                found = self._schema()
            if found > migrations.SCHEMA:
                raise InputError(
                    f"the registry {str(self.path)!r} has schema {found}, "
                    f"this Inlay knows up to {migrations.SCHEMA}",
                    fix="upgrade with `pip install -U inlay`, or open it with the Inlay that wrote it",
                )

    def _may_write(self) -> bool:
        """Whether this process could write to the file and make a -wal beside it."""
        effective = os.access in os.supports_effective_ids
        return all(
            os.access(path, os.W_OK, effective_ids=effective) for path in (self.path, self.path.parent)
        )

    def _logged(self) -> bool:
        """Whether there is a -wal with something in it, which an immutable connection would not see."""
        try:
            return os.stat(f"{self.path}-wal").st_size > 0
        except FileNotFoundError:
            return False

    def _stamp(self) -> Stamp:
        found: list[int] = []
        for path in (self.path, f"{self.path}-wal"):
            try:
                status = os.stat(path)
                found += (status.st_ino, status.st_size, status.st_mtime_ns)
            except FileNotFoundError:
                found.append(-1)
        return tuple(found)

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def follow(self) -> bool:
        """Whether another file lies at the path than the one that is open; if so, it is opened in its place.

        StoreBusy where none does, or one that cannot be read or has another schema (it may be on its way
        here, so it is never brought up to date); what was open then stays so.
        """
        with self._lock, _as_our_errors(self.path):
            found = self._identity()
            if found is None:
                raise StoreBusy(f"the registry {str(self.path)!r} is gone", fix="put it back")
            if found == self._file or self.connection.in_transaction:
                return False
            before = self.connection, self._file, self._unlocked
            try:
                schema = self._connect()
                if schema != migrations.SCHEMA:
                    raise StoreBusy(
                        f"the registry put at {str(self.path)!r} must have schema {migrations.SCHEMA}, "
                        f"and has {schema}",
                        fix="run `inlay ls` once, or start again",
                    )
            except BaseException:
                if self.connection is not before[0]:
                    self.connection.close()
                self.connection, self._file, self._unlocked = before
                raise
            before[0].close()
            self._proven_writable = False
            self.__dict__.pop("_utils", None)
            return True

    def _schema(self) -> int:
        return int(self.connection.execute("PRAGMA user_version").fetchone()[0])

    def _use_wal(self) -> None:
        # Changing the journal mode asks for a lock without waiting for it, so that processes which start on
        # one fresh file at once would fail here and nowhere else.
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                if self.connection.execute("PRAGMA journal_mode=WAL").fetchone()[0] == "wal":
                    return
                raise StoreBusy(
                    "the registry needs SQLite's write-ahead log, which this file system does not offer",
                    fix="put the store on a local disk",
                )
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _migrate(self) -> None:
        import sqlite_utils

        self._proven_writable = True  # there may be no table to prove it on; this transaction itself does
        with self.transaction():
            if self._schema() < migrations.SCHEMA:  # another process may have been quicker
                db = sqlite_utils.Database(self.connection, execute_plugins=False)
                migrations.migrations().apply(db)
                self.connection.execute(f"PRAGMA user_version={migrations.SCHEMA}")

    def missing_triggers(self) -> list[str]:
        """Names of protecting triggers that are gone or were changed."""
        found = {
            row["name"]: row["sql"]
            for row in self.rows("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
        }
        return [name for name, sql in migrations.triggers().items() if found.get(name) != sql]

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """All rows of a SELECT."""
        with self._lock, _as_our_errors(self.path):
            if self._unlocked is not None:
                return self._rows_without_locks(sql, parameters)
            return self.connection.execute(sql, parameters).fetchall()

    def row(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Row | None:
        """The first row of a SELECT, or None."""
        with self._lock, _as_our_errors(self.path):
            if self._unlocked is not None:
                return next(iter(self._rows_without_locks(sql, parameters)), None)
            return self.connection.execute(sql, parameters).fetchone()

    def stream(self, sql: str, parameters: Sequence[Any] = ()) -> Iterator[sqlite3.Row]:
        """The rows of a SELECT one by one: a million of them need not fit in memory."""
        with self._lock, _as_our_errors(self.path):
            if self._unlocked is not None:
                yield from self._rows_without_locks(sql, parameters)
            else:
                yield from self.connection.execute(sql, parameters)

    def _rows_without_locks(self, sql: str, parameters: Sequence[Any]) -> list[sqlite3.Row]:
        """Rows that were read while nobody wrote; where somebody did, the file is opened anew and read
        again.
        """
        for _ in range(_ATTEMPTS):
            if self._unlocked is not None and self._stamp() != self._unlocked:
                if self.connection.in_transaction:  # its earlier SELECTs saw the file as it was
                    break
                self.connection.close()
                self._connect()
            try:
                found = self.connection.execute(sql, parameters).fetchall()
            except sqlite3.DatabaseError:
                if self._unlocked is None or self._stamp() == self._unlocked:
                    raise
                continue
            if self._unlocked is None or self._stamp() == self._unlocked:
                return found
        raise StoreBusy(f"the registry {str(self.path)!r} was written to while it was read", fix="try again")

    @contextlib.contextmanager
    def transaction(self, *, dry_run: bool = False) -> Iterator[None]:
        """BEGIN IMMEDIATE … COMMIT; ROLLBACK on errors and after a dry run. Inside another: part of it."""
        with self._lock, _as_our_errors(self.path):
            if self.connection.in_transaction:
                yield
                return
            try:
                self.connection.execute("BEGIN IMMEDIATE")
                self._prove_writable()
                yield
                self.connection.execute("ROLLBACK" if dry_run else "COMMIT")
            except BaseException:
                # Also where COMMIT failed, on a full disk: left open, the next transaction would become
                # part of this one.
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise

    def _prove_writable(self) -> None:
        """Raise SQLite's error where the file can only be read: there BEGIN IMMEDIATE takes no lock and says
        nothing, and whoever relies on the lock (`gc`) would be without it.
        """
        if not self._proven_writable:
            self.connection.execute("DELETE FROM names WHERE 0")
            self._proven_writable = True

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """One view for several SELECTs that keeps no writer out. Inside a transaction: part of it."""
        with self._lock, _as_our_errors(self.path):
            if self.connection.in_transaction:
                yield
                return
            self.connection.execute("BEGIN")
            try:
                yield
            finally:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """One writing statement, inside a `transaction`."""
        self._must_write()
        self.connection.execute(sql, parameters)

    def insert(self, table: str, row: dict[str, Any]) -> int:
        """Insert `row` through sqlite-utils, inside a `transaction`; returns its rowid."""
        self._must_write()
        if table not in migrations.IMMUTABLE:  # sqlite-utils would make a table for a mistyped name
            raise AssertionError(f"no such table: {table}")
        rowid = self._utils.table(table).insert(row).last_rowid
        assert rowid is not None
        return int(rowid)

    def _must_write(self) -> None:
        if not self.connection.in_transaction:
            raise AssertionError("writes belong inside Database.transaction()")

    @cached_property
    def _utils(self) -> sqlite_utils.Database:
        import sqlite_utils

        return sqlite_utils.Database(self.connection, execute_plugins=False)

    def close(self) -> None:
        """Close the connection; what it did stays."""
        self.connection.close()


@contextlib.contextmanager
def _as_our_errors(path: Path) -> Iterator[None]:
    """SQLite's words for a store that cannot be used now, or is none, as ours. Bugs pass through."""
    try:
        yield
    except InlayError:
        raise
    except UnicodeEncodeError as error:
        text = error.object[error.start : error.start + 20]
        raise InputError(f"a text must be one that UTF-8 can hold, got {text!a}") from None
    except sqlite3.OperationalError as error:
        if any(word in str(error).lower() for word in _BUSY_WORDS):
            raise StoreBusy(
                f"the registry {str(path)!r} cannot be used now: {error}",
                fix="check the disk and its permissions, then try again",
            ) from error
        raise
    except sqlite3.IntegrityError:
        raise
    except sqlite3.DatabaseError as error:
        if "not a database" in str(error) or "malformed" in str(error):
            raise IntegrityError(
                f"{str(path)!r} is not a sound SQLite file: {error}", fix="restore it from a backup"
            ) from error
        raise
