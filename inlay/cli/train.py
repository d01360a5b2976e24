"""inlay train"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import click

from inlay.cli.console import common, emit, open_store, progress, why_option
from inlay.trainers.settings import Settings


def setting_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """An option for every field of `Settings`. None are given a value here: a base may recommend its own."""
    for each in reversed(dataclasses.fields(Settings)):
        says = each.metadata
        kind = click.Choice(says["among"]) if says["among"] else _TYPES.get(type(each.default), str)
        option = click.option(
            f"--{says['flag'] or each.name.replace('_', '-')}",
            each.name,
            type=kind,
            default=None,
            help=f"{says['says']}  [Inlay's: {each.default}]",
        )
        function = option(function)
    return function


_TYPES = {int: int, float: float}


@click.command("train")
@click.argument("data", type=click.Path())
@click.option(
    "--base",
    required=True,
    metavar="BASE",
    help="Folder or hub id of an instruction-tuned model; `builtin` for ours.",
)
@click.option("--name", required=True, help="The adapter's name; the run becomes its next version.")
@click.option(
    "--eval",
    "target",
    multiple=True,
    metavar="SUITE",
    help="JSONL that says what must be gained; repeatable.",
)
@click.option(
    "--general", multiple=True, metavar="SUITE", help="What must not be forgotten.  [default: general-v1]"
)
@click.option(
    "--general-prompts", metavar="FILE", help="JSONL of prompts for the KL term.  [default: those that ship]"
)
@click.option(
    "--minimum",
    type=float,
    metavar="SCORE",
    help="Target score below which the run is called failed (0 to 1).",
)
@setting_options
@click.option("--device", default="auto", show_default=True)
@why_option
@common
def train_verb(
    data: str,
    base: str,
    name: str,
    target: tuple[str, ...],
    general: tuple[str, ...],
    general_prompts: str | None,
    minimum: float | None,
    device: str,
    why: str,
    store: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train a LoRA adapter on DATA and register it.

    DATA is JSONL: {"instruction", "input", "output"}, {"prompt", "completion"} or {"messages"} a line. The
    loss is taken on the answers only; KL to the base on general prompts keeps what the base knew. Settings
    that are not given come from inlay.json beside the base.

    \b
    Example:
      inlay train tickets.jsonl --base builtin --name tickets --eval tickets-test.jsonl
    """
    from inlay.cli.bases import base_named

    registry = open_store(store)
    import inlay

    with progress() as say:
        result = inlay.train(
            base_named(base),
            data,
            name=name,
            store=registry,
            target=target,
            general=general or ("general-v1",),
            general_prompts=general_prompts,
            minimum=minimum,
            why=why,
            device=device,
            say=say,
            **settings,
        )
    found = {
        "ref": result.version.ref,
        "digest": result.version.digest,
        "score": result.score,
        "base_score": result.base_score,
        "verdict": result.verdict,
        "report": result.report.to_dict(),
        "run": {k: v for k, v in result.run.items() if k not in ("curve", "examples")},
    }
    cost = f"{result.run['steps']} steps in {result.run['seconds']:.0f} s"
    emit("train", as_json, found, f"registered {result.version.ref} ({cost})\n{result.verdict}")
