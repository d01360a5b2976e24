"""A suite: questions with expected answers, known by the digest of its content.

A suite knows which skill an item belongs to and whether that skill is *held out*. Protected skills may be
used in training (as KL or replay prompts), so doing well on them proves little; what a model forgot is
judged on held-out items. An item that says nothing about itself is held out.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from inlay.errors import InputError, ReferenceNotFound
from inlay.evals.metrics import metric as metric_named
from inlay.registry.canonical import digest_of

if TYPE_CHECKING:
    from inlay.evals.inference import Prompt
    from inlay.registry.records import SuiteRow

SPLITS = ("held_out", "protected")
SHIPPED = ("general-v1",)
FORMATS = (
    '{"prompt", "answer"}, {"messages", "answer"}, {"prompt", "completion"} or '
    '{"instruction", "input", "output"}'
)


class SuiteStore(Protocol):
    """The part of a registry that a suite is loaded from."""

    def suite(self, name_or_digest: str) -> SuiteRow: ...
    def get_object(self, digest: str) -> bytes: ...


@dataclass(frozen=True)
class Item:
    """One question. `prompt` is a user's message or a tuple of (role, content) pairs.

    `cluster` names what items made from one template share; None for an item of its own.
    """

    id: str
    prompt: str | tuple[tuple[str, str], ...]
    answer: str
    skill: str = "all"
    held_out: bool = True
    cluster: str | None = None

    @property
    def chat(self) -> Prompt:
        """The prompt as a `Chat` takes it: the string itself or a list of {"role", "content"}."""
        if isinstance(self.prompt, str):
            return self.prompt
        return [{"role": role, "content": content} for role, content in self.prompt]

    @property
    def text(self) -> str:
        """The prompt for a reader: the message, or one `role: content` line a turn."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n".join(f"{role}: {content}" for role, content in self.prompt)

    def to_row(self) -> dict[str, Any]:
        """The JSON object of the item's line, without what is absent."""
        row: dict[str, Any] = {"id": self.id, "answer": self.answer, "skill": self.skill}
        row["split"] = "held_out" if self.held_out else "protected"
        if isinstance(self.prompt, str):
            row["prompt"] = self.prompt
        else:
            row["messages"] = self.chat
        if self.cluster is not None:
            row["cluster"] = self.cluster
        return row


