"""Perturbed suites: what is asked stays the same, so the true answer does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from inlay.errors import InputError
from inlay.evals.perturbing import (
    KINDS,
    Given,
    perturbed,
    read_misspellings,
    read_variants,
    sample,
    source_of,
)
from inlay.evals.suites import Item, Suite


def material(prompt: str) -> str:
    """What follows the instruction: after the first line break, else the first colon, else the question."""
    for mark in ("\n", ": ", "? "):
        if mark in prompt:
            return prompt.partition(mark)[2]
    return ""


def numbers(prompt: str) -> list[int]:
    return [int(x) for x in re.findall(r"\d+", prompt)]


SOLVERS: dict[str, Callable[[str], str]] = {
    "copy": lambda p: material(p),
    "upper_case": lambda p: material(p).upper(),
    "reverse_words": lambda p: " ".join(reversed(material(p).split())),
    "first_word": lambda p: material(p).split()[0],
    "last_word": lambda p: material(p).split()[-1],
    "first_letters": lambda p: " ".join(w[0] for w in material(p).split()),
    "sort_words": lambda p: " ".join(sorted(material(p).split())),
    "sort_numbers": lambda p: " ".join(map(str, sorted(numbers(material(p))))),
    "larger_number": lambda p: str(max(numbers(p))),
    "smaller_number": lambda p: str(min(numbers(p))),
    "add": lambda p: str(sum(numbers(p))),
}
"""Skills of general-v1 whose answer a program computes from the prompt alone."""


@pytest.fixture(scope="module")
def general() -> Suite:
    return Suite.load("general-v1")


def test_true_answers_are_unchanged(general: Suite) -> None:
    """Oracle: the answer computed again from the perturbed prompt, and the material to the byte."""
    clean = {item.id: item for item in general.items}
    solvable = {i.id for i in general.items if i.skill in SOLVERS and SOLVERS[i.skill](i.text) == i.answer}
    assert {clean[i].skill for i in solvable} == SOLVERS.keys() and len(solvable) >= 400
    checked = dict.fromkeys(KINDS, 0)
    for item in perturbed(general).items:
        source = clean[source_of(item)]
        assert item.text != source.text and item.answer == source.answer
        assert (item.metric, item.skill, item.held_out) == (source.metric, source.skill, source.held_out)
        assert item.cluster == (source.cluster or source.id) and item.slice == item.id.rpartition("~")[2]
        assert re.findall(r"\d+", item.text) == re.findall(r"\d+", source.text)
        if source.id in solvable and item.slice != "spaces":
            assert SOLVERS[item.skill](item.text.rstrip()) == item.answer, item.text
            checked[item.slice or ""] += 1
        if source.id in solvable and item.skill not in ("larger_number", "smaller_number", "add"):
            assert item.text.endswith(material(source.text)), item.text
    assert min(checked[kind] for kind in ("typo", "case", "wording")) >= 380


def test_the_same_seed_gives_the_same_digest_and_another_seed_another(general: Suite) -> None:
    some = sample(general, 60)
    assert perturbed(some).digest == perturbed(some).digest != perturbed(some, seed=1).digest
    chosen = {item.id for item in sample(general, 30).items}
    by_id = {item.id: item for item in perturbed(general).items}
    fewer = perturbed(general, sources=chosen).items
    assert {source_of(item) for item in fewer} == chosen and all(by_id[item.id] == item for item in fewer)


def test_a_slip_is_in_what_the_skill_always_says_not_in_what_this_item_asks_about() -> None:
    asked = ["mouse", "goose", "tooth", "leaf", "wolf"]
    items = tuple(Item(word, f"What is the plural of {word}", "x", skill="plurals") for word in asked)
    for seed in range(10):
        for item in perturbed(Suite("s", items), ("typo",), seed).items:
            assert item.text.endswith(f" of {source_of(item)}")
    alone = Suite("s", (Item("a", "Describe elephants", "x"),))
    assert len({perturbed(alone, ("typo",), seed).items[0].text for seed in range(10)}) > 3


def test_words_that_a_pattern_wants_stay() -> None:
    item = Item(
        "a", "Write about concert and not about piano", r"(?=.*\bconcert\b)(?!.*\bpiano\b).*", metric="regex"
    )
    for seed in range(20):
        for found in perturbed(Suite("s", (item,)), ("typo", "case"), seed).items:
            assert "concert" in found.text and "piano" in found.text


def test_words_that_carry_the_answer_stay() -> None:
    prompts = {
        "verb": ("Write the past of painting.", "painted"),
        "twice": ("Count the letter grapefruit in: grapefruit", "1"),
        "quoted": ('Write "strawberry" only.', "fruit"),
        "name": ("Where does Margaret live?", "here"),
        "short": ("Is it so?", "no"),
        "json": ("Convert to JSON.", "x"),
    }
    suite = Suite("s", tuple(Item(id, prompt, answer) for id, (prompt, answer) in prompts.items()))
    stay = {"verb": "painting", "twice": "grapefruit in", "quoted": '"strawberry"', "name": "Margaret"}
    for seed in range(20):
        items = perturbed(suite, ("typo", "case", "wording"), seed).items
        for item in items:
            kept = stay.get(source_of(item))
            assert kept is None or kept.split()[0] in item.text, item.text
            assert source_of(item) != "json" or "JSON" in item.text
        assert "short~typo" not in {item.id for item in items}  # no word long enough


def test_choices_and_references_stay() -> None:
    item = Item("i", "Choose happiness or sadness today", "joy", references=("sadness",), choices=())
    other = Item("c", "Choose happiness or sadness today", "sadness", choices=("happiness", "sadness"))
    for seed in range(20):
        for found in perturbed(Suite("s", (item,)), ("typo", "case"), seed).items:
            assert "sadness" in found.text
    words = {
        f.text
        for s in range(20)
        for f in perturbed(Suite("s", (other,), "multiple_choice"), ("typo",), s).items
    }
    assert len(words) > 3 and all("happiness or sadness" in text for text in words)


def test_typos_are_slips_of_one_key_and_never_another_word_of_the_suite(general: Suite) -> None:
    clean = {item.id: item for item in general.items}
    vocabulary = {w for item in general.items for w in re.findall(r"[a-z]+", item.text.lower())}
    changed = 0
    for item in perturbed(general, ("typo",)).items:
        before, after = clean[source_of(item)].text.split(), item.text.split()
        assert len(before) == len(after)
        for was, now in zip(before, after, strict=True):
            if was != now:
                changed += 1
                assert abs(len(was) - len(now)) <= 1 and was[0] == now[0]
                assert re.sub(r"[^a-z]", "", now.lower()) not in vocabulary
    assert changed >= len(general)


def test_known_misspellings_come_first(tmp_path: Path) -> None:
    file = tmp_path / "typos.csv"
    file.write_text("sentance,sentence\nsentense,sentence\nabbout,about\n")
    given = Given(misspellings=read_misspellings(file))
    assert given.misspellings == {"sentence": ("sentance", "sentense"), "about": ("abbout",)}
    suite = Suite("s", (Item("a", "Sentence", "x"),))
    texts = {perturbed(suite, ("typo",), seed, given=given).items[0].text for seed in range(20)}
    assert texts == {"Sentance", "Sentense"}
    file.write_text("sentance,sentence\nalone\n")
    with pytest.raises(InputError, match=r"line 2: a line must be `typo,correction`"):
        read_misspellings(file)


def test_other_wordings_and_variants_of_ones_own(tmp_path: Path) -> None:
    suite = Suite("s", (Item("a", "Give the number: one two", "2"), Item("b", "Say hello", "hello")))
    given = Given(wordings={"Give the number": ["How many?"]})
    found = {item.id: item for item in perturbed(suite, ("wording",), given=given).items}
    assert found["a~wording"].text == "How many?: one two"
    file = tmp_path / "dialect.jsonl"
    file.write_text(json.dumps({"source_id": "b", "slice": "scots", "prompt": "Say hullo tae me"}) + "\n")
    suite_of = perturbed(suite, (), given=Given(variants=read_variants(file)))
    assert [(i.id, i.slice, i.text, i.answer) for i in suite_of.items] == [
        ("b~scots", "scots", "Say hullo tae me", "hello")
    ]
    with pytest.raises(InputError, match=r"variants must be of items of s, and 'z' is none"):
        perturbed(suite, given=Given(variants={"z": [("scots", "?")]}))
    for bad in ('{"prompt": "x"}', "[]", "no", '{"source_id": "b", "prompt": "x", "slice": "a~b"}'):
        file.write_text(bad + "\n")
        with pytest.raises(InputError, match="line 1"):
            read_variants(file)


def test_the_last_message_of_a_conversation_changes() -> None:
    talk = (
        ("system", "Be brief."),
        ("user", "Hello there"),
        ("assistant", "Yes?"),
        ("user", "Name a colour"),
    )
    item = perturbed(Suite("s", (Item("a", talk, "red"),)), ("case",)).items[0]
    assert isinstance(item.prompt, tuple) and item.prompt[:3] == talk[:3]
    assert item.prompt[3][1].casefold() == "name a colour" and item.prompt[3][1] != "Name a colour"


def test_bad_input_and_names() -> None:
    suite = Suite("s", (Item("a", "7", "7"),))
    with pytest.raises(InputError, match=r"must be one of typo, case, spaces, wording, not 'noise'"):
        perturbed(suite, ("noise",))
    with pytest.raises(InputError, match="no item of s can be perturbed by typo"):
        perturbed(suite, ("typo",))
    named = Suite("x" * 63, (Item("a", "Name a colour", "red"),))
    assert perturbed(named).name == "x" * 56 + "--rigid"


def test_a_sample_deals_from_the_held_out_skills(general: Suite) -> None:
    held_out = {item.skill for item in general.items if item.held_out}
    some = sample(general, 40)
    counts = [sum(item.skill == skill for item in some.items) for skill in held_out]
    assert len(some) == 40 and sum(counts) == 40 and max(counts) - min(counts) <= 1
    protected = next(item for item in general.items if not item.held_out)
    assert protected in sample(general, 5, always=[protected.id]).items
    order = [general.items.index(item) for item in some.items]
    assert order == sorted(order)
