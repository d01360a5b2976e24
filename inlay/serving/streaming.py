"""From token ids to text, as they come: no half characters, no half stop texts.

What has been shown is never taken back. So text is held back while more tokens could change it: bytes that
are not a character yet, what the tokenizer's decoder rewrites once it is whole, and what may become a text
that ends the answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HALF = "\N{REPLACEMENT CHARACTER}"
"""What decoders show for bytes that are no character, or not yet."""

CLEANED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")
"""What tokenizers that clean up rewrite."""

LONGEST, CONTEXT = 32, 8
"""Tokens decoded at once while they come, and how many of them go on when more would be."""


@dataclass(frozen=True)
class Spelling:
    """What a stream must know of a tokenizer. `rewritten`: texts of several characters that its decoder makes
    something else of, whole; `unsettled`: tokens after which what came before them may still change."""

    tokenizer: PreTrainedTokenizerBase
    rewritten: tuple[str, ...]
    unsettled: frozenset[int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Spelling:
        texts = list(CLEANED) if getattr(tokenizer, "clean_up_tokenization_spaces", False) else []
        unsettled: set[int] = set()
        decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
        for part in _parts(json.loads(decoder.__getstate__())) if decoder is not None else ():
            if part["type"] == "Replace" and "String" in part["pattern"]:
                texts.append(part["pattern"]["String"])
            if part.get("cleanup"):
                texts += CLEANED
            if part["type"] == "ByteFallback":
                # One byte that is no character makes none of its whole run: special tokens do not end it.
                bytes_ = tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in range(256)])
                unsettled |= {i for i in bytes_ if i is not None and i != tokenizer.unk_token_id}
                unsettled |= set(tokenizer.all_special_ids)
        return cls(
            tokenizer, tuple(text for text in dict.fromkeys(texts) if len(text) > 1), frozenset(unsettled)
        )

    def text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


class TextStream:
    """The text of one answer. What `push` returned for each token and `end` for the last, joined, is
    `tokenizer.decode(ids, skip_special_tokens=True)` up to the first stop text; `stopped` says that one came.
    """

    def __init__(self, spelling: Spelling, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self.ids: list[int] = []
        self._spelling = spelling
        self._stop = tuple(stop)
        self._from = 0
        self._decided = 0  # characters of what is decoded from there on
        self._known = 0  # characters in all
        self._held = ""  # known, and perhaps the beginning of a stop text

    def push(self, token: int) -> str:
        """What may be shown now."""
        self.ids.append(token)
        if self.stopped or token in self._spelling.unsettled:
            return ""
        text = self._spelling.text(self.ids[self._from :])
        whole = len(text.rstrip(HALF))
        whole -= _begun(text[:whole], self._spelling.rewritten)
        new = text[self._decided : whole]
        self._known += len(new)
        self._decided = max(whole, self._decided)
        if whole == len(text) and len(self.ids) - self._from >= LONGEST:
            self._from = len(self.ids) - CONTEXT
            self._decided = len(self._spelling.text(self.ids[self._from :]))
        return self._shown(new)

    def end(self) -> str:
        """What was still held back; nothing follows."""
        if self.stopped:
            return ""
        shown = self._shown(self._spelling.text(self.ids)[self._known :])
        rest, self._held = self._held, ""
        return shown if self.stopped else shown + rest

    def _shown(self, new: str) -> str:
        self._held += new
        found = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = len(self._held) - _begun(self._held, self._stop)
        shown, self._held = self._held[:keep], self._held[keep:]
        return shown


def _parts(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield decoder
    for part in decoder.get("decoders", ()):
        yield from _parts(part)


def _begun(text: str, wanted: Sequence[str]) -> int:
    """The most characters at the end of a text that one of these begins with, not being all of it."""
    return max(
        (n for each in wanted for n in range(1, min(len(each), len(text) + 1)) if text.endswith(each[:n])),
        default=0,
    )
