"""A line of versions out of the registry: what each scores on each task or skill, and where one was lost.

Nothing is measured here. Of each suite only scores that can be held against each other are taken: one base,
one content, one metric, one protocol. What is missing stays a gap. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from inlay.errors import InputError, IntegrityError, ReferenceNotFound
from inlay.evals.comparing import kept
from inlay.evals.line_records import GONE, Change, Column, Line, Role, Subject
from inlay.evals.line_tests import changes
from inlay.evals.metrics import Metric
from inlay.evals.metrics import metric as metric_named
from inlay.evals.statistics import reached
from inlay.evals.suites import SHIPPED, Item, Suite
from inlay.registry.guards import RIGID
from inlay.registry.records import EvalRecord, Lock, Version

if TYPE_CHECKING:
    from inlay.registry import Registry

__all__ = ["Change", "Column", "Line", "Subject", "line"]


def line(
    store: Registry,
    name: str | Sequence[str],
    suite: str | Sequence[str] | None = None,
    *,
    by: Literal["skill", "suite"] = "skill",
    last: int | None = None,
) -> Line:
    """The line of all versions (or locks) of `name`, or of the references in `name` in their order; of the
    `last` ones only, where that is given.

    Columns are the skills of every suite that one of them was scored on, or of those named by `suite` (names
    or digests); with `by="suite"` whole suites. A target suite is learnt at the first row whose training
    declared it, at the first row where none did; where as many suites as references are given, the j-th is
    the task of the j-th. Raises ReferenceNotFound; InputError for a name without a score, and for a suite
    on which nothing was scored; IntegrityError where a stored suite does not fit its outcomes.
    """
    notes: list[str] = []
    things = _things(store, name, last, notes)
    records = [store.evals(thing.digest) for thing in things]
    wanted = None if suite is None else [suite] if isinstance(suite, str) else list(suite)
    suites = _suites(records, wanted)
    kept_rows = []
    for row, thing in enumerate(things):
        if thing.state in GONE and not any(_of(record, task) for record in records[row] for task in suites):
            notes.append(f"{thing.ref} was {thing.state} before it was scored, and is left out.")
        else:
            kept_rows.append(row)
    things, records = [things[i] for i in kept_rows], [records[i] for i in kept_rows]
    single = isinstance(name, str)
    subjects = [
        Subject(t.ref, f"v{t.number}" if single else t.ref, t.digest, t.state, t.created) for t in things
    ]
    in_turn = not single and wanted is not None and len(suites) == len(name) == len(things)
    learned = {} if in_turn else _declared(store, things)
    general = set() if in_turn else _general(store, things)
    parts: list[_Part] = []
    for number, task in enumerate(suites, 1):
        table = _comparable(store, task, records, [subject.label for subject in subjects], notes)
        known_as = next(record.suite_name for record in table if record is not None)
        role: Role = "general" if known_as in general and known_as not in learned else "target"
        at = number if in_turn else learned.get(known_as, 1)
        parts += _parts(store, table, role, at, by, notes)
    parts.sort(key=lambda part: list(_PARTS).index(part.column.role))
    columns = _labelled([part.column for part in parts])
    return Line(
        name=name if isinstance(name, str) else ", ".join(name),
        subjects=tuple(subjects),
        columns=tuple(columns),
        scores=tuple(zip(*(part.scores for part in parts), strict=True)),
        changes=tuple(changes(columns, [part.outcomes for part in parts], [part.clusters for part in parts])),
        notes=tuple(dict.fromkeys(notes)),
    )


_PARTS: dict[Role, str] = {
    "target": "targets",
    "general": "held out",
    "protected": "protected",
    "beyond": "held out",
}
"""The roles in the order of the columns, and what a suite with several is called in each."""


@dataclass(frozen=True)
class _Part:
    """One column, and for each row its outcomes and its score."""

    column: Column
    clusters: Sequence[Hashable]
    outcomes: Sequence[tuple[bool | float, ...] | None]
    scores: Sequence[float | None]


def _things(
    store: Registry, name: str | Sequence[str], last: int | None, notes: list[str]
) -> list[Version | Lock]:
    """The rows, oldest first: those on the newest one's base."""
    if isinstance(name, str):
        listed = store.locks if store.about(name).kind == "variant" else store.versions
        things: list[Version | Lock] = list(reversed(listed(name, limit=None if last is None else last + 1)))
    else:
        things = [store.resolve(ref) for ref in name]
    if last is not None and len(things) > last:
        things = things[-last:]
        notes.append(f"Versions before {things[0].ref} are not looked at; --limit takes more of them.")
    if not things:
        raise InputError("a line needs at least one version, and none was named")
    newest = things[-1]
    for thing in things:
        if thing.base.weights != newest.base.weights:
            notes.append(f"{thing.ref} sits on another base than {newest.ref}, and is left out.")
    return [thing for thing in things if thing.base.weights == newest.base.weights]


