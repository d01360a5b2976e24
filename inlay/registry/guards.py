"""Guards: thresholds that evidence must meet before an alias may move. The registry keeps and gathers; the
numbers are judged by a function that `inlay.evals` provides, because statistics are not the registry's
business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from inlay.errors import InputError
from inlay.registry.records import EvalRecord

THRESHOLDS = ("forget", "gain", "regress", "skill", "rigidity", "retention", "overhead")
BY_NAME = {"gain": "suite", "regress": "suite", "skill": "skill"}
"""Thresholds that may also be a mapping by name, and what the names are of."""
REST = "*"
"""In such a mapping: every name that is not in it."""
NEEDS = {
    "forget": "general",
    "gain": "target",
    "regress": "target",
    "skill": "general",
    "rigidity": "target",
    "retention": "target",
}
"""Which suites a threshold is measured on."""
LARGEST = {"overhead": 100.0}
"""Thresholds that may be over 1."""
ROLES = ("general", "target")
STANDARD = {"decoding": "greedy", "few_shot": 0}
"""What evidence must not differ from where the guard does not ask for something else."""
RIGID = "--rigid"
"""What the name of a suite's perturbed form ends in."""
_MAX_SUITES = 64
_MAX_NAMED = 256


@dataclass(frozen=True)
class Guard:
    """Thresholds in fractions of the score (0.05 = five points), each a one-sided 95% bound; None is none.

    - `forget`: most that may be lost on held-out general items against the base (upper bound)
    - `gain`: least that must be gained on the target against the base (lower bound)
    - `regress`: most that may be lost on the target against what the alias points to now (upper bound)
    - `skill`: most that may be lost on any one held-out skill that the base has (upper bound)
    - `rigidity`: most that may be lost from a target suite to its perturbed form (upper bound)
    - `retention`: of a variant, least share of each member's own gain over the base that the whole keeps on
      the target suites where the member gains (lower bound)
    - `overhead`: most extra time a token takes against the base, as a fraction of the base's (upper bound)
    - `suites`: {"general": names, "target": names}
    - `pinned`: name of a suite -> digest, filled in when the guard is set
    - `protocol`: fields of the protocol that evidence must have been measured under ({"dtype": "float32"});
      greedy and without examples in the prompt unless it says otherwise

    `gain` and `regress` may be mappings by suite and `skill` one by skill, where "*" stands for the others; a
    number in such a mapping may be over 1 for suites (those with a graded metric are judged in its unit).
    """

    forget: float | None = None
    gain: float | Mapping[str, float] | None = None
    regress: float | Mapping[str, float] | None = None
    skill: float | Mapping[str, float] | None = None
    rigidity: float | None = None
    retention: float | None = None
    overhead: float | None = None
    suites: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pinned: Mapping[str, str] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Guard | Mapping[str, Any]) -> Guard:
        """The guard that a mapping (a parsed YAML) describes. InputError names the bad key or value."""
        if isinstance(value, Guard):
            return value
        if not isinstance(value, Mapping):
            raise InputError(f"a guard must be a mapping, got a {type(value).__name__}", fix=_allowed())
        unknown = [key for key in value if key not in (*THRESHOLDS, "suites", "pinned", "protocol")]
        if unknown:
            raise InputError(f"a guard has the unknown key {str(unknown[0])[:60]!r}", fix=_allowed())
        thresholds = {key: _threshold(key, value[key]) for key in THRESHOLDS if value.get(key) is not None}
        suites = _suites(value.get("suites") or {})
        for threshold, role in NEEDS.items():
            if threshold in thresholds and not suites.get(role):
                raise InputError(
                    f"a guard with {threshold} needs {role} suites, it has none",
                    fix=f"add suites: {{{role}: [NAME]}}",
                )
        for threshold in ("gain", "regress"):
            _check_named(threshold, thresholds.get(threshold), suites)
        pinned = value.get("pinned") or {}
        if not isinstance(pinned, Mapping) or not all(isinstance(v, str) for v in pinned.values()):
            raise InputError("pinned must map names of suites to digests")
        return cls(
            **thresholds, suites=suites, pinned=dict(pinned), protocol=_protocol(value.get("protocol") or {})
        )

    def stricter(self, other: Guard | None) -> Guard:
        """The guard that asks for everything both ask for."""
        if other is None:
            return self
        suites = {
            role: tuple(sorted({*self.suites.get(role, ()), *other.suites.get(role, ())}))
            for role in ROLES
            if self.suites.get(role) or other.suites.get(role)
        }
        return Guard(
            forget=_pick(min, self.forget, other.forget),
            gain=_pick_named(max, self.gain, other.gain),
            regress=_pick_named(min, self.regress, other.regress),
            skill=_pick_named(min, self.skill, other.skill),
            rigidity=_pick(min, self.rigidity, other.rigidity),
            retention=_pick(max, self.retention, other.retention),
            overhead=_pick(min, self.overhead, other.overhead),
            suites=suites,
            pinned={**other.pinned, **self.pinned},
            protocol={**other.protocol, **self.protocol},
        )

    def limit(self, threshold: str, name: str) -> float | None:
        """What `gain`, `regress` or `skill` asks of the suite or skill of that name; None for nothing."""
        held = getattr(self, threshold)
        return held.get(name, held.get(REST)) if isinstance(held, Mapping) else held

    def admits(self, record: EvalRecord) -> bool:
        """Whether a score was measured under a protocol that counts here."""
        detail = record.protocol_detail
        asked = all(key in detail and detail[key] == value for key, value in self.protocol.items())
        return asked and all(
            detail.get(key, value) == value for key, value in STANDARD.items() if key not in self.protocol
        )

    def names(self) -> tuple[str, ...]:
        """All its suites' names, sorted."""
        return tuple(sorted({name for names in self.suites.values() for name in names}))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON, without what is not set."""
        result: dict[str, Any] = {
            key: dict(held) if isinstance(held := getattr(self, key), Mapping) else held
            for key in THRESHOLDS
            if getattr(self, key) is not None
        }
        if self.suites:
            result["suites"] = {role: list(names) for role, names in self.suites.items()}
        if self.pinned:
            result["pinned"] = dict(self.pinned)
        if self.protocol:
            result["protocol"] = dict(self.protocol)
        return result

    def __bool__(self) -> bool:
        """Whether it asks for anything."""
        return any(getattr(self, key) is not None for key in THRESHOLDS)


@dataclass(frozen=True)
class Perturbed:
    """What is known about the perturbed form of a suite. `sources[k]` is the index, in the clean suite, of
    the item that item k was made from; `clusters[k]` what k shares with others. `record` is None where the
    candidate has no score under the clean one's protocol.
    """

    suite: str
    record: EvalRecord | None = None
    sources: tuple[int, ...] = ()
    clusters: tuple[str, ...] = ()
    digest: str = ""


@dataclass(frozen=True)
class Evidence:
    """What is known about one suite. The three records are item by item comparable; None where there is no
    such eval. Role `overhead`: the newest `report` about the candidate's times, None where there is none;
    role `alarm`: an alarm that no full measurement has answered.

    `held_out` says for each item whether it is of a held-out skill; None where the suite does not say.
    `current` is None as well where the alias points to nothing yet: then `has_current` is False. `subject`
    is the candidate's reference, `digest` the suite's. `foreign` says that the candidate has scores on the
    suite, none of which counts: measured under another base, metric or protocol than the guard admits.
    `skills`, `clusters` and `guesses` (chances of being right by guessing) are an item's each, empty where
    the suite says nothing; `perturbed` is there where
    the guard asks about rigidity, and `members` (reference, comparable record or None) about retention.
    """

    role: str
    suite: str
    candidate: EvalRecord | None
    base: EvalRecord | None
    current: EvalRecord | None
    held_out: tuple[bool, ...] | None
    digest: str = ""
    has_current: bool = False
    subject: str = ""
    foreign: bool = False
    skills: tuple[str, ...] = ()
    clusters: tuple[str | None, ...] = ()
    guesses: tuple[float, ...] = ()
    perturbed: Perturbed | None = None
    members: tuple[tuple[str, EvalRecord | None], ...] = ()
    report: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Verdict:
    """What the judge said. `reasons` are sentences with numbers; `checks` the numbers themselves, as plain
    JSON.
    """

    passed: bool
    reasons: list[str]
    checks: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As the journal keeps it."""
        return {"passed": self.passed, "reasons": list(self.reasons), "checks": list(self.checks)}


