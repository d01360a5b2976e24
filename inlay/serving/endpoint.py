"""What an endpoint is asked for, and how its answers look: what chats and completions have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from inlay.serving.errors import invalid, too_long
from inlay.serving.requests import Ended, Sampling, Token

if TYPE_CHECKING:
    from inlay.serving.schemas import ChatRequest, CompletionRequest
    from inlay.serving.tokenization import Tokenization

MOST_ROWS = 64
"""Answers that one request may ask for."""
LEAST_LOGPROB = -9999.0
"""Written where a token cannot be drawn at all; JSON has no infinity."""


@dataclass(frozen=True)
class Room:
    """`context`: tokens that a prompt and its answer may have together; `prompt`: the longest prompt."""

    context: int
    prompt: int


@dataclass(frozen=True)
class Wanted:
    """One row: a prompt's tokens and how its answer is drawn."""

    ids: tuple[int, ...]
    sampling: Sampling


@dataclass(eq=False)
class Said:
    """One row's answer so far. `shown`: characters of its text."""

    tokens: list[Token] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    shown: int = 0
    end: Ended | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def add(self, text: str) -> None:
        self.texts.append(text)
        self.shown += len(text)


class Endpoint(ABC):
    """A request's body, read. Subclasses say how prompts become tokens and what a choice looks like."""

    object: ClassVar[str]
    chunk: ClassVar[str]
    prefix: ClassVar[str]
    param: ClassVar[str]

    def __init__(self, body: ChatRequest | CompletionRequest, tokenization: Tokenization, room: Room) -> None:
        self.asked = body
        self.tokenization = tokenization
        self.room = room
        self.choices = body.n or 1

    @property
    @abstractmethod
    def max_tokens(self) -> int | None:
        """What the body says; None: as many as the context holds."""

    @property
    @abstractmethod
    def logprobs(self) -> int | None:
        """As `Sampling` takes it."""

    @abstractmethod
    def prompts(self) -> list[list[int]]:
        """Token ids of each prompt. For a thread: long ones take their time."""

    @abstractmethod
    def choice(self, index: int, said: Said) -> dict[str, Any]:
        """A whole answer."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """What a stream says of a row before its first token."""
        return None

    @abstractmethod
    def piece(
        self, index: int, text: str, token: Token | None, offset: int, reason: str | None
    ) -> dict[str, Any]:
        """A part of a streamed answer. `offset`: characters before it; `reason`: why it is the last."""

    def wanted(self) -> list[Wanted]:
        """A row for each prompt and choice, prompt by prompt. ApiError for what does not fit the context."""
        rows = []
        prompts = self.prompts()
        if len(prompts) * self.choices > MOST_ROWS:
            raise invalid(
                f"a request may have {MOST_ROWS} answers, and {len(prompts)} prompts with "
                f"{self.choices} choices each are more",
                "n",
                "invalid_value",
            )
        for ids in prompts:
            most = self._room_after(len(ids))
            for number in range(self.choices):
                rows.append(Wanted(tuple(ids), self._sampling(most, number)))
        return rows

    def usage(self, rows: Sequence[Said]) -> dict[str, Any]:
        """Tokens of all rows; a prompt counts once, however many choices it has."""
        ends = [said.end for said in rows if said.end is not None]
        firsts = ends[:: self.choices]
        prompt, completion = sum(end.prompt for end in firsts), sum(end.completion for end in ends)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(end.cached for end in firsts)},
        }

    def not_endless(self, text: str) -> None:
        """ApiError for a text that need not be read to its end to know that it is too long."""
        if self.tokenization.surely_longer(text, self.room.prompt):
            raise too_long(f"The {self.param} must have {self.room.prompt} tokens at most.", self.param)

    def _room_after(self, prompt: int) -> int:
        """How many tokens an answer may have."""
        context, asked = self.room.context, self.max_tokens
        if prompt > self.room.prompt:
            raise too_long(
                f"This server takes prompts of up to {self.room.prompt} tokens, and yours has {prompt}.",
                self.param,
            )
        if prompt + (asked or 1) > context:
            raise too_long(
                f"This model's maximum context length is {context} tokens. However, you requested "
                f"{prompt + (asked or 1)} tokens ({prompt} in the {self.param}, {asked or 1} in the "
                "completion).",
                self.param,
            )
        return context - prompt if asked is None else asked

    def _sampling(self, max_tokens: int, number: int) -> Sampling:
        asked = self.asked
        temperature = 1.0 if asked.temperature is None else float(asked.temperature)
        top_p = 1.0 if asked.top_p is None else float(asked.top_p)
        if top_p == 0:  # the smallest nucleus holds the most likely token alone
            temperature, top_p = 0.0, 1.0
        # Choices of one seed differ from each other, and the first is what it would be alone.
        seed = None if asked.seed is None else asked.seed if number == 0 else (asked.seed + number) % 2**63
        return Sampling(max_tokens, temperature, top_p, seed, asked.stops, self.logprobs)


def not_empty(ids: list[int], param: str) -> list[int]:
    if not ids:
        raise invalid("a prompt must have at least one token", param, "invalid_value")
    return ids


def finite(logprob: float | None) -> float:
    return max(LEAST_LOGPROB, logprob) if logprob is not None else LEAST_LOGPROB
