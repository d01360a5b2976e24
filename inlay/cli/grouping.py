"""Options under headings: the help of a verb that has many, in as many columns as the terminal has."""

from __future__ import annotations

from typing import Any

import click

from inlay.cli.console import width

_WIDEST = 80


class InGroup(click.Option):
    """An option that stands under the heading `group` in the help of a `Grouped` command."""

    def __init__(self, *declared: Any, group: str, **given: Any) -> None:
        super().__init__(*declared, **given)
        self.group = group


class Grouped(click.Command):
    """A command whose help shows its options under their headings, those without one first under `first`;
    `notes`: further sections after them, heading -> (name, words)."""

    def __init__(
        self, *given: Any, first: str, notes: dict[str, list[tuple[str, str]]] | None = None, **named: Any
    ) -> None:
        super().__init__(*given, **named)
        self.first = first
        self.notes = notes or {}

    def get_help(self, ctx: click.Context) -> str:
        ctx.terminal_width = min(width(), _WIDEST) - 1
        return super().get_help(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {self.first: []}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)):
                group = getattr(parameter, "group", self.first)
                groups.setdefault(group, []).append((_short(parameter, record[0]), record[1]))
        for heading, rows in {**groups, **self.notes}.items():
            with formatter.section(heading):
                formatter.write_dl(rows, col_max=max(8, formatter.width // 2 - 8))


def _short(option: click.Option, written: str) -> str:
    """The option's name in a width that a narrow terminal has: --[no-]x for both ways of a flag."""
    on, slash, _ = written.partition(" / ")
    return f"--[no-]{on.removeprefix('--')}" if slash and option.secondary_opts else written
