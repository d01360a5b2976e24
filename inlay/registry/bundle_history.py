"""The journal of a bundle, replayed: each row must be one that could have followed those before it.

A journal can be made up and hashed anew by anybody; what is refused here is one that no registry would have
written, because what reads the journal later relies on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from inlay.registry import describing, ingest, journal, locking
from inlay.registry.bundle_trees import check_guard
from inlay.registry.canonical import is_digest
from inlay.registry.names import check_alias
from inlay.registry.rows import Place, Row, check_time, digests, load, need, texts


@dataclass(frozen=True)
class _Shape:
    """What a row of a verb has; None is either."""

    moves: bool = False
    alias: bool = False
    before: bool | None = False
    after: bool | None = False
    kind: str | None = None


_SHAPES = {
    "add": _Shape(after=True, kind="adapter"),
    "lock": _Shape(after=True, kind="variant"),
    "promote": _Shape(moves=True, alias=True, before=None, after=True),
    "refused": _Shape(alias=True, before=None, after=True),
    "rollback": _Shape(moves=True, alias=True, before=None, after=True),
    "base": _Shape(moves=True, alias=True, before=None, after=True, kind="variant"),
    "disable": _Shape(moves=True, alias=True, before=None),
    "yank": _Shape(before=True),
    "retire": _Shape(before=True),
    "purge": _Shape(before=True),
    "describe": _Shape(after=None),
    "guard": _Shape(alias=True),
}


@dataclass
class History:
    """What the rows so far add up to."""

    versions: Mapping[Place, Row]
    locks: Mapping[Place, Row]
    reports: Mapping[str, set[str]]
    """Subject -> the objects that are reports about it."""
    announced: dict[str, int] = field(default_factory=dict)
    """Name -> how many versions or locks it has by now: they are numbered without gaps."""
    states: dict[Place, str] = field(default_factory=dict)
    """What was yanked, retired or purged, by the last such verb."""
    lived: set[Place] = field(default_factory=set)
    stacks: dict[tuple[str, str], list[tuple[int, int | None]]] = field(default_factory=dict)
    """(name, alias) -> its stack, as (row, number)."""
    erased: set[str] = field(default_factory=set)
    times: dict[str, str] = field(default_factory=dict)
    last: Row | None = None

    def take(self, row: Row, kind: str) -> None:
        """Follow one more row, about a name of `kind`; InputError where it could not have followed."""
        self._check_chain(row)
        shape, place = _shape(row, kind), (row["name"], row["to_number"])
        detail = load(row["detail"], dict)
        _check_origin(row, detail)
        for side, wanted in (("from", shape.before), ("to", shape.after)):
            self._check_side(row, side, wanted, announcing=row["verb"] in ("add", "lock"))
        if row["alias"] is not None:
            check_alias(row["alias"])
        _check_words(row, detail)
        match row["verb"]:
            case "add" | "lock":
                self._announce(place)
            case "yank" | "retire" | "purge":
                self._end(row, (row["name"], row["from_number"]), detail)
            case "promote" | "rollback":
                need(place not in self.states, "a move to what was yanked, retired or purged before")
        if shape.moves:
            self._move(row, detail)
        self.last = row

    def finish(self) -> None:
        """InputError where a version or lock was never announced."""
        for name, number in (*self.versions, *self.locks):
            need(number <= self.announced.get(name, 0), f"{name}@v{number}, which is never announced")

    def gone(self) -> set[Place]:
        """What was retired or purged."""
        return {place for place, verb in self.states.items() if verb != "yank"}

    def _check_chain(self, row: Row) -> None:
        digests(row, "previous", "hash")
        check_time(row["at"])
        need(row["seq"] >= 1, "a place before the first")
        if self.last is not None:
            need(row["seq"] > self.last["seq"], "a place before the last row's")
            need(
                row["seq"] > self.last["seq"] + 1 or row["previous"] == self.last["hash"],
                "another row before it",
            )
        need(row["at"] > self.times.get(row["name"], ""), "a time before that of an earlier row")
        need(journal.row_hash(row) == row["hash"], "a hash that is not that of its content")
        self.times[row["name"]] = row["at"]

    def _check_side(self, row: Row, side: str, wanted: bool | None, *, announcing: bool) -> None:
        number, ref, digest = (row[f"{side}_{what}"] for what in ("number", "ref", "digest"))
        if number is None:
            need(not wanted and ref is None and digest is None, f"half of a {side}, or none")
            return
        name = row["name"]
        need(wanted is not False, f"a {side} that a {row['verb']} does not have")
        thing = self.versions.get((name, number)) or self.locks.get((name, number))
        need(thing is not None and thing["digest"] == digest, f"a {side} that is not in the bundle")
        need(ref == f"{name}@v{number}", "a reference to something else")
        need(announcing or number <= self.announced.get(name, 0), f"a {side} that comes later")

    def _announce(self, place: Place) -> None:
        name, number = place
        need(number == self.announced.get(name, 0) + 1, "a number out of turn")
        lock = self.locks.get(place)
        for _, node in locking.walk_tree(json.loads(lock["tree"])) if lock is not None else ():
            if "name" in node:
                used, at = locking.named(node)
                need(at <= self.announced.get(used, 0), f"{used}@v{at} in it before there was any")
        self.announced[name] = number

    def _end(self, row: Row, place: Place, detail: Mapping[str, Any]) -> None:
        state = self.states.get(place)
        if row["verb"] == "yank":
            need(state is None, "what was yanked, retired or purged before")
        if row["verb"] == "retire":
            need(state in (None, "yank") and place not in self.lived, "retired what was live or gone before")
        if row["verb"] == "purge":
            need(state != "purge", "purged what was purged before")
            self._erase(place, detail["erased"])
        self.states[place] = row["verb"]

    def _erase(self, place: Place, erased: Any) -> None:
        """Only what was a thing's own is erased with it: whoever takes this over erases it as well."""
        need(isinstance(erased, list) and all(map(is_digest, erased)), "erased")
        thing = self.versions.get(place) or self.locks[place]
        weights = {digest for path, _, digest in thing.get("files", ()) if path == ingest.WEIGHTS}
        must = {thing["digest"], *weights} if place in self.versions else set()
        may = {*must, *self.reports.get(thing["digest"], ()), thing.get("run")}
        need(must <= set(erased) <= may, "erased what was not its own")
        self.erased.update(erased)

    def _move(self, row: Row, detail: Mapping[str, Any]) -> None:
        stack = self.stacks.setdefault((row["name"], row["alias"]), [])
        live = stack[-1][1] if stack else None
        need(row["from_number"] == live, "a move from where it was not")
        if row["verb"] == "rollback":
            entry = detail["entry"]
            need(type(entry) is int, "nothing to land on")
            while stack and stack[-1][0] != entry:
                stack.pop()
            need(bool(stack) and stack[-1][1] == row["to_number"], "nothing to land on")
        else:
            stack.append((row["seq"], row["to_number"]))
        if row["to_number"] is not None:
            self.lived.add((row["name"], row["to_number"]))


