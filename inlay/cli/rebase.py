"""inlay train --from, --rebase"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from inlay.cli.console import emit, progress
from inlay.cli.grouping import InGroup
from inlay.errors import InputError


def line_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a run is given that begins with an earlier one."""
    group = "Earlier versions"
    for option in (
        click.option(
            "--keep-data",
            cls=InGroup,
            group=group,
            is_flag=True,
            help="Keep the rows of DATA in the store, so that a --rebase needs no file.",
        ),
        click.option(
            "--defaults",
            cls=InGroup,
            group=group,
            is_flag=True,
            help="With --rebase: of the recorded settings only those asked for by name, else the new base's.",
        ),
        click.option(
            "--rebase",
            cls=InGroup,
            group=group,
            metavar="REF",
            help="Train the recorded run of this version again on another --base, and compare the two.",
        ),
        click.option(
            "--from",
            "start",
            cls=InGroup,
            group=group,
            metavar="REF",
            help="Go on from this version: its weights are the start, its tasks are measured too.",
        ),
    ):
        function = option(function)
    return function


def again(rebase: str, *, defaults: bool, as_json: bool, **arguments: Any) -> int:
    """Train the run of `rebase` again, and say how the new version compares with it."""
    declared = [flag for flag, key in _DECLARED.items() if arguments.get(key)]
    if declared:
        raise click.UsageError(
            f"a recorded run is judged by what it declared then: no {', '.join(declared)} with --rebase"
        )
    if "base" not in arguments:
        raise InputError("a run is trained again on another base, and none is named", fix="give --base")
    from inlay.trainers.rebase import rebase as train_again

    with progress() as say:
        made = train_again(
            rebase,
            arguments.pop("base"),
            arguments.pop("data", None),
            defaults=defaults,
            say=say,
            **arguments,
        )
    version, run = made.version, made.result.run
    if not as_json:
        from rich.console import Console

        from inlay.evals.report_text import print_table

        for table in made.report.tables():
            print_table(table, Console())
            click.echo()
    cost = f"{run['steps']} steps in {run['seconds']:.0f} s"
    earlier = str((made.result.report.earlier or {}).get("verdict", ""))
    said = [
        f"registered {version.ref}, which is {made.report.old} trained again ({cost})",
        f"{made.report.verdict} {earlier}".rstrip(),
    ]
    emit(
        "train",
        as_json,
        {
            "ref": version.ref,
            "digest": version.digest,
            "rebase": made.report.to_dict(),
            "verdict": made.report.verdict,
            "report": made.result.report.to_dict(),
            "run": {k: v for k, v in run.items() if k not in ("curve", "examples")},
        },
        "\n".join(said),
    )
    return 0


_DECLARED = {"--eval": "target", "--general": "general", "--minimum": "minimum"}
