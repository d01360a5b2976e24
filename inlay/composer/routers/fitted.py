"""A router with weights: a linear map from features of a prompt to one score for each expert and each kind of
general prompt, calibrated on what it says of prompts that it had not seen.

The base is not one class but one for each skill of the general prompts: what they have in common is only
that no expert is for them. Its score is the largest of theirs. Whether a general prompt would be kept from
the experts is asked with its whole skill left out of the fit, since the next general prompt may be of a skill
that nobody thought of; whether a request finds its expert, with that one request left out.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self

import torch

from inlay.composer.routers.calibration import Calibration
from inlay.composer.routers.choice import Choice, chosen
from inlay.composer.routers.seen import Seen, encoded, see
from inlay.errors import InputError, IntegrityError
from inlay.evals.inference import Base, Prompt
from inlay.evals.prompts import GeneralPrompt

CALIBRATED_ON = 2048
"""Requests, at most, on which a fit is calibrated; more would only take longer."""


@dataclass(frozen=True)
class Material:
    """What a router is fitted on. `examples[i]`: prompts for expert i; `general`: prompts for none.

    `experts`: what each consists of, kept inside so that a router is never used for others than its own.
    """

    base: Base
    examples: Sequence[Sequence[Prompt]]
    general: Sequence[GeneralPrompt]
    experts: Sequence[str]
    seed: int = 0

    def __post_init__(self) -> None:
        """InputError for fewer than two experts, an expert without examples, no general prompts."""
        if len(self.examples) < 2:
            raise InputError(
                f"a route needs at least two experts, and has {len(self.examples)}",
                fix="use the adapter alone",
            )
        for number, prompts in enumerate(self.examples, 1):
            if not prompts:
                raise InputError(f"a router needs examples for every expert, and number {number} has none")
        if not self.general:
            raise InputError("a router needs general prompts for its base class, and none were given")

    @property
    def kinds(self) -> list[str]:
        """The skills of the general prompts; "" for those of none."""
        return sorted({each.skill or "" for each in self.general})

    def labels(self) -> torch.Tensor:
        """Long (n,): experts 0 … k-1, then the kinds of general prompts."""
        kinds = {kind: number for number, kind in enumerate(self.kinds, len(self.examples))}
        own = [number for number, prompts in enumerate(self.examples) for _ in prompts]
        return torch.tensor([*own, *(kinds[each.skill or ""] for each in self.general)])

    def prompts(self) -> list[Prompt]:
        return [*(p for prompts in self.examples for p in prompts), *(each.prompt for each in self.general)]

    def left_out(self) -> list[torch.Tensor]:
        """Which rows are left out together to see what a fit would say of them: requests one by one, a sample
        of them where there are many; general prompts by skill."""
        labels = self.labels()
        requests = (labels < len(self.examples)).nonzero().flatten()
        if len(requests) > CALIBRATED_ON:
            drawn = torch.randperm(len(requests), generator=torch.Generator().manual_seed(self.seed))
            requests = requests[drawn[:CALIBRATED_ON].sort().values]
        groups = list(requests.split(1))
        named = [kind for kind in self.kinds if kind]
        for number, kind in enumerate(self.kinds, len(self.examples)):
            rows = (labels == number).nonzero().flatten()
            # With its only skill gone a base has no class left, and what has no skill is a skill of its own.
            together = kind and (len(named) > 1 or len(self.kinds) > 1)
            groups += [rows] if together else list(rows.split(1))
        return groups


@dataclass(frozen=True)
class Solved:
    """`weights` (d, c), `offset` (c,), float64; `unseen` (rows, c), what a fit without them would have said
    of the rows that were left out; `calibration` found on those; `notes` for the record."""

    weights: torch.Tensor
    offset: torch.Tensor
    calibration: Calibration
    notes: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Fitted(ABC):
    """Scores are x W + b, x the features (rows, d); the first `experts` columns are theirs, the others the
    base's. Tensors are float32, on the CPU."""

    name: ClassVar[str]
    reads_states: ClassVar[bool] = True
    """Are its features made of the base's hidden states?"""

    weights: torch.Tensor
    offset: torch.Tensor
    calibration: Calibration
    details: dict[str, Any]
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    """What the features need, by name."""

    @classmethod
    @abstractmethod
    def learn_features(
        cls, seen: Seen, share: torch.Tensor, seed: int
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """What the features of this router are, from all prompts and their shares: (details, tensors)."""

    @abstractmethod
    def features(self, seen: Seen) -> torch.Tensor:
        """(rows, d), float32."""

    @classmethod
    @abstractmethod
    def solve(
        cls,
        x: torch.Tensor,
        labels: torch.Tensor,
        share: torch.Tensor,
        groups: list[torch.Tensor],
        experts: int,
    ) -> Solved:
        """The weights from features float64 (n, d), labels and shares (n,)."""

    @classmethod
    def fit(cls, material: Material) -> Self:
        """Fit on prompts alone; the base must be bare. Every class weighs the same, however many examples it
        has. The same material gives the same bytes."""
        labels = material.labels()
        counts = torch.bincount(labels).double()
        share = (1.0 / (counts * len(counts)))[labels]
        seen = see(material.base, encoded(material.base, material.prompts()))
        details, tensors = cls.learn_features(seen, share, material.seed)
        nothing = torch.zeros(0)
        blank = cls(nothing, nothing, Calibration(), details, tensors)
        solved = cls.solve(
            blank.features(seen).double(), labels, share, material.left_out(), len(material.examples)
        )
        record = {
            "base": material.base.fingerprint.weights,
            "examples": [len(prompts) for prompts in material.examples],
            "experts": list(material.experts),
            "general": {
                kind: int((labels == i).sum())
                for i, kind in enumerate(material.kinds, len(material.examples))
            },
            "seed": material.seed,
        }
        return cls(
            solved.weights.float().contiguous(),
            solved.offset.float(),
            solved.calibration,
            {**details, **solved.notes, **record},
            {**tensors, **solved.tensors},
        )

    @property
    def experts(self) -> int:
        return len(self.details["experts"])

    def probabilities(self, seen: Seen) -> torch.Tensor:
        """(rows, experts + 1), float32, the base's last."""
        return self.calibration.probabilities(base_last(self.raw(self.features(seen)), self.experts))

    def raw(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, d) features -> (rows, experts + kinds) scores, as they were calibrated."""
        return x @ self.weights + self.offset

    def choose(self, seen: Seen, allowed: Sequence[Sequence[bool]] | None = None) -> list[Choice]:
        """The choice for each prompt, among the experts that are `allowed` (rows, experts), and the base."""
        return chosen(self.probabilities(seen), allowed)

    def to_bytes(self) -> bytes:
        """As an object of the store: safetensors, the same bytes for the same fit."""
        from safetensors.torch import save

        details = {**self.details, "calibration": asdict(self.calibration), "router": self.name, "schema": 2}
        tensors = {"weights": self.weights, "offset": self.offset, **self.tensors}
        return save(
            {key: tensors[key].contiguous() for key in sorted(tensors)},
            metadata={"router": json.dumps(details, sort_keys=True)},
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, base: str, experts: Sequence[str]) -> Self:
        """IntegrityError for a router of another kind, fitted on another base or for other adapters."""
        from safetensors.torch import load

        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
        tensors = load(data)
        if "router" in metadata:
            details = json.loads(metadata["router"])
        else:
            details, tensors = cls.of_schema_1(metadata, tensors)
        if details["router"] != cls.name or details["base"] != base or details["experts"] != list(experts):
            raise IntegrityError(
                "a router must be fitted for the adapters and the base of its lock, and this one was not",
                fix="lock the recipe again",
            )
        weights, offset = tensors.pop("weights"), tensors.pop("offset")
        return cls(weights, offset, Calibration(**details.pop("calibration")), details, tensors)

    @classmethod
    def of_schema_1(
        cls, metadata: dict[str, str], tensors: dict[str, torch.Tensor]
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """What the first version wrote, as this one reads it; it wrote probes only."""
        raise IntegrityError(f"these are no weights of a router by {cls.name}", fix="lock the recipe again")


def base_last(scores: torch.Tensor, experts: int) -> torch.Tensor:
    """(rows, experts + kinds) -> (rows, experts + 1): the base's score is the largest of its kinds'."""
    return torch.cat([scores[:, :experts], scores[:, experts:].amax(1, keepdim=True)], 1)


def calibrated(unseen: torch.Tensor, labels: torch.Tensor, experts: int) -> Calibration:
    """From scores (rows, experts + kinds) of unseen rows, and their labels."""
    return Calibration.of(base_last(unseen, experts), labels.clamp_max(experts))
