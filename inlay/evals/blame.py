"""Blame: which member of a composed model costs what, from outcomes that were measured.

Each member is looked at twice. *Alone* against the base: what it forgets by itself. The variant *without* it
against the variant: what removing it brings back on held-out general skills, and what that costs on targets.
The second decides, since a member may do by itself what others would do anyway. All pairs are on the same
items.

Knows outcomes and their statistics. Does not know adapters, gates or recipes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from inlay.errors import InputError
from inlay.evals.forgetting import p_text, percent
from inlay.evals.statistics import Paired, holm, reached
from inlay.evals.suites import Suite
from inlay.registry.canonical import now

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 1
LEVEL = 0.05
"""A member is named where Holm's adjusted p is under this and the 95% interval lies above zero."""
SKILLS_KEPT = 3

Outcomes = Sequence[Sequence[bool]]
"""For each suite, in order, one outcome an item."""


@dataclass(frozen=True)
class Measured:
    """Right or wrong, item by item, of one ablation: for each general suite and each target suite."""

    general: Outcomes
    target: Outcomes = ()


@dataclass(frozen=True)
class SkillHit:
    """What removing a member brings back of one held-out skill: without it -> with it."""

    name: str
    removed: Paired


@dataclass(frozen=True)
class TargetShare:
    """A member's part in one target suite: base -> alone, and the variant without it -> the variant."""

    suite: str
    alone: Paired
    removed: Paired


@dataclass(frozen=True)
class Member:
    """One member. `alone`: base -> member alone; `removed`: the variant without it -> the variant, so that
    `removed.loss` is what removing it brings back. Both on held-out items of the skills that the base has.

    `p`: McNemar's of `removed`, `p_adjusted` over the members (Holm). `skills`: the three that removing it
    brings most back of. `path`: where it stands in the recipe ("stack.0").
    """

    name: str
    path: str
    weight: float
    alone: Paired
    removed: Paired
    p: float = 1.0
    p_adjusted: float = 1.0
    targets: tuple[TargetShare, ...] = ()
    skills: tuple[SkillHit, ...] = ()

    @property
    def shown(self) -> bool:
        """Is it shown that removing this member brings something back?"""
        return self.p_adjusted < LEVEL and self.removed.loss_interval[0] > 0.0


