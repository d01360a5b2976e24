"""The wider part of `general-v1`: skills that any instruct model has, beside those of the built-in base.

    question.py    one question, with a reply its check must pass and one it must fail
    writing.py     so many words, lists of a form, words to use and to avoid
    extracting.py  details of a passage, JSON, and "unknown" where the passage does not say
    reasoning.py   numbers in words, orders, comparisons, negation
    knowing.py     word forms, facts, paraphrases, reading

The first part (`inlay.builtin.skills`) is drawn from skills that the built-in base was taught. It was not
taught these, and no general prompt is drawn from them. `split_wider` marks a third of them held out.
"""

from __future__ import annotations

import math
from random import Random
from typing import Any

from inlay.builtin.general.extracting import find_detail, json_object, say_unknown
from inlay.builtin.general.knowing import known_fact, read_passage, same_meaning, word_form
from inlay.builtin.general.question import GeneralSkill, Question
from inlay.builtin.general.reasoning import compare_values, negation, number_words, order_things
from inlay.builtin.general.writing import list_form, use_and_avoid, word_count
from inlay.builtin.skills import SPLIT_SEED

WIDER: tuple[GeneralSkill, ...] = (
    GeneralSkill("word_count", "writing", word_count),
    GeneralSkill("list_form", "writing", list_form),
    GeneralSkill("use_and_avoid", "writing", use_and_avoid),
    GeneralSkill("find_detail", "extracting", find_detail),
    GeneralSkill("json_object", "extracting", json_object),
    GeneralSkill("say_unknown", "extracting", say_unknown),
    GeneralSkill("number_words", "reasoning", number_words),
    GeneralSkill("order_things", "reasoning", order_things),
    GeneralSkill("compare_values", "reasoning", compare_values),
    GeneralSkill("negation", "reasoning", negation),
    GeneralSkill("word_form", "knowing", word_form),
    GeneralSkill("known_fact", "knowing", known_fact),
    GeneralSkill("same_meaning", "knowing", same_meaning),
    GeneralSkill("read_passage", "knowing", read_passage),
)
"""In a fixed order. A new skill is a function that draws its questions, and a line here."""


def split_wider(seed: int = SPLIT_SEED) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(protected, held out) names: a third of each family, rounded up, is held out.

    `random.Random(seed).sample` over the sorted names decides, as in `skills.split_skills`; by family, so
    that no kind of skill is wholly on one side.
    """
    rng, held_out = Random(seed), []
    for family in sorted({skill.family for skill in WIDER}):
        names = sorted(skill.name for skill in WIDER if skill.family == family)
        held_out += rng.sample(names, math.ceil(len(names) / 3))
    return tuple(sorted({skill.name for skill in WIDER} - set(held_out))), tuple(sorted(held_out))


def questions(skill: GeneralSkill, seed: int) -> list[Question]:
    """The skill's questions, always the same for one seed."""
    return skill.draw(Random(f"{seed}/{skill.name}"))


def wider_items(seed: int) -> list[dict[str, Any]]:
    """Rows of a suite: all questions of all skills, without the replies that only tests need."""
    _, held_out = split_wider()
    rows = []
    for skill in WIDER:
        for n, question in enumerate(questions(skill, seed)):
            row: dict[str, Any] = {
                "id": f"{skill.name}-{n:03d}",
                "prompt": question.prompt,
                "answer": question.answer,
                "skill": skill.name,
                "split": "held_out" if skill.name in held_out else "protected",
            }
            if question.metric != "exact_match":
                row["metric"] = question.metric
            if question.choices:
                row["choices"] = list(question.choices)
            if question.cluster is not None:
                row["cluster"] = question.cluster
            if question.slice is not None:
                row["slice"] = question.slice
            rows.append(row)
    return rows
