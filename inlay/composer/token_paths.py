"""Ways through a bank where every token chooses experts of its own. All give the same numbers.

    s[t, e] = |x[t] · prototypes[e]|                     -inf where e is blocked for the row of t
    experts[t], top[t] = the top_k largest of s[t];  shares[t] = softmax(top[t] / temperature)
    y[t] += Σ_j shares[t, j] * Σ_{columns c of experts[t, j]} gates[row, c] * up[c] (down[c] · x[t])

The choice is made inside the layer, from its input, in float32 at least; what follows is one of the ways of
paths.py, laid out afresh in each forward with every token as a row of its own. All but the dense one touch
only what was chosen.

Shapes: x (rows, length, in) or (tokens, in), y the same with out, contiguous, changed in place; E experts
with a prototype in the module, k of them named by each token: experts, long, and shares, both (…, k).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from inlay.composer.observed import Observed
from inlay.composer.paths import Dense, Gathered, Piece, Project, Segmented, Still
from inlay.composer.site import Site, Span


@dataclass(frozen=True)
class Choice:
    """Who speaks for a token. `prototypes` (E, in), float32 or wider; `blocked` bool (rows, 1, E), or None
    where every row may choose among all; `top_k` at most E."""

    prototypes: torch.Tensor
    blocked: torch.Tensor | None
    top_k: int
    temperature: float

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x (…, in) -> experts (…, k), long, and their shares (…, k), which sum to 1. A token with fewer than
        k to choose from names its first again, with share 0: a blocked expert is never named."""
        scores = nn.functional.linear(x.to(self.prototypes.dtype), self.prototypes).abs()
        if self.blocked is not None:
            scores = scores.masked_fill(self.blocked, -math.inf)
        top, experts = scores.topk(self.top_k)
        if self.blocked is not None:
            experts = torch.where(top == -math.inf, experts[..., :1], experts)
        return experts, (top / self.temperature).softmax(-1).to(x.dtype)


@dataclass(frozen=True)
class Columns:
    """Of one expert in a module: the spans of its slots, in their order, and the gate of each of their
    columns, float32 (n, columns); n is 1 where all rows agree."""

    spans: tuple[Span, ...]
    gates: torch.Tensor

    @property
    def index(self) -> list[int]:
        return [column for start, rank in self.spans for column in range(start, start + rank)]


@dataclass(frozen=True)
class TokenDense:
    """Every token meets columns lo to hi, whoever it chose.

    gates: (E, hi - lo), or (rows, E, hi - lo): what each expert gives each column, 0 outside its own.
    """

    lo: int
    hi: int
    gates: torch.Tensor

    @classmethod
    def of(cls, experts: Sequence[Columns], site: Site) -> TokenDense:
        held = [column for expert in experts for column in expert.index]
        lo, hi = min(held), max(held) + 1
        gates = torch.zeros(len(experts[0].gates), len(experts), hi - lo)
        for i, expert in enumerate(experts):
            gates[:, i, [column - lo for column in expert.index]] = expert.gates
        return cls(lo, hi, gates.squeeze(0).to(site.device, site.dtype))

    def __call__(self, experts: torch.Tensor, shares: torch.Tensor) -> Dense:
        spread = shares.new_zeros(*shares.shape[:-1], self.gates.shape[-2])
        gate = spread.scatter_add_(-1, experts, shares) @ self.gates
        return Dense(self.lo, self.hi, gate.view(-1, 1, self.hi - self.lo))


@dataclass(frozen=True)
class TokenGathered:
    """Each token meets a copy of its experts' columns, in one batched product.

    index: long (E, width), the columns of each expert, short ones filled up with their own first at gate 0;
    gates: (E, width), or (rows * E, width) with `offset`, long (rows, 1, 1): where a row's own begin.
    """

    index: torch.Tensor
    gates: torch.Tensor
    offset: torch.Tensor | None

    @classmethod
    def of(cls, experts: Sequence[Columns], site: Site) -> TokenGathered:
        rows, width = len(experts[0].gates), max(len(expert.index) for expert in experts)
        first = next(expert.index[:1] for expert in experts if expert.spans)
        index = torch.zeros(len(experts), width, dtype=torch.long)
        gates = torch.zeros(rows, len(experts), width)
        for i, expert in enumerate(experts):
            held = expert.index
            index[i] = torch.tensor(held + (held[:1] or first) * (width - len(held)))
            gates[:, i, : len(held)] = expert.gates
        offset = torch.arange(rows).view(-1, 1, 1) * len(experts) if rows > 1 else None
        return cls(
            index.to(site.device),
            gates.flatten(0, 1).to(site.device, site.dtype),
            None if offset is None else offset.to(site.device),
        )

    def __call__(self, experts: torch.Tensor, shares: torch.Tensor) -> Gathered:
        columns = self.index.index_select(0, experts.flatten()).flatten()
        own = experts if self.offset is None else experts + self.offset
        gate = self.gates.index_select(0, own.flatten()) * shares.reshape(-1, 1)
        return Gathered(columns, gate.view(-1, 1, shares.shape[-1] * self.index.shape[1]))


