"""The plain skills the built-in base is taught, and their split into unseen items and held-out skills.

Every skill is one small function that draws a *content* (the slots of a wording, and the answer) plus a few
wordings. All of them stand in `TRAINED`; `SKILLS` are those the base masters. The instructions are ordinary
English, so that `general-v1`, which is drawn from here, makes sense on any instruct model.

Two splits, never mixed up:

- *contents*: a hash of (skill, content) decides train, dev or test, so a test item was not seen in training
  under any wording;
- *skills*: `split_skills` samples at least a third of the names as *held out*. The base learns them all, but
  held-out skills appear in no KL, replay or router prompt: they are what forgetting is judged on.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from inlay.builtin.lexicon import (
    ADJECTIVES,
    CATEGORIES,
    CITIES,
    COLOURS,
    DAYS,
    JOBS,
    LIST_WORDS,
    NAMES,
    NOUNS,
    ROOMS,
    VERBS,
)

SPLIT_SEED = 20
"""Seed of the protected / held-out split of skills."""

Draw = tuple[dict[str, str], str]


@dataclass(frozen=True)
class Skill:
    """`draw(rng)` gives (slots, answer); any of `wordings` formatted with the slots is a prompt."""

    name: str
    wordings: tuple[str, ...]
    draw: Callable[[Random], Draw]


@dataclass(frozen=True)
class Item:
    """One question: the user's message, the exact expected reply, and the skill it belongs to."""

    skill: str
    prompt: str
    answer: str


def _words(rng: Random, low: int, high: int) -> list[str]:
    return rng.sample(LIST_WORDS, rng.randint(low, high))


def _copy(rng: Random) -> Draw:
    text = " ".join(_words(rng, 2, 5))
    return {"x": text}, text


def _upper_case(rng: Random) -> Draw:
    text = " ".join(_words(rng, 1 + (rng.random() < 0.95), 4))
    return {"x": text}, text.upper()


def _reverse_words(rng: Random) -> Draw:
    words = _words(rng, 2, 4)
    return {"x": " ".join(words)}, " ".join(reversed(words))


def _first_word(rng: Random) -> Draw:
    words = _words(rng, 3, 6)
    return {"x": " ".join(words)}, words[0]


def _last_word(rng: Random) -> Draw:
    words = _words(rng, 3, 6)
    return {"x": " ".join(words)}, words[-1]


def _nth_word(rng: Random) -> Draw:
    words = _words(rng, 4, 5)
    place = rng.randrange(1, 4)
    return {"x": " ".join(words), "nth": ("first", "second", "third", "fourth")[place]}, words[place]


def _word_after(rng: Random) -> Draw:
    words = _words(rng, 3, 6)
    place = rng.randrange(len(words) - 1)
    return {"x": " ".join(words), "w": words[place]}, words[place + 1]


def _count_words(rng: Random) -> Draw:
    words = _words(rng, 1, 7)
    return {"x": " ".join(words)}, str(len(words))


def _first_letters(rng: Random) -> Draw:
    words = _words(rng, 2, 4)
    return {"x": " ".join(words)}, " ".join(w[0] for w in words)


def _sort_words(rng: Random) -> Draw:
    words = rng.sample(NOUNS, 3)
    return {"x": " ".join(words)}, " ".join(sorted(words))


def _sort_numbers(rng: Random) -> Draw:
    numbers = rng.sample(range(1, 100), 3)
    return {"x": " ".join(map(str, numbers))}, " ".join(map(str, sorted(numbers)))


def _larger_number(rng: Random) -> Draw:
    a, b = rng.sample(range(100), 2)
    return {"a": str(a), "b": str(b)}, str(max(a, b))


def _smaller_number(rng: Random) -> Draw:
    a, b = rng.sample(range(100), 2)
    return {"a": str(a), "b": str(b)}, str(min(a, b))


def _add(rng: Random) -> Draw:
    a, b = rng.randrange(50), rng.randrange(50)
    return {"a": str(a), "b": str(b)}, str(a + b)


