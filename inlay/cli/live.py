"""inlay guard, promote, rollback, yank, retire, purge, describe"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from inlay.cli.console import common, emit, open_store, printable_lines, why_option

if TYPE_CHECKING:
    from inlay.registry import Event, Registry


@click.command("guard")
@click.argument("name_alias", metavar="NAME@ALIAS")
@click.option("--set", "file", metavar="FILE", help="YAML with limits and suites.")
@click.option("--unset", is_flag=True, help="Take the guard away.")
@why_option
@common
def guard_verb(
    name_alias: str, file: str | None, unset: bool, why: str, store: str | None, as_json: bool
) -> None:
    """Show or set what an alias demands of whatever it is to point to.

    \b
    A guard's file:
      forget: 0.05      # held-out general skills lost: upper 95% bound
      skill: 0.2        # of any one of them, or {sort: 0.1, "*": 0.2}
      gain: 0.3         # gained on the target against the base: lower bound
      regress: 0.02     # lost on the target against what is live
      rigidity: 0.1     # lost on the target when asked less neatly
      retention: 0.8    # share of each member's own gain that is kept
      overhead: 0.3     # extra time a token against the base
      suites: {general: [general-v1], target: [tickets-test]}

    \b
    Example:
      inlay guard acme@prod --set guard.yaml --why "acme's contract"
    """
    from inlay.registry import parse_alias
    from inlay.registry.recipes import load_yaml, read_text

    registry = open_store(store)
    if file is not None and unset:
        raise click.UsageError("--set and --unset exclude each other")
    if file is not None or unset:
        guard: dict[str, Any] | None = None
        if file is not None:
            guard = load_yaml(read_text(Path(file), "guard"), "guard")
            _keep_shipped(registry, guard)
        event = registry.set_guard(name_alias, guard, why=why)
        emit("guard", as_json, {"sentence": event.sentence()}, event.sentence())
        return
    name, alias = parse_alias(name_alias)
    held = registry.guard(name, alias)
    if held is None:
        emit("guard", as_json, None, f"{name}@{alias} has no guard")
        return
    lines = [f"{key}: {value}" for key, value in held.to_dict().items()]
    emit("guard", as_json, held.to_dict(), "\n".join(lines))


@click.command("promote")
@click.argument("ref")
@click.argument("alias", default="prod")
@click.option("--expect", metavar="REF", help="Refuse if the alias does not point to this now (v3, or none).")
@click.option(
    "--force", is_flag=True, help="Promote although the guard refuses; needs --why, is journaled as forced."
)
@why_option
@common
def promote_verb(
    ref: str, alias: str, expect: str | None, force: bool, why: str, store: str | None, as_json: bool
) -> None:
    """Point ALIAS (prod) of REF's name to REF, if the alias's guard is met. Exit code 1 if it is not.

    \b
    Example:
      inlay promote legal-clauses@v2 prod --why "beats v1" --expect v1
    """
    registry = open_store(store)
    event = registry.promote(ref, alias, why=why, expect=expect, force=force)
    _say("promote", as_json, [event], registry=registry)


@click.command("rollback")
@click.argument("name_alias", metavar="NAME[@ALIAS]")
@click.option("--to", metavar="VERSION", help="Back to this version (v2) instead of the one before.")
@click.option("--to-time", metavar="TIME", help="Back to what was live then (ISO 8601, UTC).")
@click.option("--dependents", is_flag=True, help="Also every live variant that contains what is rolled back.")
@click.option(
    "--else", "otherwise", type=click.Choice(["base", "disable"]), help="For what has nothing to go back to."
)
@click.option("--dry-run", is_flag=True, help="Print what would move; change nothing.")
@click.option("--why", required=True, metavar="TEXT", help="The reason, kept in the journal.")
@common
def rollback_verb(
    name_alias: str,
    to: str | None,
    to_time: str | None,
    dependents: bool,
    otherwise: str | None,
    dry_run: bool,
    why: str,
    store: str | None,
    as_json: bool,
) -> None:
    """Put an alias back to what it pointed to before. Never blocked by a guard; all or nothing.

    \b
    Example:
      inlay rollback legal-clauses@prod --dependents --why "hallucinates clauses"
    """
    registry = open_store(store)
    events = registry.rollback(
        name_alias,
        why=why,
        to=to,
        to_time=to_time,
        dependents=dependents,
        otherwise=otherwise,
        dry_run=dry_run,
    )
    _say("rollback", as_json, events, dry_run, registry=registry)


@click.command("yank")
@click.argument("ref")
@click.option(
    "--rollback-dependents", is_flag=True, help="Also put back every live variant that contains it."
)
@click.option(
    "--else", "otherwise", type=click.Choice(["base", "disable"]), help="For what has nothing to go back to."
)
@click.option("--dry-run", is_flag=True, help="Print what would move; change nothing.")
@click.option("--why", required=True, metavar="TEXT", help="The reason, kept in the journal.")
@common
def yank_verb(
    ref: str,
    rollback_dependents: bool,
    otherwise: str | None,
    dry_run: bool,
    why: str,
    store: str | None,
    as_json: bool,
) -> None:
    """Mark REF (an exact version) as bad: it cannot be promoted, locked or rolled back to any more.

    \b
    Example:
      inlay yank legal-clauses@v3 --rollback-dependents --why "trained on the test set"
    """
    registry = open_store(store)
    events = registry.yank(
        ref, why=why, rollback_dependents=rollback_dependents, otherwise=otherwise, dry_run=dry_run
    )
    _say("yank", as_json, events, dry_run, registry=registry)


@click.command("retire")
@click.argument("refs", nargs=-1, required=True, metavar="REF…")
@click.option("--dry-run", is_flag=True, help="Say what would be retired; change nothing.")
@click.option("--why", required=True, metavar="TEXT", help="The reason, kept in the journal.")
@common
def retire_verb(refs: tuple[str, ...], dry_run: bool, why: str, store: str | None, as_json: bool) -> None:
    """Give up exact versions or locks that never were live, so that `inlay gc` may take their bytes.

    What is or was live is kept, and so is what a lock needs, unless that is retired with it. All or nothing.

    \b
    Example:
      inlay retire legal-clauses@v4 legal-clauses@v5 --why "failed runs"
    """
    _say("retire", as_json, open_store(store).retire(refs, why=why, dry_run=dry_run), dry_run)


@click.command("purge")
@click.argument("refs", nargs=-1, required=True, metavar="REF…")
@click.option("--dry-run", is_flag=True, help="Say what would be purged; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--why", required=True, metavar="TEXT", help="The reason, kept in the journal.")
@common
def purge_verb(
    refs: tuple[str, ...], dry_run: bool, yes: bool, why: str, store: str | None, as_json: bool
) -> int:
    """Erase the bytes of exact versions or locks because the law says they must go. Cannot be undone.

    Weights, training records and reports go; numbers, scores and a tombstone in the journal stay, and the
    same bytes are refused for good. Bundles, hubs and backups elsewhere are not reached.

    \b
    Example:
      inlay purge letters@v3 --why "erasure request 2026-118"
    """
    registry = open_store(store)
    if not dry_run and not yes:
        planned = ", ".join(str(e.from_ref) for e in registry.purge(refs, why=why, dry_run=True))
        if planned and not click.confirm(f"erase {planned} for good?", err=True):
            emit("purge", as_json, {"dry_run": False, "events": []}, "nothing was erased")
            return 1
    _say("purge", as_json, registry.purge(refs, why=why, dry_run=dry_run), dry_run)
    return 0


@click.command("describe")
@click.argument("ref", metavar="NAME|REF")
@click.option("--owner", metavar="WHO", help="Who answers for NAME from now on.")
@click.option("--description", metavar="TEXT", help="What it is, in a sentence; an empty one removes it.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="A word or word=value; repeatable.")
@click.option("--untag", "untags", multiple=True, metavar="TAG", help="A tag to take away; repeatable.")
@why_option
@common
def describe_verb(
    ref: str,
    owner: str | None,
    description: str | None,
    tags: tuple[str, ...],
    untags: tuple[str, ...],
    why: str,
    store: str | None,
    as_json: bool,
) -> None:
    """Say what a NAME or an exact version is, whose it is, and tag it. Journaled; moves nothing.

    \b
    Example:
      inlay describe legal-clauses --owner legal-team --tag gdpr
      inlay describe legal-clauses@v3 --tag reviewed
    """
    if owner is None and description is None and not tags and not untags:
        raise click.UsageError("say something: --owner, --description, --tag or --untag")
    event = open_store(store).describe(
        ref, owner=owner, description=description, tag=tags, untag=untags, why=why
    )
    _say("describe", as_json, [event] if event is not None else [])


def _keep_shipped(registry: Any, guard: Any) -> None:
    """A guard pins its suites by digest, and general-v1 is in no store before it was measured once."""
    from inlay.evals.ledger import keep_suite
    from inlay.evals.suites import SHIPPED, Suite

    suites = guard.get("suites") if isinstance(guard, dict) else None
    general = suites.get("general") if isinstance(suites, dict) else None
    for name in [general] if isinstance(general, str) else general or []:
        if name in SHIPPED:
            keep_suite(registry, Suite.load(name))


def _say(
    verb: str,
    as_json: bool,
    events: list[Event],
    dry_run: bool = False,
    *,
    registry: Registry | None = None,
) -> None:
    """Print what happened, and which live variants now differ from their recipe: they keep what they had."""
    from inlay.cli.look import event_dict

    would = "would happen: " if dry_run else ""
    lines = [would + event.sentence() for event in events] or ["nothing to do"]
    result: dict[str, Any] = {"dry_run": dry_run, "events": [event_dict(e) for e in events]}
    if registry is not None:
        drifts = [] if dry_run else registry.drifted(using=sorted({event.name for event in events}))
        result["drifted"] = [
            {"ref": f"{d.variant}@{d.alias}", "lock": d.lock.ref, "changes": [list(c) for c in d.changes]}
            for d in drifts
        ]
        for d in drifts:
            kept = ", ".join(f"{had} (its recipe now means {now})" for _, had, now in d.changes)
            lines.append(f"note: {d.variant}@{d.alias} keeps {kept} until it is locked again")
    emit(verb, as_json, result, lambda: printable_lines(lines))
