"""What people say about names and versions: owner, description, tags. Each saying is a journal row.

A tag is a word that people give and take, `gdpr` or `stage=pilot`; it has no meaning to Inlay and moves
nothing. What holds now is replayed from the rows, so that who said what, and when, is never lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from inlay.errors import InputError, ReferenceNotFound
from inlay.registry import journal, lookup
from inlay.registry.names import parse_reference
from inlay.registry.records import About, Described
from inlay.registry.store import Store

MAX_TAGS = 64
MAX_TEXT = 2000
_TAG = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}(=[A-Za-z0-9._:/-]{1,128})?")


@dataclass
class Sayings:
    """What the rows about one name add up to. `versions` by number."""

    owner: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    versions: dict[int, Described] = field(default_factory=dict)


def describe(
    store: Store,
    ref: str,
    *,
    owner: str | None,
    description: str | None,
    tag: Sequence[str],
    untag: Sequence[str],
    why: str,
    who: str,
) -> journal.Event | None:
    """See `Registry.describe`."""
    name, exact = _subject(ref)
    check((*tag, *untag), description)
    if owner is not None and (exact or not 0 < len(owner) <= 200):
        raise InputError("an owner is of a name, in 1 to 200 characters", fix=f"describe {name} itself")
    with store.db.transaction():
        lookup.need_name(store, name)
        thing = lookup.resolve(store, ref) if exact else None
        held = described(store, [name])[name]
        mine = held.versions.get(thing.number, Described()) if thing else held
        change: dict[str, object] = {}
        if owner is not None and owner != (held.owner or _first_owner(store, name)):
            change["owner"] = owner
        if description is not None and description != mine.description:
            change["description"] = description
        given = [t for t in dict.fromkeys(tag) if t not in mine.tags and t not in untag]
        taken = [t for t in dict.fromkeys(untag) if t in mine.tags]
        if len(mine.tags) + len(given) - len(taken) > MAX_TAGS:
            raise InputError(f"{ref} may have at most {MAX_TAGS} tags")
        change.update({key: words for key, words in (("tag", given), ("untag", taken)) if words})
        if not change:
            return None
        target = journal.Target(thing.number, thing.ref, thing.digest) if thing else None
        return journal.append(
            store.db, who=who, verb="describe", name=name, after=target, why=why, detail=change
        )


def about(store: Store, name: str) -> About:
    """See `Registry.about`."""
    kind = lookup.need_name(store, name)
    held = described(store, [name])[name]
    return About(
        name=name,
        kind=kind,
        owner=held.owner or _first_owner(store, name),
        description=held.description,
        tags=held.tags,
        versions=held.versions,
    )


def described(store: Store, names: Sequence[str]) -> dict[str, Sayings]:
    """{name: what was said about it}, an entry for each of `names`."""
    found = {name: Sayings() for name in names}
    rows = store.db.rows(
        "SELECT name, to_number, detail FROM journal WHERE verb = 'describe'"
        " AND name IN (SELECT value FROM json_each(?)) ORDER BY name, seq",
        [json.dumps(list(names))],
    )
    for row in rows:
        said, about_name = json.loads(row["detail"]), found[row["name"]]
        if row["to_number"] is None:
            about_name.owner = said.get("owner", about_name.owner)
            about_name.description = said.get("description", about_name.description)
            about_name.tags = _tags(about_name.tags, said)
        else:
            before = about_name.versions.get(row["to_number"], Described())
            about_name.versions[row["to_number"]] = Described(
                said.get("description", before.description), _tags(before.tags, said)
            )
    return found


def numbers(store: Store, name: str, tag: str) -> set[int]:
    """The versions or locks of `name` that have the tag."""
    return {n for n, said in described(store, [name])[name].versions.items() if tag in said.tags}


def tagged(store: Store, tag: str) -> set[str]:
    """The names that have the tag, themselves or on any of their versions."""
    rows = store.db.rows("SELECT DISTINCT name FROM journal WHERE verb = 'describe'")
    held = described(store, [row["name"] for row in rows])
    return {
        name
        for name, said in held.items()
        if tag in said.tags or any(tag in v.tags for v in said.versions.values())
    }


def owned_by(store: Store, owner: str) -> set[str]:
    """The names that `owner` answers for now."""
    rows = store.db.rows("SELECT DISTINCT name FROM journal WHERE verb = 'describe'")
    said = {name: held.owner for name, held in described(store, [r["name"] for r in rows]).items()}
    first = store.db.rows("SELECT name FROM names WHERE owner = ?", [owner])
    return {row["name"] for row in first if not said.get(row["name"])} | {
        name for name, held in said.items() if held == owner
    }


def _tags(before: tuple[str, ...], said: dict[str, list[str]]) -> tuple[str, ...]:
    return tuple(sorted({*before, *said.get("tag", ())} - set(said.get("untag", ()))))


def _first_owner(store: Store, name: str) -> str:
    row = store.db.row("SELECT owner FROM names WHERE name = ?", [name])
    if row is None:
        raise ReferenceNotFound(f"there is no {name!r} in the registry", fix="see `inlay ls`")
    return str(row["owner"])


def _subject(ref: str) -> tuple[str, bool]:
    """(name, whether an exact version of it is meant); InputError for an alias, which moves on."""
    reference = parse_reference(ref)
    if "@" not in ref and reference.name:
        return reference.name, False
    if reference.kind == "alias" or not reference.name:
        raise InputError(
            f"a name or an exact version is described, got {ref!r}", fix=f"write {reference.name}@v1"
        )
    return reference.name, True


def check(tags: Sequence[str], description: str | None) -> None:
    """InputError for a word that is no tag, or a description that is too long."""
    for word in tags:
        if not isinstance(word, str) or not _TAG.fullmatch(word):
            raise InputError(
                f"a tag is a word or word=value, got {ascii(word)[:80]}",
                fix="write it like gdpr or stage=pilot",
            )
    if description is not None and len(description) > MAX_TEXT:
        raise InputError(f"a description has at most {MAX_TEXT} characters, got {len(description)}")
