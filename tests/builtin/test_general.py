"""The wider skills of general-v1: a right reply passes, a wrong one fails, and nothing overlaps."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from inlay.builtin import base_path, general_prompts_path, general_v1_path
from inlay.builtin.general import WIDER, questions, split_wider, wider_items
from inlay.builtin.general.extracting import KNOWN_AND_NOT, UNKNOWN_RULE
from inlay.builtin.general.knowing import MEANINGS
from inlay.builtin.general.question import GeneralSkill, places, short
from inlay.builtin.general.reasoning import in_words
from inlay.builtin.skills import SKILLS
from inlay.evals.contamination import normalised, overlaps, training_prompts
from inlay.evals.inference import Chat
from inlay.evals.metrics import metric as metric_named
from inlay.evals.metrics.patterns import regex
from inlay.evals.scoring import evaluate_model
from inlay.evals.statistics import reached
from inlay.evals.suite_check import check
from inlay.evals.suites import Item, Suite

if TYPE_CHECKING:
    from inlay.evals.inference import Base

GENERATED = {"regex", "json_equals"}
SUITE = Suite.load("general-v1")
NEW = [item for item in SUITE.items if item.skill in {skill.name for skill in WIDER}]


def rows() -> list[dict[str, object]]:
    return [json.loads(line) for line in general_v1_path().read_text(encoding="utf-8").splitlines()]


def test_the_suite_has_the_taught_skills_first_and_then_the_wider_ones() -> None:
    assert [row for row in rows() if "metric" in row or row["skill"] not in {s.name for s in SKILLS}] == (
        wider_items(1)
    )
    assert len(NEW) >= 480 and len(WIDER) >= 12
    assert min(Counter(item.skill for item in NEW).values()) >= 30
    assert [item.skill for item in SUITE.items[: len(SUITE) - len(NEW)]] == [
        skill.name for skill in SKILLS for _ in range(60)
    ]
    assert SUITE.metric == "exact_match/1+json_equals/1+multiple_choice_norm/1+regex/1"


@pytest.mark.parametrize("skill", WIDER, ids=lambda s: s.name)
def test_every_check_passes_a_right_reply_and_fails_a_wrong_one(skill: GeneralSkill) -> None:
    for question in questions(skill, 1):
        item = Item("x", question.prompt, question.answer, choices=question.choices)
        metric = metric_named(question.metric)
        assert metric.unfit(item) == ""
        if question.choices:
            chosen = question.choices.index(question.good)
            nats = [1.0 if n == chosen else 9.0 * len(c) for n, c in enumerate(question.choices)]
            assert question.good == question.answer != question.bad in question.choices
            assert metric.judge(nats, item) is True
            assert metric.judge(nats[::-1], item) is (chosen == len(nats) - 1 - chosen)
        else:
            assert metric.outcome(question.good, item) is True, question
            assert metric.outcome(question.bad, item) is False, question
            assert metric.outcome("", item) is False, question


def test_repeating_the_passage_is_no_answer() -> None:
    for skill in WIDER:
        if skill.name in {"find_detail", "say_unknown", "word_count", "use_and_avoid", "list_form"}:
            for question in questions(skill, 1):
                assert not regex(question.prompt, question.answer), question
    assert regex("It came on 4 May 2019.", short("4 May 2019"))
    assert not regex("on 14 May 2019", short("4 May 2019"))
    assert regex("two brothers", short("2", "two")) and not regex("twofold", short("2", "two"))


def test_what_a_reader_may_add_does_not_matter() -> None:
    answer = {q.prompt: q.answer for skill in WIDER for q in questions(skill, 1)}
    (three,) = [a for p, a in answer.items() if p.startswith("Name two days of the week as a bullet")]
    assert regex("- monday\n- Friday", three) and regex("-Sunday\n\n-  Monday", three)
    assert not regex("Monday\nFriday", three) and not regex("- Monday\n- Funday", three)
    (lower,) = [a for p, a in answer.items() if p.startswith("Write one sentence with the word breakfast")]
    assert regex("breakfast is what we like, isn't it?", lower) and not regex("Breakfast we like.", lower)
    (four,) = [a for p, a in answer.items() if "exactly four words that contains the word concert" in p]
    assert regex("The well-known concert's over.", four)
    assert regex('"A well-known concert ended!"', four) and not regex("A well known concert ended", four)
    assert not regex("concert " + "-" * 4000, four)


def test_a_constant_reply_pays_little() -> None:
    for skill in WIDER:
        items = [item for item in NEW if item.skill == skill.name]
        answer, count = Counter(item.answer for item in items).most_common(1)[0]
        assert count <= len(items) / 2, (skill.name, answer)
    slices = Counter(item.slice for item in NEW if item.skill == "say_unknown")
    assert slices == {"answerable": 16, "unanswerable": 16}


def test_right_choices_stand_in_every_place_alike() -> None:
    held: dict[tuple[str, int], Counter[int]] = {}
    for item in NEW:
        if item.choices:
            places_of = held.setdefault((item.skill, len(item.choices)), Counter())
            places_of[item.choices.index(item.answer)] += 1
    assert {skill for skill, _ in held} == {
        "compare_values", "negation", "known_fact", "same_meaning", "read_passage",
    }  # fmt: skip
    for (_, choices), found in held.items():
        assert len(found) == choices and max(found.values()) - min(found.values()) <= 1
    assert Counter(places(Random(0), 9, 3)) == {0: 3, 1: 3, 2: 3}


def test_a_paraphrase_is_not_found_by_counting_shared_words() -> None:
    right_first = 0
    for said, right, *wrong in MEANINGS:
        words = set(normalised(said).split())
        shared = [len(words & set(normalised(s).split())) / len(s.split()) for s in (right, *wrong)]
        right_first += shared[0] > max(shared[1:])
    assert right_first <= len(MEANINGS) / 3


def test_what_is_answerable_stands_in_the_passage_and_what_is_not_does_not() -> None:
    for passage, _, answer, _, _ in KNOWN_AND_NOT:
        assert any(regex(word, short(*answer.split("/"))) for word in passage.split())
        assert "unknown" not in passage.casefold()
    assert UNKNOWN_RULE.endswith("unknown")


def test_numbers_in_words() -> None:
    assert [in_words(n) for n in (0, 9, 13, 20, 42, 99)] == [
        "zero", "nine", "thirteen", "twenty", "forty-two", "ninety-nine",
    ]  # fmt: skip
    assert len({in_words(n) for n in range(100)}) == 100


def test_sums_and_orders_agree_with_an_oracle() -> None:
    values = {in_words(n): n for n in range(100)}
    signs = {"plus": int.__add__, "minus": int.__sub__, "times": int.__mul__}
    for item in NEW:
        words = item.text.replace("?", "").split()
        if item.skill == "number_words" and words[0] == "What":
            assert signs[words[3]](values[words[2]], values[words[4]]) == int(item.answer)
        elif item.skill == "number_words":
            first, second = (values[w] for w in words if w in values)
            assert int(item.answer) == (first + second if "more." in words else first - second)
        elif item.skill == "order_things":
            mixed, asked = item.text.split(": ")[1].split(", "), item.answer.split(", ")
            assert sorted(mixed) == sorted(asked) and mixed != asked
            if "shortest" in item.text:
                assert len({len(w) for w in asked}) == 3 and asked == sorted(asked, key=len)
            elif "largest" in item.text:
                assert asked == [str(n) for n in sorted(map(int, asked), reverse=True)]


def test_a_third_of_each_family_is_held_out() -> None:
    protected, held_out = split_wider()
    assert split_wider() == (protected, held_out) != split_wider(99)
    assert not set(protected) & set(held_out)
    families = Counter(skill.family for skill in WIDER)
    held = Counter(skill.family for skill in WIDER if skill.name in held_out)
    assert all(3 * held[family] >= count > held[family] for family, count in families.items())
    assert {item.skill for item in NEW if item.held_out} == set(held_out)


def test_nothing_of_the_wider_skills_is_among_the_general_prompts() -> None:
    prompts = training_prompts(general_prompts_path())
    assert overlaps(NEW, prompts) == []
    skills = {json.loads(line)["skill"] for line in general_prompts_path().read_text().splitlines()}
    assert not skills & {skill.name for skill in WIDER}
    assert not {skill.name for skill in WIDER} & {skill.name for skill in SKILLS}


def test_the_suite_checks_out() -> None:
    found = check(SUITE, training=[general_prompts_path()])
    assert [f for f in found.findings if f.level != "note"] == []


def test_few_items_need_a_generation() -> None:
    assert sum(item.metric in GENERATED for item in NEW) <= 200


def test_every_prompt_leaves_the_built_in_base_room_to_answer() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base_path())
    longest = max(len(tokenizer(item.text)["input_ids"]) for item in NEW)
    assert longest + 64 + 8 <= 512


@pytest.mark.slow
def test_the_built_in_base_has_none_of_it_as_its_page_says(shared_base: Base) -> None:
    scores = evaluate_model(Chat(shared_base), Suite("wider", tuple(NEW))).by_skill
    page = (Path(__file__).parents[2] / "docs" / "base.md").read_text(encoding="utf-8")
    for skill in WIDER:
        right, n = scores[skill.name]
        said = re.search(rf"^\| {skill.name} \|[^|]*\|[^|]*\| (\d+) / (\d+) \|", page, re.M)
        assert said is not None and int(said[2]) == n
        # One item more or less: a tie in the last bit may fall otherwise on another processor.
        assert abs(int(said[1]) - right) <= 1, skill.name
        guesses = [item.guess for item in NEW if item.skill == skill.name]
        assert not reached([True] * right + [False] * (n - right), guesses), skill.name
