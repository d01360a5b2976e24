"""From recipes to locks: every reference pinned to a digest, so that a lock means the same for ever.

A pinned node is the recipe's node with digests for references::

    {"use": DIGEST, "name": "legal@v2", "weight": 1.0}
    {"stack": [node…]}   {"merge": [node…], "method", "params", "rank", "space", "seed", "energy"?}
    {"route": {"by", "experts": [node…], "fallback": "base", "router": DIGEST?, "params"?}}

with "weight" beside an operator where it is not 1. A variant that is used is copied in, node for node,
with "lock" (its digest) and "name" (its ref) beside the operator, so that who composes needs to know
nothing about nesting. The digest leaves "name" and "lock" out: they say where a node came from, not what
it does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inlay.errors import BaseMismatch, InputError
from inlay.registry import journal, lookup
from inlay.registry.canonical import canonical, digest_of_json, now
from inlay.registry.evidence import pin_guard
from inlay.registry.fingerprint import BaseFingerprint
from inlay.registry.names import check_name
from inlay.registry.recipes import BASE, FITTED_ROUTERS, Merge, Node, Recipe, Route, Stack, Use
from inlay.registry.records import BaseRef, Dependent, Drift, Lock, Member, Version
from inlay.registry.store import Store

_ANNOTATIONS = ("name", "lock")
_USING = """
    SELECT l.name FROM versions v JOIN lock_members m ON m.version = v.id JOIN locks l ON l.id = m.lock
    WHERE v.name IN (SELECT value FROM json_each(?1))
    UNION SELECT l.name FROM locks u JOIN lock_members m ON m.used_lock = u.id JOIN locks l ON l.id = m.lock
    WHERE u.name IN (SELECT value FROM json_each(?1))"""


@dataclass(frozen=True)
class Pinned:
    """A recipe resolved against the registry, not yet stored."""

    recipe: Recipe
    tree: dict[str, Any]
    versions: tuple[Version, ...]
    locks: tuple[Lock, ...]


def pin(store: Store, recipe: Recipe, *, routers: Mapping[str, str] | None) -> Pinned:
    """Resolve every reference of `recipe`. `routers` None leaves routers out (to see what would be pinned).

    Raises ReferenceNotFound, InputError for a yanked member, an unknown router or a router's weights that
    are missing.
    """
    versions: dict[str, Version] = {}
    locks: dict[str, Lock] = {}
    wanted = dict(routers or {})

    def walk(node: Node, path: str) -> dict[str, Any]:
        weight = {} if node.weight == 1.0 else {"weight": node.weight}
        match node:
            case Use():
                return use(node)
            case Stack():
                return {"stack": below(node.members, path, "stack"), **weight}
            case Merge():
                pinned = {
                    "merge": below(node.members, path, "merge"),
                    "method": node.method,
                    "rank": node.rank,
                }
                extra = {"params": dict(node.params), "space": node.space, "seed": node.seed}
                # Left out where it is not given: locks made before there was an energy keep their digests.
                energy = {} if node.energy is None else {"energy": node.energy}
                return {**pinned, **extra, **energy, **weight}
            case Route():
                route: dict[str, Any] = {"by": node.by, "fallback": node.fallback}
                route["experts"] = below(node.experts, path, "route")
                if node.params:
                    route["params"] = dict(node.params)
                if routers is not None and node.by in FITTED_ROUTERS:
                    if path not in wanted:
                        raise InputError(
                            f"a route by {node.by} needs its router's weights, "
                            f"there are none for {path or 'the root'!r}",
                            fix="fit it first: `inlay lock` does, and so does inlay.composer",
                        )
                    route["router"] = wanted.pop(path)
                    store.objects.verify(route["router"], what="router")
                return {"route": route, **weight}

    def below(nodes: tuple[Node, ...], path: str, operator: str) -> list[dict[str, Any]]:
        return [walk(n, f"{path}.{operator}.{i}" if path else f"{operator}.{i}") for i, n in enumerate(nodes)]

    def use(node: Use) -> dict[str, Any]:
        if node.ref == BASE:
            return {"use": BASE, "weight": node.weight}
        found = lookup.resolve(store, node.ref)
        if found.state != "active":
            raise InputError(
                f"{found.ref} was {found.state}, a new lock must not use it", fix="pin another version"
            )
        if isinstance(found, Version):
            versions[found.ref] = found
            return {"use": found.digest, "name": found.ref, "weight": node.weight}
        _refuse_tainted(store, found)
        locks[found.ref] = found
        for member in found.members:
            inner = lookup.by_number(store, member.name, member.number)
            assert isinstance(inner, Version)
            versions[inner.ref] = inner
        tree: dict[str, Any] = dict(found.tree)
        if "use" in tree:
            tree = {"stack": [tree]}
        total = float(tree.pop("weight", 1.0)) * node.weight
        scaled = {} if total == 1.0 else {"weight": total}
        return {**tree, **scaled, "lock": found.digest, "name": found.ref}

    tree = walk(recipe.compose, "")
    if wanted:
        raise InputError(f"there is no fitted route at {next(iter(wanted))[:80]!r} in the recipe")
    return Pinned(recipe, tree, tuple(versions.values()), tuple(locks.values()))


def digest_of_lock(base_weights: str, tree: Mapping[str, Any]) -> str:
    """The identity of a lock: base weights and the tree, digests only."""
    return digest_of_json({"base": base_weights, "tree": _bare(tree)})


def lock(
    store: Store,
    name: str,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    routers: Mapping[str, str] | None,
    base: BaseFingerprint | str | Path | None,
    why: str,
    provenance: Mapping[str, Any] | None,
    who: str,
    owner: str,
) -> Lock:
    """See `Registry.lock`."""
    check_name(name)
    _refuse_other_kind(store, name)
    parsed = Recipe.of(recipe)
    named = base if base is not None else parsed.base
    fingerprint = BaseFingerprint.of(named) if named is not None else None
    written = canonical(provenance) if provenance is not None else None
    with store.db.transaction():
        pinned = pin(store, parsed, routers=routers or {})
        reference = common_base(pinned.versions, fingerprint)
        guard = pin_guard(store, parsed.guard).to_dict() if parsed.guard else None
        return insert(
            store, name, pinned.tree, reference, fingerprint, parsed.text, guard, why, written, who, owner
        )


def transient(store: Store, recipe: Recipe, routers: Mapping[str, str], who: str) -> Lock:
    """See `Registry.pin`."""
    fingerprint = BaseFingerprint.of(recipe.base) if recipe.base is not None else None
    with store.db.reading():
        pinned = pin(store, recipe, routers=routers)
    reference = common_base(pinned.versions, fingerprint)
    return Lock(
        name="recipe",
        number=0,
        digest=digest_of_lock(reference.weights, pinned.tree),
        recipe=recipe.text,
        tree=pinned.tree,
        base=reference,
        members=tuple(lookup.members(pinned.tree)),
        guard=recipe.guard.to_dict() if recipe.guard else None,
        created=now(),
        author=who,
        why="",
        state="active",
    )


def insert(
    store: Store,
    name: str,
    tree: Mapping[str, Any],
    base: BaseRef,
    fingerprint: BaseFingerprint | None,
    text: str,
    guard: Mapping[str, Any] | None,
    why: str,
    provenance: str | None,
    who: str,
    owner: str,
    *,
    anew: bool = False,
) -> Lock:
    """Store a tree as the next lock of `name`, inside a transaction; the newest one if it is the same.

    InputError where that was yanked or let go, unless `anew`, which then takes the next number.
    """
    from inlay.registry.adding import base_id, known_base_id, make_name

    make_name(store, name, "variant", owner)
    identity = base_id(store, fingerprint) if fingerprint else known_base_id(store, base)
    digest, guard_text = digest_of_lock(base.weights, tree), canonical(guard) if guard else None
    newest = store.db.row("SELECT * FROM locks WHERE name = ? ORDER BY number DESC LIMIT 1", [name])
    if newest is not None and (newest["digest"], newest["recipe"], newest["guard"]) == (
        digest,
        text,
        guard_text,
    ):
        kept = lookup.lock_by_id(store, newest["id"])
        if kept.state == "active":
            return kept
        if not anew:
            raise InputError(
                f"this recipe resolves to {kept.ref}, which was {kept.state}",
                fix="change what it resolves to",
            )
    number = lookup.latest(store, name) + 1
    row = {
        "name": name,
        "number": number,
        "digest": digest,
        "base": identity,
        "recipe": text,
        "tree": canonical(tree),
        "guard": guard_text,
        "provenance": provenance,
        "author": who,
        "why": why,
        "created": now(),
    }
    lock_id = store.db.insert("locks", row)
    for position, part in enumerate(parts(store, tree)):
        store.db.insert("lock_members", {"lock": lock_id, "position": position, **part})
    target = journal.Target(number, f"{name}@v{number}", digest)
    sealed = {"record": journal.seal(store.db, "locks", lock_id)}
    journal.append(store.db, who=who, verb="lock", name=name, after=target, why=why, detail=sealed)
    return lookup.lock_by_id(store, lock_id)


def common_base(versions: tuple[Version, ...], fingerprint: BaseFingerprint | None) -> BaseRef:
    """The base that all members are for; BaseMismatch if they differ, or differ from `fingerprint`."""
    if fingerprint is not None:
        chosen = BaseRef(
            fingerprint.weights,
            fingerprint.prompt,
            fingerprint.name,
            fingerprint.revision,
            fingerprint.source,
        )
    else:
        if not versions:
            raise InputError("a recipe without adapters must name its base", fix="add `base: FOLDER`")
        chosen = max(versions, key=lambda v: v.created).base
    for version in versions:
        if version.base.weights != chosen.weights:
            raise BaseMismatch(
                f"all members must share one base, {version.ref} is for {version.base.name} "
                f"({version.base.weights[:15]}…), not for {chosen.name} ({chosen.weights[:15]}…)",
                fix="compose adapters of the same base only",
            )
        if fingerprint is None and version.base.prompt != chosen.prompt:
            raise BaseMismatch(
                f"{version.ref} was registered with another tokenizer or chat template than the newest "
                f"member's {chosen.name}",
                fix="name the base to use: `base: FOLDER` in the recipe",
            )
    return chosen


def dependents(store: Store, thing: Version | Lock) -> list[Dependent]:
    """Live variant aliases whose current lock contains `thing`, at any depth, in alphabetical order."""
    column, table = ("version", "versions") if isinstance(thing, Version) else ("used_lock", "locks")
    rows = store.db.rows(
        f"""
        SELECT DISTINCT j.name, j.alias, l.id FROM {table} t
        CROSS JOIN lock_members m ON m.{column} = t.id
        CROSS JOIN locks l ON l.id = m.lock
        CROSS JOIN journal j ON j.moves = 1 AND j.name = l.name AND j.to_number = l.number
        WHERE t.name = ? AND t.number = ? AND j.seq = (SELECT k.seq FROM journal k
            WHERE k.moves = 1 AND k.name = j.name AND k.alias = j.alias ORDER BY k.seq DESC LIMIT 1)
        ORDER BY j.name, j.alias""",
        [thing.name, thing.number],
    )
    found = []
    for row in rows:
        lock = lookup.lock_by_id(store, row["id"])
        found.append(Dependent(row["name"], row["alias"], lock, tuple(_through(lock, thing))))
    return found


def contains(lock: Lock, things: set[tuple[str, int]]) -> bool:
    """Whether `lock` is, uses or nests any of the (name, number) in `things`."""
    if (lock.name, lock.number) in things:
        return True
    return any(named(node) in things for _, node in walk_tree(lock.tree) if "name" in node)


def tainted(store: Store, thing: Version | Lock) -> Version | Lock | None:
    """What in `thing`, itself or a member at any depth, was yanked, retired or purged; None if nothing
    was.
    """
    if thing.state != "active":
        return thing
    if isinstance(thing, Lock):
        for _, node in walk_tree(thing.tree):
            if "name" in node:
                inner = lookup.by_number(store, *named(node))
                if inner is not None and inner.state != "active":
                    return inner
    return None


def drifted(store: Store, name: str | None = None, *, using: Sequence[str] | None = None) -> list[Drift]:
    """Live variant aliases whose recipe would resolve to other versions now, in alphabetical order: of the
    variant `name`, of those with a lock that contains something of the names `using`, or all.
    """
    if name is not None:
        variants = [name]
    elif using is not None:
        rows = store.db.rows(_USING, [json.dumps(list(using))])
        variants = [row["name"] for row in rows]
    else:
        variants = [row["name"] for row in store.db.rows("SELECT name FROM names WHERE kind = 'variant'")]
    found = []
    for variant, aliases in journal.live(store.db, variants).items():
        for alias, move in aliases.items():
            lock = lookup.by_number(store, variant, move.to_number) if move.to_number else None
            if not isinstance(lock, Lock):
                continue
            changes = tuple(_changes(store, Recipe.of(written_recipe(lock.recipe)).compose, lock.tree))
            if changes:
                found.append(Drift(variant, alias, lock, changes))
    return found


def written_recipe(text: str) -> str | Mapping[str, Any]:
    """A lock's recipe text: a dict was kept as JSON. Never a file's name, though it might look like one."""
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except ValueError:
            return text + "\n"
    return text + "\n"


def _changes(store: Store, written: Node, pinned: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    if isinstance(written, Use):
        if written.ref == BASE:
            return
        try:
            means = lookup.resolve(store, written.ref)
        except InputError:
            yield written.ref, str(pinned["name"]), "nothing"
            return
        if means.digest != pinned.get("lock", pinned.get("use")):
            yield written.ref, str(pinned["name"]), means.ref
        return
    nodes = written.experts if isinstance(written, Route) else written.members
    for node, (_, child) in zip(nodes, lookup.children(pinned), strict=True):
        yield from _changes(store, node, child)


def _bare(node: Mapping[str, Any]) -> dict[str, Any]:
    bare: dict[str, Any] = {key: value for key, value in node.items() if key not in _ANNOTATIONS}
    for operator in ("stack", "merge"):
        if operator in bare:
            bare[operator] = [_bare(child) for child in bare[operator]]
    if "route" in bare:
        bare["route"] = {**bare["route"], "experts": [_bare(child) for child in bare["route"]["experts"]]}
    return bare


def walk_tree(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(path, node) of a pinned tree, each node before its children."""
    yield path, node
    for step, child in lookup.children(node):
        yield from walk_tree(child, f"{path}.{step}" if path else step)


