"""What a guard asks of the general suites: all held-out skills together, and each by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from inlay.evals.guard_figures import (
    amount_in,
    change,
    check,
    compare,
    few_clusters,
    figures_of,
    held_out_items,
    is_graded,
    listed,
    points,
    unscored,
    used,
)
from inlay.evals.statistics import Paired, needed_items, probability_of_passing, reached
from inlay.registry.guards import REST, Evidence, Guard


def forget(entry: Evidence, limit: float) -> dict[str, Any]:
    """The check of what was lost on all held-out items of the skills that the base has."""
    absent = unscored(entry, "forget", need_base=True)
    if absent is not None:
        return absent
    assert entry.candidate is not None and entry.base is not None
    chosen = held_out_items(entry)
    graded = is_graded(entry.base)
    unreached: list[str] = []
    if not graded:
        skills = _by_skill(entry, chosen)
        unreached = sorted(name for name, items in skills.items() if not _reached(entry, items))
        chosen = [index for name, items in skills.items() if name not in unreached for index in items]
    needed = needed_items(limit)
    if len(chosen) < needed:
        chance = probability_of_passing(len(chosen), 0.0, limit) if chosen and not graded else None
        reason = (
            f"not enough evidence: n={len(chosen)} held-out items of {entry.suite}"
            f"{_not_counting(unreached)}, a {points(limit)}-point guard needs {needed}"
        )
        if chance is not None:
            reason += (
                f" (with {len(chosen)}, a model that truly loses nothing passes with probability "
                f"{chance:.2f})"
            )
        figures = (
            figures_of(compare(entry.base, entry.candidate, chosen, entry.clusters), limit) if chosen else {}
        )
        return check("forget", entry.suite, False, reason, figures | used(entry))
    counts = compare(entry.base, entry.candidate, chosen, entry.clusters)
    figures = figures_of(counts, limit) | {"bound": counts.loss_upper, "unreached": unreached} | used(entry)
    few = few_clusters(entry.suite, "forget", counts, figures)
    if few is not None:
        return few
    amount = amount_in(counts)
    reason = (
        f"{change(counts, 'forgets', 'improves', amount)} of held-out general skills on {entry.suite} "
        f"(upper bound {amount(counts.loss_upper)}, guard allows {amount(limit)}; n={counts.n})"
    )
    return check("forget", entry.suite, counts.loss_upper <= limit, reason, figures)


def each_skill(entry: Evidence, guard: Guard) -> dict[str, Any]:
    """One check for all held-out skills of a suite; `skills` has the figures of each."""
    absent = unscored(entry, "skill", need_base=True)
    if absent is not None:
        return absent
    assert entry.candidate is not None and entry.base is not None
    if is_graded(entry.base):
        reason = f"not enough evidence: `skill` is about right-or-wrong answers, and {entry.suite} is graded"
        return check("skill", entry.suite, False, reason)
    skills = _by_skill(entry, held_out_items(entry))
    limits = {name: limit for name in sorted(skills) if (limit := guard.limit("skill", name)) is not None}
    if skills and not limits:
        return check("skill", entry.suite, True, f"the guard limits no skill of {entry.suite}")
    rows: list[dict[str, Any]] = []
    few: list[str] = []
    lost: list[dict[str, Any]] = []
    for name, limit in limits.items():
        items = skills[name]
        if not _reached(entry, items):
            continue
        counts = compare(entry.base, entry.candidate, items, entry.clusters)
        assert isinstance(counts, Paired)
        row = {"skill": name} | figures_of(counts, limit) | {"bound": counts.loss_upper}
        rows.append(row)
        if counts.n < skill_items(limit):
            few.append(f"{name} has {counts.n} of {skill_items(limit)} items")
        elif counts.loss_upper > limit:
            lost.append(row)
    figures = {"skills": rows} | used(entry)
    if lost:
        lost.sort(key=lambda row: row["limit"] - row["bound"])
        worst = lost[0]
        said = "forgets" if worst["delta"] <= 0 else "improves"
        reason = (
            f"{said} {points(abs(worst['delta']))} points of {worst['skill']} on {entry.suite} (upper bound "
            f"{points(worst['bound'])}, guard allows {points(worst['limit'])} of a skill; n={worst['n']})"
        )
        if len(lost) > 1:
            reason += f", and too much may be lost of {listed([str(row['skill']) for row in lost[1:]])}"
        return check("skill", entry.suite, False, reason, figures)
    if few or not rows:
        said = listed(few) if few else "the base can do none of the skills it limits"
        reason = f"not enough evidence by skill on {entry.suite}: {said}"
        return check("skill", entry.suite, False, reason, figures)
    closest = max(rows, key=lambda row: row["bound"] - row["limit"])
    reason = (
        f"keeps each of {len(rows)} held-out skills on {entry.suite} (closest: {closest['skill']}, upper "
        f"bound {points(closest['bound'])}, guard allows {points(closest['limit'])})"
    )
    return check("skill", entry.suite, True, reason, figures)


def named_skills(guard: Guard, evidence: Sequence[Evidence]) -> list[dict[str, Any]]:
    """A skill that the guard names and no suite has would never be looked at."""
    entries = [entry for entry in evidence if entry.role == "general"]
    known = {name for entry in entries for name in _by_skill(entry, held_out_items(entry))}
    named = [name for name in guard.skill if name != REST] if isinstance(guard.skill, Mapping) else []
    return [
        check("skill", "", False, f"not enough evidence: no general suite has held-out items of {name}")
        for name in named
        if name not in known
    ]


def skill_items(limit: float) -> int:
    """Items of one skill that a `skill` guard needs: 6 lost ones must fit into the allowance; at most 1,000.

    60 for ten points. A skill by itself is a coarser question than all of them together, so fewer than for
    `forget`; the bound does the rest.
    """
    return min(1000, math.ceil(6.0 / limit - 1e-9)) if limit > 0.0 else 1000


def _by_skill(entry: Evidence, items: Sequence[int]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for index in items:
        groups.setdefault(entry.skills[index] if entry.skills else "all", []).append(index)
    return groups


def _reached(entry: Evidence, items: Sequence[int]) -> bool:
    assert entry.base is not None
    guesses = [entry.guesses[index] for index in items] if entry.guesses else []
    return reached([entry.base.outcomes[index] for index in items], guesses)


def _not_counting(unreached: Sequence[str]) -> str:
    return f" (not counting {listed(unreached)}, which the base cannot do)" if unreached else ""