def _shape(row: Row, kind: str) -> _Shape:
    shape = _SHAPES.get(row["verb"])
    need(shape is not None, f"the verb {ascii(row['verb'])[:40]}")
    assert shape is not None
    need(row["moves"] == int(shape.moves) and (row["alias"] is not None) == shape.alias, "moves or alias")
    need(shape.kind in (None, kind), f"a {row['verb']} of a name of {kind}s")
    return shape


def _check_origin(row: Row, detail: Mapping[str, Any]) -> None:
    if "origin" in detail:
        origin = detail["origin"]
        need(isinstance(origin, dict) and set(origin) == {"seq", "previous", "hash", "detail"}, "an origin")
        digests(origin, "previous", "hash")
        need(type(origin["seq"]) is int and origin["seq"] >= 1, "an origin without place")
        load(origin["detail"], dict)
    need(not journal.misremembered(row), "an origin that it does not come from")


def _check_words(row: Row, detail: Mapping[str, Any]) -> None:
    """What is shown, counted or judged by later: the texts and the detail."""
    need(max(len(row["who"]), len(row["why"])) <= journal.MAX_WHY, "who or why of another length")
    for key in ("because", "parent", "rebased"):
        need(isinstance(detail.get(key, ""), str), key)
    need(detail.get("cause") is None or type(detail["cause"]) is int, "a cause")
    need(detail.get("record") is None or is_digest(detail["record"]), "a record that is no digest")
    if row["verdict"] is not None:
        verdict = load(row["verdict"], dict)
        need(isinstance(verdict["passed"], bool) and texts(verdict["reasons"]), "a verdict")
        need(all(isinstance(check, dict) for check in verdict["checks"]), "a verdict's checks")
    if row["verb"] == "describe":
        owner, description = detail.get("owner", "-"), detail.get("description", "")
        need(isinstance(owner, str) and 0 < len(owner) <= 200, "an owner of another length")
        need(row["to_number"] is None or "owner" not in detail, "an owner of one version")
        need(isinstance(description, str), "a description")
        for words in (detail.get("tag", []), detail.get("untag", [])):
            need(isinstance(words, list) and len(words) <= describing.MAX_TAGS, "tags")
            describing.check(words, description)
    if row["verb"] == "guard":
        need("guard" in detail, "no guard")
        if detail["guard"] is not None:
            check_guard(detail["guard"])
