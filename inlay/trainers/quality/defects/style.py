"""Answers written unlike the others: a handful of those teaches a second style (cf. SCAR, 2406.10882)."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import lru_cache

from inlay.trainers.quality.finding import Finding, many, shortened
from inlay.trainers.quality.material import Material, Row
from inlay.trainers.quality.spread import robust_z

FEW = 0.01
"""A habit that so few answers have, or lack, is an exception."""
FEWEST_ROWS = 100
FAR, LEAST = 6.0, 0.35
"""Robust z of the logarithm of an answer's length from which it is far from the others; the least spread
assumed is a factor of 1.4."""

_MARKDOWN = re.compile(r"^(?:#{1,6} |[*+-] |\d+\. |> |```)|\*\*[^*\n]+\*\*|\[[^]\n]{1,200}\]\(http", re.M)
_HTML = re.compile(r"</?(?:p|br|div|span|b|i|ul|ol|li|a|table|tr|td|h[1-6])\b[^>]{0,200}>", re.I)
_CHATTER = re.compile(
    r"^(?:sure|certainly|of course|absolutely|great question|okay|gladly|here (?:is|are)\b|here's|"
    r"i(?:'d| would) be happy|happy to help|thank you for your)",
    re.I,
)
_ASSISTANT = re.compile(
    r"\bas an? (?:ai|artificial|language model|large language)|\bi(?:'m| am) "
    r"(?:sorry, (?:but )?i can(?:no|')t|an ai\b)|\bi (?:cannot|can't) (?:help|assist) with",
    re.I,
)


def _capitals(answer: str) -> bool:
    letters = [c for c in answer if c.isalpha()]
    return len(letters) >= 8 and all(c.isupper() for c in letters)


@lru_cache(maxsize=4096)
def _script_of(letter: str) -> str:
    return unicodedata.name(letter, "?").split(" ")[0]


def _script(text: str) -> str:
    """The commonest script of a text's letters, as their Unicode names begin; "" for none."""
    if text.isascii():
        return "LATIN" if any(c.isalpha() for c in text) else ""
    counted = Counter(_script_of(c) for c in text if c.isalpha())
    return max(sorted(counted), key=lambda script: counted[script]) if counted else ""


HABITS: dict[str, Callable[[str], bool]] = {
    "in several lines": lambda answer: "\n" in answer,
    "with Markdown": lambda answer: bool(_MARKDOWN.search(answer)),
    "with HTML": lambda answer: bool(_HTML.search(answer)),
    "in capitals": _capitals,
    "opening with chatter": lambda answer: bool(_CHATTER.match(answer)),
    "speaking as an assistant": lambda answer: bool(_ASSISTANT.search(answer)),
}
"""What an answer may be. Each is rare, or the rule of its file."""


def style(material: Material) -> list[Finding]:
    """A warning for answers with a habit that at most `FEW` of the file has, without one that all but so few
    have, in another script, or far longer or shorter than the others."""
    rows = material.rows
    if len(rows) < FEWEST_ROWS:
        return []
    why: dict[int, list[str]] = {}
    most = FEW * len(rows)
    for habit, has in HABITS.items():
        holders = {row.line for row in rows if has(row.answer)}
        others = {row.line for row in rows} - holders
        for exceptions, said in ((holders, habit), (others, f"not {habit}")):
            if 0 < len(exceptions) <= most:
                for line in exceptions:
                    why.setdefault(line, []).append(said)
    for line, said in [*_foreign(rows, most), *_lengths(rows)]:
        why.setdefault(line, []).append(said)
    if not why:
        return []
    lines = sorted(why)
    answers = {row.line: row.answer for row in rows}
    return [
        Finding(
            "warning",
            "style",
            f"{many(len(lines), 'answer is', 'answers are')} written unlike the others",
            "rewrite them in the style of the rest, or remove them",
            tuple(lines),
            tuple(f"line {line} {', '.join(why[line])}: {shortened(answers[line])}" for line in lines[:3]),
        )
    ]


def _foreign(rows: tuple[Row, ...], most: float) -> list[tuple[int, str]]:
    scripts = [_script(row.answer) for row in rows]
    counted = Counter(scripts)
    return [
        (row.line, f"in {script.lower()} script")
        for row, script in zip(rows, scripts, strict=True)
        if script and counted[script] <= most
    ]


def _lengths(rows: tuple[Row, ...]) -> list[tuple[int, str]]:
    scores = robust_z([math.log(len(row.answer)) for row in rows], LEAST)
    return [
        (row.line, "far longer" if z > 0 else "far shorter")
        for row, z in zip(rows, scores, strict=True)
        if abs(z) >= FAR
    ]
