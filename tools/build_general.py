"""Write general-v1.jsonl (test items of all skills) and general-prompts-v1.jsonl (for KL and replay).

python tools/build_general.py
"""

import argparse
import json
from pathlib import Path

from inlay.builtin import general_prompts_path, general_v1_path
from inlay.builtin.skills import SKILLS, split_skills, unique_items

SEED = 1
ITEMS_PER_SKILL = 60
PROMPTS_PER_SKILL = 45


def general_items(per_skill: int = ITEMS_PER_SKILL, seed: int = SEED) -> list[dict[str, str]]:
    """Lines of `general-v1`: `per_skill` unseen items of every skill, each marked protected or held_out."""
    _, held_out = split_skills()
    return [
        {"id": f"{s.name}-{n:03d}", "prompt": item.prompt, "answer": item.answer, "skill": s.name,
         "split": "held_out" if s.name in held_out else "protected"}
        for s in SKILLS
        for n, item in enumerate(unique_items(s, "test", per_skill, seed))
    ]  # fmt: skip


def general_prompts(per_skill: int = PROMPTS_PER_SKILL, seed: int = SEED) -> list[dict[str, str]]:
    """Prompts for KL: train-side contents of protected skills only, so nothing of the held-out part."""
    protected, _ = split_skills()
    return [
        {"id": f"kl-{s.name}-{n:03d}", "prompt": item.prompt, "skill": s.name}
        for s in SKILLS
        if s.name in protected
        for n, item in enumerate(unique_items(s, "train", per_skill, seed))
    ]


def write_lines(path: Path, lines: list[dict[str, str]]) -> None:
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
