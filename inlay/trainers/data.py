"""Training rows from JSONL: three layouts in, one out.

Knows files, lines and layouts. Does not know tokenizers or models.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inlay.errors import InputError
from inlay.trainers.provenance import NOTHING, Provenance, beside, summary

Message = dict[str, str]

LAYOUTS = (
    '{"instruction": …, "input": …, "output": …}',
    '{"prompt": …, "completion": …}',
    '{"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]}',
)
"""What a line may look like; one file may mix them."""


@dataclass(frozen=True)
class Example:
    """A conversation up to the assistant's turn, and the answer that the loss is taken on."""

    prompt: str | tuple[tuple[str, str], ...]
    answer: str

    @property
    def messages(self) -> str | list[Message]:
        """As `inlay.evals.inference.Prompt`: a user's string, or a list of messages."""
        if isinstance(self.prompt, str):
            return self.prompt
        return [{"role": role, "content": content} for role, content in self.prompt]

    @property
    def text(self) -> str:
        """The last thing the user said: what a router would see."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[-1][1]

    @property
    def digest(self) -> str:
        """16 hex digits of the SHA-256 over the canonical JSON of prompt and answer: two of a million rows
        share one by chance with a probability of 3e-8."""
        body = json.dumps([self.messages, self.answer], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(body.encode()).hexdigest()[:16]


class Described(ABC):
    """What the registry keeps of training data, whatever a row of it is."""

    name: str
    stated: tuple[Provenance, ...]

    @abstractmethod
    def __len__(self) -> int:
        """How many rows."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """`sha256:…` over the content of all rows, in order."""

    @property
    def manifest(self) -> dict[str, Any]:
        """Name, rows and digest, not the rows."""
        return {"digest": self.digest, "name": self.name, "rows": len(self)}

    @property
    def provenance(self) -> dict[str, dict[str, int]]:
        """Rows by licence, origin and consent: see `inlay.trainers.provenance.summary`."""
        return summary(self.stated or [NOTHING] * len(self))


@dataclass(frozen=True)
class Dataset(Described):
    """Examples in file order, known by the digest of their content.

    `stated`: what each row, or the file beside them, says of its licence, origin and consent; one a row, or
    none where nobody asked.
    """

    name: str
    examples: tuple[Example, ...]
    stated: tuple[Provenance, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    @property
    def digest(self) -> str:
        """`sha256:…` over the canonical JSON of all (prompt, answer) pairs, in order."""
        body = json.dumps([[e.messages, e.answer] for e in self.examples], sort_keys=True, ensure_ascii=False)
        return "sha256:" + hashlib.sha256(body.encode()).hexdigest()

    @property
    def texts(self) -> list[str]:
        """What a router would see of each."""
        return [example.text for example in self]

    @property
    def row_digests(self) -> list[str]:
        """`Example.digest` of every row in file order: what says later which rows two runs shared."""
        return [example.digest for example in self.examples]


def read_dataset(source: str | Path | Sequence[dict[str, Any]], *, name: str | None = None) -> Dataset:
    """Read training rows from a JSONL file, or take them as a list of dicts.

    Layouts: see `LAYOUTS`. A triplet's prompt is its instruction, a line break and its input (the
    instruction alone where the input is empty). What rows and the file beside them state about licence,
    origin and consent is kept. Raises InputError naming file and line for a missing file, an empty or
    malformed line, an unknown layout, an empty answer.
    """
    file = NOTHING
    if isinstance(source, str | Path):
        path = Path(source)
        name = name or path.stem
        file = beside(path)
        rows = [parsed(line, f"{path}, line {n}") for n, line in enumerate(lines_of(path), 1)]
        examples = [example_of(row, f"{path}, line {n}") for n, row in enumerate(rows, 1)]
    else:
        rows = list(source)
        examples = [example_of(row, f"row {n}") for n, row in enumerate(rows, 1)]
    if not rows:
        raise InputError(f"training data must hold at least one row, and {name or 'the list'} holds none")
    return Dataset(name or "rows", tuple(examples), tuple(Provenance.of(row).over(file) for row in rows))


def lines_of(path: Path) -> list[str]:
    """The lines of a JSONL file, without what ends them. InputError where there is no such file or it is not
    UTF-8."""
    if not path.is_file():
        raise InputError(
            f"training data must be a JSONL file, and there is none at {path}", fix="check the path"
        )
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be UTF-8, and byte {error.start} is not") from None
    # Not splitlines(): U+2028 and its like may stand inside a JSON string.
    return lines[:-1] if lines[-1] == "" else lines


def parsed(line: str, where: str) -> dict[str, Any]:
    """The JSON object of a line; InputError, beginning with `where`, for anything else."""
    if not line.strip():
        raise InputError(f"{where} is empty", fix="every line holds one JSON object; remove the line")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        why = (
            f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        )
        raise InputError(
            f"{where} is not JSON: {why}", fix=f"write one object per line, such as {LAYOUTS[0]}"
        ) from None
    if not isinstance(row, dict):
        raise InputError(f"{where} must be a JSON object, and is a {type(row).__name__}")
    return row


def example_of(row: dict[str, Any], where: str) -> Example:
    """The example of a row in one of `LAYOUTS`; InputError, beginning with `where`, for anything else."""
    if "instruction" in row and "output" in row:
        texts = {key: _text(row.get(key, ""), key, where) for key in ("instruction", "input", "output")}
        prompt = texts["instruction"] + ("\n" + texts["input"] if texts["input"] else "")
        return _checked(prompt, texts["output"], where)
    if "prompt" in row and "completion" in row:
        if isinstance(row["prompt"], list):
            answer = row["completion"]
            answer = answer if isinstance(answer, list) else [{"role": "assistant", "content": answer}]
            return _conversation([*row["prompt"], *answer], where)
        return _checked(
            _text(row["prompt"], "prompt", where), _text(row["completion"], "completion", where), where
        )
    if "messages" in row:
        return _conversation(row["messages"], where)
    raise InputError(
        f"{where} has the keys {', '.join(sorted(row)) or '(none)'}, which is no known layout",
        fix="use one of " + " or ".join(LAYOUTS),
    )


def _conversation(messages: Any, where: str) -> Example:
    if not isinstance(messages, list) or len(messages) < 2:
        raise InputError(f"{where}: messages must be a list of at least a question and an answer")
    turns = []
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise InputError(
                f'{where}: each message must be {{"role": …, "content": …}}, and one is {message!r:.60}'
            )
        turns.append((_text(message["role"], "role", where), _text(message["content"], "content", where)))
    if turns[-1][0] != "assistant":
        raise InputError(f"{where}: the last message must be the assistant's, and it is the {turns[-1][0]}'s")
    if len(turns) == 2 and turns[0][0] == "user":
        return _checked(turns[0][1], turns[1][1], where)
    _checked(turns[-2][1], turns[-1][1], where)
    return Example(tuple(turns[:-1]), turns[-1][1].strip())


def _checked(prompt: str, answer: str, where: str) -> Example:
    if not prompt.strip():
        raise InputError(f"{where}: the prompt is empty", fix="remove the row")
    if not answer.strip():
        raise InputError(
            f"{where}: the answer is empty, and the loss is taken on the answer", fix="remove the row"
        )
    return Example(prompt, answer.strip())


def _text(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: {key} must be a string, and is a {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: {key} holds half of a surrogate pair, which is no text") from None
    return value
