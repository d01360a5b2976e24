"""Rows that are nearly there twice: the same answer to nearly the same prompt.

Three ways of being near: equal but for case, spaces and punctuation; one word spelt in another way, or one
word more; texts of which most runs of characters are common (MinHash). Data that is filled into a template is
near itself everywhere, and rightly so: there only differences of spelling count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher

from inlay.evals.contamination import normalised
from inlay.trainers.quality.finding import Finding, shortened
from inlay.trainers.quality.material import Material, Row
from inlay.trainers.quality.similar import same_numbers, shingles, similarity

NEAR = 0.85
"""Similarity of two prompts' own content from which they are near."""
WHOLE = 0.8
"""Similarity that their whole prompts must have: the same content under another wording is no duplicate."""
SPELLING = 0.75
"""Similarity of two words (difflib's ratio) that are one word spelt in two ways."""
LETTERS = 4
"""Letters that a misspelt word must have."""
FEWEST, MOST = 6, 24
"""Words of texts that are compared word by word; in longer ones a word does not matter to MinHash."""


def near_duplicates(material: Material) -> list[Finding]:
    """A warning for rows that an earlier one resembles; the later ones are named."""
    rows = material.rows
    similar_ones = [] if material.templated else _similar(material)
    return near_finding(material, [*_alike(rows), *_misspelt(material), *similar_ones])


def near_finding(material: Material, pairs: Iterable[tuple[int, int]]) -> list[Finding]:
    """The finding about (place, later place) of rows that are near each other; none of none."""
    rows = material.rows
    near: dict[int, tuple[Row, Row]] = {}
    for i, j in pairs:
        near.setdefault(rows[j].line, (rows[j], rows[i]))
    if not near:
        return []
    lines = sorted(near)
    return [
        Finding(
            "warning",
            "near-duplicate",
            f"{material.many(len(near), 'is', 'are')} nearly the same as an earlier one",
            "look at them, and keep one of each",
            tuple(lines),
            tuple(
                f"line {row.line} {shortened(row.content)} is nearly line {earlier.line} "
                f"{shortened(earlier.content)}"
                for row, earlier in (near[line] for line in lines[:2])
            ),
        )
    ]


def _alike(rows: tuple[Row, ...]) -> Iterator[tuple[int, int]]:
    """Rows whose prompt stood before but for case, spaces and punctuation, with the same answer."""
    first: dict[tuple[str, str], int] = {}
    for place, row in enumerate(rows):
        before = first.setdefault((row.plain, row.answer), place)
        if rows[before].prompt.strip() != row.prompt.strip():
            yield before, place


def _similar(material: Material) -> Iterator[tuple[int, int]]:
    """Rows with most of their content in common, or with one word more than another."""
    rows = material.rows
    for i, j, alike in [*material.similar_pairs, *((i, j, 1.0) for i, j in _longer_by_a_word(rows))]:
        a, b = rows[i].prompt, rows[j].prompt
        if alike >= NEAR and a.strip() != b.strip() and similarity(shingles(a), shingles(b)) >= WHOLE:
            yield i, j


def _longer_by_a_word(rows: tuple[Row, ...]) -> Iterator[tuple[int, int]]:
    texts = [normalised(row.content).split() for row in rows]
    known = {
        (tuple(words), row.answer): place for place, (words, row) in enumerate(zip(texts, rows, strict=True))
    }
    for place, words in enumerate(texts):
        for at in range(len(words) if FEWEST <= len(words) <= MOST else 0):
            other = known.get((tuple(words[:at] + words[at + 1 :]), rows[place].answer))
            if other is not None and same_numbers(rows[place].content, rows[other].content):
                yield min(place, other), max(place, other)


def _misspelt(material: Material) -> Iterator[tuple[int, int]]:
    """Rows that differ in one word, spelt alike, of which one stands nowhere else in the file."""
    rows = material.rows
    texts = [normalised(row.content).split() for row in rows]
    gaps: dict[tuple[tuple[str, ...], str], tuple[int, str]] = {}
    for place, words in enumerate(texts):
        for at, word in enumerate(words if FEWEST <= len(words) <= MOST else ()):
            if material.words[word] == 1 and _spelt(word):
                gaps[(*words[:at], "", *words[at + 1 :]), rows[place].answer] = place, word
    if not gaps:
        return
    for place, words in enumerate(texts):
        for at, word in enumerate(words if FEWEST <= len(words) <= MOST else ()):
            found = gaps.get(((*words[:at], "", *words[at + 1 :]), rows[place].answer))
            if found is None or found[0] == place or not _spelt(word):
                continue
            if SequenceMatcher(None, word, found[1]).ratio() >= SPELLING:
                yield min(place, found[0]), max(place, found[0])


def _spelt(word: str) -> bool:
    return len(word) >= LETTERS and word.isalpha()
