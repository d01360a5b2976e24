"""Measuring with the registry as memory: nothing that was scored once is scored again.

Knows models, suites and the registry. Used by trainers (an adapter just trained) and by the composer (a
variant just composed) alike.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError
from inlay.evals.asking import needs_embedding
from inlay.evals.decoding import Decoding
from inlay.evals.forgetting import ForgettingReport, compare, reached_part
from inlay.evals.load_time import at_load, probe_prompts
from inlay.evals.overhead import measure_overhead
from inlay.evals.partial import Partial
from inlay.evals.perturbing import Given, perturbed, sample
from inlay.evals.rigidity import Measured
from inlay.evals.rigidity import rigidity as rigidity_of
from inlay.evals.routing import RoutingReport
from inlay.evals.scoring import (
    EvalResult,
    Model,
    evaluate_model,
    flip_answers,
    from_record,
    library_versions,
    protocol_of,
    to_record,
)
from inlay.evals.suites import Suite
from inlay.registry.canonical import digest_of_json, is_digest

if TYPE_CHECKING:
    from inlay.evals.earlier_tasks import EarlierTasks
    from inlay.evals.metrics.similarity import Embedder
    from inlay.registry import Registry
    from inlay.registry.records import EvalRecord

RIGID_SOURCES = 200
"""Items of a suite that are asked again less neatly, each about four times."""

Say = Callable[[str, int, int], None]
"""Called with (what is being measured, questions done, questions in all)."""

Results = Sequence[tuple[EvalResult, EvalResult]]
"""The base's result and the model's, suite by suite."""


@dataclass(frozen=True)
class How:
    """How suites are asked where it is not greedily: the decoding, and the embedding model's folder for the
    metric similarity."""

    decoding: Decoding = field(default_factory=Decoding)
    embedding: str | Path | None = None

    def embedder(self, suite: Suite, device: str) -> Embedder | None:
        """The embedding model, loaded only for a suite that needs it."""
        if self.embedding is None or not needs_embedding(suite):
            return None
        from inlay.evals.metrics.similarity import Embedder

        return Embedder(self.embedding, device=device)


def scored(
    model: Model,
    suite: Suite,
    *,
    subject: str,
    label: str,
    store: Registry | None,
    against: EvalResult | None = None,
    how: How | None = None,
    say: Say | None = None,
) -> EvalResult:
    """The result of `subject` on `suite`: from the registry where it holds one of the same base, suite,
    metric and protocol, else measured and put there, with its answers.

    An evaluation that is interrupted goes on where it stopped: what it had found lies in the cache until it
    is done. Nothing goes into the registry before all of it is known.
    """
    how = how or How()
    embedder = how.embedder(suite, model.device)
    protocol = protocol_of(model, suite, how.decoding, embedder)
    if store is not None:
        for record in store.evals(subject=subject, suite=suite.digest, protocol=digest_of_json(protocol)):
            if (
                record.metric == suite.metric
                and record.base_weights == model.fingerprint.weights
                and record.base_prompt == model.fingerprint.prompt
            ):
                keep_suite(store, suite)
                return replace(from_record(record, suite, label=label), answers=answers_of(store, record))
    what = f"{label} on {suite.name}"
    partial = _partial(model, suite, subject, protocol)
    result = evaluate_model(
        model,
        suite,
        subject=subject,
        label=label,
        against=against,
        decoding=how.decoding,
        embedder=embedder,
        partial=partial,
        progress=(lambda done, total: say(what, done, total)) if say else None,
    )
    if store is not None:
        keep_suite(store, suite)
        store.put_eval(to_record(result))
        keep_answers(store, result)
    if partial is not None:
        partial.finish()
    return result


def paired(
    base: Model,
    model: Model,
    suite: Suite,
    *,
    subject: str,
    label: str,
    store: Registry | None,
    how: How | None = None,
    say: Say | None = None,
) -> tuple[EvalResult, EvalResult]:
    """The base's result and the model's on one suite, each with its answers to items on which they differ."""
    before = scored(base, suite, subject="base", label="base", store=store, how=how, say=say)
    after = scored(model, suite, subject=subject, label=label, store=store, against=before, how=how, say=say)
    decoding = (how or How()).decoding
    return _answered(base, before, after, decoding, store), _answered(model, after, before, decoding, store)


def _answered(
    model: Model, mine: EvalResult, other: EvalResult, decoding: Decoding, store: Registry | None
) -> EvalResult:
    """`mine` with the answers to items on which it differs from `other`; what is new goes into the store."""
    new = flip_answers(model, mine, other, decoding)
    if new and store is not None:
        keep_answers(store, replace(mine, answers=new))
    return replace(mine, answers={**mine.answers, **new}) if new else mine


def _partial(model: Model, suite: Suite, subject: str, protocol: dict[str, Any]) -> Partial | None:
    """Where an evaluation goes on; None for a subject whose name does not say what it is."""
    from inlay.registry.fingerprint import cache_dir

    if subject != "base" and not is_digest(subject):
        return None
    key = {
        "partial": 1,
        "subject": subject,
        "base": [model.fingerprint.weights, model.fingerprint.prompt],
        "suite": suite.digest,
        "metric": suite.metric,
        "protocol": protocol,
        "device": model.device,
        "versions": library_versions(),
    }
    return Partial(cache_dir() / "partial", key)


def keep_answers(store: Registry, result: EvalResult) -> None:
    """The result's answers into the registry, as a report of the kind "answers" about its subject; those that
    are kept already are not kept again."""
    kept = answers_of(store, result)
    new = {key: text for key, text in result.answers.items() if kept.get(key) != text}
    if new:
        store.put_report(result.subject, "answers", {"schema": 1, **_about(result), "answers": new})


def answers_of(store: Registry, of: EvalRecord | EvalResult) -> dict[str, str]:
    """The answers kept for a score, by item id; of two to one item the later one."""
    about = _about(of)
    found: dict[str, str] = {}
    for report in reversed(store.reports(of.subject, "answers")):
        if all(report.get(key) == value for key, value in about.items()):
            found |= report["answers"]
    return found


def _about(of: EvalRecord | EvalResult) -> dict[str, str]:
    """What answers are kept under, beside the subject."""
    if isinstance(of, EvalResult):
        suite, protocol = of.suite.digest, digest_of_json(of.protocol)
    else:
        suite, protocol = of.suite, of.protocol
    return {
        "base_weights": of.base_weights,
        "base_prompt": of.base_prompt,
        "suite": suite,
        "metric": of.metric,
        "protocol": protocol,
    }


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
    weights: Mapping[str, Any] | None = None,
    routing: Callable[[Results, Results], RoutingReport] | None = None,
    earlier: Callable[[], EarlierTasks] | None = None,
    say: Say | None = None,
) -> ForgettingReport:
    """What `model` lost of `general` and gained on `target` against its base, and how far it drifted.

    Scores go into `store` one by one, so an interrupted measurement goes on where it stopped; the report
    goes there as well. The report at load (drift and alarm) is in it. `rigidity`: the suites are also asked
    with typos and the like, `RIGID_SOURCES` items of each. `overhead`: both are also timed on the probe's
    prompts. `weights`: what was found at the weights level, kept in the report. `routing`: what says
    how well the model's router chooses, given the results on `general` and on `target`. `earlier`: what says
    what was kept of the tasks of the versions that this one was trained on from.
    """
    given = rigidity if isinstance(rigidity, Given) else Given()
    unknown = sorted(given.variants.keys() - {i.id for suite in (*general, *target) for i in suite.items})
    if unknown:
        raise InputError(
            f"variants must be of items of the suites measured, and {unknown[0]!r} is in none",
            fix="write the id of the item it is a variant of into `source_id`",
        )

    def both(suite: Suite) -> tuple[EvalResult, EvalResult]:
        return paired(base, model, suite, subject=subject, label=label, store=store, say=say)

    pairs = [both(suite) for suite in general]
    targets = [both(suite) for suite in target]
    report = compare([b for b, _ in pairs], [m for _, m in pairs], targets=targets)
    report = replace(report, weights=weights)
    probed = [part.suite for part in reached_part([before for before, _ in pairs])]
    if probed:
        loaded = at_load(base, model, label=label, general=probed, store=store, cache=cache)
        report = replace(report, drift=loaded.drift, alarm=loaded.alarm)
    if rigidity is not False:
        roles = [("general", pair) for pair in pairs] + [("target", pair) for pair in targets]
        report = replace(report, rigidity=_rigidity(roles, given, report.unreached, both))
    if routing is not None:
        report = replace(report, routing=routing(pairs, targets).to_dict())
    if earlier is not None:
        report = replace(report, earlier=earlier().to_dict())
    if overhead:
        times = measure_overhead(
            base,
            model,
            probe_prompts(probed or general),
            subject=label,
            base_weights=model.fingerprint.weights,
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
    unreached: Collection[str],
    both: Callable[[Suite], tuple[EvalResult, EvalResult]],
) -> dict[str, Any] | None:
    """The right-or-wrong suites asked again less neatly, general ones without the skills that the base has
    not got; None where nothing is left."""
    parts = []
    for role, (before, after) in measured:
        suite = after.suite
        items = tuple(i for i in suite.items if role == "target" or i.skill not in unreached)
        if suite.graded or not items:
            continue
        mine = {item.id: given.variants[item.id] for item in items if item.id in given.variants}
        chosen = sample(replace(suite, items=items), RIGID_SOURCES, always=mine.keys())
        ids = {item.id for item in chosen.items}
        noisy = perturbed(suite, given=replace(given, variants=mine), sources=ids)
        parts.append(Measured(role, before, after, *both(noisy)))
    return rigidity_of(parts).to_dict() if parts else None
