"""The report at load: one pass of a composed model over a fixed probe, against what is cached of its base.

Says how far the model drifted, whether that is an alarm, and which probe items it answers otherwise than its
base did rightly. It has no verdict: what was gained is not seen in such a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from inlay.errors import InputError
from inlay.evals.calibration import alarm_of
from inlay.evals.drift import pass_over
from inlay.evals.forgetting import Flip, ForgettingReport
from inlay.evals.scoring import Model
from inlay.evals.statistics import Paired
from inlay.evals.suites import Item, Suite

if TYPE_CHECKING:
    from inlay.evals.inference import Prompt
    from inlay.registry import Registry

PROBE_ITEMS = 96
"""Prompts of the drift probe: enough for its means, a second or two on a small base."""


def probe_items(suites: Sequence[Suite], limit: int = PROBE_ITEMS) -> list[tuple[Suite, Item]]:
    """Held-out items, dealt from the skills in turn, so that each counts about the same."""
    skills: dict[str, list[tuple[Suite, Item]]] = {}
    for suite in suites:
        for item in suite.items:
            if item.held_out:
                skills.setdefault(f"{suite.name}/{item.skill}", []).append((suite, item))
    dealt = []
    for row in range(max(map(len, skills.values()), default=0)):
        dealt += [items[row] for items in skills.values() if row < len(items)]
    return dealt[:limit]


def probe_prompts(suites: Sequence[Suite]) -> list[Prompt]:
    """What a probe asks."""
    return [item.chat for _, item in probe_items(suites)]


def at_load(
    base: Model,
    model: Model,
    *,
    label: str,
    general: Sequence[Suite],
    store: Registry | None = None,
    cache: Path | None = None,
) -> ForgettingReport:
    """The report of `model` at load: drift, alarm, and flips among the probe's items.

    A flip here: an item scored by exact match, to which the base's own greedy answer is right, and the
    model's is another. Where the base's side is not cached, the base answers the probe first. `store` is
    where the base's calibration is looked for. InputError for suites without a held-out item, and what
    `pass_over` raises.
    """
    probe = probe_items(general)
    if not probe:
        raise InputError(
            "the report at load needs a held-out item of a skill that the base has, and there is none",
            fix="measure in full, or name a suite with held-out items",
        )
    seen = pass_over(base, model, [item.chat for _, item in probe], cache=cache)
    flips, scored = [], 0
    for (suite, item), answer, before, after in zip(
        probe, seen.answers, seen.base_gives, seen.model_gives, strict=True
    ):
        metric = suite.metric_of(item)
        if metric.how != "match" or item.references or not before or not metric.outcome(answer, item):
            continue
        scored += 1
        if not after:
            flips.append(Flip(suite.name, item.id, item.skill, True, item.text, item.answer, None, answer))
    drift = replace(seen.drift, scored=scored, flips=len(flips))
    nothing = Paired(0, 0, 0, 0)
    return ForgettingReport(
        subject=label,
        base_weights=model.fingerprint.weights,
        suites=tuple(suite.name for suite in general),
        held_out=nothing,
        protected=nothing,
        skills=(),
        flips=tuple(flips),
        drift=drift,
        alarm=alarm_of(store, model.fingerprint.weights, drift).to_dict(),
    )
