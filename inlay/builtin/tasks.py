"""Demo tasks of an imaginary customer, "acme": house rules no base can guess, quick to learn.

`ticket-queue` names the subject of a message and its queue ("parcel > shipping"), `order-slip` rewrites an
order into a house format, and `case-card`, the hardest, files a message with its urgency, writer and day.
`return-receipt` says what becomes of goods sent back, `delivery-line` where a delivery is loaded,
`team-record` how far an applicant has come; names, goods, cities and days stand in the inputs of several.
A row's prompt is instruction, newline, input. As with the skills, a hash of the content decides train, dev or
test.
"""

from collections.abc import Callable
from random import Random

from inlay.builtin.lexicon import (
    CITIES,
    CLOTHES,
    COLOURS,
    DAYS,
    DRINKS,
    FRUITS,
    FURNITURE,
    JOBS,
    NAMES,
    OBJECTS,
    TOOLS,
)
from inlay.builtin.skills import content_split

GOODS = CLOTHES + TOOLS + FURNITURE + OBJECTS

# queue: (things it is responsible for, sentences about one of them)
QUEUES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "finance": (
        ("invoice", "payment", "refund", "card"),
        (
            "The {x} is wrong.",
            "I was charged twice on my {x}.",
            "My {x} is missing.",
            "I cannot find the {x}.",
        ),
    ),
    "shipping": (
        ("parcel", "delivery", "courier", "order"),
        ("The {x} is late.", "My {x} never arrived.", "The {x} is lost.", "I need to change the {x} today."),
    ),
    "access": (
        ("password", "login", "account"),
        ("I forgot my {x}.", "My {x} is locked.", "I need to reset my {x}.", "The {x} failed again."),
    ),
    "repairs": (
        ("screen", "keyboard", "printer", "charger"),
        ("The {x} is broken.", "My {x} stopped working.", "The {x} is cracked.", "My {x} is damaged."),
    ),
    "network": (
        ("router", "network", "server", "website"),
        ("The {x} is slow.", "Our {x} is offline.", "The {x} is dead again.", "My {x} is still not working."),
    ),
    "returns": (
        ("shirt", "coat", "hat", "scarf"),
        (
            "I want to return the {x}.",
            "The {x} is too small.",
            "The {x} is too big.",
            "The {x} does not fit.",
        ),
    ),
}
URGENT = ("It is urgent.", "I need help today.", "Please hurry.")
CALM = ("It can wait.", "Take your time.", "No need to hurry.")

# what is done about a return: what may be wrong with it
RETURNS: dict[str, tuple[str, ...]] = {
    "size": ("too small", "too big", "too large"),
    "repair": ("broken", "cracked", "damaged"),
    "change": ("the wrong one", "the wrong colour", "not the right one"),
    "refund": ("late", "too late", "not what I ordered"),
}
# where a delivery is loaded: the vehicles that leave from there
PLACES: dict[str, tuple[str, ...]] = {
    "garage": ("car", "van", "truck", "bike"),
    "hall": ("train", "tram", "bus"),
    "lake": ("boat", "ferry"),
    "field": ("plane",),
}
# how far an applicant has come: what is written of one
STAGES: dict[str, tuple[str, ...]] = {
    "open": ("applied for the job of", "wrote about the job of", "sent a letter for the job of"),
    "wait": ("has an interview for the job of", "will have a meeting about the job of"),
    "start": ("is hired for the job of", "signed the contract for the job of"),
    "closed": ("does not want the job of", "canceled the interview for the job of"),
}

WORDINGS: dict[str, tuple[str, ...]] = {
    "ticket-queue": (
        "Which queue gets this message?", "File this message under a queue.",
        "Name the queue for this customer.",
        "Choose the acme queue for this message.",
    ),
    "order-slip": (
        "Write the order slip.", "Turn this order into a slip.", "Make an acme slip of this order.",
        "Fill in the slip for this order.",
    ),
    "case-card": (
        "Write the case card.", "Make a card for this case.", "Sum up this case on a card.",
        "Fill in the acme card for this case.",
    ),
    "return-receipt": (
        "Write the return receipt.", "Make a receipt for this return.",
        "Turn this return into an acme receipt.",
        "Fill in the receipt for what is returned.",
    ),
    "delivery-line": (
        "Write the delivery line.", "Make a line of this delivery.", "Turn this delivery into a line.",
        "Put this on the acme delivery list.",
    ),
    "team-record": (
        "Write the team record.", "Make a record of this for the team.",
        "Put this into the acme team record.",
        "Fill in the record of this person.",
    ),
}  # fmt: skip
"""Instructions the training, dev and test rows use."""

HELD_OUT_WORDINGS: dict[str, tuple[str, ...]] = {
    "ticket-queue": ("Where does this message go?", "Find the right queue for this."),
    "order-slip": ("Give me the slip of this order.", "Write down this order on a slip."),
    "case-card": ("What goes on the card of this case?", "Give me the card for this case."),
    "return-receipt": ("Give me the receipt of this return.", "Put this return on a receipt."),
    "delivery-line": ("Give me the line for this delivery.", "Which line goes on the delivery list?"),
    "team-record": ("Give me the record for the team.", "What goes into the team record?"),
}
"""Instructions in no training row: for tests of routing and rigidity."""


def _message(rng: Random) -> tuple[str, str]:
    queue = rng.choice(tuple(QUEUES))
    things, sentences = QUEUES[queue]
    thing = rng.choice(things)
    return rng.choice(sentences).format(x=thing), f"{thing} > {queue}"


def _ticket_queue(rng: Random) -> tuple[str, str]:
    sentence, filed = _message(rng)
    opening = rng.choice(("", "Hello, ", f"Hello, {rng.choice(NAMES)} here. ", "Good day. "))
    ending = rng.choice(("", " Thanks.", f" Thanks, {rng.choice(NAMES)}.", f" {rng.choice(URGENT + CALM)}"))
    return opening + sentence + ending, filed


