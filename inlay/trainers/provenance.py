"""Where training rows come from and what may be done with them: licence, origin, consent, and marks that
forbid training.

Read from a row's own keys, from an object `meta` or `metadata` in it, and from a file beside the data.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inlay.errors import InputError

LICENCE = ("licence", "license")
ORIGIN = ("origin", "source", "source_repo", "source_url")
CONSENT = ("consent",)
ALLOWED = ("train", "may_train", "allow_training")
"""Keys that forbid training where their value is a no."""
FORBIDDEN = ("do_not_train", "no_train", "no_training", "opt_out", "opted_out")
"""Keys that forbid training where their value is a yes."""
SPLIT = ("split", "partition", "subset")
NOT_FOR_TRAINING = (
    "dev", "development", "val", "valid", "validation", "test", "testing", "eval", "evaluation", "held_out",
    "heldout", "held-out", "holdout", "benchmark",
)  # fmt: skip
"""Splits whose rows are there to be measured with."""

NO = ("false", "no", "n", "0", "never", "none", "withdrawn", "revoked", "refused", "denied", "declined",
      "opted out", "opt-out", "not given", "expired")  # fmt: skip
YES = ("true", "yes", "y", "1", "given", "granted")
NESTED = ("meta", "metadata")

NAMED = 20
"""Different licences, origins and consents that a summary names; the others are counted together."""
LONGEST = 120
"""Characters of one of them that are kept."""
NOT_STATED = ""


@dataclass(frozen=True)
class Provenance:
    """What is stated about a row or a file; None is not stated. `forbidden`: why it must not be trained on,
    as `key: value`."""

    licence: str | None = None
    origin: str | None = None
    consent: str | None = None
    forbidden: str | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Provenance:
        """What one JSON object says; its own keys go before those of `meta` and `metadata` in it."""
        layers = [row, *(row[key] for key in NESTED if isinstance(row.get(key), Mapping))]
        return cls(
            licence=_first(layers, LICENCE),
            origin=_first(layers, ORIGIN),
            consent=_first(layers, CONSENT),
            forbidden=next((mark for layer in layers if (mark := _forbidden(layer))), None),
        )

    def over(self, file: Provenance) -> Provenance:
        """A row's own statements, and its file's where it makes none."""
        return Provenance(
            licence=self.licence or file.licence,
            origin=self.origin or file.origin,
            consent=self.consent or file.consent,
            forbidden=self.forbidden or file.forbidden,
        )


NOTHING = Provenance()


def beside(path: Path) -> Provenance:
    """What the file beside a data file says of all its rows: `data.jsonl.meta.json`, `data.meta.json` or
    `meta.json`, the first that there is. Its `split` and `consent` count like a row's. InputError where it is
    no JSON; anything but an object says nothing."""
    for name in (f"{path.name}.meta.json", f"{path.stem}.meta.json", "meta.json"):
        file = path.with_name(name)
        if not file.is_file():
            continue
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            raise InputError(
                f"{file} stands beside the data and must be JSON, and it is not",
                fix="mend it, or move it away",
            ) from None
        return Provenance.of(found) if isinstance(found, Mapping) else NOTHING
    return NOTHING


def summary(rows: Iterable[Provenance]) -> dict[str, dict[str, int]]:
    """{"licence": {value: rows}, "origin": …, "consent": …}; "" is not stated, "(others)" what is beyond the
    `NAMED` commonest."""
    rows = list(rows)
    return {key: _counts(getattr(row, key) for row in rows) for key in ("licence", "origin", "consent")}


def _counts(values: Iterable[str | None]) -> dict[str, int]:
    counted = Counter((value or NOT_STATED)[:LONGEST] for value in values)
    ranked = sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))
    found = dict(ranked[:NAMED])
    if others := sum(count for _, count in ranked[NAMED:]):
        found["(others)"] = others
    return found


def _first(layers: Iterable[Mapping[str, Any]], keys: Iterable[str]) -> str | None:
    for layer in layers:
        for key in keys:
            if (value := layer.get(key)) is not None and (said := _said(value)):
                return said
    return None


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    return text.strip()


def _forbidden(layer: Mapping[str, Any]) -> str | None:
    for keys, words in (
        (ALLOWED, NO),
        (FORBIDDEN, YES),
        (CONSENT, NO),
        (SPLIT, NOT_FOR_TRAINING),
    ):
        for key in keys:
            value = layer.get(key)
            if value is not None and _said(value).casefold() in words:
                return f"{key}: {_said(value)}"
    return None
