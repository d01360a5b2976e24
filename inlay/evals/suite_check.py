"""Whether a suite can carry a verdict: doubled and contradicting items, answers given away, items that stand
in training data, answers that a constant reply would get, and how many items a guard needs.

A finding is an *error* (scores on the suite mean something else than they say), a *warning* (look at it) or a
*note*. Only errors make a suite unfit.

An answer that stands in its own prompt is mostly right there: copying, finding, sorting and choosing are
skills. So that alone is a number in the table of skills. Called a leak is a prompt that *ends* in its answer
under a name like `Answer:`. Answers of three words or more, to the letter, are worth a look: a note where
most prompts of a skill hold theirs, a warning where hardly any does and this one is the exception.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from inlay.errors import InputError, ReferenceNotFound
from inlay.evals.contamination import Overlap, Training, normalised, overlaps, training_prompts
from inlay.evals.statistics import MIN_CLUSTERS, needed_items, probability_of_passing, wilson
from inlay.evals.suites import Item, Suite, SuiteStore
from inlay.registry.printable import printable

LEVELS = ("error", "warning", "note")
FEW = 30
"""Items of a skill under which a warning says that the skill by itself tells little: a score of one half is
then known to 17 points either way."""
CONSTANT = 0.6
"""Share of the commonest answer from which a skill is said to reward a constant reply."""
LONG_ANSWER = 3
"""Words from which an answer does not stand in its prompt by chance."""
RARE = 0.05
"""Share of a skill's items up to which holding the answer is an exception."""
NOT_WRITTEN = ("regex", "contains_not", "json_valid")
"""Metrics whose `answer` is not what is to be written."""
SHOWN = 5
"""Ids that a finding's text names."""

_NAMED = re.compile(r"\b(?:answer|solution|result|output|completion|label)\s*(?:is\b|[:=])", re.I)


@dataclass(frozen=True)
class Finding:
    """One thing found. `message` is a sentence; `items` the ids it is about, all of them."""

    level: str
    kind: str
    message: str
    items: tuple[str, ...] = ()

    def sentence(self) -> str:
        """The message with the first ids, safe to print."""
        if not self.items:
            return printable(self.message)
        more = f" and {len(self.items) - SHOWN:,} more" if len(self.items) > SHOWN else ""
        return printable(f"{self.message}: {', '.join(self.items[:SHOWN])}{more}")


@dataclass(frozen=True)
class SkillFigures:
    """One skill in numbers. `split`: held_out, protected or both.

    `commonest`: the most frequent answer, whose share of the items, `constant`, is what a reply that never
    changes would score; `in_prompt`: share of the free-form items whose answer stands in their prompt;
    `groups`: clusters, and items without one.
    """

    name: str
    split: str
    items: int
    commonest: str
    constant: float
    in_prompt: float
    groups: int


@dataclass(frozen=True)
class Power:
    """What a forgetting guard of `limit` can tell with the suite's `n` held-out items: `needed` items before
    a verdict counts, and pairs of (true net loss, probability of passing), where 1% of the items are gained.
    Items of skills that a base does not have tell nothing about it, so for such a base it is less.
    """

    limit: float
    n: int
    needed: int
    passing: tuple[tuple[float, float], ...]

    def sentences(self) -> list[str]:
        """The same for a reader."""
        limit = f"{100 * self.limit:g}"
        if self.n == 0:
            return [f"No held-out items: a guard of {limit} points has nothing to judge."]
        enough = "enough" if self.n >= self.needed else "NOT ENOUGH"
        found = [
            f"A guard of {limit} points on {self.n:,} held-out items ({self.needed:,} needed: {enough}):"
        ]
        found += [
            f"  truly losing {100 * loss:g} points, a model passes with probability {p:.3f}"
            for loss, p in self.passing
        ]
        return found


@dataclass(frozen=True)
class SuiteCheck:
    """What `check` found."""

    suite: str
    digest: str
    metric: str
    n: int
    held_out: int
    skills: tuple[SkillFigures, ...]
    findings: tuple[Finding, ...]
    power: Power | None

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.level == "error")

    @property
    def ok(self) -> bool:
        """No errors; warnings and notes may be there."""
        return not self.errors

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {**asdict(self), "ok": self.ok}

    def verdict(self) -> str:
        """One sentence."""
        count = Counter(f.level for f in self.findings)
        said = ", ".join(f"{count[level]} {level}{'s' * (count[level] != 1)}" for level in LEVELS[:2])
        return f"{printable(self.suite)}: {self.n:,} items, {self.held_out:,} held out; {said}"


