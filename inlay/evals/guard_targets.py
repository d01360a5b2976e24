"""What a guard asks of the target suites: gains, no step back, not too rigid, members' gains kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inlay.evals.guard_figures import (
    amount_in,
    change,
    check,
    compare,
    figure_of,
    figures_of,
    higher_is_better,
    is_graded,
    points,
    span,
    too_few,
    unscored,
    used,
)
from inlay.evals.means import beyond_share
from inlay.evals.statistics import Paired
from inlay.registry.guards import RIGID, Evidence, Guard
from inlay.registry.records import EvalRecord


def target_checks(entry: Evidence, guard: Guard) -> list[dict[str, Any]]:
    """What the guard asks of one target suite by itself."""
    checks = []
    gain, regress = guard.limit("gain", entry.suite), guard.limit("regress", entry.suite)
    if gain is not None:
        checks.append(_gain(entry, gain))
    if regress is not None:
        checks.append(_regress(entry, regress))
    if guard.rigidity is not None:
        checks.append(_rigidity(entry, guard.rigidity))
    return checks


def _gain(entry: Evidence, limit: float) -> dict[str, Any]:
    absent = unscored(entry, "gain", need_base=True)
    if absent is not None:
        return absent
    assert entry.candidate is not None and entry.base is not None
    counts = compare(entry.base, entry.candidate, None, entry.clusters)
    figures = figures_of(counts, limit) | {"bound": counts.gain_lower} | used(entry)
    few = too_few(entry, "gain", counts, figures)
    if few is not None:
        return few
    amount = amount_in(counts)
    reason = (
        f"{change(counts, 'loses', 'gains', amount, worse_at_0=False)} over the base on {entry.suite} "
        f"(lower bound {amount(counts.gain_lower)}, guard asks {amount(limit)}; n={counts.n})"
    )
    return check("gain", entry.suite, counts.gain_lower >= limit, reason, figures)


def _regress(entry: Evidence, limit: float) -> dict[str, Any]:
    absent = unscored(entry, "regress", need_base=False)
    if absent is not None:
        return absent
    assert entry.candidate is not None
    suite = entry.suite
    if entry.current is None and not entry.has_current:
        return check("regress", suite, True, f"nothing is live yet to regress from on {suite}")
    if entry.current is None:
        reason = f"not enough evidence: what is live has no score on {suite}; run `inlay eval` on it first"
        return check("regress", suite, False, reason)
    if entry.current.subject == entry.candidate.subject:
        same = f"the same bytes are live already, nothing to regress on {suite}"
        return check("regress", suite, True, same)
    counts = compare(entry.current, entry.candidate, None, entry.clusters)
    figures = figures_of(counts, limit) | {"bound": counts.loss_upper} | used(entry)
    few = too_few(entry, "regress", counts, figures)
    if few is not None:
        return few
    amount = amount_in(counts)
    reason = (
        f"{change(counts, 'loses', 'gains', amount)} against what is live on {suite} (upper bound of the "
        f"loss {amount(counts.loss_upper)}, guard allows {amount(limit)}; n={counts.n})"
    )
    return check("regress", suite, counts.loss_upper <= limit, reason, figures)


def _rigidity(entry: Evidence, limit: float) -> dict[str, Any]:
    """Clean against perturbed, by source: the candidate with itself."""
    absent = unscored(entry, "rigidity", need_base=False)
    if absent is not None:
        return absent
    assert entry.candidate is not None
    if is_graded(entry.candidate):
        reason = (
            f"not enough evidence: `rigidity` is about right-or-wrong answers, and {entry.suite} is graded"
        )
        return check("rigidity", entry.suite, False, reason)
    form = entry.perturbed
    if form is None or form.record is None:
        name = form.suite if form is not None else entry.suite + RIGID
        reason = (
            f"not enough evidence: {entry.subject or 'the candidate'} has no score on {name}; run `inlay "
            f"forget {entry.subject or 'REF'} --eval {entry.suite} --rigidity`"
        )
        return check("rigidity", entry.suite, False, reason)
    clean = [entry.candidate.outcomes[source] for source in form.sources]
    clusters = [
        f"cluster {entry.clusters[source]}" if entry.clusters and entry.clusters[source] else cluster
        for source, cluster in zip(form.sources, form.clusters, strict=True)
    ]
    counts = figure_of(clean, form.record.outcomes, clusters, entry.candidate)
    figures = figures_of(counts, limit) | {"bound": counts.loss_upper} | used(entry)
    few = too_few(entry, "rigidity", counts, figures)
    if few is not None:
        return few
    amount = amount_in(counts)
    reason = (
        f"{change(counts, 'loses', 'gains', amount)} on {entry.suite} where it is asked less neatly "
        f"(upper bound {amount(counts.loss_upper)}, guard allows {amount(limit)}; n={counts.n})"
    )
    return check("rigidity", entry.suite, counts.loss_upper <= limit, reason, figures)


def retained(share: float, entries: Sequence[Evidence]) -> list[dict[str, Any]]:
    """For each member of the candidate: what it gains by itself, the whole must keep a share of."""
    checks: list[dict[str, Any]] = []
    absent = [found for entry in entries if (found := unscored(entry, "retention", need_base=True))]
    if absent:
        return absent
    members = list(dict.fromkeys(ref for entry in entries for ref, _ in entry.members))
    if entries and not members:
        return [check("retention", "", True, "it has no members whose gains it could lose")]
    for ref in members:
        own = [(entry, dict(entry.members).get(ref)) for entry in entries]
        gains = []
        for entry, record in own:
            assert entry.base is not None
            if record is not None and compare(entry.base, record, None, entry.clusters).gain_lower > 0.0:
                gains.append((entry, record))
        checks += [_keeps(entry, ref, record, share) for entry, record in gains]
        unknown = [entry.suite for entry, record in own if record is None]
        if not gains and unknown:
            reason = (
                f"not enough evidence: what {ref} gains by itself is not known; run `inlay eval {ref} "
                f"--suite {unknown[0]}`"
            )
            checks.append(check("retention", unknown[0], False, reason))
        elif not gains:
            said = f"{ref} is not shown to gain on any target suite by itself, so there is nothing to keep"
            checks.append(check("retention", "", True, said))
    return checks


def _keeps(entry: Evidence, ref: str, member: EvalRecord, share: float) -> dict[str, Any]:
    """The mean of variant − (base + share · (member − base)), whose lower bound must be at least 0."""
    assert entry.candidate is not None and entry.base is not None
    clusters = entry.clusters
    means = beyond_share(
        entry.base.outcomes,
        member.outcomes,
        entry.candidate.outcomes,
        share,
        clusters,
        higher_is_better=higher_is_better(entry.candidate),
        span=span(entry.candidate),
    )
    alone = compare(entry.base, member, None, clusters)
    whole = compare(entry.base, entry.candidate, None, clusters)
    kept = whole.delta / alone.delta if alone.delta else 0.0
    figures = figures_of(means, share) | {"bound": means.gain_lower, "kept": kept, "member": ref}
    figures |= used(entry) | {"member_eval": member.key}
    few = too_few(entry, "retention", means, figures)
    if few is not None:
        return few
    amount = amount_in(alone)
    unit = " points" if isinstance(alone, Paired) else ""
    reason = (
        f"keeps {points(kept)}% of what {ref} gains by itself on {entry.suite} ({amount(whole.delta)} of "
        f"{amount(alone.delta)}{unit}; guard asks {points(share)}%, and over that the lower bound is "
        f"{amount(means.gain_lower)}{unit}, which must not be negative; n={means.n})"
    )
    passed = means.gain_lower >= 0.0
    return check("retention", entry.suite, passed, reason, figures)