@dataclass(frozen=True)
class BlameReport:
    """A variant against its base, and each member's part in the difference; the most to blame first.

    `whole`: base -> variant on held-out general items; fractions of items, not percent. `kind`: the operator
    at the top of the recipe. `passes`: how many ablations were measured, `remembered` how many more were
    known already.
    """

    subject: str
    base_weights: str
    kind: str
    suites: tuple[str, ...]
    targets: tuple[str, ...]
    whole: Paired
    whole_targets: tuple[Paired, ...]
    members: tuple[Member, ...]
    passes: int = 0
    remembered: int = 0
    created: str = field(default_factory=now)

    @property
    def culprit(self) -> Member | None:
        """The member whose removal brings most back, where that is shown; else None."""
        first = self.members[0] if self.members else None
        return first if first is not None and first.shown else None

    @property
    def interaction(self) -> float:
        """Estimate: what the whole loses more than its members lose by themselves, added up. Positive where
        they hurt together, negative where their losses overlap (or a route keeps them apart)."""
        return self.whole.loss - sum(member.alone.loss for member in self.members)

    @property
    def verdict(self) -> str:
        """One sentence about held-out skills."""
        if self.whole.n == 0:
            return f"{self.subject}: nobody can be blamed, since no skill that the base has is held out."
        low, high = self.whole.loss_interval
        lost = f"{self.subject} loses {percent(self.whole.loss)} points [{percent(low)}, {percent(high)}]"
        culprit = self.culprit
        if culprit is None:
            return f"{lost}; no single member is shown to be to blame (n={self.whole.n})."
        low, high = culprit.removed.loss_interval
        others = [member.name for member in self.members[1:] if member.shown]
        also = f"; {', '.join(others)} shown as well" if others else ""
        return (
            f"{lost}; removing {culprit.name} brings back {percent(culprit.removed.loss)} "
            f"[{percent(low)}, {percent(high)}], p {p_text(culprit.p_adjusted)} after Holm{also} "
            f"(n={self.whole.n})."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: counts, from which every figure follows, and the figures themselves for readers."""
        culprit = self.culprit
        return {
            "schema": SCHEMA,
            "subject": self.subject,
            "base_weights": self.base_weights,
            "kind": self.kind,
            "suites": list(self.suites),
            "targets": list(self.targets),
            "created": self.created,
            "verdict": self.verdict,
            "culprit": None if culprit is None else culprit.name,
            "interaction": self.interaction,
            "whole": asdict(self.whole),
            "whole_targets": [asdict(counts) for counts in self.whole_targets],
            "members": [
                {
                    **asdict(member),
                    "shown": member.shown,
                    "brings_back": _figures(member.removed),
                    "alone_loses": _figures(member.alone),
                }
                for member in self.members
            ],
            "passes": self.passes,
            "remembered": self.remembered,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BlameReport:
        """The report that `to_dict` wrote; InputError for a schema this version does not know."""
        if data.get("schema") != SCHEMA:
            raise InputError(f"a blame report must have schema {SCHEMA}, got {data.get('schema')!r}")
        return cls(
            subject=data["subject"],
            base_weights=data["base_weights"],
            kind=data["kind"],
            suites=tuple(data["suites"]),
            targets=tuple(data["targets"]),
            whole=_paired(data["whole"]),
            whole_targets=tuple(_paired(row) for row in data["whole_targets"]),
            members=tuple(_member(row) for row in data["members"]),
            passes=data["passes"],
            remembered=data["remembered"],
            created=data["created"],
        )

    def print(self, console: Console | None = None) -> None:
        """The report as a table and bars that fit 80 columns."""
        from inlay.evals.blame_text import print_blame

        print_blame(self, console)


@dataclass(frozen=True)
class Part:
    """What `blame` is told about a member: how it is called, and what was measured of it."""

    name: str
    path: str
    weight: float
    alone: Measured
    without: Measured


def blame(
    parts: Sequence[Part],
    *,
    base: Measured,
    whole: Measured,
    general: Sequence[Suite],
    target: Sequence[Suite] = (),
    subject: str,
    base_weights: str,
    kind: str = "stack",
    passes: int = 0,
    remembered: int = 0,
) -> BlameReport:
    """The report on `parts` of a variant measured as `whole`; ranked by what removal brings back (estimate),
    ties by what a member loses alone, then by its place.

    Skills that the base has not got (`statistics.reached`) do not count.
    InputError where outcomes do not cover the suites.
    """
    for measured in (base, whole, *(h for part in parts for h in (part.alone, part.without))):
        for suites, outcomes in ((general, measured.general), (target, measured.target)):
            if [len(suite) for suite in suites] != [len(found) for found in outcomes]:
                raise InputError(
                    f"blame needs an outcome for each item: the suites have {[len(s) for s in suites]}, "
                    f"got {[len(found) for found in outcomes]}"
                )
    skills = _skills(general, base.general)
    everywhere = [place for places in skills.values() for place in places]

    def member(part: Part) -> Member:
        hits = [SkillHit(name, _at(places, part.without, whole)) for name, places in skills.items()]
        hits = sorted((hit for hit in hits if hit.removed.loss > 0), key=lambda hit: -hit.removed.loss)
        return Member(
            name=part.name,
            path=part.path,
            weight=part.weight,
            alone=_at(everywhere, base, part.alone),
            removed=_at(everywhere, part.without, whole),
            targets=tuple(
                TargetShare(
                    suite.name,
                    _on(suite, base.target[i], part.alone.target[i]),
                    _on(suite, part.without.target[i], whole.target[i]),
                )
                for i, suite in enumerate(target)
            ),
            skills=tuple(hits[:SKILLS_KEPT]),
        )

    members = [member(part) for part in parts]
    p_values = [found.removed.p_value for found in members]
    members = [
        replace(found, p=p, p_adjusted=adjusted)
        for found, p, adjusted in zip(members, p_values, holm(p_values), strict=True)
    ]
    members.sort(key=lambda found: (-found.removed.loss, -found.alone.loss))
    return BlameReport(
        subject=subject,
        base_weights=base_weights,
        kind=kind,
        suites=tuple(suite.name for suite in general),
        targets=tuple(suite.name for suite in target),
        whole=_at(everywhere, base, whole),
        whole_targets=tuple(_on(suite, base.target[i], whole.target[i]) for i, suite in enumerate(target)),
        members=tuple(members),
        passes=passes,
        remembered=remembered,
    )


class _Place(NamedTuple):
    """An item of the general suites, by numbers, and what it shares with others."""

    suite: int
    item: int
    cluster: tuple[int, str] | None


def _skills(general: Sequence[Suite], base: Outcomes) -> dict[str, list[_Place]]:
    """The items of each held-out skill that the base has, suites pooled by the skill's name."""
    places: dict[str, list[_Place]] = {}
    for number, suite in enumerate(general):
        for index, item in enumerate(suite.items):
            if item.held_out:
                cluster = None if item.cluster is None else (number, item.cluster)
                places.setdefault(item.skill, []).append(_Place(number, index, cluster))
    return {
        skill: found
        for skill, found in places.items()
        if reached(
            [base[place.suite][place.item] for place in found],
            [general[place.suite].items[place.item].guess for place in found],
        )
    }


def _at(places: Sequence[_Place], before: Measured, after: Measured) -> Paired:
    return Paired.of(
        [before.general[place.suite][place.item] for place in places],
        [after.general[place.suite][place.item] for place in places],
        [place.cluster for place in places],
    )


def _on(suite: Suite, before: Sequence[bool], after: Sequence[bool]) -> Paired:
    return Paired.of(before, after, [item.cluster for item in suite.items])


def _figures(counts: Paired) -> dict[str, float]:
    low, high = counts.loss_interval
    return {"estimate": counts.loss, "low": low, "high": high}


def _paired(row: Mapping[str, Any]) -> Paired:
    return Paired(**{**row, "clusters": tuple(tuple(kind) for kind in row.get("clusters", ()))})


def _member(row: Mapping[str, Any]) -> Member:
    return Member(
        name=row["name"],
        path=row["path"],
        weight=row["weight"],
        alone=_paired(row["alone"]),
        removed=_paired(row["removed"]),
        p=row["p"],
        p_adjusted=row["p_adjusted"],
        targets=tuple(
            TargetShare(share["suite"], _paired(share["alone"]), _paired(share["removed"]))
            for share in row["targets"]
        ),
        skills=tuple(SkillHit(hit["name"], _paired(hit["removed"])) for hit in row["skills"]),
    )
