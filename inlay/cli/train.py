"""inlay train"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from inlay.cli.console import common, emit, open_store, progress, why_option
from inlay.cli.grouping import Grouped, InGroup
from inlay.cli.rebase import again, line_options
from inlay.cli.sweep import sweep_options, swept
from inlay.errors import InputError
from inlay.trainers import kinds
from inlay.trainers.presets import PRESETS
from inlay.trainers.settings import Settings

if TYPE_CHECKING:
    from inlay.trainers import TrainResult


def setting_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """An option for every field of `Settings`. None are given a value here: a base may recommend its own."""
    options, group = [], ""
    for each in dataclasses.fields(Settings):
        says, default = each.metadata, getattr(Settings(), each.name)
        group = says["group"] or group
        flag = says["flag"] or each.name.replace("_", "-")
        kind = click.Choice(says["among"]) if says["among"] else _TYPES.get(type(default), str)
        options.append(
            click.option(
                f"--{flag}/--no-{flag}" if isinstance(default, bool) else f"--{flag}",
                each.name,
                cls=InGroup,
                group=group,
                type=kind,
                default=None,
                multiple=isinstance(default, dict),
                metavar=None if isinstance(default, bool) else _METAVARS.get(kind, "NAME"),
                help=says["says"] + _choices(says["among"], says["says"]) + _said(default),
            )
        )
    for option in reversed(options):
        function = option(function)
    return function


def _choices(among: tuple[str, ...] | None, says: str) -> str:
    return "" if among is None or says.endswith("see below.") else f" One of {', '.join(among)}."


def _said(default: Any) -> str:
    """A default for the help; nothing where there is none to speak of."""
    if default in ({}, -1):
        return ""
    if isinstance(default, bool):
        default = "on" if default else "off"
    return f"  [default: {default:g}]" if isinstance(default, float) else f"  [default: {default}]"


_TYPES: dict[type, Any] = {bool: bool, int: int, float: float}
_METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT"}
_NOTES = {
    "Presets": [(preset.name, preset.says + ".") for preset in PRESETS],
    "Kinds": [(kind, kinds.said(kind)) for kind in kinds.KINDS],
}


@click.command("train", cls=Grouped, first="The run", notes=_NOTES)
@click.argument("data", type=click.Path(), required=False)
@click.option(
    "--config",
    metavar="FILE",
    help="YAML with base, data, name, eval and any setting by its name; flags count before it.",
)
@click.option(
    "--print-config",
    is_flag=True,
    help="Print the whole run as YAML for --config, each value with who gave it, and train nothing.",
)
@click.option(
    "--base",
    metavar="BASE",
    help="Folder or hub id of an instruction-tuned model; `builtin` for ours.",
)
@click.option("--name", metavar="NAME", help="The adapter's name; the run becomes its next version.")
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
    "--orthogonal-to",
    multiple=True,
    metavar="REF",
    help="Begin orthogonal to this adapter, or to the members of this variant; repeatable.",
)
@click.option(
    "--minimum",
    type=float,
    metavar="SCORE",
    help="Target score below which the run is called failed (0 to 1).",
)
@click.option(
    "--imported",
    multiple=True,
    metavar="SCORE",
    help="A score from elsewhere to stand beside it, NAME=SCORE[:N], or a JSON file of them; repeatable.",
)
@click.option(
    "--few-shot/--no-few-shot",
    default=None,
    help="Measure the base with the best prompt of examples from DATA.  [default: on]",
)
@click.option(
    "--rigidity/--no-rigidity",
    default=None,
    help="Ask the suites with typos, other letter case, spaces and wordings as well.  [default: off]",
)
@click.option("--html", metavar="FILE", type=click.Path(), help="Write the report of the run as a page.")
@click.option(
    "--held-out",
    metavar="FILE",
    help="Raw text or pairs to measure before and after on.  [default: a share of DATA, not trained on]",
)
@setting_options
@click.option(
    "--peft-config",
    cls=InGroup,
    group="What is trained",
    metavar="FILE",
    help="JSON or YAML of any other PEFT adapter, with its peft_type; in place of --kind.",
)
@line_options
@sweep_options
@click.option("--fresh", is_flag=True, help="Begin anew, whatever checkpoint an unfinished run has left.")
@click.option("--device", metavar="DEVICE", help="cpu, cuda or cuda:N.  [default: cuda where there is one]")
@why_option
@common
def train_verb(
    data: str | None,
    config: str | None,
    print_config: bool,
    base: str | None,
    name: str | None,
    target: tuple[str, ...],
    general: tuple[str, ...],
    general_prompts: str | None,
    orthogonal_to: tuple[str, ...],
    minimum: float | None,
    imported: tuple[str, ...],
    few_shot: bool | None,
    rigidity: bool | None,
    html: str | None,
    held_out: str | None,
    start: str | None,
    rebase: str | None,
    defaults: bool,
    keep_data: bool,
    sweep: tuple[str, ...],
    sweep_forget: float,
    sweep_dev: float,
    sweep_html: str | None,
    fresh: bool,
    peft_config: str | None,
    device: str | None,
    why: str,
    store: str | None,
    as_json: bool,
    **settings: Any,
) -> int:
    """Train an adapter on DATA and register it.

    DATA is JSONL: {"instruction", "input", "output"}, {"prompt", "completion"} or {"messages"} a line, of
    which the answers are learned; for the method dpo {"prompt", "chosen", "rejected"}; for domain raw text
    with blank lines between documents, or {"text"} a line. KL to the base on general prompts keeps what the
    base knew.

    What counts, from the strongest: a flag, the --config, the --preset, inlay.json beside the base, Inlay's
    own default, which is the one shown here.

    \b
    Examples:
      inlay train tickets.jsonl \\
        --base builtin --name tickets \\
        --eval tickets-test.jsonl
      inlay train tickets.jsonl \\
        --base builtin --name tickets \\
        --preset task \\
        --print-config > run.yaml
      inlay train --config run.yaml \\
        --lr 1e-3
      inlay train more.jsonl \\
        --from tickets@v2
    """
    from inlay.cli.bases import base_named

    if peft_config is not None:
        if settings["kind"] is not None:
            raise click.UsageError("--peft-config stands in place of --kind: give one of them")
        settings["kind"] = _peft_config(peft_config)
    given = {
        "data": data,
        "base": None if base is None else base_named(base),
        "name": name,
        "target": target,
        "general": general,
        "general_prompts": general_prompts,
        "orthogonal_to": orthogonal_to,
        "minimum": minimum,
        "imported": imported,
        "few_shot": few_shot,
        "rigidity": rigidity,
        "held_out": held_out,
        "start": start,
        "keep_data": keep_data or None,
        "why": why,
        "device": device,
        **settings,
    }
    arguments = _run_of(config, given)
    if print_config:
        return _printed(arguments, as_json)
    if defaults and rebase is None:
        raise click.UsageError("--defaults says which settings a --rebase takes, and there is none")
    if rebase is not None:
        if sweep:
            raise click.UsageError("a recorded run is trained again as it was: no --sweep with --rebase")
        arguments |= {"store": open_store(store), "fresh": fresh}
        return again(rebase, defaults=defaults, as_json=as_json, **arguments)
    data, base = _trained_on(arguments), arguments.pop("base", None)
    arguments |= {"store": open_store(store), "fresh": fresh}
    if sweep:
        if base is None or "name" not in arguments:
            raise InputError(
                "a sweep needs a base and a name, and one is not given", fix="give --base and --name"
            )
        if arguments.get("start") is not None or arguments.get("keep_data"):
            raise click.UsageError("a sweep begins at the base and keeps no rows: no --from, no --keep-data")
        if arguments.get("held_out") is not None:
            raise click.UsageError("a sweep holds rows of DATA back, and takes no --held-out")
        return swept(
            sweep,
            base,
            data,
            forget=sweep_forget,
            dev=sweep_dev,
            html=sweep_html,
            as_json=as_json,
            **arguments,
        )
    import inlay

    with progress() as say:
        result = inlay.train(base, data, say=say, **arguments)
    found = {
        "ref": result.version.ref,
        "digest": result.version.digest,
        "score": result.score,
        "base_score": result.base_score,
        "verdict": result.verdict,
        "whole": result.whole.to_dict(),
        "report": result.report.to_dict(),
        "run": {k: v for k, v in result.run.items() if k not in ("curve", "examples")},
    }
    if html is not None:
        result.whole.write_html(html)
        found["html"] = html
    emit("train", as_json, found, lambda: _words(result))
    return 0


def _words(result: TrainResult) -> str:
    """The report, with what the method and the anchor say of the run."""
    from inlay.trainers.run_text import run_words

    more = [*result.said, *result.remembering]
    return "\n".join([f"registered {result.version.ref}", run_words(result.whole), *more])


def _run_of(config: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `inlay.train`: those given, before those of the configuration."""
    from inlay.trainers.config import read_config

    held = read_config(config) if config is not None else {}
    return {**held, **{key: value for key, value in given.items() if value not in (None, (), "")}}


def _printed(arguments: dict[str, Any], as_json: bool) -> int:
    from inlay.registry.fingerprint import BaseFingerprint
    from inlay.registry.recipes import load_yaml
    from inlay.trainers.config import WHAT, written

    if "base" not in arguments:
        raise InputError(
            "settings are a base's, and none is named", fix="give --base, or base: in the --config"
        )
    text = written(BaseFingerprint.of(arguments["base"]).path, arguments)
    emit("train", as_json, load_yaml(text, WHAT), text.rstrip())
    return 0


def _trained_on(arguments: dict[str, Any]) -> str:
    if "data" not in arguments:
        raise InputError(
            "a run is trained on data, and none is named", fix="give DATA, or data: in the --config"
        )
    return str(arguments.pop("data"))


def _peft_config(path: str) -> Any:
    from inlay.registry.recipes import load_yaml, read_text

    return load_yaml(read_text(Path(path), "PEFT configuration"), "PEFT configuration")
