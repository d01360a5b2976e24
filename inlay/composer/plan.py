"""A lock resolved against the registry: which adapters go into which slots, when each speaks, what it costs.

Pure data, no torch: a plan can be made and printed on a machine without a device.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from inlay.composer.alone import refusal_alone
from inlay.composer.factors import recorded_weights, refusal, shapes_of, sizes_of
from inlay.composer.merging.methods import Settings
from inlay.composer.slots import MergedSlot, MergeInput, Slot, merged_sizes
from inlay.composer.truncation import said_of
from inlay.errors import BaseMismatch, InputError, IntegrityError
from inlay.registry import BaseRef, Lock, Registry, Version
from inlay.registry.canonical import digest_of_json
from inlay.registry.kinds import ALONE, KINDS
from inlay.registry.lookup import children
from inlay.registry.module_names import HEADS, spellings_of
from inlay.registry.recipes import BASE, TOKEN_ROUTERS

DTYPES = {"F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2)}
"""What a bank computes in: safetensors' name of it, torch's, and bytes."""

Condition = tuple[int, int]
"""(number of a route, number of its expert): the leaf speaks only where that route chose that expert."""


@dataclass(frozen=True)
class Leaf:
    """One place of the recipe where an adapter stands. A slot's gate is the sum over its leaves."""

    slot: int
    weight: float
    conditions: tuple[Condition, ...]
    path: str


@dataclass(frozen=True)
class RouteNode:
    """A choice made for each request, or each token: between its experts, or for none of them (the base)."""

    path: str
    by: str
    experts: tuple[str, ...]
    router: str | None
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def by_tokens(self) -> bool:
        """Is it made for each token and module?"""
        return self.by in TOKEN_ROUTERS


@dataclass(frozen=True)
class Buffer:
    """What the bank keeps on the device for one module: numbers of both factors of all slots together, and
    the dtype that the base's files have there."""

    numbers: int
    dtype: str

    @property
    def nbytes(self) -> int:
        return self.numbers * DTYPES[self.dtype][1]


@dataclass(frozen=True)
class Plan:
    """What will be loaded. `flops_per_token`: multiply-adds times two that the bank adds to a forward.
    `nbytes` is as stored; `buffers` what each module takes on the device (of a merge, at most)."""

    ref: str
    digest: str
    base: BaseRef
    slots: tuple[Slot | MergedSlot, ...]
    leaves: tuple[Leaf, ...]
    routes: tuple[RouteNode, ...]
    nbytes: int
    flops_per_token: int
    warnings: tuple[str, ...]
    buffers: Mapping[str, Buffer] = field(default_factory=dict)

    @property
    def device_nbytes(self) -> int:
        """Bytes of the bank on the device, where the base is loaded in the dtype of its files."""
        return sum(buffer.nbytes for buffer in self.buffers.values())

    @property
    def device_nbytes_float32(self) -> int:
        """Bytes of the bank where the base is loaded in float32, as by default on a CPU."""
        return sum(4 * buffer.numbers for buffer in self.buffers.values())

    @property
    def routed(self) -> bool:
        return bool(self.routes)

    @property
    def alone(self) -> Slot | None:
        """The one member, where it has no factors: PEFT runs it, and there is no bank."""
        return next((slot for slot in self.slots if isinstance(slot, Slot) and slot.alone), None)

    def gate(self, choices: tuple[int | None, ...] = ()) -> list[float]:
        """The gate of each slot, given what each route chose (None: the base); without what routes of tokens
        give."""
        values = [0.0] * len(self.slots)
        for leaf in self.leaves:
            if self._speaks(leaf, choices) and self.token_expert(leaf) is None:
                values[leaf.slot] += leaf.weight
        return values

    def token_expert(self, leaf: Leaf) -> Condition | None:
        """The condition of a leaf that hangs on a route of tokens; a leaf has one at most."""
        return next((c for c in leaf.conditions if self.routes[c[0]].by_tokens), None)

    def token_weights(self, route: int, choices: tuple[int | None, ...] = ()) -> list[float]:
        """The weights of the leaves under a route of tokens, in the plan's order, 0 where another route chose
        something else."""
        return [
            leaf.weight if self._speaks(leaf, choices) else 0.0
            for leaf in self.leaves
            if any(number == route for number, _ in leaf.conditions)
        ]

    def _speaks(self, leaf: Leaf, choices: tuple[int | None, ...]) -> bool:
        return all(
            self.routes[route].by_tokens or choices[route] == expert for route, expert in leaf.conditions
        )

    def to_dict(self) -> dict[str, Any]:
        """As `inlay plan --json` prints it."""
        return {
            "ref": self.ref,
            "digest": self.digest,
            "base": {"name": self.base.name, "weights": self.base.weights, "prompt": self.base.prompt},
            "slots": [
                {
                    "ref": s.ref,
                    "digest": s.digest,
                    "rank": max(s.ranks.values(), default=0),
                    "modules": len(s.sizes),
                    "bytes": s.nbytes,
                    "exactness": s.exactness,
                    "merge": s.to_dict() if isinstance(s, MergedSlot) else None,
                }
                for s in self.slots
            ],
            "leaves": [
                {
                    "ref": self.slots[x.slot].ref,
                    "weight": x.weight,
                    "path": x.path,
                    "when": x.conditions,
                }
                for x in self.leaves
            ],
            "routes": [
                {"path": r.path, "by": r.by, "experts": r.experts, "router": r.router, "params": r.params}
                for r in self.routes
            ],
            "through_peft": self.alone is not None,
            "bytes": self.nbytes,
            "device": {
                "bytes": self.device_nbytes,
                "bytes_float32": self.device_nbytes_float32,
                "modules": {
                    module: {"bytes": buffer.nbytes, "dtype": DTYPES[buffer.dtype][0]}
                    for module, buffer in self.buffers.items()
                },
            },
            "flops_per_token": self.flops_per_token,
            "warnings": self.warnings,
        }