def _suites(scores: Sequence[Sequence[EvalRecord]], wanted: Sequence[str] | None) -> list[str]:
    """Names or digests of the suites that make columns, as they are wanted; else all, by the alphabet."""
    scored = [record for records in scores for record in records]
    names = sorted({record.suite_name for record in scored})
    if wanted is None:
        # What asks a suite less neatly is no skill of its own.
        names = [name for name in names if not name.endswith(RIGID)]
        if not names:
            raise InputError(
                "a line needs scores, and none of its versions has any", fix="`inlay eval REF --suite S`"
            )
        return names
    for task in wanted:
        if not any(_of(record, task) for record in scored):
            raise InputError(
                f"none of the versions was scored on {task[:80]!r}",
                fix=f"scored are: {', '.join(names) or 'none'}",
            )
    return list(dict.fromkeys(wanted))


def _of(record: EvalRecord, suite: str) -> bool:
    """Whether a score is one on the suite of that name or digest."""
    return suite in (record.suite_name, record.suite)


def _declared(store: Registry, things: Sequence[Version | Lock]) -> dict[str, int]:
    """Suite -> the first row whose training, or that of one of its members, declared it as its target."""
    rows: dict[str, int] = {}
    for row, thing in enumerate(things, 1):
        for run in _runs(store, thing):
            for declared in (run.get("declared") or {}).get("target") or ():
                if isinstance(declared, Mapping) and isinstance(declared.get("name"), str):
                    rows.setdefault(declared["name"], row)
    return rows


def _runs(store: Registry, thing: Version | Lock) -> list[Mapping[str, Any]]:
    if isinstance(thing, Version):
        versions = [thing]
    else:
        found = (store.resolve(member.ref) for member in thing.members)
        versions = [version for version in found if isinstance(version, Version)]
    return [run for v in versions if (run := kept(v, partial(store.run_of, v))) is not None]


def _general(store: Registry, things: Sequence[Version | Lock]) -> set[str]:
    """Suites that measure what the base could do: those that ship, and those that guards, trainings and
    forgetting reports name as general."""
    names = set(SHIPPED)
    for thing in things:
        for run in _runs(store, thing):
            listed = (run.get("declared") or {}).get("general") or ()
            names |= {str(s["name"]) for s in listed if isinstance(s, Mapping) and "name" in s}
        if thing.state not in GONE:
            for report in store.reports(thing.digest, "forgetting", limit=1):
                names |= {str(name) for name in report.get("suites", ())}
        if isinstance(thing, Lock):
            names |= set(((thing.guard or {}).get("suites") or {}).get("general") or ())
    for name in dict.fromkeys(thing.name for thing in things):
        for alias in store.aliases(name):
            guard = store.guard(name, alias)
            names |= set(guard.suites.get("general", ())) if guard is not None else set()
    return names


def _key(record: EvalRecord) -> tuple[str, ...]:
    return (record.base_weights, record.base_prompt, record.suite, record.metric, record.protocol)


def _comparable(
    store: Registry,
    suite: str,
    scores: Sequence[Sequence[EvalRecord]],
    labels: Sequence[str],
    notes: list[str],
) -> list[EvalRecord | None]:
    """One suite's scores that can be held against each other: the base's, then each row's or None.

    Of several ways in which it was scored the one that most rows have, the newest of those.
    """
    ways: dict[tuple[str, ...], dict[int, EvalRecord]] = {}
    for row, records in enumerate(scores):
        for record in records:
            if _of(record, suite):
                ways.setdefault(_key(record), {}).setdefault(row, record)
    chosen = max(ways, key=lambda key: (len(ways[key]), max(record.id for record in ways[key].values())))
    table = ways[chosen]
    example = next(iter(table.values()))
    listed = store.evals("base", example.suite, base_weights=example.base_weights, protocol=example.protocol)
    base = next((record for record in listed if record.comparable(example)), None)
    for row, label in enumerate(labels):
        others = [way[row] for key, way in ways.items() if key != chosen and row in way]
        if others and row not in table:
            notes.append(f"{label} on {example.suite_name} is a gap: {_obstacle(others[0], example)}.")
    return [base, *(table.get(row) for row in range(len(scores)))]