def check(
    suite: Suite,
    *,
    training: Sequence[str | Path | Training] = (),
    limit: float = 0.05,
    store: SuiteStore | None = None,
) -> SuiteCheck:
    """Look a suite over.

    `training`: JSONL files whose prompts must not be in the suite; `limit`: the forgetting guard whose power
    is told, a fraction; `store`: a registry that may hold another suite of the same name. No model is needed.
    Raises InputError for a limit outside 0…0.4 and for training data that cannot be read.
    """
    if not 0.0 < limit <= 0.4:
        raise InputError(
            f"a guard's limit must be over 0 and at most 0.4, got {limit:g}", fix="write five points as 0.05"
        )
    data = [t if isinstance(t, Training) else training_prompts(t) for t in training]
    skills = _by_skill(suite.items, suite.skills)
    free = [item for item in suite.items if _free_form(suite, item)]
    written = _by_skill(free, suite.skills)
    findings = [
        *_repeated(suite.items),
        *_contaminated(suite.items, data),
        *_mixed_skills(skills),
        *_given_away(free),
        *_unusual_leaks(written),
        *_silent(suite),
        *_few(skills),
        *_constant(skills),
        *_places(suite.items),
        *_few_groups(suite.items),
        *_other_digest(suite, store),
    ]
    held_out = sum(item.held_out for item in suite.items)
    return SuiteCheck(
        suite=suite.name,
        digest=suite.digest,
        metric=suite.metric,
        n=len(suite),
        held_out=held_out,
        skills=tuple(_figures(name, items, written[name]) for name, items in skills.items()),
        findings=tuple(sorted(findings, key=lambda f: LEVELS.index(f.level))),
        power=None if suite.graded else _power(held_out, limit),
    )


def _by_skill(items: Iterable[Item], names: Iterable[str]) -> dict[str, list[Item]]:
    skills: dict[str, list[Item]] = {name: [] for name in names}
    for item in items:
        skills[item.skill].append(item)
    return skills


def _groups(items: Iterable[Item], key: Callable[[Item], Any]) -> list[list[Item]]:
    """Items with an equal key, where there are at least two."""
    found: dict[Any, list[Item]] = defaultdict(list)
    for item in items:
        found[key(item)].append(item)
    return [group for group in found.values() if len(group) > 1]


def _ids(items: Iterable[Item]) -> tuple[str, ...]:
    return tuple(item.id for item in items)


def _repeated(items: Sequence[Item]) -> list[Finding]:
    """Prompts that occur twice: with different answers, the same ones, or the same but for case and signs."""
    contradicting, doubled, alike = [], [], []
    for group in _groups(items, lambda i: (" ".join(i.text.split()), i.choices, i.metric)):
        first = group[0]
        if all(set(item.accepted) == set(first.accepted) for item in group):
            doubled += group[1:]
        else:
            contradicting += group
    known = {item.id for item in doubled}
    for group in _groups(
        (item for item in items if item.id not in known),
        lambda i: (normalised(i.text), tuple(map(normalised, i.accepted)), i.choices, i.metric),
    ):
        alike += group[1:]
    return _some(
        ("error", "contradiction", "the same prompt has different answers", contradicting),
        ("error", "duplicate", "the same prompt and answer again", doubled),
        ("warning", "near-duplicate", "the same prompt again but for case, spaces and punctuation", alike),
    )


def _some(*found: tuple[str, str, str, Sequence[Item]]) -> list[Finding]:
    return [Finding(level, kind, message, _ids(items)) for level, kind, message, items in found if items]


def _contaminated(items: Sequence[Item], data: Sequence[Training]) -> list[Finding]:
    findings = []
    said = {
        "same": ("error", "{n:,} of {all:,} prompts stand in {source}"),
        "normalised": (
            "error",
            "{n:,} of {all:,} prompts stand in {source} but for case, spaces and punctuation",
        ),
        "near": ("warning", "{n:,} of {all:,} prompts share {share}% or more of their runs of eight words "
                 "with one row of {source}"),
    }  # fmt: skip
    for training in data:
        degrees: dict[str, list[Overlap]] = defaultdict(list)
        for overlap in overlaps(items, training):
            degrees[overlap.degree].append(overlap)
        for degree, (level, message) in said.items():
            if found := degrees[degree]:
                text = message.format(
                    n=len(found),
                    all=len(items),
                    source=training.name,
                    share=int(100 * min(o.share for o in found)),
                )
                share = ", {:d}%" if degree == "near" else ""
                where = tuple(f"{o.item} (line {o.line}{share.format(int(100 * o.share))})" for o in found)
                findings.append(Finding(level, f"in-training-{degree}", text, where))
    return findings


def _mixed_skills(skills: Mapping[str, Sequence[Item]]) -> list[Finding]:
    return [
        Finding(
            "error",
            "split",
            f"skill {name} is both held out and protected: {held} and {len(items) - held} items",
        )
        for name, items in skills.items()
        if 0 < (held := sum(item.held_out for item in items)) < len(items)
    ]


def _free_form(suite: Suite, item: Item) -> bool:
    """Whether the answer is text to be written: no pattern, nothing to be avoided, not one of choices."""
    return bool(item.answer) and not item.choices and suite.metric_of(item).name not in NOT_WRITTEN


def _in_prompt(item: Item) -> bool:
    """Whether the answer stands in the prompt as whole words, whatever the case and punctuation."""
    answer = normalised(item.answer)
    return bool(answer) and f" {answer} " in f" {normalised(item.text)} "


