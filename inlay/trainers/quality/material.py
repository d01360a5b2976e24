"""What a check looks at: the rows as far as they can be read, and what was measured on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError
from inlay.evals.contamination import normalised
from inlay.trainers.data import Dataset, Example, example_of, lines_of, parsed
from inlay.trainers.pairs import Pairs, pair_of
from inlay.trainers.provenance import NOTHING, Provenance, beside
from inlay.trainers.quality.similar import TEMPLATED, same_numbers, shingles, similar, telling
from inlay.trainers.reading import Data, first_row, layout_of
from inlay.trainers.texts import Texts, document_of, documents_in

if TYPE_CHECKING:
    from inlay.evals.suites import Suite

MOST_CLASSES = 200
ROWS_A_CLASS = 5
"""Answers are classes where there are at most `MOST_CLASSES` different ones, of at most `CLASS_WORDS` words,
each in `ROWS_A_CLASS` rows on average. Numbers are classes only where there are at most `NUMBERS` of them:
sums have rare results by nature."""
CLASS_WORDS = 8
NUMBERS = 12
MOSTLY = 0.98
NOUNS = {"rows": ("row", "rows"), "pairs": ("pair", "pairs"), "texts": ("document", "documents")}
"""What one is called, and several."""
EVERYWHERE, EVERYWHERE_LEAST, LINE_WORDS = 0.1, 5, 4
"""Lines of so many words stand everywhere in raw text where this share of the documents, and so many, have
them: headers, footers, menus."""
SHARED, SHARED_ROWS, LINES = 0.02, 3, 12
"""First or last lines are an instruction where this share of the rows, and so many, have them; at most
`LINES` lines."""


@dataclass(frozen=True)
class Row:
    """One line that could be read. `instruction`: the first lines of what the user said, or the last ones,
    where many rows share them and others follow; None where there are none such. A pair's answer is the
    chosen one, with `rejected` beside it; a document is a prompt without an answer."""

    line: int
    example: Example
    stated: Provenance = NOTHING
    instruction: str | None = None
    rejected: str | None = None

    @property
    def answer(self) -> str:
        return self.example.answer

    @cached_property
    def content(self) -> str:
        """What is the row's own of the last thing the user said: all but the instruction."""
        text = self.example.text
        if self.instruction is None:
            return text
        if text.startswith(self.instruction):
            return text[len(self.instruction) :].strip()
        return text[: -len(self.instruction)].strip()

    @cached_property
    def prompt(self) -> str:
        """The whole prompt as one text: `role: content` lines for a conversation."""
        if isinstance(self.example.prompt, str):
            return self.example.prompt
        return "\n".join(f"{role}: {content}" for role, content in self.example.prompt)

    @property
    def said(self) -> str:
        """All of its text, for what may stand anywhere in it."""
        return "\n".join(part for part in (self.prompt, self.answer, self.rejected) if part)

    @cached_property
    def plain(self) -> str:
        """The prompt without case, punctuation and white space."""
        return normalised(self.prompt)


@dataclass(frozen=True)
class Unread:
    """A line that no row could be made of. `empty`: what is missing is the prompt, the answer or all."""

    line: int
    why: str
    empty: bool