def _obstacle(record: EvalRecord, other: EvalRecord) -> str:
    """Why two scores of one suite cannot stand in one column."""
    if record.base_weights != other.base_weights:
        return "it was scored on another base"
    if record.base_prompt != other.base_prompt:
        return "it was scored with another tokenizer or chat template"
    if record.suite != other.suite:
        return (
            f"it was scored on another content of that name ({record.suite[7:15]}, not {other.suite[7:15]})"
        )
    if record.metric != other.metric:
        return f"it was scored by {record.metric}, not by {other.metric}"
    x, y = record.protocol_detail, other.protocol_detail
    differing = sorted(key for key in {*x, *y} if x.get(key) != y.get(key))
    return f"it was scored under another protocol ({', '.join(differing) or 'unknown'})"


def _parts(
    store: Registry,
    table: Sequence[EvalRecord | None],
    role: Role,
    learned: int,
    by: str,
    notes: list[str],
) -> list[_Part]:
    """The columns that one suite makes; IntegrityError where its items do not fit its outcomes."""
    record = next(record for record in table if record is not None)
    metric = _metric(record.metric)
    source = record.suite_name if _newest(store, record) else record.suite
    try:
        items: Sequence[Item | None] = Suite.from_store(store, record.suite).items
    except (ReferenceNotFound, InputError):
        # An eval may be put without its suite, or of items in a layout that is not ours.
        items = [None] * record.n
        notes.append(f"The items of {record.suite_name} are not known here, and so are its skills.")
    if len(items) != record.n:
        raise IntegrityError(f"{record.suite_name} has {len(items)} items, its score {record.n} outcomes")
    groups: dict[tuple[str | None, bool], list[int]] = {}
    for place, item in enumerate(items):
        skill = item.skill if item is not None and by == "skill" else None
        held_out = item is None or item.held_out or role == "target"
        groups.setdefault((skill, held_out), []).append(place)
    found = []
    for (skill, held_out), places in groups.items():
        cells = [None if r is None else tuple(r.outcomes[k] for k in places) for r in table]
        if len(groups) == 1:
            skill, scores = None, [None if r is None else r.score for r in table]
        else:
            scores = [None if cell is None else _score(cell, metric) for cell in cells]
        column = Column(
            suite=record.suite_name,
            digest=record.suite,
            source=source,
            skill=skill,
            role=role if held_out else "protected",
            n=len(places),
            metric=record.metric,
            learned=learned if role == "target" else 0,
            of_one=_of_one(record, metric),
            higher_is_better=metric is None or metric.higher_is_better,
        )
        guesses = [0.0 if item is None else item.guess for item in (items[k] for k in places)]
        if role == "general" and column.of_one and cells[0] is not None and not reached(cells[0], guesses):
            column = replace(column, role="beyond")
        shared = [None if item is None else item.cluster for item in (items[k] for k in places)]
        found.append(_Part(column, shared if any(shared) else (), cells, scores))
    return found


def _newest(store: Registry, record: EvalRecord) -> bool:
    """Whether the suite's name still means the content that was scored, as far as the store knows."""
    try:
        return store.suite(record.suite_name).digest == record.suite
    except ReferenceNotFound:
        return True


def _metric(key: str) -> Metric | None:
    """The metric of a suite; None where items have their own, which are all right or wrong, or where it is
    not known here."""
    try:
        return metric_named(key)
    except InputError:
        return None


def _of_one(record: EvalRecord, metric: Metric | None) -> bool:
    """Whether scores are shares of 1, more being better."""
    if metric is None:
        return all(isinstance(outcome, bool) for outcome in record.outcomes)
    return metric.highest == 1.0 and metric.higher_is_better


def _score(outcomes: Sequence[bool | float], metric: Metric | None) -> float:
    values = [float(x) for x in outcomes]
    return metric.total(values) if metric is not None else math.fsum(values) / len(values)


def _labelled(columns: Sequence[Column]) -> list[Column]:
    """A skill is called by its name, by its suite's and its own where two suites share one; a suite by its
    name. Where both parts of it, held out and protected, are there, they say so."""
    names = [column.skill or column.suite for column in columns]
    longer = [
        f"{column.suite}/{column.skill}" if column.skill is not None and names.count(name) > 1 else name
        for column, name in zip(columns, names, strict=True)
    ]
    return [
        replace(column, label=name if longer.count(name) == 1 else f"{name}, {_PARTS[column.role]}")
        for column, name in zip(columns, longer, strict=True)
    ]