def _contains_word(rng: Random) -> Draw:
    *words, other = _words(rng, 4, 6)
    wanted, answer = (rng.choice(words), "yes") if rng.random() < 0.5 else (other, "no")
    return {"x": " ".join(words), "w": wanted}, answer


def _remove_word(rng: Random) -> Draw:
    words = _words(rng, 3, 5)
    gone = rng.choice(words)
    return {"x": " ".join(words), "w": gone}, " ".join(w for w in words if w != gone)


def _replace_word(rng: Random) -> Draw:
    *words, new = _words(rng, 4, 5)
    old = rng.choice(words)
    return {"x": " ".join(words), "w": old, "v": new}, " ".join(new if w == old else w for w in words)


def _join_and(rng: Random) -> Draw:
    words = _words(rng, 3, 4)
    return {"x": " ".join(words)}, ", ".join(words[:-1]) + " and " + words[-1]


def _pick_category(rng: Random) -> Draw:
    category = rng.choice(tuple(CATEGORIES))
    answer = rng.choice(CATEGORIES[category])
    others = [w for name, words in CATEGORIES.items() if name != category for w in words]
    words = [answer, *rng.sample(others, rng.randint(2, 3))]
    rng.shuffle(words)
    article = "an" if category[0] in "aeiou" else "a"
    return {"x": " ".join(words), "c": f"{article} {category}"}, answer


def _field_values(rng: Random) -> dict[str, str]:
    return {
        "name": rng.choice(NAMES),
        "city": rng.choice(CITIES),
        "age": str(rng.randint(18, 90)),
        "job": rng.choice(JOBS),
        "day": rng.choice(DAYS),
        "colour": rng.choice(COLOURS),
        "item": rng.choice(NOUNS),
    }


def _extract_field(rng: Random) -> Draw:
    values = _field_values(rng)
    keys = rng.sample(tuple(values), rng.randint(3, 4))
    wanted = rng.choice(keys)
    return {"x": "; ".join(f"{k}: {values[k]}" for k in keys), "k": wanted}, values[wanted]


def _json_line(rng: Random) -> Draw:
    v = _field_values(rng)
    line = rng.choice(("{name}, {age}, {city}", "{name} is {age} and lives in {city}",
                       "name: {name}; age: {age}; city: {city}")).format(**v)  # fmt: skip
    return {"x": line}, f'{{"name": "{v["name"]}", "age": {v["age"]}, "city": "{v["city"]}"}}'


def _answer_sentence(rng: Random) -> Draw:
    facts = {
        "who": rng.choice(NAMES),
        "what": rng.choice(NOUNS),
        "where": rng.choice(ROOMS),
        "when": rng.choice(DAYS),
        "colour": rng.choice(COLOURS),
    }
    past = rng.choice(VERBS)[2]
    sentence = rng.choice((
        "{who} {past} the {colour} {what} in the {where} on {when}.",
        "On {when} {who} {past} the {colour} {what} in the {where}.",
        "In the {where}, {who} {past} a {colour} {what} on {when}.",
    )).format(past=past, **facts)  # fmt: skip
    key, question = rng.choice((
        ("who", f"Who {past} the {facts['what']}?"),
        ("what", f"What is {facts['colour']}?"),
        ("where", f"In which room was the {facts['what']}?"),
        ("when", f"On which day was it {past}?"),
        ("colour", f"Which colour is the {facts['what']}?"),
    ))  # fmt: skip
    return {"x": sentence, "q": question}, facts[key]


def _yes_no_sentence(rng: Random) -> Draw:
    one, two = rng.sample(NAMES, 2)
    thing, other = rng.sample(NOUNS, 2)
    colour, another = rng.sample(COLOURS, 2)
    true = rng.random() < 0.5
    sentence, question = rng.choice((
        (f"{one} has a {colour} {thing}.", f"Is the {thing} {colour if true else another}?"),
        (f"The {thing} of {one} is {colour}.", f"Is the {thing} {colour if true else another}?"),
        (f"{one} sold a {colour} {thing}.", f"Did {one if true else two} sell a {thing}?"),
        (f"{one} bought a {thing}.", f"Did {one} buy a {thing if true else other}?"),
    ))  # fmt: skip
    return {"x": sentence, "q": question}, "yes" if true else "no"