def routers_of(tree: Mapping[str, Any]) -> list[str]:
    """The digests of the routers' weights in a pinned tree."""
    return [node["route"]["router"] for _, node in walk_tree(tree) if "router" in node.get("route", {})]


def named(node: Mapping[str, Any]) -> tuple[str, int]:
    """(name, number) of the version or lock that a node came from."""
    name, _, number = str(node["name"]).rpartition("@v")
    return name, int(number)


def parts(store: Store, tree: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of `lock_members` for a pinned tree whose members are all in the store."""
    for path, node in walk_tree(tree):
        if "name" not in node:
            continue
        name, number = named(node)
        table = "locks" if "lock" in node else "versions"
        row = store.db.row(f"SELECT id FROM {table} WHERE name = ? AND number = ?", [name, number])
        assert row is not None
        yield {
            "path": path,
            "version": row["id"] if table == "versions" else None,
            "used_lock": row["id"] if table == "locks" else None,
            "digest": node["lock"] if table == "locks" else node["use"],
            "weight": float(node.get("weight", 1.0)),
        }


def _through(lock: Lock, thing: Version | Lock) -> Iterator[Member]:
    for path, node in walk_tree(lock.tree):
        if "name" in node and named(node) == (thing.name, thing.number):
            yield Member(thing.name, thing.number, thing.digest, float(node.get("weight", 1.0)), path)


def _refuse_tainted(store: Store, lock: Lock) -> None:
    bad = tainted(store, lock)
    if bad is not None:
        raise InputError(
            f"{lock.ref} contains {bad.ref}, which was {bad.state}", fix="lock that variant again first"
        )


def _refuse_other_kind(store: Store, name: str) -> None:
    row = store.db.row("SELECT kind FROM names WHERE name = ?", [name])
    if row is not None and row["kind"] != "variant":
        raise InputError(f"{name} is an adapter's name, a variant needs its own", fix="choose another name")
