"""Find `training_defaults` for the built-in base: rate and KL weight on the demo tasks, judged on dev items.

    python tools/sweep_defaults.py

Every setting trains every task of `SWEPT`. Its score is the mean exact match on dev rows minus the points
lost on dev items of the protected skills; held-out skills and test items have no say. The winner goes into
inlay.json.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from inlay.builtin import base_path, general_prompts_path
from inlay.builtin.skills import SKILLS, split_skills, unique_items
from inlay.builtin.tasks import TASKS, prompt_of, rows
from inlay.evals.inference import Base, Chat, base_answers, load_base
from inlay.trainers.data import read_dataset
from inlay.trainers.fit import fit, release
from inlay.trainers.run import ANSWER_TOKENS
from inlay.trainers.settings import Settings

SWEPT = ("ticket-queue", "order-slip", "case-card")
"""The tasks that the kept sweep was run on; every further one makes it longer."""
TRAIN_ROWS = 1600
DEV_ROWS = 300
DEV_PER_SKILL = 25


def exact_match(base: Base, pairs: list[tuple[str, str]]) -> float:
    """Percentage of (prompt, answer) pairs whose greedy reply is the answer."""
    return 100.0 * statistics.mean(Chat(base).matches([p for p, _ in pairs], [a for _, a in pairs]))


def general_dev() -> list[tuple[str, str]]:
    """Dev items of the protected skills."""
    protected, _ = split_skills()
    return [
        (i.prompt, i.answer)
        for s in SKILLS
        if s.name in protected
        for i in unique_items(s, "dev", DEV_PER_SKILL, 0)
    ]


def one(
    base: Base, task: str, settings: Settings, prompts: list[str], general: list[tuple[str, str]]
) -> list[float]:
    """[exact match on the task's dev rows, on general dev items, seconds of training]."""
    data = read_dataset(rows(task, "train", TRAIN_ROWS, 0), name=task)
    answers = base_answers(base, prompts, max_new_tokens=ANSWER_TOKENS, cache_dir=Path(tempfile.gettempdir()))
    fitted = fit(base, data, settings, general=(prompts, answers))
    try:
        dev = [(prompt_of(r), r["output"]) for r in rows(task, "dev", DEV_ROWS, 0)]
        return [exact_match(base, dev), exact_match(base, general), fitted.seconds]
    finally:
        release(fitted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 2e-3, 3e-3, 5e-3])
    parser.add_argument("--kl", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--kl-batch-size", type=int, default=16)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(SWEPT))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    base = load_base(base_path(), device="cpu")
    general = general_dev()
    prompts = [
        json.loads(line)["prompt"] for line in general_prompts_path().read_text(encoding="utf-8").splitlines()
    ]
    before = exact_match(base, general)
    found, began = [], time.time()
    for rate, kl in itertools.product(args.rates, args.kl):
        chosen = {"learning_rate": rate, "rank": args.rank, "alpha": 2.0 * args.rank, "epochs": args.epochs,
                  "batch_size": 16, "kl": kl, "kl_batch_size": args.kl_batch_size}  # fmt: skip
        results = [one(base, task, Settings().replaced(**chosen), prompts, general) for task in args.tasks]
        gained = statistics.mean(r[0] for r in results)
        lost = before - statistics.mean(r[1] for r in results)
        found.append({"learning_rate": rate, "kl": kl, "dev": round(gained, 2),
                      "protected_lost": round(lost, 2),
                      "by_task": {t: round(r[0], 2) for t, r in zip(args.tasks, results, strict=True)},
                      "score": round(gained - lost, 2)})  # fmt: skip
        seconds = statistics.mean(r[2] for r in results)
        print(f"rate {rate:g} kl {kl:g}: dev {gained:.1f}%, protected lost {lost:.1f} points, "
              f"{seconds:.0f} s a task, {found[-1]['by_task']}", flush=True)  # fmt: skip
    path = base_path() / "inlay.json"
    card = json.loads(path.read_text())
    # settings swept earlier on this base are kept, so that a long sweep can be run in parts
    again = {(f["learning_rate"], f["kl"]) for f in found}
    found += [f for f in card.get("sweep", []) if (f["learning_rate"], f["kl"]) not in again]
    best = max(found, key=lambda f: f["score"])
    card["training_defaults"] = {**chosen, "learning_rate": best["learning_rate"], "kl": best["kl"]}
    card["sweep"] = sorted(found, key=lambda f: (f["learning_rate"], f["kl"]))
    path.write_text(json.dumps(card, indent=2) + "\n")
    print(f"best: {card['training_defaults']} ({(time.time() - began) / 60:.1f} minutes)")


if __name__ == "__main__":
    main()
