"""Blame: every member of a composed model alone, and the model without each, in one loaded model.

Nothing is loaded twice and no model is rebuilt: a stack's member is silenced by its gate, a merge is made
again without its input and put into a spare slot, an expert is masked while the router stays as it was
fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inlay.composer.measure import GENERAL, SuiteLike, suite_of
from inlay.composer.model import BaseLike, ComposedModel, compose
from inlay.composer.plan import TreeWalk
from inlay.composer.removal import Node, allowed_of, alone, members_of, name_of, without
from inlay.composer.slots import MergedSlot, Slot
from inlay.composer.voices import Choir, Voice
from inlay.errors import InputError
from inlay.evals.blame import BlameReport, Heard, Part
from inlay.evals.blame import blame as blamed
from inlay.evals.cache import Cache
from inlay.evals.decoding import Decoding
from inlay.evals.inference import Chat
from inlay.evals.ledger import Say, scored
from inlay.evals.scoring import evaluate_model, library_versions, protocol_of
from inlay.evals.suites import Suite
from inlay.registry import Lock, Registry, Version
from inlay.registry.canonical import digest_of_json

BASE = Voice()
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
    with Choir(model, layout.voices, layout.slots) as choir:
        ear = _Ear(choir, store, layout, model, say)
        heard = {
            role: [ear.listen(suite) for suite in each]
            for role, each in (("general", suites), ("target", targets))
        }

    def of(voice: Voice) -> Heard:
        return Heard(*([found[voice] for found in heard[role]] for role in ("general", "target")))

    report = blamed(
        [Part(*said, of(apart), of(rest)) for said, apart, rest in layout.members],
        base=of(BASE),
        whole=of(layout.whole),
        general=suites,
        target=targets,
        subject=model.target.ref,
        base_weights=model.target.base.weights,
        kind=layout.kind,
        passes=ear.passes,
        remembered=ear.remembered,
    )
    store.put_report(model.target.digest, KIND, report.to_dict())
    return report


class _Layout:
    """What has to be heard of a target. `members`: (name, path, weight), alone, without."""

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
        self.whole = self._voice(tree)
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
                self._voice(alone(tree, path)),
                self._voice(without(tree, path)),
            )
            for name, (path, steps, node) in zip(names, members, strict=True)
        ]
        self.routers = [route.router for route in self._walk.routes]
        self.slots: dict[str, Slot | MergedSlot] = {slot.digest: slot for slot in self._walk.slots}
        pairs = [voice for _, apart, rest in self.members for voice in (apart, rest)]
        self.voices = list(dict.fromkeys([BASE, self.whole, *pairs]))
        """Every way to speak, once: the base first, then the whole."""

    def _voice(self, tree: Node) -> Voice:
        walk = self._walk
        walk.leaves, walk.routes = [], []
        walk.walk(tree, 1.0, (), "")
        return Voice.of(walk.leaves, walk.slots, allowed_of(tree))

    def signature(self, voice: Voice) -> dict[str, Any]:
        """What a voice says, in plain JSON: equal for equal voices of any variant."""
        return {
            "terms": [[digest, weight, when] for digest, weight, when in voice.terms],
            "allowed": [[route, allowed, self.routers[route]] for route, allowed in voice.allowed],
        }


class _Ear:
    """Hears every voice on a suite, each from where it is known: the registry, the cache, or the model."""

    def __init__(
        self, choir: Choir, store: Registry, layout: _Layout, model: ComposedModel, say: Say | None
    ) -> None:
        self.choir, self.store, self.layout, self.model, self.say = choir, store, layout, model, say
        self.cache = Cache.of_environment()
        self.passes = self.remembered = 0

    def listen(self, suite: Suite) -> dict[Voice, tuple[bool, ...]]:
        """Outcomes of each voice, in item order. What is heard is kept at once."""
        found: dict[Voice, tuple[bool, ...]] = {}
        names = {voice: self._name(voice, suite) for voice in self.layout.voices}
        for voice in self.layout.voices:
            known = self._registered(voice, suite)
            if known is None and self._subject(voice) is None:
                known = _kept(self.cache, names[voice], len(suite))
            if known is not None:
                found[voice] = known
        self.remembered += len(found)
        missing = [voice for voice in self.layout.voices if voice not in found]
        self.passes += len(missing)
        self.choir.expected = list(missing)
        for voice in missing:
            found[voice] = self._measured(voice, suite, len(missing))
            self.choir.expected.remove(voice)
            if self._subject(voice) is None:
                self.cache.write(KIND, names[voice], bytes(b"01"[right] for right in found[voice]))
        return found

    def _measured(self, voice: Voice, suite: Suite, count: int) -> tuple[bool, ...]:
        chat, subject = self.choir.chat(voice), self._subject(voice)
        what = f"{self.model.target.ref} on {suite.name}, {count} ways"
        say = self.say
        if subject is not None:
            ref, digest = subject
            whisper = (lambda _what, done, total: say(what, done, total)) if say else None
            result = scored(chat, suite, subject=digest, label=ref, store=self.store, say=whisper)
        else:
            progress = (lambda done, total: say(what, done, total)) if say else None
            result = evaluate_model(chat, suite, label=what, progress=progress)
        return tuple(bool(right) for right in result.outcomes)

    def _subject(self, voice: Voice) -> tuple[str, str] | None:
        """(label, subject) of a voice that the registry knows: the base, the whole, a version by itself."""
        if voice == BASE:
            return "base", "base"
        if voice == self.layout.whole:
            return self.model.target.ref, self.model.target.digest
        slot = None if voice.only is None else self.layout.slots[voice.only]
        return (slot.ref, slot.digest) if isinstance(slot, Slot) else None

    def _registered(self, voice: Voice, suite: Suite) -> tuple[bool, ...] | None:
        """The outcomes that the registry holds under the same suite, metric, base and protocol."""
        subject = self._subject(voice)
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

    def _name(self, voice: Voice, suite: Suite) -> str:
        chat = self.model.base_chat
        key = {
            "voice": self.layout.signature(voice),
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
