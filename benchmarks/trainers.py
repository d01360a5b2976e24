"""Learning against forgetting: plain LoRA, full fine-tuning, replay, Inlay's default and its own full method.

All train on the same rows with the same batch, schedule and number of steps; the rate of each is chosen on
dev accuracy from the same grid with one seed, then three seeds are trained with it. The test set and the
held-out general skills are looked at afterwards. Then the tasks in sequence, each going on from the one
before: plain LoRA against Inlay's default with `keep_parent`.

    python benchmarks/trainers.py builtin                 # three demo tasks on the built-in base
    INLAY_TEST_DATA=… python benchmarks/trainers.py real  # banking topics and clinc domains on mini-instruct
    python benchmarks/trainers.py sequence                # three demo tasks one after the other
    python benchmarks/trainers.py draw --keep FILE --figure FILE

`--keep FILE` adds a line of JSON for each training to FILE, and `--figure FILE` draws what was kept, or what
this call measured, as SVG; `--only`, `--side`, `--steps`, `--rates` and `--seeds` make it shorter.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import inlay
from inlay import Registry
from inlay.builtin import base_path, general_prompts_path
from inlay.composer import compose
from inlay.evals import Suite, compare, uninformative
from inlay.evals.inference import Base, Chat, base_answers, load_base
from inlay.evals.prompts import read_prompts
from inlay.evals.scoring import EvalResult, evaluate_model, library_versions
from inlay.evals.transfer import backward_transfer, forgetting_measure
from inlay.trainers.data import Dataset, read_dataset
from inlay.trainers.fit import fit, release
from inlay.trainers.run import ANSWER_TOKENS
from inlay.trainers.settings import Settings, settings_for

DEMO_TASKS = ("ticket-queue", "order-slip", "case-card")
REAL_TASKS = ("banking_topics", "clinc_domain")
GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
SIDES: dict[str, dict[str, Any]] = {
    "plain LoRA": {"kl": 0.0},
    "full fine-tuning": {"kl": 0.0, "method": "full"},
    "replay": {"kl": 0.0, "replay": 0.5},
    "Inlay": {},
    "Inlay, full": {"method": "full", "rank": 64},
}
"""What of the settings each side changes."""


@dataclass(frozen=True)
class Case:
    """One task on one base. `settings`: Inlay's, for this base."""

    name: str
    base: Base
    train: Dataset
    dev: Suite
    test: Suite
    general: Suite
    prompts: list[str]
    settings: Settings


@dataclass(frozen=True)
class Trained:
    """What one training came to: scores in fractions, `report` None where only dev was asked."""

    rate: float
    seed: int
    steps: int
    seconds: float
    dev: float
    test: float = float("nan")
    report: Any = None


def demo_cases(steps: int) -> Iterator[Case]:
    """Demo tasks on the built-in base, with its own training defaults."""
    from inlay.builtin.tasks import rows

    base = load_base(base_path(), device="cpu")
    for task in DEMO_TASKS:
        yield Case(
            name=f"built-in base, {task}",
            base=base,
            train=read_dataset(rows(task, "train", 1600, 7), name=task),
            dev=Suite.of_rows(f"{task}-dev", rows(task, "dev", 200, 7)),
            test=Suite.of_rows(f"{task}-test", rows(task, "test", 300, 7)),
            general=held_out(Suite.load("general-v1")),
            prompts=read_prompts(general_prompts_path()),
            settings=settings_for(base_path(), max_steps=steps),
        )


def real_cases(steps: int) -> Iterator[Case]:
    """Real tasks on mini-instruct: rank 8, batch 16, eight general prompts a step."""
    data = Path(os.environ["INLAY_TEST_DATA"])
    base = load_base(data / "models" / "mini-instruct", device="cpu")
    for task in REAL_TASKS:
        folder = data / "tasks" / task
        dev, test = (Suite.load(folder / f"{part}.jsonl", name=f"{task}-{part}") for part in ("dev", "test"))
        yield Case(
            name=f"mini-instruct, {task}",
            base=base,
            train=read_dataset(folder / "train.jsonl", name=task),
            dev=Suite(dev.name, dev.items[:200]),
            test=Suite(test.name, test.items[:400]),
            general=held_out(Suite.load(data / "suites" / "general")),
            prompts=read_prompts(data / "replay" / "general_prompts.jsonl"),
            settings=Settings(rank=8, alpha=16.0, kl_batch_size=8, max_steps=steps),
        )