Judge = Callable[[Guard, list[Evidence]], Verdict]


def rigid_name(suite: str) -> str:
    """The name of a suite's perturbed form; at most 63 characters, as names are."""
    return suite[: 63 - len(RIGID)] + RIGID


def _threshold(key: str, value: Any) -> Any:
    if key not in BY_NAME or not isinstance(value, Mapping):
        return _number(key, value, LARGEST.get(key, 1.0))
    if not value or len(value) > _MAX_NAMED or not all(isinstance(name, str) and name for name in value):
        raise InputError(
            f"{key} must be a number or map 1 to {_MAX_NAMED} names of a {BY_NAME[key]} to numbers"
        )
    largest = None if BY_NAME[key] == "suite" else 1.0
    return {name: _number(f"{key}.{name[:60]}", held, largest) for name, held in value.items()}


def _number(key: str, value: Any, largest: float | None) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise InputError(
            f"{key} must be a number, got {str(value)[:40]!r}", fix="write points as a fraction: 0.05"
        )
    if not 0 <= value <= (1e9 if largest is None else largest):
        got = f"{value}" if abs(value) < 2**64 else "a far larger number"
        said = "at least 0" if largest is None else f"between 0 and {largest:g}"
        raise InputError(f"{key} must be {said}, got {got}", fix="write five points as 0.05")
    return float(value)


