"""The routes of a plan at work: what each chooses for a prompt, who may be chosen at all, and the gate that
comes of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from inlay.composer.factors import Adapter
from inlay.composer.plan import Plan, RouteNode
from inlay.composer.routers import ROUTERS, Arrow, Choice, Fitted, Request, Seen
from inlay.composer.routers.request import named
from inlay.composer.token_routes import TokenRoute
from inlay.errors import InputError
from inlay.registry import Registry
from inlay.registry.recipes import BASE

Router = Fitted | Request | Arrow


@dataclass(frozen=True)
class Decision:
    """What one route of a plan chose for one prompt.

    `expert`: its label in the plan, or "base". `confidence` and `scores` as in `Choice`, by label; of a route
    of tokens the expert is the one with the largest share over the prompt's tokens and all modules, and the
    shares stand in the place of probabilities. A route that lies below an expert that was not chosen decides
    nothing that is used.
    """

    path: str
    by: str
    expert: str
    confidence: float | None
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Ask:
    """What a request says beside its prompt. `weights`: how much of each slot of the plan, instead of what
    the recipe says; `expert`: the one it names; `allow`: lists of adapters, each of which must name what the
    request may reach; without any it may reach all."""

    weights: tuple[float, ...] | None = None
    expert: str | None = None
    allow: tuple[frozenset[str], ...] = ()


@dataclass(frozen=True, eq=False)
class Turn:
    """The gate for a batch: a value for each slot of the plan, float32 (rows, slots), and for each route of
    tokens the weights of its leaves, float32 (rows, leaves)."""

    values: torch.Tensor
    tokens: tuple[torch.Tensor, ...] = ()

    @property
    def speaking(self) -> torch.Tensor:
        """Which rows are more than the bare base: bool (rows,)."""
        rows = self.values.ne(0).any(1)
        for weights in self.tokens:
            rows = rows | weights.ne(0).any(1)
        return rows

    def only(self, rows: torch.Tensor) -> Turn:
        return Turn(self.values[rows], tuple(weights[rows] for weights in self.tokens))


@dataclass(frozen=True, eq=False)
class Routing:
    """`routers`: one for each route of the plan; `prototypes`: of those of tokens, by route."""

    plan: Plan
    routers: tuple[Router, ...]
    prototypes: Mapping[int, Mapping[str, torch.Tensor]] = field(default_factory=dict)

    @cached_property
    def reads_states(self) -> bool:
        """Does a route choose by what the bare base makes of a prompt?"""
        return any(isinstance(router, Fitted) and router.reads_states for router in self.routers)

    @cached_property
    def token_routes(self) -> tuple[int, ...]:
        return tuple(number for number, route in enumerate(self.plan.routes) if route.by_tokens)

    def choices(self, seen: Seen, asks: Sequence[Ask]) -> list[tuple[Choice, ...]]:
        """For each prompt what each route chooses; a route of tokens leaves it to the layers."""
        self._refuse_unnamed(asks)
        columns: list[list[Choice]] = []
        for number, (route, router) in enumerate(zip(self.plan.routes, self.routers, strict=True)):
            allowed = [self.allowed(number, ask.allow) for ask in asks]
            if isinstance(router, Fitted):
                limited = any(ask.allow for ask in asks)
                columns.append(router.choose(seen, allowed if limited else None))
            elif isinstance(router, Request):
                columns.append([self._named(route, ask, row) for ask, row in zip(asks, allowed, strict=True)])
            else:
                columns.append([Choice(None)] * len(asks))
        return list(zip(*columns, strict=True)) if columns else [()] * len(asks)

    def turn(self, choices: Sequence[tuple[Choice, ...]], asks: Sequence[Ask]) -> Turn:
        """The gate for a batch. InputError where something would speak that its row may not reach: whoever
        chose it, nothing gets past here."""
        chosen = [tuple(choice.expert for choice in row) for row in choices]
        values = [
            list(ask.weights) if ask.weights is not None else self.plan.gate(row)
            for row, ask in zip(chosen, asks, strict=True)
        ]
        tokens = []
        for number in self.token_routes:
            leaves, experts = self._leaves(number), self._experts(number)
            rows = []
            for row, ask in zip(chosen, asks, strict=True):
                allowed = self.allowed(number, ask.allow)
                weights = self.plan.token_weights(number, row) if ask.weights is None else [0.0] * len(leaves)
                rows.append([w if allowed[e] else 0.0 for w, e in zip(weights, experts, strict=True)])
            tokens.append(torch.tensor(rows, dtype=torch.float32).reshape(len(asks), len(leaves)))
            for i, ask in enumerate(asks):
                self._refuse_forbidden(ask, [s for s, w in zip(leaves, rows[i], strict=True) if w])
        for ask, row_values in zip(asks, values, strict=True):
            self._refuse_forbidden(ask, [slot for slot, value in enumerate(row_values) if value])
        slots = len(self.plan.slots)
        return Turn(torch.tensor(values, dtype=torch.float32).reshape(len(asks), slots), tuple(tokens))

    def gate(self, turn: Turn, slots: Sequence[int], width: int) -> tuple[torch.Tensor, list[TokenRoute]]:
        """As a bank of `width` slots takes it, the plan's slots being its `slots`. Rows that are all alike
        are one for the whole batch, which costs the bank less."""
        values = torch.zeros(len(turn.values), width)
        values[:, list(slots)] = turn.values
        routes = []
        for number, weights in zip(self.token_routes, turn.tokens, strict=True):
            routes.append(
                TokenRoute(
                    self.prototypes[number],
                    tuple(slots[slot] for slot in self._leaves(number)),
                    tuple(self._experts(number)),
                    _one_for_all(weights),
                    **self.plan.routes[number].params,
                )
            )
        return _one_for_all(values), routes

    def decisions(
        self, choices: Sequence[tuple[Choice, ...]], shares: Mapping[int, torch.Tensor]
    ) -> list[tuple[Decision, ...]]:
        """In the plan's words. `shares`: for each route of tokens (rows, experts), what its experts had."""
        return [
            tuple(
                _decision(route, _of_tokens(shares[number][row]) if number in shares else choice)
                for number, (route, choice) in enumerate(zip(self.plan.routes, each, strict=True))
            )
            for row, each in enumerate(choices)
        ]

    def allowed(self, route: int, allow: tuple[frozenset[str], ...]) -> tuple[bool, ...]:
        """Which experts of a route a request may reach: those of which every adapter is allowed."""
        open_to = [True] * len(self.plan.routes[route].experts)
        if allow:
            for leaf in self.plan.leaves:
                # An expert answers for what it is itself; of a route inside of it that route answers.
                if (
                    leaf.conditions
                    and leaf.conditions[-1][0] == route
                    and not self._permitted(leaf.slot, allow)
                ):
                    open_to[leaf.conditions[-1][1]] = False
        return tuple(open_to)

    def _permitted(self, slot: int, allow: tuple[frozenset[str], ...]) -> bool:
        return all(
            version.name in names or version.ref in names or version.digest in names
            for version in self.plan.slots[slot].versions
            for names in allow
        )

    def _refuse_forbidden(self, ask: Ask, slots: Sequence[int]) -> None:
        for slot in slots:
            if not self._permitted(slot, ask.allow):
                raise InputError(
                    f"a request may reach what its allow-list names, and {self.plan.slots[slot].ref} is not "
                    "on it",
                    fix="ask for another variant, or have the list extended",
                )

    def _refuse_unnamed(self, asks: Sequence[Ask]) -> None:
        """InputError for a request that names an expert where no route goes by request."""
        if any(isinstance(router, Request) for router in self.routers):
            return
        name = next((ask.expert for ask in asks if ask.expert is not None), None)
        if name is not None:
            raise InputError(
                f"an expert can be named where a route goes by request, and {self.plan.ref} has none",
                fix="leave the name out, or give weights",
            )

    def _named(self, route: RouteNode, ask: Ask, allowed: Sequence[bool]) -> Choice:
        choice = named(ask.expert, route.experts)
        if choice.expert is not None and not allowed[choice.expert]:
            raise InputError(
                f"a request may reach what its allow-list names, and {route.experts[choice.expert]} is not "
                "on it",
                fix="name another expert, or have the list extended",
            )
        return choice

    def _leaves(self, route: int) -> list[int]:
        """The plan's slots of the leaves under a route, as `Plan.token_weights` orders them."""
        return [leaf.slot for leaf in self.plan.leaves if any(r == route for r, _ in leaf.conditions)]

    def _experts(self, route: int) -> list[int]:
        return [e for leaf in self.plan.leaves for r, e in leaf.conditions if r == route]


