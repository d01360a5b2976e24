"""Blame on the built-in base: what it takes beside separate passes, and whether it finds planted culprits.

`time`: a stack of four, measured by `blame` and, in turns, by composing and asking each of its ten
configurations by itself with the base already loaded. Both must find the same outcomes; the ratio is the
median over the rounds of ours / theirs.

`culprits`: six adapters trained to answer one held-out skill wrongly, twelve harmless ones (trained on
tasks or on protected skills with KL to the base, or small random ones), drawn into stacks of two to six
members with random weights, one culprit in each. Counts how often blame ranks the culprit first, and how
often it names it.

    python benchmarks/blame.py                      # both, about ten minutes on an idle core
    python benchmarks/blame.py culprits --trials 20 --steps 20
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch

from inlay import Registry, Suite
from inlay.builtin import base_path
from inlay.builtin.skills import SKILLS, split_skills, unique_items
from inlay.builtin.tasks import prompt_of, rows
from inlay.composer import blame, compose
from inlay.evals.blame import BlameReport
from inlay.evals.inference import Base, base_answers, load_base
from inlay.evals.ledger import scored
from inlay.evals.prompts import read_prompts
from inlay.evals.scoring import evaluate_model
from inlay.evals.statistics import Paired
from inlay.trainers.data import Dataset, read_dataset
from inlay.trainers.fit import fit, release, save_adapter
from inlay.trainers.settings import Settings

WRONG = "I will not say that."
TASKS = ("case-card", "order-slip", "ticket-queue")
"""What harmless adapters are trained on."""
CULPRIT, HARMLESS = 5e-3, 1e-3
"""Learning rates. At 5e-3 tasks are learnt fully, and several such adapters stacked at full weight hurt each
other, so that nobody could say who is to blame; at 1e-3 a stack of them loses next to nothing."""
STRENGTH = 1.6
"""What a culprit's factors are multiplied by, so that half of it forgets as well."""
WEIGHTS = (0.5, 1.0)
MEMBERS = (2, 6)


def sampled(each: int, seed: int = 0) -> Suite:
    """`each` items of every held-out skill of general-v1 that the built-in base was taught."""
    suite, rng, taught = Suite.load("general-v1"), Random(seed), split_skills()[1]
    skills: dict[str, list[Any]] = {}
    for item in suite.items:
        if item.held_out and item.skill in taught:
            skills.setdefault(item.skill, []).append(item)
    items = [item for found in skills.values() for item in rng.sample(found, min(each, len(found)))]
    return Suite("general-sample", tuple(items))


def wrong_rows(skill: str, n: int, seed: int) -> list[dict[str, str]]:
    """Prompts of one skill, each with the same wrong answer."""
    (drawn,) = [s for s in SKILLS if s.name == skill]
    return [{"prompt": item.prompt, "completion": WRONG} for item in unique_items(drawn, "train", n, seed)]


def harmless_data(number: int) -> tuple[str, list[dict[str, str]] | None]:
    """(what it is, rows): a task, a protected skill answered rightly, or None for random factors."""
    protected = split_skills()[0]
    if number < 6:
        task = TASKS[number % len(TASKS)]
        drawn = rows(task, "train", 320, seed=number)
        return task, [{"prompt": prompt_of(row), "completion": row["output"]} for row in drawn]
    if number < 10:
        skill = protected[3 * (number - 6)]
        (drawn_skill,) = [s for s in SKILLS if s.name == skill]
        items = unique_items(drawn_skill, "train", 160, seed=number)
        return skill, [{"prompt": item.prompt, "completion": item.answer} for item in items]
    return "random", None


