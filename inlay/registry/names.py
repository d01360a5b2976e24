"""Names and references: what a thing may be called, and how one points to a version of it.

Grammar, with one separator::

    name       part | part "/" part            part = [a-z0-9][a-z0-9._-]{0,62}
    reference  name                            the same as name@prod
             | name "@" alias                  alias like a part, but never v<number>
             | name "@v" number                number >= 1, no leading zero
             | name "@sha256:" hex{8,64}
             | "sha256:" hex{8,64}             whatever has that digest, under any name

`base` is reserved: it is the bare base model wherever a subject is named.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from inlay.errors import InputError

DEFAULT_ALIAS = "prod"
RESERVED = frozenset({"base"})

_PART = r"[a-z0-9][a-z0-9._-]{0,62}"
_NAME = re.compile(rf"{_PART}(?:/{_PART})?")
_ALIAS = re.compile(_PART)
_NUMBER = re.compile(r"v(0|[1-9][0-9]*)")
_LIKE_NUMBER = re.compile(r"v[0-9]+")
_DIGEST = re.compile(r"sha256:([0-9a-f]{8,64})")
_MAX_NUMBER = 2**53  # a JSON number, exactly

Kind = Literal["alias", "number", "digest"]


@dataclass(frozen=True)
class Reference:
    """A parsed reference. `name` is empty for a bare digest; `value` is alias, number or digest."""

    name: str
    kind: Kind
    value: str

    @property
    def number(self) -> int:
        """The version's number; only where `kind` is "number"."""
        return int(self.value)

    def __str__(self) -> str:
        value = f"v{self.value}" if self.kind == "number" else self.value
        return f"{self.name}@{value}" if self.name else value


def check_name(name: str) -> str:
    """`name` itself if it may name an adapter or a variant, else InputError."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(
            f"a name must match [a-z0-9][a-z0-9._-]{{0,62}}, optionally team/name, got {_shown(name)}",
            fix="use lower-case letters, digits, dots, underscores and hyphens",
        )
    if name in RESERVED:
        raise InputError(f"the name {name!r} is reserved for the base model itself", fix="choose another")
    return name


def check_alias(alias: str) -> str:
    """`alias` itself if it may be one, else InputError."""
    if not isinstance(alias, str) or not _ALIAS.fullmatch(alias):
        raise InputError(
            f"an alias must match [a-z0-9][a-z0-9._-]{{0,62}}, got {_shown(alias)}", fix="try prod or staging"
        )
    if _LIKE_NUMBER.fullmatch(alias):
        raise InputError(
            f"an alias must not look like a version number, got {alias!r}", fix="try prod or staging"
        )
    return alias


def parse_reference(text: str) -> Reference:
    """The reference that `text` writes, else InputError that says which part is wrong."""
    if not isinstance(text, str):
        raise InputError(f"a reference must be text, got {_shown(text)}", fix="write name@prod or name@v3")
    if _DIGEST.fullmatch(text):
        return Reference("", "digest", text)
    name, separator, value = text.partition("@")
    check_name(name)
    if not separator:
        return Reference(name, "alias", DEFAULT_ALIAS)
    if _LIKE_NUMBER.fullmatch(value):
        match = _NUMBER.fullmatch(value)
        if match is None or len(value) > 17 or not 1 <= int(match[1]) <= _MAX_NUMBER:
            raise InputError(
                f"a version number counts from v1 without leading zeros, got {_shown(value)}",
                fix=f"list them with `inlay ls {name}`",
            )
        return Reference(name, "number", match[1])
    if value.startswith("sha256:"):
        if not _DIGEST.fullmatch(value):
            raise InputError(
                f"a digest is sha256: and 8 to 64 lower-case hex digits, got {_shown(value)}",
                fix="copy it from `inlay show --json`",
            )
        return Reference(name, "digest", value)
    return Reference(name, "alias", check_alias(value))


def parse_alias(text: str) -> tuple[str, str]:
    """(name, alias) of `name@alias` or `name`; InputError for a number or a digest, which never move."""
    reference = parse_reference(text)
    if reference.kind != "alias":
        raise InputError(
            f"only an alias can move or have a guard, got {text!r}", fix="name it like acme@prod"
        )
    return reference.name, reference.value


def close_to(wanted: str, known: Iterable[str]) -> str | None:
    """A sentence that suggests the known names nearest to `wanted`, if any are near."""
    near = difflib.get_close_matches(wanted, list(known), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else None


def _shown(value: object) -> str:
    text = ascii(value)  # no control character and no look-alike letter reaches a terminal through a message
    return text if len(text) <= 80 else text[:77] + "..."
