"""What routing is measured on: a base, adapters trained for it, and prompts of which it is known where they
belong.

Two worlds. `builtin`: the six demo tasks on the built-in base. `real`: four real tasks on mini-instruct,
found through INLAY_TEST_DATA. Training and the routers' examples use some wordings of a task's instruction,
tests others or none, so that a router cannot go by the instruction's own words. Adapters are kept in the
cache folder ($INLAY_CACHE) and found again by what they were trained on.

    python benchmarks/routing_worlds.py builtin       # trains what is missing; scores of all adapters
    INLAY_TEST_DATA=… python benchmarks/routing_worlds.py real
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from inlay import Registry
from inlay.builtin import base_path, general_prompts_path
from inlay.builtin.lexicon import CITIES, COLOURS, NAMES
from inlay.builtin.skills import SKILLS, split_skills, unique_items
from inlay.builtin.tasks import GOODS, TASKS, rows
from inlay.composer import compose
from inlay.evals import Suite
from inlay.evals.inference import Base, load_base
from inlay.evals.ledger import scored
from inlay.evals.prompts import read_prompts
from inlay.evals.routing import BASE, GENERAL, OUTSIDE, PROTECTED, TASK, floor_of
from inlay.registry import Version
from inlay.registry.fingerprint import cache_dir
from inlay.trainers import train
from inlay.trainers.data import Dataset, read_dataset
from inlay.trainers.run import EXAMPLES_KEPT
from inlay.trainers.settings import Settings, settings_for

SEED = 7
DEMO_ROWS, DEMO_TESTS = 1600, 200
MORE_ITEMS = 40
"""Unseen items of each held-out skill beyond the 60 in general-v1: 900 in all for the built-in base."""
REAL_ROWS, REAL_TESTS, OUTSIDE_EACH = 2000, 400, 200

Row = dict[str, str]


@dataclass(frozen=True)
class RealTask:
    """`source`: its folder. `wordings` of the instruction; nobody is shown the folder's own. `answer`: what
    is asked of a row."""

    source: str
    wordings: tuple[str, ...]
    epochs: int
    answer: Callable[[Row], str] = lambda row: row["output"]

    def split(self) -> tuple[list[str], list[str]]:
        """The wordings to train with and those held out, a third of them, drawn by seed."""
        drawn = Random(f"{SEED}/{self.source}").sample(self.wordings, len(self.wordings))
        held_out = len(drawn) // 3
        return drawn[held_out:], drawn[:held_out]


def _slots_named(row: Row) -> str:
    """ "date; time" of "date: tomorrow; time: 8 pm"."""
    return "; ".join(part.partition(":")[0].strip() for part in row["output"].split(";"))


REAL: dict[str, RealTask] = {
    "banking-topics": RealTask(
        "banking_topics",
        ("Name the topic.", "Topic of this bank message:", "What does the bank's customer write about?",
         "Which banking topic is it?", "Find the topic of the message.", "What is this customer's concern?",
         "Sort this message of a bank's customer.", "What is the customer's problem with the bank?",
         "Give the message a topic.", "Why does this customer write to us?", "The bank's topic for this:",
         "Label this question to the bank."),
        epochs=8,
    ),
    "clinc-domain": RealTask(
        "clinc_domain",
        ("Name the domain.", "Domain of this request:", "Which domain is asked for?",
         "What area is this about?", "Sort this request into a domain.",
         "Which part of the assistant should answer?", "Give the domain of what the user says.",
         "What field does this request belong to?", "Label this request with its domain.",
         "Where does this request to the assistant go?", "The area of this request:", "Find the domain."),
        epochs=4,
    ),
    "booking-details": RealTask(
        "restaurant8k_slots",
        ("Which booking details are given?", "Slots of this message:", "Which slots does the guest fill?",
         "Name the details of the booking.", "Find the slots.", "What does the guest tell about the booking?",
         "List the kinds of details in this message.", "What do we learn for the reservation?",
         "Which fields of the booking can be filled?", "The slots in what the guest says:",
         "Details of the table booking here:", "Label the booking details in this message."),
        epochs=5,
        answer=_slots_named,
    ),
    "study-verdict": RealTask(
        "pubmedqa_short",
        ("Yes, no or maybe?", "Verdict of this study:", "Does the study say yes?",
         "What does the conclusion say?", "Is the answer yes?", "Sum the conclusion up in a word.",
         "Answer the question from the text.", "What did the researchers find: yes, no or maybe?",
         "Judge the question by the text.", "Is it so, according to the study?", "The study's answer:",
         "Decide: yes, no or maybe."),
        epochs=8,
    ),
}  # fmt: skip
"""Real tasks. The details of a booking are asked for by name, since this base cannot copy their values; it
does not learn study verdicts beyond the most frequent answer, so these count for where they go, not for the
score."""
REAL_SETTINGS = {
    "rank": 8, "alpha": 16.0, "learning_rate": 5e-3, "batch_size": 16, "kl": 1.0, "kl_batch_size": 8,
}  # fmt: skip
NO_WORDING = 1 / 3
"""Share of a real task's training rows that come without any instruction."""


