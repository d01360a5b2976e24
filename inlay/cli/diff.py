"""inlay diff"""

from __future__ import annotations

import click

from inlay.cli.console import common, emit, open_store, width


@click.command("diff")
@click.argument("before", metavar="REF")
@click.argument("after", metavar="REF")
@click.option("--no-norms", is_flag=True, help="Leave out the norms of the deltas: quick, and without torch.")
@common
def diff_verb(before: str, after: str, no_norms: bool, store: str | None, as_json: bool) -> None:
    """Say what differs from the first REF to the second: two versions, or two locks.

    Configuration, rank, targets, data, recipe; how far the deltas moved, module by module; every score that
    can be compared, item by item, with its 95% interval; what the guards would say about the second now.

    \b
    Example:
      inlay diff legal-clauses@v1 legal-clauses@v2
      inlay diff acme@prod acme@v7 --no-norms
    """
    import inlay

    with open_store(store) as registry:
        found = inlay.diff(before, after, store=registry, norms=not no_norms)
    emit("diff", as_json, found.to_dict(), lambda: found.text(width()))
