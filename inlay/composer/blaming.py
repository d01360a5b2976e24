"""Blame: every member of a composed model alone, and the model without each, in one loaded model.

Nothing is loaded twice and no model is rebuilt: a stack's member is silenced by its gate, a merge is made
again without its input and put into a spare slot, an expert is masked while the router stays as it was
fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inlay.composer.ablations import AblatedModel, Ablation
from inlay.composer.measure import GENERAL, SuiteLike, suite_of
from inlay.composer.model import BaseLike, ComposedModel, compose
from inlay.composer.plan import TreeWalk
from inlay.composer.removal import Node, allowed_of, alone, members_of, name_of, without
from inlay.composer.slots import MergedSlot, Slot
from inlay.errors import InputError
from inlay.evals.blame import BlameReport, Measured, Part
from inlay.evals.blame import blame as blamed
from inlay.evals.cache import Cache
from inlay.evals.decoding import Decoding
from inlay.evals.inference import Chat
from inlay.evals.ledger import Say, scored
from inlay.evals.scoring import evaluate_model, library_versions, protocol_of
from inlay.evals.suites import Suite
from inlay.registry import Lock, Registry, Version
from inlay.registry.canonical import digest_of_json

BASE = Ablation()
KIND = "blame"
"""What the registry calls the reports, and the cache the outcomes."""


def blame(
    model: ComposedModel | str,
    *,
    general: Sequence[SuiteLike] = (GENERAL,),
    target: Sequence[SuiteLike] = (),
    deep: bool = False,
    store: Registry | None = None,
    base: BaseLike = None,
    say: Say | None = None,
) -> BlameReport:
    """Which member of a composed model, or of what a reference names, costs what; kept in the store.

    Members are those of the recipe's root; with `deep` the adapters themselves, however nested. Scores of the
    base, of the whole and of members that are plain versions are taken from the registry and put there; the
    others are in the report only, and in the cache until then, so that an interrupted blame goes on.
    Raises InputError for an adapter run by PEFT, a suite that is graded, a router that cannot be masked.
    """
    if isinstance(model, str):
        model = compose(model, store=store, base=base)
    store = store or model.store
    suites, targets = [suite_of(s, store) for s in general], [suite_of(s, store) for s in target]
    for suite in (*suites, *targets):
        if suite.graded:
            raise InputError(
                f"blame counts items that are right or wrong, and {suite.name} is graded by {suite.metric}",
                fix="name a suite with another metric",
            )
    if model.plan.alone is not None:
        raise InputError(
            f"{model.target.ref} is one adapter, run by PEFT, and has no members to blame",
            fix="see what it costs with `inlay forget`",
        )
    if model.plan.slots and not model._held:
        raise InputError(
            f"{model.target.ref} was detached and cannot answer", fix="compose it again, or swap to it"
        )
    layout = _Layout(store, model.target, deep=deep)
    with AblatedModel(model, layout.ablations, layout.slots) as ablated:
        scores = _Scores(ablated, store, layout, model, say)
        measured = {
            role: [scores.of(suite) for suite in each]
            for role, each in (("general", suites), ("target", targets))
        }

    def of(ablation: Ablation) -> Measured:
        return Measured(*([found[ablation] for found in measured[role]] for role in ("general", "target")))

    report = blamed(
        [Part(*said, of(apart), of(rest)) for said, apart, rest in layout.members],
        base=of(BASE),
        whole=of(layout.whole),
        general=suites,
        target=targets,
        subject=model.target.ref,
        base_weights=model.target.base.weights,
        kind=layout.kind,
        passes=scores.passes,
        remembered=scores.remembered,
    )
    store.put_report(model.target.digest, KIND, report.to_dict())
    return report


class _Layout:
    """What has to be measured of a target. `members`: (name, path, weight), alone, without."""

    def __init__(self, store: Registry, target: Lock | Version, *, deep: bool) -> None:
        tree: Node = (
            target.tree
            if isinstance(target, Lock)
            else {"use": target.digest, "name": target.ref, "weight": 1.0}
        )
        self.kind = next(key for key in ("use", "stack", "merge", "route") if key in tree)
        self._walk = TreeWalk(
            store, (target.provenance or {}).get("merges", {}) if isinstance(target, Lock) else {}
        )
        self.whole = self._ablation(tree)
        members = members_of(tree, deep=deep)
        if not members:
            raise InputError(f"{target.ref} has no members to blame, it is the base")
        names = [name_of(node) for _, _, node in members]
        self.members = [
            (
                (
                    name if names.count(name) == 1 else f"{name} ({steps})",
                    steps,
                    float(node.get("weight", 1.0)),
                ),
                self._ablation(alone(tree, path)),
                self._ablation(without(tree, path)),
            )
            for name, (path, steps, node) in zip(names, members, strict=True)
        ]
        self.routers = [route.router for route in self._walk.routes]
        self.slots: dict[str, Slot | MergedSlot] = {slot.digest: slot for slot in self._walk.slots}
        pairs = [ablation for _, apart, rest in self.members for ablation in (apart, rest)]
        self.ablations = list(dict.fromkeys([BASE, self.whole, *pairs]))
        """Every ablation, once: the base first, then the whole."""

    def _ablation(self, tree: Node) -> Ablation:
        walk = self._walk
        walk.leaves, walk.routes = [], []
        walk.walk(tree, 1.0, (), "")
        return Ablation.of(walk.leaves, walk.slots, allowed_of(tree))

    def signature(self, ablation: Ablation) -> dict[str, Any]:
        """What an ablation says, in plain JSON: equal for equal ablations of any variant."""
        return {
            "terms": [[digest, weight, when] for digest, weight, when in ablation.terms],
            "allowed": [[route, allowed, self.routers[route]] for route, allowed in ablation.allowed],
        }


class _Scores:
    """Scores ablations on a suite, each from where it is known: the registry, the cache, or the model."""

    def __init__(
        self, ablated: AblatedModel, store: Registry, layout: _Layout, model: ComposedModel, say: Say | None
    ) -> None:
        self.ablated, self.store, self.layout, self.model, self.say = ablated, store, layout, model, say
        self.cache = Cache.of_environment()
        self.passes = self.remembered = 0

    def of(self, suite: Suite) -> dict[Ablation, tuple[bool, ...]]:
        """Outcomes of each ablation, in item order. What is measured is kept at once."""
        found: dict[Ablation, tuple[bool, ...]] = {}
        names = {ablation: self._name(ablation, suite) for ablation in self.layout.ablations}
        for ablation in self.layout.ablations:
            known = self._registered(ablation, suite)
            if known is None and self._subject(ablation) is None:
                known = _kept(self.cache, names[ablation], len(suite))
            if known is not None:
                found[ablation] = known
        self.remembered += len(found)
        missing = [ablation for ablation in self.layout.ablations if ablation not in found]
        self.passes += len(missing)
        self.ablated.expected = list(missing)
        for ablation in missing:
            found[ablation] = self._measured(ablation, suite, len(missing))
            self.ablated.expected.remove(ablation)
            if self._subject(ablation) is None:
                self.cache.write(KIND, names[ablation], bytes(b"01"[right] for right in found[ablation]))
        return found

    def _measured(self, ablation: Ablation, suite: Suite, count: int) -> tuple[bool, ...]:
        chat, subject = self.ablated.chat(ablation), self._subject(ablation)
        what = f"{self.model.target.ref} on {suite.name}, {count} ways"
        say = self.say
        if subject is not None:
            ref, digest = subject
            inner = (lambda _what, done, total: say(what, done, total)) if say else None
            result = scored(chat, suite, subject=digest, label=ref, store=self.store, say=inner)
        else:
            progress = (lambda done, total: say(what, done, total)) if say else None
            result = evaluate_model(chat, suite, label=what, progress=progress)
        return tuple(bool(right) for right in result.outcomes)

    def _subject(self, ablation: Ablation) -> tuple[str, str] | None:
        """(label, subject) of an ablation the registry knows: the base, the whole, a version by itself."""
        if ablation == BASE:
            return "base", "base"
        if ablation == self.layout.whole:
            return self.model.target.ref, self.model.target.digest
        slot = None if ablation.only is None else self.layout.slots[ablation.only]
        return (slot.ref, slot.digest) if isinstance(slot, Slot) else None

    def _registered(self, ablation: Ablation, suite: Suite) -> tuple[bool, ...] | None:
        """The outcomes that the registry holds under the same suite, metric, base and protocol."""
        subject = self._subject(ablation)
        if subject is None:
            return None
        chat: Chat = self.model.base_chat
        protocol = digest_of_json(protocol_of(chat, suite, Decoding()))
        for record in self.store.evals(subject=subject[1], suite=suite.digest, protocol=protocol):
            if (
                record.metric == suite.metric
                and record.base_weights == chat.fingerprint.weights
                and record.base_prompt == chat.fingerprint.prompt
            ):
                return tuple(bool(right) for right in record.outcomes)
        return None

    def _name(self, ablation: Ablation, suite: Suite) -> str:
        chat = self.model.base_chat
        key = {
            "ablation": self.layout.signature(ablation),
            "suite": suite.digest,
            "metric": suite.metric,
            "weights": chat.fingerprint.weights,
            "protocol": protocol_of(chat, suite, Decoding()),
            "device": chat.device,
            "libraries": library_versions(),
        }
        return digest_of_json(key).removeprefix("sha256:")


def _kept(cache: Cache, name: str, items: int) -> tuple[bool, ...] | None:
    """Outcomes that the cache holds, one byte an item: `0` wrong, `1` right."""
    held = cache.read(KIND, name)
    return None if held is None or len(held) != items else tuple(byte == ord("1") for byte in held)
