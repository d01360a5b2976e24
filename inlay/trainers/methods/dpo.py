"""Direct preference optimization (arXiv:2305.18290), by TRL.

    loss = −log σ(β ((log π(chosen) − log π(rejected)) − (log π₀(chosen) − log π₀(rejected))))

π₀ is the model as the training found it, kept as a second, frozen adapter: the base, where the adapter began
at zero.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from datasets import Dataset as Table
from trl import DPOConfig, DPOTrainer

from inlay.evals.inference import Base, encode_pair
from inlay.evals.statistics import Paired
from inlay.trainers.methods.job import Anchored, Job, Prepared
from inlay.trainers.methods.sft import longest, refuse_longer

if TYPE_CHECKING:
    from inlay.evals.inference import Chat, Progress
    from inlay.trainers.pairs import Pairs
    from inlay.trainers.settings import Settings

READS = "pairs"
TRAINS = "adapter"


class AnchoredDPOTrainer(Anchored, DPOTrainer):
    """TRL's DPOTrainer with the anchor's term in its loss. Rows come with their token ids."""

    def _prepare_dataset(self, dataset: Table, *_given: Any) -> Table:
        return dataset


def trainer(job: Job) -> AnchoredDPOTrainer:
    with _copied_as_it_is(job.model):
        return AnchoredDPOTrainer(
            anchor=job.anchor,
            kl=job.settings.kl,
            model=job.model,
            args=DPOConfig(**job.arguments, beta=job.settings.dpo_beta, max_length=None),
            train_dataset=Table.from_list(job.rows),
            processing_class=job.base.tokenizer,
            callbacks=job.callbacks,
        )


@contextlib.contextmanager
def _copied_as_it_is(model: Any) -> Iterator[None]:
    """TRL adds an adapter of the same configuration and copies the weights into it. A start that is computed
    from the base's weights, as PiSSA's, would change these a second time."""
    config = model.peft_config["default"]
    start = getattr(config, "init_lora_weights", None)
    if start is None:
        yield
        return
    config.init_lora_weights = True
    try:
        yield
    finally:
        config.init_lora_weights = start


def prepared(base: Base, data: Pairs, settings: Settings, progress: Progress | None = None) -> Prepared:
    """{"prompt_ids", "chosen_ids", "rejected_ids"} a pair. Raises InputError for one longer than the
    context."""
    limit = longest(base, settings)
    rows = []
    for number, pair in enumerate(data, 1):
        chosen, n_prompt = encode_pair(base.tokenizer, pair.messages, pair.chosen)
        rejected, _ = encode_pair(base.tokenizer, pair.messages, pair.rejected)
        refuse_longer(max(len(chosen), len(rejected)), limit, f"pair {number} of {data.name}")
        rows.append(
            {
                "prompt_ids": chosen[:n_prompt],
                "chosen_ids": chosen[n_prompt:],
                "rejected_ids": rejected[n_prompt:],
            }
        )
    return Prepared(rows)


def figures(chat: Chat, data: Pairs) -> list[float]:
    """By how many nats each chosen answer is likelier than the rejected one."""
    prompts = [pair.messages for pair in data]
    chosen = chat.likelihoods(prompts, [pair.chosen for pair in data])
    rejected = chat.likelihoods(prompts, [pair.rejected for pair in data])
    return [worse - better for (better, _), (worse, _) in zip(chosen, rejected, strict=True)]


def compared(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """Share of pairs whose chosen answer is the likelier one, with the paired 95% interval of the gain; the
    mean margin in nats; the share of pairs whose margin rose, which is DPO's own accuracy."""
    counts = Paired.of([margin > 0 for margin in before], [margin > 0 for margin in after])
    low, high = counts.interval
    return {
        "pairs": len(before),
        "preferred": {"base": counts.base_score, "adapter": counts.model_score},
        "gain": {"low": low, "high": high},
        "margin": {"base": math.fsum(before) / len(before), "adapter": math.fsum(after) / len(after)},
        "risen": sum(mine > base for base, mine in zip(before, after, strict=True)) / len(before),
    }


def said(record: dict[str, Any]) -> str:
    preferred, gain, margin = (record[key] for key in ("preferred", "gain", "margin"))
    return (
        f"Of {record['pairs']} held-out pairs it prefers the chosen answer in "
        f"{100 * preferred['adapter']:.1f}%, the base in {100 * preferred['base']:.1f}% (gain "
        f"{100 * gain['low']:.1f} to {100 * gain['high']:.1f} points, 95% interval; mean margin "
        f"{margin['adapter']:.2f} nats against {margin['base']:.2f})."
    )