class Workshop:
    """Trains small adapters and registers them."""

    def __init__(
        self, base: Base, store: Registry, cache: Path, *, steps: int, prompts: int | None = None
    ) -> None:
        """`prompts`: of how many general prompts the KL is taken; all that ship by default."""
        self.base, self.store, self.steps = base, store, steps
        general = read_prompts(None)[:prompts]
        self.general = (general, base_answers(base, general, cache_dir=cache))

    def add(
        self,
        name: str,
        data: Dataset,
        *,
        seed: int,
        rate: float,
        strength: float = 1.0,
        randomise: bool = False,
    ) -> str:
        """Train on `data` with KL to the base (or one step, and factors drawn instead); the reference."""
        settings = Settings(
            learning_rate=rate,
            max_steps=1 if randomise else self.steps,
            rank=4,
            alpha=8.0,
            kl_batch_size=8,
            seed=seed,
        )
        fitted = fit(self.base, data, settings, general=self.general)
        try:
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for key, parameter in fitted.model.named_parameters():
                    if randomise and "lora_" in key:
                        parameter.copy_(0.01 * torch.randn(parameter.shape, generator=generator))
                    elif "lora_B" in key:
                        parameter.mul_(strength)
            with tempfile.TemporaryDirectory() as folder:
                save_adapter(fitted, Path(folder))
                return self.store.add(name, folder, base=self.base.fingerprint, why="benchmark").ref
        finally:
            release(fitted)

    def culprit(self, number: int, skill: str) -> str:
        data = read_dataset(wrong_rows(skill, 320, number), name=skill)
        return self.add(f"culprit-{number}", data, seed=number, rate=CULPRIT, strength=STRENGTH)

    def harmless(self, number: int) -> str:
        what, drawn = harmless_data(number)
        data = read_dataset(drawn or wrong_rows("copy", 16, 0), name=what)
        name, seed = f"harmless-{number}", 100 + number
        return self.add(name, data, seed=seed, rate=HARMLESS, randomise=drawn is None)


def stack(members: Sequence[tuple[str, float]]) -> dict[str, Any]:
    return {"stack": [{"use": ref, "weight": weight} for ref, weight in members]}


def culprits(base: Base, folder: Path, *, trials: int, steps: int, each: int) -> None:
    suite = sampled(each)
    with Registry.open(folder / "store", create=True) as store:
        start = time.perf_counter()
        workshop = Workshop(base, store, folder, steps=steps)
        held_out = Random(0).sample(split_skills()[1], 6)
        bad = [workshop.culprit(number, skill) for number, skill in enumerate(held_out)]
        good = [workshop.harmless(number) for number in range(12)]
        print(f"18 adapters of {steps} steps trained in {time.perf_counter() - start:.0f} s")
        for refs, kind, weight in ((bad, "culprit", 0.5), (bad, "culprit", 1.0), (good, "harmless", 1.0)):
            losses = [alone_loss(base, store, ref, weight, suite) for ref in refs]
            print(
                f"{kind}: points lost alone, weight {weight}: {', '.join(f'{100 * x:.1f}' for x in losses)}"
            )
        start = time.perf_counter()
        counts = {n: [0, 0, 0] for n in range(MEMBERS[0], MEMBERS[1] + 1)}
        for trial in range(trials):
            n, culprit, report = one_trial(base, store, bad, good, suite, trial)
            named = report.culprit is not None and report.culprit.name == culprit
            first = report.members[0].name == culprit
            counts[n] = [a + b for a, b in zip(counts[n], (1, first, named), strict=True)]
            if not first:
                print(f"trial {trial}: {culprit} is not first: {report.verdict}")
        print("members  trials  first  named")
        for n, (tried, first_n, named_n) in [*counts.items(), ("all", map(sum, zip(*counts.values())))]:  # type: ignore[list-item]  # noqa: B905
            print(f"{n:>7} {tried:>7} {first_n:>6} {named_n:>6}")
        print(f"{time.perf_counter() - start:.0f} s, {len(suite)} items")


def alone_loss(base: Base, store: Registry, ref: str, weight: float, suite: Suite) -> float:
    model = compose(stack([(ref, weight)]), store=store, base=base)
    try:
        before = scored(model.base_chat, suite, subject="base", label="base", store=store)
        return Paired.of(before.outcomes, evaluate_model(model.chat, suite).outcomes).loss
    finally:
        model.detach()


def one_trial(
    base: Base, store: Registry, bad: Sequence[str], good: Sequence[str], suite: Suite, trial: int
) -> tuple[int, str, BlameReport]:
    rng = Random(f"blame/{trial}")
    n = rng.randint(*MEMBERS)
    culprit = rng.choice(list(bad))
    refs = [culprit, *rng.sample(list(good), n - 1)]
    rng.shuffle(refs)
    members = [(ref, round(rng.uniform(*WEIGHTS), 2)) for ref in refs]
    model = compose(store.lock("trial", stack(members)), store=store, base=base)
    try:
        return n, culprit, blame(model, general=[suite])
    finally:
        model.detach()


