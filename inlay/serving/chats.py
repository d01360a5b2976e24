"""POST /v1/chat/completions: messages in, a message out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inlay.serving.endpoint import Endpoint, Said, finite, not_empty
from inlay.serving.requests import Token
from inlay.serving.schemas import ChatRequest


class Chat(Endpoint):
    object = "chat.completion"
    chunk = "chat.completion.chunk"
    prefix = "chatcmpl-"
    param = "messages"
    asked: ChatRequest

    @property
    def max_tokens(self) -> int | None:
        return self.asked.max_completion_tokens or self.asked.max_tokens

    @property
    def logprobs(self) -> int | None:
        return (self.asked.top_logprobs or 0) if self.asked.logprobs else None

    def prompts(self) -> list[list[int]]:
        messages = [(message.role, message.text) for message in self.asked.messages]
        self.not_endless("".join(text for _, text in messages))
        return [not_empty(self.tokenization.conversation(messages), self.param)]

    def choice(self, index: int, said: Said) -> dict[str, Any]:
        assert said.end is not None
        return {
            "index": index,
            "message": {"role": "assistant", "content": said.text, "refusal": None},
            "logprobs": self._logprobs(said.tokens),
            "finish_reason": said.end.reason,
        }

    def opening(self, index: int) -> dict[str, Any]:
        delta = {"role": "assistant", "content": "", "refusal": None}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def piece(
        self, index: int, text: str, token: Token | None, offset: int, reason: str | None
    ) -> dict[str, Any]:
        return {
            "index": index,
            "delta": {"content": text} if text or token is not None else {},
            "logprobs": self._logprobs([] if token is None else [token]) if reason is None else None,
            "finish_reason": reason,
        }

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if self.logprobs is None:
            return None
        content = [
            {
                **self._one(token.id, token.logprob),
                "top_logprobs": [self._one(*other) for other in token.top[: self.logprobs]],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _one(self, token: int, logprob: float | None) -> dict[str, Any]:
        text, raw = self.tokenization.spelled(token)
        return {"token": text, "logprob": finite(logprob), "bytes": raw}
