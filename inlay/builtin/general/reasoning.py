"""Small steps of reasoning with one right answer: numbers in words, orders, comparisons, and the word not."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from inlay.builtin.general.extracting import MONTHS
from inlay.builtin.general.question import Question, chosen, exact, words
from inlay.builtin.lexicon import CITIES, COLOURS, DAYS, LIST_WORDS, NAMES

ITEMS = 40

UNITS = words("""
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen
""")
TENS = words("- - twenty thirty forty fifty sixty seventy eighty ninety")
COUNTED = ("plums", "stamps", "coins", "books", "cups", "eggs", "shells", "pens", "tickets", "apples")


def in_words(n: int) -> str:
    """0…99 in English words: 42 -> "forty-two"."""
    if n < 20:
        return UNITS[n]
    return TENS[n // 10] + (f"-{UNITS[n % 10]}" if n % 10 else "")


def different(rng: Random, draw: Callable[[Random, int], Question], n: int) -> list[Question]:
    """`n` questions with different prompts; `draw` is told which one, so that templates take turns."""
    found: dict[str, Question] = {}
    while len(found) < n:
        question = draw(rng, len(found))
        found.setdefault(question.prompt, question)
    return list(found.values())


def _number_words(rng: Random, index: int) -> Question:
    template = index % 5
    name, thing = rng.choice(NAMES), rng.choice(COUNTED)
    a, b = rng.randint(21, 59), rng.randint(3, 19)
    asked, answer = (
        (f"What is {in_words(a)} plus {in_words(b)}?", a + b),
        (f"What is {in_words(a)} minus {in_words(b)}?", a - b),
        (f"What is {in_words(b % 8 + 2)} times {in_words(a % 10 + 2)}?", (b % 8 + 2) * (a % 10 + 2)),
        (f"{name} has {in_words(b)} {thing} and gets {in_words(a)} more. How many are there now?", a + b),
        (f"{name} had {in_words(a)} {thing} and gave {in_words(b)} away. How many are left?", a - b),
    )[template]
    return exact(
        f"{asked} Answer with digits only.", str(answer), str(answer + 1), cluster=f"number_words/{template}"
    )


def number_words(rng: Random) -> list[Question]:
    """Arithmetic with numbers written as words, answered in digits."""
    return different(rng, _number_words, ITEMS)


def _order_things(rng: Random, index: int) -> Question:
    template = index % 5
    if template == 0:
        lengths = {len(w): w for w in rng.sample(LIST_WORDS, 40)}
        things = [lengths[n] for n in sorted(rng.sample(sorted(lengths), 3))]
        how = "from the shortest to the longest word"
    elif template == 1:
        things = [str(n) for n in sorted(rng.sample(range(100, 1000), 3), reverse=True)]
        how = "from the largest to the smallest number"
    elif template == 2:
        hours = sorted(rng.sample(range(7, 22), 3))
        things = [f"{hour}:{rng.randint(10, 59)}" for hour in hours]
        how = "from the earliest to the latest time"
    elif template == 3:
        things = [MONTHS[n] for n in sorted(rng.sample(range(12), 3))]
        how = "in the order in which they come in the year"
    else:
        things = sorted(rng.sample(CITIES, 3), reverse=True)
        how = "from Z to A"
    mixed = rng.sample(things, 3)
    while mixed == things:
        mixed = rng.sample(things, 3)
    return exact(
        f"Put these {how}, separated by commas: {', '.join(mixed)}",
        ", ".join(things),
        ", ".join(mixed),
        cluster=f"order_things/{template}",
    )


def order_things(rng: Random) -> list[Question]:
    """Words by length, numbers downwards, times, months, cities from Z to A."""
    return different(rng, _order_things, ITEMS)


def _compare_values(rng: Random, index: int) -> Question:
    template = index % 5
    one, two, three = everybody = tuple(rng.sample(NAMES, 3))
    if template == 0:
        cm = rng.sample(range(150, 200), 3)
        asked = f"{one} is {cm[0]} cm tall, {two} {cm[1]} cm and {three} {cm[2]} cm. Who is the tallest?"
        answer = everybody[cm.index(max(cm))]
    elif template == 1:
        word, before = rng.choice((("shortest", "taller"), ("tallest", "taller")))
        asked = f"{one} is {before} than {two}. {two} is {before} than {three}. Who is the {word}?"
        answer = three if word == "shortest" else one
    elif template == 2:
        dollars = rng.sample(range(12, 90), 3)
        asked = (
            f"{one} paid ${dollars[0]} for the ticket, {two} ${dollars[1]} and {three} ${dollars[2]}. "
            "Who paid the least?"
        )
        answer = everybody[dollars.index(min(dollars))]
    elif template == 3:
        months = rng.sample(range(12), 2)
        came, later = (MONTHS[month] for month in months)
        asked = f"{one} comes in {came} and {two} in {later} of the same year. Who comes first?"
        answer = one if months[0] < months[1] else two
    else:
        kilos = rng.sample(range(3, 40), 2)
        grams = kilos[1] * 1000 + rng.choice((-500, 500))
        asked = f"{one}'s bag weighs {kilos[0]} kilograms, {two}'s {grams} grams. Whose bag is heavier?"
        answer = one if kilos[0] * 1000 > grams else two
    others = [name for name in everybody if name != answer and name in asked]
    return chosen(
        rng,
        f"{asked} Answer with the name only.",
        answer,
        others,
        (index // 5 + template) % (len(others) + 1),
        cluster=f"compare_values/{template}",
    )


def compare_values(rng: Random) -> list[Question]:
    """Who is tallest, shortest by a chain, cheapest, first, heavier across units."""
    return different(rng, _compare_values, ITEMS)


def negation(rng: Random) -> list[Question]:
    """Yes or no about sentences with not, except, neither and without; as many yes as no."""
    right = [n % 2 == 0 for n in range(ITEMS)]
    questions: dict[str, Question] = {}
    while len(questions) < ITEMS:
        index = len(questions)
        yes, template = right[index], index // 2 % 5
        one, two, three = rng.sample(NAMES, 3)
        red, blue, green = rng.sample(COLOURS, 3)
        day, other = rng.sample(DAYS, 2)
        absent = rng.choice((one, two))
        asked = (
            f"All boxes are full except the {red} one. Is the {blue if yes else red} box full?",
            f"Neither {one} nor {two} came, but {three} did. Did {three if yes else absent} come?",
            f"The shop is not open on {day}, but on every other day. Is it open on {other if yes else day}?",
            f"{one} came without {two}, but with {three}. Did {three if yes else two} come with {one}?",
            f"The key is not in the {red} or the {blue} bag, so it must be in the {green} one. "
            f"Is the key in the {green if yes else rng.choice((red, blue))} bag?",
        )[template]
        answer, wrong = ("yes", "no") if yes else ("no", "yes")
        question = chosen(
            rng,
            f"{asked} Answer yes or no.",
            answer,
            [wrong],
            index // 10 % 2,
            cluster=f"negation/{template}",
        )
        questions.setdefault(question.prompt, question)
    return list(questions.values())
