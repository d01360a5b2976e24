"""A model asked a suite: outcomes, score, and the answers it gave where that matters.

Knows suites, metrics and the registry's record of an eval; does not know adapters, recipes or how a
prompt becomes tensors.
"""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from inlay.errors import InputError, IntegrityError
from inlay.evals.asking import ask, needs_embedding, outcomes
from inlay.evals.decoding import Decoding
from inlay.evals.statistics import wilson
from inlay.evals.suites import Item, Suite
from inlay.registry.canonical import digest_of_json, now
from inlay.registry.records import EvalRecord

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.evals.inference import Prompt
    from inlay.evals.metrics.similarity import Embedder
    from inlay.evals.partial import Partial
    from inlay.registry.fingerprint import BaseFingerprint

ANSWERS_KEPT = 50
"""At most so many items a direction (lost, gained) get an answer generated for the report."""


class Model(Protocol):
    """What this room asks of a model; `inference.Chat` is one."""

    @property
    def fingerprint(self) -> BaseFingerprint: ...
    @property
    def protocol(self) -> dict[str, Any]: ...
    @property
    def device(self) -> str: ...
    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 64,
        progress: Callable[[int, int], None] | None = None,
        **decoding: Any,
    ) -> list[str]: ...
    def matches(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[str],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[bool]: ...
    def likelihoods(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[str],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[tuple[float, int]]: ...
    def states(
        self, prompts: Sequence[Prompt], answers: Sequence[str]
    ) -> Iterator[tuple[list[int], Tensor, Tensor, list[int]]]: ...
    def head(self, hidden: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class EvalResult:
    """One subject's outcomes on one suite, in item order: bool, or numbers where the suite is graded.

    `subject`: a digest, or `base`; `label`: how a report calls it (`acme@v2`). `answers`: the model's own
    answers by item id: all that were generated or chosen, and for exact match those of items whose outcome
    differs from the result it was compared with.
    """

    subject: str
    label: str
    suite: Suite
    outcomes: tuple[bool | float, ...]
    base_weights: str
    base_prompt: str
    protocol: dict[str, Any]
    device: str = "cpu"
    answers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.outcomes) != len(self.suite):
            raise InputError(
                f"an eval needs one outcome an item: {self.suite.name} has {len(self.suite)} items, "
                f"got {len(self.outcomes)} outcomes"
            )

    @property
    def n(self) -> int:
        return len(self.outcomes)

    @property
    def graded(self) -> bool:
        """Whether outcomes are numbers."""
        return self.suite.graded

    @property
    def score(self) -> float:
        """Fraction of items right; for a graded suite the metric's own total of its outcomes."""
        return self._total(self.outcomes)

    @property
    def interval(self) -> tuple[float, float]:
        """Two-sided 95% interval of the score: Wilson's for right or wrong; for a graded suite Student's t of
        the mean outcome, put through the metric's total. A single item has none: the score twice."""
        if not self.graded:
            return wilson(sum(bool(x) for x in self.outcomes), self.n)
        metric = self.suite.metrics[0]
        low, high = mean_interval(self.outcomes)
        if metric.lowest is not None:
            low, high = max(low, metric.lowest), max(high, metric.lowest)
        if metric.highest is not None:
            low, high = min(low, metric.highest), min(high, metric.highest)
        total = metric.total
        return min(total([low]), self.score), max(min(total([high]), sys.float_info.max), self.score)

    def _total(self, outcomes: Sequence[bool | float]) -> float:
        return self.suite.metrics[0].total(outcomes) if self.graded else sum(outcomes) / len(outcomes)

    @property
    def metric(self) -> str:
        return self.suite.metric

    @property
    def by_skill(self) -> dict[str, tuple[int, int]]:
        """{skill: (right, items)} in the suite's order; InputError for a graded suite, where no item is."""
        if self.graded:
            raise InputError(
                f"{self.suite.name} is scored by {self.metric}, by which items are not right or wrong",
                fix="read skill_scores",
            )
        return {
            skill: (sum(bool(x) for x in part), len(part)) for skill, part in self._skill_outcomes().items()
        }

    @property
    def skill_scores(self) -> dict[str, tuple[float, int]]:
        """{skill: (score, items)} in the suite's order."""
        return {skill: (self._total(part), len(part)) for skill, part in self._skill_outcomes().items()}

    def _skill_outcomes(self) -> dict[str, list[bool | float]]:
        found: dict[str, list[bool | float]] = {skill: [] for skill in self.suite.skills}
        for item, outcome in zip(self.suite.items, self.outcomes, strict=True):
            found[item.skill].append(outcome)
        return found

    def split(self, held_out: bool) -> tuple[bool | float, ...]:
        """The outcomes of the held-out or of the protected items."""
        pairs = zip(self.suite.items, self.outcomes, strict=True)
        return tuple(outcome for item, outcome in pairs if item.held_out is held_out)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Two-sided 95% interval of a mean by Student's t (Biometrika 6, 1908); the value twice where there is
    but one."""
    n = len(values)
    middle = math.fsum(values) / n
    if n < 2:
        return middle, middle
    from scipy.special import stdtrit

    error = math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (n - 1) / n)
    reach = float(stdtrit(n - 1, 0.975)) * error
    return middle - reach, middle + reach


def evaluate_model(
    model: Model,
    suite: Suite,
    *,
    subject: str = "base",
    label: str | None = None,
    against: EvalResult | None = None,
    decoding: Decoding | None = None,
    embedder: Embedder | None = None,
    partial: Partial | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EvalResult:
    """Score `model` on `suite`; greedy unless `decoding` says otherwise.

    Exact match costs one forward pass (teacher-forced), a choice or a likelihood one each; other metrics
    generate. With `against` (the base's result on the same suite), the model's own answers to items that
    differ are kept (`flip_answers`). `embedder` is needed by the metric similarity. `partial` holds what an
    interrupted evaluation of the same had found, and is removed at the end by whoever made it.

    Raises InputError naming suite and item for a prompt without room in the base's context, an answer that
    the tokenizer cannot spell, and logits that are not finite.
    """
    decoding = decoding or Decoding()
    protocol = protocol_of(model, suite, decoding, embedder)
    if against is not None:
        check_comparable(against, suite, protocol)
    try:
        said = ask(model, suite, decoding, partial=partial, progress=progress)
    except InputError as error:
        raise InputError(f"{label or subject}, {error.message}", fix=error.fix) from error
    found = outcomes(suite, decoding, said, embedder=embedder)
    result = EvalResult(
        subject=subject,
        label=label or subject,
        suite=suite,
        outcomes=found.outcomes,
        base_weights=model.fingerprint.weights,
        base_prompt=model.fingerprint.prompt,
        protocol=protocol,
        device=model.device,
        answers=found.answers,
    )
    if against is None:
        return result
    return replace(result, answers={**result.answers, **flip_answers(model, result, against, decoding)})


def protocol_of(
    model: Model, suite: Suite, decoding: Decoding, embedder: Embedder | None = None
) -> dict[str, Any]:
    """Everything that a score on `suite` depends on besides weights, prompt format, items and metric."""
    if not needs_embedding(suite):
        return decoding.protocol(model.protocol)
    if embedder is None:
        raise InputError(
            f"{suite.name} is scored by similarity, which needs an embedding model",
            fix="score it by `inlay eval … --embedding FOLDER`, or evaluate(…, embedding=…)",
        )
    return {**decoding.protocol(model.protocol), "embedding": embedder.protocol}


def flip_answers(
    model: Model, mine: EvalResult, other: EvalResult, decoding: Decoding | None = None
) -> dict[str, str]:
    """The answers of `model`, whose result is `mine`, to items on which it differs from `other` and that
    `mine` does not have: up to `ANSWERS_KEPT` a direction, held-out ones first.

    An item that is right by exact match was answered with its answer; the rest is generated. Nothing where
    a prompt leaves no room to answer: the score is known by then and must not be lost over an illustration.
    """
    if mine.graded:
        return {}
    decoding = decoding or Decoding()
    rows = sorted(
        zip(mine.suite.items, mine.outcomes, other.outcomes, strict=True), key=lambda row: not row[0].held_out
    )
    flipped = [item for item, x, y in rows if x and not y][:ANSWERS_KEPT]
    known = {item.id: item.answer for item in flipped if _said_its_answer(mine.suite, item)}
    flipped += [item for item, x, y in rows if y and not x][:ANSWERS_KEPT]
    wanted = [item for item in flipped if item.id not in mine.answers and item.id not in known]
    known = {key: text for key, text in known.items() if key not in mine.answers}
    if not wanted:
        return known
    try:
        texts = model.generate([item.chat for item in wanted], **decoding.settings(0))
    except InputError:
        return known
    return {**known, **{item.id: text for item, text in zip(wanted, texts, strict=True)}}


def _said_its_answer(suite: Suite, item: Item) -> bool:
    return suite.metric_of(item).how == "match" and not item.references


def check_comparable(base: EvalResult, suite: Suite, protocol: Mapping[str, Any]) -> None:
    """InputError unless a result on `suite` under `protocol` can be paired with `base` item by item."""
    if base.suite.digest != suite.digest or base.metric != suite.metric:
        raise InputError(
            f"a comparison needs one suite and metric: {base.label} was scored on {base.suite.name} "
            f"({base.suite.digest[:15]}, {base.metric}), this is {suite.name} ({suite.digest[:15]}, "
            f"{suite.metric})"
        )
    differing = sorted(
        key for key in {*base.protocol, *protocol} if base.protocol.get(key) != protocol.get(key)
    )
    if differing:
        key = differing[0]
        raise InputError(
            f"a comparison needs one protocol: {key} was {base.protocol.get(key)!r} for {base.label} and is "
            f"{protocol.get(key)!r} here",
            fix="score both the same way",
        )


def to_record(result: EvalResult) -> EvalRecord:
    """The registry's record of a result."""
    low, high = result.interval
    return EvalRecord(
        subject=result.subject,
        base_weights=result.base_weights,
        base_prompt=result.base_prompt,
        suite=result.suite.digest,
        suite_name=result.suite.name,
        metric=result.metric,
        protocol=digest_of_json(result.protocol),
        protocol_detail=dict(result.protocol),
        score=result.score,
        n=result.n,
        low=low,
        high=high,
        outcomes=result.outcomes,
        splits={
            name: {"n": len(part)} if result.graded else {"n": len(part), "right": sum(part)}
            for name, part in (("held_out", result.split(True)), ("protected", result.split(False)))
        },
        device=result.device,
        versions=library_versions(),
        created=now(),
    )


def from_record(record: EvalRecord, suite: Suite, *, label: str | None = None) -> EvalResult:
    """The result that a record keeps, for the suite it names, by the metric it was scored with.

    IntegrityError where they do not fit.
    """
    if record.suite == suite.digest and record.metric != suite.metric:
        suite = replace(suite, metric=record.metric)
    if (
        record.suite != suite.digest
        or len(record.outcomes) != len(suite)
        or record.metric != suite.metric
        or all(isinstance(x, bool) for x in record.outcomes) is suite.graded
    ):
        raise IntegrityError(
            f"the eval of {record.subject} is of suite {record.suite[:15]} with {len(record.outcomes)} "
            f"outcomes by {record.metric}, and {suite.name} is {suite.digest[:15]} with {len(suite)} items "
            f"by {suite.metric}"
        )
    return EvalResult(
        subject=record.subject,
        label=label or record.subject,
        suite=suite,
        outcomes=tuple(record.outcomes),
        base_weights=record.base_weights,
        base_prompt=record.base_prompt,
        protocol=dict(record.protocol_detail),
        device=record.device,
    )


def library_versions() -> dict[str, str]:
    """Versions of what could change an outcome: provenance beside a score, not part of its key."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version()}
    for package in ("inlay", "torch", "transformers", "tokenizers", "rouge-score", "sacrebleu"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    return versions
