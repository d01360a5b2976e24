"""Text that was decoded wrongly."""

from __future__ import annotations

import re

from inlay.trainers.quality.finding import Finding, shortened
from inlay.trainers.quality.material import Material

# UTF-8 read as Latin-1 or Windows-1252 ("Ã©", "â€™"), the mark of what could not be read, control characters.
_GARBLED = re.compile("[ÂÃ][\u0080-\u00bf]|â€[\u0080-\u009f“”™˜œ¦¢]|�|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def encoding(material: Material) -> list[Finding]:
    """A warning for rows with the traces of a wrong decoding, or control characters."""
    bad = [(row, found) for row in material.rows if (found := _GARBLED.search(row.said))]
    if not bad:
        return []
    return [
        Finding(
            "warning",
            "encoding",
            f"{material.many(len(bad), 'was decoded wrongly or holds', 'were decoded wrongly or hold')} "
            "control characters",
            "read their source again as UTF-8",
            tuple(row.line for row, _ in bad),
            tuple(
                f"line {row.line}: {shortened(found.string[max(0, found.start() - 20) : found.end() + 20])}"
                for row, found in bad[:2]
            ),
        )
    ]
