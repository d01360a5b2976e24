"""inlay bundle, unbundle"""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from inlay.cli.console import common, emit, open_store, printable_lines, progress


@click.command("bundle")
@click.argument("file")
@click.argument("names", nargs=-1, metavar="[NAME…]")
@common
def bundle_verb(file: str, names: tuple[str, ...], store: str | None, as_json: bool) -> None:
    """Write NAMEs, or the whole store, into FILE for another store, or as a backup.

    A name goes whole: numbers, bytes, lineage, scores, reports, guards, tags, journal. Every name whose
    versions its locks contain goes with it.

    \b
    Example:
      inlay bundle all.bundle
      inlay bundle acme.bundle acme
    """
    made = open_store(store).bundle(file, names or None)
    said = [
        f"bundled {made.versions} versions and {made.locks} locks of {len(made.names)} names, "
        f"{made.evals} scores, {made.events} journal rows, {made.objects} objects: {made.bytes:,} bytes",
        made.digest,
    ]
    emit("bundle", as_json, _plain(made), lambda: printable_lines(said))


@click.command("unbundle")
@click.argument("file")
@click.option(
    "--dry-run", is_flag=True, help="Verify rows and digests and say what would come; store nothing."
)
@common
def unbundle_verb(file: str, dry_run: bool, store: str | None, as_json: bool) -> None:
    """Take over what the bundle FILE holds and this store does not: all of it, or nothing.

    Everything in it is verified first. A name that went another way here is refused. Doing it again does
    nothing.

    \b
    Example:
      inlay init mirror && inlay unbundle all.bundle --store mirror
    """
    registry = open_store(store)
    with progress() as say:
        done = registry.unbundle(file, dry_run=dry_run, say=say)
    took = "would take over" if dry_run else "took over"
    said = [
        f"{took} {len(done.versions)} versions, {len(done.locks)} locks, {done.evals} scores, "
        f"{done.events} journal rows, {done.objects} objects",
        *(f"note: {note}" for note in done.notes),
    ]
    if not (done.events or done.evals or done.objects):
        said[0] = "nothing to take over: all of it is here"
    emit("unbundle", as_json, {"dry_run": dry_run, **_plain(done)}, lambda: printable_lines(said))


def _plain(record: Any) -> dict[str, Any]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(record).items()}
