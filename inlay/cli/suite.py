"""inlay suite check, ls, show"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from inlay.cli.console import common, emit, open_store, points, table, width

if TYPE_CHECKING:
    from inlay.evals.suite_check import SuiteCheck
    from inlay.evals.suites import Suite
    from inlay.registry.records import SuiteRow

READABLE = 80
"""Sentences are wrapped to this, or to a narrower terminal."""


@click.group("suite", context_settings={"help_option_names": ["-h", "--help"]})
def suite_verb() -> None:
    """Look over suites: what is wrong with one, which there are, what is in them. Each takes --json.

    \b
    Example:
      inlay suite check tickets-test.jsonl --against tickets.jsonl
      inlay suite ls
      inlay suite show general-v1
    """


@suite_verb.command("check")
@click.argument("suite", metavar="SUITE")
@click.option(
    "--against",
    "training",
    multiple=True,
    metavar="TRAIN",
    help="Training data (JSONL) whose prompts must not be in the suite; repeatable.",
)
@click.option(
    "--guard",
    default="forget=0.05",
    show_default=True,
    metavar="forget=LIMIT",
    help="The guard whose chances of passing are told.",
)
@common
def check_verb(suite: str, training: tuple[str, ...], guard: str, store: str | None, as_json: bool) -> None:
    """Find what is wrong with a suite, without a model. Exit code 1 for errors, 0 for warnings only.

    Doubled and contradicting items, prompts that end in their answer, items that stand in training data,
    skills on both sides, answers that never change, choices whose place gives them away, too few items; and
    how likely a guard passes with this many. With --store, whether the store has another suite of the name.

    \b
    Example:
      inlay suite check tickets-test.jsonl --against tickets.jsonl --guard forget=0.02
    """
    from inlay.evals.suite_check import check

    limit = _limit(guard)
    registry = open_store(store) if store is not None else None
    found = check(load_suite(suite, store, shipped=True), training=training, limit=limit, store=registry)
    emit("suite check", as_json, found.to_dict(), lambda: _check_text(found))
    if not found.ok:
        raise click.exceptions.Exit(1)


@suite_verb.command("ls")
@common
def ls_verb(store: str | None, as_json: bool) -> None:
    """List the suites that the store keeps, and what ships.

    \b
    Example:
      inlay suite ls
    """
    from inlay.evals.suites import SHIPPED, Suite

    rows = open_store(store).suites()
    kept = {row.name for row in rows}
    found = [_row_dict(row) for row in rows]
    found += [_suite_dict(Suite.load(name)) for name in SHIPPED if name not in kept]
    emit(
        "suite ls",
        as_json,
        found,
        lambda: table(
            [
                (
                    s["name"],
                    s["digest"][7:15],
                    str(s["items"]),
                    str(s["held_out"]),
                    s["created"][:10],
                    s["metric"],
                )
                for s in found
            ],
            ("SUITE", "DIGEST", "ITEMS", "HELD OUT", "KEPT", "METRIC"),
        ),
    )


@suite_verb.command("show")
@click.argument("suite", metavar="SUITE")
@common
def show_verb(suite: str, store: str | None, as_json: bool) -> None:
    """Show a suite's skills. SUITE is a file, a folder, a name or digest that the store knows, or what ships.

    \b
    Example:
      inlay suite show general-v1
    """
    loaded = load_suite(suite, store)
    summary = loaded.skill_summary()
    skills = f"{len(summary)} skill{'s' * (len(summary) != 1)}"
    metrics = {name: set[str]() for name in summary}
    for item in loaded.items:
        metrics[item.skill].add(loaded.metric_of(item).name)
    rows = [
        (
            name,
            str(count["items"]),
            _split(count["held_out"], count["items"]),
            ", ".join(sorted(metrics[name])),
        )
        for name, count in summary.items()
    ]
    emit(
        "suite show",
        as_json,
        {
            **_suite_dict(loaded),
            "skills": {name: {**count, "metrics": sorted(metrics[name])} for name, count in summary.items()},
        },
        lambda: "\n".join(
            [
                _wrapped(f"{loaded.name}: {len(loaded):,} items in {skills}, {loaded.metric}"),
                loaded.digest,
                "",
                table(rows, ("SKILL", "ITEMS", "SPLIT", "METRIC")),
            ]
        ),
    )


def load_suite(suite: str, store: str | None, *, shipped: bool = False) -> Suite:
    """The suite; a file, a folder and what ships need no store. `shipped`: the name of what ships means that
    even where the store that is named has one like it."""
    from inlay.evals.suites import SHIPPED, Suite

    if suite in SHIPPED and (shipped or store is None):
        return Suite.load(suite)
    if Path(suite).exists() or suite.endswith(".jsonl"):
        return Suite.load(suite)
    return Suite.load(suite, store=open_store(store))


def _limit(guard: str) -> float:
    name, _, value = guard.rpartition("=")
    try:
        if name not in ("", "forget"):
            raise ValueError
        return float(value)
    except ValueError:
        raise click.BadParameter(
            f"{guard[:40]!r} is no guard; write forget=0.05 for five points", param_hint="--guard"
        ) from None


def _split(held_out: int, items: int) -> str:
    return "held out" if held_out == items else "both" if held_out else "protected"


def _row_dict(row: SuiteRow) -> dict[str, Any]:
    held_out = sum(int(skill.get("held_out", 0)) for skill in row.skills.values())
    return {
        "name": row.name,
        "digest": row.digest,
        "items": row.n,
        "held_out": held_out,
        "metric": row.metric,
        "created": row.created,
    }


def _suite_dict(suite: Suite) -> dict[str, Any]:
    return {
        "name": suite.name,
        "digest": suite.digest,
        "items": len(suite),
        "held_out": sum(item.held_out for item in suite.items),
        "metric": suite.metric,
        "created": "",
    }


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, min(READABLE, width()), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _check_text(found: SuiteCheck) -> str:
    skills = [
        (
            skill.name,
            skill.split.replace("_", " "),
            str(skill.items),
            f"{points(skill.constant)}%",
            f"{points(skill.in_prompt)}%",
            str(skill.groups),
        )
        for skill in found.skills
    ]
    headers = ("SKILL", "SPLIT", "ITEMS", "CONSTANT", "IN PROMPT", "CLUSTERS")
    lines = [_wrapped(found.verdict()), ""]
    lines += [_wrapped(f"{f.level}: {f.sentence()}", "  ") for f in found.findings]
    lines += [*([""] if found.findings else []), table(skills, headers), ""]
    lines.append(
        _wrapped(
            "CONSTANT: what the commonest answer would score. IN PROMPT: answers that stand in their prompt, "
            "of those that are neither choices nor patterns."
        )
    )
    if found.power is not None:
        lines += ["", *(_wrapped(line, "  ") for line in found.power.sentences())]
    return "\n".join(lines)
