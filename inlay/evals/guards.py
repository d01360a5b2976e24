"""Is there enough evidence to let this go live? A guard's thresholds against paired outcomes.

Plain Python and no heavy import, since a promote waits for it. A guard never asks for an estimate: what may
be lost is held against the upper 95% bound, what must be gained against the lower one. What was not
measured, or on too few items, is "not enough evidence", which is no pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inlay.evals.statistics import Paired, needed_items, probability_of_passing
from inlay.registry.guards import Evidence, Guard, Verdict
from inlay.registry.records import EvalRecord

MIN_TARGET_ITEMS = 60
"""Fewest items of a target suite: from here on the interval's coverage was checked by simulation."""


def judge(guard: Guard, evidence: Sequence[Evidence]) -> Verdict:
    """Hold `guard`'s thresholds against `evidence`, one entry a suite.

    - `forget`: the upper bound of what was lost on the *held-out* items of each general suite, base against
      candidate, is at most this; needs `needed_items(forget)` held-out items.
    - `gain`: the lower bound of the gain on each target suite, base against candidate, is at least this.
    - `regress`: the upper bound of what was lost on each target suite, against what the alias points to now,
      is at most this. Nothing to hold it against (a first promotion) is a pass.

    Passes only if every check does. `reasons` are sentences: of the failed checks, or of all if all passed.
    """
    checks: list[dict[str, Any]] = []
    for entry in evidence:
        if entry.role == "general" and guard.forget is not None:
            checks.append(_forget(entry, guard.forget))
        if entry.role == "target" and guard.gain is not None:
            checks.append(_gain(entry, guard.gain))
        if entry.role == "target" and guard.regress is not None:
            checks.append(_regress(entry, guard.regress))
    checks += _unmeasured(guard, evidence)
    checks.sort(key=lambda check: check["passed"])
    passed = all(check["passed"] for check in checks)
    # A refusal says what stands in the way and nothing else; one missing score can fail two checks and is
    # said once. All the figures are in the checks.
    reasons = dict.fromkeys(check["reason"] for check in checks if check["passed"] is passed)
    return Verdict(passed=passed, reasons=list(reasons), checks=checks)


def _unmeasured(guard: Guard, evidence: Sequence[Evidence]) -> list[dict[str, Any]]:
    """A threshold with no suite to measure it on must not pass for want of a check."""
    needs = [
        ("forget", "general", guard.forget),
        ("gain", "target", guard.gain),
        ("regress", "target", guard.regress),
    ]
    checks = []
    for kind, role, limit in needs:
        if limit is None:
            continue
        measured = {entry.suite for entry in evidence if entry.role == role}
        named = guard.suites.get(role, ())
        if not measured and not named:
            reason = (
                f"not enough evidence: the guard limits `{kind}` and names no {role} suite; add it under "
                f"suites: {{{role}: [NAME]}}"
            )
            checks.append(_check(kind, "", False, reason))
        for suite in sorted(set(named) - measured):
            checks.append(_check(kind, suite, False, f"not enough evidence: nothing is known on {suite}"))
    return checks


def _forget(entry: Evidence, limit: float) -> dict[str, Any]:
    missing = _missing(entry, "forget", need_base=True)
    if missing is not None:
        return missing
    assert entry.candidate is not None and entry.base is not None
    before, after = _held_out(entry.base, entry), _held_out(entry.candidate, entry)
    counts, needed = Paired.of(before, after), needed_items(limit)
    figures = _figures(counts, limit) | {"bound": counts.loss_upper}
    if counts.n < needed:
        chance = probability_of_passing(counts.n, 0.0, limit) if counts.n else 0.0
        reason = (
            f"not enough evidence: n={counts.n} held-out items of {_name(entry)}, a {_points(limit)}-point "
            f"guard needs {needed} (with {counts.n}, a model that truly loses nothing passes with "
            f"probability {chance:.2f})"
        )
        return _check("forget", _name(entry), False, reason, figures)
    passed = counts.loss_upper <= limit
    reason = (
        f"{_change(counts, 'forgets', 'improves')} of held-out general skills on {_name(entry)} (upper bound "
        f"{_points(counts.loss_upper)}, guard allows {_points(limit)}; n={counts.n})"
    )
    return _check("forget", _name(entry), passed, reason, figures)


