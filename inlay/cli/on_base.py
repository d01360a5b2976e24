"""inlay ls --base"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from inlay.cli.bases import base_named
from inlay.cli.console import emit, printable_lines, table, width

if TYPE_CHECKING:
    from inlay.registry import Registry
    from inlay.trainers.on_base import Hanging, OnBase

NARROW = 60
"""A terminal of fewer columns is not told what the data were."""


def list_on_base(registry: Registry, base: str, as_json: bool) -> None:
    """Say what hangs on a base, and how each of it is trained again."""
    from inlay.trainers.on_base import on_base

    found = on_base(registry, base_named(base))
    emit("ls", as_json, found.to_dict(), lambda: "\n".join(_text(found)))


def _text(found: OnBase) -> Iterator[str]:
    yield printable_lines([f"{found.base.name}  {found.base.weights[:19]}…"])
    if not found.versions and not found.locks:
        yield "nothing hangs on it"
        return
    yield "\nto be trained again"
    rows = [(v.ref, _how(v), ", ".join((*v.live, *v.serving)) or "-", _data(v)) for v in found.needed]
    kept = 4 if width() >= NARROW else 3
    yield table([row[:kept] for row in rows], ("version", "how", "live as", "data")[:kept])
    others = len(found.versions) - len(rows)
    if others:
        yield f"and {others} version{'s' if others > 1 else ''} that nothing live uses"
    live = [lock for lock in found.locks if lock.live]
    if live:
        yield "\nto be locked anew"
        locks = [(lock.ref, ", ".join(lock.live), ", ".join(lock.members)) for lock in live]
        yield table(locks, ("lock", "live as", "members"))
    commands = [command for v in found.needed if (command := v.command()) is not None]
    if commands:
        yield "\nby their records, in this order"
        for command in commands:
            yield printable_lines(list(_wrapped(command)))
        if any(command.endswith("VERSION") for command in commands):
            said = "VERSION is what the one that it went on from has become by then."
            yield "\n".join(textwrap.wrap(said, width()))


def _how(version: Hanging) -> str:
    return f"is {version.again}" if version.how == "done" else f"by {version.how.removeprefix('by ')}"


def _data(version: Hanging) -> str:
    if version.dataset is None:
        return "not known here"
    said = f"{version.dataset.get('name')}, {version.dataset.get('rows')} rows"
    return f"{said}, kept" if version.rows_kept else said


def _wrapped(command: str) -> Iterator[str]:
    """A command in lines of the terminal's width, to be pasted as they are."""
    line = "  "
    for number, word in enumerate(words := command.replace(" --", "\n--").split("\n")):
        more = len(" \\") if number < len(words) - 1 else 0
        if len(line) + len(word) + more > width() and line.strip():
            yield f"{line.rstrip()} \\"
            line = "    "
        line += f"{word} "
    yield line.rstrip()
