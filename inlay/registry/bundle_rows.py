"""The rows of a bundle, read and verified: what they say must be what the rows of a sound store could say.

Knows the bundle alone. Whether its objects have the bytes they should, and whether it fits the store it goes
into, is `unbundling`'s.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from inlay.errors import InlayError, InputError
from inlay.registry import ingest, journal, locking
from inlay.registry.archive import Reader
from inlay.registry.bundle_history import History
from inlay.registry.bundle_trees import check_lock
from inlay.registry.bundling import TABLES
from inlay.registry.canonical import digest_of_json, is_digest
from inlay.registry.database import Database
from inlay.registry.evidence import record_of
from inlay.registry.names import check_name
from inlay.registry.rows import Place, Row, base_key, check_time, digests, load, need, texts

_TYPES: dict[str, tuple[type, ...]] = {"TEXT": (str,), "INTEGER": (int,), "REAL": (float, int)}
_PACKED = re.compile(r"b:[01]+")
_UNSOUND = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


@dataclass
class Content:
    """Every row of a bundle but its evals, which are read when they are taken over, one by one."""

    bases: dict[tuple[str, ...], Row] = field(default_factory=dict)
    names: dict[str, Row] = field(default_factory=dict)
    suites: list[Row] = field(default_factory=list)
    versions: dict[Place, Row] = field(default_factory=dict)
    locks: dict[Place, Row] = field(default_factory=dict)
    reports: list[Row] = field(default_factory=list)
    reported: dict[str, set[str]] = field(default_factory=dict)
    """Subject -> the objects that are reports about it."""
    journal: list[Row] = field(default_factory=list)
    subjects: set[str] = field(default_factory=set)
    """The digests that its scores and reports may be about."""
    gone: set[Place] = field(default_factory=set)
    """What was retired or purged where the bundle was made: it comes without bytes."""
    erased: set[str] = field(default_factory=set)
    """The digests that tombstones in its journal name."""

    def objects(self, gone: set[Place]) -> dict[str, str]:
        """Digest -> what it is, of every object that must be there where what is in `gone` is gone."""
        wanted: dict[str, str] = {}
        for place, row in self.versions.items():
            if place not in gone:
                ref = f"{place[0]}@v{place[1]}"
                wanted[row["digest"]] = f"manifest of {ref}"
                wanted.update({file[2]: f"{file[0]} of {ref}" for file in row["files"]})
                if row.get("run") is not None:
                    wanted[row["run"]] = f"training record of {ref}"
        for place, row in self.locks.items():
            if place not in gone:
                for digest in locking.routers_of(json.loads(row["tree"])):
                    wanted[digest] = f"router of {place[0]}@v{place[1]}"
        wanted.update({row["tensors"]: f"tensor list of base {row['name']}" for row in self.bases.values()})
        wanted.update({row["items"]: f"suite {row['name']}" for row in self.suites})
        wanted.update({row["object"]: f"a {row['kind']} report" for row in self.reports})
        return {digest: what for digest, what in wanted.items() if digest not in self.erased}


def read(reader: Reader, db: Database) -> Content:
    """All rows but the evals, verified; InputError that names the row and what is wrong with it."""
    if set(reader.header["members"]) != {f"rows/{table}.jsonl" for table in TABLES}:
        raise _unsound(reader, "its tables are not those that this Inlay knows")
    content = Content()
    history = History(content.versions, content.locks, content.reported)

    def event(row: Row, content: Content) -> None:
        need(row["name"] in content.names, "a name that is not in the bundle")
        history.take(row, content.names[row["name"]]["kind"])
        content.journal.append(row)

    take: dict[str, Callable[[Row, Content], None]] = {
        "bases": _base,
        "names": _name,
        "suites": _suite,
        "versions": _version,
        "locks": _lock,
        "reports": _report,
        "journal": event,
    }
    for table in TABLES:
        if table != "evals":
            columns = _columns(db, table)
            for number, row in enumerate(reader.rows(table), 1):
                with _said_of(reader, table, number):
                    check_row(row, columns, {"files": list} if table == "versions" else {})
                    take[table](row, content)
    content.gone, content.erased = history.gone(), history.erased
    with _said_of(reader, "journal", len(content.journal)):
        history.finish()
        need(set(content.names) == set(history.announced), "a name that it never mentions")
    _check_header(reader, content)
    return content


def evals(reader: Reader, db: Database, content: Content) -> Iterator[Row]:
    """The scores one by one, verified: their keys, their outcomes, and that they are about the bundle."""
    columns = _columns(db, "evals")
    bases = {key[0] for key in content.bases}
    for number, row in enumerate(reader.rows("evals"), 1):
        with _said_of(reader, "evals", number):
            check_row(row, columns, {})
            _eval(row, content.subjects, bases)
        yield row


def check_row(row: Row, columns: Mapping[str, tuple[str, bool]], extra: Mapping[str, type]) -> None:
    """InputError unless `row` has the table's columns (those that may be empty may lack) with their types."""
    for name, value in row.items():
        if name in extra:
            need(isinstance(value, extra[name]), f"{name} that is no {extra[name].__name__}")
            continue
        if name not in columns:
            raise InputError(
                f"it has the unknown column {ascii(name)[:60]}", fix="upgrade with `pip install -U inlay`"
            )
        kind, required = columns[name]
        if name == "base":
            need(
                isinstance(value, list) and len(value) == 3 and all(isinstance(v, str) for v in value), "base"
            )
            continue
        if value is None:
            need(not required, f"nothing as {name}")
            continue
        need(isinstance(value, _TYPES[kind]) and not isinstance(value, bool), f"{name} of another type")
        if isinstance(value, str):
            value.encode("utf-8")  # SQLite holds no lone surrogates; UnicodeEncodeError is a ValueError
        else:
            need(abs(value) < 2**63 and math.isfinite(value), f"{name} out of range")
    absent = [n for n, (_, required) in columns.items() if required and n not in row]
    absent += [n for n in extra if n not in row]
    need(not absent, f"no {', '.join(absent[:3])}")


