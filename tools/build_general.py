"""Write general-v1.jsonl (test items of all skills) and general-prompts-v1.jsonl (for KL and replay).

python tools/build_general.py
"""

import argparse
import json
from pathlib import Path
from typing import Any

from inlay.builtin import general_prompts_path, general_v1_path
from inlay.builtin.general import wider_items
from inlay.builtin.skills import SKILLS, split_skills, unique_items

SEED = 1
ITEMS_PER_SKILL = 60
PROMPTS_PER_SKILL = 45


def taught_items(per_skill: int = ITEMS_PER_SKILL, seed: int = SEED) -> list[dict[str, Any]]:
    """`per_skill` unseen items of every skill that the built-in base was taught, protected or held out."""
    _, held_out = split_skills()
    return [
        {"id": f"{s.name}-{n:03d}", "prompt": item.prompt, "answer": item.answer, "skill": s.name,
         "split": "held_out" if s.name in held_out else "protected"}
        for s in SKILLS
        for n, item in enumerate(unique_items(s, "test", per_skill, seed))
    ]  # fmt: skip


def general_items(seed: int = SEED) -> list[dict[str, Any]]:
    """Lines of `general-v1`: the taught skills first, then the wider ones."""
    return [*taught_items(seed=seed), *wider_items(seed)]


def general_prompts(per_skill: int = PROMPTS_PER_SKILL, seed: int = SEED) -> list[dict[str, Any]]:
    """Prompts for KL: train-side contents of protected taught skills only, so nothing of the held-out part
    and nothing of the wider skills."""
    protected, _ = split_skills()
    return [
        {"id": f"kl-{s.name}-{n:03d}", "prompt": item.prompt, "skill": s.name}
        for s in SKILLS
        if s.name in protected
        for n, item in enumerate(unique_items(s, "train", per_skill, seed))
    ]


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write one JSON object a line, UTF-8."""
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    for path, lines in ((general_v1_path(), general_items()), (general_prompts_path(), general_prompts())):
        write_lines(path, lines)
        print(f"{len(lines)} lines -> {path.name}")


if __name__ == "__main__":
    main()