def _given_away(free: Sequence[Item]) -> list[Finding]:
    leaks = []
    for item in free:
        end, answer = item.text[-2 * len(item.answer) - 80 :], normalised(item.answer)
        if any(normalised(end[named.end() :]) == answer for named in _NAMED.finditer(end)):
            leaks.append(item)
    return _some(("error", "leak", "the prompt ends in its answer", leaks))


def _unusual_leaks(free: Mapping[str, Sequence[Item]]) -> list[Finding]:
    unusual, usual = [], []
    for name, items in free.items():
        long = [item for item in items if len(item.answer.split()) >= LONG_ANSWER]
        held = [item for item in long if item.answer.strip() in item.text]
        if len(held) <= RARE * len(long):
            unusual += held
        elif 2 * len(held) > len(long):
            usual.append(name)
    text = "the answer stands in the prompt, unlike others of its skill"
    found = _some(("warning", "answer-in-prompt", text, unusual))
    if usual:
        text = "skills whose answers stand in their prompts: right for copying and finding, else a leak"
        found.append(Finding("note", "answers-in-prompts", text, tuple(usual)))
    return found


def _silent(suite: Suite) -> list[Finding]:
    """Items that a reply of nothing passes."""
    passed = [
        item
        for item in suite.items
        if not (metric := suite.metric_of(item)).graded
        and metric.how in ("match", "generate")
        and metric.outcome("", item)
    ]
    return _some(("warning", "silence", "an empty reply passes", passed))


def _few(skills: Mapping[str, Sequence[Item]]) -> list[Finding]:
    few = [f"{name} ({len(items)})" for name, items in skills.items() if len(items) < FEW]
    text = f"skills with fewer than {FEW} items tell little by themselves"
    return [Finding("warning", "few-items", text, tuple(few))] if few else []


def _commonest(items: Sequence[Item]) -> tuple[str, int]:
    answer, count = Counter(item.answer for item in items).most_common(1)[0]
    return answer, count


def _constant(skills: Mapping[str, Sequence[Item]]) -> list[Finding]:
    found = []
    for name, items in skills.items():
        answer, count = _commonest(items)
        if answer and len(items) >= 10 and count >= CONSTANT * len(items):
            share = f"{100 * count / len(items):.0f}%"
            text = f"in {name} a reply that is always {answer[:40]!r} scores {share}"
            found.append(Finding("warning", "constant", text))
    return found


def _places(items: Sequence[Item]) -> list[Finding]:
    """Right choices that stand in one place more often than chance allows (99%, all places at once)."""
    places: dict[int, list[int]] = defaultdict(list)
    for item in items:
        if item.choices:
            places[len(item.choices)].append(item.choices.index(item.answer))
    found = []
    for count, held in sorted(places.items()):
        place, times = Counter(held).most_common(1)[0]
        if wilson(times, len(held), z=NormalDist().inv_cdf(1 - 0.005 / count))[0] > 1 / count:
            text = (
                f"of {len(held):,} items with {count} choices the right one is number {place + 1} in "
                f"{100 * times / len(held):.0f}%"
            )
            found.append(Finding("warning", "places", text))
    return found


def _independent(items: Iterable[Item]) -> int:
    return len({(True, item.cluster) if item.cluster is not None else (False, item.id) for item in items})


def _few_groups(items: Sequence[Item]) -> list[Finding]:
    held_out = [item for item in items if item.held_out]
    if not any(item.cluster is not None for item in held_out):
        return []
    groups = _independent(held_out)
    if groups >= MIN_CLUSTERS:
        return []
    text = (
        f"the held-out items stand in {groups} clusters; under {MIN_CLUSTERS} they speak for themselves, "
        "and no guard takes that"
    )
    return [Finding("warning", "few-clusters", text)]


def _other_digest(suite: Suite, store: SuiteStore | None) -> list[Finding]:
    if store is None:
        return []
    try:
        kept = store.suite(suite.name)
    except ReferenceNotFound:
        return []
    if kept.digest == suite.digest:
        return []
    text = (
        f"{suite.name} in the store has another digest: {kept.digest[:15]} with {kept.n:,} items, this is "
        f"{suite.digest[:15]} with {len(suite):,}; their scores are not comparable"
    )
    return [Finding("warning", "other-digest", text)]


def _figures(name: str, items: Sequence[Item], free: Sequence[Item]) -> SkillFigures:
    answer, count = _commonest(items)
    splits = {item.held_out for item in items}
    return SkillFigures(
        name=name,
        split="both" if len(splits) > 1 else "held_out" if True in splits else "protected",
        items=len(items),
        commonest=answer,
        constant=count / len(items),
        in_prompt=sum(map(_in_prompt, free)) / len(free) if free else 0.0,
        groups=_independent(items),
    )


def _power(n: int, limit: float) -> Power:
    losses = (0.0, limit / 2, limit, 2 * limit) if n else ()
    passing = tuple((loss, probability_of_passing(n, loss, limit)) for loss in losses)
    return Power(limit, n, needed_items(limit), passing)
