"""`inlay compose --auto` against a full grid over the same space: seconds, and what is lost on test items.

`unlike`: four demo tasks on the built-in base, 24 labelled examples each. `alike`: two adapters of one task,
each trained on half of its queues, which a stack may keep both. Both sides measure in one loaded model, take
by the same policy on the same dev items, and start from an empty cache; the grid measures every candidate on
all dev items and does not stop. Where both measured one candidate, the counts must be the same.

    python benchmarks/auto.py                 # both worlds; trains what is missing first
    python benchmarks/auto.py alike --seeds 5
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import routing_worlds as worlds
import torch

from inlay import Registry
from inlay.builtin import base_path, general_prompts_path
from inlay.builtin.tasks import prompt_of, rows
from inlay.composer import auto
from inlay.composer.choosing.budget import Budget
from inlay.composer.choosing.candidates import Candidate, alone, cat, merge, route, stack
from inlay.composer.choosing.items import STAGES
from inlay.composer.choosing.loaded import loaded, tested
from inlay.composer.choosing.material import Given, Material
from inlay.composer.choosing.policy import Bounds, Ranked, choose
from inlay.evals import Suite
from inlay.evals.frontier import Point
from inlay.evals.inference import Base, load_base
from inlay.evals.prompts import read_general, read_prompts

TASKS = ("ticket-queue", "order-slip", "return-receipt", "team-record")
LABELLED = 24
"""Labelled examples of each adapter, of a split that is neither trained nor judged on."""
BOUNDS = {"unlike": Bounds(0.05, 0.95), "alike": Bounds(0.05, 0.5)}
"""Of the second world half of each member is asked, which several static compositions keep: there is
something to choose between."""
WEIGHTS = {4: (0.3, 0.5, 0.75, 1.0), 2: (0.3, 0.5, 0.64, 0.75, 0.86, 1.0, 1.15, 1.3)}
"""Of each member of a stack, by the number of members: what `auto` begins with, and what lies around it."""
STRENGTHS = (0.42, 0.6, 0.7, 0.85, 1.0, 1.15, 1.3, 1.5)
"""Of a merge and CAT, likewise."""


@dataclass(frozen=True)
class World:
    base: Base
    store: Registry
    adapters: Mapping[str, str]
    tests: Mapping[str, Suite]
    general: Suite
    labelled: Mapping[str, Sequence[tuple[str, str]]]


def unlike() -> World:
    world = worlds.builtin()
    return World(
        world.base,
        world.store,
        {task: world.experts[task] for task in TASKS},
        {task: world.tests[task] for task in TASKS},
        world.general,
        {task: pairs(rows(task, "dev", LABELLED, worlds.SEED)) for task in TASKS},
    )


def alike() -> World:
    """Adapters for three queues of `ticket-queue` each."""
    base, prompts = load_base(base_path(), device="cpu"), general_prompts_path()
    general, store = worlds.general_suite(set(read_prompts(prompts))), worlds.store_of("builtin")
    drawn = {
        split: rows("ticket-queue", split, 2 * n, worlds.SEED) for split, n in (("train", 800), ("dev", 60))
    }
    drawn["test"] = rows("ticket-queue", "test", 400, worlds.SEED, held_out_wordings=True)
    queues = sorted({queue_of(row) for row in drawn["train"]})
    adapters, tests, labelled = {}, {}, {}
    for number in (0, 1):
        name = f"queues-{'ab'[number]}"
        own = {
            split: [r for r in found if queue_of(r) in queues[number::2]] for split, found in drawn.items()
        }
        tests[name] = Suite.of_rows(name, own["test"])
        adapters[name] = worlds.adapter_of(base, store, name, own["train"], tests[name], general, prompts)
        labelled[name] = pairs(own["dev"][:LABELLED])
    return World(base, store, adapters, tests, general, labelled)


def queue_of(row: Mapping[str, str]) -> str:
    return row["output"].rpartition(" > ")[2]


def pairs(found: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    return [(prompt_of(dict(row)), row["output"]) for row in found]


def space(material: Material) -> list[Candidate]:
    """Every candidate of the grid."""
    members = len(material.versions)
    found = [alone(material, number) for number in range(members)]
    found += [route(material, by) for by in material.routes]
    found += [stack(material, weights) for weights in itertools.product(WEIGHTS[members], repeat=members)]
    found += [merge(material, method, s) for method in material.merges for s in STRENGTHS]
    return found + [cat(material, s) for s in STRENGTHS]


def grid(world: World, bounds: Bounds, seed: int) -> tuple[list[Ranked], Ranked | None, Point | None, float]:
    """All of them on all dev items: (points, choice, the choice on test items, seconds)."""
    start = time.perf_counter()
    versions = [world.store.resolve(ref) for ref in world.adapters.values()]
    budget = Budget(math.inf, time.monotonic)
    given = Given(
        world.store, versions, world.base, world.labelled, read_general(None), False, seed, budget, None
    )  # type: ignore[arg-type]
    aims = [(suite, list(world.adapters).index(task)) for task, suite in world.tests.items()]
    with loaded(given, [world.general], aims, bounds.retention) as (material, board):
        candidates = space(material)
        for ablation, part in board.own_parts(range(STAGES)):
            board.ask([ablation], [part])
        board.ask([each.ablation for each in candidates], board.items.of(range(STAGES)))
        found = [
            Ranked(each, board.point(each.name, each.kind, each.ablation, range(STAGES)))
            for each in candidates
        ]
        choice = choose(found, bounds, members=len(versions))
        on_test = None if choice is None else tested(board, choice.candidate)
    return found, choice, on_test, time.perf_counter() - start


def compare(name: str, world: World, folder: Path, seed: int) -> None:
    bounds = BOUNDS[name]
    os.environ["INLAY_CACHE"] = str(folder / "auto")
    start = time.perf_counter()
    ours = auto(
        list(world.adapters.values()), target=dict(world.tests), general=[world.general],
        examples=world.labelled, forget=bounds.forget, retention=bounds.retention, store=world.store,
        base=world.base, seed=seed,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    os.environ["INLAY_CACHE"] = str(folder / "grid")
    found, choice, on_test, theirs = grid(world, bounds, seed)
    check(ours.points, [each.point for each in found])
    print(f"\n{name}, seed {seed}: {', '.join(world.adapters)}; {ours.evidence.items}")
    print(ours.explanation)
    print("side, candidates, seconds, choice, on dev: learned, on test: learned, lost, at most, kept least")
    tried = [point for point in ours.points if point.kind != "base"]
    line("auto", len(tried), seconds, chosen(ours.points, ours.evidence.choice), ours.evidence.tested)
    line("grid", len(found), theirs, None if choice is None else choice.point, on_test)
    if ours.evidence.tested is not None and on_test is not None:
        print(
            f"difference on test items: {100 * (on_test.learned - ours.evidence.tested.learned):.1f} points"
        )
    statics = [each.point for each in found if each.static and each.candidate.kind != "alone"]
    mine = [point for point in tried if point.whole and point.kind not in ("route", "alone")]
    for side, points in (("auto", mine), ("grid", statics)):
        best = min(points, key=lambda p: (bounds.shortfall(p), -p.learned))
        kept = min((each.share for each in best.kept), default=math.nan)
        print(
            f"static nearest to the bounds by {side}: {best.name}, {100 * bounds.shortfall(best):.1f} points "
            f"off, learned {100 * best.learned:.1f}, kept least {100 * kept:.1f}"
        )


def chosen(points: Sequence[Point], name: str | None) -> Point | None:
    return next((point for point in points if point.name == name), None)


def line(side: str, candidates: int, seconds: float, dev: Point | None, test: Point | None) -> None:
    if dev is None or test is None:
        print(f"{side}  {candidates:>4} {seconds:>7.1f} s  nothing meets the guard")
        return
    kept = min((each.share for each in test.kept), default=math.nan)
    print(
        f"{side}  {candidates:>4} {seconds:>7.1f} s  {dev.name:<20} {100 * dev.learned:.1f}  "
        f"{100 * test.learned:.1f} {100 * test.lost:.1f} {100 * test.general.loss_upper:.1f} {100 * kept:.1f}"
    )


def check(ours: Sequence[Point], theirs: Sequence[Point]) -> None:
    """SystemExit where one candidate has other counts on the two sides."""
    known = {point.name: point for point in theirs}
    both = [point for point in ours if point.whole and point.name in known]
    for point in both:
        other = known[point.name]
        if (point.general, point.targets) != (other.general, other.targets):
            raise SystemExit(f"{point.name}: {point} by auto, {other} by the grid")
    print(f"{len(both)} candidates measured by both, with the same counts")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("worlds", nargs="*", choices=["unlike", "alike", []], default=[])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--seeds", type=int, default=1, help="how often items are dealt, CAT and routers learned"
    )
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name, make in (("unlike", unlike), ("alike", alike)):
        if not given.worlds or name in given.worlds:
            cache = os.environ.get("INLAY_CACHE")
            world = make()
            for seed in range(given.seeds):
                with tempfile.TemporaryDirectory(prefix="inlay-auto-") as folder:
                    compare(name, world, Path(folder), seed)
            if cache is None:
                os.environ.pop("INLAY_CACHE")
            else:
                os.environ["INLAY_CACHE"] = cache


if __name__ == "__main__":
    main()
