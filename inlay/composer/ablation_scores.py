"""Outcomes of ablations of one loaded model, each from where it is known: the registry, the cache, or the
model. What is measured is kept at once, so that whoever is interrupted goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from inlay.composer.ablations import AblatedModel, Ablation, Voice
from inlay.composer.slots import Slot
from inlay.evals.cache import Cache
from inlay.evals.decoding import Decoding
from inlay.evals.ledger import Say, scored
from inlay.evals.scoring import Model, evaluate_model, library_versions, protocol_of
from inlay.evals.suites import Suite
from inlay.registry import Registry
from inlay.registry.canonical import digest_of_json

BASE = Ablation()
Subject = tuple[str, str]
"""(label, what the registry knows it by): "base", a version by itself, a lock."""


class AblationScores:
    """`subjects`: the ablations that the registry knows; the others are kept in the cache, as `kind`.

    `passes`: how many ablations of a suite were measured, `remembered` how many more were known.
    """

    def __init__(
        self,
        ablated: AblatedModel,
        kind: str,
        subjects: Mapping[Ablation, Subject],
        *,
        store: Registry,
        say: Say | None = None,
    ) -> None:
        self.ablated, self.model = ablated, ablated.model
        self.kind, self.subjects, self.store, self.say = kind, subjects, store, say
        self.cache = Cache.of_environment()
        self.passes = self.remembered = 0

    def of(self, suite: Suite, ablations: Sequence[Ablation]) -> dict[Ablation, tuple[bool, ...]]:
        """Outcomes of each ablation, in item order."""
        known = {ablation: self.known(ablation, suite) for ablation in ablations}
        found = {ablation: outcomes for ablation, outcomes in known.items() if outcomes is not None}
        self.remembered += len(found)
        missing = [ablation for ablation in known if ablation not in found]
        self.passes += len(missing)
        self.ablated.expected = list(missing)
        for ablation in missing:
            found[ablation] = self._measured(ablation, suite, len(missing))
            self.ablated.expected.remove(ablation)
            if ablation not in self.subjects:
                right = bytes(b"01"[right] for right in found[ablation])
                self.cache.write(self.kind, self._name(ablation, suite), right)
        return found

    def known(self, ablation: Ablation, suite: Suite) -> tuple[bool, ...] | None:
        """The outcomes that nobody has to be asked for; None where there are none."""
        if ablation in self.subjects:
            return registered(self.store, self.model.base_chat, self.subjects[ablation][1], suite)
        held = self.cache.read(self.kind, self._name(ablation, suite))
        return None if held is None or len(held) != len(suite) else tuple(b == ord("1") for b in held)

    def _measured(self, ablation: Ablation, suite: Suite, count: int) -> tuple[bool, ...]:
        chat, subject = self.ablated.chat(ablation), self.subjects.get(ablation)
        what = f"{self.model.target.ref} on {suite.name}, {count} ways"
        say = self.say
        if subject is not None:
            label, digest = subject
            inner = (lambda _what, done, total: say(what, done, total)) if say else None
            result = scored(chat, suite, subject=digest, label=label, store=self.store, say=inner)
        else:
            progress = (lambda done, total: say(what, done, total)) if say else None
            result = evaluate_model(chat, suite, label=what, progress=progress)
        return tuple(bool(right) for right in result.outcomes)

    def _name(self, ablation: Ablation, suite: Suite) -> str:
        chat = self.model.base_chat
        key = {
            "ablation": self._signature(ablation),
            "suite": suite.digest,
            "metric": suite.metric,
            "weights": chat.fingerprint.weights,
            "protocol": protocol_of(chat, suite, Decoding()),
            "device": chat.device,
            "libraries": library_versions(),
        }
        return digest_of_json(key).removeprefix("sha256:")

    def _signature(self, ablation: Ablation) -> dict[str, Any]:
        """What an ablation says, in plain JSON: equal for equal ablations of any model."""
        routes = self.model.plan.routes
        return {
            "terms": [[digest, weight, when] for digest, weight, when in ablation.terms],
            "allowed": [[route, allowed, routes[route].router] for route, allowed in ablation.allowed],
        }


def subjects_of(ablations: Iterable[Ablation], voices: Mapping[str, Voice]) -> dict[Ablation, Subject]:
    """The ablations that are one version by itself."""
    singles = ((ablation, voices[ablation.only]) for ablation in ablations if ablation.only is not None)
    return {ablation: (slot.ref, slot.digest) for ablation, slot in singles if isinstance(slot, Slot)}


def registered(store: Registry, model: Model, subject: str, suite: Suite) -> tuple[bool, ...] | None:
    """The outcomes that the registry holds under the same suite, metric, base and protocol."""
    protocol = digest_of_json(protocol_of(model, suite, Decoding()))
    for record in store.evals(subject=subject, suite=suite.digest, protocol=protocol):
        if (
            record.metric == suite.metric
            and record.base_weights == model.fingerprint.weights
            and record.base_prompt == model.fingerprint.prompt
        ):
            return tuple(bool(right) for right in record.outcomes)
    return None
