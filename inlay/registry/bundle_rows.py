"""The rows of a bundle, read and verified: what they say must be what the rows of a sound store could say.

Knows the bundle alone. Whether its objects have the bytes they should, and whether it fits the store it goes
into, is `unbundling`'s.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from inlay.errors import InlayError, InputError
from inlay.registry import ingest, journal, locking
from inlay.registry.archive import Reader
from inlay.registry.canonical import digest_of_json, is_digest
from inlay.registry.database import Database
from inlay.registry.evidence import record_of
from inlay.registry.guards import Guard
from inlay.registry.names import check_alias, check_name, parse_reference
from inlay.registry.recipes import OPERATORS, Recipe

Row = dict[str, Any]
Place = tuple[str, int]

MAX_TREE_DEPTH = 64
_TYPES: dict[str, tuple[type, ...]] = {"TEXT": (str,), "INTEGER": (int,), "REAL": (float, int)}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_NODE_KEYS = {
    "use": {"use", "name", "weight"},
    "stack": {"stack", "name", "lock", "weight"},
    "merge": {"merge", "method", "params", "rank", "space", "seed", "name", "lock", "weight"},
    "route": {"route", "name", "lock", "weight"},
}


@dataclass
class Content:
    """Every row of a bundle but its evals, which are read when they are taken over, one by one."""

    bases: dict[tuple[str, ...], Row] = field(default_factory=dict)
    names: dict[str, Row] = field(default_factory=dict)
    suites: list[Row] = field(default_factory=list)
    versions: dict[Place, Row] = field(default_factory=dict)
    locks: dict[Place, Row] = field(default_factory=dict)
    reports: list[Row] = field(default_factory=list)
    journal: list[Row] = field(default_factory=list)

    def gone(self) -> set[Place]:
        """What was retired or purged where the bundle was made: it comes without bytes."""
        return {
            (row["name"], row["from_number"]) for row in self.journal if row["verb"] in ("retire", "purge")
        }

    def objects(self) -> dict[str, str]:
        """Digest -> what it is, of every object that the bundle must bring."""
        wanted: dict[str, str] = {}
        gone, erased = self.gone(), self.erased()
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
        return {digest: what for digest, what in wanted.items() if digest not in erased}

    def erased(self) -> set[str]:
        """The digests that tombstones in the bundle's journal name."""
        return {
            digest
            for row in self.journal
            if row["verb"] == "purge"
            for digest in json.loads(row["detail"])["erased"]
        }


def read(reader: Reader, db: Database) -> Content:
    """All rows but the evals, verified; InputError that names the row and what is wrong with it."""
    columns = {
        table: _columns(db, table)
        for table in ("bases", "names", "suites", "versions", "locks", "reports", "journal")
    }
    content = Content()

    def rows(table: str) -> Iterator[Row]:
        for number, row in enumerate(reader.rows(table), 1):
            where = f"{reader.path.name}: row {number} of {table}"
            try:
                extra = {"files": list} if table == "versions" else {}
                check_row(row, columns[table], extra)
                yield row
            except InlayError as error:
                raise InputError(f"{where}: {error.message}", fix="make the bundle again") from None
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise InputError(
                    f"{where} is not sound ({type(error).__name__})", fix="make it again"
                ) from None

    for row in rows("bases"):
        _digests(row, "weights", "prompt", "tensors")
        content.bases[_base_key([row["weights"], row["prompt"], row["source"]])] = row
    for row in rows("names"):
        check_name(row["name"])
        _need(row["kind"] in ("adapter", "variant"), f"kind {row['kind'][:40]!r}")
        _need(row["name"] not in content.names, "a name twice")
        content.names[row["name"]] = row
    for row in rows("suites"):
        check_name(row["name"])
        _digests(row, "digest", "items")
        _need(isinstance(json.loads(row["skills"]), dict) and row["n"] >= 0, "skills or n")
        content.suites.append(row)
    for row in rows("versions"):
        _check_version(row, content)
        content.versions[row["name"], row["number"]] = row
    for row in rows("locks"):
        _check_lock(row, content)
        content.locks[row["name"], row["number"]] = row
    for row in rows("reports"):
        _digests(row, "subject", "object")
        check_name(row["kind"])
        content.reports.append(row)
    moves: dict[tuple[str, str], list[journal.Event]] = {}
    for row in rows("journal"):
        _check_event(row, content, moves)
        content.journal.append(row)
    _check_chain(reader, content)
    return content


