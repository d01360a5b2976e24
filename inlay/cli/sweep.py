"""inlay train --sweep"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from inlay.cli.console import emit, progress
from inlay.cli.grouping import InGroup


def sweep_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a sweep is given; without --sweep the others mean nothing."""
    for option in (
        click.option(
            "--sweep-html",
            cls=InGroup,
            group="Sweeps",
            metavar="FILE",
            help="Write a sweep's report as one self-contained page.",
        ),
        click.option(
            "--sweep-dev",
            cls=InGroup,
            group="Sweeps",
            type=float,
            default=0.2,
            show_default=True,
            help="Share of DATA that a sweep holds back to choose on.",
        ),
        click.option(
            "--sweep-forget",
            cls=InGroup,
            group="Sweeps",
            type=float,
            default=0.05,
            show_default=True,
            help="The most that a sweep's winner may lose of protected prompts (0 to 1).",
        ),
        click.option(
            "--sweep",
            cls=InGroup,
            group="Sweeps",
            multiple=True,
            metavar="NAME=V,V",
            help="Try these values of a setting, as lr=1e-3,3e-3, with those of every other --sweep, and "
            "train the best on all of DATA; repeatable.",
        ),
    ):
        function = option(function)
    return function


def swept(
    given: Sequence[str],
    base: Any,
    data: str,
    *,
    forget: float,
    dev: float,
    html: str | None,
    as_json: bool,
    **arguments: Any,
) -> int:
    """Try what `given` names, print the frontier, say what was registered; 1 where nothing was."""
    from inlay.trainers.grid import read_grid
    from inlay.trainers.sweep import sweep

    grid = read_grid(given)
    with progress() as say:
        found = sweep(base, data, over=grid, forget=forget, dev=dev, say=say, **arguments)
    if html is not None:
        from inlay.trainers.sweep_html import write_sweep

        write_sweep(html, found.report)
    if not as_json:
        found.report.print()
        if html is not None:
            click.echo(f"the report is in {html}")
    result = found.report.to_dict()
    text = ""
    if found.trained is not None:
        trained = found.trained
        result |= {"verdict": trained.verdict, "forgetting": trained.report.to_dict()}
        text = "\n".join([f"registered {trained.version.ref}", trained.verdict, *trained.remembering])
    if as_json or text:
        emit("train", as_json, result, text)
    return 0 if found.trained is not None else 1