def make_plan(store: Registry, target: Lock | Version) -> Plan:
    """Check everything about `target` that can be known without loading it, and lay it out.

    Raises InputError for a member that cannot be composed, a merge that its method does not allow or a route
    inside one, BaseMismatch for members of different bases, IntegrityError for bytes that changed.
    """
    known = (target.provenance or {}).get("merges", {}) if isinstance(target, Lock) else {}
    layout = TreeWalk(store, known)
    tree = target.tree if isinstance(target, Lock) else {"use": target.digest, "name": target.ref}
    layout.walk(tree, 1.0, (), "")
    layout.refuse_company()
    layout.refuse_heads()
    for slot in layout.slots:
        for version in slot.versions:
            if version.base.weights != target.base.weights:
                raise BaseMismatch(
                    f"all members of {target.ref} must share its base, and {version.ref} was made for "
                    f"{version.base.name}"
                )
    return Plan(
        ref=target.ref,
        digest=target.digest,
        base=target.base,
        slots=tuple(layout.slots),
        leaves=tuple(layout.leaves),
        routes=tuple(layout.routes),
        nbytes=sum(slot.nbytes for slot in layout.slots),
        flops_per_token=sum(size.flops for slot in layout.slots for size in slot.sizes.values()),
        warnings=tuple(layout.warnings()),
        buffers=_buffers(store, target.base, layout.slots),
    )


def _buffers(store: Registry, base: BaseRef, slots: list[Slot | MergedSlot]) -> dict[str, Buffer]:
    """What the slots take of each module, side by side."""
    numbers: dict[str, int] = {}
    for slot in slots:
        for module, size in slot.sizes.items():
            if size.rank:
                numbers[module] = numbers.get(module, 0) + size.rank * (size.inputs + size.outputs)
    if not numbers:
        return {}
    tensors = store.base_tensors(base.weights)
    # A quantised weight is computed in the precision of those that are not.
    computed = next((dtype for dtype, _ in tensors.values() if dtype in DTYPES), "F32")
    found = {}
    for module in sorted(numbers):
        dtype = next((tensors[n][0] for n in spellings_of(f"{module}.weight") if n in tensors), computed)
        found[module] = Buffer(numbers[module], dtype if dtype in DTYPES else computed)
    return found