def held_out(suite: Suite, each: int = 100) -> Suite:
    """At most `each` items of every held-out skill."""
    taken: dict[str, int] = {}
    items = []
    for item in suite.items:
        if item.held_out and taken.setdefault(item.skill, 0) < each:
            taken[item.skill] += 1
            items.append(item)
    return Suite(f"{suite.name}-held-out", tuple(items))


def trained(
    case: Case, settings: Settings, answers: list[str], before: dict[str, EvalResult] | None
) -> Trained:
    """One training; dev alone without `before`, the scores of the base. Full fine-tuning is judged as the
    model that it makes, Inlay's as the adapter that it extracts and would register."""
    fitted = fit(case.base, case.train, settings, general=(case.prompts, answers))
    whole = fitted.whole if settings.kl == 0 else None
    chat = Chat(case.base, model=whole or fitted.model)
    asked = [case.dev] if before is None else [case.dev, case.test, case.general]
    try:
        after = {s.name: evaluate_model(chat, s, subject="run") for s in asked}
    finally:
        release(fitted)
    row = Trained(
        settings.learning_rate, settings.seed, fitted.steps, fitted.seconds, after[case.dev.name].score
    )
    if before is None:
        return row
    report = compare(
        before[case.general.name],
        after[case.general.name],
        targets=[(before[case.test.name], after[case.test.name])],
    )
    return replace(row, test=after[case.test.name].score, report=report)


def frontier(
    case: Case, sides: Sequence[str], rates: Sequence[float], seeds: int, keep: Path | None
) -> dict[str, list[Trained]]:
    """Every side at the rate that dev accuracy chose for it, a row a seed."""
    bare = Chat(case.base)
    before = {s.name: evaluate_model(bare, s) for s in (case.test, case.general)}
    answers = base_answers(case.base, case.prompts, max_new_tokens=ANSWER_TOKENS)
    known = 100 * before[case.general.name].score
    print(f"\n{case.name}: {len(case.train)} rows, {case.settings.max_steps} steps, test n={len(case.test)}, "
          f"held-out skills n={len(case.general)} (the base: {100 * before[case.test.name].score:.1f}%, "
          f"{known:.1f}%)", flush=True)  # fmt: skip
    found: dict[str, list[Trained]] = {}
    for side in sides:
        settings = case.settings.replaced(**SIDES[side])
        dev = {rate: trained(case, settings.replaced(learning_rate=rate), answers, None) for rate in rates}
        print(f"{side:<17} dev % by rate:", *(f"{r:g}: {100 * row.dev:.1f}" for r, row in dev.items()))
        rate = max(rates, key=lambda r: dev[r].dev)
        found[side] = []
        for seed in range(seeds):
            row = trained(case, settings.replaced(learning_rate=rate, seed=seed), answers, before)
            found[side].append(row)
            print(f"{side:<17} {described(row)}", flush=True)
            if keep is not None:
                with keep.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"case": case.name, "side": side, **plain(row)}) + "\n")
    for side, runs in found.items():
        print(f"{side:<17} {summary(runs)}")
    for mine in ("Inlay", "Inlay, full"):
        if mine in found and len(found) > 1:
            print(dominated(found, mine))
    if "plain LoRA" in found and (note := uninformative(found["plain LoRA"][0].report)):
        print(note)
    return found