def _columns(db: Database, table: str) -> dict[str, tuple[str, bool]]:
    """{column: (type, whether it must be there)} of a table, its row id left out (the journal has none)."""
    rows = db.rows(f"SELECT name, type, \"notnull\" AS required, pk FROM pragma_table_info('{table}')")
    return {r["name"]: (r["type"], bool(r["required"] or r["pk"])) for r in rows if r["name"] != "id"}


def _base(row: Row, content: Content) -> None:
    digests(row, "weights", "prompt", "tensors")
    check_time(row["created"])
    key = base_key([row["weights"], row["prompt"], row["source"]])
    need(key not in content.bases, "a base twice")
    need(
        all(b["tensors"] == row["tensors"] for b in content.bases.values() if b["weights"] == row["weights"]),
        "other tensors than another row with these weights",
    )
    content.bases[key] = row


def _name(row: Row, content: Content) -> None:
    check_name(row["name"])
    check_time(row["created"])
    need(row["kind"] in ("adapter", "variant"), f"kind {ascii(row['kind'])[:40]}")
    need(row["name"] not in content.names, "a name twice")
    content.names[row["name"]] = row


def _suite(row: Row, content: Content) -> None:
    check_name(row["name"])
    check_time(row["created"])
    digests(row, "digest", "items")
    need(row["digest"] == row["items"], "a digest that is not that of its items")
    load(row["skills"], dict)
    need(row["n"] >= 0, "n")
    content.suites.append(row)