def _who_is_older(rng: Random) -> Draw:
    one, two = rng.sample(NAMES, 2)
    a, b = rng.sample(range(18, 91), 2)
    word = rng.choice(("older", "younger"))
    first = (a > b) == (word == "older")
    return {"a": one, "m": str(a), "b": two, "n": str(b), "w": word}, one if first else two


def _polite(rng: Random) -> Draw:
    order, thing = rng.choice(VERBS)[0], rng.choice(NOUNS)
    where = rng.choice(("", f" for {rng.choice(NAMES)}", f" in the {rng.choice(ROOMS)}"))
    where += rng.choice(("", f" on {rng.choice(DAYS)}"))
    adjective = rng.choice(("", rng.choice(COLOURS) + " ", rng.choice(ADJECTIVES) + " "))
    rest = f"the {adjective}{thing}{where}"
    return {"x": f"{order} {rest}."}, f"Could you please {order.lower()} {rest}?"


def _negate(rng: Random) -> Draw:
    helper = rng.choice(("is", "was", "will be", "can be"))
    first, _, rest = helper.partition(" ")
    subject = f"The {rng.choice((*COLOURS, *ADJECTIVES))} {rng.choice(NOUNS)}"
    rest = f"{rest} " if rest else ""
    tail = rng.choice((rng.choice(ADJECTIVES), f"in the {rng.choice(ROOMS)}"))
    return {"x": f"{subject} {first} {rest}{tail}."}, f"{subject} {first} not {rest}{tail}."


def _past_tense(rng: Random) -> Draw:
    _, present, past = rng.choice(VERBS)
    name, thing, room = rng.choice(NAMES), rng.choice(NOUNS), rng.choice(ROOMS)
    rest = f"the {rng.choice(COLOURS)} {thing}" + rng.choice(("", f" in the {room}"))
    return {"x": f"{name} {present} {rest}."}, f"{name} {past} {rest}."


