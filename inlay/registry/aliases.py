"""What is live: promote, roll back, yank, guard. Each is one transaction that ends with every row or none.

Guards stop promotions only. Nobody who is putting out a fire is asked for evidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from inlay.errors import Conflict, GuardRefused, InlayError, InputError
from inlay.registry import journal, locking, lookup
from inlay.registry.canonical import canonical, is_digest, moment
from inlay.registry.evidence import gather, pin_guard
from inlay.registry.guards import Guard, Judge, Verdict
from inlay.registry.journal import Event, Target
from inlay.registry.names import check_alias, check_name, parse_alias, parse_reference
from inlay.registry.printable import printable
from inlay.registry.records import Lock, Version
from inlay.registry.store import Store

OTHERWISE = ("base", "disable")


def promote(
    store: Store,
    ref: str,
    alias: str,
    *,
    why: str,
    expect: str | None,
    force: bool,
    who: str,
    judge: Judge | None,
) -> Event:
    """See `Registry.promote`."""
    check_alias(alias)
    if force:
        _need_why(why, "promoting by force")
    refused: tuple[str, Verdict] | None = None
    with store.db.transaction():
        thing = lookup.resolve(store, ref)
        name = thing.name
        last = journal.newest_move(store.db, name, alias)
        before = last.target if last else None
        _check_expected(name, alias, expect, before)
        bad = locking.tainted(store, thing)
        if bad is not None:
            inside = "" if bad.ref == thing.ref else f"contains {bad.ref}, which "
            raise InputError(
                f"{thing.ref} {inside}was {bad.state}, it cannot be promoted", fix="promote another version"
            )
        target = _target(thing)
        if last is not None and before == target:
            return last
        verdict = _judge(store, thing, alias, before, judge, force)
        if verdict is not None and not verdict.passed and not force:
            journal.append(
                store.db,
                who=who,
                verb="refused",
                name=name,
                alias=alias,
                before=before,
                after=target,
                why=why,
                verdict=verdict.to_dict(),
            )
            refused = (thing.ref, verdict)
        else:
            done = journal.append(
                store.db,
                who=who,
                verb="promote",
                name=name,
                alias=alias,
                moves=True,
                before=before,
                after=target,
                why=why,
                verdict=verdict.to_dict() if verdict is not None else None,
                detail={"forced": True} if force else None,
            )
    if refused is not None:  # the refusal's row is committed by now
        raise GuardRefused(
            printable(f"{refused[0]} may not become {name}@{alias}: {'; '.join(refused[1].reasons)}"),
            fix="measure or improve it, or force it by name with --force --why TEXT",
        )
    return done


def rollback(
    store: Store,
    name_alias: str,
    *,
    why: str,
    to: str | None,
    to_time: str | datetime | None,
    dependents: bool,
    otherwise: str | None,
    dry_run: bool,
    who: str,
) -> list[Event]:
    """See `Registry.rollback`."""
    _need_why(why, "a rollback")
    _check_otherwise(otherwise)
    name, alias = parse_alias(name_alias)
    if to is not None and to_time is not None:
        raise InputError("a rollback goes to a version or to a time, not both", fix="give one of them")
    when = moment(to_time) if to_time is not None else None
    with store.db.transaction(dry_run=dry_run):
        lookup.need_name(store, name)
        stack = journal.stack(store.db, name, alias)
        if not stack:
            raise Conflict(f"{name}@{alias} was never promoted, there is nothing to roll back")
        landing = _landing(store, name, alias, stack, to, when)
        left = stack[stack.index(landing) + 1 :] if landing is not None else stack
        bad = [e.target for e in left if e.target is not None]
        if landing is not None:
            bad = [target for target in bad if target != landing.target]
        own = _leave(store, name, alias, stack[-1], landing, otherwise, why, who, {}, None)
        events = [own]
        if dependents:
            things = [_thing(store, name, target) for target in dict.fromkeys(bad)]
            events += _take_back(store, things, otherwise, why, who, own, skip={(name, alias)})
    return events


def yank(
    store: Store,
    ref: str,
    *,
    why: str,
    rollback_dependents: bool,
    otherwise: str | None,
    dry_run: bool,
    who: str,
) -> list[Event]:
    """See `Registry.yank`."""
    _need_why(why, "a yank")
    _check_otherwise(otherwise)
    reference = parse_reference(ref)
    if reference.kind == "alias":
        raise InputError(f"an exact version is yanked, {ref!r} is an alias", fix="write name@v3")
    with store.db.transaction(dry_run=dry_run):
        thing = lookup.resolve(store, ref)
        if thing.state != "active":
            return []
        own = journal.append(store.db, who=who, verb="yank", name=thing.name, before=_target(thing), why=why)
        events = [own]
        for alias in _aliases_at(store, thing):
            stack = journal.stack(store.db, thing.name, alias)
            landing = _earlier(store, stack, {(thing.name, thing.number)})
            because = {"because": thing.ref, "cause": own.seq}
            events.append(
                _leave(store, thing.name, alias, stack[-1], landing, otherwise, why, who, because, thing.ref)
            )
        if rollback_dependents:
            skip = {(e.name, e.alias) for e in events if e.alias is not None}
            events += _take_back(store, [thing], otherwise, why, who, own, skip=skip)
    return events


def set_guard(
    store: Store, name_alias: str, guard: Guard | Mapping[str, Any] | None, *, why: str, who: str
) -> Event:
    """See `Registry.set_guard`."""
    name, alias = parse_alias(name_alias)
    parsed = Guard.of(guard or {})
    with store.db.transaction():
        lookup.need_name(store, name)
        pinned = pin_guard(store, parsed)
        detail = {"guard": pinned.to_dict() if pinned else None}
        return journal.append(store.db, who=who, verb="guard", name=name, alias=alias, why=why, detail=detail)


def guard_of(store: Store, name: str, alias: str) -> Guard | None:
    """The newest guard of (name, alias); None if it has none, or it was removed."""
    check_name(name)
    row = store.db.row(
        "SELECT * FROM journal WHERE verb = 'guard' AND name = ? AND alias = ? ORDER BY seq DESC LIMIT 1",
        [name, alias],
    )
    written = journal.event(row).detail.get("guard") if row is not None else None
    return Guard.of(written) if written else None


def verdict(store: Store, ref: str, alias: str, *, judge: Judge | None) -> Verdict | None:
    """See `Registry.verdict`."""
    check_alias(alias)
    thing = lookup.resolve(store, ref)
    last = journal.newest_move(store.db, thing.name, alias)
    return _judge(store, thing, alias, last.target if last else None, judge, force=False)


def _judge(
    store: Store, thing: Version | Lock, alias: str, before: Target | None, judge: Judge | None, force: bool
) -> Verdict | None:
    """The verdict on moving the alias to `thing`; None where nothing guards it."""
    guard = guard_of(store, thing.name, alias)
    recipe = Guard.of(thing.guard) if isinstance(thing, Lock) and thing.guard else None
    if guard is None and recipe is None:
        return None
    strict = guard.stricter(recipe) if guard is not None else recipe
    assert strict is not None
    if judge is None:
        if force:
            return Verdict(False, ["no judge is installed, nothing was measured"])
        raise InlayError(
            f"{thing.name}@{alias} has a guard and no judge is installed to weigh the evidence",
            fix="open the registry through inlay.Registry, which brings one",
        )
    current = lookup.by_number(store, thing.name, before.number) if before is not None else None
    verdict = judge(strict, gather(store, strict, thing, current))
    canonical(
        verdict.to_dict()
    )  # numbers that JSON cannot hold are the judge's error, found before anything moves
    return verdict


def _landing(
    store: Store, name: str, alias: str, stack: list[Event], to: str | None, when: str | None
) -> Event | None:
    """The entry below the top to pop to: the one asked for, else the newest good one, if there is any."""
    if to is None and when is None:
        return _earlier(store, stack, set())
    below = stack[:-1]
    if when is not None:
        past = journal.newest_move(store.db, name, alias, at=when)
        if past is None:
            raise Conflict(f"{name}@{alias} pointed to nothing at {when}", fix=f"see `inlay log {name}`")
        wanted = past.detail["entry"] if past.verb == "rollback" else past.seq
        found = next((e for e in below if e.seq == wanted), None)
        said = f"what {name}@{alias} was at {when}, {past.to_ref or 'disabled'},"
    else:
        assert to is not None
        ref = _full_ref(name, to)
        found = next((e for e in reversed(below) if _is(e.target, ref)), None)
        said = ref
    if found is None or found.target is None:
        entries = [e.to_ref for e in below if e.to_ref]
        raise Conflict(
            f"{said} is not below {stack[-1].to_ref or 'disabled'} on the stack of {name}@{alias}",
            fix=f"it holds {', '.join(map(str, entries))}" if entries else "promote it if you mean it",
        )
    bad = locking.tainted(store, _thing(store, name, found.target))
    if bad is not None:
        raise Conflict(
            f"{found.to_ref} cannot be rolled back to: {bad.ref} was {bad.state}",
            fix="choose another version",
        )
    return found


def _earlier(store: Store, stack: list[Event], bad: set[tuple[str, int]]) -> Event | None:
    """The newest entry under the top of the stack that is neither yanked nor contains anything of `bad`."""
    top = stack[-1].target
    for entry in reversed(stack[:-1]):
        if entry.target is None or entry.target == top:
            continue
        thing = _thing(store, entry.name, entry.target)
        if locking.tainted(store, thing) is not None or (thing.name, thing.number) in bad:
            continue
        if isinstance(thing, Lock) and locking.contains(thing, bad):
            continue
        return entry
    return None


def _take_back(
    store: Store,
    things: list[Version | Lock],
    otherwise: str | None,
    why: str,
    who: str,
    cause: Event,
    *,
    skip: set[tuple[str, str]],
) -> list[Event]:
    """Move each live variant alias that contains one of `things` to its latest earlier lock without any."""
    bad = {(thing.name, thing.number) for thing in things}
    affected: dict[tuple[str, str], list[str]] = {}
    for thing in things:
        for dependent in locking.dependents(store, thing):
            if (dependent.variant, dependent.alias) not in skip:
                affected.setdefault((dependent.variant, dependent.alias), []).append(thing.ref)
    events = []
    for (variant, alias), refs in sorted(affected.items()):
        stack = journal.stack(store.db, variant, alias)
        landing = _earlier(store, stack, bad)
        because = {"because": ", ".join(refs), "cause": cause.seq}
        events.append(
            _leave(store, variant, alias, stack[-1], landing, otherwise, why, who, because, ", ".join(refs))
        )
    return events


def _leave(
    store: Store,
    name: str,
    alias: str,
    top: Event,
    landing: Event | None,
    otherwise: str | None,
    why: str,
    who: str,
    detail: dict[str, Any],
    free_of: str | None,
) -> Event:
    """The row that moves an alias off `top`: back to `landing`, else as `otherwise` says, else Conflict."""
    before = top.target
    if landing is not None:
        verb, after = "rollback", landing.target
        detail = {**detail, "entry": landing.seq}
    elif otherwise is None:
        kind = "lock" if lookup.need_name(store, name) == "variant" else "version"
        fit = f" free of {free_of}" if free_of else " that is not yanked"
        raise Conflict(
            f"nothing was moved: {name}@{alias} has no earlier {kind}{fit}",
            fix="say what then: --else disable, or for variants --else base",
        )
    else:
        after = _bare_base(store, name, before, why, who) if otherwise == "base" else None
        verb = "base" if after is not None else "disable"
    return journal.append(
        store.db,
        who=who,
        verb=verb,
        name=name,
        alias=alias,
        moves=True,
        before=before,
        after=after,
        why=why,
        detail=detail,
    )


def _bare_base(store: Store, name: str, before: Target | None, why: str, who: str) -> Target | None:
    """A lock of `name` that is the bare base, as target; None for an adapter, which has no such version."""
    thing = lookup.by_number(store, name, before.number) if before is not None else None
    if not isinstance(thing, Lock):
        return None
    lock = locking.insert(
        store,
        name,
        {"use": "base", "weight": 1.0},
        thing.base,
        None,
        canonical({"base": thing.base.source, "use": "base"}),
        None,
        why,
        None,
        who,
        who,
        anew=True,
    )
    return _target(lock)


def _aliases_at(store: Store, thing: Version | Lock) -> list[str]:
    moves = journal.live(store.db, [thing.name]).get(thing.name, {})
    return [alias for alias, move in moves.items() if move.to_number == thing.number]


def _check_expected(name: str, alias: str, expect: str | None, before: Target | None) -> None:
    if expect is None:
        return
    there = before.ref if before is not None else "none"
    if expect == "none":
        same = before is None
    else:
        same = before is not None and _is(before, expect if is_digest(expect) else _full_ref(name, expect))
    if not same:
        raise Conflict(
            f"{name}@{alias} was expected at {printable(expect)[:120]}, it is at {there}",
            fix=f"look at `inlay log {name}`, then promote again with --expect {there}",
        )


def _full_ref(name: str, text: str) -> str:
    """`name@v3` out of "v3" or "name@v3"; InputError for another name, an alias or half a digest."""
    if is_digest(text):
        return text
    reference = parse_reference(text if "@" in text else f"{name}@{text}")
    if reference.kind == "digest" and is_digest(reference.value):
        return reference.value
    if reference.kind != "number" or reference.name != name:
        raise InputError(f"a version of {name} must be named exactly, got {text!r}", fix="write it like v2")
    return str(reference)


def _is(target: Target | None, ref_or_digest: str) -> bool:
    return target is not None and ref_or_digest in (target.ref, target.digest)


def _target(thing: Version | Lock) -> Target:
    return Target(thing.number, thing.ref, thing.digest)


def _thing(store: Store, name: str, target: Target) -> Version | Lock:
    found = lookup.by_number(store, name, target.number)
    assert found is not None
    return found


def _need_why(why: str, what: str) -> None:
    if not why.strip():
        raise InputError(f"{what} needs a reason that others can read later", fix="give why")


def _check_otherwise(otherwise: str | None) -> None:
    if otherwise is not None and otherwise not in OTHERWISE:
        raise InputError(f"otherwise is {' or '.join(OTHERWISE)}, got {otherwise[:40]!r}")