def _version(row: Row, content: Content) -> None:
    place = row["name"], row["number"]
    need(content.names.get(row["name"], {}).get("kind") == "adapter", "a name that is no adapter's")
    need(place not in content.versions, "a number twice")
    need(base_key(row["base"]) in content.bases, "a base that is not in the bundle")
    digests(row, "digest", *(["run"] if row.get("run") is not None else []))
    check_time(row["created"])
    need(row["mismatch"] in (0, 1) and min(row["rank"], row["parameters"], row["size"]) >= 0, "numbers")
    for column in ("targets", "notes"):
        need(texts(load(row[column], list)), column)
    for column in ("trained_on", "lineage", "card"):
        if row.get(column) is not None:
            load(row[column], dict)
    need(texts([*json.loads(row.get("trained_on") or "{}").values()]), "trained_on")
    card = json.loads(row.get("card") or "{}").values()
    need(all(isinstance(v, str) or (isinstance(v, list) and texts(v)) for v in card), "card")
    paths, total = [], 0
    for file in row["files"]:
        need(isinstance(file, list) and len(file) == 3, "files")
        path, size, digest = file
        need(path in ingest.TAKEN and type(size) is int and size >= 0 and is_digest(digest), "files")
        paths.append(path)
        total += size
    need(len(set(paths)) == len(paths) and {ingest.CONFIG, ingest.WEIGHTS} <= set(paths), "files")
    need(total == row["size"], "a size that is not that of its files")
    content.versions[place] = row
    content.subjects.add(row["digest"])


def _lock(row: Row, content: Content) -> None:
    place = row["name"], row["number"]
    need(content.names.get(row["name"], {}).get("kind") == "variant", "a name that is no variant's")
    need(place not in content.locks, "a number twice")
    need(base_key(row["base"]) in content.bases, "a base that is not in the bundle")
    check_time(row["created"])
    check_lock(row, content.versions, content.locks)
    content.locks[place] = row
    content.subjects.add(row["digest"])


def _report(row: Row, content: Content) -> None:
    digests(row, "subject", "object")
    check_name(row["kind"])
    check_time(row["created"])
    need(row["subject"] in content.subjects, "a subject that is not in the bundle")
    content.reports.append(row)
    content.reported.setdefault(row["subject"], set()).add(row["object"])


def _eval(row: Row, subjects: set[str], bases: set[str]) -> None:
    """InputError for whatever `fsck` would find about this score, and for one about something else."""
    for column in ("protocol_detail", "splits", "versions"):
        load(row[column], dict)
    record = record_of({**row, "id": 0})
    need(record.key == row["key"], "a key that is not that of its columns")
    need(digest_of_json(record.protocol_detail) == record.protocol, "a protocol with another digest")
    need(
        record.subject in subjects or (record.subject == "base" and record.base_weights in bases),
        "a subject that is not in the bundle",
    )
    need(record.low <= record.score <= record.high, "a score outside its interval")
    if row["outcomes"].startswith("b:"):
        need(bool(_PACKED.fullmatch(row["outcomes"])), "outcomes")
        mean = sum(record.outcomes) / record.n
        need(math.isclose(record.score, mean, abs_tol=1e-9), "a score that is not that of its outcomes")
    else:
        need(all(type(o) is float for o in load(row["outcomes"], list)), "outcomes")


def _check_header(reader: Reader, content: Content) -> None:
    """What the header says about the rows."""
    if reader.header.get("names") != sorted(content.names):
        raise _unsound(reader, "its names are not those that it says")
    if reader.header.get("complete") is True:
        rows = content.journal
        head = [rows[-1]["seq"], rows[-1]["hash"]] if rows else [0, journal.GENESIS]
        if reader.header.get("head") != head or len(rows) != head[0]:
            raise _unsound(reader, f"its journal ends at row {head[0]}, not where it says")


@contextmanager
def _said_of(reader: Reader, table: str, number: int) -> Iterator[None]:
    """What is wrong with a row, said with its place. Whatever a hostile value makes fail is InputError."""
    try:
        yield
    except InlayError as error:
        raise _unsound(reader, f"row {number} of {table}: {error.message}") from None
    except _UNSOUND as error:
        raise _unsound(reader, f"row {number} of {table} is not sound ({type(error).__name__})") from None


def _unsound(reader: Reader, what: str) -> InputError:
    return InputError(f"{reader.path.name}: {what}", fix="make or fetch the bundle again (`inlay bundle`)")
