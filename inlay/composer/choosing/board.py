"""What is known of candidates, item by item, and what is asked of the model while there is time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from inlay.composer.ablation_scores import BASE, AblationScores
from inlay.composer.ablations import TOGETHER, Ablation
from inlay.composer.choosing.budget import Budget
from inlay.composer.choosing.items import Items, Part
from inlay.evals.blame import Measured
from inlay.evals.frontier import Point, Yardstick

Known = Callable[[Ablation, str, int], Sequence[bool] | None]
"""Given an ablation, the role and the number of a suite: outcomes on all of it, where they are known."""


class Board:
    """Ablations against parts. `owners`: for each target suite (name of the member that it is for, that
    member alone). `asked`: the share of its gain that is to be kept."""

    def __init__(
        self,
        items: Items,
        scores: AblationScores,
        known: Known,
        owners: Sequence[tuple[str, Ablation]],
        asked: float,
        budget: Budget,
    ) -> None:
        self.items, self.scores, self.known, self.owners = items, scores, known, owners
        self.asked, self.budget = asked, budget
        self._yardsticks: dict[tuple[int, ...], Yardstick] = {}
        self._found: dict[tuple[Ablation, tuple[str, int, int]], tuple[bool, ...]] = {}

    def ask(
        self,
        ablations: Iterable[Ablation],
        parts: Sequence[Part],
        progress: Callable[[int, int], None] | None = None,
        *,
        anyway: bool = False,
    ) -> None:
        """Find out what each ablation says to each part; several share a batch. What there is no time for is
        left, unless it is wanted `anyway`."""
        waiting = list(dict.fromkeys(ablations))
        for start in range(0, len(waiting), TOGETHER):
            group = waiting[start : start + TOGETHER]
            for part in parts:
                self._ask(group, part, anyway)
            if progress is not None:
                progress(min(start + TOGETHER, len(waiting)), len(waiting))

    def _ask(self, group: Sequence[Ablation], part: Part, anyway: bool) -> None:
        missing = [ablation for ablation in group if self.of(ablation, part) is None]
        remembered = [one for one in missing if self.scores.known(one, part.suite) is not None]
        rows = (len(missing) - len(remembered)) * len(part.rows)
        if not anyway and rows and not self.budget.allows(rows):
            missing = remembered
        if not missing:
            return
        with self.budget.asking(rows):
            found = self.scores.of(part.suite, missing)
        for ablation, outcomes in found.items():
            self._found[ablation, part.key] = outcomes

    def of(self, ablation: Ablation, part: Part) -> tuple[bool, ...] | None:
        """Outcomes that are known already."""
        key = (ablation, part.key)
        if key not in self._found:
            whole = self.known(ablation, part.role, part.number)
            if whole is None:
                return None
            self._found[key] = tuple(bool(whole[row]) for row in part.rows)
        return self._found[key]

    def has(self, ablation: Ablation, stages: Iterable[int]) -> bool:
        """Is everything known that it says in these stages?"""
        return all(self.of(ablation, part) is not None for part in self.items.of(stages))

    def own_parts(self, stages: Iterable[int]) -> list[tuple[Ablation, Part]]:
        """What members must be asked by themselves: the target suites that they are for."""
        return [(self.owners[part.number][1], part) for part in self.items.of(stages, "target")]

    def _yardstick(self, stages: Sequence[int]) -> Yardstick:
        return Yardstick(
            general=self.items.suites(stages, "general"),
            target=self.items.suites(stages, "target"),
            base=self._measured(BASE, stages),
            members=[name for name, _ in self.owners],
            alone=[self._outcomes(one, "target", i, stages) for i, (_, one) in enumerate(self.owners)],
            asked=self.asked,
        )

    def point(
        self, name: str, kind: str, ablation: Ablation, stages: Iterable[int], *, whole: bool = True
    ) -> Point:
        """What it learned and lost on these stages, on which everything must be known."""
        stages = tuple(stages)
        if stages not in self._yardsticks:
            self._yardsticks[stages] = self._yardstick(stages)
        return self._yardsticks[stages].point(name, kind, self._measured(ablation, stages), whole=whole)

    def _measured(self, ablation: Ablation, stages: Sequence[int]) -> Measured:
        return Measured(
            *(
                [
                    self._outcomes(ablation, role, number, stages)
                    for number in sorted({part.number for part in self.items.of(stages, role)})
                ]
                for role in ("general", "target")
            )
        )

    def _outcomes(self, ablation: Ablation, role: str, number: int, stages: Sequence[int]) -> list[bool]:
        found: list[bool] = []
        for part in self.items.of(stages, role, number):
            outcomes = self.of(ablation, part)
            assert outcomes is not None
            found += outcomes
        return found
