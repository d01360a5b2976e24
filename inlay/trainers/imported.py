"""Scores from elsewhere: retrieval, another vendor's model, people. Kept as given, with where they came
from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inlay.errors import InputError

FORM = '{"name": …, "score": …, "n": …, "suite": …, "source": …}'
_KEYS = {"name", "score", "n", "suite", "source"}


@dataclass(frozen=True)
class Imported:
    """A score in the unit of the suite's metric (a share of right answers lies between 0 and 1) on `n` items;
    None where nobody said on how many. `suite`: the target suite's name, None for the first one."""

    name: str
    score: float
    n: int | None = None
    suite: str | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if not self.name.strip() or len(self.name) > 80:
            raise InputError(
                f"an imported score needs a name of at most 80 characters, got {self.name[:90]!r}"
            )
        if not math.isfinite(self.score):
            raise InputError(f"an imported score must be a number, and {self.name}'s is {self.score}")
        if self.n is not None and self.n < 1:
            raise InputError(f"an imported score is of at least one item, and {self.name}'s n is {self.n}")


def read_imported(source: str | Path | Sequence[str | Mapping[str, Any]] | None) -> tuple[Imported, ...]:
    """Scores from a JSON or JSONL file of objects `FORM`, or from a list of such objects, of pairs
    `NAME=SCORE` or `NAME=SCORE:N`, and of paths of such files; a score that does not say its source has the
    file's name for one. InputError naming file and place for anything malformed.
    """
    if source is None:
        return ()
    given = [source] if isinstance(source, str | Path) else source
    found: list[Imported] = []
    for number, one in enumerate(given, 1):
        if isinstance(one, Mapping):
            found.append(_of(one, f"imported score {number}", ""))
        elif isinstance(one, str) and "=" in one and not Path(one).is_file():
            found.append(_pair(one))
        else:
            found += _file(Path(one))
    return tuple(found)


def _pair(text: str) -> Imported:
    name, _, rest = text.partition("=")
    score, _, n = rest.partition(":")
    try:
        return Imported(name.strip(), float(score), int(n) if n else None, source="command line")
    except ValueError:
        raise InputError(
            f"an imported score must be NAME=SCORE or NAME=SCORE:N, got {text[:80]!r}",
            fix="for instance retrieval=0.71:500",
        ) from None


def _file(path: Path) -> Iterable[Imported]:
    if not path.is_file():
        raise InputError(f"imported scores must be a JSON or JSONL file, and there is none at {path}")
    try:
        text = path.read_text(encoding="utf-8")
        try:
            rows = json.loads(text)
        except json.JSONDecodeError:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} must be JSON or JSONL: {error}", fix=f"one object each, {FORM}") from None
    rows = rows if isinstance(rows, list) else [rows]
    return [_of(row, f"{path}, score {number}", path.name) for number, row in enumerate(rows, 1)]


def _of(row: Any, where: str, source: str) -> Imported:
    if not isinstance(row, Mapping) or not {"name", "score"} <= row.keys() or row.keys() - _KEYS:
        raise InputError(f"{where} must be an object {FORM}, of which name and score are needed")
    score, n = row["score"], row.get("n")
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise InputError(f"{where}: score must be a number, and is {score!r:.40}")
    if n is not None and (isinstance(n, bool) or not isinstance(n, int)):
        raise InputError(f"{where}: n must be a whole number, and is {n!r:.40}")
    texts = {key: row.get(key) or "" for key in ("name", "suite", "source")}
    wrong = next((key for key, value in texts.items() if not isinstance(value, str)), None)
    if wrong is not None:
        raise InputError(f"{where}: {wrong} must be a string, and is {row[wrong]!r:.40}")
    return Imported(texts["name"], float(score), n, texts["suite"] or None, texts["source"] or source)
