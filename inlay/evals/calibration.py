"""From which drift on a base is an alarm: a threshold found on models of known loss.

An alarm means "measure fully"; no alarm is no pass. The signal is the one that told losses best in our study
(docs/drift.md): how often the most likely token differs on prompts of *held-out* skills. What it is worth
differs from base to base, since a hesitant base changes its mind at nothing: hence a threshold for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError
from inlay.evals.drift import Drift
from inlay.evals.statistics import Paired
from inlay.registry.canonical import now

if TYPE_CHECKING:
    from inlay.registry import Registry

SCHEMA = 1
KIND = "calibration"
"""The kind of the registry's report, whose subject is "base"."""
SIGNAL = "disagreement"
HARM = 0.02
"""A model is harmful where the lower bound of its held-out loss is above this."""
MIN_HARMFUL = 5
"""Harmful models that a threshold is taken from."""
DEFAULT_THRESHOLD = 0.01
"""For a base that was not calibrated: see docs/drift.md, "Without calibration"."""


@dataclass(frozen=True)
class Known:
    """A model whose drift and whose loss of held-out items are both known. `origin`: "registry" (a forgetting
    report) or "synthetic" (made to be measured)."""

    name: str
    origin: str
    drift: Drift
    held_out: Paired

    @property
    def harmful(self) -> bool:
        """Is the one-sided 95% lower bound of what it lost above two points?"""
        return self.held_out.loss_lower > HARM


