"""Blame: every member of a composed model alone, and the model without each, in one loaded model.

Nothing is loaded twice and no model is rebuilt: a stack's member is silenced by its gate, a merge is made
again without its input and put into a spare slot, an expert is masked while the router stays as it was
fitted.
"""

from __future__ import annotations

from collections.abc import Sequence

from inlay.composer.ablation_scores import BASE, AblationScores, subjects_of
from inlay.composer.ablations import AblatedModel, Ablation
from inlay.composer.measure import GENERAL, SuiteLike, suite_of
from inlay.composer.model import BaseLike, ComposedModel, compose
from inlay.composer.plan import TreeWalk
from inlay.composer.removal import Node, allowed_of, alone, members_of, name_of, without
from inlay.composer.slots import MergedSlot, Slot
from inlay.errors import InputError
from inlay.evals.blame import BlameReport, Measured, Part
from inlay.evals.blame import blame as blamed
from inlay.evals.ledger import Say
from inlay.registry import Lock, Registry, Version

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
        scores = AblationScores(ablated, KIND, layout.subjects, store=store, say=say)
        measured = {
            role: [scores.of(suite, layout.ablations) for suite in each]
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
        self.slots: dict[str, Slot | MergedSlot] = {slot.digest: slot for slot in self._walk.slots}
        pairs = [ablation for _, apart, rest in self.members for ablation in (apart, rest)]
        self.ablations = list(dict.fromkeys([BASE, self.whole, *pairs]))
        """Every ablation, once: the base first, then the whole."""
        self.subjects = {
            **subjects_of(self.ablations, self.slots),
            self.whole: (target.ref, target.digest),
            BASE: ("base", "base"),
        }

    def _ablation(self, tree: Node) -> Ablation:
        walk = self._walk
        walk.leaves, walk.routes = [], []
        walk.walk(tree, 1.0, (), "")
        return Ablation.of(walk.leaves, walk.slots, allowed_of(tree))
