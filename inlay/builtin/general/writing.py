"""Instructions about the form of a text: how many words, what kind of list, what to use and what to avoid.

What is checked is the form, and that the text has to do with what was asked: a word that must occur, or
members of a closed set. A reply of nothing, or of anything, fails.
"""

from __future__ import annotations

import re
from random import Random

from inlay.builtin.general.question import Question, lines, words

WORD_COUNT_WORDINGS = (
    "Write a sentence of exactly {n} words that contains the word {w}.",
    "Use the word {w} in a sentence. The sentence must have exactly {n} words.",
    "Write a headline of exactly {n} words. One of them must be {w}.",
    "Give me exactly {n} words about the {w}, and let {w} be one of them.",
)
WORD_COUNT_WORDS = words("""
    river garden winter bridge market teacher storm kitchen island train forest harbour museum doctor village
    engine library festival mountain holiday bakery concert desert airport painter castle hospital election
    valley farmer tunnel theatre
""")
FILLING = words("we all like to see it here every single day")


def word_count(rng: Random) -> list[Question]:
    """So many words, a given one among them; hyphens and apostrophes belong to a word."""
    chosen = rng.sample(WORD_COUNT_WORDS, len(WORD_COUNT_WORDS))
    questions = []
    for index, word in enumerate(chosen):
        n, template = 4 + index % 6, index % len(WORD_COUNT_WORDINGS)
        reply = ["The", word, *FILLING]
        questions.append(
            Question(
                WORD_COUNT_WORDINGS[template].format(n=NUMBER_WORDS[n], w=word),
                rf"(?i)(?=.*\b{word}\b)\W*+(?:\w[\w'’-]*+\W*+){{{n}}}",
                "regex",
                good=" ".join(reply[:n]) + ".",
                bad=" ".join(reply[: n + 1]) + ".",
                cluster=f"word_count/{template}",
            )
        )
    return questions


NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

CLOSED_SETS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("days of the week", words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")),
    ("months of the year", words(
        "January February March April May June July August September October November December"
    )),
    ("planets of the solar system", words("Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune")),
    ("seasons of the year", ("spring", "summer", "autumn", "winter", "fall")),
    ("main compass directions", ("north", "east", "south", "west")),
    ("continents", ("Africa", "Antarctica", "Asia", "Australia", "Oceania", "Europe", "North America",
                    "South America")),
    ("suits of a pack of playing cards", ("hearts", "diamonds", "clubs", "spades")),
    ("colours of the rainbow", words("red orange yellow green blue indigo violet purple")),
)  # fmt: skip

LIST_WORDINGS = (
    ("Name {n} {things} as a bullet list: one on each line, each line beginning with a dash. "
     "Write nothing else."),
    "Name {n} {things} on one line, separated by commas. Write nothing else.",
    "Name {n} {things} as a numbered list, like this:\n1. first\n2. second\nWrite nothing else.",
    "Name {n} {things} in capital letters, one on each line. Write nothing else.",
)  # fmt: skip


def _list_pattern(template: int, n: int, members: tuple[str, ...]) -> str:
    """The pattern of `n` different members of a set in the form that the wording asks for."""
    names = [m.upper() for m in members] if template == 3 else list(members)
    one = f"(?:{'|'.join(re.escape(name) for name in names)})"
    different = rf"(?!.*\b({'|'.join(re.escape(name) for name in names)})\b.*\b\1\b)"
    if template == 0:
        body = rf"- *{one}(?: *\n+ *- *{one}){{{n - 1}}}"
    elif template == 1:
        body = rf"{one}(?:, *(?:and +)?{one}){{{n - 1}}}\.?"
    elif template == 2:
        body = r" *\n+ *".join(rf"{k}[.)] *{one}" for k in range(1, n + 1))
    else:
        body = rf"{one}(?: *\n+ *{one}){{{n - 1}}}"
    return ("" if template == 3 else "(?i)") + different + body