Run = tuple[int, int, torch.Tensor | None]
"""Columns lo to hi of an expert with their gates, (hi - lo,) or (rows, hi - lo); None where all are 1."""


@dataclass(frozen=True)
class TokenSegmented:
    """One product for each expert, with the tokens that chose it: `runs` of each expert. How many tokens did
    is asked of the device, and a forward waits for the answer."""

    runs: tuple[tuple[Run, ...], ...]

    @classmethod
    def of(cls, experts: Sequence[Columns], site: Site) -> TokenSegmented:
        return cls(tuple(tuple(cls._runs(expert, site)) for expert in experts))

    @staticmethod
    def _runs(expert: Columns, site: Site) -> list[Run]:
        """Neighbours together, each with its gates."""
        ends: list[list[int]] = []
        for start, rank in expert.spans:
            if ends and ends[-1][1] == start:
                ends[-1][1] += rank
            else:
                ends.append([start, start + rank])
        runs: list[Run] = []
        for (lo, hi), gates in zip(
            ends, expert.gates.split([hi - lo for lo, hi in ends], dim=1), strict=True
        ):
            ones = bool((gates == 1).all())
            runs.append((lo, hi, None if ones else gates.squeeze(0).to(site.device, site.dtype)))
        return runs

    def __call__(self, experts: torch.Tensor, shares: torch.Tensor) -> Segmented:
        chosen = experts.flatten()
        order = chosen.argsort(stable=True)
        counts = chosen.bincount(minlength=len(self.runs)).tolist()
        tokens = (order // experts.shape[-1]).split(counts)
        weights = shares.flatten()[order].view(-1, 1, 1).split(counts)
        return Segmented(
            tuple(
                Piece(who, lo, hi, self._gate(weight, gates, who, length=experts.shape[-2]))
                for runs, who, weight in zip(self.runs, tokens, weights, strict=True)
                for lo, hi, gates in runs
                if len(who)
            )
        )

    @staticmethod
    def _gate(
        weight: torch.Tensor, gates: torch.Tensor | None, tokens: torch.Tensor, *, length: int
    ) -> torch.Tensor:
        if gates is None:
            return weight
        return weight * (gates if gates.ndim == 1 else gates[tokens // length].unsqueeze(1))


TokenPath = TokenDense | TokenGathered | TokenSegmented

TOKEN_PATHS: dict[str, type[TokenDense] | type[TokenGathered] | type[TokenSegmented]] = {
    "dense": TokenDense,
    "gathered": TokenGathered,
    "segmented": TokenSegmented,
}


@dataclass(frozen=True)
class TokenWork:
    """What one token route has to do in one layer.

    `rows`: those that have an expert to choose from, a slice or a long tensor, None for all; the others keep
    their y to the bit, and cost nothing. `number`: which route of its gate this is; `members`: the layer's
    experts as the route numbers them, `of` how many it has.
    """

    choice: Choice
    path: TokenPath
    rows: slice | torch.Tensor | None
    number: int
    members: tuple[int, ...]
    of: int
    observers: list[Observed]

    def __call__(
        self, y: torch.Tensor, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, project: Project
    ) -> None:
        part, target = (x, y) if self.rows is None else (x[self.rows], y[self.rows])
        experts, shares = self.choice(part)
        for observer in self.observers:
            observer.add(self.number, self._spread(x, experts, shares))
        tokens = shares.shape[:-1].numel()
        self.path(experts, shares)(
            target.view(tokens, 1, y.shape[-1]), part.reshape(tokens, 1, x.shape[-1]), down, up, project
        )
        if isinstance(self.rows, torch.Tensor):
            y.index_copy_(0, self.rows, target)

    def _spread(self, x: torch.Tensor, experts: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """What every token gives every expert of the route: (rows, length, of) or (tokens, of)."""
        chosen = shares.new_zeros(*shares.shape[:-1], self.of)
        chosen.scatter_add_(-1, torch.tensor(self.members, device=experts.device)[experts], shares)
        if self.rows is None:
            return chosen
        everyone = chosen.new_zeros(*x.shape[:-1], self.of)
        everyone[self.rows] = chosen
        return everyone


@dataclass(frozen=True)
class Routed:
    """What a layer has to do where tokens are routed: `still`, what stands for whole rows, beside it."""

    still: Still | None
    tokens: tuple[TokenWork, ...]

    def __call__(
        self, y: torch.Tensor, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, project: Project
    ) -> None:
        if self.still is not None:
            self.still(y, x, down, up, project)
        for work in self.tokens:
            work(y, x, down, up, project)
