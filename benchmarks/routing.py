"""Every router on the same adapters and prompts: where it sends them, and what that costs.

    python benchmarks/routing.py                        # the built-in base, six demo tasks
    INLAY_TEST_DATA=… python benchmarks/routing.py real   # mini-instruct, four real tasks
    python benchmarks/routing.py many     # a router for 1,000 experts: seconds to fit and to decide
    python benchmarks/routing.py decode                 # what a route adds to decoding, in ratios

The first two train their adapters where the cache holds none (routing_worlds.py). Tests are worded as nothing
that the routers were fitted on; real ones once more without any instruction.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from routing_worlds import World, builtin, real

from inlay.builtin import base_path
from inlay.builtin.lexicon import ADJECTIVES, NOUNS
from inlay.composer import compose, forgetting, lock
from inlay.composer.routers import Centroid, Fitted, Material, Probe, Words
from inlay.composer.routers.seen import encoded, see
from inlay.evals.inference import load_base
from inlay.evals.prompts import read_general
from inlay.evals.routing import GENERAL, OUTSIDE, TASK, RoutingReport

ROUTERS = ("probe", "words", "centroid", "arrow")
MANY, EACH = 1000, 12
DECODE_ROUNDS = 41


def table(world: World, each: int, routers: Sequence[str]) -> None:
    """One line a router; percent. `each`: examples an expert."""
    print(f"{each} examples an expert, {len(read_general(world.general_prompts))} general prompts")
    print("router     right  general to base  outside to base  of the oracle  lost  upper bound   n  fit s")
    outside = [prompt for prompts in world.outside.values() for prompt in prompts]
    for by in routers:
        recipe = {"route": {"by": by, "experts": list(world.experts.values())}}
        begun = time.perf_counter()
        made = lock(
            world.store, f"{by}-{each}", recipe, base=world.base,
            general_prompts=world.general_prompts, examples_each=each,
            examples=world.examples if by != "arrow" else None,
        )  # fmt: skip
        fit = time.perf_counter() - begun
        model = compose(made, store=world.store, base=world.base)
        aims = {suite.name: name for name, suite in world.tests.items()}
        try:
            report = forgetting(
                model, general=[world.general], target=list(world.tests.values()), routing=aims,
                out_of_scope=outside,
            )  # fmt: skip
        finally:
            model.detach()
        print(f"{by:<10} {_line(report.routing)}  {100 * report.lost:5.2f}  {100 * report.upper:11.2f}  "
              f"{report.held_out.n:4}  {fit:.1f}", flush=True)  # fmt: skip


def _line(routing: Any) -> str:
    report = RoutingReport.from_dict(routing)
    shares = []
    for name in (TASK, GENERAL, OUTSIDE):
        group = report.routes[0].group(name)
        shares.append("-" if group is None else f"{100 * group.share.value:.1f}")
    oracle = report.oracle_share(counted=True)
    shares.append("-" if oracle is None else f"{100 * oracle:.1f}")
    return f"{shares[0]:>5}  {shares[1]:>15}  {shares[2]:>15}  {shares[3]:>13}"


def many() -> None:
    """A thousand kinds of requests in the words of the built-in base, a dozen of each."""
    base = load_base(base_path(), device="cpu")
    rng = Random(0)
    kinds = rng.sample([f"Fill in the {a} {b} form." for a in ADJECTIVES for b in NOUNS], MANY)
    examples = [[f"{kind}\n{' '.join(rng.sample(NOUNS, 4))}" for _ in range(EACH)] for kind in kinds]
    asked = [f"{kind}\n{' '.join(rng.sample(NOUNS, 4))}" for kind in kinds[::10]]
    for kind in (Probe, Words, Centroid):
        _many(kind, Material(base, examples, read_general(None), kinds), asked)


def _many(kind: type[Fitted], material: Material, asked: list[str]) -> None:
    begun = time.perf_counter()
    router = kind.fit(material)
    fit = time.perf_counter() - begun
    right, decide = 0, []
    for number, prompt in enumerate(asked):
        seen = see(material.base, encoded(material.base, [prompt]))
        _ = seen.pooled  # the base's pass is not the router's
        begun = time.perf_counter()
        choice = router.choose(seen)[0]
        decide.append(time.perf_counter() - begun)
        right += choice.expert == 10 * number
    print(f"{kind.name:<9} {MANY} experts: fit {fit:.1f} s with the base's passes, decision "
          f"{1000 * statistics.median(decide):.2f} ms (median), {right} of {len(asked)} right, "
          f"{len(router.to_bytes()) / 1e6:.0f} MB", flush=True)  # fmt: skip


def decode() -> None:
    """Tokens after the first, batches of one and of sixteen: a route against the adapter fixed."""
    world = builtin()
    experts = list(world.experts.values())
    made = lock(world.store, "decode", {"route": {"by": "probe", "experts": experts}}, base=world.base)
    tests = list(world.tests.values())
    for what, prompts in (("1 prompt", tests[0].prompts()[:1]), ("16 prompts for 6 experts", _mixed(tests))):
        seconds: dict[str, list[float]] = {"fixed": [], "routed": []}
        models = {"fixed": experts[0], "routed": made}
        for part in range(DECODE_ROUNDS):
            # In turn first: what one leaves in the caches and in the clock of the machine meets both.
            for name, target in sorted(models.items(), reverse=part % 2 == 1):
                model = compose(target, store=world.store, base=world.base)
                try:
                    short, long = (_timed(model, prompts, n) for n in (2, 66))
                    seconds[name].append((long - short) / 64)
                finally:
                    model.detach()
        ratios = [r / f for r, f in zip(seconds["routed"], seconds["fixed"], strict=True)]
        quartiles = statistics.quantiles(ratios)
        print(f"decode, {what}: routed {statistics.median(ratios):.3f} of the fixed adapter's time a token "
              f"(median of {len(ratios)}; quartiles {quartiles[0]:.3f} and {quartiles[2]:.3f})")  # fmt: skip


def _mixed(tests: list[Any]) -> list[Any]:
    return [prompt for i in range(3) for suite in tests for prompt in suite.prompts()[i : i + 1]][:16]


def _timed(model: Any, prompts: list[Any], tokens: int) -> float:
    begun = time.perf_counter()
    model.generate(prompts, max_new_tokens=tokens, min_new_tokens=tokens)
    return time.perf_counter() - begun


def _worlds(what: str) -> Iterator[tuple[str, World]]:
    if what == "builtin":
        yield "held-out wordings", builtin()
        return
    data = Path(os.environ["INLAY_TEST_DATA"])
    for title, removed in (("held-out wordings", False), ("instruction removed", True)):
        yield title, real(data, removed=removed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=["builtin", "real", "many", "decode"], default="builtin")
    parser.add_argument("--router", action="append", choices=ROUTERS, help="Only this one; repeatable.")
    given = parser.parse_args()
    what = given.what
    torch.set_num_threads(1)
    if what == "many":
        many()
    elif what == "decode":
        decode()
    else:
        for title, world in _worlds(what):
            for each in (12, 64, 256):
                print(f"\n{title}")
                table(world, each, given.router or ROUTERS)


if __name__ == "__main__":
    main()