def _gain(entry: Evidence, limit: float) -> dict[str, Any]:
    missing = _missing(entry, "gain", need_base=True)
    if missing is not None:
        return missing
    assert entry.candidate is not None and entry.base is not None
    counts = Paired.of(_bools(entry.base), _bools(entry.candidate))
    figures = _figures(counts, limit) | {"bound": counts.gain_lower}
    few = _too_few(entry, "gain", counts, figures)
    if few is not None:
        return few
    reason = (
        f"gains {_points(counts.delta)} points over the base on {_name(entry)} (lower bound "
        f"{_points(counts.gain_lower)}, guard asks {_points(limit)}; n={counts.n})"
    )
    return _check("gain", _name(entry), counts.gain_lower >= limit, reason, figures)


def _regress(entry: Evidence, limit: float) -> dict[str, Any]:
    missing = _missing(entry, "regress", need_base=False)
    if missing is not None:
        return missing
    assert entry.candidate is not None
    if entry.current is None and not entry.has_current:
        return _check("regress", _name(entry), True, f"nothing is live yet to regress from on {_name(entry)}")
    if entry.current is None:
        reason = (
            f"not enough evidence: what is live has no score on {_name(entry)}; run `inlay eval` on it first"
        )
        return _check("regress", _name(entry), False, reason)
    if entry.current.subject == entry.candidate.subject:
        return _check(
            "regress",
            _name(entry),
            True,
            f"the same bytes are live already, nothing to regress on {_name(entry)}",
        )
    counts = Paired.of(_bools(entry.current), _bools(entry.candidate))
    figures = _figures(counts, limit) | {"bound": counts.loss_upper}
    few = _too_few(entry, "regress", counts, figures)
    if few is not None:
        return few
    reason = (
        f"{_change(counts, 'loses', 'gains')} against what is live on {_name(entry)} (upper bound of the "
        f"loss {_points(counts.loss_upper)}, guard allows {_points(limit)}; n={counts.n})"
    )
    return _check("regress", _name(entry), counts.loss_upper <= limit, reason, figures)


def _missing(entry: Evidence, kind: str, *, need_base: bool) -> dict[str, Any] | None:
    """The failed check of an entry that lacks a score, None where it has what it needs."""
    if entry.candidate is None:
        who = ref = entry.subject or "the candidate"
    elif need_base and entry.base is None:
        who, ref = "the base", "base"
    else:
        return None
    suite = _name(entry)
    if entry.candidate is None and entry.foreign:
        reason = (
            f"not enough evidence: {who} was scored on {suite}, but under another base, metric or protocol "
            f"than counts here; run `inlay eval {ref} --suite {suite}`"
        )
    else:
        reason = f"not enough evidence: {who} has no score on {suite}; run `inlay eval {ref} --suite {suite}`"
    return _check(kind, _name(entry), False, reason)


def _too_few(entry: Evidence, kind: str, counts: Paired, figures: dict[str, Any]) -> dict[str, Any] | None:
    if counts.n >= MIN_TARGET_ITEMS:
        return None
    reason = f"not enough evidence: n={counts.n} items of {_name(entry)}, `{kind}` needs {MIN_TARGET_ITEMS}"
    return _check(kind, _name(entry), False, reason, figures)


def _held_out(record: EvalRecord, entry: Evidence) -> list[bool]:
    """The outcomes of the held-out items; of all where the suite does not tell them apart."""
    if entry.held_out is None:
        return _bools(record)
    return [bool(x) for x, held_out in zip(record.outcomes, entry.held_out, strict=True) if held_out]


def _bools(record: EvalRecord) -> list[bool]:
    return [bool(x) for x in record.outcomes]


def _change(counts: Paired, worse: str, better: str) -> str:
    """`forgets 41.2 points`, or `improves 0.5 points`."""
    return f"{worse if counts.delta <= 0 else better} {_points(abs(counts.delta))} points"


def _figures(counts: Paired, limit: float) -> dict[str, Any]:
    low, high = counts.interval
    return {
        "n": counts.n,
        "lost": counts.lost,
        "gained": counts.gained,
        "delta": counts.delta,
        "interval": [low, high],
        "limit": limit,
    }


def _check(
    kind: str, suite: str, passed: bool, reason: str, figures: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"check": kind, "suite": suite, "passed": passed, "reason": reason, **(figures or {})}


def _points(fraction: float) -> str:
    text = f"{100.0 * fraction:.1f}"
    return "0.0" if text == "-0.0" else text


def _name(entry: Evidence) -> str:
    return str(entry.suite)