@dataclass(frozen=True)
class Asked:
    """A prompt, and where it belongs: `expected` is a task or "base"."""

    group: str
    kind: str
    item: str
    expected: str
    prompt: str


@dataclass(frozen=True)
class World:
    """`experts`: task -> reference of its adapter; `examples`: task -> training prompts, drawn by seed.
    `tests`: a suite a task, named as it is. `general`: only skills that the base has. `general_prompts`: the
    file of what the routers' base is fitted on; none is in `general`, and none of the skills that are held
    out. `outside`: kind -> prompts that are for nobody."""

    base: Base
    store: Registry
    experts: Mapping[str, str]
    examples: Mapping[str, Sequence[str]]
    tests: Mapping[str, Suite]
    general: Suite
    general_prompts: Path
    outside: Mapping[str, Sequence[str]]

    def asked(self) -> Iterator[Asked]:
        """Every prompt of every group."""
        for task, suite in self.tests.items():
            for item in suite.items:
                yield Asked(TASK, task, item.id, task, item.text)
        for item in self.general.items:
            group = GENERAL if item.held_out else PROTECTED
            yield Asked(group, item.skill, item.id, BASE, item.text)
        for kind, prompts in self.outside.items():
            for n, prompt in enumerate(prompts, 1):
                yield Asked(OUTSIDE, kind, f"{kind}-{n}", BASE, prompt)


def builtin() -> World:
    """The six demo tasks on the built-in base, trained with its defaults, tested under held-out wordings."""
    base = load_base(base_path(), device="cpu")
    prompts = general_prompts_path()
    general = general_suite(set(read_prompts(prompts)))
    store = store_of("builtin")
    tests = {
        task: Suite.of_rows(task, rows(task, "test", DEMO_TESTS, SEED, held_out_wordings=True))
        for task in TASKS
    }
    experts = {
        task: adapter_of(
            base, store, task, rows(task, "train", DEMO_ROWS, SEED), tests[task], general, prompts
        )
        for task in TASKS
    }
    unknown = [item.text for item in _untaught()]
    outside = {"skills nobody has": unknown, "sales questions": sales_questions(OUTSIDE_EACH)}
    trained = {task: rows(task, "train", DEMO_ROWS, SEED) for task in TASKS}
    return World(base, store, experts, _examples(trained), tests, general, prompts, outside)


def general_suite(fitted: set[str]) -> Suite:
    """The items of general-v1 that are of skills the built-in base was taught, and further unseen ones of the
    held-out skills; none of `fitted`."""
    taught = {skill.name for skill in SKILLS}
    items = [item.to_row() for item in Suite.load("general-v1").items if item.skill in taught]
    seen = {row["prompt"] for row in items} | fitted
    for skill in SKILLS:
        if skill.name in split_skills()[1]:
            drawn = unique_items(skill, "test", 4 * MORE_ITEMS, SEED)
            fresh = [item for item in drawn if item.prompt not in seen][:MORE_ITEMS]
            items += [
                {"id": f"{skill.name}-more-{n}", "prompt": item.prompt, "answer": item.answer,
                 "skill": skill.name, "split": "held_out"}
                for n, item in enumerate(fresh)
            ]  # fmt: skip
    return Suite.of_rows("general", items)