TRAINED: tuple[Skill, ...] = (
    Skill("copy", (
        "Repeat these words: {x}", "Copy this text exactly: {x}", "Say the following again: {x}",
        "Write exactly the same words.\n{x}", "Echo this line.\n{x}",
    ), _copy),
    Skill("upper_case", (
        "Write these words in upper case: {x}", "Convert to capital letters: {x}",
        "Put this text in upper case.\n{x}",
        "Change every letter to a capital letter: {x}", "Make these words upper case.\n{x}",
    ), _upper_case),
    Skill("reverse_words", (
        "Reverse the order of the words: {x}", "Write these words in reverse order: {x}",
        "List these words from last to first: {x}", "Turn the order of these words around.\n{x}",
    ), _reverse_words),
    Skill("first_word", (
        "What is the first word of this list: {x}", "Give the first word only: {x}",
        "Which word stands first?\n{x}", "Write the first word of this text.\n{x}",
    ), _first_word),
    Skill("last_word", (
        "What is the last word of this list: {x}", "Give the last word only: {x}",
        "Which word stands last?\n{x}", "Write the last word of this text.\n{x}",
    ), _last_word),
    Skill("nth_word", (
        "What is the {nth} word of this list: {x}", "Give the {nth} word only: {x}",
        "Which word stands {nth}?\n{x}", "Write the {nth} word of this text.\n{x}",
    ), _nth_word),
    Skill("word_after", (
        "Which word comes right after {w}: {x}", "In this list, what follows {w}?\n{x}",
        "Give the word that comes next after {w}: {x}", "Find {w} and write the next word.\n{x}",
    ), _word_after),
    Skill("count_words", (
        "How many words are in this list: {x}", "Count the words: {x}", "Give the number of words.\n{x}",
        "How many words does this line have? Answer with a number.\n{x}",
    ), _count_words),
    Skill("first_letters", (
        "Write the first letter of each word: {x}", "Give only the first letters of these words: {x}",
        "What letter does each word start with?\n{x}", "Keep only the first letter of every word.\n{x}",
    ), _first_letters),
    Skill("sort_words", (
        "Sort these words from a to z: {x}", "Put these words in alphabetical order: {x}",
        "Arrange the words by the alphabet.\n{x}", "Sort the words alphabetically.\n{x}",
    ), _sort_words),
    Skill("sort_numbers", (
        "Sort these numbers from small to large: {x}", "Put these numbers in ascending order: {x}",
        "Arrange the numbers, smallest first.\n{x}", "Order these numbers by size, smallest first: {x}",
    ), _sort_numbers),
    Skill("larger_number", (
        "Which number is larger, {a} or {b}?", "Give the larger number: {a} or {b}",
        "What is the maximum of {a} and {b}?", "Write the bigger of these two numbers.\n{a} {b}",
    ), _larger_number),
    Skill("smaller_number", (
        "Which number is smaller, {a} or {b}?", "Give the smaller number: {a} or {b}",
        "What is the minimum of {a} and {b}?", "Write the smaller of these two numbers.\n{a} {b}",
    ), _smaller_number),
    Skill("add", (
        "What is {a} plus {b}?", "Add {a} and {b}.", "What is the sum of {a} and {b}?", "Calculate {a} + {b}",
    ), _add),
    Skill("contains_word", (
        "Does this list contain {w}? Answer yes or no: {x}", "Is the word {w} in this list? {x}",
        "Yes or no: is {w} one of these words?\n{x}", "Is {w} part of this text? Answer yes or no.\n{x}",
    ), _contains_word),
    Skill("remove_word", (
        "Remove the word {w} from this list: {x}", "Write this without {w}: {x}", "Leave out {w}: {x}",
        "Delete {w} from this text.\n{x}",
    ), _remove_word),
    Skill("replace_word", (
        "Replace {w} with {v} in this list: {x}", "Write {v} instead of {w}: {x}", "Change {w} to {v}.\n{x}",
        "Use {v} in place of {w} in this text.\n{x}",
    ), _replace_word),
    Skill("join_and", (
        "Join these words with commas and a final and: {x}",
        "Write this list as in a sentence, with commas: {x}",
        "Put commas between these words and \"and\" before the last.\n{x}",
        "Make an enumeration with commas and \"and\".\n{x}",
    ), _join_and),
    Skill("pick_category", (
        "Which of these words is {c}: {x}", "Find the word that is {c}: {x}",
        "Only one of these is {c}. Which?\n{x}",
        "Name the one that is {c}.\n{x}",
    ), _pick_category),
    Skill("extract_field", (
        "What is the {k} in this record: {x}", "Give the value of {k}: {x}", "Extract the {k}.\n{x}",
        "Read the record and write only the {k}.\n{x}",
    ), _extract_field),
    Skill("json_line", (
        "Write as JSON with the keys name, age and city: {x}", "Convert to JSON (name, age, city): {x}",
        "Turn this into JSON with name, age and city.\n{x}", "Give a JSON object with name, age, city.\n{x}",
    ), _json_line),
    Skill("answer_sentence", (
        "{x} {q} Answer with one word.", "Read: {x}\n{q}", "{x}\nQuestion: {q}",
        "Answer in one word. {q}\n{x}",
    ), _answer_sentence),
    Skill("yes_no_sentence", (
        "{x} {q} Answer yes or no.", "Read: {x}\nYes or no: {q}", "{x}\nAnswer yes or no. {q}",
        "Yes or no? {q}\n{x}",
    ), _yes_no_sentence),
    Skill("who_is_older", (
        "{a} is {m} and {b} is {n}. Who is {w}?", "{a} is {m} years old. {b} is {n} years old. Who is {w}?",
        "Who is {w}, {a} ({m}) or {b} ({n})?", "Give the name of the {w} person.\n{a}: {m}, {b}: {n}",
    ), _who_is_older),
    Skill("polite", (
        "Make this a polite question with \"Could you please\": {x}", "Ask politely: {x}",
        "Rewrite this order as a polite request.\n{x}",
        "Say it politely, starting with \"Could you please\".\n{x}",
    ), _polite),
    Skill("negate", (
        "Make this sentence negative: {x}", "Negate with \"not\": {x}",
        "Say the opposite by adding not.\n{x}",
        "Put \"not\" into this sentence.\n{x}",
    ), _negate),
    Skill("past_tense", (
        "Write this sentence in the past tense: {x}", "Put into the past: {x}",
        "Change the verb to the past tense.\n{x}",
        "Say that it happened in the past.\n{x}",
    ), _past_tense),
)  # fmt: skip
"""Everything the base is trained on, in a fixed order. A new skill is a function above and a line here."""

