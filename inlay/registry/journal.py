"""The journal: every change of what is live is one row, in integer order, each holding the hash of the one
before.

What an alias points to is its newest row that moves it. The stack under it is replayed: promote, base and
disable push, rollback pops to the row that had pushed where it lands. Nothing is overwritten, so any past
moment can be asked.

    hash = sha256(canonical JSON of all other columns, the hash of the row before among them)

An edited, inserted or deleted row breaks the chain. A cut tail or a chain written anew does not show
inside the file: export `head` and keep it elsewhere. Who acted is what the environment said: advisory.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from inlay.errors import InputError
from inlay.registry.canonical import PREFIX, canonical, digest_of, digest_of_json, now, timestamp
from inlay.registry.database import Database
from inlay.registry.printable import printable

GENESIS = PREFIX + "0" * 64
MAX_WHY = 4096

_HASHED = (
    "seq",
    "at",
    "who",
    "verb",
    "name",
    "alias",
    "moves",
    "from_number",
    "from_ref",
    "from_digest",
    "to_number",
    "to_ref",
    "to_digest",
    "why",
    "verdict",
    "detail",
    "previous",
)

_LIVE = """
    WITH RECURSIVE step (name, alias) AS (
        SELECT w.value, (SELECT min(alias) FROM journal WHERE moves = 1 AND name = w.value)
        FROM json_each(?) w
        UNION ALL
        SELECT name, (SELECT min(alias) FROM journal WHERE moves = 1 AND name = step.name
            AND alias > step.alias)
        FROM step WHERE alias IS NOT NULL)
    SELECT j.* FROM step s CROSS JOIN journal j
    WHERE s.alias IS NOT NULL AND j.seq = (SELECT seq FROM journal WHERE moves = 1 AND name = s.name
        AND alias = s.alias ORDER BY seq DESC LIMIT 1)
    ORDER BY s.name, s.alias"""


@dataclass(frozen=True)
class Target:
    """What an alias can point to: a version or a lock by its number."""

    number: int
    ref: str
    digest: str


@dataclass(frozen=True)
class Event:
    """One journal row."""

    seq: int
    at: str
    who: str
    verb: str
    name: str
    alias: str | None
    moves: bool
    from_number: int | None
    from_ref: str | None
    from_digest: str | None
    to_number: int | None
    to_ref: str | None
    to_digest: str | None
    why: str
    verdict: Mapping[str, Any] | None
    detail: Mapping[str, Any]
    previous: str
    hash: str

    @property
    def forced(self) -> bool:
        """Whether somebody overrode the guard, by name."""
        return bool(self.detail.get("forced"))

    @property
    def target(self) -> Target | None:
        """What the alias points to after this row; None where it was disabled."""
        if self.to_number is None or self.to_ref is None or self.to_digest is None:
            return None
        return Target(self.to_number, self.to_ref, self.to_digest)

    def sentence(self) -> str:
        """The row as one English sentence on one line, safe to print."""
        where = f"{self.name}@{self.alias}" if self.alias else self.name
        before, after = self.from_ref or "nothing", self.to_ref or "nothing"
        match self.verb:
            case "add":
                said = f"registered {after}{self._came_from()}"
            case "lock":
                said = f"locked {after}"
            case "promote":
                forced = " by force" if self.forced else ""
                said = f"promoted {where} to {after}{forced} (before: {before})"
            case "refused":
                said = f"was refused {after} for {where} (it stays at {before})"
            case "rollback":
                said = f"rolled {where} back from {before} to {after}"
            case "base":
                said = f"put {where} on the bare base as {after} (before: {before})"
            case "disable":
                said = f"disabled {where} (before: {before})"
            case "yank":
                said = f"yanked {before}"
            case "retire":
                said = f"retired {before}, whose bytes may go"
            case "purge":
                said = f"purged {before}, its bytes are erased"
            case "describe":
                said = f"described {self.to_ref or self.name} ({self._described()})"
            case "guard":
                said = (
                    f"set the guard of {where}"
                    if self.detail.get("guard")
                    else f"removed the guard of {where}"
                )
            case _:
                said = f"did {self.verb} on {where}"
        reasons = list((self.verdict or {}).get("reasons", [])) if self.verb == "refused" else []
        if self.detail.get("because"):
            reasons.append(f"because of {self.detail['because']}")
        if self.why:
            reasons.append(self.why)
        tail = f": {'; '.join(map(str, reasons))}" if reasons else ""
        return printable(f"#{self.seq} {self.at[:19].replace('T', ' ')} {self.who} {said}{tail}")

    def _came_from(self) -> str:
        parent, rebased = self.detail.get("parent"), self.detail.get("rebased")
        again = f", which is {rebased} trained again on another base" if rebased else ""
        return again + (f", trained on from {parent}" if parent else "")

    def _described(self) -> str:
        parts = {
            "owner": f"owner {self.detail.get('owner')}",
            "description": "a new description",
            "tag": f"tagged {', '.join(self.detail.get('tag', ()))}",
            "untag": f"no longer tagged {', '.join(self.detail.get('untag', ()))}",
        }
        return ", ".join(said for key, said in parts.items() if key in self.detail)

    def to_dict(self) -> dict[str, Any]:
        """The row as plain JSON, for `--json` and for bundles."""
        return {column: getattr(self, column) for column in (*_HASHED, "hash")}


def append(
    db: Database,
    *,
    who: str,
    verb: str,
    name: str,
    alias: str | None = None,
    moves: bool = False,
    before: Target | None = None,
    after: Target | None = None,
    why: str = "",
    verdict: Mapping[str, Any] | None = None,
    detail: Mapping[str, Any] | None = None,
) -> Event:
    """Add one row, inside a transaction. Its time is later than that of every row before it."""
    if len(why) > MAX_WHY or len(who) > MAX_WHY:
        raise InputError(f"who and why are at most {MAX_WHY} characters, got {max(len(why), len(who))}")
    seq, previous, latest = _newest(db)
    row: dict[str, Any] = {
        "seq": seq + 1,
        "at": _after(latest),
        "who": _storable(who),
        "verb": verb,
        "name": name,
        "alias": alias,
        "moves": int(moves),
        "from_number": before.number if before else None,
        "from_ref": before.ref if before else None,
        "from_digest": before.digest if before else None,
        "to_number": after.number if after else None,
        "to_ref": after.ref if after else None,
        "to_digest": after.digest if after else None,
        "why": _storable(why),
        "verdict": canonical(verdict) if verdict is not None else None,
        "detail": canonical(detail or {}),
        "previous": previous,
    }
    row["hash"] = row_hash(row)
    _insert(db, row)
    return event(row)


def adopt(db: Database, row: Mapping[str, Any], places: Mapping[int, int]) -> int:
    """Take over a verified row of another store's journal, inside a transaction; its place in this one.

    Where it follows this journal's last row it is taken as it is. Elsewhere it gets a place and hashes of
    this chain, keeps its time and its words, and what it was is kept beside as `origin`. `places` maps rows
    of that journal to rows of this one, for those that it refers to.
    """
    last = head(db)
    if row["seq"] != last[0] + 1 or row["previous"] != last[1]:
        detail = json.loads(row["detail"])
        origin = detail.pop("origin", None) or {
            key: row[key] for key in ("seq", "previous", "hash", "detail")
        }
        for key in ("entry", "cause"):
            if key in detail:
                detail[key] = places.get(detail[key])
        row = {
            **row,
            "seq": last[0] + 1,
            "previous": last[1],
            "detail": canonical({**detail, "origin": origin}),
        }
        row["hash"] = row_hash(row)
    _insert(db, row)
    return int(row["seq"])


def identity(row: Mapping[str, Any] | sqlite3.Row) -> str:
    """The hash that the row had where it was first written: the same in every store that took it over."""
    origin = _origin(row)
    return str(origin["hash"] if origin else row["hash"])


def _origin(row: Mapping[str, Any] | sqlite3.Row) -> Mapping[str, Any] | None:
    return json.loads(row["detail"]).get("origin") if '"origin"' in row["detail"] else None


def misremembered(row: Mapping[str, Any] | sqlite3.Row) -> bool:
    """Whether a row that was taken over is not the row that it says it was."""
    origin = _origin(row)
    if origin is None:
        return False
    if set(origin) != {"seq", "previous", "hash", "detail"}:
        return True
    if _words(row["detail"]) != _words(origin["detail"]):
        return True
    return row_hash({**dict(row), **origin}) != origin["hash"]


def _words(detail: str) -> dict[str, Any]:
    """A row's detail without what a row that is taken over says otherwise: the places of other rows."""
    said = {key: value for key, value in json.loads(detail).items() if key != "origin"}
    return {**said, **{key: None for key in ("entry", "cause") if key in said}}