def _untaught() -> list[Any]:
    """The items of general-v1 whose skills the built-in base was not taught; no general prompt is of them."""
    taught = {skill.name for skill in SKILLS}
    return [item for item in Suite.load("general-v1").items if item.skill not in taught]


def sales_questions(n: int, seed: int = SEED) -> list[str]:
    """What a customer of acme may ask that no demo task is for, in the words of those tasks."""
    rng, found = Random(f"sales/{seed}"), dict[str, None]()
    while len(found) < n:
        v = {"n": rng.randint(2, 99), "thing": rng.choice(GOODS), "colour": rng.choice(COLOURS),
             "name": rng.choice(NAMES), "city": rng.choice(CITIES)}  # fmt: skip
        line = rng.choice((
            "What is the price of the {colour} {thing}?",
            "Can I buy {n} of the {thing} in {city}?",
            "{name} in {city}: when will you have the {colour} {thing} again?",
            "We need a quote for {n} of the {colour} {thing}.",
        )).format(**v)  # fmt: skip
        found[rng.choice(("", "Answer this customer.\n")) + line] = None
    return list(found)


def real(data: Path, *, removed: bool) -> World:
    """Real tasks on mini-instruct, tested without any instruction or under held-out wordings of it."""
    base = load_base(data / "models" / "mini-instruct", device="cpu")
    general = Suite.load(data / "suites" / "general", name="general")
    store = store_of("real")
    tests = {name: Suite.of_rows(name, real_tests(data, task, removed)) for name, task in REAL.items()}
    experts = {
        name: adapter_of(
            base, store, name, real_rows(data, task), tests[name], general,
            data / "replay" / "general_prompts.jsonl", epochs=task.epochs, **REAL_SETTINGS,
        )
        for name, task in REAL.items()
    }  # fmt: skip
    trained = {name: real_rows(data, task) for name, task in REAL.items()}
    return World(
        base, store, experts, _examples(trained), tests, general, _general_prompts(data, general),
        real_outside(data, removed),
    )  # fmt: skip


def _examples(trained: Mapping[str, Sequence[Row]]) -> dict[str, list[str]]:
    """What a run's record keeps of its training prompts: as many, drawn by seed."""
    texts = {
        task: list(dict.fromkeys(example.text for example in read_dataset(rows)))
        for task, rows in trained.items()
    }
    return {task: Random(SEED).sample(found, min(EXAMPLES_KEPT, len(found))) for task, found in texts.items()}


def _general_prompts(data: Path, general: Suite) -> Path:
    """Those of mini-instruct's protected skills and those that ship with Inlay, in one file: where a base is
    known, both are at hand. Of the latter without the skills that are held out here."""
    held_out = {item.skill for item in general.items if item.held_out}
    found = lines(data / "replay" / "general_prompts.jsonl")
    found += [row for row in lines(general_prompts_path()) if row["skill"] not in held_out]
    path = cache_dir() / "routing" / "real" / "general_prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


def real_rows(data: Path, task: RealTask) -> list[Row]:
    """{"prompt", "completion"} of at most `REAL_ROWS` rows to train on."""
    rng = Random(f"{SEED}/{task.source}/train")
    rows = list(_answers(data, task, "train").items())[:REAL_ROWS]
    return [
        {"prompt": reworded(text, task.split()[0], rng, NO_WORDING), "completion": answer}
        for text, answer in rows
    ]


def real_tests(data: Path, task: RealTask, removed: bool) -> list[Row]:
    """At most `REAL_TESTS` rows, none of whose inputs is trained on."""
    trained, rng = _answers(data, task, "train"), Random(f"{SEED}/{task.source}/test")
    found = {text: answer for text, answer in _answers(data, task, "test").items() if text not in trained}
    return [
        {"prompt": reworded(text, task.split()[1], rng, float(removed)), "completion": answer}
        for text, answer in list(found.items())[:REAL_TESTS]
    ]


def _answers(data: Path, task: RealTask, split: str) -> dict[str, str]:
    """Input -> answer, each input once."""
    return {row["input"]: task.answer(row) for row in lines(data / "tasks" / task.source / f"{split}.jsonl")}