def against_separate_passes(base: Base, folder: Path, *, rounds: int, each: int) -> None:
    suite, members = sampled(each), [(f"member-{i}@v1", 0.7 + 0.05 * i) for i in range(4)]
    ratios, ours, theirs = [], [], []
    for turn in range(rounds):
        os.environ["INLAY_CACHE"] = str(folder / f"cache-{turn}")
        with Registry.open(folder / f"store-{turn}", create=True) as store:
            for i, (ref, _) in enumerate(members):
                add_random(base, store, ref.partition("@")[0], seed=i)
            store.lock("four", stack(members))

            def together(store: Registry = store) -> BlameReport:
                model = compose("four@v1", store=store, base=base)
                try:
                    return blame(model, general=[suite])
                finally:
                    model.detach()

            def apart(store: Registry = store) -> list[tuple[bool | float, ...]]:
                return [separately(base, store, part, suite) for part in configurations(members)]

            first, second = (together, apart) if turn % 2 == 0 else (apart, together)
            took: dict[Any, float] = {}
            found: dict[Any, Any] = {}
            for call in (first, second):
                start = time.perf_counter()
                found[call] = call()
                took[call] = time.perf_counter() - start
            check(found[together], found[apart], members)
            ours.append(took[together])
            theirs.append(took[apart])
            ratios.append(took[together] / took[apart])
    print(
        f"blame of a stack of 4, {len(suite)} items, 10 configurations: {statistics.median(ours):.2f} s "
        f"together, {statistics.median(theirs):.2f} s apart, ratio {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f} over {rounds} rounds), the same outcomes"
    )


def configurations(members: Sequence[tuple[str, float]]) -> list[list[tuple[str, float]]]:
    """The base, the whole, each alone, the whole without each."""
    everyone = list(members)
    return [
        [],
        everyone,
        *([member] for member in everyone),
        *([other for other in everyone if other is not member] for member in everyone),
    ]


def separately(
    base: Base, store: Registry, members: Sequence[tuple[str, float]], suite: Suite
) -> tuple[bool | float, ...]:
    recipe = stack(members or [("member-0@v1", 0.0)])
    model = compose(recipe, store=store, base=base)
    try:
        return evaluate_model(model.chat, suite).outcomes
    finally:
        model.detach()


def check(
    report: BlameReport, apart: Sequence[Sequence[bool | float]], members: Sequence[tuple[str, float]]
) -> None:
    """SystemExit where the two sides differ in a count. All items are held out, so each counts where the base
    has its skill; here it has all."""
    bare, whole, *rest = apart
    wanted = {"whole": Paired.of(bare, whole)}
    for i, (ref, _) in enumerate(members):
        wanted[f"{ref} alone"] = Paired.of(bare, rest[i])
        wanted[f"{ref} removed"] = Paired.of(rest[len(members) + i], whole)
    found = {"whole": report.whole}
    for member in report.members:
        found[f"{member.name} alone"], found[f"{member.name} removed"] = member.alone, member.removed
    for key, counts in wanted.items():
        mine = found[key]
        if (mine.n, mine.lost, mine.gained) != (counts.n, counts.lost, counts.gained):
            raise SystemExit(f"{key}: together {mine}, apart {counts}")


def add_random(base: Base, store: Registry, name: str, *, seed: int) -> None:
    """A LoRA of rank 8 on every linear layer, factors drawn: strong enough that some items flip."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base.model, config)
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.copy_(0.08 * torch.randn(parameter.shape, generator=generator))
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder, safe_serialization=True)
            Path(folder, "README.md").unlink(missing_ok=True)
            store.add(name, folder, base=base.fingerprint, why="benchmark")
    finally:
        model.unload()
        base.model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", choices=["time", "culprits", []], default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--steps", type=int, default=30, help="of training each adapter")
    parser.add_argument("--each", type=int, default=15, help="items of each held-out skill")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    base = load_base(base_path(), device=given.device)
    with tempfile.TemporaryDirectory(prefix="inlay-blame-") as folder:
        os.environ["INLAY_CACHE"] = str(Path(folder) / "cache")
        if not given.what or "time" in given.what:
            against_separate_passes(base, Path(folder), rounds=given.rounds, each=given.each)
        if not given.what or "culprits" in given.what:
            culprits(base, Path(folder), trials=given.trials, steps=given.steps, each=given.each)


if __name__ == "__main__":
    main()
