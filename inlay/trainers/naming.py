"""What somebody meant who wrote a name that there is not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def meant(written: str, names: Iterable[str]) -> str:
    """A hint for an error: the nearest of the names, or all of them where none is near."""
    known = list(names)
    near = difflib.get_close_matches(written, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else "there are " + ", ".join(known)
