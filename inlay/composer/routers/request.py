"""By request: whoever asks names the expert. Nothing is fitted and nothing looked at; unnamed is the base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from inlay.composer.routers.choice import Choice
from inlay.errors import InputError


class Request:
    name: ClassVar[str] = "request"


def named(name: str | None, experts: Sequence[str]) -> Choice:
    """The expert called `name`: its whole label (`tickets@v2`), or the label without its version where that
    is only one's; None and "base" are the base. InputError for a name that is no expert's, or two's."""
    if name is None or name == "base":
        return Choice(None)
    found = [i for i, label in enumerate(experts) if label == name]
    found = found or [i for i, label in enumerate(experts) if label.partition("@")[0] == name]
    if len(found) == 1:
        return Choice(found[0])
    said = "is none" if not found else "is more than one"
    shown = ", ".join(experts[:8]) + (", …" if len(experts) > 8 else "")
    raise InputError(
        f"a request must name one expert of its route, and {name[:60]!r} {said}", fix=f"its experts: {shown}"
    )
