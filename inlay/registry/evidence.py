"""Suites, scores and reports as they are kept, and the evidence a guard is judged by.

An eval counts as evidence only beside others of the same base, suite, metric and protocol: a score from
elsewhere never satisfies a guard.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from inlay.errors import InputError, IntegrityError, ReferenceNotFound
from inlay.registry import lookup
from inlay.registry.canonical import canonical, digest_of, is_digest, now
from inlay.registry.guards import Evidence, Guard, Perturbed, rigid_name
from inlay.registry.names import check_name, close_to
from inlay.registry.records import EvalRecord, Lock, SuiteRow, Version
from inlay.registry.store import Store

_TEXTS = ("subject", "base_weights", "base_prompt", "suite", "suite_name", "metric", "protocol", "device")


def put_suite(
    store: Store, name: str, digest: str, items: bytes, *, metric: str, skills: Mapping[str, Any]
) -> SuiteRow:
    """See `Registry.put_suite`."""
    check_name(name)
    if digest != digest_of(items):
        raise InputError(f"a suite's digest is that of its items, got {str(digest)[:80]!r}")
    n = sum(1 for line in items.split(b"\n") if line.strip())
    with store.db.transaction():  # `gc` is kept out between the object and its row
        stored = store.objects.put_bytes(items)
        newest = store.db.row(
            "SELECT * FROM suites WHERE name = ? ORDER BY created DESC, id DESC LIMIT 1", [name]
        )
        row = {
            "name": name,
            "digest": digest,
            "items": stored,
            "metric": metric,
            "skills": canonical(skills),
            "n": n,
        }
        if newest is not None and all(newest[key] == value for key, value in row.items()):
            return _suite(newest)
        row["created"] = now()
        store.db.insert("suites", row)
    return suite(store, name)


def suite(store: Store, name_or_digest: str) -> SuiteRow:
    """The suite with that digest, or the newest of that name; ReferenceNotFound if there is none."""
    column = "digest" if is_digest(name_or_digest) else "name"
    row = store.db.row(
        # By when it was made: an older one may have come later, in a bundle.
        f"SELECT * FROM suites WHERE {column} = ? ORDER BY created DESC, id DESC LIMIT 1",
        [name_or_digest],
    )
    if row is None:
        known = [r["name"] for r in store.db.rows("SELECT DISTINCT name FROM suites ORDER BY name")]
        near = close_to(name_or_digest, known)
        raise ReferenceNotFound(
            f"there is no suite {name_or_digest[:80]!r} in the registry",
            fix=near or "evaluate with it once: `inlay eval REF --suite FILE`",
        )
    return _suite(row)


def suites(store: Store) -> list[SuiteRow]:
    """The newest suite of each name, in alphabetical order."""
    rows = store.db.rows(
        "SELECT * FROM suites s WHERE id = (SELECT id FROM suites WHERE name = s.name"
        " ORDER BY created DESC, id DESC LIMIT 1) ORDER BY name"
    )
    return [_suite(row) for row in rows]


def put_eval(store: Store, record: EvalRecord) -> EvalRecord:
    """See `Registry.put_eval`."""
    if record.subject != "base" and not is_digest(record.subject):
        raise InputError(f"an eval's subject is a digest or base, got {record.subject[:80]!r}")
    if not all(math.isfinite(v) for v in (record.score, record.low, record.high)):
        raise InputError("an eval's score and interval must be finite")
    record = replace(record, created=record.created or now())
    key, outcomes = record.key, _pack(record.outcomes)
    with store.db.transaction():
        row = store.db.row("SELECT * FROM evals WHERE key = ?", [key])
        if row is not None:
            if row["outcomes"] != outcomes:
                raise IntegrityError(
                    f"{record.suite_name} was scored before for this subject and protocol with "
                    f"{row['score']:.4f}, now with {record.score:.4f}; one key has one outcome",
                    fix="put what differs (device precision, seed) into the protocol",
                )
            return record_of(row)
        values: dict[str, Any] = {name: getattr(record, name) for name in _TEXTS}
        store.db.insert(
            "evals",
            {
                "key": key,
                **values,
                "protocol_detail": canonical(record.protocol_detail),
                "score": float(record.score),
                "n": record.n,
                "low": float(record.low),
                "high": float(record.high),
                "outcomes": outcomes,
                "splits": canonical(record.splits),
                "versions": canonical(record.versions),
                "created": record.created,
            },
        )
    return record


def evals(
    store: Store,
    subject: str | None = None,
    suite_name: str | None = None,
    *,
    base_weights: str | None = None,
    protocol: str | None = None,
    limit: int | None = None,
    before: int | None = None,
) -> list[EvalRecord]:
    """See `Registry.evals`."""
    conditions: dict[str, str] = {}
    if subject is not None:
        conditions["subject"] = subject_of(store, subject)
    if suite_name is not None:
        # A subject has few evals, a suite many: the + keeps SQLite from the index of the suites' names.
        by_name = "suite_name" if subject is None else "+suite_name"
        conditions["suite" if is_digest(suite_name) else by_name] = suite_name
    if base_weights is not None:
        conditions["base_weights"] = base_weights
    if protocol is not None:
        conditions["protocol"] = protocol
    where = "".join(f"{column} = ? AND " for column in conditions)
    rows = store.db.rows(
        f"SELECT * FROM evals WHERE {where}id < ? ORDER BY id DESC LIMIT ?",
        [*conditions.values(), 2**62 if before is None else before, lookup.limit_of(limit)],
    )
    return [record_of(row) for row in rows]


def subject_of(store: Store, subject: str) -> str:
    """The digest that a reference, a whole digest or "base" names as an eval's subject."""
    if subject == "base" or is_digest(subject):
        return subject
    return lookup.resolve(store, subject).digest


