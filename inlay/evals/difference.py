"""The records of what differs between two versions or two locks: configuration, data, recipe, scores,
verdicts, norms.

`inlay.evals.comparing` makes one out of the registry, `inlay.composer.difference` adds the norms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from inlay.evals.score_changes import NotComparable, ScoreChange
from inlay.registry.guards import Verdict
from inlay.registry.records import Member

SCHEMA = 1

How = Literal["added", "removed", "changed"]


@dataclass(frozen=True)
class Change:
    """One thing that differs. `before` is None where it was added, `after` where it was removed."""

    what: str
    how: How
    before: Any = None
    after: Any = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON, without the side that is not there."""
        sides = {"before": self.before, "after": self.after}
        absent = {"added": "before", "removed": "after"}.get(self.how)
        return {
            "what": self.what,
            "how": self.how,
            **{key: value for key, value in sides.items() if key != absent},
        }


@dataclass(frozen=True)
class MemberChange:
    """One member of a lock on both sides; `before` is None where it was added, `after` where it was
    removed."""

    name: str
    before: Member | None
    after: Member | None

    @property
    def how(self) -> tuple[str, ...]:
        """Of "added", "removed", "pinned anew", "weight", "moved" those that apply; () for what stayed."""
        if self.before is None:
            return ("added",)
        if self.after is None:
            return ("removed",)
        found = {
            "pinned anew": self.before.digest != self.after.digest,
            "weight": self.before.weight != self.after.weight,
            "moved": _parents(self.before.path) != _parents(self.after.path),
        }
        return tuple(key for key, applies in found.items() if applies)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        sides = {"before": self.before, "after": self.after}
        shown = {
            side: None
            if member is None
            else {"ref": member.ref, "digest": member.digest, "weight": member.weight, "path": member.path}
            for side, member in sides.items()
        }
        return {"name": self.name, "how": list(self.how), **shown}


@dataclass(frozen=True)
class Side:
    """One of the two things compared. `live_in`: aliases of its name that point to it now. `dataset`: name,
    rows and digest of what a version was trained on, None where no record says."""

    ref: str
    digest: str
    kind: str
    state: str
    base: str
    created: str
    author: str
    why: str
    live_in: tuple[str, ...]
    dataset: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Standing:
    """What the judge would say now about pointing `alias` to the second side; `verdict` is None where it may
    not be promoted at all, and `note` says why."""

    alias: str
    verdict: Verdict | None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        said = self.verdict.to_dict() if self.verdict is not None else None
        return {"alias": self.alias, "verdict": said, "note": self.note}


@dataclass(frozen=True)
class Said:
    """A verdict that the journal keeps about one of the two."""

    seq: int
    at: str
    alias: str
    ref: str
    passed: bool
    forced: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class ModuleChange:
    """The deltas ΔW of two adapters in one module, as Frobenius norms in float64.

    `change` is ‖ΔW_b − ΔW_a‖, `inner` their inner product. A side that has no such module has rank None and
    norm 0.
    """

    module: str
    rank_a: int | None
    rank_b: int | None
    norm_a: float
    norm_b: float
    change: float
    inner: float

    @property
    def relative(self) -> float | None:
        """‖ΔW_b − ΔW_a‖ / ‖ΔW_a‖; None where ΔW_a is zero."""
        return self.change / self.norm_a if self.norm_a > 0.0 else None

    @property
    def cosine(self) -> float | None:
        """⟨ΔW_a, ΔW_b⟩ / (‖ΔW_a‖ ‖ΔW_b‖), in −1…1; None where either is zero."""
        product = self.norm_a * self.norm_b
        return max(-1.0, min(1.0, self.inner / product)) if product > 0.0 else None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        figures = {key: value for key, value in asdict(self).items() if key != "inner"}
        return {**figures, "relative": self.relative, "cosine": self.cosine}


@dataclass(frozen=True)
class Norms:
    """The deltas of one pair, module by module in the order of the names; `of` calls the pair."""

    of: tuple[str, str]
    modules: tuple[ModuleChange, ...]

    @property
    def total(self) -> ModuleChange:
        """All modules taken as one vector."""
        return ModuleChange(
            module="all modules",
            rank_a=max((m.rank_a for m in self.modules if m.rank_a is not None), default=None),
            rank_b=max((m.rank_b for m in self.modules if m.rank_b is not None), default=None),
            norm_a=math.hypot(*(m.norm_a for m in self.modules)),
            norm_b=math.hypot(*(m.norm_b for m in self.modules)),
            change=math.hypot(*(m.change for m in self.modules)),
            inner=math.fsum(m.inner for m in self.modules),
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        total, modules = self.total.to_dict(), [m.to_dict() for m in self.modules]
        return {"of": list(self.of), "total": total, "modules": modules}


@dataclass(frozen=True)
class Difference:
    """What differs from `a` to `b`. Empty tuples where nothing does, or there is nothing to compare.

    `norms` is None where they were not asked for. `notes` say what could not be compared, and why.
    """

    a: Side
    b: Side
    base: tuple[Change, ...] = ()
    adapter: tuple[Change, ...] = ()
    configuration: tuple[Change, ...] = ()
    files: tuple[Change, ...] = ()
    data: tuple[Change, ...] = ()
    lineage: tuple[Change, ...] = ()
    members: tuple[MemberChange, ...] = ()
    recipe: tuple[Change, ...] = ()
    scores: tuple[ScoreChange, ...] = ()
    not_comparable: tuple[NotComparable, ...] = ()
    standings: tuple[Standing, ...] = ()
    said: tuple[Said, ...] = ()
    norms: tuple[Norms, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether both are the same bytes, or the same pinned tree."""
        return self.a.digest == self.b.digest

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        changes = ("base", "adapter", "configuration", "files", "data", "lineage", "recipe")
        return {
            "schema": SCHEMA,
            "a": asdict(self.a),
            "b": asdict(self.b),
            "same": self.same,
            **{key: [change.to_dict() for change in getattr(self, key)] for key in changes},
            "members": [member.to_dict() for member in self.members],
            "scores": [score.to_dict() for score in self.scores],
            "not_comparable": [asdict(suite) for suite in self.not_comparable],
            "guards": [standing.to_dict() for standing in self.standings],
            "verdicts": [asdict(said) for said in self.said],
            "norms": None if self.norms is None else [pair.to_dict() for pair in self.norms],
            "notes": list(self.notes),
        }

    def text(self, width: int = 100) -> str:
        """The difference for a terminal of `width` columns, safe to print."""
        from inlay.evals.difference_text import difference_text

        return difference_text(self, width)


def _parents(path: str) -> tuple[str, ...]:
    """The places of the nodes above a member: the order within one node says nothing."""
    return tuple(path.split(".")[1:-2:2])
