"""Whether data is fit to be trained on: `check` for a person to read, `refuse_bad_data` for a run."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError
from inlay.registry.printable import printable
from inlay.trainers.provenance import summary
from inlay.trainers.quality.defects import DEFECTS
from inlay.trainers.quality.figures import Figures
from inlay.trainers.quality.finding import LEVELS, Finding
from inlay.trainers.quality.material import NOUNS, Material, material_of, read_material
from inlay.trainers.quality.measuring import Say, measured
from inlay.trainers.reading import Data

if TYPE_CHECKING:
    from inlay.evals.inference import Base
    from inlay.evals.suites import Suite


@dataclass(frozen=True)
class DataCheck:
    """What `check` found in a file. `base`: the name of the model that measured it; `against`: names of the
    suites its prompts were looked for in; `provenance`: rows by licence, origin and consent; `material`: what
    was looked at."""

    name: str
    base: str | None
    against: tuple[str, ...]
    findings: tuple[Finding, ...]
    figures: Figures
    provenance: dict[str, dict[str, int]]
    material: Material = dataclasses.field(repr=False, compare=False)

    def of_level(self, level: str) -> tuple[Finding, ...]:
        """The findings of one of `LEVELS`."""
        return tuple(found for found in self.findings if found.level == level)

    @property
    def ok(self) -> bool:
        """No errors; warnings and notes may be there."""
        return not self.of_level("error")

    @property
    def clean(self) -> bool:
        """Neither errors nor warnings."""
        return self.ok and not self.of_level("warning")

    def verdict(self) -> str:
        """One sentence."""
        count = Counter(found.level for found in self.findings)
        said = ", ".join(f"{count[level]} {level}{'s' * (count[level] != 1)}" for level in LEVELS[:2])
        refused = "" if self.ok else "; it will not be trained on"
        what = NOUNS["texts"][1] if self.reads == "texts" else "lines"
        return f"{printable(self.name)}: {self.figures.lines:,} {what}; {said}{refused}"

    @property
    def reads(self) -> str:
        """What a row of it is: "rows", "pairs" or "texts"."""
        return self.material.reads

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON; row by row there are only the findings' lines."""
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "material"}
        kept["findings"] = [dataclasses.asdict(found) for found in self.findings]
        kept["figures"] = dataclasses.asdict(self.figures)
        return {**kept, "reads": self.reads, "ok": self.ok, "clean": self.clean}


def check(
    source: str | Path | Data,
    *,
    base: Base | str | Path | None = None,
    against: Sequence[Suite] = (),
    max_length: int = 512,
    surprisal: bool = True,
    device: str = "auto",
    say: Say | None = None,
) -> DataCheck:
    """Look a data file over: rows of prompts and answers, preference pairs or raw text, as its first row is.

    `base`, loaded or where it lies, measures lengths in its tokens, and with `surprisal` how likely it finds
    each answer or document: one forward pass each, nearly all of the time. `against`: suites whose prompts
    must not be in the data. `max_length`: tokens a row or pair may have, where the base's context is not
    shorter; raw text may have any. Raises InputError where there is no file, it is not UTF-8 or empty; all
    else is a finding.
    """
    material = read_material(source) if isinstance(source, str | Path) else material_of(source)
    material = dataclasses.replace(material, suites=tuple(against))
    loaded = _loaded(base, device)
    if loaded is not None:
        material = measured(material, loaded, max_length, surprisal, say)
    return DataCheck(
        name=material.name,
        base=loaded.fingerprint.name if loaded is not None else None,
        against=tuple(suite.name for suite in against),
        findings=found_in(material),
        figures=Figures.of(material),
        provenance=summary(row.stated for row in material.rows),
        material=material,
    )


def refuse_bad_data(data: Data, *, against: Iterable[Suite] = ()) -> tuple[Finding, ...]:
    """The warnings about data that may be trained on; InputError where there are errors.

    Everything that `check` does but for what needs a base. 5,000 rows take about a second. The length of rows
    is the training method's own to judge, which encodes them.
    """
    found = found_in(dataclasses.replace(material_of(data), suites=tuple(against)))
    errors = [each for each in found if each.level == "error"]
    if errors:
        more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
        raise InputError(
            f"data must have no errors to be trained on; of {data.name} {errors[0].sentence()}{more}",
            fix=f"{errors[0].fix}; `inlay data check` says all",
        )
    return tuple(each for each in found if each.level == "warning")


def found_in(material: Material) -> tuple[Finding, ...]:
    """What all kinds of defects say of it, errors first."""
    found = [each for defect in DEFECTS[material.reads] for each in defect(material)]
    return tuple(sorted(found, key=lambda each: LEVELS.index(each.level)))


def _loaded(base: Base | str | Path | None, device: str) -> Base | None:
    if base is None:
        return None
    from inlay.evals.inference import Base as Loaded
    from inlay.evals.inference import load_base

    return base if isinstance(base, Loaded) else load_base(base, device=device)
