"""Supervised fine-tuning: the loss is taken on the answers only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datasets import Dataset as Table
from trl import SFTConfig, SFTTrainer

from inlay.errors import InputError
from inlay.evals.inference import Base, encode_pair
from inlay.trainers.methods.job import Anchored, Job, Prepared

if TYPE_CHECKING:
    from inlay.evals.inference import Progress
    from inlay.trainers.data import Dataset
    from inlay.trainers.settings import Settings

READS = "rows"
TRAINS = "adapter"


class AnchoredSFTTrainer(Anchored, SFTTrainer):
    """TRL's SFTTrainer with the anchor's term in its loss."""


def trainer(job: Job) -> AnchoredSFTTrainer:
    return AnchoredSFTTrainer(
        anchor=job.anchor,
        kl=job.settings.kl,
        model=job.model,
        args=SFTConfig(**job.arguments, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=Table.from_list(job.rows),
        processing_class=job.base.tokenizer,
        callbacks=job.callbacks,
    )


def prepared(base: Base, data: Dataset, settings: Settings, progress: Progress | None = None) -> Prepared:
    """{"input_ids", "labels"} a row; labels are -100 at the prompt's tokens. Raises InputError for a row
    longer than the context."""
    limit = longest(base, settings)
    rows = []
    for number, example in enumerate(data, 1):
        ids, n_prompt = encode_pair(base.tokenizer, example.messages, example.answer)
        refuse_longer(len(ids), limit, f"row {number} of {data.name}")
        rows.append({"input_ids": ids, "labels": [-100] * n_prompt + ids[n_prompt:]})
    return Prepared(rows)


def longest(base: Base, settings: Settings) -> int:
    """Tokens that a row may have: `max_length`, or the base's context where that is shorter."""
    context: int = getattr(base.model.config, "max_position_embeddings", settings.max_length)
    return min(settings.max_length, context)


def refuse_longer(tokens: int, limit: int, where: str) -> None:
    if tokens > limit:
        raise InputError(
            f"a row must fit {limit} tokens, and {where} has {tokens}",
            fix="shorten the row, or raise max_length if the base's context allows it",
        )
