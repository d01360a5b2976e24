"""The report of a training run: what was declared, what it scored beside its baselines, what it forgot, what
it took, and the verdict. Everything in it can be read again from what the registry keeps of a version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError
from inlay.evals.forgetting import KEPT_WITHIN, ForgettingReport
from inlay.evals.scoring import EvalResult, from_record
from inlay.evals.suites import Suite
from inlay.registry.guards import STANDARD
from inlay.registry.records import Version
from inlay.trainers.baselines import BASE, Baseline, Baselines
from inlay.trainers.cost import Cost
from inlay.trainers.verdict import Verdict, judge

if TYPE_CHECKING:
    from rich.console import Console

    from inlay.registry import Registry
    from inlay.registry.records import EvalRecord, Lock

SCHEMA = 1
NOT_SHOWN = ("baselines", "curve", "examples")
"""Of a run's record what the JSON of a report leaves out: it has it in another form, or is too long."""


@dataclass(frozen=True)
class RunReport:
    """One version's run. `results`: the adapter's own on the target suites, in the order declared."""

    ref: str
    digest: str
    run: Mapping[str, Any]
    forgetting: ForgettingReport
    baselines: Baselines
    results: tuple[EvalResult, ...]
    verdict: Verdict

    @classmethod
    def of(cls, version: str | Version | Lock, store: Registry, *, allowed: float = KEPT_WITHIN) -> RunReport:
        """The report of a version trained here, from its record, scores and newest forgetting report.

        `allowed`: the share of held-out general skills that may be lost. InputError for a version without a
        record, and for one that was not measured.
        """
        resolved = store.resolve(version) if isinstance(version, str) else version
        run = store.run_of(resolved) if isinstance(resolved, Version) else None
        if not isinstance(resolved, Version) or run is None:
            raise InputError(
                f"a run's report needs a training record, and {resolved.ref} has none",
                fix="`inlay train` keeps one with every version",
            )
        forgetting = _forgetting(resolved, run, store)
        baselines = Baselines.from_dict(run["baselines"]) if "baselines" in run else Baselines()
        rows, results = list(baselines.rows), []
        for declared in run["declared"]["target"]:
            suite = Suite.from_store(store, declared["digest"])
            record = _score(store, resolved.digest, suite, resolved.base.weights, baselines)
            if record is None:
                raise InputError(
                    f"{resolved.ref} has no score on its target suite {suite.name}",
                    fix=f"inlay eval {resolved.ref} --suite {suite.name}",
                )
            results.append(from_record(record, suite, label=resolved.ref))
            if not baselines.on(suite.digest):  # a record from before baselines were kept
                rows += _base_of(store, record, suite)
        baselines = Baselines(tuple(rows), baselines.notes)
        minimum = run["declared"].get("minimum")
        verdict = judge(resolved.ref, results, baselines, forgetting, minimum=minimum, allowed=allowed)
        return cls(resolved.ref, resolved.digest, run, forgetting, baselines, tuple(results), verdict)

    @property
    def cost(self) -> Cost:
        """Tokens, FLOPs, seconds and memory of the training."""
        return Cost.of_run(self.run)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: figures and decisions; no outcomes, which the registry has."""
        scores = []
        for result in self.results:
            low, high = result.interval
            row = {"suite": result.suite.name, "metric": result.metric, "score": result.score}
            scores.append({**row, "low": low, "high": high, "n": result.n})
        return {
            "schema": SCHEMA,
            "ref": self.ref,
            "digest": self.digest,
            "verdict": self.verdict.to_dict(),
            "scores": scores,
            "baselines": [{**row.to_dict(), "outcomes": None} for row in self.baselines],
            "notes": list(self.baselines.notes),
            "cost": self.cost.to_dict(),
            "forgetting": self.forgetting.to_dict(),
            "run": {key: value for key, value in self.run.items() if key not in NOT_SHOWN},
        }

    def print(self, console: Console | None = None) -> None:
        """The report on a terminal; it fits 40 columns."""
        from inlay.trainers.run_text import print_run

        print_run(self, console)

    def write_html(self, path: str | Path) -> Path:
        """The report as one page without script or network."""
        from inlay.trainers.run_html import write_run

        return write_run(path, self)


def _forgetting(version: Version, run: Mapping[str, Any], store: Registry) -> ForgettingReport:
    """The newest forgetting report on the suites that were declared; else the newest."""
    kept = [ForgettingReport.from_dict(row) for row in store.reports(version.digest, "forgetting")]
    if not kept:
        raise InputError(
            f"a run's report says what was forgotten, and {version.ref} was not measured",
            fix=f"inlay forget {version.ref}",
        )
    names = {suite["name"] for suite in run["declared"]["general"]}
    return next((report for report in kept if set(report.suites) == names), kept[0])


def _score(
    store: Registry, digest: str, suite: Suite, base_weights: str, baselines: Baselines
) -> EvalRecord | None:
    """The newest score of the adapter under the protocol of the base's; without one, of any that a guard
    would take."""
    protocol = next((row.protocol for row in baselines.on(suite.digest) if row.kind == BASE), None)
    for record in store.evals(digest, suite.digest, base_weights=base_weights, protocol=protocol):
        standard = all(record.protocol_detail.get(key, value) == value for key, value in STANDARD.items())
        if protocol is not None or standard:
            return record
    return None


def _base_of(store: Registry, beside: EvalRecord, suite: Suite) -> list[Baseline]:
    """The base alone, under the same protocol; nothing where the registry has no such score."""
    for record in store.evals("base", suite.digest, protocol=beside.protocol):
        if record.comparable(beside):
            return [Baseline.of(BASE, BASE, from_record(record, suite, label=BASE), {})]
    return []