def put_report(store: Store, subject: str, kind: str, report: Mapping[str, Any]) -> str:
    """See `Registry.put_report`."""
    check_name(kind)
    digest = subject_of(store, subject)
    written = canonical(report).encode()
    from inlay.registry.removing import refuse_erased  # which needs locks, which need this module

    with store.db.transaction():  # `gc` is kept out between the object and its row
        refuse_erased(store, [digest_of(written)])
        stored = store.objects.put_bytes(written)
        store.db.insert("reports", {"subject": digest, "kind": kind, "object": stored, "created": now()})
    return stored


def reports(store: Store, subject: str, kind: str | None, limit: int | None) -> list[dict[str, Any]]:
    """See `Registry.reports`."""
    rows = store.db.rows(
        "SELECT object FROM reports WHERE subject = ?1 AND (?2 IS NULL OR kind = ?2) ORDER BY id DESC",
        [subject_of(store, subject), kind],
    )
    digests = _without_erased(store, [row["object"] for row in rows])
    return [json.loads(store.objects.read(digest, what="report")) for digest in digests[:limit]]


def _without_erased(store: Store, digests: list[str]) -> list[str]:
    """Without what was erased; what was lost stays, so that reading it says so."""
    from inlay.registry.removing import erased

    if store.objects.missing(digests):
        gone = erased(store)
        return [digest for digest in digests if digest not in gone]
    return digests


def pin_guard(store: Store, guard: Guard) -> Guard:
    """`guard` with the digest of each of its suites as they are now, unless it names one already; also of
    their perturbed forms where rigidity is asked for and they are here.
    """
    pinned = {name: guard.pinned.get(name) or suite(store, name).digest for name in guard.names()}
    if guard.rigidity is not None:
        for name in map(rigid_name, guard.suites.get("target", ())):
            digest = guard.pinned.get(name) or _newest_digest(store, name)
            pinned |= {name: digest} if digest is not None else {}
    return replace(guard, pinned=pinned)


def gather(
    store: Store, guard: Guard, candidate: Version | Lock, current: Version | Lock | None
) -> list[Evidence]:
    """What is known about each suite of `guard`, for `candidate`, its base, and what it would replace; then
    about its time where the guard asks, and about alarms that nothing has answered.
    """
    found = []
    for role, names in guard.suites.items():
        for name in names:
            row = _pinned_suite(store, name, guard.pinned.get(name))
            records = _records(store, candidate.digest, row, candidate, guard)
            bases = _records(store, "base", row, candidate, guard)
            mine = next((r for r in records if any(r.comparable(b) for b in bases)), None)
            mine = mine or (records[0] if records else None)
            base = next((b for b in bases if mine is not None and b.comparable(mine)), None)
            before = None
            if current is not None and mine is not None:
                theirs = _records(store, current.digest, row, candidate, guard)
                before = next((r for r in theirs if r.comparable(mine)), None)
            items = _items(store, row)
            target = role == "target"
            found.append(
                Evidence(
                    role=role,
                    suite=name,
                    candidate=mine,
                    base=base,
                    current=before,
                    held_out=_held_out(items),
                    digest=row.digest,
                    has_current=current is not None,
                    subject=candidate.ref,
                    foreign=mine is None and bool(_scored(store, candidate, row)),
                    skills=tuple(str(item.get("skill", "all")) for item in items),
                    clusters=_clusters(items),
                    guesses=tuple(map(_guess, items)),
                    perturbed=_perturbed(store, guard, candidate, name, items, mine)
                    if target and guard.rigidity is not None
                    else None,
                    members=_members(store, guard, candidate, row, mine)
                    if target and guard.retention is not None
                    else (),
                )
            )
    if guard.overhead is not None:
        found.append(_overhead(store, candidate))
    return found + _alarms(store, candidate)


