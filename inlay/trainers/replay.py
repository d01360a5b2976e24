"""Replay: general prompts with the base's own answers among the task's rows, as rows like any other.

Answers of the model itself instead of somebody's: SDFT (arXiv:2402.13669), replay beside KL
(arXiv:2512.22337).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError

if TYPE_CHECKING:
    from inlay.evals.inference import Base


@dataclass(frozen=True)
class Mixed:
    """Rows to train on, the task's first. `replayed`: how many are general prompts; `token_share`: of all
    tokens, those of general prompts."""

    rows: list[dict[str, Any]]
    replayed: int
    token_share: float


def mixed(
    base: Base,
    rows: list[dict[str, Any]],
    prompts: Sequence[str],
    answers: Sequence[str],
    share: float,
    seed: int,
) -> Mixed:
    """`rows` and so many general ones, {"input_ids", "labels"} as theirs with the loss on the answer, that
    these are `share` of all, rounded. Every prompt is drawn as often as any other, give or take one; the
    trainer shuffles what comes out.

    Raises InputError for rows that are no such rows (pairs, of which a loss on one answer knows nothing).
    """
    from inlay.evals.inference import encode_pair

    if any("labels" not in row for row in rows):
        raise InputError(
            "replay mixes rows that have one answer, and this method trains on others",
            fix="leave replay at 0; KL to the base is there for every method",
        )
    draw, wanted = random.Random(seed), round(len(rows) * share / (1.0 - share))
    chosen: list[int] = []
    while len(chosen) < wanted:
        chosen += draw.sample(range(len(prompts)), len(prompts))
    general = []
    for i in chosen[:wanted]:
        ids, n_prompt = encode_pair(base.tokenizer, prompts[i], answers[i])
        general.append({"input_ids": ids, "labels": [-100] * n_prompt + ids[n_prompt:]})
    tokens, extra = (sum(len(row["input_ids"]) for row in part) for part in (rows, general))
    return Mixed([*rows, *general], wanted, extra / (tokens + extra))
