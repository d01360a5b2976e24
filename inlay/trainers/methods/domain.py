"""Further pretraining on raw text: the loss is taken on every token that a document's earlier ones precede.

Documents are packed into blocks by best fit (arXiv:2404.10830), each with position ids of its own, from which
transformers makes attention see no document but a token's own. Where a model does not go by them (another
attention, an adapter that learns a prompt), a document is a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset as Table
from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from trl import SFTConfig, SFTTrainer, pack_dataset

from inlay.evals.inference import Base, pad
from inlay.trainers.methods.job import Anchored, Job, Prepared
from inlay.trainers.methods.sft import longest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from inlay.evals.inference import Chat, Progress
    from inlay.trainers.settings import Settings
    from inlay.trainers.texts import Texts

READS = "texts"
TRAINS = "adapter"

SAME = 1e-3
"""Nats a token by which a document in a block may differ from itself alone: half precision rounds by less, a
document that sees its neighbours is off by far more."""


class Blocks:
    """Rows of {"input_ids", "labels", "seq_lengths"} to a batch: ids, labels and position ids, long
    (rows, longest); "tokens", long (rows,), without padding. A document's first token has no label, and
    padding is a document of its own.

    TRL's collator makes one row of a batch instead, whose attention costs the square of the batch.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids, mask = pad([row["input_ids"] for row in rows], self.pad_id, side="right", device="cpu")
        labels, _ = pad([row["labels"] for row in rows], -100, side="right", device="cpu")
        width = ids.shape[1]
        places = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            used = len(row["input_ids"])
            lengths = [*row["seq_lengths"], *([width - used] if width > used else [])]
            places[i] = torch.cat([torch.arange(length) for length in lengths])
        labels[places == 0] = -100
        return {"input_ids": ids, "labels": labels, "position_ids": places, "tokens": mask.sum(1)}


class _PackedSFTTrainer(SFTTrainer):
    """TRL's SFTTrainer, which counts a batch's tokens by its first row where there is no attention mask."""

    _total_train_tokens: int

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        before = self._total_train_tokens
        given = {name: value for name, value in inputs.items() if name != "tokens"}
        loss = super().compute_loss(model, given, return_outputs, num_items_in_batch)
        if "tokens" in inputs and self.model.training:
            seen = self.accelerator.gather_for_metrics(inputs["tokens"].sum()).sum()
            self._total_train_tokens = before + int(seen)
        return loss


class AnchoredDomainTrainer(Anchored, _PackedSFTTrainer):
    """The same with the anchor's term in its loss. `record`: plain JSON of how documents became rows."""

    record: dict[str, Any]


