"""inlay ls, show"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from inlay.cli.console import common, emit, open_store, table, width
from inlay.errors import InputError

if TYPE_CHECKING:
    from inlay.registry import Event, Lock, NameRow, Registry, Version

READABLE = 14
"""A last column narrower than this is left out rather than cut."""


@click.command("ls")
@click.argument("name", required=False)
@click.option("--kind", type=click.Choice(["adapter", "variant"]), help="Only names of this kind.")
@click.option("--tag", metavar="TAG", help="Only what has this tag, itself or in a version.")
@click.option("--owner", metavar="WHO", help="Only names that this owner answers for.")
@click.option(
    "--base",
    metavar="BASE",
    help="What hangs on this base (folder, hub id, `builtin`, sha256:…), and how to train it again.",
)
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Lines shown.")
@click.option("--after", metavar="NAME", help="Names behind this one: the next page.")
@click.option("--before", metavar="VERSION", help="Versions of NAME before this one (v12): the next page.")
@common
def ls_verb(
    name: str | None,
    kind: str | None,
    tag: str | None,
    owner: str | None,
    base: str | None,
    limit: int,
    after: str | None,
    before: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """List all names and what their aliases point to, or the versions of NAME, newest first.

    \b
    Example:
      inlay ls --tag gdpr
      inlay ls legal-clauses
      inlay ls --base builtin
    """
    if base is not None:
        if any(given is not None for given in (name, kind, tag, owner, after, before)):
            raise click.UsageError("--base lists all that hangs on it: no NAME and no other filter with it")
        from inlay.cli.on_base import list_on_base

        list_on_base(open_store(store), base, as_json)
        return
    if name is None:
        if before is not None:
            raise click.UsageError(
                "--before pages through the versions of one NAME; names go on with --after"
            )
        _list_names(open_store(store), kind, tag, owner, limit, after, as_json)
        return
    if kind or owner or after:
        raise click.UsageError("--kind, --owner and --after are for the list of names, not for one NAME")
    registry, below = open_store(store), None if before is None else _number(before)
    about = registry.about(name)
    listed = registry.locks if about.kind == "variant" else registry.versions
    things: list[Any] = list(listed(name, limit=limit + 1, before=below, tag=tag))
    if len(things) > limit:
        things.pop()
        _say_more(f"inlay ls {name}", limit, f"--before v{things[-1].number}", tag=tag)
    as_dict = lock_dict if about.kind == "variant" else version_dict
    tags = {number: said.tags for number, said in about.versions.items()}
    emit(
        "ls",
        as_json,
        [{**as_dict(x), "tags": list(tags.get(x.number, ()))} for x in things],
        lambda: _locks_text(things, tags) if about.kind == "variant" else _versions_text(things, tags),
    )


def _list_names(
    registry: Registry,
    kind: str | None,
    tag: str | None,
    owner: str | None,
    limit: int,
    after: str | None,
    as_json: bool,
) -> None:
    rows = registry.names(kind, tag=tag, owner=owner, limit=limit + 1, after=after)
    if len(rows) > limit:
        rows.pop()
        _say_more("inlay ls", limit, f"--after {rows[-1].name}", kind=kind, tag=tag, owner=owner)
    nothing = "nothing is registered yet; begin with `inlay train` or `inlay add`"
    if kind or tag or owner or after:
        nothing = "no such names"
    emit("ls", as_json, [_name_dict(row) for row in rows], lambda: _names_text(rows) if rows else nothing)


def _say_more(command: str, limit: int, where: str, **options: str | None) -> None:
    given = [f"--{key} {value}" for key, value in options.items() if value is not None]
    click.echo(f"there is more: {' '.join([command, *given, f'--limit {limit}', where])}", err=True)


def _number(text: str) -> int:
    digits = text.removeprefix("v")
    if not digits.isdecimal() or len(digits) > 15:
        raise click.UsageError(f"a version is written like v12, got {text[:40]!r}")
    return int(digits)


@click.command("show")
@click.argument("ref")
@click.option("--at", metavar="TIME", help="What the reference meant then (ISO 8601, UTC).")
@click.option(
    "--run",
    "whole_run",
    is_flag=True,
    help="The report of its training in the place of all this: verdict, loss, baselines, forgetting, cost.",
)
@click.option("--html", type=click.Path(), metavar="PAGE", help="With --run: write that report as a page.")
@common
def show_verb(
    ref: str, at: str | None, whole_run: bool, html: str | None, store: str | None, as_json: bool
) -> None:
    """Show what REF means: bytes, base, licence, scores, forgetting, what is live with it.

    \b
    Example:
      inlay show legal-clauses@prod
      inlay show acme@prod --at 2026-03-04
      inlay show legal-clauses@v2 --run --html run.html
    """
    from inlay.registry import Version

    registry = open_store(store)
    found = registry.resolve(ref, at=at)
    if whole_run:
        _show_run(found, registry, html, as_json)
        return
    if html is not None:
        raise InputError("a page is made of a training run", fix="give --run as well")
    about = registry.about(found.name)
    said = about.versions.get(found.number)
    details = version_dict(found) if isinstance(found, Version) else lock_dict(found)
    details["owner"] = about.owner
    details["tags"] = sorted({*about.tags, *(said.tags if said else ())})
    details["description"] = (said.description if said else "") or about.description
    details["evals"] = [
        {"suite": e.suite_name, "score": e.score, "n": e.n, "low": e.low, "high": e.high, "metric": e.metric}
        for e in registry.evals(found.digest)
    ]
    kept = found.state in ("active", "yanked")
    details["forgetting"] = (
        next(iter(registry.reports(found.digest, "forgetting", limit=1)), None) if kept else None
    )
    details["live_in"] = [
        *(
            f"{found.name}@{alias}"
            for alias, target in registry.aliases(found.name).items()
            if target == found.ref
        ),
        *(dependent.ref for dependent in registry.dependents(found)),
    ]
    if found.state != "active":
        ends = ("yank", "retire", "purge")
        last = next(e for e in registry.journal(found.name) if e.verb in ends and e.from_ref == found.ref)
        details["ended"] = event_dict(last)
    if isinstance(found, Version):
        run = (registry.run_of(found) if kept else None) or {}
        wanted = ("parent", "rebased", "dataset", "declared", "settings", "steps", "seconds", "tokens")
        details["run"] = {key: run.get(key) for key in wanted if key in run}
    emit("show", as_json, details, lambda: _show_text(details))


def _show_run(found: Version | Lock, registry: Registry, html: str | None, as_json: bool) -> None:
    from inlay.trainers.run_report import RunReport
    from inlay.trainers.run_text import run_words

    report = RunReport.of(found, registry)
    said = {} if html is None else {"html": str(report.write_html(html))}
    emit("show", as_json, {**report.to_dict(), **said}, lambda: run_words(report))


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
        "state": version.state,
        "yanked": version.yanked,
        "licence": version.licence,
        "card": dict(version.card),
        "lineage": version.lineage,
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
        "state": lock.state,
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


def _name_dict(row: NameRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "kind": row.kind,
        "latest": row.latest,
        "aliases": dict(row.aliases),
        "yanked": row.yanked,
        "owner": row.owner,
        "description": row.description,
        "tags": list(row.tags),
        "created": row.created,
    }


def _names_text(rows: list[NameRow]) -> str:
    cells = [
        (
            r.name,
            r.kind,
            f"v{r.latest}",
            _aliases(r) or "-",
            str(r.yanked or "-"),
            r.owner,
            ", ".join(r.tags),
            r.description,
        )
        for r in rows
    ]
    return _filled(
        cells, ("name", "kind", "latest", "live", "yanked", "owner", "tags", "description"), needed=4
    )


def _filled(cells: Sequence[tuple[str, ...]], headers: tuple[str, ...], needed: int) -> str:
    """The table without columns that have nothing in any row; where the terminal is too small for the rest
    beside `needed` ones, without the last of them.
    """
    kept = [i for i in range(len(headers)) if any(row[i] for row in cells)]
    widths = {i: max(len(headers[i]), *(len(row[i]) for row in cells)) + 2 for i in kept}
    while kept[-1] >= needed:
        if sum(widths[i] for i in kept[:-1]) + min(widths[kept[-1]], READABLE) <= width():
            break
        kept.pop()
    return table([[row[i] for i in kept] for row in cells], [headers[i] for i in kept])


def _aliases(row: NameRow) -> str:
    return ", ".join(f"{alias} → {target.rpartition('@')[2]}" for alias, target in row.aliases.items())


def _versions_text(versions: list[Version], tags: dict[int, tuple[str, ...]]) -> str:
    if not versions:
        return "no such versions"
    cells = [
        (
            v.ref,
            "" if v.state == "active" else v.state,
            v.kind,
            str(v.rank),
            f"{v.parameters:,}",
            v.base.name,
            v.created[:16].replace("T", " "),
            ", ".join(tags.get(v.number, ())),
            v.why,
        )
        for v in versions
    ]
    return _filled(
        cells, ("version", "state", "kind", "rank", "parameters", "base", "made", "tags", "why"), needed=5
    )


def _locks_text(locks: list[Lock], tags: dict[int, tuple[str, ...]]) -> str:
    if not locks:
        return "no such locks"
    cells = [
        (
            x.ref,
            "" if x.state == "active" else x.state,
            ", ".join(m.ref for m in x.members),
            x.created[:16].replace("T", " "),
            ", ".join(tags.get(x.number, ())),
            x.why,
        )
        for x in locks
    ]
    return _filled(cells, ("lock", "members", "made", "state", "tags", "why"), needed=3)


def _show_text(details: dict[str, Any]) -> str:
    from inlay.registry import printable

    state = "" if details["state"] == "active" else f"   {details['state'].upper()}"
    lines = [f"{details['ref']}   {details['digest']}{state}"]
    if details["description"]:
        lines.append(f"about     {details['description']}")
    base = details["base"]
    lines.append(f"base      {base['name']}  weights {base['weights'][:19]}…  prompt {base['prompt'][:19]}…")
    if details.get("base_mismatch"):
        lines.append("          it was trained on another base; that was allowed when it was registered")
    lines += _adapter_lines(details) if "kind" in details else _member_lines(details)
    made = f"{details['created'][:19].replace('T', ' ')} by {details['author']}"
    lines.append(f"made      {made}: {details['why'] or '(no reason given)'}")
    lines.append(f"owner     {details['owner']}")
    if details["tags"]:
        lines.append(f"tags      {', '.join(details['tags'])}")
    run = details.get("run") or {}
    for key, said in (("rebased", "again"), ("parent", "from")):
        if run.get(key):
            lines.append(f"{said:<10}{_CAME_FROM[key].format(run[key]['ref'])}")
    data = run.get("dataset")
    if data:
        lines.append(
            f"data      {data.get('name')}, {data.get('rows')} rows, {str(data.get('digest'))[:19]}…"
        )
    lines += [f"note      {note}" for note in details.get("notes", ())]
    lines.append(f"live in   {', '.join(details['live_in']) or '-'}")
    if "ended" in details:
        lines.append(f"ended     {details['ended']['sentence']}")
    lines = [printable(line) for line in lines]
    if details["evals"]:
        from inlay.evals.metrics import unit_of

        cells = [
            (
                e["suite"],
                unit.score(e["score"]),
                f"{unit.bare(e['low'])} to {unit.bare(e['high'])}",
                str(e["n"]),
            )
            for e, unit in ((e, unit_of(e["metric"])) for e in details["evals"])
        ]
        lines += ["", table(cells, ("suite", "score", "95% interval", "n"))]
    if details["forgetting"]:
        lines += ["", printable(details["forgetting"]["verdict"])]
    return "\n".join(lines)


_CAME_FROM = {
    "rebased": "{} trained again on another base",
    "parent": "trained on from {}",
}


def _adapter_lines(details: dict[str, Any]) -> list[str]:
    worth = {
        "exact": "exact in a composition",
        "needs-conversion": "exact in a composition after conversion",
        "by-structure": "low-rank by structure",
        "alone": "usable alone only",
    }
    lines = [
        f"adapter   {details['kind']}, rank {details['rank']}, {details['parameters']:,} parameters, "
        f"{details['bytes']:,} bytes, {worth.get(details['exactness'], details['exactness'])}",
        f"targets   {', '.join(sorted({t.rpartition('.')[2] for t in details['targets']}))}",
        f"licence   {details['licence'] or 'none stated'}",
    ]
    card = ", ".join(
        f"{key} {' '.join(value) if isinstance(value, list) else value}"
        for key, value in details["card"].items()
        if key in ("base_model", "language", "datasets", "pipeline_tag", "tags")
    )
    if card:
        lines.append(f"card      {card}")
    from inlay.composer.truncation import said_of

    lineage = details["lineage"] or {}
    cut = said_of(lineage)
    if cut is not None:
        lines.append(f"cut       {cut.removeprefix('cut ')}")
    hub = lineage.get("hub")
    if isinstance(hub, dict):
        lines.append(f"from      {hub.get('repo')} at commit {hub.get('commit')} on the hub")
    return lines


def _member_lines(details: dict[str, Any]) -> list[str]:
    return [
        f"member    {m['ref']}  weight {m['weight']:g}  at {m['path'] or 'the root'}"
        for m in details["members"]
    ]
