"""Which reader a method's data wants: rows of prompts and answers, preference pairs, or raw text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from inlay.errors import InputError
from inlay.trainers.data import Dataset, lines_of, parsed, read_dataset
from inlay.trainers.methods import method_named
from inlay.trainers.pairs import Pairs, read_pairs
from inlay.trainers.texts import Texts, read_texts

Data = Dataset | Pairs | Texts

READERS: Mapping[str, tuple[type[Data], Callable[..., Data]]] = {
    "rows": (Dataset, read_dataset),
    "pairs": (Pairs, read_pairs),
    "texts": (Texts, read_texts),
}
"""What a method `READS` -> what that is in memory, and who reads it."""

_READ_BY = {"rows": "sft", "pairs": "dpo", "texts": "domain"}
_WANTED = {
    "rows": "prompt and answer a row",
    "pairs": "prompt, chosen, rejected",
    "texts": "raw text",
}


def read(source: str | Path | Sequence[Any] | Data, method: str, *, name: str | None = None) -> Data:
    """The data of a run by `method`, from a file, a list or ready-made.

    Raises InputError as the readers do, and first of all where the file's layout is another method's.
    """
    reads = method_named(method).READS
    kind, reader = READERS[reads]
    if isinstance(source, Dataset | Pairs | Texts):
        if not isinstance(source, kind):
            raise InputError(f"{method} wants {reads}, and {source.name} is {type(source).__name__}")
        return source
    _refuse_another_layout(source, method, reads)
    return reader(source, name=name)


def layout_of(row: Any) -> str | None:
    """Which of `READERS` a row is for, by its keys; None where that cannot be said."""
    if isinstance(row, str):
        return "texts"
    keys = set(row) if isinstance(row, Mapping) else set()
    if {"chosen", "rejected"} <= keys:
        return "pairs"
    if {"prompt", "completion"} <= keys or {"instruction", "output"} <= keys or "messages" in keys:
        return "rows"
    return "texts" if "text" in keys else None


def _refuse_another_layout(source: str | Path | Sequence[Any], method: str, reads: str) -> None:
    where, first = _first(source)
    found = layout_of(first)
    if found is None or found == reads or (reads == "texts" and isinstance(first, str)):
        return
    held = ", ".join(sorted(first)) if isinstance(first, Mapping) else "plain text"
    raise InputError(
        f"{method} wants {_WANTED[reads]}, and {where} has {held}",
        fix=f"train it with --method {_READ_BY[found]}",
    )


def _first(source: str | Path | Sequence[Any]) -> tuple[str, Any]:
    """Where the first row stands, and the row: an object, or a line of plain text."""
    if not isinstance(source, str | Path):
        return "row 1", source[0] if len(source) else None
    path = Path(source)
    lines = lines_of(path)
    where = f"{path}, line 1"
    if path.suffix == ".jsonl" and lines:
        return where, parsed(lines[0], where)
    return where, first_row(path, lines)


def first_row(path: Path, lines: Sequence[str]) -> Any:
    """The first row of a file that is one: an object, or the first line of plain text; None where no line of
    a JSONL file is an object."""
    if path.suffix != ".jsonl" and not (lines and _is_object(lines[0])):
        return lines[0] if lines else None
    return next((json.loads(line) for line in lines if _is_object(line)), None)


def _is_object(line: str) -> bool:
    """Text may begin with a brace and be no JSON."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
