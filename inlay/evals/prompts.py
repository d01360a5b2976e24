"""General prompts: what KL, replay and routers see of the world outside a task. Never what forgetting is
judged on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from inlay.builtin import general_prompts_path
from inlay.errors import InputError


def read_prompts(source: str | Path | Sequence[str] | None) -> list[str]:
    """A JSONL file of objects with a "prompt", a list of strings, or None for the prompts that ship."""
    if source is not None and not isinstance(source, str | Path):
        return list(source)
    path = Path(source) if source is not None else general_prompts_path()
    if not path.is_file():
        raise InputError(
            f"general prompts must be a JSONL file, and there is none at {path}", fix="check the path"
        )
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number} is not JSON: {error.msg}") from None
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise InputError(f'{path}, line {number} must be an object with a "prompt"')
        prompts.append(row["prompt"])
    if not prompts:
        raise InputError(f"general prompts must be at least one, and {path} holds none")
    return prompts