def _check_named(key: str, held: Any, suites: Mapping[str, tuple[str, ...]]) -> None:
    """A limit for a suite that is not judged would never be looked at."""
    named = set(held) - {REST} if isinstance(held, Mapping) else set()
    unknown = sorted(named - set(suites.get(NEEDS[key], ())))
    if unknown:
        raise InputError(
            f"{key} names {unknown[0][:60]!r}, which is no {NEEDS[key]} suite of the guard",
            fix=f"its {NEEDS[key]} suites: {', '.join(suites.get(NEEDS[key], ()))}",
        )


def _suites(value: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, Mapping):
        raise InputError(
            "suites must map general and target to lists of names", fix="suites: {general: [general-v1]}"
        )
    result: dict[str, tuple[str, ...]] = {}
    for role, names in value.items():
        if role not in ROLES:
            raise InputError(
                f"suites has the unknown key {str(role)[:60]!r}", fix=f"allowed: {', '.join(ROLES)}"
            )
        listed = [names] if isinstance(names, str) else names
        if not isinstance(listed, list | tuple) or not all(isinstance(n, str) and n for n in listed):
            raise InputError(f"suites.{role} must be a list of names of suites")
        if len(listed) > _MAX_SUITES:
            raise InputError(f"suites.{role} has {len(listed)} names, at most {_MAX_SUITES} are allowed")
        result[str(role)] = tuple(dict.fromkeys(listed))
    return result


def _protocol(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(
        isinstance(key, str) and (held is None or isinstance(held, str | int | float))
        for key, held in value.items()
    ):
        raise InputError(
            "protocol must map fields to plain values", fix="protocol: {few_shot: 0, dtype: float32}"
        )
    return dict(value)


def _pick(choose: Callable[..., float], one: float | None, other: float | None) -> float | None:
    both = [value for value in (one, other) if value is not None]
    return choose(both) if both else None


def _pick_named(choose: Callable[..., float], one: Any, other: Any) -> Any:
    """As `_pick`, name by name where one of the two is a mapping."""
    if not isinstance(one, Mapping) and not isinstance(other, Mapping):
        return _pick(choose, one, other)
    sides = [held if isinstance(held, Mapping) else {REST: held} for held in (one, other) if held is not None]
    names = dict.fromkeys(name for side in sides for name in side)
    picked = {
        name: _pick(choose, *(side.get(name, side.get(REST)) for side in [*sides, {}][:2])) for name in names
    }
    return {name: limit for name, limit in picked.items() if limit is not None}


def _allowed() -> str:
    return f"allowed: {', '.join((*THRESHOLDS, 'suites', 'protocol'))}"
