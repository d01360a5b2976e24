"""What nobody said about the data."""

from __future__ import annotations

from inlay.trainers.quality.finding import Finding
from inlay.trainers.quality.material import Material, numbered


def unstated(material: Material) -> list[Finding]:
    """Notes: rows without a licence or an origin; rows without consent where others state one."""
    found = []
    for key, only_if_some in (("licence", False), ("origin", False), ("consent", True)):
        missing = [row for row in material.rows if getattr(row.stated, key) is None]
        if not missing or (only_if_some and len(missing) == len(material.rows)):
            continue
        everywhere = len(missing) == len(material.rows)
        found.append(
            Finding(
                "note",
                f"no-{key}",
                f"no {key} stated"
                if everywhere
                else f"{material.many(len(missing), 'has', 'have')} no {key} stated",
                f"write it into the rows, or into {material.name}.meta.json beside them",
                () if everywhere else numbered(missing),
            )
        )
    return found
