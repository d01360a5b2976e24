"""Token routes: for every token of a row and every module, experts chosen from the layer's own input.

Here a route is checked when a gate is set, and prepared for a layer and a shape of batch: everything that
does not hang on the tokens. What does is in token_paths.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from inlay.composer.costs import TokenShape
from inlay.composer.observed import Observed
from inlay.composer.site import Site
from inlay.composer.token_paths import TOKEN_PATHS, Choice, Columns, TokenPath, TokenWork
from inlay.errors import InputError


@dataclass(frozen=True, eq=False)
class TokenRoute:
    """A router of tokens over experts, each of one or several leaves: slots of a bank with weights.

        s[t, e] = |x[t] · prototypes[module][e]|
        w[t] = softmax(top_k largest of s[t] / temperature), 0 for the others
        y[t] += Σ_e w[t, e] Σ_{leaf of e} weights[row, leaf] * B_leaf (A_leaf x[t])

    `prototypes`: module -> (experts, in), float32, unit rows, rows of zeros where an expert leaves the module
    alone and cannot be chosen; on the model's own device they are not copied. `slots`, `experts`: for each
    leaf its slot and its expert. `weights`: float32 (leaves,) for the whole batch or (rows, leaves); an
    expert whose leaves are all 0 for a row is not available to it, and a row without experts keeps y to the
    bit. Where fewer than `top_k` can be chosen, all of them are.
    """

    prototypes: Mapping[str, torch.Tensor]
    slots: tuple[int, ...]
    experts: tuple[int, ...]
    weights: torch.Tensor
    top_k: int = 2
    temperature: float = 1.0


@dataclass(eq=False)
class Candidates:
    """Who may speak for the tokens of a batch, in all modules that are laid out alike.

    `experts`: their numbers in the route; `columns`: of each of them; `free` bool (n, experts): to which row
    each is open, and `rows`: which rows of the batch these are, those that have any, None for all; n is 1 and
    every row the same where the route is constant. `ways`: the paths laid out so far.
    """

    site: Site
    experts: tuple[int, ...]
    columns: list[Columns]
    free: torch.Tensor
    rows: slice | torch.Tensor | None
    ways: dict[str, TokenPath] = field(default_factory=dict)

    @cached_property
    def most(self) -> int:
        """Experts that the row with the most to choose from can choose."""
        return int(self.free.sum(1).max())

    @cached_property
    def blocked(self) -> torch.Tensor | None:
        return None if bool(self.free.all()) else ~self.free.unsqueeze(1).to(self.site.device)

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        return tuple(len(expert.index) for expert in self.columns)

    @cached_property
    def reach(self) -> int:
        """Columns from the first to the last."""
        held = [column for expert in self.columns for column in expert.index]
        return max(held) + 1 - min(held)

    def way(self, name: str) -> TokenPath:
        if name not in self.ways:
            self.ways[name] = TOKEN_PATHS[name].of(self.columns, self.site)
        return self.ways[name]

    def choice(self, prototypes: torch.Tensor, route: TokenRoute) -> Choice:
        wide = torch.promote_types(self.site.dtype, torch.float32)
        kept = prototypes.to(self.site.device, wide)
        if len(self.experts) < len(kept):
            kept = kept[list(self.experts)]
        return Choice(kept, self.blocked, min(route.top_k, self.most), float(route.temperature))

    def shape(self, length: int, route: TokenRoute) -> TokenShape:
        rows = self.site.rows if self.rows is None else len(self.free)
        features = self.site.features_in + self.site.features_out
        return TokenShape(rows * length, features, self.reach, self.ranks, min(route.top_k, self.most))


@dataclass(eq=False)
class CheckedRoute:
    """A route that may be used, and what was prepared from it.

    `weights`: float32 on the CPU, (n, leaves); one row speaks for every row of a batch where `constant`.
    `present`: the experts that have a prototype in each module.
    """

    route: TokenRoute
    weights: torch.Tensor
    constant: bool
    present: Mapping[str, tuple[int, ...]]
    _candidates: dict[tuple[Site, tuple[int, ...]], Candidates | None] = field(default_factory=dict)

    @classmethod
    def of(cls, route: TokenRoute, loaded: Sequence[object | None]) -> CheckedRoute:
        """InputError for what does not fit together, is not finite, or has no adapter in `loaded`, the slots
        of the bank."""
        weights = route.weights.detach().to("cpu", torch.float32).clone()
        if weights.ndim not in (1, 2) or not len(route.slots) == len(route.experts) == weights.shape[-1]:
            raise InputError(
                "each leaf of a token route must have a slot, an expert and a weight, (leaves,) or "
                f"(rows, leaves), and there are {len(route.slots)}, {len(route.experts)} and "
                f"{tuple(weights.shape)}"
            )
        if not bool(weights.isfinite().all()):
            raise InputError("the weights of a token route must be finite, and these are not")
        if not isinstance(route.top_k, int) or route.top_k < 1:
            raise InputError(f"top_k must be a whole number of at least 1, and is {route.top_k}")
        if not (math.isfinite(route.temperature) and route.temperature > 0):
            raise InputError(f"a temperature must be finite and above 0, and is {route.temperature}")
        rows = weights if weights.ndim == 2 else weights.unsqueeze(0)
        for leaf in rows.any(0).nonzero().flatten().tolist():
            slot = route.slots[leaf]
            if not 0 <= slot < len(loaded) or loaded[slot] is None:
                raise InputError(f"an expert must be made of loaded adapters, and slot {slot} holds none")
        # What all rows share needs no rows, and passes through layers that have lost them.
        constant = weights.ndim == 1 or bool((rows == rows[:1]).all())
        return cls(route, rows[:1] if constant else rows, constant, _present(route))

    @property
    def silent(self) -> bool:
        return not bool(self.weights.any())

    def uses(self, slot: int) -> bool:
        given = self.weights.any(0).tolist()
        return any(held == slot and some for held, some in zip(self.route.slots, given, strict=True))

    def work(
        self,
        site: Site,
        module: str,
        number: int,
        choose: Callable[[TokenShape], str],
        observers: list[Observed],
    ) -> TokenWork | None:
        """What this route, the `number`-th of its gate, has to do in a layer; None where that is nothing."""
        leaves = self._leaves(site)
        if site.lookup and leaves:
            raise InputError(
                f"tokens are routed by the vectors that a module reads, and {module} looks up ids",
                fix="leave the embedding out of what the experts adapt",
            )
        present = self.present.get(module, ())
        key = (replace(site, length=0), present)
        if key not in self._candidates:
            self._candidates[key] = self._among(present, leaves, key[0]) if leaves and present else None
        candidates = self._candidates[key]
        if candidates is None:
            return None
        prototypes = self.route.prototypes[module]
        if prototypes.shape[1] != site.features_in:
            raise InputError(
                f"prototypes must be as wide as what their module reads, and those of {module} are "
                f"{prototypes.shape[1]} wide, its inputs {site.features_in}"
            )
        return TokenWork(
            candidates.choice(prototypes, self.route),
            candidates.way(choose(candidates.shape(site.length, self.route))),
            candidates.rows,
            number,
            candidates.experts,
            len(prototypes),
            observers,
        )

    def _leaves(self, site: Site) -> list[int]:
        """Those that have columns here, and weight for any row."""
        spans, slots = site.layout.spans, self.route.slots
        given = self.weights.any(0).nonzero().flatten().tolist()
        return [leaf for leaf in given if slots[leaf] < len(spans) and spans[slots[leaf]][1]]

    def _among(self, present: Sequence[int], leaves: Sequence[int], site: Site) -> Candidates | None:
        """Those of the experts `present` that are open to some row; None where they have no columns."""
        weights = self.weights if self.constant else site.repeated(self.weights)
        owners = self.route.experts
        free = torch.stack(
            [weights[:, [leaf for leaf, owner in enumerate(owners) if owner == e]].any(1) for e in present], 1
        )
        experts = tuple(e for e, some in zip(present, free.any(0).tolist(), strict=True) if some)
        mine = {e: [leaf for leaf in leaves if owners[leaf] == e] for e in experts}
        if not any(mine.values()):
            return None
        free = free[:, free.any(0)]
        live = free.any(1)
        columns = [self._columns(site, mine[e], weights[live]) for e in experts]
        return Candidates(site, experts, columns, free[live], self._rows(live, site))

    def _columns(self, site: Site, leaves: Sequence[int], weights: torch.Tensor) -> Columns:
        """A slot that stands in several leaves of an expert has its columns once, its weights added."""
        slots = [self.route.slots[leaf] for leaf in leaves]
        spans = sorted({site.layout.spans[slot]: slot for slot in slots}.items())
        gates = [weights.new_zeros(len(weights), 0)]
        for (_, rank), slot in spans:
            own = [leaf for leaf, held in zip(leaves, slots, strict=True) if held == slot]
            gates.append(weights[:, own].sum(1, keepdim=True).expand(-1, rank))
        return Columns(tuple(span for span, _ in spans), torch.cat(gates, 1))

    def _rows(self, live: torch.Tensor, site: Site) -> slice | torch.Tensor | None:
        if bool(live.all()):
            return None
        rows = live.nonzero().flatten()
        first, last = int(rows[0]), int(rows[-1])
        return slice(first, last + 1) if last + 1 - first == len(rows) else rows.to(site.device)


def _present(route: TokenRoute) -> dict[str, tuple[int, ...]]:
    """Which experts have a prototype in each module; InputError where one is not finite."""
    present: dict[str, tuple[int, ...]] = {}
    if route.experts and min(route.experts) < 0:
        raise InputError(f"experts must be numbered from 0, and one is {min(route.experts)}")
    counts = {len(prototypes) for prototypes in route.prototypes.values()}
    experts = max(route.experts, default=-1) + 1
    for module, prototypes in route.prototypes.items():
        if prototypes.ndim != 2 or len(counts) > 1 or len(prototypes) < experts:
            raise InputError(
                f"prototypes must be (experts, in) with a row for each of the {experts} experts in every "
                f"module, and those of {module} are {tuple(prototypes.shape)}"
            )
        lengths = prototypes.norm(dim=1).cpu()
        if not bool(lengths.isfinite().all()):
            raise InputError(f"prototypes must be finite, and those of {module} are not")
        present[module] = tuple(lengths.nonzero().flatten().tolist())
    return present