def plain(row: Trained) -> dict[str, Any]:
    """One training as plain JSON; scores and shares lost in fractions."""
    low, high = row.report.interval
    return {
        "rate": row.rate, "seed": row.seed, "steps": row.steps, "seconds": round(row.seconds, 1),
        "dev": round(row.dev, 4), "test": round(row.test, 4), "lost": round(row.report.lost, 4),
        "low": round(low, 4), "high": round(high, 4),
    }  # fmt: skip


def described(row: Trained) -> str:
    """One training in words, with 95% intervals."""
    low, high = row.report.interval
    return (
        f"seed {row.seed}  rate {row.rate:<6g} {row.seconds:>4.0f} s  dev {100 * row.dev:>5.1f}%  "
        f"test {100 * row.test:>5.1f}%  lost {100 * row.report.lost:>5.1f} [{100 * low:.1f}, "
        f"{100 * high:.1f}]"
    )


def summary(runs: Sequence[Trained]) -> str:
    """Means over the seeds, the least and the most in brackets."""
    test, lost = ([100 * value for value in values] for values in pairs(runs))
    return (
        f"mean of {len(runs)}: test {statistics.mean(test):.1f}% [{min(test):.1f}, {max(test):.1f}], "
        f"lost {statistics.mean(lost):.1f} points [{min(lost):.1f}, {max(lost):.1f}], rate {runs[0].rate:g}"
    )


def pairs(runs: Sequence[Trained]) -> tuple[list[float], list[float]]:
    """(test scores, shares lost), a value a seed."""
    return [row.test for row in runs], [row.report.lost for row in runs]


def dominated(found: dict[str, list[Trained]], mine: str) -> str:
    """How one side stands to each other one; a difference counts that is larger than the seeds' spread."""
    ours = found[mine]
    said = []
    for side, runs in found.items():
        if side == mine:
            continue
        gain, kept = (
            [b - a for a, b in zip(theirs, own, strict=True)]
            for theirs, own in zip(pairs(runs), pairs(ours), strict=True)
        )
        target, lost = 100 * statistics.mean(gain), 100 * statistics.mean(kept)
        said.append(f"{target:+.1f} points of target and {lost:+.1f} points lost against {side}")
    return f"{mine}: " + "; ".join(said)


def sequence(steps: int, seeds: int, rates: dict[str, float], only: Sequence[str]) -> None:
    """The demo's tasks one after the other, each from the version before; what the last one can still do."""
    cases = list(demo_cases(steps))
    base, general = cases[0].base, cases[0].general
    sides: dict[str, dict[str, Any]] = {
        "plain LoRA": {"kl": 0.0},
        "Inlay": {"keep_parent": 1.0},
    }
    sides = {side: changes for side, changes in sides.items() if side in only}
    forgotten: dict[str, list[float]] = {side: [] for side in sides}
    for seed in range(seeds):
        for side, changes in sides.items():
            matrix, lost = walked(
                cases, base, general, {**changes, "learning_rate": rates[side], "seed": seed}
            )
            learned = range(1, len(cases) + 1)
            bwt, measure = backward_transfer(matrix, learned), forgetting_measure(matrix, learned)
            assert bwt.value is not None and measure.value is not None
            forgotten[side].append(measure.value)
            print(f"{side:<11} seed {seed}: after each task "
                  + " | ".join(" ".join(f"{100 * cell:5.1f}" for cell in row) for row in matrix[1:])
                  + f"; BWT {100 * bwt.value:.1f}, forgetting {100 * measure.value:.1f}, held-out general "
                  f"lost {100 * lost:.1f} points", flush=True)  # fmt: skip
    means = {side: statistics.mean(values) for side, values in forgotten.items()}
    print("forgetting of earlier tasks, points:", ", ".join(f"{s} {100 * m:.1f}" for s, m in means.items()))
    if len(means) < 2:
        return
    plain, ours = means["plain LoRA"], means["Inlay"]
    less = f"{100 * (1 - ours / plain):.0f}% less" if plain >= 0.03 else "plain forgets under 3 points"
    print(less)