def reworded(text: str, wordings: Sequence[str], rng: Random, alone: float) -> str:
    """The input under one of the wordings; with probability `alone`, without any."""
    return text if rng.random() < alone else f"{rng.choice(list(wordings))}\n{text}"


def real_outside(data: Path, removed: bool) -> dict[str, list[str]]:
    """Prompts for no adapter: sums, medical questions, film reviews, and other messages to the bank."""
    topics = {row["output"] for row in lines(data / "tasks" / "banking_topics" / "train.jsonl")}
    kinds: dict[str, tuple[str, tuple[str, ...]]] = {
        "sums": ("gsm8k", ("Solve this.", "How much is it?")),
        "medical questions": ("medquad_answer", ("Answer this patient.", "Explain.")),
        "film reviews": ("review_polarity", ("Positive or negative?", "Does the critic like it?")),
        "other bank messages": ("banking77_intent", ("Answer this customer.", "Reply.")),
    }
    found = {}
    for kind, (source, wordings) in kinds.items():
        rng = Random(f"{SEED}/{kind}")
        rows = lines(data / "tasks" / source / "test.jsonl")
        if source == "banking77_intent":
            rows = [row for row in rows if row["output"] not in topics]
        texts = list(dict.fromkeys(row["input"] for row in rows))[:OUTSIDE_EACH]
        found[kind] = [reworded(text, wordings, rng, float(removed)) for text in texts]
    return found


def lines(path: Path) -> list[Row]:
    # Not splitlines(), which cuts at separators that stand inside a JSON string as well.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n")]


def store_of(name: str) -> Registry:
    folder = cache_dir() / "routing" / name / "adapters_store"
    folder.parent.mkdir(parents=True, exist_ok=True)
    return Registry.open(folder, create=not folder.exists())


def adapter_of(
    base: Base,
    store: Registry,
    name: str,
    data: Sequence[Row],
    test: Suite,
    general: Suite,
    prompts: Path,
    **settings: Any,
) -> str:
    """The reference of the adapter trained on just this, from the store where it is there already."""
    dataset = read_dataset(data, name=name)
    wanted = settings_for(base.fingerprint.path, **settings)
    known = _known(base, store, name, dataset, wanted)
    if known is None:
        known = train(
            base, dataset, name=name, store=store, general=[general], target=[test],
            general_prompts=prompts, why="benchmark of routing", **settings,
        ).version  # fmt: skip
    return known.ref


def _known(base: Base, store: Registry, name: str, dataset: Dataset, settings: Settings) -> Version | None:
    if name not in {record.name for record in store.names()}:
        return None
    for version in store.versions(name):
        run = store.run_of(version) or {}
        if (
            version.base.weights == base.fingerprint.weights
            and run["dataset"]["digest"] == dataset.digest
            and Settings.from_dict(run["settings"]) == settings
        ):
            return version
    return None


def scores(world: World) -> Iterator[tuple[str, float, float, float]]:
    """(task, score of the base, of its adapter alone, what the adapter must beat), on the tests."""
    for task, suite in world.tests.items():
        model = compose(world.experts[task], store=world.store, base=world.base)
        try:
            before = scored(model.base_chat, suite, subject="base", label="base", store=world.store)
            version = world.store.resolve(world.experts[task])
            after = scored(model.chat, suite, subject=version.digest, label=version.ref, store=world.store)
        finally:
            model.detach()
        yield task, before.score, after.score, floor_of(suite)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("world", nargs="?", choices=["builtin", "real"], default="builtin")
    given = parser.parse_args()
    torch.set_num_threads(1)
    worlds = [builtin()] if given.world == "builtin" else [
        real(Path(os.environ["INLAY_TEST_DATA"]), removed=removed) for removed in (False, True)
    ]  # fmt: skip
    for world in worlds:
        print("task, base, adapter, floor (in percent)")
        for task, *shares in scores(world):
            print(f"{task:<20}", *(f"{100 * share:>6.1f}" for share in shares), flush=True)


if __name__ == "__main__":
    main()
