"""Measuring with the registry as memory: nothing that was scored once is scored again.

Knows models, suites and the registry. Used by trainers (an adapter just trained) and by the composer (a
variant just composed) alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError
from inlay.evals.drift import measure_drift
from inlay.evals.forgetting import ForgettingReport, compare
from inlay.evals.overhead import measure_overhead
from inlay.evals.perturbing import Given, perturbed, sample
from inlay.evals.rigidity import Measured
from inlay.evals.rigidity import rigidity as rigidity_of
from inlay.evals.scoring import EvalResult, Model, evaluate_model, from_record, to_record
from inlay.evals.suites import Suite

if TYPE_CHECKING:
    from inlay.registry import Registry

PROBE_ITEMS = 96
"""Prompts of the drift probe: enough for its means, a second or two on a small base."""

RIGID_SOURCES = 200
"""Items of a suite that are asked again less neatly, each about four times."""

Say = Callable[[str, int, int], None]
"""Called with (what is being measured, items done, items in all)."""


def scored(
    model: Model,
    suite: Suite,
    *,
    subject: str,
    label: str,
    store: Registry | None,
    against: EvalResult | None = None,
    say: Say | None = None,
) -> EvalResult:
    """The result of `subject` on `suite`: from the registry where it holds one of the same base, suite,
    metric and protocol, else measured and put there."""
    from inlay.registry import digest_of_json

    if store is not None:
        keep_suite(store, suite)
        protocol = digest_of_json(dict(model.protocol))
        for record in store.evals(subject=subject, suite=suite.digest):
            if (
                record.metric == suite.metric
                and record.protocol == protocol
                and record.base_weights == model.fingerprint.weights
                and record.base_prompt == model.fingerprint.prompt
            ):
                return from_record(record, suite, label=label)
    what = f"{label} on {suite.name}"
    progress = (lambda done, total: say(what, done, total)) if say else None
    result = evaluate_model(model, suite, subject=subject, label=label, against=against, progress=progress)
    if store is not None:
        store.put_eval(to_record(result))
    return result


def keep_suite(store: Registry, suite: Suite) -> None:
    """The suite's bytes into the registry, so that a score can always be traced to its items."""
    store.put_suite(
        suite.name, suite.digest, suite.to_jsonl(), metric=suite.metric, skills=suite.skill_summary()
    )


def measure(
    base: Model,
    model: Model,
    *,
    subject: str,
    label: str,
    general: Sequence[Suite],
    target: Sequence[Suite] = (),
    store: Registry | None = None,
    cache: Path | None = None,
    rigidity: Given | bool = False,
    overhead: bool = False,
    say: Say | None = None,
) -> ForgettingReport:
    """What `model` lost of `general` and gained on `target` against its base, and how far it drifted.

    Scores go into `store` one by one, so an interrupted measurement goes on where it stopped; the report
    goes there as well. The drift probe is the first held-out prompts of each skill in turn. `rigidity`: the
    suites are also asked with typos and the like, `RIGID_SOURCES` items of each. `overhead`: both are also
    timed on the probe's prompts.
    """

    def both(suite: Suite) -> tuple[EvalResult, EvalResult]:
        before = scored(base, suite, subject="base", label="base", store=store, say=say)
        return before, scored(
            model, suite, subject=subject, label=label, store=store, against=before, say=say
        )

    pairs = [both(suite) for suite in general]
    targets = [both(suite) for suite in target]
    drift = measure_drift(base, model, _probe(general), cache=cache)
    report = compare([b for b, _ in pairs], [m for _, m in pairs], targets=targets, drift=drift)
    if rigidity is not False:
        given = rigidity if isinstance(rigidity, Given) else Given()
        roles = [("general", pair) for pair in pairs] + [("target", pair) for pair in targets]
        report = replace(report, rigidity=_rigidity(roles, given, both))
    if overhead:
        times = measure_overhead(
            base, model, _probe(general), subject=label, base_weights=model.fingerprint.weights
        )
        report = replace(report, overhead=times.to_dict())
        if store is not None:
            store.put_report(subject, "overhead", times.to_dict())
    if store is not None:
        store.put_report(subject, "forgetting", report.to_dict())
    return report


def _rigidity(
    measured: Sequence[tuple[str, tuple[EvalResult, EvalResult]]],
    given: Given,
    both: Callable[[Suite], tuple[EvalResult, EvalResult]],
) -> dict[str, Any] | None:
    """The right-or-wrong suites asked again less neatly; None where all are graded."""
    exact = [(role, before, after) for role, (before, after) in measured if not after.suite.graded]
    known = {item.id for _, _, after in exact for item in after.suite.items}
    unknown = sorted(given.variants.keys() - known)
    if unknown:
        raise InputError(
            f"variants must be of items of the suites measured, and {unknown[0]!r} is in none",
            fix="write the id of the item it is a variant of into `source_id`",
        )
    parts = []
    for role, before, after in exact:
        mine = {item.id: given.variants[item.id] for item in after.suite.items if item.id in given.variants}
        source = sample(after.suite, RIGID_SOURCES, always=mine.keys())
        parts.append(
            Measured(role, before, after, *both(perturbed(source, given=replace(given, variants=mine))))
        )
    return rigidity_of(parts).to_dict() if parts else None


def _probe(suites: Sequence[Suite]) -> list:
    """Held-out prompts, dealt from the skills in turn, so that each counts about the same."""
    skills: dict[str, list] = {}
    for suite in suites:
        for item in suite.items:
            if item.held_out:
                skills.setdefault(f"{suite.name}/{item.skill}", []).append(item.chat)
    dealt = []
    for row in range(max(map(len, skills.values()), default=0)):
        dealt += [prompts[row] for prompts in skills.values() if row < len(prompts)]
    return dealt[:PROBE_ITEMS]
