"""A lock resolved against the registry: which adapters go into which slots, when each speaks, what it costs.

Pure data, no torch: a plan can be made and printed on a machine without a device.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inlay.composer.factors import recorded_weights, shapes_of, sizes_of
from inlay.errors import BaseMismatch, InputError, IntegrityError
from inlay.registry import BaseRef, Lock, Registry, Version
from inlay.registry.lookup import children
from inlay.registry.recipes import BASE

Condition = tuple[int, int]
"""(number of a route, number of its expert): the leaf speaks only where that route chose that expert."""


@dataclass(frozen=True)
class Slot:
    """One adapter in the bank: its version, the rank it has in each module, its bytes as stored."""

    version: Version
    ranks: Mapping[str, int]
    nbytes: int


@dataclass(frozen=True)
class Leaf:
    """One place of the recipe where an adapter stands. A slot's gate is the sum over its leaves."""

    slot: int
    weight: float
    conditions: tuple[Condition, ...]
    path: str


@dataclass(frozen=True)
class RouteNode:
    """A choice made for each request: between its experts, or for none of them (the base)."""

    path: str
    by: str
    experts: tuple[str, ...]
    router: str | None


@dataclass(frozen=True)
class Plan:
    """What will be loaded. `flops_per_token`: multiply-adds times two that the bank adds to a forward."""

    ref: str
    digest: str
    base: BaseRef
    slots: tuple[Slot, ...]
    leaves: tuple[Leaf, ...]
    routes: tuple[RouteNode, ...]
    nbytes: int
    flops_per_token: int
    warnings: tuple[str, ...]

    @property
    def routed(self) -> bool:
        return bool(self.routes)

    def gate(self, choices: tuple[int | None, ...] = ()) -> list[float]:
        """The gate of each slot, given what each route chose (None: the base)."""
        values = [0.0] * len(self.slots)
        for leaf in self.leaves:
            if all(choices[route] == expert for route, expert in leaf.conditions):
                values[leaf.slot] += leaf.weight
        return values

    def to_dict(self) -> dict[str, Any]:
        """As `inlay plan --json` prints it."""
        return {
            "ref": self.ref,
            "digest": self.digest,
            "base": {"name": self.base.name, "weights": self.base.weights, "prompt": self.base.prompt},
            "slots": [
                {
                    "ref": s.version.ref,
                    "digest": s.version.digest,
                    "rank": max(s.ranks.values(), default=0),
                    "modules": len(s.ranks),
                    "bytes": s.nbytes,
                }
                for s in self.slots
            ],
            "leaves": [
                {
                    "ref": self.slots[x.slot].version.ref,
                    "weight": x.weight,
                    "path": x.path,
                    "when": x.conditions,
                }
                for x in self.leaves
            ],
            "routes": [
                {"path": r.path, "by": r.by, "experts": r.experts, "router": r.router} for r in self.routes
            ],
            "bytes": self.nbytes,
            "flops_per_token": self.flops_per_token,
            "warnings": self.warnings,
        }


def make_plan(store: Registry, target: Lock | Version) -> Plan:
    """Check everything about `target` that can be known without loading it, and lay it out.

    Raises InputError for a member that cannot be composed or an operator that this version does not
    have, BaseMismatch for members of different bases, IntegrityError for bytes that changed.
    """
    layout = _Layout(store)
    tree = target.tree if isinstance(target, Lock) else {"use": target.digest, "name": target.ref}
    layout.walk(tree, 1.0, (), "")
    for slot in layout.slots:
        if slot.version.base.weights != target.base.weights:
            raise BaseMismatch(
                f"all members of {target.ref} must share its base, and {slot.version.ref} was made for "
                f"{slot.version.base.name}"
            )
    return Plan(
        ref=target.ref,
        digest=target.digest,
        base=target.base,
        slots=tuple(layout.slots),
        leaves=tuple(layout.leaves),
        routes=tuple(layout.routes),
        nbytes=sum(slot.nbytes for slot in layout.slots),
        flops_per_token=layout.flops,
        warnings=tuple(layout.warnings()),
    )


class _Layout:
    """One walk over a pinned tree."""

    def __init__(self, store: Registry) -> None:
        self.store = store
        self.slots: list[Slot] = []
        self.leaves: list[Leaf] = []
        self.routes: list[RouteNode] = []
        self.flops = 0
        self._slot_of: dict[str, int] = {}

    def walk(
        self, node: Mapping[str, Any], weight: float, conditions: tuple[Condition, ...], path: str
    ) -> None:
        weight *= float(node.get("weight", 1.0))
        if "use" in node:
            if node["use"] != BASE:
                self.leaves.append(Leaf(self._slot(node), weight, conditions, path))
        elif "stack" in node:
            for step, member in children(node):
                self.walk(member, weight, conditions, _below(path, step))
        elif "route" in node:
            route = node["route"]
            number = len(self.routes)
            experts = tuple(_label(expert) for expert in route["experts"])
            self.routes.append(RouteNode(path, route["by"], experts, route.get("router")))
            for i, (step, expert) in enumerate(children(node)):
                self.walk(expert, weight, (*conditions, (number, i)), _below(path, step))
        else:
            raise InputError(
                f"this version composes by stack and route, and {path or 'the recipe'} is a merge",
                fix="write a stack, or a route where the members disturb each other",
            )

    def _slot(self, node: Mapping[str, Any]) -> int:
        digest = node["use"]
        if digest not in self._slot_of:
            version = self.store.resolve(node["name"])
            if not isinstance(version, Version) or version.digest != digest:
                raise InputError(f"{node['name']} must be the adapter version {digest[:19]}…, and is not")
            self._slot_of[digest] = len(self.slots)
            self.slots.append(self._measured(version))
        return self._slot_of[digest]

    def _measured(self, version: Version) -> Slot:
        if version.state == "purged":
            raise IntegrityError(
                f"{version.ref} was purged, its bytes are gone", fix=f"see `inlay log {version.name}`"
            )
        config = json.loads(self.store.read_file(version, "adapter_config.json"))
        weights = self.store.read_file(version, "adapter_model.safetensors")
        sizes = sizes_of(
            config, shapes_of(weights), version.ref, weight=recorded_weights(version, self.store)
        )
        self.flops += sum(size.flops for size in sizes.values())
        return Slot(version, {module: size.rank for module, size in sizes.items()}, len(weights))

    def warnings(self) -> list[str]:
        found = []
        totals: dict[int, float] = {}
        for leaf in self.leaves:
            if not leaf.conditions:
                totals[leaf.slot] = totals.get(leaf.slot, 0.0) + 1
            if leaf.weight == 0.0:
                found.append(
                    f"{self.slots[leaf.slot].version.ref} has weight 0 and adds nothing ({leaf.path})"
                )
        for number, count in totals.items():
            if count > 1:
                ref = self.slots[number].version.ref
                found.append(f"{ref} stands {count:g} times in a stack: its delta is added each time")
        for slot in self.slots:
            if slot.version.state != "active":
                found.append(f"{slot.version.ref} was {slot.version.state}")
        return found


def _below(path: str, step: str) -> str:
    return f"{path}.{step}" if path else step


def _label(node: Mapping[str, Any]) -> str:
    """How an expert is called in reports: its reference, or its members' joined."""
    if "name" in node:
        return str(node["name"])
    return "+".join(_label(child) for _, child in children(node))
