"""POST /v1/completions: text, or tokens, to go on from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inlay.serving.endpoint import Endpoint, Said, finite, not_empty
from inlay.serving.requests import Token
from inlay.serving.schemas import CompletionRequest

MAX_TOKENS = 16
"""OpenAI's, where a request does not say."""


class Completions(Endpoint):
    object = "text_completion"
    chunk = "text_completion"
    prefix = "cmpl-"
    param = "prompt"
    asked: CompletionRequest

    @property
    def max_tokens(self) -> int | None:
        return self.asked.max_tokens or MAX_TOKENS

    @property
    def logprobs(self) -> int | None:
        return self.asked.logprobs

    def prompts(self) -> list[list[int]]:
        given = self.asked.prompt
        several = [given] if isinstance(given, str) or isinstance(given[0], int) else given
        found = []
        for prompt in several:
            if isinstance(prompt, str):
                self.not_endless(prompt)
                ids = self.tokenization.text(prompt)
            else:
                ids = list(prompt)
                self.tokenization.check_ids(ids, self.param)
            found.append(not_empty(ids, self.param))
        return found

    def choice(self, index: int, said: Said) -> dict[str, Any]:
        assert said.end is not None
        offsets, at = [], 0
        for text in said.texts[: len(said.tokens)]:
            offsets.append(at)
            at += len(text)
        return {
            "index": index,
            "text": said.text,
            "logprobs": self._logprobs(said.tokens, offsets),
            "finish_reason": said.end.reason,
        }

    def piece(
        self, index: int, text: str, token: Token | None, offset: int, reason: str | None
    ) -> dict[str, Any]:
        logprobs = None if token is None else self._logprobs([token], [offset])
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, tokens: Sequence[Token], offsets: Sequence[int]) -> dict[str, Any] | None:
        if self.logprobs is None:
            return None
        spelled = [self.tokenization.spelled(token.id)[0] for token in tokens]
        tops = [
            {
                self.tokenization.spelled(other)[0]: finite(logprob)
                for other, logprob in token.top[: self.logprobs]
            }
            for token in tokens
        ]
        return {
            "tokens": spelled,
            "token_logprobs": [finite(token.logprob) for token in tokens],
            "top_logprobs": tops,
            "text_offset": list(offsets),
        }
