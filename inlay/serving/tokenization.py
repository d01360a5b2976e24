"""Between words and tokens: prompts as ids, and single tokens as the API spells them."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from inlay.evals.inference import encode_prompt
from inlay.serving.errors import invalid, shown
from inlay.serving.streaming import HALF

if TYPE_CHECKING:
    from inlay.evals.inference import Base

MOST_SPELLED = 1 << 17
"""Tokens whose spelling is remembered."""
LONG_TOKEN = 16
"""Characters; most texts have more tokens than one for each so many."""
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenization:
    """One base's tokenizer, for several threads."""

    def __init__(self, base: Base) -> None:
        self._tokenizer = base.tokenizer
        self._vocabulary = int(base.model.get_input_embeddings().weight.shape[0])
        self._knows_developer = "developer" in str(base.tokenizer.chat_template)
        self._lock = (
            threading.Lock()
        )  # a fast tokenizer that is asked twice at once may raise "Already borrowed"
        self._spelled: dict[int, tuple[str, list[int] | None]] = {}
        self._anchor = self._tokenizer.encode("a", add_special_tokens=False)[-1:]
        self._anchored = str(self._tokenizer.decode(self._anchor))
        self._byte_of = _byte_alphabet()

    def conversation(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Token ids of (role, text) messages up to where the assistant begins. ApiError where the base's
        template does not take them."""
        from jinja2 import TemplateError

        said = [
            {"role": "system" if role == "developer" and not self._knows_developer else role, "content": text}
            for role, text in messages
        ]
        try:
            with self._lock:
                return encode_prompt(self._tokenizer, said)
        except TemplateError as error:
            raise invalid(
                f"the base's chat template refuses these messages: {shown(error)}", "messages"
            ) from None

    def text(self, prompt: str) -> list[int]:
        """Token ids of a text that no template is put around."""
        with self._lock:
            return [int(i) for i in self._tokenizer(prompt, verbose=False)["input_ids"]]

    def surely_longer(self, text: str, limit: int) -> bool:
        """Whether a text has more tokens than that, without reading all of it: a megabyte takes seconds.
        False where it must be read to know."""
        cut = LONG_TOKEN * limit
        while len(text) > cut:
            with self._lock:
                begun = len(self._tokenizer(text[:cut], verbose=False)["input_ids"])
            if begun > limit + LONG_TOKEN:  # the last ones may be others once more follows
                return True
            cut *= 2
        return False

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """ApiError unless the base has these tokens."""
        highest = max(ids)
        if highest >= self._vocabulary:
            raise invalid(
                f"token ids must be below {self._vocabulary}, got {highest}", param, "invalid_value"
            )

    def spelled(self, token: int) -> tuple[str, list[int] | None]:
        """(text, UTF-8 bytes) of one token; `bytes:\\\\x…` where it is no whole character, and None for bytes
        that the tokenizer does not tell."""
        found = self._spelled.get(token)
        if found is None:
            found = self._spell(token)
            if len(self._spelled) < MOST_SPELLED:
                self._spelled[token] = found
        return found

    def _spell(self, token: int) -> tuple[str, list[int] | None]:
        # Decoders strip the blank before a first token, so it is decoded after another.
        both = str(self._tokenizer.decode([*self._anchor, token]))
        alone = str(self._tokenizer.decode([token]))
        text = both[len(self._anchored) :] if both.startswith(self._anchored) else alone
        if HALF not in text:
            return text, list(text.encode())
        piece = str(self._tokenizer.convert_ids_to_tokens(token))
        if match := _BYTE_PIECE.fullmatch(piece):
            raw = [int(match[1], 16)]
        elif all(character in self._byte_of for character in piece):
            raw = [self._byte_of[character] for character in piece]
        else:
            return text, None
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw), raw


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level tokenizers write bytes as (Radford et al. 2019, GPT-2)."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}