def load_routing(store: Registry, plan: Plan, adapters: Mapping[str, Adapter] | None = None) -> Routing:
    """The router of each route, its weights read and verified. `adapters`: of the plan's slots by digest,
    from which routes of tokens take their prototypes; without them these are left out.

    InputError or IntegrityError for weights that are missing, foreign, or parameters that no router has.
    """
    known = {router.name: router for router in ROUTERS}
    routers: list[Router] = []
    prototypes = {}
    for number, route in enumerate(plan.routes):
        kind = known[route.by]
        check_params(route)
        if issubclass(kind, Fitted):
            if route.router is None:
                raise InputError(
                    f"the route at {route.path or 'the root'} of {plan.ref} has no fitted router",
                    fix="lock the recipe again",
                )
            data = store.get_object(route.router)
            routers.append(
                kind.from_bytes(data, base=plan.base.weights, experts=expert_digests(plan, number))
            )
        else:
            routers.append(kind())
            if route.by_tokens and adapters is not None:
                prototypes[number] = Arrow.prototypes(
                    [
                        [
                            (adapters[plan.slots[leaf.slot].digest], leaf.weight)
                            for leaf in plan.leaves
                            if (number, expert) in leaf.conditions
                        ]
                        for expert in range(len(route.experts))
                    ]
                )
    return Routing(plan, tuple(routers), prototypes)


