"""Kinds of defects of training data, each a function `Material -> list[Finding]`.

A new one is a function in a file here, and its name in `DEFECTS` under what data may have it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from inlay.trainers.quality.defects.broken_json import broken_json
from inlay.trainers.quality.defects.classes import classes
from inlay.trainers.quality.defects.conflicts import conflicts
from inlay.trainers.quality.defects.duplicates import duplicates
from inlay.trainers.quality.defects.empty import empty
from inlay.trainers.quality.defects.encoding import encoding
from inlay.trainers.quality.defects.forbidden import forbidden
from inlay.trainers.quality.defects.form import form
from inlay.trainers.quality.defects.leaks import leaks
from inlay.trainers.quality.defects.monotony import monotony
from inlay.trainers.quality.defects.near_duplicates import near_duplicates
from inlay.trainers.quality.defects.personal import personal
from inlay.trainers.quality.defects.preferences import alike, one_sided, opposed
from inlay.trainers.quality.defects.raw_text import boilerplate, near_documents, questions
from inlay.trainers.quality.defects.style import style
from inlay.trainers.quality.defects.surprisal import surprisal
from inlay.trainers.quality.defects.too_long import too_long
from inlay.trainers.quality.defects.unstated import unstated
from inlay.trainers.quality.finding import Finding
from inlay.trainers.quality.material import Material

Defect = Callable[[Material], list[Finding]]

_OF_PROMPTS: tuple[Defect, ...] = (form, empty, forbidden, too_long, leaks, duplicates, near_duplicates)
_OF_ANSWERS: tuple[Defect, ...] = (broken_json, monotony, style, surprisal, encoding, personal, unstated)

DEFECTS: Mapping[str, tuple[Defect, ...]] = {
    "rows": (*_OF_PROMPTS, conflicts, classes, *_OF_ANSWERS),
    "pairs": (*_OF_PROMPTS, opposed, alike, one_sided, *_OF_ANSWERS),
    "texts": (
        form,
        empty,
        forbidden,
        questions,
        duplicates,
        near_documents,
        boilerplate,
        surprisal,
        encoding,
        personal,
        unstated,
    ),
}
"""What a row is -> all of them, in the order of reports."""
