"""inlay ls, show"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from inlay.cli.console import common, emit, open_store, points, table

if TYPE_CHECKING:
    from inlay.registry import Event, Lock, NameRow, Version


@click.command("ls")
@click.argument("name", required=False)
@click.option("--kind", type=click.Choice(["adapter", "variant"]), help="Only names of this kind.")
@click.option(
    "--limit", type=click.IntRange(1), default=50, show_default=True, help="Versions shown of NAME."
)
@common
def ls_verb(name: str | None, kind: str | None, limit: int, store: str | None, as_json: bool) -> None:
    """List all names and what their aliases point to, or the versions of NAME.

    \b
    Example:
      inlay ls
      inlay ls legal-clauses
    """
    registry = open_store(store)
    if name is None:
        rows = registry.names(kind)
        emit("ls", as_json, [_name_dict(row) for row in rows], lambda: _names_text(rows))
        return
    held = next((row for row in registry.names() if row.name == name), None)
    things: list[Any]
    if held is not None and held.kind == "variant":
        things = registry.locks(name, limit=limit)
        emit("ls", as_json, [lock_dict(x) for x in things], lambda: _locks_text(things))
    else:
        things = registry.versions(name, limit=limit)
        emit("ls", as_json, [version_dict(x) for x in things], lambda: _versions_text(things))


@click.command("show")
@click.argument("ref")
@click.option("--at", metavar="TIME", help="What the reference meant then (ISO 8601, UTC).")
@common
def show_verb(ref: str, at: str | None, store: str | None, as_json: bool) -> None:
    """Show what REF means: bytes, base, scores, forgetting, what is live with it.

    \b
    Example:
      inlay show legal-clauses@prod
      inlay show acme@prod --at 2026-03-04
    """
    from inlay.registry import Version

    registry = open_store(store)
    found = registry.resolve(ref, at=at)
    details = version_dict(found) if isinstance(found, Version) else lock_dict(found)
    details["evals"] = [
        {"suite": e.suite_name, "score": e.score, "n": e.n, "low": e.low, "high": e.high, "metric": e.metric}
        for e in registry.evals(found.digest)
    ]
    report = next(iter(registry.reports(found.digest, "forgetting", limit=1)), None)
    details["forgetting"] = report
    own = next(row for row in registry.names() if row.name == found.name)
    details["live_in"] = [
        *(f"{own.name}@{alias}" for alias, target in own.aliases.items() if target == found.ref),
        *(dependent.ref for dependent in registry.dependents(found)),
    ]
    if isinstance(found, Version):
        run = registry.run_of(found) or {}
        details["run"] = {
            k: run.get(k)
            for k in ("dataset", "declared", "settings", "steps", "seconds", "tokens")
            if k in run
        }
    emit("show", as_json, details, lambda: _show_text(details))


def version_dict(version: Version) -> dict[str, Any]:
    """A version as --json prints it."""
    return {
        "ref": version.ref,
        "digest": version.digest,
        "kind": version.kind,
        "rank": version.rank,
        "targets": list(version.targets),
        "parameters": version.parameters,
        "bytes": version.size,
        "exactness": version.exactness,
        "base": {"name": version.base.name, "weights": version.base.weights, "prompt": version.base.prompt},
        "base_mismatch": version.base_mismatch,
        "created": version.created,
        "author": version.author,
        "why": version.why,
        "yanked": version.yanked,
        "notes": list(version.notes),
    }


def lock_dict(lock: Lock) -> dict[str, Any]:
    """A lock as --json prints it."""
    return {
        "ref": lock.ref,
        "digest": lock.digest,
        "recipe": lock.recipe,
        "tree": lock.tree,
        "members": [
            {"ref": m.ref, "digest": m.digest, "weight": m.weight, "path": m.path} for m in lock.members
        ],
        "base": {"name": lock.base.name, "weights": lock.base.weights, "prompt": lock.base.prompt},
        "guard": lock.guard,
        "created": lock.created,
        "author": lock.author,
        "why": lock.why,
        "yanked": lock.yanked,
    }


def event_dict(event: Event) -> dict[str, Any]:
    """A journal row as --json prints it."""
    return {
        "seq": event.seq,
        "at": event.at,
        "who": event.who,
        "verb": event.verb,
        "name": event.name,
        "alias": event.alias,
        "from": event.from_ref,
        "to": event.to_ref,
        "why": event.why,
        "verdict": event.verdict,
        "sentence": event.sentence(),
    }


def event_line(event: Event) -> str:
    """A journal row as `log` prints it."""
    return f"{event.seq:>4}  {event.sentence()}"


def _name_dict(row: NameRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "kind": row.kind,
        "latest": row.latest,
        "aliases": dict(row.aliases),
        "yanked": row.yanked,
        "owner": row.owner,
        "created": row.created,
    }


def _names_text(rows: list[NameRow]) -> str:
    if not rows:
        return "nothing is registered yet; begin with `inlay train` or `inlay add`"
    cells = [
        (r.name, r.kind, f"v{r.latest}", _aliases(r) or "-", str(r.yanked or "-"), r.owner) for r in rows
    ]
    return table(cells, ("name", "kind", "latest", "live", "yanked", "owner"))


def _aliases(row: NameRow) -> str:
    return ", ".join(f"{alias} → {target.rpartition('@')[2]}" for alias, target in row.aliases.items())


def _versions_text(versions: list[Version]) -> str:
    cells = [
        (
            v.ref,
            v.kind,
            str(v.rank),
            f"{v.parameters:,}",
            v.base.name,
            v.created[:16],
            "yanked" if v.yanked else "",
            v.why,
        )
        for v in versions
    ]
    return table(cells, ("version", "kind", "rank", "parameters", "base", "made", "", "why"))


def _locks_text(locks: list[Lock]) -> str:
    cells = [
        (x.ref, ", ".join(m.ref for m in x.members), x.created[:16], "yanked" if x.yanked else "", x.why)
        for x in locks
    ]
    return table(cells, ("lock", "members", "made", "", "why"))


def _show_text(details: dict[str, Any]) -> str:
    from inlay.registry import printable

    lines = [f"{details['ref']}   {details['digest']}" + ("   YANKED" if details["yanked"] else "")]
    base = details["base"]
    lines.append(f"base      {base['name']}  weights {base['weights'][:19]}…  prompt {base['prompt'][:19]}…")
    if "kind" in details:
        lines.append(
            f"adapter   {details['kind']}, rank {details['rank']}, {details['parameters']:,} parameters, "
            f"{details['bytes']:,} bytes, {details['exactness']}"
        )
        lines.append(f"targets   {', '.join(sorted({t.rpartition('.')[2] for t in details['targets']}))}")
    else:
        lines += [
            f"member    {m['ref']}  weight {m['weight']:g}  at {m['path'] or 'the root'}"
            for m in details["members"]
        ]
    lines.append(
        f"made      {details['created'][:19]} by {details['author']}: {details['why'] or '(no reason given)'}"
    )
    run = details.get("run") or {}
    if "dataset" in run:
        data = run["dataset"]
        lines.append(f"data      {data['name']}, {data['rows']} rows, {data['digest'][:19]}…")
    lines.append(f"live in   {', '.join(details['live_in']) or '-'}")
    lines = [printable(line) for line in lines]
    if details["evals"]:
        cells = [
            (e["suite"], f"{points(e['score'])}%", f"{points(e['low'])} to {points(e['high'])}", str(e["n"]))
            for e in details["evals"]
        ]
        lines += ["", table(cells, ("suite", "score", "95% interval", "n"))]
    if details["forgetting"]:
        lines += ["", printable(details["forgetting"]["verdict"])]
    return "\n".join(lines)
