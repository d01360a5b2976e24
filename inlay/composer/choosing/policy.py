"""Which candidate is taken, by evidence, and why.

One adapter is taken as it is. Of several, a static composition where it is shown that it keeps what each
member gains and what the base could; else a route that keeps what the base could and is not shown to lose
what members gain; else none. What was shown on dev items must be borne out on test items: there the share
kept is an estimate. The bound of what is forgotten is a bound on both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from inlay.composer.choosing.candidates import Candidate
from inlay.evals.forgetting import percent
from inlay.evals.frontier import Kept, Point


class Fault(NamedTuple):
    """What a point does not meet: how far it is from it, a fraction of the items, and in words, as `The
    stack …` goes on."""

    distance: float
    said: str


@dataclass(frozen=True)
class Bounds:
    """`forget`: the upper bound of what may be lost of general skills; `retention`: the share that is to be
    kept of each member's own gain. Fractions."""

    forget: float
    retention: float

    def faults(self, point: Point, *, static: bool, tested: bool = False) -> list[Fault]:
        """What the point, on dev items or `tested`, does not meet, the farthest first; none where it meets
        them."""
        found = []
        if point.general.loss_upper > self.forget:
            said = (
                f"loses {percent(point.lost)} points of general skills (upper bound "
                f"{percent(point.general.loss_upper)}, {100 * self.forget:g} allowed; n={point.general.n})"
            )
            found.append(Fault(point.general.loss_upper - self.forget, said))
        for kept in point.kept:
            held = not static or (kept.share >= self.retention if tested else kept.shown)
            if kept.missing or not held:
                found.append(Fault(max(0.0, -kept.beyond.gain_lower), self._keeps(kept)))
        return sorted(found, key=lambda fault: -fault.distance)

    def _keeps(self, kept: Kept) -> str:
        said, asked = (
            f"keeps {percent(kept.share)}% of what {kept.member} gains",
            f"{100 * self.retention:g}%",
        )
        if kept.share < self.retention:
            return f"{said}, less than {asked} (n={kept.beyond.n})"
        return f"{said}, which so few items do not show to be {asked} (n={kept.beyond.n})"

    def shortfall(self, point: Point) -> float:
        """How far the point is from the bound that it misses most, by estimates; 0 where it meets all. Not a
        mean: that would praise what keeps one member and silences the others."""
        missing = [-kept.beyond.delta for kept in point.kept]
        return max(0.0, point.lost - self.forget, *missing)


@dataclass(frozen=True)
class Ranked:
    """A candidate with its point on the items that are known."""

    candidate: Candidate
    point: Point

    @property
    def static(self) -> bool:
        return self.candidate.static


def ranked(found: Sequence[Ranked], bounds: Bounds) -> list[Ranked]:
    """Nearest to the bounds first, of those the one that learned most; else in the order they are in."""
    return sorted(found, key=lambda each: (bounds.shortfall(each.point), -each.point.learned))


def choose(found: Sequence[Ranked], bounds: Bounds, *, members: int) -> Ranked | None:
    """The one to take, on the items that are known: of those that learned most, within one standard error
    (Breiman et al. 1984), the one that forgets least. None where the policy takes none."""
    if members == 1:
        return found[0] if found else None
    for static in (True, False):
        passing = [
            each for each in found if each.static is static and not bounds.faults(each.point, static=static)
        ]
        if passing:
            best = max(passing, key=lambda each: each.point.learned)
            # What is ahead by less than chance would make it is no better, and may forget more.
            equal = [each for each in passing if each.point.as_good_as(best.point)]
            return min(equal, key=lambda each: (each.point.general.loss_upper, -each.point.learned))
    return None


def explain(
    choice: Ranked | None,
    tested: Point | None,
    found: Sequence[Ranked],
    bounds: Bounds,
    members: Sequence[str],
) -> tuple[str, str]:
    """Two sentences: what is taken and what it is worth on test items; what else there was, on dev items."""
    if not found:
        return "Nothing was measured in the time there was.", "What is known is kept: give more minutes."
    if choice is None:
        first = f"No candidate meets the guard on dev items: {_best(found, bounds, static=False)}."
        return first, _sentence(_best(found, bounds, static=True))
    assert tested is not None
    several = len(members) > 1
    what = choice.candidate.described(members)
    faults = bounds.faults(tested, static=choice.static and several, tested=True)
    other = "It is the only adapter, so there was nothing to compose."
    if several:
        other = _sentence(f"{_best(found, bounds, static=not choice.static)} on dev items")
    if not faults:
        return f"{what} {_worth(tested)}.", other
    if several:
        other = "Another choice would be made on items that were seen: give other suites, or other bounds."
    return f"{what}, chosen on dev items, {faults[0].said} on test items, so nothing is locked.", other


def _best(found: Sequence[Ranked], bounds: Bounds, *, static: bool) -> str:
    """What the policy's other half comes to, or what stands in its way."""
    what = "static composition" if static else "route"
    composed = [each for each in found if each.static is static and each.candidate.kind != "alone"]
    if not composed:
        return f"no {what} was measured"

    def distance(each: Ranked) -> float:
        return max((fault.distance for fault in bounds.faults(each.point, static=static)), default=-1.0)

    best = min(composed, key=lambda each: (distance(each), -each.point.learned))
    faults = bounds.faults(best.point, static=static)
    said = faults[0].said if faults else f"scores {percent(best.point.learned)}% on the targets"
    return f"the best {what}, {best.candidate.called}, {said}"


def _worth(point: Point) -> str:
    """What a choice is worth on test items."""
    verb = "loses" if point.lost >= 0 else "gains"
    general = (
        f"{verb} {percent(abs(point.lost))} points of general skills (upper bound of the loss "
        f"{percent(point.general.loss_upper)}; n={point.general.n}) on test items"
    )
    if not point.kept:
        return f"scores {percent(point.learned)}% on the targets and {general}"
    shares = [percent(kept.share) for kept in sorted(point.kept, key=lambda kept: kept.share)]
    kept = shares[0] if shares[0] == shares[-1] else f"{shares[0]} to {shares[-1]}"
    return f"keeps {kept}% of what each gains alone and {general}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
