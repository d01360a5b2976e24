"""Suites dealt into dev items, on which is chosen, and test items, on which is reported.

What shares a cluster, or the very same prompt, stays together; every skill is dealt evenly. Dev items come in
stages: few, more, all, so that many candidates are asked a little and few are asked all.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from inlay.errors import InputError
from inlay.evals.suites import Suite

STAGES = 3
TEST = STAGES
"""The number of the stage that nobody chooses on."""
FIRST = {"general": 64, "target": 32}
"""Items of the first stage, at most; at most a quarter of the dev items."""


@dataclass(frozen=True)
class Part:
    """Items of one suite that are asked together. `role`: "general" or "target"; `number`: of the suite in
    its role; `stage`: 0, 1, 2 of dev, or `TEST`; `rows`: numbers of its items in the whole suite."""

    role: str
    number: int
    stage: int
    rows: tuple[int, ...]
    suite: Suite

    @property
    def key(self) -> tuple[str, int, int]:
        return self.role, self.number, self.stage


@dataclass(frozen=True)
class Items:
    parts: tuple[Part, ...]

    def of(self, stages: Iterable[int], role: str | None = None, number: int | None = None) -> list[Part]:
        """The parts of some stages, of one role or suite where said, in the order of the suites."""
        wanted = set(stages)
        return [
            part
            for part in self.parts
            if part.stage in wanted and role in (None, part.role) and number in (None, part.number)
        ]

    def suites(self, stages: Iterable[int], role: str) -> list[Suite]:
        """For each suite of a role its items of these stages."""
        found: dict[int, Suite] = {}
        for part in self.of(stages, role):
            known = found.get(part.number)
            found[part.number] = (
                part.suite if known is None else replace(known, items=(*known.items, *part.suite.items))
            )
        return [found[number] for number in sorted(found)]


def deal(general: Sequence[tuple[Suite, Sequence[int]]], target: Sequence[Suite], *, seed: int = 0) -> Items:
    """`general`: suites and the numbers of the items that count; of target suites all do. The same items and
    seed give the same parts. InputError for a target suite, or general suites, too small to be dealt."""
    parts: list[Part] = []
    for number, (suite, rows) in enumerate(general):
        parts += _parts("general", number, suite, rows, seed)
    for number, suite in enumerate(target):
        mine = _parts("target", number, suite, range(len(suite)), seed)
        _refuse_small(mine, suite.name)
        parts += mine
    _refuse_small([part for part in parts if part.role == "general"], "what is general")
    return Items(tuple(parts))


def _parts(role: str, number: int, suite: Suite, rows: Iterable[int], seed: int) -> list[Part]:
    dev, test = _halves(suite, rows, seed)
    size = sum(map(len, dev))
    first = min(math.ceil(size / 4), FIRST[role])
    limits = (first, round(math.sqrt(first * size)), size)
    staged: list[list[int]] = [[] for _ in range(STAGES)]
    dealt = 0
    for unit in dev:
        staged[next(stage for stage, limit in enumerate(limits) if dealt < limit)] += unit
        dealt += len(unit)
    staged.append([row for unit in test for row in unit])
    return [
        Part(role, number, stage, tuple(rows), replace(suite, items=tuple(suite.items[r] for r in rows)))
        for stage, rows in enumerate(map(sorted, staged))
        if rows
    ]


def _halves(suite: Suite, rows: Iterable[int], seed: int) -> tuple[list[list[int]], list[list[int]]]:
    """(dev, test), each units of rows in an order in which skills come in turns."""
    units: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        item = suite.items[row]
        unit = ("prompt", item.text) if item.cluster is None else ("cluster", item.cluster)
        units.setdefault(unit, []).append(row)
    skills: dict[str, list[tuple[str, list[int]]]] = {}
    for (kind, name), members in units.items():
        drawn = hashlib.sha256(f"{seed}/{kind}/{name}".encode()).hexdigest()
        skills.setdefault(suite.items[members[0]].skill, []).append((drawn, members))
    placed: list[tuple[float, str, list[int], bool]] = []
    for number, each in enumerate(skills.values()):
        each.sort()
        placed += [
            ((rank + 0.5) / len(each), drawn, members, (rank + number) % 2 == 0)
            for rank, (drawn, members) in enumerate(each)
        ]
    placed.sort()
    return [unit for *_, unit, dev in placed if dev], [unit for *_, unit, dev in placed if not dev]


def _refuse_small(parts: Sequence[Part], name: str) -> None:
    if not (any(part.stage == TEST for part in parts) and any(part.stage != TEST for part in parts)):
        raise InputError(
            f"{name} must have two items or clusters at least, some to choose on and some to report on",
            fix="give a larger suite",
        )
