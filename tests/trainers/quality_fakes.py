"""Clean training files from the demo tasks and the plain skills, and defects planted into them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from inlay.builtin.skills import SKILLS, unique_items
from inlay.builtin.tasks import TASKS, rows
from inlay.evals.suites import Suite

ROWS = 500
CLEAN = (*TASKS, *(skill.name for skill in SKILLS[:14]))
"""Twenty files: six tasks, fourteen skills."""


def clean_rows(name: str, seed: int, split: str = "train", n: int = ROWS) -> list[dict[str, Any]]:
    """A task's triplets, or a skill's prompts and completions."""
    if name in TASKS:
        return [dict(row) for row in rows(name, split, n, seed)]
    skill = next(skill for skill in SKILLS if skill.name == name)
    items = unique_items(skill, split, n, seed)
    return [{"prompt": item.prompt, "completion": item.answer} for item in items]


def suite_of(name: str, seed: int, n: int = 40) -> Suite:
    """Test items of the same task or skill."""
    return Suite.of_rows(
        f"{name}-test",
        [{"prompt": prompt_of(row), "answer": answer_of(row)} for row in clean_rows(name, seed, "test", n)],
    )


def prompt_of(row: dict[str, Any]) -> str:
    return row["prompt"] if "prompt" in row else f"{row['instruction']}\n{row['input']}"


def answer_of(row: dict[str, Any]) -> str:
    return row["completion"] if "completion" in row else row["output"]


def written(path: Path, lines: list[dict[str, Any] | str]) -> Path:
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


@dataclass
class Planted:
    """Lines of a file, those that a defect was put into (none where it is the whole file's), and a suite."""

    lines: list[dict[str, Any] | str]
    bad: list[int] = field(default_factory=list)
    suites: tuple[Suite, ...] = ()


Plant = Callable[[Random, int], Planted]


def _edited(name: str, edit: Callable[[dict[str, Any], Random], dict[str, Any] | str]) -> Plant:
    """`dose` rows of a clean file put through `edit`."""

    def plant(rng: Random, dose: int) -> Planted:
        lines: list[dict[str, Any] | str] = list(clean_rows(name, rng.randrange(10**6)))
        places = sorted(rng.sample(range(len(lines)), dose))
        for place in places:
            row = lines[place]
            assert isinstance(row, dict)
            lines[place] = edit(dict(row), rng)
        return Planted(lines, [place + 1 for place in places])

    return plant


def _added(name: str, edit: Callable[[dict[str, Any], Random], dict[str, Any]]) -> Plant:
    """`dose` changed copies of rows put behind the file."""

    def plant(rng: Random, dose: int) -> Planted:
        lines: list[Any] = list(clean_rows(name, rng.randrange(10**6)))
        copies = [edit(dict(row), rng) for row in rng.sample(lines, dose)]
        return Planted([*lines, *copies], [len(lines) + 1 + n for n in range(dose)])

    return plant


def _with(key: str, value: Any) -> Callable[[dict[str, Any], Random], dict[str, Any]]:
    return lambda row, rng: {
        **row,
        key: value[rng.randrange(len(value))] if isinstance(value, tuple) else value,
    }


def _told(key: str, *texts: str) -> Callable[[dict[str, Any], Random], dict[str, Any]]:
    return lambda row, rng: {**row, key: f"{row[key]} {rng.choice(texts)}"}


def _cut(row: dict[str, Any], rng: Random) -> str:
    text = json.dumps(row)
    return text[: rng.randrange(20, len(text) - 2)]


def _typo(row: dict[str, Any], rng: Random) -> dict[str, Any]:
    """Two different letters inside a word of five or more swapped."""
    text = row["input"]
    places = [
        at
        for word in re.finditer(r"[A-Za-z]{5,}", text)
        for at in range(word.start() + 1, word.end() - 2)
        if text[at] != text[at + 1]
    ]
    at = rng.choice(places)
    return {**row, "input": text[:at] + text[at + 1] + text[at] + text[at + 2 :]}


def _leaked(change: Callable[[str], str]) -> Plant:
    def plant(rng: Random, dose: int) -> Planted:
        seed = rng.randrange(10**6)
        lines: list[Any] = list(clean_rows("order-slip", seed))
        suite = suite_of("order-slip", seed)
        places = sorted(rng.sample(range(len(lines)), dose))
        for place, item in zip(places, rng.sample(suite.items, dose), strict=True):
            lines[place] = {"prompt": change(item.text), "completion": item.answer}
        return Planted(lines, [place + 1 for place in places], (suite,))

    return plant


def _one_wording(rng: Random, dose: int) -> Planted:
    lines = [{**row, "instruction": "Write the order slip."} for row in clean_rows("order-slip", dose)]
    for place in rng.sample(range(len(lines)), 30):
        lines[place]["instruction"] = "Fill in the slip for this order."
    return Planted(list(lines))


def _one_class(rng: Random, dose: int) -> Planted:
    found = [row for row in clean_rows("contains_word", dose, n=2000) if row["completion"] == "yes"][:480]
    others = [row for row in clean_rows("contains_word", dose + 7, n=200) if row["completion"] == "no"][:30]
    lines: list[Any] = [*found, *others]
    rng.shuffle(lines)
    return Planted(lines)


def _misspelt_class(row: dict[str, Any], rng: Random) -> dict[str, Any]:
    return {**row, "output": row["output"].replace("shipping", "shiping").replace("e", "E", 1)}


GARBAGE = (
    "zxq vvk 93 lorem qqp",
    "Der Kunde hat nicht gezahlt",
    "undefined undefined null",
    "asdf jkl qwertz uiop",
)
LONG = "the order that was sent last week to the house by the lake " * 60


def _other_layout(row: dict[str, Any], rng: Random) -> dict[str, Any]:
    return {"question": row["prompt"], "answer": row["completion"]}


def _capitals(row: dict[str, Any], rng: Random) -> dict[str, Any]:
    return {**row, "input": row["input"].upper()}


def _contradicted(row: dict[str, Any], rng: Random) -> dict[str, Any]:
    return {**row, "completion": "no" if row["completion"] == "yes" else "yes"}


def _broken(row: dict[str, Any], rng: Random) -> dict[str, Any]:
    return {**row, "completion": row["completion"][:-1] + rng.choice((",}", "", "]"))}


def _chatty(row: dict[str, Any], rng: Random) -> dict[str, Any]:
    return {**row, "output": f"Sure! Here is the slip:\n\n**{row['output']}**"}


NOT_FOR_TRAINING = ({"do_not_train": True}, {"train": False})
OTHER_SCRIPTS = ("Не могли бы вы?", "请问可以吗")
MOJIBAKE = ("CafÃ© FranÃ§ois", "itâ€™s late")
PHONES = ("Call +49 170 1234567", "Call (212) 555-0142", "Call 030 1234567")
IBANS = ("DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432")
CARDS = ("My card is 4111 1111 1111 1111", "5500-0000-0000-0004")
ADDRESSES = ("I am 93.184.216.34", "from 2001:db8:85a3::8a2e:370:7334")
IDS = ("CPF 529.982.247-25", "DNI 12345678Z", "RSSMRA85T10A562S")

ERRORS: dict[str, tuple[str, Plant]] = {
    "empty answer": ("empty", _edited("order-slip", _with("output", ("", "  ", "\n")))),
    "line that is no JSON": ("form", _edited("team-record", _cut)),
    "line of another layout": ("form", _edited("add", _other_layout)),
    "test split": ("forbidden", _edited("order-slip", _with("split", ("test", "dev", "Validation")))),
    "withdrawn consent": ("forbidden", _edited("copy", _with("consent", (False, "no", "Withdrawn")))),
    "marked": ("forbidden", _edited("copy", _with("meta", NOT_FOR_TRAINING))),
    "too long": ("too-long", _edited("order-slip", _told("input", LONG))),
    "leak": ("leak", _leaked(lambda text: text)),
}
WARNINGS: dict[str, tuple[str, Plant]] = {
    "leak but for case": ("leak-near", _leaked(lambda text: text.lower().rstrip("."))),
    "leak but for a word": ("leak-near", _leaked(lambda text: text + " please")),
    "duplicate": ("duplicate", _added("ticket-queue", lambda row, rng: row)),
    "duplicate but for case": ("near-duplicate", _added("ticket-queue", _capitals)),
    "duplicate but for a typo": ("near-duplicate", _added("delivery-line", _typo)),
    "duplicate but for a word": ("near-duplicate", _added("order-slip", _told("input", "please", "thanks"))),
    "conflict": ("conflict", _added("contains_word", _contradicted)),
    "misspelt class": ("class-spelling", _edited("ticket-queue", _misspelt_class)),
    "one class": ("imbalance", _one_class),
    "rare class": ("rare-class", _edited("contains_word", _with("completion", "perhaps"))),
    "broken JSON": ("json", _edited("json_line", _broken)),
    "one wording": ("monotony", _one_wording),
    "chatter": ("style", _edited("order-slip", _chatty)),
    "another script": ("style", _edited("polite", _with("completion", OTHER_SCRIPTS))),
    "far longer": ("style", _edited("add", _with("completion", LONG[:300].strip()))),
    "garbage": ("surprisal", _edited("negate", _with("completion", GARBAGE))),
    "wrong decoding": ("encoding", _edited("order-slip", _told("input", *MOJIBAKE))),
    "e-mail": ("personal", _edited("ticket-queue", _told("input", "Write to j.doe@mail.example.org"))),
    "phone": ("personal", _edited("ticket-queue", _told("input", *PHONES))),
    "IBAN": ("personal", _edited("case-card", _told("input", *IBANS))),
    "card": ("personal", _edited("case-card", _told("input", *CARDS))),
    "network address": ("personal", _edited("ticket-queue", _told("input", *ADDRESSES))),
    "national id": ("personal", _edited("team-record", _told("input", *IDS))),
}
PLANTED: dict[str, tuple[str, str, Plant]] = {
    name: (kind, level, plant)
    for level, defects in (("error", ERRORS), ("warning", WARNINGS))
    for name, (kind, plant) in defects.items()
}
"""Name: (kind that must be found, its level, how it is planted). The issue asks for twelve kinds."""
