"""The same training over rates, ranks, KL coefficients or any other setting: what each learned of rows held
back from it, what each forgot of prompts that are protected, and which is taken.

Nothing here sees a suite: a winner is chosen on dev rows out of the training data, trained again on all of
it and only then measured on what its run declares. The choice is that of `inlay.composer.choosing`: of those
that forgot no more than was allowed and learned most, within one standard error (Breiman et al. 1984), the
one that forgot least.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.composer.factors import read_adapter
from inlay.composer.measure import GENERAL, SuiteLike, suite_of
from inlay.errors import InputError
from inlay.evals.cache import Cache
from inlay.evals.forgetting import Target, percent
from inlay.evals.frontier import Point
from inlay.evals.inference import Base, Chat, base_answers, load_base
from inlay.evals.ledger import Say
from inlay.evals.prompts import read_prompts
from inlay.evals.scoring import evaluate_model, library_versions
from inlay.evals.statistics import Paired
from inlay.evals.suites import DEFAULT_METRIC, Item, Suite
from inlay.registry import Registry
from inlay.registry.canonical import digest_of_json
from inlay.registry.fingerprint import cache_dir
from inlay.trainers import processes
from inlay.trainers.data import Dataset
from inlay.trainers.grid import Grid, points_of
from inlay.trainers.orthogonal import others_of
from inlay.trainers.presets import method_of
from inlay.trainers.protected import Protected, hold_apart, paired
from inlay.trainers.quantised import ground
from inlay.trainers.reading import read
from inlay.trainers.run import ANSWER_TOKENS, TrainResult, refuse_overlap, train
from inlay.trainers.settings import Settings, settings_for
from inlay.trainers.sweep_report import SweepReport, Trial

if TYPE_CHECKING:
    from inlay.composer.factors import Adapter

KIND = "sweep"
"""What cache and store call a point and the report."""
LEAST, MOST = 20, 500
"""Dev rows: fewer tell nothing, more tell no more."""


@dataclass(frozen=True)
class SweepResult:
    """`trained`: the run of the winner on all rows; None where none was taken."""

    report: SweepReport
    trained: TrainResult | None


def sweep(
    base: str | Path | Base,
    data: str | Path | Sequence[Any] | Dataset,
    *,
    name: str,
    over: Grid,
    forget: float = 0.05,
    dev: float = 0.2,
    store: Registry | str | Path | None = None,
    general: Sequence[SuiteLike] = (GENERAL,),
    target: Sequence[SuiteLike] = (),
    general_prompts: str | Path | Sequence[str] | None = None,
    orthogonal_to: Sequence[str] = (),
    minimum: float | None = None,
    why: str = "",
    device: str = "auto",
    fresh: bool = False,
    say: Say | None = None,
    **settings: Any,
) -> SweepResult:
    """Train every point of the grid `over`, take one, and train that on all of `data` by `inlay.train`.

    `forget`: the fraction of protected prompts that may be answered otherwise than the base does; where no
    point keeps within it, or none learned what the base had not, nothing is taken and nothing registered.
    `dev`: the share of the rows that is held back to choose on; rows of one prompt stay together. They are
    scored by the first target suite's metric where it is right or wrong, else by exact match. The other
    arguments are those of `inlay.train`. What was measured stays in the cache: interrupted, a sweep loses the
    point that it was at, and nothing else.

    Raises InputError as `inlay.train` does, for a grid or a method that cannot be swept, and with the last
    point's error where all failed.
    """
    if processes.count() > 1:
        raise InputError("a sweep runs in one process, and several are launched", fix="launch it by itself")
    if not 0.0 < forget <= 1.0 or not 0.0 < dev < 1.0:
        raise InputError(f"forget and dev must be shares above 0, and are {forget:g} and {dev:g}")
    begun = time.monotonic()
    store = store if isinstance(store, Registry) else Registry.open(store)
    settings["method"] = settings.get("method") or method_of(settings.get("preset"))
    dataset = read(data, settings["method"], name=None if isinstance(data, str | Path) else name)
    if not isinstance(dataset, Dataset):
        raise InputError(
            f"a sweep is scored on answers, and {settings['method']} trains on none",
            fix="sweep sft or distill",
        )
    generals, targets = ([suite_of(s, store) for s in some] for some in (general, target))
    prompts = read_prompts(general_prompts)
    refuse_overlap(prompts, generals)
    loaded = base if isinstance(base, Base) else load_base(base, device=device)
    points = points_of(over, settings_for(loaded.fingerprint.path, **settings))
    for point in points.values():
        read(dataset, point.method)
    first = next(iter(points.values()))
    rows, suite = held_back(dataset, dev, first.seed, metric_of(targets))
    answers = base_answers(
        loaded,
        prompts,
        max_new_tokens=ANSWER_TOKENS,
        cache_dir=cache_dir(),
        progress=(lambda d, n: say("the base's own answers to general prompts", d, n)) if say else None,
    )
    protected, rest = hold_apart(loaded, prompts, answers, seed=first.seed)
    versions = others_of(store, orthogonal_to, loaded)
    others = [read_adapter(each, store=store) for each in versions]
    bare = tuple(bool(x) for x in evaluate_model(Chat(loaded), suite).outcomes)
    against = tuple(each.digest for each in versions)
    board = _Board(loaded, rows, suite, protected, rest, others, against, bare)
    trials = board.trials(points, say)
    measured = [board.point(trial) for trial in trials if trial.failure is None]
    base_point = board.point(Trial("base", {}, bare, (True,) * len(protected)), kind="base")
    choice = choose(measured, base_point, forget)
    report = SweepReport(
        subject=name,
        base=loaded.fingerprint.name,
        base_weights=loaded.fingerprint.weights,
        data=dataset.manifest,
        grid={field: list(values) for field, values in over.items()},
        metric=suite.metric,
        rows=len(rows),
        forget=forget,
        seed=first.seed,
        points=(base_point, *measured),
        trials=tuple(trials),
        choice=None if choice is None else choice.name,
        explanation=explain(measured, base_point, choice, forget),
        seconds=time.monotonic() - begun,
    )
    if choice is None:
        return SweepResult(report, None)
    trained = train(
        loaded,
        dataset,
        name=name,
        store=store,
        general=generals,
        target=targets,
        general_prompts=prompts,
        orthogonal_to=orthogonal_to,
        minimum=minimum,
        why=why or report.explanation[0],
        fresh=fresh,
        say=say,
        **{**settings, **{field: getattr(points[choice.name], field) for field in over}},
    )
    report = replace(report, registered=trained.version.ref, seconds=time.monotonic() - begun)
    store.put_report(trained.version.digest, KIND, report.to_dict())
    return SweepResult(report, trained)


def held_back(data: Dataset, share: float, seed: int, metric: str = DEFAULT_METRIC) -> tuple[Dataset, Suite]:
    """What is trained on, and a suite of dev rows: a seeded sample of the prompts with all their rows.

    Raises InputError where either would be too little.
    """
    prompts = list(dict.fromkeys(example.prompt for example in data))
    count = min(MOST, round(share * len(prompts)))
    chosen = set(random.Random(seed).sample(prompts, count))
    places = [i for i, example in enumerate(data) if example.prompt not in chosen]
    dev = [example for example in data if example.prompt in chosen]
    if count < LEAST or len(places) < LEAST:
        raise InputError(
            f"a sweep needs at least {LEAST} prompts to choose on and as many rows to train on, and of "
            f"{len(data)} rows {count} prompts would be held back",
            fix="give more rows, or another --sweep-dev",
        )
    items = tuple(Item(f"dev-{i:04}", each.prompt, each.answer, "dev") for i, each in enumerate(dev))
    rows = replace(
        data,
        examples=tuple(data.examples[i] for i in places),
        stated=tuple(data.stated[i] for i in places) if data.stated else (),
    )
    return rows, Suite(f"{data.name}, dev", items, metric)


def metric_of(targets: Sequence[Suite]) -> str:
    """How dev rows are scored: as the first target suite is, where that is right or wrong by one metric that
    answers alone decide."""
    metrics = targets[0].metrics if targets else ()
    if len(metrics) == 1 and not metrics[0].graded and metrics[0].how in ("match", "generate"):
        return metrics[0].name
    return DEFAULT_METRIC


def choose(points: Sequence[Point], base: Point, forget: float) -> Point | None:
    """The point to take; None where none learned more than the base and forgot at most `forget`."""
    passing = [each for each in points if each.lost <= forget and each.learned > base.learned]
    if not passing:
        return None
    best = max(passing, key=lambda each: each.learned)
    equal = [each for each in passing if each.as_good_as(best)]
    return min(equal, key=lambda each: (each.lost, -each.learned))


def explain(points: Sequence[Point], base: Point, choice: Point | None, forget: float) -> tuple[str, str]:
    """Two sentences: what is taken, or why nothing; what else there was."""
    allowed = f"{100 * forget:g} allowed"
    if choice is None:
        learned = [each for each in points if each.learned > base.learned]
        if not learned:
            return (
                f"No point answers more of the {base.n} dev rows than the base, so nothing is registered.",
                "Try higher rates, more steps, or a suite whose metric fits the answers.",
            )
        nearest = min(learned, key=lambda each: (each.lost, -each.learned))
        return (
            f"No point that learned something forgets so little, so nothing is registered: {_worth(nearest)} "
            f"({allowed}).",
            "Try lower rates, a higher kl, or replay.",
        )
    first = f"{_worth(choice)} ({allowed}), and is taken."
    best = max(points, key=lambda each: (each.learned, -each.lost))
    if best.learned == choice.learned:
        return first, "No point learned more."
    if best.lost > forget:
        return first, f"Most was learned at too high a price: {_worth(best)}."
    return first, f"What is ahead of it is so by no more than chance, and forgets more: {_worth(best)}."


def _worth(point: Point) -> str:
    return (
        f"{point.name} answers {percent(point.learned)}% of {point.n} dev rows and loses "
        f"{percent(point.lost)} points of {point.general.n} protected prompts"
    )


@dataclass(frozen=True)
class _Board:
    """What all points are measured on. `rest`: general prompts and answers that points may train on;
    `against`: the digests of `others`, to which they begin orthogonal; `bare`: the base's outcomes on the dev
    suite."""

    base: Base
    rows: Dataset
    suite: Suite
    protected: Protected
    rest: tuple[list[str], list[str]]
    others: Sequence[Adapter]
    against: tuple[str, ...]
    bare: tuple[bool, ...]

    def trials(self, points: dict[str, Settings], say: Say | None) -> list[Trial]:
        """One a point, from the cache or trained now; raises the last point's error where all failed."""
        cache = Cache.of_environment(cache_dir())
        found: list[Trial] = []
        error: InputError | None = None
        for number, (name, settings) in enumerate(points.items(), 1):
            key = self._key(settings)
            held = cache.read(KIND, key)
            if held is not None:
                found.append(Trial.from_dict({**json.loads(held), "name": name}, remembered=True))
                continue
            try:
                trial = self._trained(name, settings, f"point {number} of {len(points)}, {name}", say)
                cache.write(KIND, key, json.dumps(trial.to_dict()).encode())
            except InputError as raised:  # a rate at which the loss is lost says something of that rate alone
                error, trial = raised, Trial(name, settings.to_dict(), (), (), failure=raised.message)
            found.append(trial)
        if error is not None and all(trial.failure is not None for trial in found):
            raise error
        return found

    def point(self, trial: Trial, kind: str = "point") -> Point:
        counts = Paired.of(self.bare, trial.outcomes)
        return Point(
            trial.name,
            kind,
            paired(trial.kept),
            (Target(self.suite.name, counts),),
            outcomes=(trial.outcomes,),
        )

    def _trained(self, name: str, settings: Settings, what: str, say: Say | None) -> Trial:
        from inlay.trainers.fit import fit, release

        with ground(self.base, settings) as base:
            fitted = fit(
                base,
                self.rows,
                settings,
                general=self.rest,
                others=self.others,
                progress=(lambda d, n, row: say(f"{what}, loss {row['loss']:.3f}", d, n)) if say else None,
            )
            try:
                outcomes = evaluate_model(Chat(base, model=fitted.model), self.suite, subject=name).outcomes
                return Trial(
                    name=name,
                    settings=settings.to_dict(),
                    outcomes=tuple(bool(x) for x in outcomes),
                    kept=tuple(self.protected.kept(base, fitted.model)),
                    steps=fitted.steps,
                    seconds=fitted.seconds,
                    loss=fitted.curve[-1]["loss"] if fitted.curve else None,
                )
            finally:
                release(fitted)

    def _key(self, settings: Settings) -> str:
        """Everything that a trial depends on."""
        what = {
            "schema": 1,
            "weights": self.base.fingerprint.weights,
            "prompt": self.base.fingerprint.prompt,
            "dtype": str(self.base.model.dtype),
            "device": self.base.model.device.type,
            "rows": self.rows.digest,
            "dev": [self.suite.digest, self.suite.metric],
            "protected": [self.protected.prompts, self.protected.answers],
            "general": self.rest,
            "others": self.against,
            "settings": settings.to_dict(),
            "versions": {k: v for k, v in library_versions().items() if k != "python"},
        }
        return digest_of_json(what).partition(":")[2]
