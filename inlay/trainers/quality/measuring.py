"""What a base says of data: how long each row is in its tokens, and how likely it finds it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from inlay.trainers.quality.material import Material, Row

if TYPE_CHECKING:
    from inlay.evals.inference import Base

Say = Callable[[str, int, int], None]
"""Called with (what, done, all)."""


def measured(material: Material, base: Base, max_length: int, surprisal: bool, say: Say | None) -> Material:
    """`material` with tokens and limit, and with `surprisal` nats. A document has no limit: training cuts it
    into blocks and loses no token of it."""
    from inlay.evals.inference import quiet_transformers

    texts = material.reads == "texts"
    limit = min(max_length, getattr(base.model.config, "max_position_embeddings", None) or max_length)
    tokens = []
    with quiet_transformers():  # of rows longer than the context we speak ourselves
        for done, row in enumerate(material.rows, 1):
            tokens.append(len(base.tokenizer(row.prompt)["input_ids"]) if texts else _tokens(base, row))
            if say and (done % 100 == 0 or done == len(material.rows)):
                say("counting tokens", done, len(material.rows))
    nats: tuple[float, ...] | None = None
    if surprisal:
        nats = (
            _of_documents(material, base, say) if texts else _of_answers(material, base, tokens, limit, say)
        )
    return dataclasses.replace(material, limit=None if texts else limit, tokens=tuple(tokens), nats=nats)


def _tokens(base: Base, row: Row) -> int:
    """Of prompt and answer; of a pair with the longer one."""
    from inlay.evals.inference import encode_pair

    answers = [row.answer] if row.rejected is None else [row.answer, row.rejected]
    return max(len(encode_pair(base.tokenizer, row.example.messages, answer)[0]) for answer in answers)


def _of_answers(
    material: Material, base: Base, tokens: list[int], limit: int, say: Say | None
) -> tuple[float, ...]:
    """Nats a token of each answer given its prompt; NaN for a row that does not fit."""
    from inlay.evals.inference import Chat

    fitting = [place for place, n in enumerate(tokens) if n <= limit]
    chosen = [material.rows[place] for place in fitting]
    found = Chat(base).likelihoods(
        [row.example.messages for row in chosen],
        [row.answer for row in chosen],
        progress=(lambda d, n: say("how likely the base finds the answers", d, n)) if say else None,
    )
    nats = [math.nan] * len(tokens)
    for place, (cost, count) in zip(fitting, found, strict=True):
        nats[place] = cost / count
    return tuple(nats)


def _of_documents(material: Material, base: Base, say: Say | None) -> tuple[float, ...]:
    """Nats a token of each document, its first one aside; NaN for one of a single token."""
    from inlay.evals.inference import Chat
    from inlay.trainers.methods.domain import likelihoods

    found = likelihoods(
        Chat(base),
        [row.prompt for row in material.rows],
        progress=(lambda d, n: say("how likely the base finds the text", d, n)) if say else None,
    )
    return tuple(cost / count if count else math.nan for cost, count in found)
