"""The list of names, page by page: what each is, what its aliases point to, what people say about it."""

from __future__ import annotations

import json
from collections.abc import Collection

from inlay.errors import InputError
from inlay.registry import describing, journal
from inlay.registry.lookup import limit_of
from inlay.registry.records import NameRow
from inlay.registry.store import Store


def names(
    store: Store,
    *,
    kind: str | None,
    owner: str | None,
    tag: str | None,
    limit: int | None,
    after: str | None,
) -> list[NameRow]:
    """In alphabetical order from behind `after`, with what their aliases point to."""
    if kind is not None and kind not in ("adapter", "variant"):
        raise InputError(f"a kind is adapter or variant, got {kind[:40]!r}")
    wanted: Collection[str] | None = None
    if owner is not None:
        wanted = describing.owned_by(store, owner)
    if tag is not None:
        tagged = describing.tagged(store, tag)
        wanted = tagged if wanted is None else tagged & set(wanted)
    where, parameters = "", [kind, after]
    if wanted is not None:
        where = " AND n.name IN (SELECT value FROM json_each(?3))"
        parameters.append(json.dumps(sorted(wanted)))
    rows = store.db.rows(
        "SELECT n.*, max(coalesce((SELECT max(number) FROM versions WHERE name = n.name), 0),"
        " coalesce((SELECT max(number) FROM locks WHERE name = n.name), 0)) AS latest,"
        " (SELECT count(DISTINCT from_number) FROM journal WHERE verb IN ('yank', 'retire', 'purge')"
        " AND verb = 'yank' AND name = n.name) AS yanked"
        f" FROM names n WHERE (?1 IS NULL OR n.kind = ?1) AND n.name > coalesce(?2, ''){where}"
        f" ORDER BY n.name LIMIT {limit_of(limit)}",
        parameters,
    )
    page = [row["name"] for row in rows]
    aliases, described = journal.live(store.db, page), describing.described(store, page)
    return [
        NameRow(
            name=row["name"],
            kind=row["kind"],
            latest=row["latest"],
            aliases={a: move.to_ref or "disabled" for a, move in aliases.get(row["name"], {}).items()},
            yanked=row["yanked"],
            owner=described[row["name"]].owner or row["owner"],
            created=row["created"],
            description=described[row["name"]].description,
            tags=described[row["name"]].tags,
        )
        for row in rows
    ]