def trainer(job: Job) -> AnchoredDomainTrainer:
    packed = packing(job.rows, longest(job.base, job.settings))
    exact = packs_exactly(job.model, packed)
    made = AnchoredDomainTrainer(
        anchor=job.anchor,
        kl=job.settings.kl,
        model=job.model,
        args=SFTConfig(**job.arguments, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=Table.from_list(packed if exact else job.rows),
        data_collator=Blocks(job.base.tokenizer.pad_token_id) if exact else None,
        processing_class=job.base.tokenizer,
        callbacks=job.callbacks,
    )
    made.record = {"packed": exact, "rows": len(packed if exact else job.rows)}
    return made


def prepared(base: Base, data: Texts, settings: Settings, progress: Progress | None = None) -> Prepared:
    """{"input_ids", "labels"} a document with the end of text behind it; one longer than a row becomes
    several, so that no token is lost."""
    block = longest(base, settings)
    rows = [{"input_ids": ids, "labels": ids} for text in data for ids in pieces(base.tokenizer, text, block)]
    record = {"documents": len(data), "tokens": sum(len(row["input_ids"]) for row in rows), "block": block}
    return Prepared(rows, record)


def pieces(tokenizer: PreTrainedTokenizerBase, text: str, block: int) -> list[list[int]]:
    """Token ids of a document and its end, in pieces of at most `block`."""
    ids = [int(i) for i in tokenizer(text)["input_ids"]]
    if ids[-1] != tokenizer.eos_token_id:
        ids.append(int(tokenizer.eos_token_id))
    return [ids[start : start + block] for start in range(0, len(ids), block)]


def packing(rows: Sequence[dict[str, Any]], block: int) -> list[dict[str, Any]]:
    """{"input_ids", "labels", "seq_lengths"}: rows one behind the other, at most `block` tokens together."""
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        packed = pack_dataset(Table.from_list(list(rows)), block, "bfd")
    finally:
        if shown:
            enable_progress_bars()
    return packed.with_format(None).to_list()


@torch.no_grad()
def packs_exactly(model: Any, rows: Sequence[dict[str, Any]]) -> bool:
    """Has the second document of a block the logits that it has alone, to `SAME`? True where no block has
    two."""
    if any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values()):
        return False
    block = next((row for row in rows if len(row["seq_lengths"]) > 1), None)
    if block is None:
        return True
    first, second = block["seq_lengths"][:2]
    training = model.training
    model.eval()
    ids = torch.tensor([block["input_ids"][: first + second]], device=model.device)
    places = torch.cat([torch.arange(first), torch.arange(second)])[None].to(model.device)
    together = model(input_ids=ids, position_ids=places, use_cache=False).logits[0, first:].float()
    alone = model(input_ids=ids[:, first:], use_cache=False).logits[0].float()
    model.train(training)
    one, other = torch.log_softmax(together, -1), torch.log_softmax(alone, -1)
    return bool(((other.exp() * (other - one)).sum(-1).abs() < SAME).all())


def figures(chat: Chat, data: Texts) -> list[tuple[float, int]]:
    """(nats, tokens that were predicted) of each document."""
    return likelihoods(chat, list(data))


def likelihoods(
    chat: Chat, documents: Sequence[str], progress: Progress | None = None
) -> list[tuple[float, int]]:
    """(nats, tokens that were predicted) of each document, in pieces of the context. `progress` counts
    pieces."""
    block = getattr(chat.model.config, "max_position_embeddings", None) or 1 << 12
    parts = [pieces(chat.tokenizer, text, block) for text in documents]
    found = iter(chat.text_likelihoods([piece for each in parts for piece in each], progress=progress))
    sums = [[next(found) for _ in each] for each in parts]
    return [(math.fsum(nats for nats, _ in each), sum(n for _, n in each)) for each in sums]


def compared(before: Sequence[tuple[float, int]], after: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """Nats a token and perplexity of both, and by how many nats a token the base's is higher: the 95%
    interval of a ratio of sums over documents (Cochran 1977, 2.11), by Student's t."""
    from scipy.special import stdtrit

    tokens = sum(n for _, n in before)
    base, mine = (math.fsum(nats for nats, _ in each) / tokens for each in (before, after))
    n, gain, reach = len(before), base - mine, math.inf
    if n > 1:
        off = [(b - m - gain * count) ** 2 for (b, count), (m, _) in zip(before, after, strict=True)]
        reach = float(stdtrit(n - 1, 0.975)) * math.sqrt(n / (n - 1) * math.fsum(off)) / tokens
    return {
        "documents": n,
        "tokens": tokens,
        "nats_per_token": {"base": base, "adapter": mine},
        "perplexity": {"base": math.exp(base), "adapter": math.exp(mine)},
        "gain": {"low": gain - reach if n > 1 else None, "high": gain + reach if n > 1 else None},
    }


def said(record: dict[str, Any]) -> str:
    nats, perplexity, gain = (record[key] for key in ("nats_per_token", "perplexity", "gain"))
    better = nats["base"] - nats["adapter"]
    bounds = "" if gain["low"] is None else f", 95% interval {gain['low']:.3f} to {gain['high']:.3f}"
    return (
        f"On held-out text ({record['documents']} documents, {record['tokens']} tokens) it takes "
        f"{nats['adapter']:.3f} nats a token, the base {nats['base']:.3f} (perplexity "
        f"{perplexity['adapter']:.1f} against {perplexity['base']:.1f}; {better:.3f} nats better{bounds})."
    )