def walked(
    cases: Sequence[Case], base: Base, general: Suite, settings: dict[str, Any]
) -> tuple[list[list[float]], float]:
    """(R[i][j]: score after i tasks on task j, row 0 the base's; share of held-out general skills lost)."""
    chat = Chat(base)
    matrix = [[evaluate_model(chat, case.test).score for case in cases]]
    before = evaluate_model(chat, general)
    with tempfile.TemporaryDirectory() as folder:
        store = Registry.open(Path(folder) / "adapters_store", create=True)
        version = None
        for case in cases:
            # A first task has no parent that could be kept.
            changes = {k: v for k, v in settings.items() if version is not None or k != "keep_parent"}
            version = inlay.train(
                base, case.train, name="line", store=store, start=version, general=[general],
                max_steps=case.settings.max_steps, **changes,
            ).version  # fmt: skip
            model = compose(version, store=store, base=base)
            try:
                matrix.append([evaluate_model(model.chat, each.test).score for each in cases])
                after = evaluate_model(model.chat, general)
            finally:
                model.detach()
    return matrix, compare(before, after).lost


def drawn(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The frontier of rows as `--keep` writes them, as SVG: a panel a case, a mark a seed."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "inlay"
    from matplotlib import pyplot

    cases = list(dict.fromkeys(row["case"] for row in rows))
    across = min(3, len(cases))
    down = -(-len(cases) // across)
    figure, grid = pyplot.subplots(down, across, figsize=(4 * across, 3.6 * down), squeeze=False)
    panels = list(grid.flat)
    for empty in panels[len(cases) :]:
        empty.set_axis_off()
    for panel, name in zip(panels, cases, strict=False):
        for side, mark in zip(SIDES, "osv^D", strict=True):
            held = [row for row in rows if (row["case"], row["side"]) == (name, side)]
            lost, test = ([100 * row[key] for row in held] for key in ("lost", "test"))
            panel.plot(lost, test, mark, label=side, alpha=0.75)
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("held-out general skills lost, points")
        panel.set_ylabel("task, %")
        panel.set_xlim(-4, 104)
        panel.set_ylim(-4, 104)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    print(f"figure: {path.name}")


def rows_of(found: dict[str, dict[str, list[Trained]]], keep: Path | None) -> list[dict[str, Any]]:
    """What is drawn: all that was ever kept in `keep`, else what was found now."""
    if keep is not None:
        return [json.loads(line) for line in keep.read_text(encoding="utf-8").splitlines()]
    return [
        {"case": case, "side": side, **plain(row)}
        for case, sides in found.items()
        for side, runs in sides.items()
        for row in runs
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", default="builtin", choices=["builtin", "real", "sequence", "draw"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rates", default=",".join(f"{rate:g}" for rate in GRID))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", action="append", help="Only cases whose name has this; repeatable.")
    parser.add_argument("--side", action="append", choices=SIDES, help="Only this side; repeatable.")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--figure", type=Path)
    for side in ("plain", "our"):
        help = "For `sequence`: the rate that did best on dev over its tasks one by one."
        parser.add_argument(f"--{side}-rate", type=float, default=3e-3, help=help)
    given = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    print(f"{platform.machine()}, one thread, {library_versions()}")
    if given.what == "draw":
        drawn(rows_of({}, given.keep), given.figure)
    elif given.what == "sequence":
        best = {"plain LoRA": given.plain_rate, "Inlay": given.our_rate}
        sequence(given.steps, given.seeds, best, given.side or list(best))
    else:
        makers = {"builtin": demo_cases, "real": real_cases}
        rates = [float(rate) for rate in given.rates.split(",")]
        sides = given.side or list(SIDES)
        found = {
            case.name: frontier(case, sides, rates, given.seeds, given.keep)
            for case in makers[given.what](given.steps)
            if not given.only or any(part in case.name for part in given.only)
        }
        if given.figure:
            drawn(rows_of(found, given.keep), given.figure)
    print(f"{time.perf_counter() - begun:.0f} s in all")


if __name__ == "__main__":
    main()
