"""The model that candidates are asked of, while it is loaded: material, and a board over it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from inlay.composer.ablation_scores import BASE, AblationScores, registered
from inlay.composer.ablations import AblatedModel, Ablation
from inlay.composer.choosing.board import Board, Known
from inlay.composer.choosing.candidates import Candidate, alone, first
from inlay.composer.choosing.items import TEST, deal
from inlay.composer.choosing.material import Given, Material, gather
from inlay.evals.forgetting import reached_part
from inlay.evals.frontier import Point
from inlay.evals.inference import Chat
from inlay.evals.ledger import Say, scored
from inlay.evals.scoring import EvalResult
from inlay.evals.suites import Suite

KIND = "auto"
"""What the registry calls the reports, and the cache the outcomes."""


@contextlib.contextmanager
def loaded(
    given: Given, general: Sequence[Suite], aims: Sequence[tuple[Suite, int]], retention: float
) -> Iterator[tuple[Material, Board]]:
    """Inside, candidates can be asked; afterwards the base is bare again. The base's scores on whole suites
    are taken from the registry and kept there. `aims`: target suites and the numbers of their adapters."""

    def bare(suite: Suite) -> EvalResult:
        return scored(Chat(given.base), suite, subject="base", label="base", store=given.store, say=given.say)

    bases = {"general": [bare(suite) for suite in general], "target": [bare(suite) for suite, _ in aims]}
    items = deal(counted(bases["general"]), [suite for suite, _ in aims], seed=given.seed)
    material = gather(given)
    try:
        start = [each.ablation for each in first(material)]
        with AblatedModel(material.model, start, material.voices) as ablated:
            scores = AblationScores(ablated, KIND, {}, store=given.store)
            owners = [(material.names[owner], alone(material, owner).ablation) for _, owner in aims]
            known = _known(given, material, bases)
            board = Board(items, scores, known, owners, retention, given.budget)
            given.budget.reserve = _still_to_test(board)
            yield material, board
    finally:
        material.model.detach()


def tested(board: Board, candidate: Candidate, say: Say | None = None) -> Point:
    """The candidate on test items, for which time was kept."""
    for ablation, part in board.own_parts([TEST]):
        board.ask([ablation], [part], anyway=True)
    progress = (lambda done, total: say(f"testing {candidate.name}", done, total)) if say else None
    board.ask([candidate.ablation], board.items.of([TEST]), progress, anyway=True)
    return board.point(candidate.name, candidate.kind, candidate.ablation, [TEST])


def counted(bases: Sequence[EvalResult]) -> list[tuple[Suite, list[int]]]:
    """The general suites, each with the numbers of its held-out items of skills that the base has."""
    able = {part.suite.name: {item.id for item in part.suite.items} for part in reached_part(bases)}
    return [
        (
            result.suite,
            [i for i, item in enumerate(result.suite.items) if item.id in able.get(result.suite.name, ())],
        )
        for result in bases
    ]


def _known(given: Given, material: Material, bases: Mapping[str, Sequence[EvalResult]]) -> Known:
    """What the registry holds: outcomes of the base, and of adapters that were scored on a whole suite."""
    singles = {alone(material, i).ablation: version for i, version in enumerate(given.versions)}
    held: dict[tuple[Ablation, str, int], Sequence[bool] | None] = {}

    def known(ablation: Ablation, role: str, number: int) -> Sequence[bool] | None:
        result = bases[role][number]
        if ablation == BASE:
            return [bool(right) for right in result.outcomes]
        key = (ablation, role, number)
        if ablation in singles and key not in held:
            digest = singles[ablation].digest
            held[key] = registered(given.store, material.model.base_chat, digest, result.suite)
        return held.get(key)

    return known


def _still_to_test(board: Board) -> int:
    """Rows that the test will ask: of the choice, and of members by themselves where nobody knows."""
    own = [len(part.rows) for one, part in board.own_parts([TEST]) if board.of(one, part) is None]
    return sum(own) + sum(len(part.rows) for part in board.items.of([TEST]))
