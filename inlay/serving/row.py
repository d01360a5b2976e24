"""One request from the moment it waits to its end: what it has said, and whom it tells."""

from __future__ import annotations

import logging
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from inlay.errors import InlayError
from inlay.serving.prefixes import Whose
from inlay.serving.requests import Ended, Event, Failed, Hear, Request, Token
from inlay.serving.row_adapters import Voice
from inlay.serving.sampling import Drawn, Sampler
from inlay.serving.streaming import TextStream

if TYPE_CHECKING:
    from inlay.serving.shelf import Loaded

LOG = logging.getLogger(__name__)


class NotFinite(InlayError):
    """A row's logits are NaN or infinite: its adapters overflowed, or are broken."""

    exit_code = 1


@dataclass(eq=False)
class Row:
    """One request, from the moment it waits. `said`: the tokens drawn so far; `cached`: how many of the
    prompt's were known."""

    request: Request
    loaded: Loaded
    hear: Hear
    stream: TextStream
    sampler: Sampler
    voice: Voice = field(default_factory=Voice)
    said: list[int] = field(default_factory=list)
    cached: int = 0
    cancelled: bool = False
    end: Ended | Failed | None = None

    @property
    def tenant(self) -> str:
        return self.request.tenant

    @property
    def tokens(self) -> int:
        return len(self.request.ids)

    @property
    def gone(self) -> bool:
        """Nobody waits for its next token."""
        return self.end is not None or self.cancelled

    @property
    def whose(self) -> Whose:
        return Whose(self.request.tenant, self.loaded.digest, self.voice.key)

    def tell(self, event: Event) -> None:
        """Nothing reaches who has left; who cannot hear leaves."""
        if self.gone:
            return
        if isinstance(event, Ended | Failed):
            self.end = event
        try:
            self.hear(event)
        except Exception:
            LOG.exception("request %s could not be told, and leaves", self.request.id)
            self.cancelled = True

    def goes_on(self, drawn: Drawn, ends: Container[int]) -> bool:
        """Tell a token, and the end where that is one; `ends`: tokens that are. An end's token is not part of
        the answer."""
        try:
            if drawn.id is None:
                raise NotFinite(
                    f"a model's logits must be finite, and those of {self.loaded.ref} are NaN or infinite",
                    fix="its weights overflowed or are broken: try dtype float32, or lower the weights",
                )
            if drawn.id in ends:
                self._tell_end("stop", self.stream.end())
                return False
            self.said.append(drawn.id)
            self.tell(Token(drawn.id, self.stream.push(drawn.id), drawn.logprob, drawn.top))
            if self.stream.stopped:
                self._tell_end("stop", "")
            elif len(self.said) == self.request.sampling.max_tokens:
                rest = self.stream.end()
                self._tell_end("stop" if self.stream.stopped else "length", rest)
        except Exception as error:
            fail([self], error)
        return not self.gone

    def _tell_end(self, reason: Literal["stop", "length"], text: str) -> None:
        self.tell(Ended(reason, text, len(self.request.ids), len(self.said), self.cached))


def fail(rows: Sequence[Row], error: Exception) -> None:
    """All of them end with this error."""
    if not isinstance(error, InlayError):
        LOG.error("requests %s failed", [row.request.id for row in rows], exc_info=error)
    for row in rows:
        row.tell(Failed(error))
