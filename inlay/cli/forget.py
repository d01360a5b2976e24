"""inlay forget"""

from __future__ import annotations

import click

from inlay.cli.console import base_options, common, emit, open_store, progress, suite_options


@click.command("forget")
@click.argument("ref")
@suite_options
@click.option(
    "--rigidity", is_flag=True, help="Ask again with typos, other letter case, spaces and wordings."
)
@click.option(
    "--slices",
    metavar="FILE",
    help="Other ways of asking, say a dialect: JSONL of source_id, slice and prompt; with --rigidity.",
)
@click.option("--overhead", is_flag=True, help="Time it against its base as well.")
@click.option("--routing", is_flag=True, help="Say how well the router chooses, and what that costs.")
@click.option(
    "--expect",
    metavar="SUITE=EXPERT",
    multiple=True,
    help="Which expert a suite of --eval is for, where its training does not say; means --routing.",
)
@click.option(
    "--out-of-scope",
    metavar="FILE",
    help='Prompts that no expert is for: JSONL of {"prompt"}; means --routing.',
)
@click.option(
    "--quick",
    is_flag=True,
    help="One pass over a fixed probe: drift and its alarm, no verdict.",
)
@click.option("--html", metavar="FILE", help="Write the report as one self-contained page.")
@click.option("--device", default="auto", show_default=True)
@base_options
@common
def forget_verb(
    ref: str,
    general: tuple[str, ...],
    target: tuple[str, ...],
    rigidity: bool,
    slices: str | None,
    overhead: bool,
    routing: bool,
    expect: tuple[str, ...],
    out_of_scope: str | None,
    quick: bool,
    html: str | None,
    device: str,
    base: str | None,
    accept_prompt_change: bool,
    store: str | None,
    as_json: bool,
) -> None:
    """Measure what REF forgot of its base's general skills; the report is kept.

    The verdict is about held-out skills: those of which no training and no router ever saw a prompt.

    \b
    Example:
      inlay forget acme@prod --eval tickets-test.jsonl --rigidity --html forgetting.html
      inlay forget acme@prod --eval tickets-test.jsonl --routing --expect tickets-test=tickets
      inlay forget acme@prod --quick
    """
    from inlay.cli.bases import base_or_last
    from inlay.composer import compose, forgetting
    from inlay.evals.perturbing import Given, read_variants

    given = Given(variants=read_variants(slices)) if slices is not None else rigidity
    expected = _expected(expect)
    registry = open_store(store)
    composed = compose(
        ref, store=registry, base=base_or_last(base), device=device, accept_prompt_change=accept_prompt_change
    )
    with progress() as say:
        report = forgetting(
            composed,
            general=general or ("general-v1",),
            target=target,
            store=registry,
            rigidity=given,
            overhead=overhead,
            routing=expected or routing or out_of_scope is not None,
            out_of_scope=out_of_scope,
            level="load" if quick else "registration",
            say=say,
        )
    if html is not None:
        from inlay.evals.report_html import Subject, write_report

        subjects = [Subject.base(report), Subject.of(report)]
        journal = [event.sentence() for event in reversed(registry.journal(composed.target.name))]
        write_report(html, f"What {report.subject} forgot", subjects, journal=journal)
    if as_json:
        emit("forget", True, report.to_dict(), "")
    else:
        report.print()
        if html is not None:
            click.echo(f"written to {html}")


def _expected(pairs: tuple[str, ...]) -> dict[str, str]:
    """What --expect says: name of a suite -> expert."""
    from inlay.errors import InputError

    found = {}
    for pair in pairs:
        suite, equals, expert = pair.partition("=")
        if not (suite and equals and expert):
            raise InputError(f"--expect must be SUITE=EXPERT, and is {pair[:60]!r}")
        found[suite] = expert
    return found
