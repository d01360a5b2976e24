"""A suite: questions with expected answers, known by the digest of its content.

A suite knows which skill an item belongs to and whether that skill is *held out*. Protected skills may be
used in training (as KL or replay prompts), so doing well on them proves little; what a model forgot is
judged on held-out items. An item that says nothing about itself is held out.

A file may begin with a header, {"suite": {"metric": …, "description": …}}. It is no item and no part of the
canonical bytes: a suite's digest is that of its items, whichever file they came from.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from inlay.errors import InputError, ReferenceNotFound
from inlay.evals.metrics import Metric
from inlay.evals.metrics import metric as metric_named
from inlay.registry.canonical import digest_of

if TYPE_CHECKING:
    from inlay.evals.inference import Prompt
    from inlay.registry.records import SuiteRow

SPLITS = ("held_out", "protected")
SHIPPED = ("general-v1",)
DEFAULT_METRIC = "exact_match"
FORMATS = (
    '{"prompt", "answer"}, {"messages", "answer"}, {"prompt", "choices", "answer"}, {"prompt", "completion"} '
    'or {"instruction", "input", "output"}'
)


class SuiteStore(Protocol):
    """The part of a registry that a suite is loaded from."""

    def suite(self, name_or_digest: str) -> SuiteRow: ...
    def get_object(self, digest: str) -> bytes: ...


@dataclass(frozen=True)
class Item:
    """One question. `prompt` is a user's message or a tuple of (role, content) pairs.

    `answer`: what is expected, as the item's metric reads it (for multiple choice the text of the right one
    of `choices`). `references`: further answers that are as good. `cluster` names what items made from one
    template share; None for an item of its own. `slice` names a group of items across skills that reports
    show apart. `metric`: the item's own, where it is not the suite's.
    """

    id: str
    prompt: str | tuple[tuple[str, str], ...]
    answer: str
    skill: str = "all"
    held_out: bool = True
    cluster: str | None = None
    choices: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    slice: str | None = None
    metric: str | None = None

    @property
    def accepted(self) -> tuple[str, ...]:
        """The answer and the references."""
        return (self.answer, *self.references)

    @property
    def guess(self) -> float:
        """Chance of being right by guessing: one in so many choices, 0 where there are none."""
        return 1 / len(self.choices) if self.choices else 0.0

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
        row: dict[str, Any] = {"id": self.id, "skill": self.skill}
        if self.answer:
            row["answer"] = self.answer
        row["split"] = "held_out" if self.held_out else "protected"
        if isinstance(self.prompt, str):
            row["prompt"] = self.prompt
        else:
            row["messages"] = self.chat
        for key in ("choices", "references"):
            if getattr(self, key):
                row[key] = list(getattr(self, key))
        for key in ("cluster", "slice", "metric"):
            if getattr(self, key) is not None:
                row[key] = getattr(self, key)
        return row


@dataclass(frozen=True)
class Suite:
    """Items in a fixed order under a name, and the metric that scores them (`exact_match/1`).

    Where items name metrics of their own, `metric` is the keys of all in use, sorted and joined:
    `contains/1+exact_match/1`. In such a suite an item without its own metric is scored by exact match; items
    that another default would score are given its name. Raises InputError for an empty suite, repeated ids,
    an item its metric cannot score, and metrics that do not go together.
    """

    name: str
    items: tuple[Item, ...]
    metric: str = DEFAULT_METRIC
    description: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.items:
            raise InputError(f"a suite needs at least one item, and {self.name} has none")
        repeated = [item_id for item_id, count in Counter(i.id for i in self.items).items() if count > 1]
        if repeated:
            raise InputError(
                f"ids in a suite must be unique, and {self.name} has {repeated[0]!r} more than once",
                fix="give each item an id of its own, or none at all",
            )
        default = _default_metric(self.metric)
        for item in self.items:
            _fit(item, default, f"{self.name}, item {item.id}")
        self._settle(default)

    def _settle(self, default: str) -> None:
        """The suite's metric from its items', and the items' where they need to say it."""
        keys = {metric_named(item.metric or default).key for item in self.items}
        object.__setattr__(self, "metric", "+".join(sorted(keys)))
        if len(keys) > 1 and metric_named(default).name != DEFAULT_METRIC:
            name = metric_named(default).name
            items = tuple(item if item.metric else replace(item, metric=name) for item in self.items)
            object.__setattr__(self, "items", items)
        kinds = {(m.graded, m.total, m.higher_is_better) for m in self.metrics}
        if len(kinds) > 1:
            raise InputError(
                f"a suite's metrics must make one score: all right or wrong, or all graded in one way, and "
                f"{self.name} has {', '.join(sorted(keys))}",
                fix="make it two suites",
            )

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        name: str | None = None,
        metric: str | None = None,
        store: SuiteStore | None = None,
    ) -> Suite:
        """A suite from a JSONL file, a folder of them, the store, or the shipped `general-v1`.

        File: one JSON object a line; `FORMATS` lists what is understood. Optional keys: `id` (else the file's
        stem and the line number), `skill` (else the file's stem), `split` (`held_out`, the default, or
        `protected`), `cluster`, `slice`, `choices`, `references`, `metric`. Folder: `held_out/` and
        `protected/` subfolders of JSONL files, skill = file stem; or JSONL files alone. A name or digest is
        looked up in `store` before what is shipped. `metric` goes before a header's, an item's own before
        both.

        Raises InputError with file and line number for anything malformed, ReferenceNotFound for a source
        that is neither a path nor a known name.
        """
        path = Path(source)
        if path.is_dir():
            return cls._of(name or _name(path.resolve().name), _folder(path, metric))
        if path.is_file():
            return cls._of(name or _name(path.stem), _file(path, metric=metric))
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
    def _of(cls, name: str, read: Read) -> Suite:
        return cls(name, tuple(read.items), read.metric, read.description)

    @classmethod
    def from_store(cls, store: SuiteStore, name_or_digest: str) -> Suite:
        """The suite that a registry keeps; its bytes are verified by the registry (IntegrityError)."""
        row = store.suite(name_or_digest)
        return cls.from_jsonl(row.name, store.get_object(row.items), metric=row.metric)

    @classmethod
    def from_jsonl(cls, name: str, data: bytes, *, metric: str | None = None) -> Suite:
        """A suite from JSONL bytes; `name` stands for the file in errors."""
        return cls._of(name, _read(data, where=name, skill="all", held_out=True, metric=metric))

    @classmethod
    def of_rows(cls, name: str, rows: Iterable[Mapping[str, Any]], *, metric: str | None = None) -> Suite:
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

    def metric_of(self, item: Item) -> Metric:
        """The metric that scores one of the items."""
        return metric_named(item.metric or _default_metric(self.metric))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics in use, in the order of their keys."""
        return tuple(metric_named(key) for key in self.metric.split("+"))

    @property
    def graded(self) -> bool:
        """Whether outcomes are numbers, not right or wrong; a suite does not mix the two."""
        return self.metrics[0].graded

    @property
    def higher_is_better(self) -> bool:
        """Whether more of the score is better; a suite does not mix the two."""
        return self.metrics[0].higher_is_better

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


@dataclass(frozen=True)
class Read:
    """What a file or a folder of them said."""

    items: list[Item]
    metric: str
    description: str = ""


def _default_metric(metric: str) -> str:
    """What scores an item that names no metric, in a suite of this metric."""
    if "+" not in metric:
        return metric
    for key in metric.split("+"):
        metric_named(key)
    return DEFAULT_METRIC


def _fit(item: Item, default: str, place: str) -> None:
    """InputError where the item's metric is unknown or cannot score it."""
    try:
        wrong = metric_named(item.metric or default).unfit(item)
    except InputError as error:
        raise InputError(f"{place}: {error.message}", fix=error.fix) from error
    if wrong:
        raise InputError(f"{place}: {wrong}", fix="correct the line, or name the metric that fits it")


