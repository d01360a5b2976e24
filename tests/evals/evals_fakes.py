"""A model that answers from a table, and rows to ask it; no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inlay.evals.scoring import EvalResult
from inlay.evals.suites import Suite

WEIGHTS, PROMPT = "sha256:" + "a" * 64, "sha256:" + "b" * 64


@dataclass(frozen=True)
class FakeFingerprint:
    weights: str = WEIGHTS
    prompt: str = PROMPT


@dataclass
class FakeModel:
    """Says `says[prompt]`, or nothing; counts the prompts it generated for."""

    says: Mapping[str, str]
    protocol: dict[str, Any] = field(default_factory=lambda: {"decoding": "greedy", "dtype": "float32"})
    fingerprint: Any = field(default_factory=FakeFingerprint)
    device: str = "cpu"
    generated: int = 0

    def generate(
        self,
        prompts: Sequence[Any],
        *,
        max_new_tokens: int = 64,
        progress: Callable[[int, int], None] | None = None,
        **decoding: Any,
    ) -> list[str]:
        self.generated += len(prompts)
        return [self.says.get(str(prompt), "") for prompt in prompts]

    def matches(
        self,
        prompts: Sequence[Any],
        answers: Sequence[str],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[bool]:
        return [self.says.get(str(p)) == a for p, a in zip(prompts, answers, strict=True)]

    def likelihoods(
        self,
        prompts: Sequence[Any],
        answers: Sequence[str],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[tuple[float, int]]:
        """0.5 nats a character for what it says, 1 for anything else; as many tokens as characters."""
        return [
            (len(a) * (0.5 if self.says.get(str(p)) == a else 1.0), len(a))
            for p, a in zip(prompts, answers, strict=True)
        ]

    def states(self, prompts: Sequence[Any], answers: Sequence[str]) -> Iterator[Any]:
        raise NotImplementedError

    def head(self, hidden: Any) -> Any:
        raise NotImplementedError


def suite_of(n: int, *, skills: int = 4, held_out: int = 2, name: str = "general-v1") -> Suite:
    """`n` items dealt to `skills` skills, the first `held_out` of them held out; item k answers `a<k>`."""
    return Suite.of_rows(
        name,
        [
            {
                "id": f"i{k}",
                "prompt": f"q{k}",
                "answer": f"a{k}",
                "skill": f"skill{k % skills}",
                "split": "held_out" if k % skills < held_out else "protected",
            }
            for k in range(n)
        ],
    )


def result_of(
    suite: Suite,
    outcomes: Sequence[bool],
    *,
    subject: str = "base",
    answers: Mapping[str, str] | None = None,
    weights: str = WEIGHTS,
) -> EvalResult:
    """A result with these outcomes, as if measured."""
    return EvalResult(
        subject=subject,
        label=subject,
        suite=suite,
        outcomes=tuple(outcomes),
        base_weights=weights,
        base_prompt=PROMPT,
        protocol={"decoding": "greedy", "dtype": "float32"},
        answers=answers or {},
    )
