"""inlay log"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from inlay.cli.console import common, emit, open_store
from inlay.cli.look import event_dict

if TYPE_CHECKING:
    from inlay.registry import Event, Registry

PAGE = 500
"""Rows read at a time where only some verbs are wanted."""


@click.command("log")
@click.argument("name", required=False)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=30,
    show_default=True,
    help="Rows shown; with --skills, versions.",
)
@click.option(
    "--before", type=click.IntRange(1), metavar="SEQ", help="Only rows older than number SEQ: the next page."
)
@click.option("--verb", "verbs", multiple=True, metavar="VERB", help="Only rows of this verb; repeatable.")
@click.option(
    "--head", is_flag=True, help="Print number and hash of the newest row, to be kept elsewhere for `fsck`."
)
@click.option("--changelog", is_flag=True, help="Tell the story of NAME in Markdown, version by version.")
@click.option("--since", metavar="v3|TIME", help="With --changelog: only what came after this.")
@click.option(
    "--skills", is_flag=True, help="What each version of NAME scores on each skill, and where one was lost."
)
@click.option(
    "--suite", "suites", multiple=True, metavar="SUITE", help="With --skills: only this one; repeatable."
)
@click.option("--html", metavar="FILE", help="With --skills: write one self-contained page as well.")
@common
def log_verb(
    name: str | None,
    limit: int,
    before: int | None,
    verbs: tuple[str, ...],
    head: bool,
    changelog: bool,
    since: str | None,
    skills: bool,
    suites: tuple[str, ...],
    html: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Read the journal, newest first: of NAME, or of everything.

    \b
    Example:
      inlay log acme
      inlay log --verb promote --verb rollback
      inlay log --head
      inlay log acme --changelog --since v3 > CHANGES.md
      inlay log acme --skills --html acme.html
    """
    _refuse(name, before, verbs, head, changelog, since)
    _refuse_skills(
        name, skills, suites, html, page=before is not None or bool(verbs), other=head or changelog
    )
    with open_store(store) as registry:
        if head:
            seq, digest = registry.journal_head()
            emit("log", as_json, {"seq": seq, "hash": digest}, f"{seq} {digest}")
            return
        if changelog:
            from inlay.evals.changelog import changelog as told

            text = told(registry, str(name), since=since)
            emit("log", as_json, {"name": name, "markdown": text}, text.rstrip("\n"))
            return
        if skills:
            _skills(registry, str(name), suites, html, limit, as_json)
            return
        events, more = _page(registry, name, limit, before, verbs)
    if more:
        wanted = [name or "", *(f"--verb {verb}" for verb in verbs), f"--limit {limit}"]
        page = " ".join(["inlay log", *filter(None, wanted), f"--before {events[-1].seq}"])
        click.echo(f"there is more: {page}", err=True)
    lines = [event.sentence() for event in events]
    emit("log", as_json, [event_dict(e) for e in events], "\n".join(lines) or "nothing yet")


def _refuse(
    name: str | None,
    before: int | None,
    verbs: tuple[str, ...],
    head: bool,
    changelog: bool,
    since: str | None,
) -> None:
    """UsageError for options that say nothing together."""
    if head and (name or changelog):
        raise click.UsageError("--head is of the whole journal: it takes no NAME and no --changelog")
    if changelog and not name:
        raise click.UsageError("a changelog is of one name: inlay log NAME --changelog")
    if since is not None and not changelog:
        raise click.UsageError("--since goes with --changelog")
    if (head or changelog) and (before is not None or verbs):
        raise click.UsageError("--before and --verb page through rows; --head and --changelog have none")


def _refuse_skills(
    name: str | None, skills: bool, suites: tuple[str, ...], html: str | None, *, page: bool, other: bool
) -> None:
    if not skills:
        if suites or html is not None:
            raise click.UsageError("--suite and --html go with --skills")
        return
    if name is None:
        raise click.UsageError("skills are of the versions of one name: inlay log NAME --skills")
    if page or other:
        raise click.UsageError(
            "--skills shows all versions: it takes no --before, --verb, --head or --changelog"
        )


def _skills(
    registry: Registry, name: str, suites: tuple[str, ...], html: str | None, limit: int, as_json: bool
) -> None:
    from inlay.evals.lines import line

    found = line(registry, name, list(suites) or None, last=limit)
    if html is not None:
        from inlay.evals.line_html import write_line

        write_line(html, found)
    if as_json:
        emit("log", True, found.to_dict(), "")
        return
    from inlay.evals.line_text import print_line

    print_line(found)
    if html is not None:
        click.echo(f"written to {html}")


def _page(
    registry: Registry, name: str | None, limit: int, before: int | None, verbs: tuple[str, ...]
) -> tuple[list[Event], bool]:
    """At most `limit` rows, and whether there are older ones."""
    found: list[Event] = []
    step = PAGE if verbs else limit + 1
    while True:
        rows = registry.journal(name, limit=step, before=before)
        found += [row for row in rows if not verbs or row.verb in verbs]
        if len(found) > limit or len(rows) < step:
            return found[:limit], len(found) > limit
        before = rows[-1].seq
