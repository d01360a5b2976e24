"""inlay compose"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from inlay.cli.console import base_options, common, emit, open_store, progress, suite_options, why_option

if TYPE_CHECKING:
    from inlay.composer.merging.cat import Example


@click.command("compose")
@click.argument("refs", nargs=-1, required=True, metavar="REF…")
@click.option(
    "--auto", is_flag=True, help="Try compositions of the adapters REF…, and take what measures best."
)
@suite_options
@click.option(
    "--examples",
    multiple=True,
    metavar="NAME=FILE",
    help="Labelled examples of what the adapter NAME is for, as a suite has them: for routers and CAT.",
)
@click.option(
    "--general-prompts",
    metavar="FILE",
    help="JSONL of prompts that are for no adapter.  [default: those that ship]",
)
@click.option(
    "--forget",
    type=float,
    default=0.05,
    show_default=True,
    help="The most that may be lost of held-out general skills, an upper bound.",
)
@click.option(
    "--retention",
    type=float,
    default=0.95,
    show_default=True,
    help="The share to keep of what each adapter gains by itself.",
)
@click.option("--minutes", type=float, default=10.0, show_default=True, help="The time there is.")
@click.option("--name", metavar="NAME", help="Lock what is taken as the next lock of this variant.")
@click.option("--to", "alias", metavar="ALIAS", help="Promote the new lock to this alias as well.")
@click.option("--recipe", "file", metavar="FILE", help="Write the recipe of what is taken.")
@click.option("--html", metavar="FILE", help="Write the report as one self-contained page.")
@click.option("--seed", type=int, default=0, show_default=True, help="Deals the items; for routers and CAT.")
@click.option("--device", default="auto", show_default=True)
@base_options
@why_option
@common
def compose_verb(
    refs: tuple[str, ...],
    auto: bool,
    general: tuple[str, ...],
    target: tuple[str, ...],
    examples: tuple[str, ...],
    general_prompts: str | None,
    forget: float,
    retention: float,
    minutes: float,
    name: str | None,
    alias: str | None,
    file: str | None,
    html: str | None,
    seed: int,
    device: str,
    base: str | None,
    accept_prompt_change: bool,
    why: str,
    store: str | None,
    as_json: bool,
) -> int:
    """Compose the adapters REF… by measured result: the best static composition that keeps what each gains
    and what the base could, else the best route, else none (exit code 1).

    Suites of --eval are for the adapter that declared them, or for NAME in NAME=SUITE; without any, the
    suites that the adapters' trainings declared. The choice is made on one half of their items and reported
    on the other. Interrupted, it goes on where it was.

    \b
    Example:
      inlay compose --auto faq@prod tickets@prod --name acme
      inlay compose --auto faq@prod tickets@prod --eval faq=faq-test.jsonl --eval tickets=tickets.jsonl
    """
    if not auto:
        raise click.UsageError(
            "say --auto to have a composition chosen; a recipe is kept by `inlay lock`, measured by `inlay "
            "forget`"
        )
    if alias is not None and name is None:
        raise click.UsageError("--to goes with --name: an alias points to a lock")
    from inlay.cli.bases import base_or_last
    from inlay.composer import auto as choose

    registry = open_store(store)
    with progress() as say:
        found = choose(
            refs,
            target=[_aimed(each) for each in target],
            general=general or ("general-v1",),
            examples=_examples(examples),
            general_prompts=general_prompts,
            forget=forget,
            retention=retention,
            minutes=minutes,
            name=name,
            why=why,
            store=registry,
            base=base_or_last(base),
            device=device,
            accept_prompt_change=accept_prompt_change,
            seed=seed,
            say=say,
        )
    if html is not None:
        from inlay.evals.frontier_html import write_frontier

        write_frontier(html, found.evidence)
    if file is not None and found.recipe is not None:
        Path(file).write_text(found.recipe, encoding="utf-8")
    if not as_json:
        found.evidence.print()
        for what, path in (("the report", html), ("the recipe", file if found.recipe else None)):
            if path is not None:
                click.echo(f"{what} is in {path}")
        if found.recipe is not None and file is None:
            click.echo(f"\n{found.recipe.rstrip()}")
    result = found.report
    if found.lock is not None:
        result |= {"lock": {"ref": found.lock.ref, "digest": found.lock.digest}}
        text = f"locked {found.lock.ref}\n{found.lock.digest}"
        if alias is not None:
            event = registry.promote(found.lock.ref, alias, why=why or found.explanation)
            result |= {"promoted": event.sentence()}
            text += f"\n{event.sentence()}"
        if not as_json:
            click.echo(text)
    if as_json:
        emit("compose", True, result, "")
    return 0 if found.passed else 1


def _aimed(said: str) -> str | tuple[str, str]:
    """NAME=SUITE as a pair; a suite by itself, whose file may have such a name."""
    name, equals, suite = said.partition("=")
    return said if not (name and equals and suite) or Path(said).exists() else (name, suite)


def _examples(given: Sequence[str]) -> dict[str, list[Example]]:
    """NAME=FILE, each the labelled examples of one adapter."""
    from inlay.evals.suites import Suite

    found: dict[str, list[Example]] = {}
    for each in given:
        name, separator, file = each.partition("=")
        if not separator or not name or not file:
            raise click.UsageError(f"--examples takes NAME=FILE, got {each!r}")
        found.setdefault(name, []).extend((item.chat, item.answer) for item in Suite.load(file).items)
    return found