def check_params(route: RouteNode) -> None:
    """InputError for a parameter that the router does not have, or a value that it cannot take."""
    allowed = {"top_k": int, "temperature": float} if route.by_tokens else {}
    for name, value in route.params.items():
        if name not in allowed:
            raise InputError(
                f"a route by {route.by} has no parameter {name[:60]!r}",
                fix=f"allowed: {', '.join(allowed)}" if allowed else "leave params out",
            )
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or value <= 0 or (allowed[name] is int and (value != int(value))):
            what = "a whole number above 0" if allowed[name] is int else "a number above 0"
            raise InputError(f"{name} of a route by {route.by} must be {what}, got {str(value)[:40]}")


def expert_digests(plan: Plan, number: int) -> list[str]:
    """For each expert of a route, what it consists of: the digests of its leaves, joined in their order."""
    return [
        "+".join(
            version.digest
            for leaf in plan.leaves
            if (number, expert) in leaf.conditions
            for version in plan.slots[leaf.slot].versions
        )
        for expert in range(len(plan.routes[number].experts))
    ]


def allow_list(allow: Collection[str] | None) -> tuple[frozenset[str], ...]:
    """Names of adapters (all their versions), references or digests, as an `Ask` takes them; None allows all.
    InputError for a single text in the place of a list."""
    if isinstance(allow, str):
        raise InputError(f"an allow-list is a list of names, got the text {allow[:60]!r}")
    return () if allow is None else (frozenset(allow),)


def _decision(route: RouteNode, choice: Choice) -> Decision:
    labels = [*route.experts, BASE]
    expert = BASE if choice.expert is None else route.experts[choice.expert]
    return Decision(
        route.path, route.by, expert, choice.confidence, dict(zip(labels, choice.scores, strict=False))
    )


def _of_tokens(shares: torch.Tensor) -> Choice:
    """(experts,) -> the one with the largest share; the base where no token had a choice."""
    row = shares.tolist()
    if not any(row):
        return Choice(None, 1.0, (*row, 1.0))
    best = max(range(len(row)), key=row.__getitem__)
    return Choice(best, row[best], (*row, 0.0))


def _one_for_all(rows: torch.Tensor) -> torch.Tensor:
    """(n, m) -> (m,) where all rows are equal."""
    return rows[0] if len(rows) and bool((rows == rows[:1]).all()) else rows
