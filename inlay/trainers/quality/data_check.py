"""Whether data is fit to be trained on: `check` for a person to read, `refuse_bad_data` for a run."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError
from inlay.registry.printable import printable
from inlay.trainers.data import Dataset
from inlay.trainers.provenance import summary
from inlay.trainers.quality.defects import DEFECTS
from inlay.trainers.quality.figures import Figures
from inlay.trainers.quality.finding import LEVELS, Finding
from inlay.trainers.quality.material import Material, material_of, read_material

if TYPE_CHECKING:
    from inlay.evals.inference import Base
    from inlay.evals.suites import Suite

Say = Callable[[str, int, int], None]
"""Called with (what, done, all)."""


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
        return f"{printable(self.name)}: {self.figures.lines:,} lines; {said}{refused}"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON; row by row there are only the findings' lines."""
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "material"}
        kept["findings"] = [dataclasses.asdict(found) for found in self.findings]
        kept["figures"] = dataclasses.asdict(self.figures)
        return {**kept, "ok": self.ok, "clean": self.clean}


def check(
    source: str | Path | Dataset,
    *,
    base: Base | str | Path | None = None,
    against: Sequence[Suite] = (),
    max_length: int = 512,
    surprisal: bool = True,
    device: str = "auto",
    say: Say | None = None,
) -> DataCheck:
    """Look a data file over.

    `base`, loaded or where it lies, measures lengths in its tokens, and with `surprisal` how likely it finds
    each answer: one forward pass a row, nearly all of the time. `against`: suites whose prompts must not be
    in the data.
    `max_length`: tokens a row may have, where the base's context is not shorter. Raises InputError where
    there is no file, it is not UTF-8 or empty; all else is a finding.
    """
    material = material_of(source) if isinstance(source, Dataset) else read_material(source)
    material = dataclasses.replace(material, suites=tuple(against))
    loaded = _loaded(base, device)
    if loaded is not None:
        material = _measured(material, loaded, max_length, surprisal, say)
    return DataCheck(
        name=material.name,
        base=loaded.fingerprint.name if loaded is not None else None,
        against=tuple(suite.name for suite in against),
        findings=found_in(material),
        figures=Figures.of(material),
        provenance=summary(row.stated for row in material.rows),
        material=material,
    )


def refuse_bad_data(dataset: Dataset, *, against: Iterable[Suite] = ()) -> tuple[Finding, ...]:
    """The warnings about a dataset that may be trained on; InputError where there are errors.

    Everything that `check` does but for what needs a base. 5,000 rows take about a second. The length of rows
    is the training method's own to judge, which encodes them.
    """
    found = found_in(dataclasses.replace(material_of(dataset), suites=tuple(against)))
    errors = [each for each in found if each.level == "error"]
    if errors:
        more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
        raise InputError(
            f"data must have no errors to be trained on; of {dataset.name} {errors[0].sentence()}{more}",
            fix=f"{errors[0].fix}; `inlay data check` says all",
        )
    return tuple(each for each in found if each.level == "warning")


def found_in(material: Material) -> tuple[Finding, ...]:
    """What all kinds of defects say of it, errors first."""
    found = [each for defect in DEFECTS for each in defect(material)]
    return tuple(sorted(found, key=lambda each: LEVELS.index(each.level)))


def _loaded(base: Base | str | Path | None, device: str) -> Base | None:
    if base is None:
        return None
    from inlay.evals.inference import Base as Loaded
    from inlay.evals.inference import load_base

    return base if isinstance(base, Loaded) else load_base(base, device=device)


def _measured(material: Material, base: Base, max_length: int, surprisal: bool, say: Say | None) -> Material:
    from inlay.evals.inference import Chat, encode_pair, quiet_transformers

    limit = min(max_length, getattr(base.model.config, "max_position_embeddings", None) or max_length)
    tokens = []
    with quiet_transformers():  # of rows longer than the context we speak ourselves
        for done, row in enumerate(material.rows, 1):
            tokens.append(len(encode_pair(base.tokenizer, row.example.messages, row.answer)[0]))
            if say and (done % 100 == 0 or done == len(material.rows)):
                say("counting tokens", done, len(material.rows))
    nats: list[float] | None = None
    if surprisal:
        fitting = [place for place, n in enumerate(tokens) if n <= limit]
        chosen = [material.rows[place] for place in fitting]
        measured = Chat(base).likelihoods(
            [row.example.messages for row in chosen],
            [row.answer for row in chosen],
            progress=(lambda d, n: say("how likely the base finds the answers", d, n)) if say else None,
        )
        nats = [math.nan] * len(tokens)
        for place, (cost, count) in zip(fitting, measured, strict=True):
            nats[place] = cost / count
    return dataclasses.replace(
        material, limit=limit, tokens=tuple(tokens), nats=tuple(nats) if nats is not None else None
    )