@dataclass(frozen=True)
class Material:
    """Everything that a kind of defect may look at.

    `reads`: what a row is, "rows", "pairs" or "texts", as the training methods call it.
    `suites`: what the rows must not be in; `limit`: tokens that a row may have, prompt and answer;
    `tokens`: how many each row has, and `nats`: the base's mean negative log-likelihood a token of each
    answer given its prompt, in nats; None where nothing was measured, NaN in `nats` for a row that does not
    fit. `file`: what the file beside the data states of it.
    """

    name: str
    rows: tuple[Row, ...]
    unread: tuple[Unread, ...] = ()
    suites: tuple[Suite, ...] = ()
    limit: int | None = None
    tokens: tuple[int, ...] | None = None
    nats: tuple[float, ...] | None = None
    file: Provenance = field(default=NOTHING)
    reads: str = "rows"

    def __len__(self) -> int:
        """Rows of the file, read or not."""
        return len(self.rows) + len(self.unread)

    def many(self, count: int, one: str = "", more: str = "") -> str:
        """`1 row is`, `2 documents are`: what the file holds, before `one` or `more`."""
        noun, nouns = NOUNS[self.reads]
        return (f"{count:,} {noun} {one}" if count == 1 else f"{count:,} {nouns} {more}").rstrip()

    @cached_property
    def classes(self) -> Counter[str] | None:
        """Rows of each class where the answers are classes, else None; a few that are too long for one are
        left out."""
        counted = Counter(
            row.answer
            for row in self.rows
            if len(row.answer.split()) <= CLASS_WORDS and "\n" not in row.answer
        )
        if counted.total() < MOSTLY * len(self.rows):
            return None
        if not 2 <= len(counted) <= min(MOST_CLASSES, len(self.rows) // ROWS_A_CLASS):
            return None
        return None if sum(map(_is_number, counted)) > NUMBERS else counted

    @cached_property
    def similar_pairs(self) -> tuple[tuple[int, int, float], ...]:
        """(place, later place, similarity) of rows with similar content, the same numbers in it and the same
        answer."""
        own = [row.content for row in self.rows]
        return tuple(
            (i, j, alike)
            for i, j, alike in similar(telling([shingles(text) for text in own]))
            if self.rows[i].answer == self.rows[j].answer and same_numbers(own[i], own[j])
        )

    @cached_property
    def templated(self) -> bool:
        """Whether so many rows have a similar one that all must come from a template."""
        return len({n for i, j, _ in self.similar_pairs for n in (i, j)}) > TEMPLATED * len(self.rows)

    @cached_property
    def everywhere(self) -> Counter[str]:
        """In how many documents each line stands that stands everywhere in raw text."""
        counted = Counter(
            line
            for row in self.rows
            for line in {line.strip() for line in row.prompt.split("\n")}
            if len(normalised(line).split()) >= LINE_WORDS
        )
        enough = max(EVERYWHERE_LEAST, EVERYWHERE * len(self.rows))
        return Counter({line: count for line, count in counted.items() if count >= enough})

    @cached_property
    def words(self) -> Counter[str]:
        """In how many rows each word of the prompts' own content stands, normalised."""
        return Counter(word for row in self.rows for word in set(normalised(row.content).split()))


def read_material(source: str | Path) -> Material:
    """All rows of a file, of the kind that its first one is; what cannot be read is kept with the reason.
    InputError only where there is no file, it is not UTF-8, it holds no line, or the file beside it is
    broken."""
    path = Path(source)
    if path.is_dir():
        raise InputError(f"training data must be a JSONL file, and {path} is a folder", fix="name the file")
    lines = lines_of(path)
    if not lines:
        raise InputError(f"training data must hold at least one row, and {path} holds none")
    file = beside(path)
    reads = layout_of(first_row(path, lines)) or "rows"
    if reads == "texts" and path.suffix != ".jsonl":
        documents = [(number, _read(text, reads), file) for number, text in documents_in(lines)]
        return Material(path.name, _rows(documents), file=file, reads=reads)
    read, unread = [], []
    for number, line in enumerate(lines, 1):
        try:
            row = parsed(line, "line")
            read.append((number, _READERS[reads](row), Provenance.of(row).over(file)))
        except InputError as error:
            why = error.message.removeprefix("line").lstrip(",: ")
            unread.append(Unread(number, why, empty="is empty" in why))
    return Material(path.name, _rows(read), tuple(unread), file=file, reads=reads)


def material_of(data: Data) -> Material:
    """Rows that were read already; a row's number is its line, since no reader leaves one out."""
    stated: Sequence[Provenance] = data.stated or [NOTHING] * len(data)
    reads = {Dataset: "rows", Pairs: "pairs", Texts: "texts"}[type(data)]
    numbers = range(1, len(data) + 1)
    read = [(n, _read(row, reads), said) for n, row, said in zip(numbers, data, stated, strict=True)]
    return Material(data.name, _rows(read), reads=reads)


def contents(texts: Sequence[str]) -> list[str]:
    """What is each text's own, as `Row.content`: without first or last lines that many of them share."""
    return [row.content for row in _rows([(0, (Example(text, ""), None), NOTHING) for text in texts])]


def numbered(rows: Iterable[Row]) -> tuple[int, ...]:
    """Their lines in order."""
    return tuple(sorted(row.line for row in rows))


Told = tuple[Example, str | None]
"""What of a line becomes a `Row`: its prompt and answer, and a pair's rejected answer."""

_READERS: dict[str, Callable[[dict[str, Any]], Told]] = {
    "rows": lambda row: _read(example_of(row, "line"), "rows"),
    "pairs": lambda row: _read(pair_of(row, "line"), "pairs"),
    "texts": lambda row: _read(document_of(row, "line"), "texts"),
}


def _read(row: Any, reads: str) -> Told:
    if reads == "rows":
        return row, None
    return (Example(row, ""), None) if reads == "texts" else (Example(row.prompt, row.chosen), row.rejected)


def _rows(read: Sequence[tuple[int, Told, Provenance]]) -> tuple[Row, ...]:
    instructions = _instructions([example.text for _, (example, _), _ in read])
    return tuple(
        Row(number, example, stated, instruction, rejected)
        for (number, (example, rejected), stated), instruction in zip(read, instructions, strict=True)
    )


def _instructions(texts: Sequence[str]) -> list[str | None]:
    """The longest run of first lines, else of last ones, that enough texts share, never the whole text."""
    enough = max(SHARED_ROWS, SHARED * len(texts))
    heads: Counter[str] = Counter(head for text in texts for head in _heads(text))
    tails: Counter[str] = Counter(tail for text in texts for tail in _tails(text))
    found: list[str | None] = []
    for text in texts:
        shared = [head for head in _heads(text) if heads[head] >= enough]
        shared = shared or [tail for tail in _tails(text) if tails[tail] >= enough]
        found.append(max(shared, key=len) if shared else None)
    return found


def _heads(text: str) -> list[str]:
    lines = text.split("\n")[: LINES + 1]
    return ["\n".join(lines[:count]) + "\n" for count in range(1, len(lines)) if text.strip()]


def _tails(text: str) -> list[str]:
    lines = text.split("\n")[-LINES - 1 :]
    return ["\n" + "\n".join(lines[-count:]) for count in range(1, len(lines)) if text.strip()]


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace(",", "").lstrip("+-").isdigit()
