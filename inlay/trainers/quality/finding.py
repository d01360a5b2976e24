"""What a check finds: one kind of defect, the lines that have it, and what to do."""

from __future__ import annotations

from dataclasses import dataclass

from inlay.registry.printable import printable

LEVELS = ("error", "warning", "note")
"""Errors refuse training: the file cannot be read, must not be used, or makes the run's scores untrue.
Warnings are matters of degree and for a person to judge. Notes are for the record."""
SHOWN = 8
"""Lines that a sentence names."""


@dataclass(frozen=True)
class Finding:
    """One thing found. `message`: a sentence without its full stop; `fix`: what to do; `lines`: all lines it
    is about, from 1, none where it is about the file; `examples`: a few, in words."""

    level: str
    kind: str
    message: str
    fix: str
    lines: tuple[int, ...] = ()
    examples: tuple[str, ...] = ()

    def sentence(self) -> str:
        """The message with its first lines, safe to print."""
        return printable(f"{self.message}{self.where}")

    @property
    def where(self) -> str:
        """`: lines 3, 8 and 2 more`; nothing for a finding about the file."""
        if not self.lines:
            return ""
        named = ", ".join(f"{line}" for line in self.lines[:SHOWN])
        more = f" and {len(self.lines) - SHOWN:,} more" if len(self.lines) > SHOWN else ""
        return f": line{'s' * (len(self.lines) > 1)} {named}{more}"


def many(count: int, one: str, more: str) -> str:
    """`1 row is`, `1,234 rows are`."""
    return f"{count:,} {one if count == 1 else more}"


def shortened(text: str, most: int = 60) -> str:
    """The beginning of a text on one line, in quotation marks, safe to print."""
    text = " ".join(text.split())
    return f"“{printable(text if len(text) <= most else text[: most - 1] + '…')}”"