@dataclass(frozen=True)
class Suite:
    """Items in a fixed order under a name, and the metric that scores them (`exact_match/1`)."""

    name: str
    items: tuple[Item, ...]
    metric: str = "exact_match/1"

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric", metric_named(self.metric).key)
        if not self.items:
            raise InputError(f"a suite needs at least one item, and {self.name} has none")
        repeated = [item_id for item_id, count in Counter(i.id for i in self.items).items() if count > 1]
        if repeated:
            raise InputError(
                f"ids in a suite must be unique, and {self.name} has {repeated[0]!r} more than once",
                fix="give each item an id of its own, or none at all",
            )

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        name: str | None = None,
        metric: str = "exact_match",
        store: SuiteStore | None = None,
    ) -> Suite:
        """A suite from a JSONL file, a folder of them, the store, or the shipped `general-v1`.

        File: one JSON object a line; `FORMATS` lists what is understood. Optional keys: `id` (else the file's
        stem and the line number), `skill` (else the file's stem), `split` (`held_out`, the default, or
        `protected`), `cluster`. Folder: `held_out/` and `protected/` subfolders of JSONL files, skill = file
        stem; or JSONL files alone. A name or digest is looked up in `store` before what is shipped.

        Raises InputError with file and line number for anything malformed, ReferenceNotFound for a source
        that is neither a path nor a known name.
        """
        path = Path(source)
        if path.is_dir():
            return cls(name or _name(path.resolve().name), tuple(_folder(path)), metric)
        if path.is_file():
            return cls(name or _name(path.stem), tuple(_file(path)), metric)
        if store is not None:
            try:
                return cls.from_store(store, str(source))
            except ReferenceNotFound:
                if str(source) not in SHIPPED:
                    raise
        if str(source) in SHIPPED:
            shipped = resources.files("inlay.builtin") / f"{source}.jsonl"
            if not shipped.is_file():
                raise InputError(f"the shipped suite {source} is missing from this installation")
            return cls.from_jsonl(name or str(source), shipped.read_bytes(), metric=metric)
        raise ReferenceNotFound(
            f"a suite is a JSONL file, a folder of them or a known name, and {str(source)!r} is none",
            fix=f"check the path; shipped: {', '.join(SHIPPED)}",
        )

    @classmethod
    def from_store(cls, store: SuiteStore, name_or_digest: str) -> Suite:
        """The suite that a registry keeps; its bytes are verified by the registry (IntegrityError)."""
        row = store.suite(name_or_digest)
        return cls.from_jsonl(row.name, store.get_object(row.items), metric=row.metric)

    @classmethod
    def from_jsonl(cls, name: str, data: bytes, *, metric: str = "exact_match") -> Suite:
        """A suite from JSONL bytes; `name` stands for the file in errors."""
        return cls(name, tuple(_items(data, where=name, skill="all", held_out=True)), metric)

    @classmethod
    def of_rows(cls, name: str, rows: Iterable[Mapping[str, Any]], *, metric: str = "exact_match") -> Suite:
        """A suite from rows as a JSONL file would hold them."""
        return cls.from_jsonl(name, "".join(json.dumps(row) + "\n" for row in rows).encode(), metric=metric)

    def to_jsonl(self) -> bytes:
        """Canonical bytes: one object a line, keys sorted, UTF-8; stable under loading and writing again."""
        lines = (
            json.dumps(i.to_row(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
            for i in self.items
        )
        return "".join(line + "\n" for line in lines).encode()

    @cached_property
    def digest(self) -> str:
        """sha256 of `to_jsonl()`: of the items and their order, not of the name, file layout or metric."""
        return digest_of(self.to_jsonl())

    @property
    def skills(self) -> tuple[str, ...]:
        """Names in order of first appearance."""
        return tuple(dict.fromkeys(item.skill for item in self.items))

    def skill_summary(self) -> dict[str, dict[str, int]]:
        """Items per skill: {skill: {"items": n, "held_out": how many of them}}; what a registry keeps."""
        return {
            skill: {
                "items": sum(i.skill == skill for i in self.items),
                "held_out": sum(i.skill == skill and i.held_out for i in self.items),
            }
            for skill in self.skills
        }

    @property
    def held_out(self) -> Suite:
        """The items forgetting is judged on, as a suite; InputError where there are none."""
        return self._part(True)

    @property
    def protected(self) -> Suite:
        """The items whose skills training may have seen; InputError where there are none."""
        return self._part(False)

    def _part(self, held_out: bool) -> Suite:
        label = SPLITS[0] if held_out else SPLITS[1]
        items = tuple(i for i in self.items if i.held_out is held_out)
        return Suite(f"{self.name}/{label}", items, self.metric)

    def prompts(self) -> list[Prompt]:
        """The prompts in item order, as a `Chat` takes them."""
        return [item.chat for item in self.items]

    def answers(self) -> list[str]:
        """The expected answers in item order."""
        return [item.answer for item in self.items]

    def __len__(self) -> int:
        return len(self.items)


def _name(stem: str) -> str:
    """A file's or folder's own name as a registry takes names: lower case, letters, digits, dots, dashes."""
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).lstrip("._-")[:63] or "suite"


def _folder(folder: Path) -> list[Item]:
    parts = [(folder / split, split == "held_out") for split in SPLITS if (folder / split).is_dir()]
    items: list[Item] = []
    for part, held_out in parts or [(folder, True)]:
        for file in sorted(part.glob("*.jsonl")):
            items += _file(file, skill=file.stem, held_out=held_out)
    if not items:
        raise InputError(
            f"a suite folder needs JSONL files, its own or in held_out/ and protected/, and {folder} has none"
        )
    return items


def _file(path: Path, *, skill: str | None = None, held_out: bool = True) -> list[Item]:
    return _items(path.read_bytes(), where=str(path), skill=skill or path.stem, held_out=held_out)


def _items(data: bytes, *, where: str, skill: str, held_out: bool) -> list[Item]:
    if not data.strip():
        raise InputError(f"a suite needs at least one item, and {where} is empty")
    lines = data.removesuffix(b"\n").split(b"\n")
    stem = Path(where).stem
    return [
        _item(
            _row(line, f"{where}, line {number}"),
            f"{where}, line {number}",
            f"{stem}-{number}",
            skill,
            held_out,
        )
        for number, line in enumerate(lines, 1)
    ]


def _row(line: bytes, place: str) -> dict[str, Any]:
    if not line.strip():
        raise InputError(
            f"{place}: every line must hold one JSON object, and this one is empty", fix="remove it"
        )
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{place}: a suite must be UTF-8, and byte {error.start} of this line is not"
        ) from error
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: malformed JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise InputError(f"{place}: malformed JSON (nested too deeply)") from error
    if not isinstance(row, dict):
        raise InputError(f"{place}: a line must hold a JSON object, and this is a {type(row).__name__}")
    return row


