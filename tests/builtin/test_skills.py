"""The generators: contents and skills never leak from one split into another, and a seed says everything."""

import json
import re
from collections.abc import Callable, Iterable
from random import Random

import pytest

from inlay.builtin import general_prompts_path, general_v1_path
from inlay.builtin.general import split_wider
from inlay.builtin.lexicon import CITIES, COLOURS, DAYS, DRINKS, FRUITS, JOBS, LIST_WORDS, NAMES
from inlay.builtin.skills import (
    SKILLS,
    Skill,
    content_key,
    content_split,
    draws,
    noisy,
    split_skills,
    unique_items,
)
from inlay.builtin.tasks import (
    GOODS,
    HELD_OUT_WORDINGS,
    PLACES,
    RETURNS,
    STAGES,
    TASKS,
    WORDINGS,
    prompt_of,
    rows,
)

BY_NAME = {s.name: s for s in SKILLS}


def lines(path: object) -> list[dict[str, str]]:
    return [json.loads(line) for line in open(str(path), encoding="utf-8")]


def test_at_least_18_skills_with_at_least_four_wordings() -> None:
    assert len(BY_NAME) == len(SKILLS) >= 18
    for skill in SKILLS:
        assert len(set(skill.wordings)) == len(skill.wordings) >= 4


def test_lexicon_words_are_different() -> None:
    assert len(set(LIST_WORDS)) == len(LIST_WORDS)


# oracles: the last line or the text after the last colon is the list, solved here again in another way
ORACLES: dict[str, Callable[[dict[str, str]], str]] = {
    "copy": lambda s: s["x"],
    "upper_case": lambda s: "".join(chr(ord(c) - 32) if c != " " else c for c in s["x"]),
    "reverse_words": lambda s: " ".join(s["x"].split()[::-1]),
    "first_word": lambda s: s["x"].partition(" ")[0],
    "last_word": lambda s: s["x"].rpartition(" ")[2],
    "count_words": lambda s: str(s["x"].count(" ") + 1),
    "first_letters": lambda s: re.sub(r"(\w)\w*", r"\1", s["x"]),
    "sort_numbers": lambda s: " ".join(sorted(s["x"].split(), key=lambda n: n.zfill(3))),
    "larger_number": lambda s: s["a"] if int(s["a"]) > int(s["b"]) else s["b"],
    "smaller_number": lambda s: s["a"] if int(s["a"]) < int(s["b"]) else s["b"],
    "add": lambda s: str(len(range(int(s["a"]))) + len(range(int(s["b"])))),
    "contains_word": lambda s: "yes" if re.search(rf"\b{s['w']}\b", s["x"]) else "no",
    "remove_word": lambda s: re.sub(rf"(^| )\b{s['w']}\b", "", s["x"]).strip(),
    "replace_word": lambda s: re.sub(rf"\b{s['w']}\b", s["v"], s["x"]),
    "word_after": lambda s: re.search(rf"\b{s['w']} (\w+)", s["x"])[1],  # type: ignore[index]
    "extract_field": lambda s: re.search(rf"{s['k']}: (\w+)", s["x"])[1],  # type: ignore[index]
}


@pytest.mark.parametrize("name", sorted(ORACLES))
def test_answers_agree_with_an_oracle(name: str) -> None:
    skill, rng = BY_NAME[name], Random(3)
    for _ in range(300):
        slots, answer = skill.draw(rng)
        assert ORACLES[name](slots) == answer


def test_json_answers_parse() -> None:
    for item in unique_items(BY_NAME["json_line"], "test", 100, 0):
        record = json.loads(item.answer)
        assert list(record) == ["name", "age", "city"]
        assert all(str(value) in item.prompt for value in record.values())


@pytest.mark.parametrize("skill", SKILLS, ids=lambda s: s.name)
def test_contents_of_the_splits_are_disjoint(skill: Skill) -> None:
    rng, seen = Random(0), {"train": set(), "dev": set(), "test": set()}
    for _ in range(3000):
        content = content_key(*skill.draw(rng))
        seen[content_split(skill.name, content)].add(content)
    assert (
        not seen["train"] & seen["test"]
        and not seen["train"] & seen["dev"]
        and not seen["dev"] & seen["test"]
    )
    assert all(seen.values())
    prompts = {s: {i.prompt for i in unique_items(skill, s, 150, 7)} for s in ("train", "test")}
    assert not prompts["train"] & prompts["test"]


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    for skill in SKILLS:
        assert unique_items(skill, "test", 20, 5) == unique_items(skill, "test", 20, 5)
        assert unique_items(skill, "test", 20, 5) != unique_items(skill, "test", 20, 6)


def test_too_many_items_are_refused() -> None:
    with pytest.raises(ValueError, match="skill add: only"):
        unique_items(BY_NAME["add"], "test", 5000, 0)