def _folder(folder: Path, metric: str | None) -> Read:
    parts = [(folder / split, split == "held_out") for split in SPLITS if (folder / split).is_dir()]
    files = [
        _file(file, skill=file.stem, held_out=held_out, metric=metric)
        for part, held_out in parts or [(folder, True)]
        for file in sorted(part.glob("*.jsonl"))
    ]
    if not files:
        raise InputError(
            f"a suite folder needs JSONL files, its own or in held_out/ and protected/, and {folder} has none"
        )
    if len({file.metric for file in files}) == 1:
        return Read([item for file in files for item in file.items], files[0].metric)
    own = [replace(i, metric=i.metric or file.metric) for file in files for i in file.items]
    return Read(own, DEFAULT_METRIC)


def _file(path: Path, *, skill: str | None = None, held_out: bool = True, metric: str | None = None) -> Read:
    return _read(
        path.read_bytes(), where=str(path), skill=skill or path.stem, held_out=held_out, metric=metric
    )


def _read(data: bytes, *, where: str, skill: str, held_out: bool, metric: str | None) -> Read:
    if not data.strip():
        raise InputError(f"a suite needs at least one item, and {where} is empty")
    lines = data.removesuffix(b"\n").split(b"\n")
    stem = Path(where).stem
    header: Mapping[str, str] = {}
    items = []
    for number, line in enumerate(lines, 1):
        place = f"{where}, line {number}"
        row = _row(line, place)
        if number == 1 and row.keys() == {"suite"}:
            header = _header(row["suite"], place)
            continue
        item = _item(row, place, f"{stem}-{number}", skill, held_out)
        _fit(item, _default_metric(metric or header.get("metric", DEFAULT_METRIC)), place)
        items.append(item)
    if not items:
        raise InputError(f"a suite needs at least one item, and {where} has a header only")
    return Read(items, metric or header.get("metric", DEFAULT_METRIC), header.get("description", ""))


