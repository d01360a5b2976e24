"""inlay data check"""

from __future__ import annotations

import click

from inlay.cli.console import common, emit, progress, width

READABLE = 100
"""Sentences are wrapped to this, or to a narrower terminal."""


@click.group("data", context_settings={"help_option_names": ["-h", "--help"]})
def data_verb() -> None:
    """Look over training data: what is wrong with a file. It takes --json.

    \b
    Example:
      inlay data check tickets.jsonl --base builtin --against tickets-test.jsonl
    """


@data_verb.command("check")
@click.argument("file", metavar="FILE", type=click.Path())
@click.option(
    "--base",
    metavar="BASE",
    help="Folder or hub id of the model to be trained; `builtin` for ours. Without it neither lengths nor "
    "likelihoods are measured.",
)
@click.option(
    "--against", multiple=True, metavar="SUITE", help="A suite that the data must not hold; repeatable."
)
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Tokens of a row, prompt and answer; the base's context where that is shorter.",
)
@click.option(
    "--no-surprisal",
    is_flag=True,
    help="Do not ask the base how likely it finds each answer: one forward pass a row less.",
)
@click.option("--html", type=click.Path(), metavar="PAGE", help="Write the report as a page, with plots.")
@click.option("--strict", is_flag=True, help="Leave with 1 for warnings as well.")
@click.option("--device", default="auto", show_default=True)
@common
def check_verb(
    file: str,
    base: str | None,
    against: tuple[str, ...],
    max_length: int,
    no_surprisal: bool,
    html: str | None,
    strict: bool,
    device: str,
    store: str | None,
    as_json: bool,
) -> None:
    """Find what is wrong with training data: prompts and answers, preference pairs, or raw text. Exit code 1
    for errors, 0 for warnings only.

    Errors, for which `inlay train` refuses: lines that are no row, empty ones, rows marked as not to be
    trained on, rows that do not fit, prompts that stand in a suite. Warnings: duplicates, conflicting and
    rare answers, opposed preferences, broken JSON, one wording only, boilerplate, outliers, wrong decoding,
    personal data.

    \b
    Example:
      inlay data check tickets.jsonl --base builtin --against tickets-test.jsonl --html tickets.html
    """
    from inlay.cli.bases import base_named
    from inlay.cli.suite import load_suite
    from inlay.trainers.quality import check

    suites = [load_suite(suite, store) for suite in against]
    with progress() as say:
        found = check(
            file,
            base=None if base is None else base_named(base),
            against=suites,
            max_length=max_length,
            surprisal=not no_surprisal,
            device=device,
            say=say,
        )
    if html is not None:
        from inlay.trainers.quality.report_html import write_html

        write_html(html, found)
    from inlay.trainers.quality.report_text import report_text

    emit("data check", as_json, found.to_dict(), lambda: report_text(found, width=min(READABLE, width())))
    if not (found.clean if strict else found.ok):
        raise click.exceptions.Exit(1)
