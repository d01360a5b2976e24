"""Raw text, a document at a time: a text file with blank lines between documents, or JSONL of {"text"}."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inlay.errors import InputError
from inlay.trainers.data import Described, lines_of, parsed
from inlay.trainers.provenance import NOTHING, Provenance, beside

LAYOUT = '{"text": …}'
BEGINNING = 400
"""Characters of a document that stand for it."""


@dataclass(frozen=True)
class Texts(Described):
    """Documents in file order, known by the digest of their content; `stated` as in `Dataset`."""

    name: str
    documents: tuple[str, ...]
    stated: tuple[Provenance, ...] = ()

    def __len__(self) -> int:
        return len(self.documents)

    def __iter__(self) -> Iterator[str]:
        return iter(self.documents)

    def only(self, places: Sequence[int], name: str | None = None) -> Texts:
        """Those at `places`, in that order."""
        stated = tuple(self.stated[i] for i in places) if self.stated else ()
        return Texts(name or self.name, tuple(self.documents[i] for i in places), stated)

    @property
    def texts(self) -> list[str]:
        """The beginnings of the documents: what a router learns their subject from."""
        return [document[:BEGINNING] for document in self]

    @property
    def digest(self) -> str:
        """`sha256:…` over the canonical JSON of all documents, in order."""
        body = json.dumps(self.documents, ensure_ascii=False)
        return "sha256:" + hashlib.sha256(body.encode()).hexdigest()

    @property
    def row_digests(self) -> list[str]:
        """16 hex digits of the SHA-256 of every document in file order."""
        return [hashlib.sha256(document.encode()).hexdigest()[:16] for document in self]


def read_texts(source: str | Path | Sequence[Any], *, name: str | None = None) -> Texts:
    """Read documents from a file, or take them as a list of strings or of {"text"}.

    A file that ends in .jsonl holds {"text"} a line, any other is text in which blank lines stand between
    documents. White space around a document goes. Raises InputError for a missing file, one that is not
    UTF-8 and one without a document, naming file and line where a line is at fault.
    """
    file = NOTHING
    if not isinstance(source, str | Path):
        rows = [{"text": row} if isinstance(row, str) else row for row in source]
        documents = [document_of(row, f"row {n}") for n, row in enumerate(rows, 1)]
        stated = tuple(Provenance.of(row) for row in rows)
    else:
        path = Path(source)
        name = name or path.stem
        lines = lines_of(path)
        file = beside(path)
        if path.suffix == ".jsonl":
            rows = [parsed(line, f"{path}, line {n}") for n, line in enumerate(lines, 1)]
            documents = [document_of(row, f"{path}, line {n}") for n, row in enumerate(rows, 1)]
            stated = tuple(Provenance.of(row).over(file) for row in rows)
        else:
            documents = [document for _, document in documents_in(lines)]
            stated = (file,) * len(documents)
    if not documents:
        raise InputError(f"raw text must hold at least one document, and {name or 'the list'} holds none")
    return Texts(name or "texts", tuple(documents), stated)


def documents_in(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    """(number of its first line, from 1; document) of plain text, blank lines between documents."""
    held: list[str] = []
    for number, line in enumerate([*lines, ""], 1):
        if line.strip():
            held.append(line)
        elif held:
            yield number - len(held), "\n".join(part.removesuffix("\r") for part in held).strip()
            held = []


def document_of(row: dict[str, Any], where: str) -> str:
    """The document of a row in `LAYOUT`; InputError, beginning with `where`, for anything else."""
    if "text" not in row:
        raise InputError(
            f"{where} must have text, and has {', '.join(sorted(row)) or 'nothing'}",
            fix=f"write {LAYOUT}, or train on prompts and answers with --method sft",
        )
    text = row["text"]
    if not isinstance(text, str):
        raise InputError(f"{where}: text must be a string, and is a {type(text).__name__}")
    if not text.strip():
        raise InputError(f"{where}: the text is empty", fix="remove the row")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(f"{where}: text holds half of a surrogate pair, which is no text")
    return text.strip()
