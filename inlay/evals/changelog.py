"""The story of a name in Markdown, for those who pay for it rather than build it: newest version first, what
changed, what that did to the scores, when it was live and why it was taken back.

Told from the journal and the scores alone, so the same store tells the same story. What people wrote is
escaped: it can neither format the page nor leave its line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from inlay.evals.comparing import dataset_of, kept, member_changes, recipe_changes
from inlay.evals.difference_text import change_words
from inlay.evals.forgetting import percent
from inlay.evals.metrics import unit_of
from inlay.evals.score_changes import ScoreChange, score_changes
from inlay.registry.canonical import moment
from inlay.registry.journal import Event
from inlay.registry.printable import printable
from inlay.registry.records import Lock, Version

if TYPE_CHECKING:
    from inlay.registry import Registry

_MARKDOWN = re.compile(r"([\\`*_{}\[\]#|~!$])")
# What renderers turn into links by themselves: addresses, mail addresses, @names (but not name@v3).
_LINKS = re.compile(r"(?i):(?=//)|(?<=www)\.|(?<![a-z0-9])@|@(?=[\w-]*\.\w)")
# What would open a list or underline a heading where a line begins.
_OPENERS = re.compile(r"^([-+=]|[0-9]+(?=[.)]))")
_NUMBER = re.compile(r"v[1-9][0-9]*")

READING = (
    "Scores are the share of a suite's questions that were answered right. Changes are counted question by "
    "question and given in percentage points, with the range that holds the true change in 95 of 100 cases. "
    "*More than chance* means p < 0.05 in an exact paired test, corrected for the number of suites; *could "
    "be chance* is no proof that nothing changed. *Held-out* skills are general skills that no training has "
    "seen."
)


def changelog(registry: Registry, name: str, *, since: str | None = None) -> str:
    """The changelog of an adapter or a variant as Markdown, newest version first.

    `since`: a version (`v3`) or a time (ISO 8601, UTC); only what came after it is told. Raises
    ReferenceNotFound for a name or version that is not there, InputError for what is neither.
    """
    about = registry.about(name)
    events = registry.journal(name)[::-1]
    things: Sequence[Version | Lock] = (
        registry.versions(name) if about.kind == "adapter" else registry.locks(name)
    )
    seen, when = _cut(registry, name, since, events)
    recent = [event for event in events if event.seq > seen and event.at > when]
    lines = [f"# {name}", "", *_opening(registry, about.kind, about.description, things, events, since)]
    told = 0
    for place, thing in enumerate(things):
        earlier = things[place + 1] if place + 1 < len(things) else None
        new = any(e.verb in ("add", "lock") and e.to_number == thing.number for e in recent)
        moves = [line for event in recent for line in _from_its_side(event, thing)]
        if not new and not moves:
            continue
        told += 1
        lines += ["", f"## {_code(thing.ref)}, {thing.created[:10]}", ""]
        if new:
            lines += _what(registry, thing, earlier)
        lines += moves
    if not told:
        lines += ["", "Nothing has happened since."]
    rules = [line for event in recent if event.verb == "guard" for line in [_rule(event)]]
    if rules:
        lines += ["", "## Conditions for going live", "", *rules]
    return "\n".join([*lines, "", "---", "", READING, ""])


def escape(text: str) -> str:
    """Text from outside on one line of Markdown: shown as it was written, obeyed by no renderer.

    Control characters become escapes (`printable`), markup and HTML their literal characters, and neither
    addresses nor @names become links.
    """
    safe = printable(text.strip()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    unmarked = _OPENERS.sub(_entities, _MARKDOWN.sub(r"\\\1", safe))
    return _LINKS.sub(_entities, unmarked)


def _entities(found: re.Match[str]) -> str:
    return "".join(f"&#{ord(character)};" for character in found[0])


def _cut(registry: Registry, name: str, since: str | None, events: Sequence[Event]) -> tuple[int, str]:
    """(number of the last row, time) that is not told any more."""
    if since is None:
        return 0, ""
    number = since.removeprefix(f"{name}@")
    if not _NUMBER.fullmatch(number):
        return 0, moment(since)
    thing = registry.resolve(f"{name}@{number}")
    made = (e.seq for e in events if e.verb in ("add", "lock") and e.to_number == thing.number)
    return next(made, 0), ""


def _opening(
    registry: Registry,
    kind: str,
    description: str,
    things: Sequence[Version | Lock],
    events: Sequence[Event],
    since: str | None,
) -> Iterator[str]:
    bases = dict.fromkeys(thing.base.name for thing in things)
    what = "An adapter" if kind == "adapter" else "A variant, composed of adapters,"
    on = f" for the base {' and '.join(escape(base) for base in bases)}" if bases else ""
    if description:
        yield escape(description)
        yield ""
    yield f"{what}{on}. {_live(registry, events)}"
    if since is not None:
        yield ""
        yield f"This page tells what came after {escape(since)}."
    if events:
        yield ""
        yield f"As of journal entry {events[-1].seq}, {_day(events[-1])}."


def _live(registry: Registry, events: Sequence[Event]) -> str:
    name = events[0].name if events else ""
    said = []
    for alias in sorted({event.alias for event in events if event.moves and event.alias is not None}):
        current = registry.current(name, alias)
        said.append(f"{_code(alias)} is " + (_code(current.ref) if current is not None else "switched off"))
    return f"Live now: {', '.join(said)}." if said else "Nothing is live."


def _what(registry: Registry, thing: Version | Lock, earlier: Version | Lock | None) -> Iterator[str]:
    """What a version is, what changed in it, and what that did."""
    yield f"Why: {escape(thing.why) or 'no reason was given.'} ({escape(thing.author)})"
    yield ""
    for sentence in _made_of(registry, thing, earlier):
        yield f"- {sentence}"
    yield from _scores(registry, thing, earlier)
    report = _forgetting(registry, thing)
    if report is not None:
        yield f"- Forgetting: {escape(report)}"


def _made_of(registry: Registry, thing: Version | Lock, earlier: Version | Lock | None) -> Iterator[str]:
    if isinstance(thing, Lock):
        before = earlier if isinstance(earlier, Lock) else None
        yield from _composed_of(thing, before)
        return
    old = earlier if isinstance(earlier, Version) else None
    data = dataset_of(registry, thing)
    had = dataset_of(registry, old) if old is not None else None
    if data is not None and had is not None and data.get("digest") == had.get("digest"):
        yield f"Trained on the same data as {_code(old.ref if old else '')}: {_dataset(data)}."
    elif data is not None:
        instead = f" instead of {_dataset(had)}" if had is not None else ""
        yield f"Trained on {_dataset(data)}{instead}."
    if old is not None and old.rank != thing.rank:
        yield f"Rank {thing.rank} instead of {old.rank} ({thing.parameters:,} parameters)."
    if old is not None and old.kind != thing.kind:
        yield f"Of the kind {escape(thing.kind)} instead of {escape(old.kind)}."
    if old is not None and old.licence != thing.licence:
        yield f"Licence: {_licence(thing.licence)} instead of {_licence(old.licence)}."
    if old is not None and old.base.weights != thing.base.weights:
        yield f"Made for another base, {escape(thing.base.name)} instead of {escape(old.base.name)}."
    if thing.base_mismatch:
        yield "Registered although it was trained on another base."


def _composed_of(lock: Lock, earlier: Lock | None) -> Iterator[str]:
    if earlier is None:
        members = ", ".join(_code(member.ref) for member in lock.members)
        yield f"Made of {members}." if members else "The bare base, without any adapter."
        return
    for member in member_changes(earlier, lock):
        before, after = member.before, member.after
        if before is None and after is not None:
            yield f"Added: {_code(after.ref)}."
        elif after is None and before is not None:
            yield f"Removed: {_code(before.ref)}."
        elif before is not None and after is not None and member.how:
            if before.ref != after.ref:
                yield f"{_code(after.ref)} in place of {_code(before.ref)}."
            if before.weight != after.weight:
                yield f"{_code(after.ref)} weighs {after.weight:g} instead of {before.weight:g}."
    changed = [c for c in recipe_changes(earlier, lock) if not c.what.endswith(("router", "variant"))]
    for change in changed:
        if change.what == "operator":
            yield f"Composed by {escape(str(change.after))} instead of {escape(str(change.before))}."
    others = [escape(change.what) for change in changed if change.what != "operator"]
    if others:
        yield f"Changed in the recipe: {', '.join(others)}."


def _scores(registry: Registry, thing: Version | Lock, earlier: Version | Lock | None) -> Iterator[str]:
    """One line a suite: against the version before where that can be compared, else against the base."""
    against: dict[str, tuple[str, ScoreChange]] = {}
    for label, subject in (("the base", "base"), (earlier.ref if earlier else "", None)):
        digest = subject or (earlier.digest if earlier is not None else None)
        if digest is None or digest == thing.digest:
            continue
        for change in score_changes(registry, digest, thing.digest, parts=False)[0]:
            against[change.label] = (label if subject else _code(label), change)
    for label, (whom, change) in sorted(against.items()):
        certain = "more than chance" if change.sure else "could be chance"
        base = change.base if whom != "the base" else None
        yield (
            f"- {escape(label)}: {_told(change.unit.mean, change.unit.score(change.after))}, "
            f"{change_words(change)} against {whom}, {certain} ({change.n:,} questions)."
            + (f" The base: {change.unit.score(base)}." if base is not None else "")
        )
    compared = {change.suite for _, change in against.values()}
    alone = {e.suite_name: e for e in reversed(registry.evals(thing.digest)) if e.suite_name not in compared}
    for suite, record in sorted(alone.items()):
        unit = unit_of(record.metric)
        yield (
            f"- {escape(suite)}: {_told(unit.graded, unit.score(record.score))} (95% {unit.bare(record.low)} "
            f"to {unit.bare(record.high)}, {record.n:,} questions), with nothing to compare it with."
        )


def _told(graded: str, score: str) -> str:
    """`54.5% right`, or what is graded by its name: `token_f1 54.5%`."""
    return f"{escape(graded)} {score}" if graded else f"{score} right"


def _forgetting(registry: Registry, thing: Version | Lock) -> str | None:
    """The verdict of the newest forgetting report."""
    read = partial(registry.reports, thing.digest, "forgetting", limit=1)
    verdict = next(iter(kept(thing, read) or ()), {}).get("verdict")
    return verdict if isinstance(verdict, str) else None


def _from_its_side(event: Event, thing: Version | Lock) -> Iterator[str]:
    """What a row means for one version: what became of it, not of the others it touches."""
    to, left = event.to_number == thing.number, event.from_number == thing.number
    alias, day = _code(event.alias or ""), _day(event)
    other = _code((event.from_ref if to else event.to_ref) or "nothing")
    match event.verb:
        case "promote" if to and event.forced:
            refusal = f" Its guard said no: {_reasons(event)}." if _reasons(event) else ""
            yield f"- {day}: **forced** live as {alias} in place of {other}.{refusal}{_because(event)}"
        case "promote" if to:
            instead = f" in place of {other}" if event.from_ref else ""
            yield f"- {day}: **live** as {alias}{instead}.{_because(event)}"
        case "promote" if left:
            yield f"- {day}: replaced as {alias} by {other}."
        case "refused" if to:
            yield f"- {day}: **refused** as {alias} by its guard: {_reasons(event)}.{_because(event)}"
        case "rollback" if to:
            yield f"- {day}: **live again** as {alias}, rolled back from {other}.{_because(event)}"
        case "base" if to:
            yield f"- {day}: **live** as {alias}: the bare base in place of {other}.{_because(event)}"
        case "rollback" | "base" if left:
            yield f"- {day}: **rolled back** as {alias}, to {other}.{_because(event)}"
        case "disable" if left:
            yield f"- {day}: **taken off**: {alias} was switched off.{_because(event)}"
        case "yank" if left:
            yield f"- {day}: **withdrawn** (yanked), not to be used again.{_because(event)}"
        case "retire" if left:
            yield f"- {day}: **retired**, never having been live.{_because(event)}"
        case "purge" if left:
            yield f"- {day}: **erased** (purged).{_because(event)}"


def _rule(event: Event) -> str:
    guard: dict[str, Any] = event.detail.get("guard") or {}
    asks = {
        "forget": "at most {} points of held-out general skills forgotten",
        "gain": "at least {} points gained over the base",
        "regress": "at most {} points lost against what is live",
        "skill": "at most {} points of any one held-out skill forgotten",
        "rigidity": "at most {} points lost when asked less neatly",
        "retention": "at least {}% of each member's own gain kept",
        "overhead": "at most {}% more time a token",
    }
    said = [text.format(_limits(guard[key])) for key, text in asks.items() if key in guard]
    what = f"asks for {', '.join(said)}" if said else "asks for nothing any more"
    return f"- {_day(event)}: {_code(event.alias or '')} {what}.{_because(event)}"


def _limits(held: Any) -> str:
    """`5.0`, or `5.0 (sort), 10.0 (others)` of a mapping by name."""
    if not isinstance(held, dict):
        return percent(float(held))
    ordered = sorted(held.items(), key=lambda row: (row[0] == "*", str(row[0])))
    names = ((escape(str(name)) if name != "*" else "others", limit) for name, limit in ordered)
    return ", ".join(f"{percent(float(limit))} ({name})" for name, limit in names)


def _reasons(event: Event) -> str:
    verdict = event.verdict or {}
    if verdict.get("passed"):
        return ""
    return "; ".join(escape(str(reason)) for reason in verdict.get("reasons", ()))


def _because(event: Event) -> str:
    cause = f" Because of {escape(str(event.detail['because']))}." if event.detail.get("because") else ""
    why = f" Reason: {escape(event.why)}" if event.why else ""
    return f"{cause}{why} ({escape(event.who)})"


def _dataset(data: Any) -> str:
    rows = data.get("rows")
    counted = f" ({rows:,} rows)" if isinstance(rows, int) else ""
    return f"{escape(str(data.get('name', 'data without a name')))}{counted}"


def _licence(licence: str | None) -> str:
    return escape(licence) if licence else "none stated"


def _day(event: Event) -> str:
    return event.at[:10]


def _code(text: str) -> str:
    """A reference or an alias, whose letters need no escape."""
    return f"`{text}`"