class TreeWalk:
    """One walk over a pinned tree. `known`: what the lock's making found out about its merges."""

    def __init__(self, store: Registry, known: Mapping[str, Any]) -> None:
        self.store = store
        self.known = known
        self.slots: list[Slot | MergedSlot] = []
        self.leaves: list[Leaf] = []
        self.routes: list[RouteNode] = []
        self._slot_of: dict[str, int] = {}
        self._read: dict[str, Slot] = {}

    def walk(
        self, node: Mapping[str, Any], weight: float, conditions: tuple[Condition, ...], path: str
    ) -> None:
        weight *= float(node.get("weight", 1.0))
        if "use" in node:
            if node["use"] != BASE:
                self.leaves.append(Leaf(self._place(self._version(node)), weight, conditions, path))
        elif "stack" in node:
            for step, member in children(node):
                self.walk(member, weight, conditions, _below(path, step))
        elif "merge" in node:
            self.leaves.append(Leaf(self._place(self._merged(node, path)), weight, conditions, path))
        else:
            route = node["route"]
            number = len(self.routes)
            experts = tuple(label_of(expert) for expert in route["experts"])
            self.routes.append(
                RouteNode(path, route["by"], experts, route.get("router"), route.get("params", {}))
            )
            if self.routes[number].by_tokens and any(self.routes[outer].by_tokens for outer, _ in conditions):
                raise InputError(
                    f"a token has one route, and {path} is a route by {route['by']} inside of another",
                    fix="put the experts of both into one, or route one of them by request",
                )
            for i, (step, expert) in enumerate(children(node)):
                self.walk(expert, weight, (*conditions, (number, i)), _below(path, step))

    def refuse_company(self) -> None:
        """InputError where an adapter without factors is not the only one, or is to be weighed."""
        for slot in self.slots:
            if isinstance(slot, Slot) and slot.alone:
                if len(self.leaves) > 1 or self.routes:
                    raise _needs_factors(slot)
                if self.leaves[0].weight != 1.0:
                    raise InputError(
                        f"{slot.ref} must have weight 1, and has {self.leaves[0].weight:g}: {slot.alone}",
                        fix="leave its weight out",
                    )

    def refuse_heads(self) -> None:
        """InputError where rows of one batch would want different output heads: whoever scores answers asks
        the head for single positions, and nobody knows any more whose they are."""
        if not self.routes:
            return
        for slot in self.slots:
            for module in slot.sizes:
                if module.rpartition(".")[2] in HEADS:
                    raise InputError(
                        f"a route needs members that leave the output head alone, and {slot.ref} adapts "
                        f"{module}",
                        fix="use it in a stack or a merge without a route, or train it without that module",
                    )

    def _place(self, slot: Slot | MergedSlot) -> int:
        if slot.digest not in self._slot_of:
            self._slot_of[slot.digest] = len(self.slots)
            self.slots.append(slot)
        return self._slot_of[slot.digest]

    def _version(self, node: Mapping[str, Any]) -> Slot:
        digest = node["use"]
        if digest not in self._read:
            version = self.store.resolve(node["name"])
            if not isinstance(version, Version) or version.digest != digest:
                raise InputError(f"{node['name']} must be the adapter version {digest[:19]}…, and is not")
            self._read[digest] = self._measured(version)
        return self._read[digest]

    def _measured(self, version: Version) -> Slot:
        if version.state == "purged":
            raise IntegrityError(
                f"{version.ref} was purged, its bytes are gone", fix=f"see `inlay log {version.name}`"
            )
        config = json.loads(self.store.read_file(version, "adapter_config.json"))
        weights = self.store.read_file(version, "adapter_model.safetensors")
        reason = refusal(config)
        if reason is None:
            try:
                known = recorded_weights(version, self.store)
                sizes = sizes_of(config, shapes_of(weights), version.ref, weight=known)
                return Slot(version, sizes, len(weights))
            except InputError as error:
                if version.exactness != ALONE:
                    raise
                reason = error.message
        hindered = refusal_alone(config)
        if hindered is not None:
            raise InputError(f"{version.ref} cannot be composed: {hindered}")
        return Slot(version, {}, len(weights), alone=reason)

    def _merged(self, node: Mapping[str, Any], path: str) -> MergedSlot:
        inputs = []
        for step, member in children(node):
            parts: dict[str, tuple[Slot | MergedSlot, float]] = {}
            self._sum({**member, "weight": 1.0}, 1.0, parts, _below(path, step))
            inputs.append(MergeInput(tuple(parts.values()), float(member.get("weight", 1.0))))
        settings = Settings.at(
            path,
            [each.weight for each in inputs],
            node["method"],
            params=node["params"],
            space=node["space"],
            rank=node["rank"],
            energy=node.get("energy"),
            seed=node["seed"],
        )
        digest = digest_of_json(
            {
                "merge": [
                    [each.weight, [[part.digest, weight] for part, weight in each.parts]] for each in inputs
                ],
                "method": settings.method.name,
                "params": dict(settings.params),
                "space": settings.space,
                "rank": settings.rank,
                "energy": settings.energy,
                "seed": settings.seed if settings.method.random else 0,
            }
        )
        known = self.known.get(digest, {})
        return MergedSlot(
            digest=digest,
            settings=settings,
            inputs=tuple(inputs),
            sizes=merged_sizes(inputs, settings, path),
            versions=tuple(self._versions(node)),
            path=path,
            truncation=known.get("truncation"),
            notes=tuple(known.get("notes", ())),
        )

    def _sum(
        self,
        node: Mapping[str, Any],
        weight: float,
        parts: dict[str, tuple[Slot | MergedSlot, float]],
        path: str,
    ) -> None:
        """Add what `node` stands for to the sum that one input of a merge is."""
        weight *= float(node.get("weight", 1.0))
        if "stack" in node:
            for step, member in children(node):
                self._sum(member, weight, parts, _below(path, step))
            return
        if "route" in node:
            raise InputError(
                f"a merge makes one adapter for all requests, and {path} is a route, which chooses for each",
                fix="put the merge into the route",
            )
        slot = self._version(node) if "use" in node else self._merged(node, path)
        if isinstance(slot, Slot) and slot.alone:
            raise _needs_factors(slot)
        parts[slot.digest] = (slot, parts.get(slot.digest, (slot, 0.0))[1] + weight)

    def _versions(self, node: Mapping[str, Any]) -> Iterator[Version]:
        """What is used below a node, in the order of the recipe."""
        if "use" in node:
            yield self._version(node).version
        for _, child in children(node):
            yield from self._versions(child)

    def warnings(self) -> list[str]:
        found = []
        totals: dict[int, float] = {}
        for leaf in self.leaves:
            if not leaf.conditions:
                totals[leaf.slot] = totals.get(leaf.slot, 0.0) + 1
            if leaf.weight == 0.0:
                found.append(f"{self.slots[leaf.slot].ref} has weight 0 and adds nothing ({leaf.path})")
        for number, count in totals.items():
            if count > 1:
                ref = self.slots[number].ref
                found.append(f"{ref} stands {count:g} times in a stack: its delta is added each time")
        for slot in self.slots:
            if isinstance(slot, MergedSlot):
                found += [f"{slot.ref}: {note}" for note in slot.notes]
        for version in {version.ref: version for slot in self.slots for version in slot.versions}.values():
            if version.state != "active":
                found.append(f"{version.ref} was {version.state}")
            cut = said_of(version.lineage)
            if cut is not None:
                found.append(f"{version.ref} was {cut}")
        for slot in self.slots:
            if isinstance(slot, Slot) and slot.alone:
                found.append(f"{slot.ref} is run by PEFT, without a bank: {slot.alone}")
        return found


def _needs_factors(slot: Slot) -> InputError:
    kind = KINDS.get(slot.version.kind.upper())
    alone = "use it alone, through PEFT"
    if kind is None or kind.on == "weight":
        alone += ", or register what a rank keeps of it (`inlay add --truncate RANK`)"
    return InputError(f"{slot.ref} cannot be composed with others: {slot.alone}", fix=alone)


def _below(path: str, step: str) -> str:
    return f"{path}.{step}" if path else step


def label_of(node: Mapping[str, Any]) -> str:
    """How an expert is called in reports: its reference, or its members' joined."""
    if "name" in node:
        return str(node["name"])
    return "+".join(label_of(child) for _, child in children(node))
