"""How much of what a model can do depends on being asked neatly: right on the clean prompt, wrong on the same
question with typos, other letter case, more white space or another wording.

Paired by source item, for the composed model and, beside it, for its base: a base that breaks at the first
typo makes rigid variants, and that is no adapter's doing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from inlay.errors import InputError
from inlay.evals.perturbing import source_of
from inlay.evals.scoring import EvalResult
from inlay.evals.statistics import Paired
from inlay.registry.canonical import now

SCHEMA = 1
ALL = "all kinds"


@dataclass(frozen=True)
class Row:
    """One kind of perturbation, or all of them. `base` and `model`: clean against perturbed prompts, so that
    `loss` is what the perturbation costs; `between`: base against model on the perturbed prompts."""

    kind: str
    base: Paired
    model: Paired
    between: Paired


@dataclass(frozen=True)
class Part:
    """The rows of the suites with one role: `general` (their held-out items) or `target`."""

    role: str
    suites: tuple[str, ...]
    sources: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Measured:
    """One suite: base's and model's results on it, and on its perturbed form."""

    role: str
    base: EvalResult
    model: EvalResult
    base_rigid: EvalResult
    model_rigid: EvalResult


@dataclass(frozen=True)
class Rigidity:
    """One subject's rigidity beside its base's."""

    subject: str
    base_weights: str
    parts: tuple[Part, ...]
    created: str = field(default_factory=now)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: counts, from which every figure follows."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Rigidity:
        """What `to_dict` wrote; InputError for a schema this version does not know."""
        if data.get("schema") != SCHEMA:
            raise InputError(f"a rigidity report must have schema {SCHEMA}, got {data.get('schema')!r}")
        parts = tuple(
            Part(
                part["role"],
                tuple(part["suites"]),
                part["sources"],
                tuple(
                    Row(row["kind"], *(_counts(row[side]) for side in ("base", "model", "between")))
                    for row in part["rows"]
                ),
            )
            for part in data["parts"]
        )
        return cls(data["subject"], data["base_weights"], parts, data["created"])


def rigidity(measured: Sequence[Measured]) -> Rigidity:
    """The rigidity of one subject over its suites; InputError where there are none, or where a perturbed form
    has items whose sources the clean suite has not."""
    if not measured:
        raise InputError("rigidity needs at least one suite with right-or-wrong outcomes")
    parts = []
    for role in dict.fromkeys(one.role for one in measured):
        chosen = [one for one in measured if one.role == role]
        answered = [answer for one in chosen for answer in _answered(one)]
        kinds = list(dict.fromkeys(answer.kind for answer in answered))
        rows = [_row(ALL, answered)] if len(kinds) > 1 else []
        rows += [_row(kind, [answer for answer in answered if answer.kind == kind]) for kind in kinds]
        sources = len({answer.source for answer in answered})
        parts.append(Part(role, tuple(one.model.suite.name for one in chosen), sources, tuple(rows)))
    return Rigidity(measured[0].model.label, measured[0].model.base_weights, tuple(parts))


@dataclass(frozen=True)
class _Answer:
    """One perturbed item and its source: who was right on which."""

    kind: str
    source: tuple[str, str]
    cluster: str
    base_clean: bool
    base_rigid: bool
    model_clean: bool
    model_rigid: bool


def _answered(one: Measured) -> list[_Answer]:
    clean = {
        item.id: (bool(before), bool(after))
        for item, before, after in zip(
            one.model.suite.items, one.base.outcomes, one.model.outcomes, strict=True
        )
    }
    answers = []
    pairs = zip(one.model_rigid.suite.items, one.base_rigid.outcomes, one.model_rigid.outcomes, strict=True)
    for item, before, after in pairs:
        source = source_of(item)
        if source not in clean:
            raise InputError(
                f"a perturbed item must come from the clean suite, and {item.id!r} comes from none of "
                f"{one.model.suite.name}"
            )
        suite = one.model.suite.name
        answers.append(
            _Answer(
                kind=item.slice or "variant",
                source=(suite, source),
                cluster=f"{suite}/{item.cluster or source}",
                base_clean=clean[source][0],
                base_rigid=bool(before),
                model_clean=clean[source][1],
                model_rigid=bool(after),
            )
        )
    return answers


def _row(kind: str, answers: Sequence[_Answer]) -> Row:
    return Row(
        kind,
        base=_paired(answers, "base_clean", "base_rigid"),
        model=_paired(answers, "model_clean", "model_rigid"),
        between=_paired(answers, "base_rigid", "model_rigid"),
    )


def _paired(answers: Sequence[_Answer], before: str, after: str) -> Paired:
    """Of one kind the sources are independent (but for clusters of their own); of all kinds they repeat."""
    return Paired.of(
        [getattr(a, before) for a in answers],
        [getattr(a, after) for a in answers],
        [a.cluster for a in answers],
    )


def _counts(row: Mapping[str, Any]) -> Paired:
    return Paired(**{**row, "clusters": tuple(tuple(kind) for kind in row.get("clusters", ()))})