def _guess(item: Mapping[str, Any]) -> float:
    """The chance of being right by guessing."""
    choices = item.get("choices")
    return 1 / len(choices) if isinstance(choices, list) and choices else 0.0


def _perturbed(
    store: Store,
    guard: Guard,
    candidate: Version | Lock,
    name: str,
    items: Sequence[Mapping[str, Any]],
    mine: EvalRecord | None,
) -> Perturbed:
    """The candidate's newest score on the suite's perturbed form, under the clean score's protocol."""
    rigid = rigid_name(name)
    digest = guard.pinned.get(rigid)
    at = {str(item.get("id")): index for index, item in enumerate(items)}
    for row in _suites_called(store, rigid, digest):
        made = _items(store, row)
        sources = [at.get(str(item.get("id")).rpartition("~")[0]) for item in made]
        record = next(
            (
                record
                for record in _records(store, candidate.digest, row, candidate, guard)
                if mine is not None and record.protocol == mine.protocol
            ),
            None,
        )
        if record is not None and None not in sources:
            clusters = (
                str(item.get("cluster") or f"item {source}")
                for item, source in zip(made, sources, strict=True)
            )
            kept = tuple(source for source in sources if source is not None)
            return Perturbed(rigid, record, kept, tuple(clusters), row.digest)
    return Perturbed(rigid)


def _members(
    store: Store, guard: Guard, candidate: Version | Lock, row: SuiteRow, mine: EvalRecord | None
) -> tuple[tuple[str, EvalRecord | None], ...]:
    """Each adapter inside a lock, once, with its own score that can be compared with the candidate's."""
    members = {m.digest: m.ref for m in candidate.members} if isinstance(candidate, Lock) else {}
    return tuple(
        (
            ref,
            next(
                (
                    record
                    for record in _records(store, digest, row, candidate, guard)
                    if mine is not None and record.comparable(mine)
                ),
                None,
            ),
        )
        for digest, ref in members.items()
    )


def _overhead(store: Store, candidate: Version | Lock) -> Evidence:
    """The newest report of kind `overhead` about the candidate on its base."""
    digest, report = next(
        (
            (digest, report)
            for digest, report in _kept(store, candidate.digest, "overhead")
            if report.get("base_weights") == candidate.base.weights
        ),
        ("", None),
    )
    return Evidence("overhead", "", None, None, None, None, digest, subject=candidate.ref, report=report)


def _alarms(store: Store, candidate: Version | Lock) -> list[Evidence]:
    """The newest alarm about the candidate, unless its general skills were measured on suites."""
    raised: list[Evidence] = []
    for kind in ("forgetting", "alarm"):
        for digest, report in _kept(store, candidate.digest, kind):
            levels = report.get("levels")  # reports of the first schema had one level
            if kind == "forgetting" and (levels is None or "general" in levels.get("registration", ())):
                return []
            said = report.get("alarm") if kind == "forgetting" else report
            if not raised and isinstance(said, dict) and said.get("raised") is True:
                raised.append(
                    Evidence("alarm", "", None, None, None, None, digest, subject=candidate.ref, report=said)
                )
    return raised