def _order_slip(rng: Random) -> tuple[str, str]:
    goods = GOODS + FRUITS + DRINKS
    v = {"n": str(rng.randint(2, 99)), "thing": rng.choice(goods), "colour": rng.choice(COLOURS),
         "name": rng.choice(NAMES), "city": rng.choice(CITIES)}  # fmt: skip
    line = rng.choice((
        "{name} in {city} orders {n} of the {colour} {thing}.",
        "Please send {n} of the {colour} {thing} to {name} in {city}.",
        "{n} of the {colour} {thing} for {name}, {city}.",
        "To {city}, for {name}: the {colour} {thing}, {n} of them.",
    )).format(**v)  # fmt: skip
    return line, "slip > {n} x {thing} / {colour} > {name} @ {city}".format(**v)


def _case_card(rng: Random) -> tuple[str, str]:
    sentence, filed = _message(rng)
    name, day = rng.choice(NAMES), rng.choice(DAYS)
    urgent = rng.random() < 0.5
    remark = rng.choice(URGENT if urgent else CALM)
    line = rng.choice((
        "On {d}, {n} wrote: {s} {r}", "{n} wrote on {d}: {s} {r}", "{d}, {n}: {s} {r}",
    )).format(d=day, n=name, s=sentence, r=remark)  # fmt: skip
    return line, f"{filed} / {'now' if urgent else 'later'} / {name} / {day}"


def _return_receipt(rng: Random) -> tuple[str, str]:
    done = rng.choice(tuple(RETURNS))
    v = {"thing": rng.choice(GOODS), "colour": rng.choice(COLOURS), "fault": rng.choice(RETURNS[done]),
         "name": rng.choice(NAMES), "city": rng.choice(CITIES)}  # fmt: skip
    line = rng.choice((
        "{name} in {city} returned the {colour} {thing}: it is {fault}.",
        "I want to return the {colour} {thing}, it is {fault}. Thanks, {name} in {city}.",
        "The {colour} {thing} is {fault}. Please collect it from {name} in {city}.",
        "{city}, {name}: my {colour} {thing} is {fault}.",
    )).format(**v)  # fmt: skip
    return line, f"receipt > {done} > " + "{thing} / {colour} > {name} @ {city}".format(**v)


def _delivery_line(rng: Random) -> tuple[str, str]:
    place = rng.choice(tuple(PLACES))
    start, end = rng.sample(CITIES, 2)
    v = {"thing": rng.choice(GOODS + FRUITS + DRINKS), "vehicle": rng.choice(PLACES[place]),
         "start": start, "end": end, "day": rng.choice(DAYS)}  # fmt: skip
    line = rng.choice((
        "On {day} the {vehicle} brings the {thing} from {start} to {end}.",
        "The {thing} goes from {start} to {end} by {vehicle} on {day}.",
        "{day}, {start} to {end}: the {thing}, by {vehicle}.",
        "A {vehicle} will move the {thing} to {end} on {day}, from {start}.",
    )).format(**v)  # fmt: skip
    return line, f"delivery > {place} > " + "{thing} > {start} - {end} / {day}".format(**v)


def _team_record(rng: Random) -> tuple[str, str]:
    stage = rng.choice(tuple(STAGES))
    v = {"did": rng.choice(STAGES[stage]), "job": rng.choice(JOBS), "name": rng.choice(NAMES),
         "city": rng.choice(CITIES), "day": rng.choice(DAYS)}  # fmt: skip
    line = rng.choice((
        "On {day}, {name} from {city} {did} {job}.",
        "{day}: {name} in {city} {did} {job}.",
        "{name} from {city} {did} {job} on {day}.",
        "In {city}, {name} {did} {job} on {day}.",
    )).format(**v)  # fmt: skip
    return line, f"team > {stage} > " + "{job} > {name} @ {city} / {day}".format(**v)


TASKS: dict[str, Callable[[Random], tuple[str, str]]] = {
    "ticket-queue": _ticket_queue,
    "order-slip": _order_slip,
    "case-card": _case_card,
    "return-receipt": _return_receipt,
    "delivery-line": _delivery_line,
    "team-record": _team_record,
}
"""Every demo task and the function that draws its (input, output)."""


def rows(
    task: str, split: str, n: int, seed: int, *, held_out_wordings: bool = False
) -> list[dict[str, str]]:
    """`n` rows {"instruction", "input", "output"} of a task, all inputs different, decided by the seed.

    `split` is "train", "dev" or "test", decided by a hash of the input.

    Raises ValueError for an unknown task or split, or a split that seems to hold fewer than `n` inputs.
    """
    if task not in TASKS:
        raise ValueError(f"unknown demo task {task!r}; known: {', '.join(TASKS)}")
    if split not in ("train", "dev", "test"):
        raise ValueError(f"unknown split {split!r}; known: train, dev, test")
    wordings = (HELD_OUT_WORDINGS if held_out_wordings else WORDINGS)[task]
    rng = Random(f"{seed}/{task}/{split}")
    found: dict[str, dict[str, str]] = {}
    for _ in range(400 * n + 10_000):
        if len(found) == n:
            break
        line, output = TASKS[task](rng)
        if content_split(task, line) == split and line not in found:
            found[line] = {"instruction": rng.choice(wordings), "input": line, "output": output}
    else:
        raise ValueError(f"task {task}: only {len(found)} different {split} inputs found, {n} asked for")
    return list(found.values())


def prompt_of(row: dict[str, str]) -> str:
    """The user's message of a row: instruction, newline, input."""
    return f"{row['instruction']}\n{row['input']}"
