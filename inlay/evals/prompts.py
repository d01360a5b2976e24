"""General prompts: what KL, replay and routers see of the world outside a task. Never what forgetting is
judged on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from inlay.builtin import general_prompts_path
from inlay.errors import InputError


@dataclass(frozen=True)
class GeneralPrompt:
    """A prompt for no adapter. `skill`: what kind of request it is, None where nobody said."""

    prompt: str
    skill: str | None = None


def read_prompts(source: str | Path | Sequence[str] | None, *, what: str = "general prompts") -> list[str]:
    """A JSONL file of objects with a "prompt", a list of strings, or None for the prompts that ship. `what`:
    how errors call them."""
    return [each.prompt for each in read_general(source, what=what)]


def read_general(
    source: str | Path | Sequence[str | GeneralPrompt] | None, *, what: str = "general prompts"
) -> list[GeneralPrompt]:
    """`read_prompts` with the "skill" that the lines name."""
    if source is not None and not isinstance(source, str | Path):
        return [each if isinstance(each, GeneralPrompt) else GeneralPrompt(each) for each in source]
    path = Path(source) if source is not None else general_prompts_path()
    if not path.is_file():
        raise InputError(f"{what} must be a JSONL file, and there is none at {path}", fix="check the path")
    prompts = list(_lines(path))
    if not prompts:
        raise InputError(f"{what} must be at least one, and {path} holds none")
    return prompts


def evenly(prompts: Sequence[GeneralPrompt], most: int) -> list[GeneralPrompt]:
    """At most `most` of them, of every skill as many as there are; those of a skill in their order."""
    by_skill: dict[str | None, list[GeneralPrompt]] = {}
    for each in prompts:
        by_skill.setdefault(each.skill, []).append(each)
    rounds = itertools.zip_longest(*by_skill.values())
    return [each for row in rounds for each in row if each is not None][:most]


def _lines(path: Path) -> Iterator[GeneralPrompt]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number} is not JSON: {error.msg}") from None
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise InputError(f'{path}, line {number} must be an object with a "prompt"')
        skill = row.get("skill")
        yield GeneralPrompt(row["prompt"], skill if isinstance(skill, str) else None)