def _insert(db: Database, row: Mapping[str, Any]) -> None:
    columns = (*_HASHED, "hash")
    db.execute(
        f"INSERT INTO journal ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
        [row[column] for column in columns],
    )


def seal(db: Database, table: str, identity: int) -> str:
    """The digest of a row of "versions" or "locks" as it is stored, its base spelled out, for the row that
    announces it: so the chain protects every column.
    """
    row = db.row(
        f"SELECT t.*, b.weights AS base_weights, b.prompt AS base_prompt, b.source AS base_source"
        f" FROM {table} t JOIN bases b ON b.id = t.base WHERE t.id = ?",
        [identity],
    )
    assert row is not None
    # Row ids differ between stores, and columns that later schemas add are left out while they are empty.
    return digest_of_json(
        {key: value for key, value in dict(row).items() if key not in ("id", "base") and value is not None}
    )


def row_hash(row: Mapping[str, Any] | sqlite3.Row) -> str:
    """What the `hash` column of `row` must be."""
    return digest_of(canonical({column: row[column] for column in _HASHED}))


def event(row: Mapping[str, Any] | sqlite3.Row) -> Event:
    """The Event that a row of the table holds."""
    values = {column: row[column] for column in (*_HASHED, "hash")}
    values["moves"] = bool(values["moves"])
    values["verdict"] = json.loads(values["verdict"]) if values["verdict"] is not None else None
    values["detail"] = json.loads(values["detail"])
    return Event(**values)


