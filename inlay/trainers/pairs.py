"""Preference pairs from JSONL: a prompt, the answer that was preferred and the one that was not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inlay.errors import InputError
from inlay.trainers.data import Described, Example, Message, example_of, lines_of, parsed
from inlay.trainers.provenance import NOTHING, Provenance, beside

LAYOUT = '{"prompt": …, "chosen": …, "rejected": …}'
"""What a line looks like: strings, or lists of messages."""


@dataclass(frozen=True)
class Pair:
    """A conversation up to the assistant's turn and two answers to it, the first the better one."""

    prompt: str | tuple[tuple[str, str], ...]
    chosen: str
    rejected: str

    @property
    def messages(self) -> str | list[Message]:
        """As `Example.messages`."""
        return Example(self.prompt, self.chosen).messages

    @property
    def text(self) -> str:
        """As `Example.text`."""
        return Example(self.prompt, self.chosen).text

    @property
    def digest(self) -> str:
        """16 hex digits of the SHA-256 over the canonical JSON of prompt, chosen and rejected."""
        return hashlib.sha256(_body([self]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Pairs(Described):
    """Pairs in file order, known by the digest of their content; `stated` as in `Dataset`."""

    name: str
    pairs: tuple[Pair, ...]
    stated: tuple[Provenance, ...] = ()

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    def only(self, places: Sequence[int], name: str | None = None) -> Pairs:
        """Those at `places`, in that order."""
        stated = tuple(self.stated[i] for i in places) if self.stated else ()
        return Pairs(name or self.name, tuple(self.pairs[i] for i in places), stated)

    @property
    def texts(self) -> list[str]:
        """What a router would see of each."""
        return [pair.text for pair in self]

    @property
    def digest(self) -> str:
        """`sha256:…` over the canonical JSON of all pairs, in order."""
        return "sha256:" + hashlib.sha256(_body(self.pairs).encode()).hexdigest()

    @property
    def row_digests(self) -> list[str]:
        """`Pair.digest` of every pair in file order."""
        return [pair.digest for pair in self]


def _body(pairs: Sequence[Pair]) -> str:
    return json.dumps([[p.messages, p.chosen, p.rejected] for p in pairs], sort_keys=True, ensure_ascii=False)


def read_pairs(source: str | Path | Sequence[dict[str, Any]], *, name: str | None = None) -> Pairs:
    """Read pairs from a JSONL file, or take them as a list of dicts; other keys of a row are left alone.

    Raises InputError naming file and line for a missing file, a malformed line, a key that is not there, an
    empty answer, two answers that are the same or that end different conversations.
    """
    file = NOTHING
    if isinstance(source, str | Path):
        path = Path(source)
        name = name or path.stem
        file = beside(path)
        rows = [parsed(line, f"{path}, line {n}") for n, line in enumerate(lines_of(path), 1)]
        pairs = [pair_of(row, f"{path}, line {n}") for n, row in enumerate(rows, 1)]
    else:
        rows = list(source)
        pairs = [pair_of(row, f"row {n}") for n, row in enumerate(rows, 1)]
    if not pairs:
        raise InputError(f"preference data must hold at least one pair, and {name or 'the list'} holds none")
    return Pairs(name or "pairs", tuple(pairs), tuple(Provenance.of(row).over(file) for row in rows))


def pair_of(row: dict[str, Any], where: str) -> Pair:
    """The pair of a row in `LAYOUT`; InputError, beginning with `where`, for anything else."""
    missing = [key for key in ("prompt", "chosen", "rejected") if key not in row]
    if missing:
        raise InputError(
            f"{where} must have prompt, chosen and rejected, and has {', '.join(sorted(row)) or 'nothing'}",
            fix=f"write {LAYOUT}, or train on single answers with --method sft",
        )
    chosen, rejected = (_answered(row["prompt"], row[key], key, where) for key in ("chosen", "rejected"))
    if chosen.prompt != rejected.prompt:
        raise InputError(f"{where}: chosen and rejected must answer the same conversation, and they do not")
    if chosen.answer == rejected.answer:
        raise InputError(f"{where}: chosen and rejected must differ, and are the same", fix="remove the row")
    return Pair(chosen.prompt, chosen.answer, rejected.answer)


def _answered(prompt: Any, answer: Any, key: str, where: str) -> Example:
    if isinstance(prompt, str) and isinstance(answer, list):
        prompt = [{"role": "user", "content": prompt}]
    return example_of({"prompt": prompt, "completion": answer}, f"{where}, {key}")
