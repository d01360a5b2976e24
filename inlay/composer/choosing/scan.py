"""Many candidates on few items, the better half of them on more, the best on all dev items: successive
halving (Jamieson and Talwalkar, arXiv:1502.07943) on the same items, with neighbours of the best between the
stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inlay.composer.choosing.board import Board
from inlay.composer.choosing.candidates import Candidate, first, neighbours
from inlay.composer.choosing.items import STAGES
from inlay.composer.choosing.material import Material
from inlay.composer.choosing.policy import Bounds, Ranked, ranked
from inlay.evals.frontier import pareto
from inlay.evals.ledger import Say

STEPS = (0.3, 0.15)
"""How far neighbours lie from the best, after each stage but the last: a share of the weight."""
CENTRES = (2, 1)
"""Of how many static candidates neighbours are tried, each of another kind."""
UNTIL = (0.4, 0.6)
"""Shares of the time after which no neighbours are tried: what is left belongs to the stages."""
CLIMBS = (3, 1)
"""How often at most neighbours are tried: again where one of them was better."""


@dataclass(frozen=True)
class Scanned:
    """`pool`: what was measured on all items of the first `stages`; `dropped`: what was given up before, on
    the items it was measured on; `untried`: what there was no time for."""

    pool: tuple[Ranked, ...]
    dropped: tuple[Ranked, ...]
    untried: tuple[Candidate, ...]
    stages: int


def scan(material: Material, board: Board, bounds: Bounds, *, say: Say | None = None) -> Scanned:
    """Measure on dev items, while the board's budget allows. The same items and enough time give the same."""
    pool, dropped, untried = first(material), list[Ranked](), list[Candidate]()
    done = 0
    for stage in range(STAGES):
        _ask(board, pool, stage, say)
        complete = [each for each in pool if board.has(each.ablation, range(stage + 1))]
        if len(complete) < len(pool) or not _own(board, stage):
            # The best come first, so what is complete goes on where it holds the best of each policy.
            if _own(board, stage) and (stage == 0 or _policies(complete) == _policies(pool)):
                left = [each for each in pool if each not in complete]
                dropped += _points(board, left, stage, whole=False) if stage else []
                untried += left if stage == 0 else []
                pool, done = complete, stage + 1
            break
        done = stage + 1
        if done < STAGES:
            pool += _refined(material, board, bounds, pool, stage, say)
            pool, given_up = _halved(_points(board, pool, done, whole=False), bounds)
            dropped += given_up
    kept = _points(board, pool, done, whole=True) if done else []
    return Scanned(tuple(kept), tuple(dropped), tuple(untried), done)


def _ask(board: Board, candidates: Sequence[Candidate], stage: int, say: Say | None) -> None:
    """Ask one stage's items: members on their own suites first, since everything is held against those. In
    the first stage they are candidates themselves, and come with the first others."""
    if stage:
        for ablation, part in board.own_parts([stage]):
            board.ask([ablation], [part])
    what = f"stage {stage + 1} of {STAGES}, {len(candidates)} candidates"
    progress = (lambda done, total: say(what, done, total)) if say else None
    board.ask([each.ablation for each in candidates], board.items.of([stage]), progress)


def _policies(candidates: Sequence[Candidate]) -> set[bool]:
    return {each.static for each in candidates}


def _own(board: Board, stage: int) -> bool:
    return all(board.of(ablation, part) is not None for ablation, part in board.own_parts(range(stage + 1)))


def _points(board: Board, candidates: Sequence[Candidate], stages: int, *, whole: bool) -> list[Ranked]:
    return [
        Ranked(each, board.point(each.name, each.kind, each.ablation, range(stages), whole=whole))
        for each in candidates
    ]


def _refined(
    material: Material,
    board: Board,
    bounds: Bounds,
    pool: Sequence[Candidate],
    stage: int,
    say: Say | None,
) -> list[Candidate]:
    """Neighbours of the best static candidates, and of those neighbours that are better still."""
    found: list[Candidate] = []
    if board.budget.over(UNTIL[stage]):
        return found
    known = {each.ablation for each in pool}
    order = [each for each in ranked(_points(board, pool, stage + 1, whole=False), bounds) if each.static]
    centres = {each.candidate.method: each for each in reversed(order) if each.candidate.kind != "alone"}
    for centre in ranked(list(centres.values()), bounds)[: CENTRES[stage]]:
        for climb in range(CLIMBS[stage]):
            around = {
                each.ablation: each
                for each in neighbours(material, centre.candidate, STEPS[stage])
                if each.ablation not in known
            }
            what = f"around {centre.candidate.method}, step {climb + 1} after stage {stage + 1}"
            progress = (lambda done, total, what=what: say(what, done, total)) if say else None
            board.ask(list(around), board.items.of(range(stage + 1)), progress)
            new = [each for each in around.values() if board.has(each.ablation, range(stage + 1))]
            known |= {each.ablation for each in new}
            found += new
            best = ranked([centre, *_points(board, new, stage + 1, whole=False)], bounds)[0]
            if best is centre:
                break
            centre = best
    return found


def _halved(found: Sequence[Ranked], bounds: Bounds) -> tuple[list[Candidate], list[Ranked]]:
    """(what goes on, what does not): the better half, what no other beats, and the best of each policy."""
    order = ranked(found, bounds)
    front = {id(point) for point in pareto([each.point for each in order])}
    going = order[: -(-len(order) // 2)]
    for static in (True, False):
        going += [each for each in order if each.static is static][:2]
    going += [each for each in order if id(each.point) in front]
    kept = {id(each) for each in going}
    return [each.candidate for each in order if id(each) in kept], [
        each for each in order if id(each) not in kept
    ]