UNMASTERED = ("who_is_older",)
"""Trained, but below 95% on unseen items (see docs/base.md): in no suite and no split."""

SKILLS: tuple[Skill, ...] = tuple(s for s in TRAINED if s.name not in UNMASTERED)
"""The skills the base has."""


def content_split(skill: str, content: str) -> str:
    """ "test" (10% of the contents), "dev" (5%) or "train", by a hash of the skill's name and the content."""
    bucket = int.from_bytes(hashlib.sha256(f"{skill}\n{content}".encode()).digest()[:4], "big") % 100
    return "test" if bucket < 10 else "dev" if bucket < 15 else "train"


def content_key(slots: dict[str, str], answer: str) -> str:
    """The content of an item as one string, whatever its wording."""
    return "\n".join([*(f"{k}={v}" for k, v in sorted(slots.items())), answer])


def noisy(wording: str, rng: Random) -> str:
    """The wording with two letters swapped, in lower case, or with a doubled space; slots are kept."""
    words = wording.split(" ")
    plain = [n for n, w in enumerate(words) if len(w) > 3 and w.isalpha()]
    kind = rng.randrange(3)
    if kind == 0 and plain:
        n = rng.choice(plain)
        at = rng.randrange(len(words[n]) - 1)
        words[n] = words[n][:at] + words[n][at + 1] + words[n][at] + words[n][at + 2 :]
    elif kind == 1:
        words = [w.lower() for w in words]
    elif len(words) > 1:
        words[rng.randrange(len(words) - 1)] += " "
    return " ".join(words)


def draws(skill: Skill, split: str, rng: Random, noise: float = 0.0) -> Iterator[Item]:
    """Endless items of one skill and content split under random wordings, a `noise` share `noisy`."""
    while True:
        slots, answer = skill.draw(rng)
        if content_split(skill.name, content_key(slots, answer)) == split:
            wording = rng.choice(skill.wordings)
            if noise and rng.random() < noise:
                wording = noisy(wording, rng)
            yield Item(skill.name, wording.format(**slots), answer)


def unique_items(skill: Skill, split: str, n: int, seed: int) -> list[Item]:
    """`n` different prompts of one skill and split; the same for the same seed.

    Raises ValueError if the split does not seem to hold that many.
    """
    rng = Random(f"{seed}/{skill.name}/{split}")
    found: dict[str, Item] = {}
    for tries, item in enumerate(draws(skill, split, rng)):
        found.setdefault(item.prompt, item)
        if len(found) == n:
            return list(found.values())
        if tries > 100 * n:
            raise ValueError(
                f"skill {skill.name}: only {len(found)} different {split} items found, {n} asked for"
            )
    raise AssertionError("draws() never ends")


def split_skills(seed: int = SPLIT_SEED) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(protected, held out) names of skills; a third of them, rounded up, is held out.

    `random.Random(seed).sample` over the sorted names decides, so the order in `SKILLS` does not matter.
    """
    names = sorted(s.name for s in SKILLS)
    held_out = tuple(sorted(Random(seed).sample(names, math.ceil(len(names) / 3))))
    return tuple(n for n in names if n not in held_out), held_out