def evals(reader: Reader, db: Database, content: Content) -> Iterator[Row]:
    """The scores one by one, verified: their keys, their outcomes, and that they are about the bundle."""
    columns = _columns(db, "evals")
    subjects = {row["digest"] for row in (*content.versions.values(), *content.locks.values())} | {"base"}
    for number, row in enumerate(reader.rows("evals"), 1):
        try:
            check_row(row, columns, {})
            record = record_of({**row, "id": 0})
            _need(record.key == row["key"], "a key that is not that of its columns")
            _need(digest_of_json(record.protocol_detail) == record.protocol, "a protocol with another digest")
            _need(record.subject in subjects, "a subject that is not in the bundle")
            _need(
                all(map(math.isfinite, (record.score, record.low, record.high))), "a score that is no number"
            )
        except (InlayError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            said = error.message if isinstance(error, InlayError) else type(error).__name__
            raise InputError(
                f"{reader.path.name}: row {number} of evals is not sound ({said})",
                fix="make the bundle again",
            ) from None
        yield row


def check_row(row: Row, columns: Mapping[str, tuple[str, bool]], extra: Mapping[str, type]) -> None:
    """InputError unless `row` has the table's columns (those that may be empty may lack) with their types."""
    for name, value in row.items():
        if name in extra:
            _need(isinstance(value, extra[name]), f"{name} that is no {extra[name].__name__}")
            continue
        if name not in columns:
            raise InputError(
                f"it has the unknown column {name[:60]!r}", fix="upgrade with `pip install -U inlay`"
            )
        kind, required = columns[name]
        if name == "base":
            _need(
                isinstance(value, list) and len(value) == 3 and all(isinstance(v, str) for v in value), "base"
            )
            continue
        if value is None:
            _need(not required, f"nothing as {name}")
            continue
        _need(isinstance(value, _TYPES[kind]) and not isinstance(value, bool), f"{name} of another type")
        if isinstance(value, str):
            value.encode("utf-8")  # SQLite holds no lone surrogates; UnicodeEncodeError is a ValueError
        else:
            _need(math.isfinite(value) and abs(value) < 2**63, f"{name} out of range")
    absent = [n for n, (_, required) in columns.items() if required and n not in row]
    absent += [n for n in extra if n not in row]
    _need(not absent, f"no {', '.join(absent[:3])}")


def _columns(db: Database, table: str) -> dict[str, tuple[str, bool]]:
    """{column: (type, whether it must be there)} of a table, its row id left out (the journal has none)."""
    rows = db.rows(f"SELECT name, type, \"notnull\" AS required, pk FROM pragma_table_info('{table}')")
    return {r["name"]: (r["type"], bool(r["required"] or r["pk"])) for r in rows if r["name"] != "id"}


def _check_version(row: Row, content: Content) -> None:
    place = row["name"], row["number"]
    _need(content.names.get(row["name"], {}).get("kind") == "adapter", "a name that is no adapter's")
    _need(1 <= row["number"] < 2**53 and place not in content.versions, "a number twice or out of range")
    _need(_base_key(row["base"]) in content.bases, "a base that is not in the bundle")
    _digests(row, "digest", *(["run"] if row.get("run") is not None else []))
    for column in ("targets", "notes"):
        value = json.loads(row[column])
        _need(isinstance(value, list) and all(isinstance(v, str) for v in value), column)
    for column in ("trained_on", "lineage", "card"):
        _need(row.get(column) is None or isinstance(json.loads(row[column]), dict), column)
    paths = []
    for file in row["files"]:
        _need(isinstance(file, list) and len(file) == 3, "files")
        path, size, digest = file
        _need(path in ingest.TAKEN and type(size) is int and size >= 0 and is_digest(digest), "files")
        paths.append(path)
    _need(len(set(paths)) == len(paths) and {ingest.CONFIG, ingest.WEIGHTS} <= set(paths), "files")


def _check_lock(row: Row, content: Content) -> None:
    place = row["name"], row["number"]
    _need(content.names.get(row["name"], {}).get("kind") == "variant", "a name that is no variant's")
    _need(1 <= row["number"] < 2**53 and place not in content.locks, "a number twice or out of range")
    _need(_base_key(row["base"]) in content.bases, "a base that is not in the bundle")
    tree = json.loads(row["tree"])
    _check_node(tree, content, 0)
    _need(locking.digest_of_lock(row["base"][0], tree) == row["digest"], "a tree that is not its digest's")
    Recipe.of(locking.written_recipe(row["recipe"]))
    if row.get("guard") is not None:
        Guard.of(json.loads(row["guard"]))
    _need(row.get("provenance") is None or isinstance(json.loads(row["provenance"]), dict), "provenance")


def _check_node(node: Any, content: Content, depth: int) -> None:
    """InputError unless `node` is a pinned node (see `locking`) whose members are in the bundle."""
    _need(isinstance(node, dict) and depth <= MAX_TREE_DEPTH, "a tree that is none")
    operators = [operator for operator in OPERATORS if operator in node]
    _need(len(operators) == 1 and set(node) <= _NODE_KEYS[operators[0]], "a node with other keys")
    weight = node.get("weight", 1.0)
    _need(
        isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight), "a weight"
    )
    operator = operators[0]
    if operator == "use":
        if node["use"] == "base":
            return
        _need("weight" in node, "a member without weight")
        found = content.versions.get(_place(node["name"]))
        _need(found is not None and found["digest"] == node["use"], "a member that is not in the bundle")
        return
    if "name" in node or "lock" in node:
        nested = content.locks.get(_place(node["name"]))
        _need(nested is not None and nested["digest"] == node["lock"], "a variant that is not in the bundle")
    children = node[operator]
    if operator == "route":
        _need(set(children) <= {"by", "fallback", "experts", "router"}, "a route with other keys")
        _need(isinstance(children["by"], str) and isinstance(children["fallback"], str), "a route")
        _need("router" not in children or is_digest(children["router"]), "a router")
        children = children["experts"]
    _need(isinstance(children, list) and len(children) > 0, "an operator without members")
    for child in children:
        _check_node(child, content, depth + 1)