def _list_reply(template: int, names: list[str]) -> str:
    if template == 0:
        return "\n".join(f"- {name}" for name in names)
    if template == 1:
        return ", ".join(names)
    if template == 2:
        return "\n".join(f"{k}. {name}" for k, name in enumerate(names, 1))
    return "\n".join(name.upper() for name in names)


def list_form(rng: Random) -> list[Question]:
    """So many different members of a closed set, as a list of a given form."""
    questions = []
    for template, wording in enumerate(LIST_WORDINGS):
        for index, (things, members) in enumerate(CLOSED_SETS):
            n = 2 + (index + template) % 2
            names = rng.sample(members, n)
            questions.append(
                Question(
                    wording.format(n=NUMBER_WORDS[n], things=things),
                    _list_pattern(template, n, members),
                    "regex",
                    good=_list_reply(template, names),
                    bad=_list_reply(template, [names[0], *names]),
                    cluster=f"list_form/{template}",
                )
            )
    return questions


AVOIDED = lines("""
    the sea | waves | water | Long waves roll over the sand.
    winter | frost | snow | In winter the frost paints the windows.
    a school | children | teacher | The children learn to read and write.
    a forest | birds | trees | Many birds sing in the green forest.
    breakfast | bread | coffee | We eat bread with honey in the morning.
    a football match | goal | ball | The last goal came in the final minute.
    a hospital | nurse | doctor | The nurse helps everyone who is ill.
    a birthday | candles | cake | She blew out all the candles at once.
""")
LOWER = lines("""
    breakfast | we have breakfast at eight.
    holiday | our holiday was far too short.
    bicycle | my bicycle stands behind the house.
    rain | the rain has stopped at last.
    neighbour | our neighbour plays the piano.
    cheese | they sell good cheese there.
    window | please open the window a little.
    newspaper | he reads the newspaper every morning.
""")
ENDING = lines("""
    moon | Last night we looked at the moon.
    bridge | The old road leads to a bridge.
    honey | Bears are said to love honey.
    station | Please meet me at the station.
    silence | After the concert there was silence.
    boat | They crossed the lake in a boat.
    garden | My uncle works in the garden.
    morning | The shop opens early in the morning.
""")
ASKED = lines("""
    where | Where did you put the keys?
    can | Can you help me with this box?
    which | Which of these roads leads to the lake?
    when | When does the next train leave?
    why | Why is the sky blue?
    how | How many people live here?
    who | Who wrote this letter?
    should | Should we take the bus today?
""")


def use_and_avoid(_rng: Random) -> list[Question]:
    """One sentence that uses a word, and avoids another, keeps to a case, or ends or begins as told."""
    sentence = r"(?:\W*+\w[\w'’-]*+){3,}\W*"
    found = [
        Question(
            f"Write one sentence about {topic}. Use the word {use} and do not use the word {avoid}.",
            rf"(?i)(?=.*\b{use}\b)(?!.*\b{avoid}\b){sentence}",
            "regex",
            good=good,
            bad=f"{good} And there was {avoid}.",
            cluster="use_and_avoid/avoid",
        )
        for topic, use, avoid, good in AVOIDED
    ]
    found += [
        Question(
            f"Write one sentence with the word {use}. All of it must be in lower case, no capital letters.",
            rf"(?=.*\b{use}\b)(?!.*[A-Z]){sentence}",
            "regex",
            good=good,
            bad=good.capitalize(),
            cluster="use_and_avoid/lower",
        )
        for use, good in LOWER
    ]
    found += [
        Question(
            f"Write one sentence that has the word {end} at its very end.",
            rf"(?i)(?=.*\b{end}\W*\Z){sentence}",
            "regex",
            good=good,
            bad=f"{good.rstrip('.')} again.",
            cluster="use_and_avoid/end",
        )
        for end, good in ENDING
    ]
    found += [
        Question(
            f"Write a question that begins with the word {first}. End it with a question mark.",
            rf"(?i)(?=\W*{first}\b)(?=.*\?\W*\Z){sentence}",
            "regex",
            good=good,
            bad=good.replace("?", "."),
            cluster="use_and_avoid/question",
        )
        for first, good in ASKED
    ]
    return found
