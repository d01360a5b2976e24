"""Learning against forgetting: plain LoRA and Inlay's default, each with its own best rate.

Both sides train on the same rows with the same rank, batch and schedule; the rate of each is chosen on dev
accuracy from the same grid; the test set and the held-out general skills are looked at afterwards. Prints the
whole frontier, so that the choice can be seen.

    python benchmarks/frontier.py builtin                 # the built-in base's demo tasks
    python benchmarks/frontier.py mini-instruct           # real data, needs INLAY_TEST_DATA
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from inlay.builtin import base_path, general_prompts_path
from inlay.evals import Suite, compare, uninformative
from inlay.evals.inference import Base, Chat, base_answers, load_base
from inlay.evals.prompts import read_prompts
from inlay.evals.scoring import EvalResult, evaluate_model, library_versions
from inlay.trainers.data import Dataset, read_dataset
from inlay.trainers.fit import fit, release
from inlay.trainers.run import ANSWER_TOKENS
from inlay.trainers.settings import Settings, settings_for


@dataclass(frozen=True)
class Case:
    """One task on one base: what to train on, how to choose, what to report."""

    name: str
    base: Base
    train: Dataset
    dev: Suite
    test: Suite
    general: Suite
    prompts: list[str]
    plain: Settings
    ours: Settings
    grid: tuple[float, ...]


def builtin_cases(tasks: list[str]) -> Iterator[Case]:
    """The demo's tasks on the built-in base, its own training defaults on both sides but for KL."""
    from inlay.builtin.tasks import rows

    base = load_base(base_path())
    ours = settings_for(base_path())
    for task in tasks:
        yield Case(
            name=f"built-in base, {task}",
            base=base,
            train=read_dataset(rows(task, "train", 1600, 7), name=task),
            dev=Suite.of_rows(f"{task}-dev", rows(task, "dev", 200, 7)),
            test=Suite.of_rows(f"{task}-test", rows(task, "test", 400, 7)),
            general=Suite.load("general-v1"),
            prompts=read_prompts(general_prompts_path()),
            plain=ours.replaced(kl=0.0),
            ours=ours,
            grid=(1e-3, 3e-3, 5e-3),
        )


def mini_instruct_cases(tasks: list[str]) -> Iterator[Case]:
    """Real tasks on mini-instruct: r=8, alpha 16, batch 16; plain LoRA five epochs, ours ten."""
    data = Path(os.environ["INLAY_TEST_DATA"])
    base = load_base(data / "models" / "mini-instruct")
    plain = Settings(rank=8, alpha=16.0, epochs=5, kl=0.0)
    for task in tasks:
        folder = data / "tasks" / task
        yield Case(
            name=f"mini-instruct, {task}",
            base=base,
            train=read_dataset(folder / "train.jsonl", name=task),
            dev=Suite.load(folder / "dev.jsonl", name=f"{task}-dev"),
            test=Suite.load(folder / "test.jsonl", name=f"{task}-test"),
            general=Suite.load(data / "suites" / "general"),
            prompts=read_prompts(data / "replay" / "general_prompts.jsonl"),
            plain=plain,
            ours=plain.replaced(kl=1.0, kl_batch_size=8, epochs=10),
            grid=(1e-3, 3e-3, 5e-3),
        )


def run(
    case: Case, settings: Settings, answers: list[str] | None, before: dict[str, EvalResult]
) -> dict[str, Any]:
    """Train once; dev and test scores and what was forgotten, in fractions."""
    general = (case.prompts, answers) if answers is not None else None
    fitted = fit(case.base, case.train, settings, general=general)
    chat = Chat(case.base, model=fitted.model)  # type: ignore[arg-type]
    after = {s.name: evaluate_model(chat, s, subject="run") for s in (case.dev, case.test, case.general)}
    release(fitted)
    report = compare(
        before[case.general.name],
        after[case.general.name],
        targets=[(before[case.test.name], after[case.test.name])],
    )
    return {
        "rate": settings.learning_rate,
        "steps": fitted.steps,
        "seconds": fitted.seconds,
        "dev": after[case.dev.name].score,
        "test": after[case.test.name].score,
        "report": report,
    }


def described(row: dict[str, Any]) -> str:
    """One row of the frontier in words."""
    report = row["report"]
    low, high = report.interval
    return (
        f"rate {row['rate']:<6g} {row['steps']:>4} steps {row['seconds']:>4.0f} s  "
        f"dev {100 * row['dev']:>5.1f}%  test {100 * row['test']:>5.1f}%  lost {100 * report.lost:>5.1f} "
        f"[{100 * low:.1f}, {100 * high:.1f}], upper bound {100 * report.upper:.1f} (n={report.held_out.n})"
    )


def frontier(case: Case, sides: list[str]) -> None:
    """Both sides over the grid, then the row of each that dev accuracy chooses."""
    bare = Chat(case.base)
    before = {s.name: evaluate_model(bare, s) for s in (case.dev, case.test, case.general)}
    answers = base_answers(case.base, case.prompts, max_new_tokens=ANSWER_TOKENS)
    print(f"\n{case.name}: {len(case.train)} rows; test n={len(case.test)}", flush=True)
    held_out = before[case.general.name].split(True)
    known = 100 * sum(held_out) / len(held_out)
    print(f"base: test {100 * before[case.test.name].score:.1f}%, held-out skills {known:.1f}%", flush=True)
    chosen = {}
    for side in sides:
        settings = {"plain": case.plain, "ours": case.ours}[side]
        rows = []
        for rate in case.grid:
            kl_answers = answers if settings.kl > 0 else None
            row = run(case, settings.replaced(learning_rate=rate), kl_answers, before)
            rows.append(row)
            print(f"{side:<6} {described(row)}", flush=True)
        chosen[side] = max(rows, key=lambda r: r["dev"])
    for side, row in chosen.items():
        print(f"chosen on dev, {side}: {described(row)}")
    if len(chosen) == 2:
        print(f"ours takes {chosen['ours']['seconds'] / chosen['plain']['seconds']:.2f} times as long")
        note = uninformative(chosen["plain"]["report"])
        if note:
            print(note)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", nargs="?", default="builtin", choices=["builtin", "mini-instruct"])
    parser.add_argument("--task", action="append", help="Only this task; repeatable.")
    parser.add_argument("--set", dest="changes", default="{}", help="JSON of settings to change on our side.")
    parser.add_argument("--side", action="append", choices=["plain", "ours"], help="Only this side.")
    parser.add_argument("--rates", help="Another grid, comma-separated.")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    os.environ.setdefault("INLAY_CACHE", tempfile.mkdtemp(prefix="inlay-bench-"))
    torch.set_num_threads(arguments.threads)
    if arguments.base == "mini-instruct" and "INLAY_TEST_DATA" not in os.environ:
        sys.exit("set INLAY_TEST_DATA to the folder of real data")
    makers = {"builtin": builtin_cases, "mini-instruct": mini_instruct_cases}
    tasks = {"builtin": ["ticket-queue", "order-slip"], "mini-instruct": ["banking_topics"]}
    start = time.perf_counter()
    print(f"{platform.machine()}, {arguments.threads} threads, {library_versions()}")
    for case in makers[arguments.base](arguments.task or tasks[arguments.base]):
        grid = tuple(float(r) for r in arguments.rates.split(",")) if arguments.rates else case.grid
        ours = case.ours.replaced(**json.loads(arguments.changes))
        frontier(replace(case, ours=ours, grid=grid), arguments.side or ["plain", "ours"])
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