def head(db: Database) -> tuple[int, str]:
    """(seq, hash) of the newest row; (0, GENESIS) of an empty journal."""
    return _newest(db)[:2]


def _newest(db: Database) -> tuple[int, str, str]:
    """`head`, and the latest time of any row: a row that came in a bundle may be later than the last one."""
    row = db.row(
        "SELECT seq, hash, (SELECT max(at) FROM journal) AS latest FROM journal ORDER BY seq DESC LIMIT 1"
    )
    return (row["seq"], row["hash"], row["latest"]) if row else (0, GENESIS, "")


def names_since(db: Database, since: tuple[int, str]) -> tuple[tuple[int, str], frozenset[str] | None]:
    """The `head`, and the names of the rows that came after the one that was it; None where that one is not
    in this journal."""
    seq, known = since
    rows = db.rows("SELECT seq, hash, name FROM journal WHERE seq >= ? ORDER BY seq", [seq])
    if seq and not (rows and (rows[0]["seq"], rows[0]["hash"]) == since):
        return head(db), None
    newest = (rows[-1]["seq"], rows[-1]["hash"]) if rows else (seq, known)
    return newest, frozenset(row["name"] for row in rows if row["seq"] > seq)


def events(
    db: Database, name: str | None = None, *, limit: int | None = None, before: int | None = None
) -> list[Event]:
    """The rows about `name` (every name, if None), newest first, at most `limit`, those before row
    `before`.
    """
    where, parameters = ("name = ? AND ", [name]) if name is not None else ("", [])
    rows = db.rows(
        f"SELECT * FROM journal WHERE {where}seq < ? ORDER BY seq DESC LIMIT ?",
        [*parameters, 2**62 if before is None else before, -1 if limit is None else max(0, limit)],
    )
    return [event(row) for row in rows]


def newest_move(db: Database, name: str, alias: str, *, at: str | None = None) -> Event | None:
    """The row that says what (name, alias) points to, now or at a past moment."""
    when, parameters = ("AND at <= ?", [at]) if at is not None else ("", [])
    row = db.row(
        f"SELECT * FROM journal WHERE moves = 1 AND name = ? AND alias = ? {when} ORDER BY seq DESC LIMIT 1",
        [name, alias, *parameters],
    )
    return event(row) if row else None


def live(db: Database, names: Sequence[str]) -> dict[str, dict[str, Event]]:
    """{name: {alias: the row that says what it points to}} of some names, both in alphabetical order.

    Steps from alias to alias along the index, so that a name moved ten thousand times costs as much as one
    moved once.
    """
    found: dict[str, dict[str, Event]] = {}
    for row in db.rows(_LIVE, [json.dumps(list(names))]):
        found.setdefault(row["name"], {})[row["alias"]] = event(row)
    return found


def stack(db: Database, name: str, alias: str) -> list[Event]:
    """The rows whose targets lie on the alias's stack, the live one last."""
    rows = db.rows(
        "SELECT * FROM journal WHERE moves = 1 AND name = ? AND alias = ? ORDER BY seq", [name, alias]
    )
    return replay(event(row) for row in rows)


def replay(moves: Iterable[Event]) -> list[Event]:
    """The stack that these moves of one alias leave, by the rule in this module's first lines."""
    entries: list[Event] = []
    for move in moves:
        if move.verb == "rollback":
            landed = move.detail["entry"]
            while entries and entries[-1].seq != landed:
                entries.pop()
        else:
            entries.append(move)
    return entries


def verify(db: Database) -> list[str]:
    """What is wrong with the chain, one sentence for each row; empty if nothing is."""
    problems, previous, expected = [], GENESIS, 1
    for row in db.stream("SELECT * FROM journal ORDER BY seq"):
        if row["seq"] != expected:
            problems.append(f"journal: rows {expected} to {row['seq'] - 1} are missing")
        if row["hash"] != row_hash(row):
            problems.append(f"journal: row {row['seq']} was edited, its hash is not that of its content")
        elif misremembered(row):
            problems.append(f"journal: row {row['seq']} is not the row it was in the store it came from")
        elif row["previous"] != previous:
            problems.append(f"journal: row {row['seq']} does not follow the row before it")
        previous, expected = row["hash"], row["seq"] + 1
    return problems


def _after(latest: str) -> str:
    """Now, or a microsecond past `latest` where the clock has not moved on or went back."""
    present = now()
    if present > latest:
        return present
    return timestamp(datetime.fromisoformat(latest) + timedelta(microseconds=1))


def _storable(text: str) -> str:
    """Text as SQLite can hold it: lone surrogates, which UTF-8 has no bytes for, become escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
