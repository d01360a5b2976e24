"""What is kept out of training to be measured on, where no suite can be: raw text and preference pairs."""

from __future__ import annotations

import random
from typing import Any

from inlay.errors import InputError
from inlay.trainers.methods import method_named
from inlay.trainers.pairs import Pairs
from inlay.trainers.reading import Data, read
from inlay.trainers.settings import Settings
from inlay.trainers.texts import Texts


def held_apart(data: Data, settings: Settings, given: Any = None) -> tuple[Data, Pairs | Texts | None]:
    """What is trained on, and what before and after are measured on; None where suites are there for that.

    `given`: a file or rows of their own; without, `held_out_share` of the different rows, drawn by the seed:
    copies of one go to one side. Raises InputError where `given` is for a method that measures nothing so.
    """
    if not isinstance(data, Pairs | Texts) or not hasattr(method_named(settings.method), "figures"):
        if given is not None:
            raise InputError(
                f"{settings.method} is measured on suites, not on held-out rows", fix="name one with --eval"
            )
        return data, None
    if given is not None:
        held = read(given, settings.method, name="held out" if isinstance(given, list | tuple) else None)
        assert isinstance(held, Pairs | Texts)
        return data, held
    digests = data.row_digests
    different = list(dict.fromkeys(digests))
    count = round(settings.held_out_share * len(different))
    if settings.held_out_share > 0 and len(different) > 1:
        count = max(1, count)
    if count == 0:
        return data, None
    drawn = set(random.Random(settings.seed).sample(different, count))
    sides: dict[bool, list[int]] = {False: [], True: []}
    for place, digest in enumerate(digests):
        sides[digest in drawn].append(place)
    return data.only(sides[False]), data.only(sides[True], f"{data.name}, held out")


def declared(held: Pairs | Texts, data: Data) -> dict[str, Any]:
    """What a run's record says of it before training; `also_trained_on`: so many rows are in `data` too."""
    trained = set(data.row_digests)
    return {**held.manifest, "also_trained_on": sum(digest in trained for digest in held.row_digests)}