def test_noise_keeps_the_slots() -> None:
    rng = Random(0)
    for skill in SKILLS:
        for wording in skill.wordings:
            for _ in range(10):
                changed = noisy(wording, rng)
                assert re.findall(r"{\w+}", changed) == re.findall(r"{\w+}", wording)
    clean = [next(draws(SKILLS[0], "train", Random(n))).prompt for n in range(50)]
    assert clean == [next(draws(SKILLS[0], "train", Random(n), 0.0)).prompt for n in range(50)]


def test_protected_and_held_out_skills_share_nothing() -> None:
    protected, held_out = split_skills()
    assert not set(protected) & set(held_out)
    assert set(protected) | set(held_out) == set(BY_NAME)
    assert 3 * len(held_out) >= len(BY_NAME)
    assert split_skills() == split_skills() != split_skills(99)


def test_general_files_keep_held_out_skills_and_prompts_apart() -> None:
    protected, held_out = split_skills()
    more_protected, more_held_out = split_wider()
    items, prompts = lines(general_v1_path()), lines(general_prompts_path())
    assert len(items) >= 1000
    assert sum(i["split"] == "held_out" for i in items) >= 400
    assert len(prompts) >= 600
    assert {i["skill"] for i in items if i["split"] == "held_out"} == {*held_out, *more_held_out}
    assert {i["skill"] for i in items if i["split"] == "protected"} == {*protected, *more_protected}
    assert {p["skill"] for p in prompts} == set(protected)
    assert not {p["prompt"] for p in prompts} & {i["prompt"] for i in items}
    for many in (items, prompts):
        assert len({m["id"] for m in many}) == len({m["prompt"] for m in many}) == len(many)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_task_rows(task: str) -> None:
    train, test = rows(task, "train", 2000, 0), rows(task, "test", 400, 0)
    assert rows(task, "test", 400, 0) == test != rows(task, "test", 400, 1)
    assert not {r["input"] for r in train} & {r["input"] for r in rows(task, "test", 800, 1)}
    assert {r["instruction"] for r in train} == set(WORDINGS[task])
    other = rows(task, "test", 50, 0, held_out_wordings=True)
    assert {r["instruction"] for r in other} == set(HELD_OUT_WORDINGS[task])
    assert len({*WORDINGS[task], *HELD_OUT_WORDINGS[task]}) == 4 + 2
    assert prompt_of(test[0]) == test[0]["instruction"] + "\n" + test[0]["input"]


def found(words: Iterable[str], text: str) -> str:
    """The one of `words` that stands in `text`."""
    (word,) = [w for w in words if re.search(rf"\b{w}\b", text)]
    return word


def found_group(groups: dict[str, tuple[str, ...]], text: str) -> str:
    """The group whose longest phrase stands in `text`: "too late" goes before "late"."""
    phrases = {p: name for name, many in groups.items() for p in many if re.search(rf"\b{p}\b", text)}
    return phrases[max(phrases, key=len)]


def route(text: str) -> tuple[str, ...]:
    """Where from and where to."""
    cities = re.findall("|".join(CITIES), text)
    return tuple(reversed(cities)) if cities[0] in text.split(" to ")[-1] else tuple(cities)


# further oracles: what a task's answer says, looked up in its input word by word
TASK_ORACLES: dict[str, Callable[[str], str]] = {
    "return-receipt": lambda x: (
        f"receipt > {found_group(RETURNS, re.split(r' is | it is ', x)[1])} > "
        f"{found(GOODS, x)} / {found(COLOURS, x)} > {found(NAMES, x)} @ {found(CITIES, x)}"
    ),
    "delivery-line": lambda x: (
        f"delivery > {found_group(PLACES, x)} > {found((*GOODS, *FRUITS, *DRINKS), x)} > "
        f"{' - '.join(route(x))} / {found(DAYS, x)}"
    ),
    "team-record": lambda x: (
        f"team > {found_group(STAGES, x)} > {found(JOBS, x)} > {found(NAMES, x)} @ {found(CITIES, x)} / "
        f"{found(DAYS, x)}"
    ),
}


@pytest.mark.parametrize("task", sorted(TASK_ORACLES))
def test_answers_of_tasks_agree_with_an_oracle(task: str) -> None:
    for row in rows(task, "train", 1000, 3):
        assert TASK_ORACLES[task](row["input"]) == row["output"], row["input"]


def test_a_wording_belongs_to_one_task_and_to_no_general_prompt() -> None:
    wordings = [w for held in (WORDINGS, HELD_OUT_WORDINGS) for many in held.values() for w in many]
    assert len(set(wordings)) == len(wordings) == 6 * len(TASKS)
    general = [line["prompt"] for path in (general_v1_path(), general_prompts_path()) for line in lines(path)]
    assert not [w for w in wordings for prompt in general if w in prompt]


def test_unknown_task_and_split_are_refused() -> None:
    with pytest.raises(ValueError, match="ticket-queue"):
        rows("tickets", "train", 1, 0)
    with pytest.raises(ValueError, match="known: train, dev, test"):
        rows("ticket-queue", "valid", 1, 0)
