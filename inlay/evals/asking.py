"""From a suite to the questions a model is asked, and from what it said to outcomes.

An item is one question or several: one an accepted answer for exact match, one a choice for multiple choice.
Knows suites and metrics; does not know subjects, records or tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from inlay.errors import InputError
from inlay.evals.decoding import Decoding
from inlay.evals.suites import Item, Suite

if TYPE_CHECKING:
    from inlay.evals.metrics.similarity import Embedder
    from inlay.evals.partial import Partial
    from inlay.evals.scoring import Model

CHUNK = {"match": 256, "likelihood": 256, "generate": 64}
"""Questions given to a model in one call, by kind: what an interrupted evaluation asks again at most."""


class Question(NamedTuple):
    """`kind`: `match` (does it say exactly `text`?), `generate`, or `likelihood` (of `text`)."""

    item: int
    kind: str
    text: str = ""


@dataclass(frozen=True)
class Said:
    """Outcomes in item order, and the texts the model is known to have answered, by item id."""

    outcomes: tuple[bool | float, ...]
    answers: dict[str, str]


def questions(suite: Suite, decoding: Decoding) -> tuple[Question, ...]:
    """What to ask, in item order. A sampled answer cannot be had in one pass, so there all is generated."""
    asked: list[Question] = []
    for number, item in enumerate(suite.items):
        how = suite.metric_of(item).how
        if how == "choices":
            asked += [Question(number, "likelihood", choice) for choice in item.choices]
        elif how == "likelihood":
            asked.append(Question(number, "likelihood", item.answer))
        elif how == "match" and decoding.greedy:
            asked += [Question(number, "match", text.strip()) for text in item.accepted]
        else:
            asked.append(Question(number, "generate"))
    return tuple(asked)


def ask(
    model: Model,
    suite: Suite,
    decoding: Decoding,
    *,
    partial: Partial | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Any]:
    """What the model says to each of `questions`: bool, text, or (nats, tokens).

    With `partial`, what it holds is not asked again, and each piece goes there as soon as it is known. Which
    questions make a piece depends on the suite alone, so a resumed evaluation draws and pads as a whole one.
    """
    asked = questions(suite, decoding)
    held = partial.held if partial is not None else {}
    for draw, rows in enumerate(_chunks(suite, asked)):
        if not all(row in held for row in rows):
            done = len(held)
            inner = None if progress is None else (lambda n, _all, d=done: progress(d + n, len(asked)))
            said = _call(model, suite, [asked[row] for row in rows], decoding.settings(draw), inner)
            found = dict(zip(rows, said, strict=True))
            if partial is not None:
                partial.add(found)
            held = {**held, **found}
        if progress is not None:
            progress(len(held), len(asked))
    return [held[number] for number in range(len(asked))]


def outcomes(
    suite: Suite, decoding: Decoding, said: Sequence[Any], *, embedder: Embedder | None = None
) -> Said:
    """The outcome of each item from what was said to `questions`."""
    by_item: list[list[Any]] = [[] for _ in suite.items]
    kinds: dict[int, str] = {}
    for question, value in zip(questions(suite, decoding), said, strict=True):
        by_item[question.item].append(value)
        kinds[question.item] = question.kind
    found: list[bool | float] = []
    answers: dict[str, str] = {}
    near = iter(_similarities(suite, by_item, embedder))
    for number, (item, values) in enumerate(zip(suite.items, by_item, strict=True)):
        metric = suite.metric_of(item)
        if metric.how == "choices":
            nats = [float(value[0]) for value in values]
            answers[item.id] = item.choices[nats.index(min(nats))]
            found.append(bool(metric.judge(nats, item)))
        elif metric.how == "likelihood":
            found.append(float(metric.judge(float(values[0][0]), int(values[0][1]), item)))
        elif kinds[number] == "match":
            found.append(any(values))
        else:
            answers[item.id] = values[0]
            found.append(next(near) if metric.embeds else metric.outcome(values[0], item))
    return Said(tuple(found), answers)


def needs_embedding(suite: Suite) -> bool:
    """Whether a metric of the suite compares embeddings."""
    return any(metric.embeds for metric in suite.metrics)


def _chunks(suite: Suite, asked: Sequence[Question]) -> Iterator[list[int]]:
    """Numbers of questions of one kind and about one length, the longest first: what is too large for the
    memory fails at once."""
    for kind, size in CHUNK.items():
        rows = [row for row, question in enumerate(asked) if question.kind == kind]
        rows.sort(key=lambda row: -len(suite.items[asked[row].item].text) - len(asked[row].text))
        for start in range(0, len(rows), size):
            yield rows[start : start + size]


def _call(
    model: Model,
    suite: Suite,
    asked: Sequence[Question],
    settings: dict[str, Any],
    progress: Callable[[int, int], None] | None,
) -> list[Any]:
    items = [suite.items[question.item] for question in asked]
    prompts, texts = [item.chat for item in items], [question.text for question in asked]
    try:
        match asked[0].kind:
            case "match":
                return [bool(x) for x in model.matches(prompts, texts, progress=progress)]
            case "likelihood":
                return [list(x) for x in model.likelihoods(prompts, texts, progress=progress)]
            case _:
                return model.generate(prompts, progress=progress, **settings)
    except InputError as error:
        index = getattr(error, "index", None)
        if index is None:
            raise
        raise InputError(f"{suite.name}, item {items[index].id}: {error.message}", fix=error.fix) from error


def _similarities(suite: Suite, by_item: Sequence[Sequence[Any]], embedder: Embedder | None) -> list[float]:
    """For each item whose metric compares embeddings the cosine with the nearest accepted answer."""
    wanted: list[tuple[Item, str]] = [
        (item, values[0])
        for item, values in zip(suite.items, by_item, strict=True)
        if suite.metric_of(item).embeds
    ]
    if not wanted:
        return []
    if embedder is None:
        raise InputError(
            f"{suite.name} is scored by similarity, which needs an embedding model",
            fix="score it by `inlay eval … --embedding FOLDER`, or evaluate(…, embedding=…)",
        )
    pairs = [(said, answer) for item, said in wanted for answer in item.accepted]
    cosines = iter(embedder.cosines([said for said, _ in pairs], [answer for _, answer in pairs]))
    return [max(next(cosines) for _ in item.accepted) for item, _ in wanted]
