"""Text from outside, made safe to print: what could steer a terminal or forge a second line is escaped.

Names are checked, but `why`, owners and model cards are stored as they came; this is for showing them.
"""

from __future__ import annotations

import unicodedata

# Cc: control characters with ESC and newlines. Cf: bidirectional overrides and invisible marks.
# Cs: lone surrogates, which no stream can encode. Zl, Zp: line and paragraph separators.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
    """`text` on one line, with control, format and surrogate characters as backslash escapes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if unicodedata.category(c) in _UNSAFE else c for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
