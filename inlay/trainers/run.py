"""One training run, from a file to a registered version that says what it gained and what it forgot.

Everything that can be wrong is checked before the first step; what the run was judged by is declared before
it starts and kept with the version.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.composer.measure import GENERAL, SuiteLike, suite_of
from inlay.composer.model import compose
from inlay.composer.weights import weigh
from inlay.errors import InputError
from inlay.evals.inference import Base, base_answers, load_base
from inlay.evals.ledger import Say, keep_suite, measure
from inlay.evals.prompts import read_prompts
from inlay.evals.scoring import library_versions
from inlay.registry import Registry
from inlay.registry.fingerprint import cache_dir
from inlay.trainers.data import Dataset, read_dataset
from inlay.trainers.settings import Settings, settings_for

if TYPE_CHECKING:
    from inlay.evals.forgetting import ForgettingReport
    from inlay.evals.suites import Suite
    from inlay.registry import Version

EXAMPLES_KEPT = 64
"""Training prompts kept in the run's record: what a router learns this adapter's requests from."""
ANSWER_TOKENS = 32
"""Length of the base's own answers to general prompts, in tokens; longer ones are cut there."""


@dataclass(frozen=True)
class TrainResult:
    """What a run made. `run` is the record kept in the registry; `score` and `base_score` are on the first
    target suite, None where none was declared."""

    version: Version
    report: ForgettingReport
    run: dict[str, Any]

    @property
    def score(self) -> float | None:
        return self.report.targets[0].counts.model_score if self.report.targets else None

    @property
    def base_score(self) -> float | None:
        return self.report.targets[0].counts.base_score if self.report.targets else None

    @property
    def verdict(self) -> str:
        """Was it worth it, in a sentence or two: what was gained, what was forgotten."""
        parts = []
        for target in self.report.targets:
            counts = target.counts
            low, high = (100 * bound for bound in counts.interval)
            parts.append(
                f"{self.version.ref} scores {100 * counts.model_score:.1f}% on {target.suite}, the base "
                f"{100 * counts.base_score:.1f}% (gain {low:.1f} to {high:.1f} points, 95% interval, "
                f"n={counts.n})."
            )
        minimum = self.run["declared"]["minimum"]
        if minimum is not None and self.score is not None and self.score < minimum:
            parts.append(f"That is below the minimum of {100 * minimum:.1f}% declared before training.")
        return " ".join([*parts, self.report.verdict])


def train(
    base: str | Path | Base,
    data: str | Path | Sequence[dict[str, Any]] | Dataset,
    *,
    name: str,
    store: Registry | str | Path | None = None,
    general: Sequence[SuiteLike] = (GENERAL,),
    target: Sequence[SuiteLike] = (),
    general_prompts: str | Path | Sequence[str] | None = None,
    minimum: float | None = None,
    why: str = "",
    device: str = "auto",
    say: Say | None = None,
    **settings: Any,
) -> TrainResult:
    """Train an adapter on `data`, register it as the next version of `name`, measure gain and forgetting.

    `settings`: the fields of `Settings`; what is not given comes from `inlay.json` beside the base, then from
    Inlay's defaults. `general_prompts`: a JSONL file of {"prompt"} or a list, for the KL term; by default
    those that ship. None of them may stand in a general suite. `minimum`: the target score below which
    the verdict says that the run failed. Raises InputError before anything is trained or stored.
    """
    from inlay.registry import check_name

    check_name(name)
    store = store if isinstance(store, Registry) else Registry.open(store)
    dataset = (
        data
        if isinstance(data, Dataset)
        else read_dataset(data, name=None if isinstance(data, str | Path) else name)
    )
    generals = [suite_of(s, store) for s in general]
    targets = [suite_of(s, store) for s in target]
    if not generals:
        raise InputError("a run declares at least one general suite to be judged on", fix=f"leave {GENERAL}")
    prompts = read_prompts(general_prompts)
    refuse_overlap(prompts, generals)
    loaded = base if isinstance(base, Base) else load_base(base, device=device)
    chosen = settings_for(loaded.fingerprint.path, **settings)
    for suite in [*generals, *targets]:
        keep_suite(store, suite)
    run = _declaration(dataset, chosen, generals, targets, prompts, minimum, loaded)

    from inlay.trainers.fit import fit, release, save_adapter

    answers = None
    if chosen.kl > 0:
        progress = (lambda d, n: say("the base's own answers to general prompts", d, n)) if say else None
        answers = base_answers(
            loaded, prompts, max_new_tokens=ANSWER_TOKENS, cache_dir=cache_dir(), progress=progress
        )
    fitted = fit(
        loaded,
        dataset,
        chosen,
        general=(prompts, answers) if answers is not None else None,
        progress=(lambda d, n, row: say(f"training {name}, loss {row['loss']:.3f}", d, n)) if say else None,
    )
    run |= {
        "curve": _thinned(fitted.curve),
        "steps": fitted.steps,
        "seconds": round(fitted.seconds, 3),
        "tokens": {"task": fitted.task_tokens, "general": fitted.general_tokens},
        "finished": datetime.now(UTC).isoformat(),
    }
    try:
        with tempfile.TemporaryDirectory(prefix="inlay-adapter-") as folder:
            save_adapter(fitted, Path(folder))
            version = store.add(name, folder, base=loaded.fingerprint, run=run, why=why)
    finally:
        release(fitted)
    composed = compose(version, store=store, base=loaded)
    try:
        report = measure(
            composed.base_chat,
            composed.chat,
            subject=version.digest,
            label=version.ref,
            general=generals,
            target=targets,
            store=store,
            cache=cache_dir(),
            weights=weigh(composed).to_dict(modules=False),
            say=say,
        )
    finally:
        composed.detach()
    return TrainResult(version, report, run)


def refuse_overlap(prompts: Sequence[str], suites: Sequence[Suite]) -> None:
    """InputError if a general prompt stands in a suite: what is protected must not be what is measured."""
    held = set(prompts)
    for suite in suites:
        for item in suite.items:
            if item.text in held:
                raise InputError(
                    f"general prompts and suites must be apart, and {item.id} of {suite.name} is in both",
                    fix="remove it from the general prompts",
                )


def _declaration(
    dataset: Dataset,
    settings: Settings,
    generals: Sequence[Suite],
    targets: Sequence[Suite],
    prompts: Sequence[str],
    minimum: float | None,
    base: Base,
) -> dict[str, Any]:
    """What is fixed before the first step."""
    texts = list(dict.fromkeys(example.text for example in dataset))
    sample = random.Random(settings.seed).sample(texts, min(EXAMPLES_KEPT, len(texts)))
    leaked = set(texts) & {item.text for suite in targets for item in suite.items}
    return {
        "base": {
            "name": base.fingerprint.name,
            "prompt": base.fingerprint.prompt,
            "weights": base.fingerprint.weights,
        },
        "dataset": {**dataset.manifest, "leaked_into_target": len(leaked)},
        "declared": {
            "general": [{"name": s.name, "digest": s.digest} for s in generals],
            "minimum": minimum,
            "target": [{"name": s.name, "digest": s.digest} for s in targets],
        },
        "examples": sample,
        "general_prompts": len(prompts) if settings.kl > 0 else 0,
        "settings": settings.to_dict(),
        "started": datetime.now(UTC).isoformat(),
        "versions": library_versions(),
    }


def _thinned(curve: list[dict[str, float]], rows: int = 200) -> list[dict[str, float]]:
    """At most about `rows` rows of the loss curve, the last one among them."""
    step = max(1, len(curve) // rows)
    return [
        {k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}
        for row in [*curve[:-1:step], *curve[-1:]]
    ]
