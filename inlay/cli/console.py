"""What all verbs share: options, one JSON object on stdout, progress and words on stderr.

Tables are plain text: columns as wide as their content, cut to the terminal. rich is for progress only, and
loaded only by verbs that take long.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from inlay.registry import Registry

F = TypeVar("F", bound=Callable[..., Any])

NARROWEST = 4
"""Columns are cut to no less than this."""
ROOMY = 90
"""Columns of a terminal that has room for a bar beside the words."""
LOSS = ", loss "
"""What stands before the figures of a training's step."""
PATIENCE = 10.0
"""Seconds between two lines of progress where there is no terminal."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
store_option = click.option(
    "--store",
    metavar="FOLDER",
    help="The store; by default $INLAY_STORE, else the nearest adapters_store upward.",
)
_base_option = click.option(
    "--base",
    metavar="BASE",
    help="Where the base lies: a folder or a hub id; by default where it was last seen.",
)
_accept_option = click.option(
    "--accept-prompt-change",
    is_flag=True,
    help="Go on although the base's tokenizer or chat template changed.",
)
why_option = click.option("--why", default="", metavar="TEXT", help="The reason, kept in the journal.")

_COMING_IN = (
    click.option(
        "--base",
        required=True,
        metavar="BASE",
        help="The base it was trained on: a folder or a hub id; `builtin`.",
    ),
    click.option("--owner", metavar="WHO", help="Who answers for this name, if it is new."),
    click.option("--tag", "tags", multiple=True, metavar="TAG", help="A tag for the version; repeatable."),
    click.option("--description", metavar="TEXT", help="What the version is, in a sentence."),
    click.option(
        "--allow-base-mismatch",
        is_flag=True,
        help="Register although it was trained on another base; recorded for good.",
    ),
    click.option(
        "--accept-prompt-change", is_flag=True, help="Register although tokenizer or chat template changed."
    ),
    why_option,
)


def common(function: F) -> F:
    """--store and --json, which every verb on a store has."""
    return store_option(json_option(function))


_general_option = click.option(
    "--general", multiple=True, metavar="SUITE", help="What must not be forgotten.  [default: general-v1]"
)
_target_option = click.option(
    "--eval", "target", multiple=True, metavar="SUITE", help="What was to be gained, reported beside it."
)


def base_options(function: F) -> F:
    """--base and --accept-prompt-change, which every verb that loads a base has."""
    return _base_option(_accept_option(function))


def suite_options(function: F) -> F:
    """--general and --eval, which every verb that measures what was forgotten has."""
    return _general_option(_target_option(function))


def coming_in(function: F) -> F:
    """The options of every verb that registers an adapter made elsewhere."""
    for option in reversed(_COMING_IN):
        function = option(function)
    return function


def open_store(store: str | None) -> Registry:
    """The registry a verb works on, its guards judged by `inlay.evals`."""
    import inlay

    return inlay.Registry.open(store)


def emit(verb: str, as_json: bool, result: Any, text: str | Callable[[], str]) -> None:
    """Print the result: one JSON object, or words."""
    if as_json:
        click.echo(json.dumps({"schema": 1, "verb": verb, "result": result}, ensure_ascii=False, default=str))
    else:
        click.echo(text() if callable(text) else text)


def printable_lines(lines: Sequence[str]) -> str:
    """Lines with words from outside, safe to print."""
    from inlay.registry.printable import printable

    return "\n".join(printable(line) for line in lines)


def width() -> int:
    """Columns of the terminal; 100 where there is none."""
    return shutil.get_terminal_size((100, 24)).columns


def table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """Left-aligned columns under headers. Where the terminal is too small the widest column gives way, the
    first, which says what the row is about, after all others.
    """
    from inlay.registry.printable import printable

    cells = [[printable(str(c)) for c in row] for row in [headers, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    gap = 2
    over = sum(widths) + gap * (len(widths) - 1) - width()
    while over > 0 and max(widths) > NARROWEST:
        others = widths[1:] if max(widths[1:], default=0) > NARROWEST else widths
        widest = widths.index(max(others), len(widths) - len(others))
        give = min(over, widths[widest] - NARROWEST)
        widths[widest] -= give
        over -= give
    lines = []
    for row in cells:
        fitted = [c if len(c) <= w else c[: w - 1] + "…" for c, w in zip(row, widths, strict=True)]
        lines.append((" " * gap).join(c.ljust(w) for c, w in zip(fitted, widths, strict=True)).rstrip())
    return "\n".join(lines)


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each long thing, on stderr: (what, done, all). "note: …" stays as a line.

    In a narrow terminal the figures of a training ("…, loss 0.512, kl 0.031, lr 2e-04") stand alone. Where
    stderr is no terminal there are no bars; what takes long says so in a line at every tenth of it.
    """
    from rich.console import Console

    from inlay.registry.printable import printable

    console = Console(stderr=True)

    def note(what: str) -> None:
        console.print(printable(what), markup=False, highlight=False, soft_wrap=True)

    with _bars(console) if console.is_terminal else contextlib.nullcontext(Lines(note)) as draw:

        def say(what: str, done: int, total: int) -> None:
            if what.startswith("note: "):
                note(what)
            else:
                draw(what, done, total)

        yield say


@contextlib.contextmanager
def _bars(console: Any) -> Iterator[Callable[[str, int, int], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    roomy = console.width >= ROOMY
    cut = Column(no_wrap=True, overflow="ellipsis")
    words = TextColumn("{task.description}", markup=False, table_column=cut)
    far = (
        (BarColumn(bar_width=24), MofNCompleteColumn()) if roomy else (TextColumn("{task.percentage:.0f}%"),)
    )
    tasks: dict[str, Any] = {}
    with Progress(words, *far, TimeRemainingColumn(compact=True), console=console, transient=True) as bars:

        def draw(what: str, done: int, total: int) -> None:
            key, loss, figures = what.partition(LOSS)
            shown = f"loss {figures}".replace(",", "") if loss and not roomy else what
            if key not in tasks:
                tasks[key] = bars.add_task(shown, total=total)
            bars.update(tasks[key], completed=done, total=total, description=shown, visible=done < total)

        yield draw


class Lines:
    """Progress for a file or a pipe: `write` gets a line at every tenth of a thing, unless it or the line
    before came less than `PATIENCE` seconds ago."""

    def __init__(self, write: Callable[[str], None], now: Callable[[], float] = time.monotonic) -> None:
        self.write = write
        self.now = now
        self._begun: dict[str, tuple[float, int]] = {}
        self._said: dict[str, tuple[float, int]] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        key, now = what.partition(LOSS)[0], self.now()
        begun, first = self._begun.setdefault(key, (now, done))
        last, tenth = self._said.setdefault(key, (now, 10 * done // max(total, 1)))
        if now - last < PATIENCE or 10 * done // max(total, 1) <= tenth:
            return
        self._said[key] = now, 10 * done // total
        left = round((now - begun) / (done - first) * (total - done))
        self.write(f"{what}: {done} of {total}, {left // 60}:{left % 60:02} left")


def bars_wanted(as_json: bool) -> bool:
    """Whether somebody looks at stderr."""
    return not as_json and sys.stderr.isatty()


def points(fraction: float) -> str:
    """A fraction of the score as points with one decimal: 0.052 -> "5.2"."""
    return f"{100 * fraction:.1f}"