def _check_event(row: Row, content: Content, moves: dict[tuple[str, str], list[journal.Event]]) -> None:
    _need(row["name"] in content.names, "a name that is not in the bundle")
    _need(row["moves"] in (0, 1) and row["seq"] >= 1 and bool(_TIME.fullmatch(row["at"])), "moves, seq or at")
    last = content.journal[-1] if content.journal else None
    if last is not None:
        _need(row["seq"] > last["seq"], "its place before the last row's")
        if row["seq"] == last["seq"] + 1:
            _need(row["previous"] == last["hash"], "another row before it")
    _need(journal.row_hash(row) == row["hash"], "a hash that is not that of its content")
    _need(not journal.misremembered(row), "an origin that it does not come from")
    if row.get("alias") is not None:
        check_alias(row["alias"])
    things = content.versions if content.names[row["name"]]["kind"] == "adapter" else content.locks
    for side in ("from", "to"):
        number, ref, digest = (row.get(f"{side}_{what}") for what in ("number", "ref", "digest"))
        if number is None:
            _need(ref is None and digest is None, f"half of a {side}")
            continue
        thing = things.get((row["name"], number))
        _need(thing is not None and thing["digest"] == digest, f"{ref} that is not in the bundle")
        _need(ref == f"{row['name']}@v{number}", "a reference to something else")
    event = journal.event(row)
    _need(isinstance(event.detail, dict), "detail")
    _need(event.verdict is None or isinstance(event.verdict, dict), "verdict")
    if row["verb"] == "purge":
        erased = event.detail["erased"]
        _need(isinstance(erased, list) and all(isinstance(d, str) and is_digest(d) for d in erased), "erased")
    if row["verb"] == "guard" and event.detail.get("guard"):
        Guard.of(event.detail["guard"])
    if event.moves:
        _need(row.get("alias") is not None, "no alias")
        stack = moves.setdefault((row["name"], row["alias"]), [])
        if row["verb"] == "rollback":
            entry = next((e for e in stack if e.seq == event.detail["entry"]), None)
            _need(entry is not None and entry.to_number == event.to_number, "nothing to land on")
        moves[row["name"], row["alias"]] = journal.replay([*stack, event])


def _check_chain(reader: Reader, content: Content) -> None:
    """Every version and lock is announced once, and a complete journal is complete."""
    for verb, things in (("add", content.versions), ("lock", content.locks)):
        said = [(r["name"], r["to_number"]) for r in content.journal if r["verb"] == verb]
        if len(said) != len(set(said)) or set(said) != set(things):
            raise InputError(
                f"{reader.path.name}: its journal does not announce what is in it, each once",
                fix="make the bundle again",
            )
    if reader.header.get("complete") is True:
        rows = content.journal
        head = [rows[-1]["seq"], rows[-1]["hash"]] if rows else [0, journal.GENESIS]
        if reader.header.get("head") != head or len(rows) != head[0]:
            raise InputError(
                f"{reader.path.name}: its journal ends at row {head[0]}, not where it says",
                fix="make the bundle again",
            )


def _place(ref: Any) -> Place:
    reference = parse_reference(ref)
    _need(reference.kind == "number", f"{reference} that is no exact reference")
    return reference.name, reference.number


def _base_key(base: list[str]) -> tuple[str, ...]:
    return tuple(base)


def _digests(row: Row, *columns: str) -> None:
    for column in columns:
        _need(is_digest(row[column]), f"{column} that is no digest")


def _need(true: bool, what: str) -> None:
    if not true:
        raise InputError(f"it has {what}")