def _item(row: dict[str, Any], place: str, fallback_id: str, skill: str, held_out: bool) -> Item:
    prompt, answer = _question(row, place)
    split = row.get("split", "held_out" if held_out else "protected")
    if split not in SPLITS:
        raise InputError(f"{place}: `split` must be one of {', '.join(SPLITS)}, not {split!r}")
    cluster = row.get("cluster")
    return Item(
        id=str(row["id"])
        if isinstance(row.get("id"), int)
        else _text(row.get("id", fallback_id), "id", place),
        prompt=prompt,
        answer=answer,
        skill=_text(row.get("skill", skill), "skill", place),
        held_out=split == "held_out",
        cluster=None if cluster is None else _text(cluster, "cluster", place),
    )


def _question(row: dict[str, Any], place: str) -> tuple[str | tuple[tuple[str, str], ...], str]:
    """Prompt and expected answer of a row in any of `FORMATS`."""
    if "instruction" in row:
        if "output" not in row:
            raise InputError(f"{place}: a row with `instruction` needs `output`")
        instruction = _text(row["instruction"], "instruction", place)
        extra = row.get("input") or ""
        if not isinstance(extra, str):
            raise InputError(f"{place}: `input` must be text, not {type(extra).__name__}")
        return (f"{instruction}\n{extra}" if extra else instruction), _text(row["output"], "output", place)
    answer_key = next((key for key in ("answer", "completion") if key in row), None)
    if "messages" in row:
        messages = _messages(row["messages"], place)
        if answer_key is None and messages[-1][0] == "assistant" and len(messages) > 1:
            return messages[:-1], _text(messages[-1][1], "messages", place)
        prompt: str | tuple[tuple[str, str], ...] = messages
    elif "prompt" in row:
        prompt = _text(row["prompt"], "prompt", place)
    else:
        raise InputError(f"{place}: `prompt` is missing", fix=f"rows are {FORMATS}")
    if answer_key is None:
        raise InputError(f"{place}: `answer` is missing", fix=f"rows are {FORMATS}")
    return prompt, _text(row[answer_key], answer_key, place)


def _messages(value: Any, place: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{place}: `messages` must be a list of at least one message")
    for message in value:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise InputError(f'{place}: each message must be {{"role", "content"}}')
    return tuple((_text(m["role"], "role", place), _text(m["content"], "content", place)) for m in value)


def _text(value: Any, key: str, place: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{place}: `{key}` must be text, not {type(value).__name__}")
    if not value.strip():
        raise InputError(f"{place}: `{key}` must not be empty")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"{place}: `{key}` has half of a surrogate pair, which is no text")
    return value