def _kept(store: Store, subject: str, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(digest, report) of what is kept of that kind, newest first, without what was erased."""
    rows = store.db.rows(
        "SELECT object FROM reports WHERE subject = ? AND kind = ? ORDER BY id DESC LIMIT ?",
        [subject, kind, _REPORTS_READ],
    )
    for digest in _without_erased(store, [row["object"] for row in rows]):
        report = json.loads(store.objects.read(digest, what="report"))
        if isinstance(report, dict):
            yield digest, report


_REPORTS_READ = 20


def _records(
    store: Store, subject: str, row: SuiteRow, candidate: Version | Lock, guard: Guard
) -> list[EvalRecord]:
    """Evals of `subject` on the suite, by its own metric, under the candidate's base and a protocol that
    the guard admits; newest first.
    """
    rows = store.db.rows(
        "SELECT * FROM evals WHERE subject = ? AND suite = ? AND metric = ? AND base_weights = ?"
        " AND base_prompt = ? ORDER BY id DESC",
        [subject, row.digest, row.metric, candidate.base.weights, candidate.base.prompt],
    )
    return [record for r in rows if guard.admits(record := record_of(r))]


def _scored(store: Store, candidate: Version | Lock, row: SuiteRow) -> list[sqlite3.Row]:
    """Evals of the candidate on the suite, however they were measured."""
    return store.db.rows(
        "SELECT id FROM evals WHERE subject = ? AND suite = ? LIMIT 1", [candidate.digest, row.digest]
    )


def _pinned_suite(store: Store, name: str, digest: str | None) -> SuiteRow:
    row = store.db.row(
        "SELECT * FROM suites WHERE name = ? AND digest = ? ORDER BY id DESC LIMIT 1", [name, digest]
    )
    return _suite(row) if row is not None else suite(store, digest or name)


def _suites_called(store: Store, name: str, digest: str | None) -> list[SuiteRow]:
    """The suite of that digest, or all of that name, newest first."""
    column, value = ("digest", digest) if digest is not None else ("name", name)
    rows = store.db.rows(
        f"SELECT * FROM suites WHERE {column} = ? ORDER BY created DESC, id DESC LIMIT ?",
        [value, _REPORTS_READ],
    )
    return [_suite(row) for row in rows]


def _newest_digest(store: Store, name: str) -> str | None:
    return next((row.digest for row in _suites_called(store, name, None)), None)


def _items(store: Store, row: SuiteRow) -> list[dict[str, Any]]:
    """The suite's items as they were written, in order."""
    lines = store.objects.read(row.items, what="suite").split(b"\n")
    items = [json.loads(line) for line in lines if line.strip()]
    return [item if isinstance(item, dict) else {} for item in items]


def _held_out(items: Sequence[Mapping[str, Any]]) -> tuple[bool, ...] | None:
    """Which items are of held-out skills; None where no item says."""
    if not any("held_out" in item or "split" in item for item in items):
        return None
    return tuple(item.get("held_out") is True or item.get("split") == "held_out" for item in items)


def _clusters(items: Sequence[Mapping[str, Any]]) -> tuple[str | None, ...]:
    """What each item shares with others; nothing where no item says."""
    if not any(item.get("cluster") is not None for item in items):
        return ()
    return tuple(None if item.get("cluster") is None else str(item["cluster"]) for item in items)


def _pack(outcomes: tuple[bool | float, ...]) -> str:
    """Outcomes as text: "b:0110…" where all are true or false, else a JSON list of numbers."""
    if all(isinstance(o, bool) for o in outcomes):
        return "b:" + "".join("1" if o else "0" for o in outcomes)
    return canonical([float(o) for o in outcomes])


def _unpack(text: str) -> tuple[bool | float, ...]:
    if text.startswith("b:"):
        return tuple(c == "1" for c in text[2:])
    return tuple(json.loads(text))


def record_of(row: sqlite3.Row | Mapping[str, Any]) -> EvalRecord:
    """The score in a row of the table."""
    return EvalRecord(
        **{name: row[name] for name in _TEXTS},
        protocol_detail=json.loads(row["protocol_detail"]),
        score=row["score"],
        n=row["n"],
        low=row["low"],
        high=row["high"],
        outcomes=_unpack(row["outcomes"]),
        splits=json.loads(row["splits"]),
        versions=json.loads(row["versions"]),
        created=row["created"],
        id=row["id"],
    )


def _suite(row: sqlite3.Row) -> SuiteRow:
    return SuiteRow(
        name=row["name"],
        digest=row["digest"],
        items=row["items"],
        metric=row["metric"],
        skills=json.loads(row["skills"]),
        n=row["n"],
        created=row["created"],
    )