def _header(value: Any, place: str) -> dict[str, str]:
    """What the first line says about all others: {"metric", "description"}, each optional."""
    if not isinstance(value, dict):
        raise InputError(f"{place}: the header `suite` must be an object, not {type(value).__name__}")
    unknown = sorted(value.keys() - {"metric", "description"})
    if unknown:
        raise InputError(
            f"{place}: the header has the unknown key {unknown[0][:60]!r}", fix="known: metric, description"
        )
    header = {key: _text(text, key, place) for key, text in value.items()}
    if "metric" in header:
        try:
            header["metric"] = metric_named(header["metric"]).name
        except InputError as error:
            raise InputError(f"{place}: {error.message}", fix=error.fix) from error
    return header


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
    split = row.get("split", "held_out" if held_out else "protected")
    if split not in SPLITS:
        raise InputError(f"{place}: `split` must be one of {', '.join(SPLITS)}, not {split!r}")
    choices, references = _texts(row, "choices", place), _texts(row, "references", place)
    prompt, answer = _question(row, place, choices)
    if not answer and references:
        answer, references = references[0], references[1:]
    return Item(
        id=str(row["id"])
        if isinstance(row.get("id"), int)
        else _text(row.get("id", fallback_id), "id", place),
        prompt=prompt,
        answer=answer,
        skill=_text(row.get("skill", skill), "skill", place),
        held_out=split == "held_out",
        choices=choices,
        references=references,
        **{key: _text(row[key], key, place) for key in _OPTIONAL if row.get(key) is not None},
    )


_OPTIONAL = ("cluster", "slice", "metric")


def _question(
    row: dict[str, Any], place: str, choices: tuple[str, ...]
) -> tuple[str | tuple[tuple[str, str], ...], str]:
    """Prompt and expected answer of a row in any of `FORMATS`; "" where there is no answer, which its metric
    may not need."""
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
        return prompt, ""
    answer = row[answer_key]
    if choices and type(answer) is int:
        if not 0 <= answer < len(choices):
            raise InputError(
                f"{place}: `answer` must be one of `choices`, or its number counted from 0, not {answer}"
            )
        return prompt, choices[answer]
    return prompt, _text(answer, answer_key, place)


def _texts(row: dict[str, Any], key: str, place: str) -> tuple[str, ...]:
    """A list of texts, which may be absent."""
    value = row.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not value:
        raise InputError(f"{place}: `{key}` must be a list of at least one text")
    return tuple(_text(text, key, place) for text in value)


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
