"""Progress on stderr: a bar where there is room, figures where there is little, lines where nobody draws."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from inlay.cli.console import PATIENCE, Lines, _bars, progress

STEP = "training tickets, loss 0.512, kl 0.031, lr 2e-04"


def drawn(width: int) -> list[str]:
    """What stands in a terminal of that width, frame by frame."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width)
    with _bars(console) as draw:
        for step in range(1, 601, 50):
            draw(STEP, step, 600)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())
    return [line for line in re.split(r"[\r\n]+", plain) if line.strip()]


def test_figures_and_time_left_fit_forty_columns() -> None:
    frames = drawn(40)
    assert all(len(frame.rstrip()) <= 40 for frame in frames)
    assert re.fullmatch(r"loss 0\.512 kl 0\.031 lr 2e-04\s+92% +(--:--|\d+:\d\d)", frames[-1].rstrip())


def test_a_wide_terminal_has_the_bar_as_well() -> None:
    last = drawn(120)[-1]
    assert STEP in last and "551/600" in last and "━" in last


def test_lines_come_at_tenths_and_not_too_often() -> None:
    now, said = 0.0, []
    lines = Lines(said.append, lambda: now)
    for step in range(1, 101):
        now += 1.0
        lines(STEP, step, 100)
    assert said[0] == f"{STEP}: 11 of 100, 1:29 left"
    assert len(said) == 9 and said[-1] == f"{STEP}: 91 of 100, 0:09 left"
    quick: list[str] = []
    lines = Lines(quick.append, lambda: now)
    for step in range(1, 101):
        now += PATIENCE / 200
        lines(STEP, step, 100)
    assert quick == []


def test_notes_are_said_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as say:
        say("note: going on from step 3 of 6", 1, 1)
        say(STEP, 4, 6)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "note: going on from step 3 of 6\n")
