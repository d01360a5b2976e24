"""inlay blame"""

from __future__ import annotations

import click

from inlay.cli.console import base_options, common, emit, open_store, progress, suite_options


@click.command("blame")
@click.argument("ref")
@suite_options
@click.option("--deep", is_flag=True, help="Look at the adapters themselves, however nested.")
@click.option("--html", metavar="FILE", help="Write the report as one self-contained page.")
@click.option("--device", default="auto", show_default=True)
@base_options
@common
def blame_verb(
    ref: str,
    general: tuple[str, ...],
    target: tuple[str, ...],
    deep: bool,
    html: str | None,
    device: str,
    base: str | None,
    accept_prompt_change: bool,
    store: str | None,
    as_json: bool,
) -> None:
    """Say which member of the variant REF costs what; the report is kept.

    Every member is measured alone, and the variant without it, in one loaded model. A member is named only
    where it is shown that removing it brings held-out general skills back.

    \b
    Example:
      inlay blame acme@prod --eval tickets-test.jsonl --html blame.html
    """
    from inlay.cli.bases import base_or_last
    from inlay.composer import blame, compose

    registry = open_store(store)
    composed = compose(
        ref, store=registry, base=base_or_last(base), device=device, accept_prompt_change=accept_prompt_change
    )
    with progress() as say:
        report = blame(
            composed, general=general or ("general-v1",), target=target, deep=deep, store=registry, say=say
        )
    if html is not None:
        from inlay.evals.blame_html import write_blame

        write_blame(html, report)
    if as_json:
        emit("blame", True, report.to_dict(), "")
    else:
        report.print()
        if html is not None:
            click.echo(f"written to {html}")
