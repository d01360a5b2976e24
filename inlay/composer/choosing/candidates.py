"""The candidates of a choice: each adapter alone, stacks, merges, CAT, routes; and the neighbours of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inlay.composer.ablations import Ablation
from inlay.composer.choosing.material import Material
from inlay.registry import Merge, Route, Stack, Use
from inlay.registry.recipes import Node

STACKS = (1.0, 0.75, 0.5, 0.3)
"""Weights that all members of a stack have, to begin with."""
STRENGTHS = (1.0, 1.5, 0.6)
"""Weights of a merge or CAT, to begin with."""


@dataclass(frozen=True)
class Candidate:
    """One composition. `kind`: "alone", "stack", "merge", "cat" or "route". `method`: of a merge its method,
    of a route its router, of one adapter its name. `weights`: one a member, or one of the merge."""

    kind: str
    method: str
    weights: tuple[float, ...]
    ablation: Ablation

    @property
    def static(self) -> bool:
        """Is it the same for every request?"""
        return self.kind != "route"

    @property
    def name(self) -> str:
        """As tables call it; no two have one name."""
        match self.kind:
            case "alone":
                return f"{self.method} alone"
            case "route":
                return f"route by {self.method}"
            case "stack":
                shown = self.weights[:1] if len(set(self.weights)) == 1 else self.weights
                return f"stack at {'/'.join(f'{weight:g}' for weight in shown)}"
            case _:
                return f"{self.method} at {self.weights[0]:g}"

    @property
    def called(self) -> str:
        """Its name, where it is plain that a route is meant."""
        return f"by {self.method}" if self.kind == "route" else self.name

    def described(self, members: Sequence[str]) -> str:
        """With its members, as a sentence begins."""
        listed = ", ".join(members)
        match self.kind:
            case "alone":
                return f"{self.method} alone"
            case "route":
                return f"A route by {self.method} over {listed}"
            case "stack":
                terms = (f"{w:g} {m}" for w, m in zip(self.weights, members, strict=True) if w)
                return f"The stack {' + '.join(terms)}"
            case _:
                return f"The merge {self.method}({listed}) at {self.weights[0]:g}"

    def node(self, refs: Sequence[str], learned: str | None = None) -> Node:
        """As a recipe says it. `learned`: the reference of what CAT made, once it is registered."""
        uses = tuple(Use(ref, weight) for ref, weight in zip(refs, self.weights, strict=False))
        match self.kind:
            case "alone":
                return next(use for use in uses if use.weight)
            case "route":
                return Route(self.method, tuple(Use(ref) for ref in refs))
            case "stack":
                return Stack(tuple(use for use in uses if use.weight))
            case "merge":
                return Merge(tuple(Use(ref) for ref in refs), method=self.method, weight=self.weights[0])
            case _:
                assert learned is not None
                return Use(learned, self.weights[0])


def alone(material: Material, number: int) -> Candidate:
    weights = tuple(float(i == number) for i in range(len(material.versions)))
    return Candidate("alone", material.names[number], weights, material.stack(weights))


def stack(material: Material, weights: Sequence[float]) -> Candidate:
    return Candidate("stack", "stack", tuple(weights), material.stack(weights))


def merge(material: Material, method: str, strength: float) -> Candidate:
    return Candidate("merge", method, (strength,), material.single(material.merges[method], strength))


def cat(material: Material, strength: float) -> Candidate:
    assert material.learned is not None
    return Candidate("cat", "cat", (strength,), material.single(material.learned.digest, strength))


def route(material: Material, by: str) -> Candidate:
    return Candidate("route", by, (), material.route(by))


def first(material: Material) -> list[Candidate]:
    """What is tried before anything is known; what time may not suffice for comes last."""
    members = len(material.versions)
    found = [alone(material, number) for number in range(members)]
    if members < 2:
        return found
    found += [route(material, by) for by in material.routes]
    for number in range(max(len(STACKS), len(STRENGTHS))):
        found += [stack(material, [weight] * members) for weight in STACKS[number : number + 1]]
        for strength in STRENGTHS[number : number + 1]:
            found += [cat(material, strength)] if material.learned is not None else []
            found += [merge(material, method, strength) for method in material.merges]
    return found


def neighbours(material: Material, candidate: Candidate, step: float) -> list[Candidate]:
    """The candidate with all of its weights, or a single one, larger and smaller by the share `step`."""
    weights = candidate.weights
    scaled = [[weight * factor for weight in weights] for factor in (1 + step, 1 - step)]
    match candidate.kind:
        case "stack":
            for place in range(len(weights)):
                for factor in (1 + step, 1 - step):
                    scaled.append([w * factor if i == place else w for i, w in enumerate(weights)])
            return [stack(material, _rounded(each)) for each in scaled]
        case "merge":
            return [merge(material, candidate.method, *_rounded(each)) for each in scaled]
        case "cat":
            return [cat(material, *_rounded(each)) for each in scaled]
        case _:
            return []


def _rounded(weights: Sequence[float]) -> list[float]:
    """As a recipe should have them."""
    return [round(weight, 2) for weight in weights]
