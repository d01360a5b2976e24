"""A model asked a suite: outcomes, score, and the answers it gave where that matters.

Knows suites, metrics and the registry's record of an eval; does not know adapters, recipes or how a
prompt becomes tensors.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from inlay.errors import InputError, IntegrityError
from inlay.evals.metrics import metric as metric_named
from inlay.evals.statistics import wilson
from inlay.evals.suites import Item, Suite
from inlay.registry.canonical import digest_of_json, now
from inlay.registry.records import EvalRecord

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.evals.inference import Prompt
    from inlay.registry.fingerprint import BaseFingerprint

ANSWERS_KEPT = 50
"""At most so many differing items get an answer generated for the report."""


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
    ) -> list[str]: ...
    def matches(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[str],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[bool]: ...
    def states(
        self, prompts: Sequence[Prompt], answers: Sequence[str]
    ) -> Iterator[tuple[list[int], Tensor, Tensor, list[int]]]: ...
    def head(self, hidden: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class EvalResult:
    """One subject's outcomes on one suite, in item order.

    `subject`: a digest, or `base`; `label`: how a report calls it (`acme@v2`). `answers`: the model's own
    answers by item id, kept for items whose outcome differs from the result it was compared with.
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
    def score(self) -> float:
        """Fraction of items right."""
        return sum(self.outcomes) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Two-sided 95% interval of the score (Wilson)."""
        return wilson(sum(self.outcomes), self.n)

    @property
    def metric(self) -> str:
        return self.suite.metric

    @property
    def by_skill(self) -> dict[str, tuple[int, int]]:
        """{skill: (right, items)} in the suite's order."""
        counts = {skill: [0, 0] for skill in self.suite.skills}
        for item, right in zip(self.suite.items, self.outcomes, strict=True):
            counts[item.skill][0] += right
            counts[item.skill][1] += 1
        return {skill: (right, n) for skill, (right, n) in counts.items()}

    def split(self, held_out: bool) -> tuple[bool, ...]:
        """The outcomes of the held-out or of the protected items."""
        pairs = zip(self.suite.items, self.outcomes, strict=True)
        return tuple(right for item, right in pairs if item.held_out is held_out)


def evaluate_model(
    model: Model,
    suite: Suite,
    *,
    subject: str = "base",
    label: str | None = None,
    against: EvalResult | None = None,
    max_new_tokens: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> EvalResult:
    """Score `model` on `suite`; greedy decoding.

    Exact match costs one forward pass (teacher-forced); other metrics generate. With `against` (the base's
    result on the same suite), the model's own answers to up to `ANSWERS_KEPT` items that were right there
    and are wrong here, held-out ones first, are generated and kept for the report.
    """
    metric = metric_named(suite.metric)
    if metric.teacher_forced:
        outcomes = tuple(bool(x) for x in model.matches(suite.prompts(), suite.answers(), progress=progress))
        answers: dict[str, str] = {}
    else:
        texts = model.generate(suite.prompts(), max_new_tokens=max_new_tokens, progress=progress)
        answers = {item.id: text for item, text in zip(suite.items, texts, strict=True)}
        outcomes = tuple(metric.judge(answers[item.id], item.answer) for item in suite.items)
    if against is not None:
        check_comparable(against, suite, model.protocol)
        pairs = zip(suite.items, against.outcomes, outcomes, strict=True)
        lost = [item for item, before, after in pairs if before and not after]
        lost = sorted(lost, key=lambda item: not item.held_out)[:ANSWERS_KEPT]
        if metric.teacher_forced:
            answers = _own_answers(model, lost, max_new_tokens)
        else:
            answers = {item.id: answers[item.id] for item in lost}
    else:
        answers = dict(list(answers.items())[:ANSWERS_KEPT])
    return EvalResult(
        subject=subject,
        label=label or subject,
        suite=suite,
        outcomes=outcomes,
        base_weights=model.fingerprint.weights,
        base_prompt=model.fingerprint.prompt,
        protocol=dict(model.protocol),
        device=model.device,
        answers=answers,
    )


def _own_answers(model: Model, items: Sequence[Item], max_new_tokens: int) -> dict[str, str]:
    """What the model says to these items, for a reader; nothing where a prompt leaves it no room to answer,
    since the score is known by then and must not be lost over an illustration."""
    if not items:
        return {}
    try:
        texts = model.generate([item.chat for item in items], max_new_tokens=max_new_tokens)
    except InputError:
        return {}
    return {item.id: text for item, text in zip(items, texts, strict=True)}


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
            name: {"n": len(part), "right": sum(part)}
            for name, part in (("held_out", result.split(True)), ("protected", result.split(False)))
        },
        device=result.device,
        versions=library_versions(),
        created=now(),
    )


def from_record(record: EvalRecord, suite: Suite, *, label: str | None = None) -> EvalResult:
    """The result that a record keeps, for the suite it names; IntegrityError where they do not fit."""
    if record.suite != suite.digest or len(record.outcomes) != len(suite):
        raise IntegrityError(
            f"the eval of {record.subject} is of suite {record.suite[:15]} with {len(record.outcomes)} "
            f"outcomes, and {suite.name} is {suite.digest[:15]} with {len(suite)} items"
        )
    return EvalResult(
        subject=record.subject,
        label=label or record.subject,
        suite=suite,
        outcomes=tuple(bool(x) for x in record.outcomes),
        base_weights=record.base_weights,
        base_prompt=record.base_prompt,
        protocol=dict(record.protocol_detail),
        device=record.device,
    )


def library_versions() -> dict[str, str]:
    """Versions of what could change an outcome: provenance beside a score, not part of its key."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version()}
    for package in ("inlay", "torch", "transformers", "tokenizers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    return versions
