"""What an adapter's papers say: licence, base, tags. Taken from the model card and kept as given.

A model card is README.md with YAML front matter between two lines `---`
(https://huggingface.co/docs/hub/model-cards). It is read within bounds and never expanded. A card that cannot
be read is noted and the adapter taken all the same, because its bytes are none the worse for it; one that is
built to harm a reader (tags that make objects, aliases inside anchors, bottomless nesting) is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inlay.errors import InputError
from inlay.registry.printable import printable
from inlay.registry.recipes import MAX_BYTES, load_yaml

CARD = "README.md"
LICENCES = ("LICENSE", "LICENSE.md", "LICENSE.txt")
FIELDS = (
    "base_model",
    "datasets",
    "language",
    "library_name",
    "license_link",
    "license_name",
    "metrics",
    "model_name",
    "pipeline_tag",
    "tags",
)
MAX_TEXT = 500  # characters of one value
MAX_LIST = 200  # values of one field
_MAX_DEPTH = 32
_MAX_INTEGER = 2**53


@dataclass(frozen=True)
class Papers:
    """`licence` as the card or the licence file gives it, None if neither does; `card` the fields above that
    are there, each a text or a list of texts; `notes` what could not be read.
    """

    licence: str | None
    card: Mapping[str, Any]
    notes: tuple[str, ...]


def read_papers(files: Mapping[str, Path], config: Mapping[str, Any]) -> Papers:
    """The papers among `files` (name -> regular file) and in the adapter's configuration.

    `card` has besides FIELDS `config_base` (base_model_name_or_path) and `peft_version` of the configuration.
    Raises InputError only for a card that is built to harm its reader.
    """
    notes: list[str] = []
    front = _front_matter(files[CARD], notes) if CARD in files else {}
    card: dict[str, Any] = {}
    for name in FIELDS:
        value = _texts(front.get(name), name)
        if value:
            card[name] = value
        elif front.get(name):
            notes.append(f"the card's {name} is no short text or list of such, left out")
    for name, key in (("config_base", "base_model_name_or_path"), ("peft_version", "peft_version")):
        said = config.get(key)
        value = _text(said, name) if isinstance(said, str) else None
        if value:
            card[name] = value
    licence = _texts(front.get("license"), "license") or _licence_line(files)
    return Papers(", ".join(licence) if isinstance(licence, list) else licence, card, tuple(notes))


def _front_matter(path: Path, notes: list[str]) -> dict[str, Any]:
    """The mapping at the head of a card; {} with a note where it has one that cannot be read."""
    with open(path, "rb") as file:
        start = file.read(MAX_BYTES + 16)
    lines = start.decode("utf-8", "replace").removeprefix("\ufeff").lstrip().splitlines()
    if not lines or lines[0].rstrip() != "---":
        return {}
    closing = next((i for i, line in enumerate(lines[1:], 1) if line.rstrip() in ("---", "...")), None)
    if closing is None:
        notes.append(f"the card could not be read: its front matter does not end within {MAX_BYTES} bytes")
        return {}
    text = "\n".join(lines[1:closing])
    if not text.strip():
        return {}
    _refuse_hostile(text)
    try:
        if "\ufffd" in text:
            raise InputError("its front matter is not UTF-8 text")
        value = load_yaml(text, "card")
        if not isinstance(value, dict):
            raise InputError(f"its front matter must be a mapping, got a {type(value).__name__}")
    except InputError as error:
        notes.append(f"the card could not be read: {printable(error.message)}")
        return {}
    return value


def _refuse_hostile(text: str) -> None:
    """Raise InputError for YAML that only a trap needs. Other faults are for `load_yaml` to describe."""
    import yaml

    depth, anchored = 0, 0  # `anchored`: the depth at which the outermost anchored collection began
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            tag = getattr(event, "tag", None)
            if tag and ("python" in tag or not tag.startswith("tag:yaml.org,2002:")):
                raise _hostile(f"has the tag {tag[:60]!r}, which asks for an object to be made")
            if isinstance(event, yaml.AliasEvent) and anchored:
                raise _hostile("uses an alias inside an anchor, which can grow without bound")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > _MAX_DEPTH:
                    raise _hostile(f"is nested more than {_MAX_DEPTH} deep")
                if event.anchor and not anchored:
                    anchored = depth
            elif isinstance(event, yaml.CollectionEndEvent):
                anchored = 0 if anchored == depth else anchored
                depth -= 1
    except yaml.YAMLError:
        return


def _hostile(what: str) -> InputError:
    return InputError(f"{CARD}: its front matter {what}", fix=f"remove that from {CARD}, or remove the file")


def _texts(value: Any, name: str) -> str | list[str] | None:
    """`value` as a short text or a list of short texts, None if it is neither."""
    if isinstance(value, list):
        texts = [_text(item, name) for item in value]
        kept = [text for text in texts if text]
        return kept if len(kept) == len(texts) and len(kept) <= MAX_LIST else None
    return _text(value, name)


def _text(value: Any, name: str) -> str | None:
    if value is False and name == "language":
        return "no"  # YAML 1.1 reads the code of Norwegian as a truth value
    if isinstance(value, bool):
        return None
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < _MAX_INTEGER):
        return str(value)
    if isinstance(value, str) and 0 < len(value.strip()) <= MAX_TEXT:
        # Half a surrogate pair, which an escape can make, could not be stored.
        return value.strip().encode("utf-8", "backslashreplace").decode()
    return None


def _licence_line(files: Mapping[str, Path]) -> str | None:
    """The first line of the licence file that says something, at most MAX_TEXT characters of it."""
    for name in LICENCES:
        if name in files:
            with open(files[name], "rb") as file:
                start = file.read(16 << 10).decode("utf-8", "replace").removeprefix("\ufeff")
            for line in start.splitlines():
                said = line.strip().lstrip("#").strip()
                if any(c.isalnum() for c in said):
                    return said[:MAX_TEXT]
    return None