@dataclass(frozen=True)
class Calibration:
    """The threshold of one base on one probe, and everything it was taken from."""

    base_weights: str
    probe: str
    known: tuple[Known, ...]
    created: str = field(default_factory=now)

    def __post_init__(self) -> None:
        other = {k.drift.probe for k in self.known} - {self.probe}
        if other:
            raise InputError("a calibration is of one probe, and its models were measured on several")
        if self.harmful < MIN_HARMFUL:
            raise InputError(
                f"a calibration needs {MIN_HARMFUL} models known to have lost more than "
                f"{100 * HARM:.0f} points, and there are {self.harmful}",
                fix="measure a general suite with more held-out items, so that losses show",
            )
        if self.least == 0.0:
            raise InputError(
                "a model that agrees with its base everywhere on the probe has lost more than "
                f"{100 * HARM:.0f} points, so drift on this probe tells nothing",
                fix="take a general suite with more held-out skills",
            )

    @property
    def harmful(self) -> int:
        return sum(k.harmful for k in self.known)

    @property
    def least(self) -> float:
        """The least drift of a harmful model."""
        return min(getattr(k.drift, SIGNAL) for k in self.known if k.harmful)

    @property
    def threshold(self) -> float:
        """Drift above this alarms: the largest of a model that is not harmful and drifted less than all that
        are. What lies between it and `least` is unknown, and alarms as well."""
        quiet = [getattr(k.drift, SIGNAL) for k in self.known if not k.harmful]
        return max((value for value in quiet if value < self.least), default=0.0)

    @property
    def missed_at_most(self) -> float:
        """Bound on the chance that the next harmful model, were it made like those known, drifts less than
        `least`: 1 / (harmful + 1), since each of them is equally likely to drift least."""
        return 1.0 / (self.harmful + 1)

    @property
    def false_alarms(self) -> tuple[int, int]:
        """(how many of the other models alarm all the same, how many others there are)."""
        others = [k for k in self.known if not k.harmful]
        return sum(getattr(k.drift, SIGNAL) > self.threshold for k in others), len(others)

    def said(self) -> str:
        """In two sentences."""
        false, others = self.false_alarms
        synthetic = sum(k.origin == "synthetic" for k in self.known)
        return (
            f"Alarm above {share(self.threshold)}: the {self.harmful} models of this base known to have lost "
            f"more than {100 * HARM:.0f} points drift {share(self.least)} and more, and {false} of the "
            f"{others} others alarm as well ({synthetic} of all {len(self.known)} were made for this). A "
            f"harmful model like those known is missed in at most {100 * self.missed_at_most:.0f}% of cases; "
            "one trained otherwise may be more often: no alarm is no pass."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: the models, from which every figure follows, and the figures for readers."""
        false, others = self.false_alarms
        return {
            "schema": SCHEMA,
            "base_weights": self.base_weights,
            "probe": self.probe,
            "signal": SIGNAL,
            "threshold": self.threshold,
            "least_harmful": self.least,
            "harmful": self.harmful,
            "others": others,
            "false_alarms": false,
            "missed_at_most": self.missed_at_most,
            "known": [asdict(k) for k in self.known],
            "created": self.created,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """What `to_dict` wrote; InputError for a schema or a signal this version does not know."""
        if data.get("schema") != SCHEMA or data.get("signal") != SIGNAL:
            raise InputError(
                f"a calibration must have schema {SCHEMA} and signal {SIGNAL}, got {data.get('schema')!r} "
                f"and {str(data.get('signal'))[:40]!r}",
                fix="calibrate again: `inlay eval --calibrate`",
            )
        known = tuple(
            Known(
                row["name"],
                row["origin"],
                Drift.from_dict(row["drift"]),
                Paired(**{**row["held_out"], "clusters": tuple(map(tuple, row["held_out"]["clusters"]))}),
            )
            for row in data["known"]
        )
        return cls(data["base_weights"], data["probe"], known, data["created"])


@dataclass(frozen=True)
class Alarm:
    """Whether a drift asks for the full measurement. `calibrated`: was the threshold found on this base?"""

    raised: bool
    signal: str
    value: float
    threshold: float
    calibrated: bool

    @property
    def said(self) -> str:
        """In one sentence."""
        source = (
            "the most that a model of this base drifted and is known to have lost less than two points"
            if self.calibrated
            else "a threshold from a study of the built-in base (`inlay eval --calibrate` finds this one's)"
        )
        if self.raised:
            return (
                f"Alarm: {self.signal} is {share(self.value)}, above {share(self.threshold)}, {source}; "
                "an alarm asks for the full measurement."
            )
        return (
            f"No alarm, which is no pass: {self.signal} is {share(self.value)}, not above "
            f"{share(self.threshold)}, {source}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "said": self.said}


def alarm(drift: Drift, calibration: Calibration | None) -> Alarm:
    """Judge a drift by its base's calibration, or by `DEFAULT_THRESHOLD` where there is none.

    InputError where the two are not about the same probe.
    """
    if calibration is not None and calibration.probe != drift.probe:
        raise InputError("a drift is judged by a calibration on the same probe, and this one is on another")
    value = getattr(drift, SIGNAL)
    threshold = DEFAULT_THRESHOLD if calibration is None else calibration.threshold
    return Alarm(value > threshold, SIGNAL, value, threshold, calibration is not None)


def calibration_of(store: Registry | None, base_weights: str, probe: str) -> Calibration | None:
    """The newest calibration of a base on a probe that the registry keeps; None where there is none."""
    for report in store.reports("base", KIND) if store is not None else ():
        if report.get("base_weights") == base_weights and report.get("probe") == probe:
            return Calibration.from_dict(report)
    return None


def alarm_of(store: Registry | None, base_weights: str, drift: Drift) -> Alarm:
    """`alarm` by what the registry keeps."""
    return alarm(drift, calibration_of(store, base_weights, drift.probe))


def known_in(store: Registry, base_weights: str, probe: str) -> list[Known]:
    """The models that the registry has both figures of: the newest forgetting report of each subject of
    this base whose drift was measured on this probe."""
    from inlay.evals.forgetting import ForgettingReport

    found: list[Known] = []
    for subject in sorted({r.subject for r in store.evals(base_weights=base_weights)} - {"base"}):
        for row in store.reports(subject, "forgetting"):
            report = ForgettingReport.from_dict(row)
            if report.drift is not None and report.drift.probe == probe and report.held_out.n:
                found.append(Known(report.subject, "registry", report.drift, report.held_out))
                break
    return found


def keep(store: Registry, calibration: Calibration) -> str:
    """Keep it as the registry's report about the base; the digest of the object."""
    return store.put_report("base", KIND, calibration.to_dict())


def share(fraction: float) -> str:
    """A small fraction as percent with two digits that matter: 0.0123 -> "1.2%"."""
    return f"{100 * fraction:.2g}%"
