"""Items of a suite that stand in training data: a score on them shows memory, not skill.

Three degrees: the same prompt; the same but for case, white space and punctuation; and near, where most runs
of eight words of an item's prompt stand in one training prompt. A run that many training prompts share is a
template's and says nothing. Prompts are looked up by hash: time grows with the words, not with items times
rows.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError

if TYPE_CHECKING:
    from inlay.evals.suites import Item

RUN = 8
"""Words in a run that is compared."""
NEAR = 0.8
"""An item is near a training prompt that has at least this share of its runs."""
TEMPLATE_ROWS = 20
"""A run in more training prompts than this belongs to their template, and does not count."""
TELLING = 3
"""Runs that an item must have beside its template's before it can be called near: ten words of its own."""

_IGNORED = re.compile(r"[\s.,;:!?\"'`´“”„‘’…()\[\]{}|]+")


@dataclass(frozen=True)
class Overlap:
    """An item found in training data. `degree`: "same", "normalised" or "near"; `line`: of the file, from 1;
    `share`: of the item's runs of eight words, 1.0 for the first two."""

    item: str
    source: str
    line: int
    degree: str
    share: float = 1.0


@dataclass(frozen=True)
class Training:
    """The prompts of training data, in file order, under a name; "" stands for a line that has none."""

    name: str
    prompts: tuple[str, ...]


def normalised(text: str) -> str:
    """Case folded, white space and punctuation as one space. Signs that carry meaning (+ - * / = < > % $)
    stay, so that "3 + 4" and "3 - 4" differ."""
    return _IGNORED.sub(" ", text.casefold()).strip()


def training_prompts(path: str | Path) -> Training:
    """The prompts of a JSONL file in any layout that training or KL reads: `instruction` and `input`,
    `prompt` (text or messages), `messages`. InputError names the line of what cannot be read."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"training data must be a JSONL file, and there is none at {path}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be UTF-8, and byte {error.start} is not") from error
    found = [
        _prompt(line, f"{path}, line {number}") if line.strip() else ""
        for number, line in enumerate(lines, 1)
    ]
    if not any(found):
        raise InputError(f"training data must hold at least one row, and {path} holds none")
    return Training(path.name, tuple(found))


def _prompt(line: str, place: str) -> str:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{place} is not JSON") from error
    if not isinstance(row, dict):
        raise InputError(f"{place} must be a JSON object, and is a {type(row).__name__}")
    if row.keys() == {"suite"}:
        return ""
    if "instruction" in row:
        return "\n".join(str(row[key]) for key in ("instruction", "input") if row.get(key))
    asked = row.get("prompt", row.get("messages"))
    if isinstance(asked, str):
        return asked
    if isinstance(asked, list) and asked and all(isinstance(turn, dict) for turn in asked):
        return _of_messages(asked)
    raise InputError(f"{place}: there is no `prompt`, `messages` or `instruction`")


def _of_messages(turns: Sequence[dict[str, Any]]) -> str:
    """The conversation up to the answer: a user's only message as it is, else `role: content` lines, as
    `Item.text` has them."""
    if len(turns) > 1 and turns[-1].get("role") == "assistant":
        turns = turns[:-1]
    if len(turns) == 1 and turns[0].get("role") == "user":
        return str(turns[0].get("content", ""))
    return "\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in turns)


def runs(text: str) -> frozenset[str]:
    """All runs of `RUN` words of a normalised text; none where it is shorter."""
    words = text.split()
    return frozenset(" ".join(words[at : at + RUN]) for at in range(len(words) - RUN + 1))


def overlaps(items: Iterable[Item], training: Training) -> list[Overlap]:
    """Each item's strongest overlap with one file, in item order; items without one are left out."""
    asked = [(item, plain, runs(plain)) for item in items for plain in (normalised(item.text),)]
    wanted = {run for _, _, own in asked for run in own}
    same: dict[str, int] = {}
    alike: dict[str, int] = {}
    where: dict[str, list[int]] = defaultdict(list)
    for line, prompt in enumerate(training.prompts, 1):
        if not prompt:
            continue
        plain = normalised(prompt)
        same.setdefault(prompt.strip(), line)
        if alike.setdefault(plain, line) == line:
            for run in runs(plain) & wanted:
                where[run].append(line)
    found = []
    for item, plain, own in asked:
        if (line := same.get(item.text.strip(), 0)) != 0:
            found.append(Overlap(item.id, training.name, line, "same"))
        elif (line := alike.get(plain, 0)) != 0:
            found.append(Overlap(item.id, training.name, line, "normalised"))
        else:
            line, share = _nearest(own, where)
            if share >= NEAR:
                found.append(Overlap(item.id, training.name, line, "near", share))
    return found


def _nearest(own: frozenset[str], where: dict[str, list[int]]) -> tuple[int, float]:
    """The line that has most of an item's runs, and the share; templates' runs count on neither side."""
    telling = [run for run in own if len(where.get(run, ())) <= TEMPLATE_ROWS]
    if len(telling) < TELLING:
        return 0, 0.0
    counts = Counter(line for run in telling for line in where.get(run, ()))
    if not counts:
        return 0, 0.0
    most = max(counts.values())
    return min(line for line, count in counts.items() if count == most), most / len(telling)
