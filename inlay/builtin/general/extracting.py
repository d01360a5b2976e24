"""Getting out of a text what stands in it, as words or as JSON, and saying so where it does not stand there.

Details are asked of short passages with two or three candidates of the same kind, so that finding *a* date is
not enough. Half of the questions of `say_unknown` cannot be answered from their passage: always refusing pays
as little as always guessing. Its slices say which is which.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

from inlay.builtin.general.question import Question, lines, short, words
from inlay.builtin.lexicon import CITIES, DAYS, NAMES

MONTHS = words("January February March April May June July August September October November December")
SURNAMES = words("Baker Carter Fischer Larsen Moreau Novak Rossi Silva Turner Weber")
GOODS = ("lamp", "coat", "clock", "chair", "camera", "blanket", "mirror", "basket")

PASSAGES: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    ("{name} ordered a {thing} on {date} and paid {price}. It came on {date2}; the delivery cost {price2}.",
     (("When did it come? Answer with the date only.", "date2", "date"),
      ("What did the delivery cost? Answer with the price only.", "price2", "price"))),
    ("The meeting was moved from {day} to {day2}. {name} writes the minutes, {name2} brings a projector.",
     (("On which day is the meeting now? Answer with the day only.", "day2", "day"),
      ("Who brings a projector? Answer with the name only.", "name2", "name"))),
    ("Invoice of {date}: {price} for paint, {price2} for brushes. Please pay by {date2}.",
     (("What do the brushes cost? Answer with the price only.", "price2", "price"),
      ("By which date must it be paid? Answer with the date only.", "date2", "date"))),
    ("{name} was born in {city}, went to school in {city2} and now works in {city3}.",
     (("Where did {name} go to school? Answer with the city only.", "city2", "city"),
      ("Where does {name} work? Answer with the city only.", "city3", "city2"))),
    ("The train to {city} leaves at {time} from platform {small}, the one to {city2} at {time2} "
     "from platform {small2}.",
     (("When does the train to {city2} leave? Answer with the time only.", "time2", "time"),
      ("From which platform does the one to {city} leave? Answer with the number only.", "small", "small2"))),
    ("For lost luggage call {phone}, for tickets {phone2}. The lines are open until {time}.",
     (("Which number is for tickets? Answer with the number only.", "phone2", "phone"),
      ("Which number is for lost luggage? Answer with the number only.", "phone", "phone2"))),
    ("The museum opened in {year}, burned down in {year2} and was rebuilt by {surname} in {year3}.",
     (("In which year did it burn down? Answer with the year only.", "year2", "year"),
      ("Who rebuilt it? Answer with the name only.", "surname", "year3"))),
    ("Mix {grams} grams of flour with {grams2} grams of butter and bake it for {small} minutes.",
     (("How many grams of butter are needed? Answer with the number only.", "grams2", "grams"),
      ("How long must it bake, in minutes? Answer with the number only.", "small", "grams"))),
)  # fmt: skip


def _values(rng: Random) -> dict[str, str]:
    names, cities, days = rng.sample(NAMES, 2), rng.sample(CITIES, 3), rng.sample(DAYS, 2)
    first, second, third = sorted(rng.sample(range(1850, 2000), 3))
    price2, price = sorted(rng.sample(range(110, 990), 2))
    hour, hour2 = rng.sample(range(10, 22), 2)
    small, small2 = rng.sample(range(11, 60), 2)
    grams, grams2 = rng.sample(range(100, 500, 10), 2)
    phone, phone2 = rng.sample(range(2000, 9999), 2)
    month, month2 = (MONTHS[n] for n in sorted(rng.sample(range(12), 2)))
    return {
        "name": names[0], "name2": names[1], "city": cities[0], "city2": cities[1], "city3": cities[2],
        "day": days[0], "day2": days[1], "date": f"{rng.randint(10, 28)} {month}",
        "date2": f"{rng.randint(10, 28)} {month2}", "price": f"${price // 10}.{price % 10}0",
        "price2": f"${price2 // 10}.{price2 % 10}0", "time": f"{hour}:{rng.randint(10, 59)}",
        "time2": f"{hour2}:{rng.randint(10, 59)}", "small": str(small), "small2": str(small2),
        "grams": str(grams), "grams2": str(grams2), "phone": f"555 {phone}", "phone2": f"555 {phone2}",
        "year": str(first), "year2": str(second), "year3": str(third), "surname": rng.choice(SURNAMES),
        "thing": rng.choice(GOODS),
    }  # fmt: skip


def find_detail(rng: Random) -> list[Question]:
    """A date, name, price, time or number out of a passage that holds others of its kind."""
    questions = []
    for template, (passage, asked) in enumerate(PASSAGES):
        for question, key, other in asked * 2:
            values = _values(rng)
            questions.append(
                Question(
                    f"{passage.format(**values)}\n{question.format(**values)}",
                    short(values[key]),
                    "regex",
                    good=f"{values[key]}.",
                    bad=values[other],
                    cluster=f"find_detail/{template}",
                )
            )
    return questions


def _as_json(prompt: str, value: Any, bad: Any, template: int) -> Question:
    answer = json.dumps(value, ensure_ascii=False)
    return Question(
        prompt,
        answer,
        "json_equals",
        good=json.dumps(value, indent=1),
        bad=json.dumps(bad),
        cluster=f"json_object/{template}",
    )


def json_object(rng: Random) -> list[Question]:
    """JSON of a described content: keys with values, a list, a list in an object, numbers, true and false."""
    questions = []
    for _ in range(8):
        city, n = rng.choice(CITIES), rng.randint(2, 30)
        questions.append(
            _as_json(
                f'Write a JSON object in which "city" is "{city}" and "days" is the number {n}. '
                "Reply with the JSON only.",
                {"city": city, "days": n},
                {"city": city, "days": str(n)},
                0,
            )
        )
    for _ in range(8):
        names = rng.sample(NAMES, 3)
        questions.append(
            _as_json(
                f"Write these names as a JSON list of strings, in the same order: {', '.join(names)}. "
                "Reply with the JSON only.",
                names,
                {"names": names},
                1,
            )
        )
    for _ in range(8):
        thing, (one, two) = rng.choice(GOODS), rng.sample(("old", "red", "small", "heavy", "cheap", "new"), 2)
        questions.append(
            _as_json(
                f'Write a JSON object with the key "item" for {thing} and the key "tags" for the list of '
                f"{one} and {two}. Reply with the JSON only.",
                {"item": thing, "tags": [one, two]},
                {"item": thing, "tags": f"{one}, {two}"},
                2,
            )
        )
    for index in range(8):
        one, two = rng.sample(NAMES, 2)
        first = index % 2 == 0
        paid, owes = (one, two) if first else (two, one)
        said = (
            f"{paid} has paid and {owes} has not." if index % 4 < 2 else f"{owes} has not paid, {paid} has."
        )
        questions.append(
            _as_json(
                f'{said} Write a JSON object with the keys "{one}" and "{two}": true for who has paid, '
                "false for who has not. Reply with the JSON only.",
                {one: first, two: not first},
                {one: not first, two: first},
                3,
            )
        )
    return questions


KNOWN_AND_NOT = lines("""
    Clara sold her red car in May and bought a bicycle. | What did Clara buy? | bicycle | What did the bicycle cost? | 300
    The bakery on Mill Street opens at seven. Its bread is baked by two brothers. | How many brothers bake the bread? | two/2 | When does the bakery close? | seven
    Hugo's grandmother has three cats. The oldest one is called Pepper. | What is the oldest cat called? | Pepper | How old is Pepper? | three
    The bridge over the Larn was built of stone in 1820. | What was the bridge built of? | stone | Who built the bridge? | Larn
    Nina plays the violin in an orchestra. Her brother prefers the drums. | Which instrument does her brother prefer? | drums | What is her brother called? | Nina
    The hikers left the hut at dawn and reached the summit before noon. | What did they reach before noon? | summit | How many hikers were there? | one
    Flight 482 to Oslo is delayed because of fog. | What delays the flight? | fog | From which gate does it leave? | 482
    The library lends films for one week and books for four. | What is lent for one week? | films | How many books does the library have? | four
    Martin painted the kitchen yellow. For the hall he wants something darker. | Which room is yellow? | kitchen | Which colour will the hall have? | yellow
    Our village has a mill, a church and a pond. The mill is older than the church. | Which is older, the mill or the church? | mill | In which year was the church built? | 1800
    Irene missed the bus, so she walked to work and came late. | How did she get to work? | walked/walking/on foot | Where does Irene work? | bus
    The soup is made of leeks and potatoes. It must not boil for long. | Which vegetable is in the soup beside leeks? | potatoes/potato | For how many people is the soup? | two
    Victor sent the parcel on Monday; it weighed four kilos. | On which day was it sent? | Monday | What was in the parcel? | kilos
    The blue team won the final by two goals. The red team had won the year before. | Which team won the final? | blue | In which city was the final played? | red
    Ruth keeps bees behind the barn. Last summer they gave forty jars of honey. | How many jars did they give? | forty/40 | To whom did Ruth sell the honey? | bees
    The old lighthouse has 190 steps. A lamp has burned at its top since 1902. | How many steps does it have? | 190 | How high is the lighthouse in metres? | 190
""")  # noqa: E501
UNKNOWN_RULE = "Answer with one word or number. If the text does not say it, answer: unknown"


def say_unknown(_rng: Random) -> list[Question]:
    """Questions on a passage, half of which it does not answer."""
    questions = []
    for number, (passage, asked, answer, beyond, guess) in enumerate(KNOWN_AND_NOT):
        cluster = f"say_unknown/{number}"
        questions += [
            Question(
                f"{passage}\n{asked} {UNKNOWN_RULE}.", short(*answer.split("/")), "regex",
                good=answer.partition("/")[0].capitalize(),
                bad="unknown", cluster=cluster, slice="answerable",
            ),
            Question(
                f"{passage}\n{beyond} {UNKNOWN_RULE}.", short("unknown"), "regex", good="Unknown.",
                bad=guess, cluster=cluster, slice="unanswerable",
            ),
        ]  # fmt: skip
    return questions
