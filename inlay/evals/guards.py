"""Is there enough evidence to let this go live? A guard's thresholds against paired outcomes.

Plain Python and no heavy import, since a promote waits for it. A guard never asks for an estimate: what may
be lost is held against the upper 95% bound, what must be gained against the lower one. What was not
measured, on too few items or in too few clusters, is "not enough evidence", which is no pass.

Several checks that must all pass need no correction: each of them lets a bad candidate through in at most
5% of the cases, so all of them together do (an intersection-union test). The price is paid by good
candidates, which need some room below every limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from inlay.evals.guard_figures import check, points
from inlay.evals.guard_general import each_skill, forget, named_skills
from inlay.evals.guard_targets import retained, target_checks
from inlay.registry.guards import NEEDS, Evidence, Guard, Verdict


def judge(guard: Guard, evidence: Sequence[Evidence]) -> Verdict:
    """Hold `guard`'s thresholds against `evidence`, one entry a suite.

    - `forget`: the upper bound of what was lost on the *held-out* items of each general suite, base against
      candidate, is at most this; needs `needed_items(forget)` held-out items.
    - `skill`: the same for each held-out skill by itself; needs `skill_items(skill)` items of each.
    - `gain`: the lower bound of the gain on each target suite, base against candidate, is at least this.
    - `regress`: the upper bound of what was lost on each target suite, against what the alias points to now,
      is at most this. Nothing to hold it against (a first promotion) is a pass.
    - `rigidity`: the upper bound of what the candidate loses from each target suite to its perturbed form.
    - `retention`: for each member of a variant and each target suite on which that member gains (lower bound
      above 0), the mean of variant − base − retention · (member − base) has a lower bound of at least 0.
    - `overhead`: the upper bound of the extra time a token, in the newest measurement, is at most this.

    Skills of which the base answers less than a tenth do not count (`reached`). Graded suites are judged by
    `PairedMeans`, in the metric's unit. An alarm that no full measurement has answered is a failed check.

    Passes only if every check does. `reasons` are sentences: of the failed checks, or of all if all passed.
    Each check names what it was judged by: keys of evals, digests of suites and reports, and the method.
    """
    checks: list[dict[str, Any]] = []
    for entry in evidence:
        if entry.role == "general":
            if guard.forget is not None:
                checks.append(forget(entry, guard.forget))
            if guard.skill is not None:
                checks.append(each_skill(entry, guard))
        if entry.role == "target":
            checks += target_checks(entry, guard)
        if entry.role == "overhead" and guard.overhead is not None:
            checks.append(_overhead(entry, guard.overhead))
        if entry.role == "alarm":
            checks.append(_alarm(entry))
    if guard.skill is not None:
        checks += named_skills(guard, evidence)
    if guard.retention is not None:
        checks += retained(guard.retention, [entry for entry in evidence if entry.role == "target"])
    checks += _unmeasured(guard, evidence)
    checks.sort(key=lambda check: check["passed"])
    passed = all(check["passed"] for check in checks)
    # A refusal says what stands in the way and nothing else; one missing score can fail two checks and is
    # said once. All the figures are in the checks.
    reasons = dict.fromkeys(check["reason"] for check in checks if check["passed"] is passed)
    return Verdict(passed=passed, reasons=list(reasons), checks=checks)


def _unmeasured(guard: Guard, evidence: Sequence[Evidence]) -> list[dict[str, Any]]:
    """A threshold with no suite to measure it on must not pass for want of a check."""
    checks = []
    for kind, role in NEEDS.items():
        if getattr(guard, kind) is None:
            continue
        measured = {entry.suite for entry in evidence if entry.role == role}
        named = guard.suites.get(role, ())
        if not measured and not named:
            reason = (
                f"not enough evidence: the guard limits `{kind}` and names no {role} suite; add it under "
                f"suites: {{{role}: [NAME]}}"
            )
            checks.append(check(kind, "", False, reason))
        for suite in sorted(set(named) - measured):
            checks.append(check(kind, suite, False, f"not enough evidence: nothing is known on {suite}"))
    if guard.overhead is not None and not any(entry.role == "overhead" for entry in evidence):
        checks.append(check("overhead", "", False, "not enough evidence: no time was measured"))
    return checks


def _overhead(entry: Evidence, limit: float) -> dict[str, Any]:
    extra = (entry.report or {}).get("extra_time")
    bound = extra.get("upper") if isinstance(extra, Mapping) else None
    if isinstance(bound, bool) or not isinstance(bound, int | float) or not math.isfinite(bound):
        who = entry.subject or "REF"
        reason = (
            f"not enough evidence: what {who} costs in time was not measured; run `inlay forget {who} "
            "--overhead`"
        )
        return check("overhead", "", False, reason)
    assert entry.report is not None and isinstance(extra, Mapping)
    device = str(entry.report.get("device", "?"))
    reason = (
        f"takes {points(extra.get('estimate', bound))}% more time a token than the base on {device} "
        f"(upper bound {points(bound)}%, guard allows {points(limit)}%)"
    )
    figures = {
        "bound": bound,
        "limit": limit,
        "device": device,
        "method": "median of paired ratios, by order statistics",
        "evidence": {"report": entry.digest},
    }
    return check("overhead", "", bound <= limit, reason, figures)


def _alarm(entry: Evidence) -> dict[str, Any]:
    said = str((entry.report or {}).get("said", "it drifted far from its base")).rstrip(".")
    reason = (
        f"not enough evidence: {said}, and nothing was measured since; run `inlay forget "
        f"{entry.subject or 'REF'}`"
    )
    return check("alarm", "", False, reason, {"evidence": {"report": entry.digest}})
