"""Small worlds to choose in: adapters trained in seconds for two kinds of requests.

Trained for different answers, without anything that holds the base, only a route keeps both; trained for the
same answer, with KL to the base, a stack does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inlay.builtin.skills import split_skills
from inlay.evals import Suite
from inlay.evals.inference import Base, base_answers
from inlay.evals.prompts import read_prompts
from inlay.registry import Registry
from inlay.trainers.data import read_dataset
from inlay.trainers.fit import fit, release, save_adapter
from inlay.trainers.settings import Settings

THINGS = str.split("""
    parcel order card invoice chair table lamp phone ticket coat shoe bag watch clock mirror bottle knife
    spoon plate brush candle ladder hammer basket blanket pillow carpet curtain drawer button pencil paper
    ruler eraser marker stapler envelope stamp letter magazine book kettle pan pot fork cup glass towel
    soap comb belt hat scarf shirt sock ring
""")
LEARNED = 14
"""Things that are trained on; the others are for suites."""
WORDINGS = {
    "late": ("My {} is late.", "Where is my {} today?", "Still no {} here."),
    "buy": ("One {}, please.", "I want to buy a {}.", "Send me a new {}."),
}


@dataclass(frozen=True)
class World:
    """Folders of adapters by name, what each answers, and what it is judged on."""

    folders: dict[str, Path]
    answers: dict[str, str]
    suites: dict[str, Suite]
    general: Suite

    @property
    def refs(self) -> list[str]:
        return [f"{name}@v1" for name in self.folders]

    def register(self, store: Registry, base: Base, *, examples: bool = True) -> None:
        for name, folder in self.folders.items():
            run = {"examples": requests(name)[: 3 * 8]} if examples else None
            store.add(name, folder, base=base.fingerprint, why="test", run=run)

    def labelled(self, each: int = 12) -> dict[str, list[tuple[str, str]]]:
        """Labelled examples that no suite has."""
        return {name: [(p, self.answers[name]) for p in requests(name)[:each]] for name in self.folders}


def requests(name: str, things: list[str] | None = None) -> list[str]:
    found = THINGS[:LEARNED] if things is None else things
    return [wording.format(thing) for thing in found for wording in WORDINGS[name]]


def trained(base: Base, folder: Path, answers: dict[str, str], *, kl: float, steps: int) -> World:
    general = read_prompts(None)[::16]
    held = (general, base_answers(base, general)) if kl else None
    folders, suites = {}, {}
    for seed, (name, answer) in enumerate(answers.items()):
        rows = [{"prompt": prompt, "completion": answer} for prompt in requests(name)]
        settings = Settings(
            learning_rate=1e-2, max_steps=steps, rank=4, alpha=8.0, kl=kl, kl_batch_size=8, seed=seed
        )
        fitted = fit(base, read_dataset(rows, name=name), settings, general=held)
        save_adapter(fitted, folder / name)
        release(fitted)
        folders[name] = folder / name
        asked = requests(name, THINGS[LEARNED:])
        suites[name] = Suite.of_rows(
            name, [{"id": f"{name}{i}", "prompt": p, "answer": answer} for i, p in enumerate(asked)]
        )
    return World(folders, answers, suites, sampled(16))


def sampled(each: int) -> Suite:
    """Items of every held-out skill that the base was taught."""
    taught, kept = split_skills()[1], list[str]()
    items = []
    for item in Suite.load("general-v1").items:
        if item.skill in taught and kept.count(item.skill) < each:
            kept.append(item.skill)
            items.append(item)
    return Suite("sampled", tuple(items))
