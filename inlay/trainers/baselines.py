"""What stands beside an adapter's score: the base alone, its best few-shot prompt, words alone, and scores
from elsewhere. None of them needs the adapter, so all are measured before the first step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError
from inlay.evals.ledger import Say, scored
from inlay.evals.scoring import EvalResult
from inlay.evals.statistics import wilson
from inlay.evals.suites import Suite
from inlay.registry.canonical import digest_of_json
from inlay.trainers import bag_of_words, few_shot
from inlay.trainers.bag_of_words import BagOfWords
from inlay.trainers.data import Example
from inlay.trainers.imported import Imported

if TYPE_CHECKING:
    from inlay.evals.inference import Chat
    from inlay.registry import Registry

SCHEMA = 1
BASE = "base"
FEW_SHOT = "few-shot prompt"
BAG_OF_WORDS = "bag of words"
MOST_FREQUENT = "most frequent answer"
IMPORTED = "imported"
KINDS = (BASE, FEW_SHOT, BAG_OF_WORDS, MOST_FREQUENT, IMPORTED)

Outcomes = tuple[bool | float, ...]


@dataclass(frozen=True)
class Baseline:
    """One score on one target suite, with its two-sided 95% interval where there is one.

    `kind`: one of `KINDS`; `name`: how a report calls it. `outcomes`: in the suite's item order, None for a
    score from elsewhere. `protocol`: the digest under which the registry keeps the score, "" where no model
    gave it. `about`: how it was chosen, or where it came from.
    """

    kind: str
    name: str
    suite: str
    suite_digest: str
    metric: str
    score: float
    n: int | None
    low: float | None = None
    high: float | None = None
    outcomes: Outcomes | None = None
    protocol: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: str, name: str, result: EvalResult, about: Mapping[str, Any]) -> Baseline:
        """The baseline that a model's result is."""
        return cls._scored(kind, name, result, digest_of_json(result.protocol), about)

    @classmethod
    def answered(
        cls, kind: str, suite: Suite, outcomes: Outcomes, about: Mapping[str, Any], base: EvalResult
    ) -> Baseline:
        """The baseline that answers without a model are, on the suite of `base`."""
        result = EvalResult("base", kind, suite, outcomes, base.base_weights, base.base_prompt, {})
        return cls._scored(kind, kind, result, "", about)

    @classmethod
    def _scored(
        cls, kind: str, name: str, result: EvalResult, protocol: str, about: Mapping[str, Any]
    ) -> Baseline:
        low, high = result.interval
        return cls(
            kind=kind,
            name=name,
            suite=result.suite.name,
            suite_digest=result.suite.digest,
            metric=result.metric,
            score=result.score,
            n=result.n,
            low=low,
            high=high,
            outcomes=result.outcomes,
            protocol=protocol,
            about=about,
        )

    @classmethod
    def imported(cls, given: Imported, suite: Suite) -> Baseline:
        """A score from elsewhere, with Wilson's interval where it is a share of `n` items."""
        low = high = None
        if not suite.graded:
            if not 0.0 <= given.score <= 1.0:
                raise InputError(
                    f"a score on {suite.name} is a share between 0 and 1, and {given.name}'s is "
                    f"{given.score:g}",
                    fix=f"write {given.score / 100:g} for {given.score:g}%",
                )
            if given.n is not None:
                low, high = wilson(round(given.score * given.n), given.n)
        return cls(
            kind=IMPORTED,
            name=given.name,
            suite=suite.name,
            suite_digest=suite.digest,
            metric=suite.metric,
            score=given.score,
            n=given.n,
            low=low,
            high=high,
            about={"source": given.source},
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; outcomes that are right or wrong as a string of 1 and 0."""
        row = {key: getattr(self, key) for key in _PLAIN}
        outcomes: str | list[float] | None = None
        if self.outcomes is not None:
            right_or_wrong = all(isinstance(x, bool) for x in self.outcomes)
            outcomes = (
                "".join("1" if x else "0" for x in self.outcomes) if right_or_wrong else list(self.outcomes)
            )
        return {**row, "outcomes": outcomes, "about": dict(self.about)}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Baseline:
        """What `to_dict` wrote."""
        said = row["outcomes"]
        outcomes: Outcomes | None = None
        if said is not None:
            outcomes = tuple(x == "1" for x in said) if isinstance(said, str) else tuple(map(float, said))
        return cls(**{key: row[key] for key in _PLAIN}, outcomes=outcomes, about=row["about"])


_PLAIN = ("kind", "name", "suite", "suite_digest", "metric", "score", "n", "low", "high", "protocol")


@dataclass(frozen=True)
class Baselines:
    """All baselines of a run, suite by suite, and why some are not there."""

    rows: tuple[Baseline, ...] = ()
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Baseline]:
        return iter(self.rows)

    def on(self, suite_digest: str) -> tuple[Baseline, ...]:
        """Those on one suite."""
        return tuple(row for row in self.rows if row.suite_digest == suite_digest)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, as a run's record keeps it."""
        return {
            "schema": SCHEMA,
            "rows": [row.to_dict() for row in self.rows],
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Baselines:
        """What `to_dict` wrote; InputError for a schema this version does not know."""
        if data.get("schema") != SCHEMA:
            raise InputError(f"baselines must have schema {SCHEMA}, got {data.get('schema')!r}")
        return cls(tuple(map(Baseline.from_dict, data["rows"])), tuple(data["notes"]))


def measure_baselines(
    chat: Chat,
    examples: Sequence[Example],
    targets: Sequence[Suite],
    *,
    store: Registry | None = None,
    cache: Path | None = None,
    imported: Sequence[Imported] = (),
    with_few_shot: bool = True,
    seed: int = 0,
    say: Say | None = None,
) -> Baselines:
    """The baselines of a task on its target suites; `chat` is the bare base, `examples` the training rows.

    What was scored before comes from `store` and, on dev rows, from the cache under `cache`. The few-shot
    prompt and the classifier are chosen once, on dev rows dealt by `seed`; the prompt by the metric of the
    first suite. Raises InputError for an imported score that names no target suite.
    """
    given = _by_suite(imported, targets)
    if not targets or not examples:
        return Baselines()
    notes: list[str] = []
    choice = None
    if with_few_shot:
        choice = few_shot.choose(chat, examples, targets[0], seed=seed, cache=cache, say=say)
    else:
        notes.append("No few-shot prompt was tried: it was switched off.")
    why_not = bag_of_words.not_classification(examples)
    if why_not:
        notes.append(f"No bag of words: the task is no classification, {why_not}.")
    classifier = None if why_not else BagOfWords.fit(examples, seed=seed)
    rows: list[Baseline] = []
    for suite in targets:
        base = scored(chat, suite, subject="base", label=BASE, store=store, say=say)
        rows.append(Baseline.of(BASE, BASE, base, {}))
        if choice is not None:
            rows.append(_prompted(choice, suite, store, say))
        if classifier is not None:
            reason = bag_of_words.unanswerable(suite)
            if reason:
                notes.append(f"No bag of words on {suite.name}: {reason}.")
            else:
                told = classifier.outcomes(suite)
                rows.append(Baseline.answered(BAG_OF_WORDS, suite, told, classifier.to_dict(), base))
                answer = bag_of_words.most_frequent(examples)
                same = bag_of_words.outcomes_of(answer, suite)
                rows.append(Baseline.answered(MOST_FREQUENT, suite, same, {"answer": answer}, base))
        rows += [Baseline.imported(one, suite) for one in given[suite.name]]
    return Baselines(tuple(rows), tuple(notes))


def _prompted(choice: few_shot.Choice, suite: Suite, store: Registry | None, say: Say | None) -> Baseline:
    model = choice.model
    result = scored(model, suite, subject="base", label=FEW_SHOT, store=store, say=say)
    return Baseline.of(FEW_SHOT, f"{FEW_SHOT} ({model.shots.k})", result, choice.to_dict())


def _by_suite(imported: Sequence[Imported], targets: Sequence[Suite]) -> dict[str, list[Imported]]:
    """The imported scores by the name of the suite they are of; those that name none are of the first."""
    found: dict[str, list[Imported]] = {suite.name: [] for suite in targets}
    for one in imported:
        if not targets:
            raise InputError(
                f"an imported score stands beside one on a target suite, and {one.name} has none beside it",
                fix="declare a target suite",
            )
        name = one.suite or targets[0].name
        if name not in found:
            raise InputError(
                f"an imported score must be of a target suite, and {one.name} is of {name}",
                fix=f"targets: {', '.join(found)}",
            )
        found[name].append(one)
    return found
