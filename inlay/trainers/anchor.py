"""What keeps an adapter close to its base: KL on general prompts and the base's own answers.

The base's distribution is the teacher, the adapted model the student. Forward KL, as in RL's Razor
(arXiv:2509.04259) and replay with KL (arXiv:2512.22337). It is taken where the answers' tokens are predicted
and where the prompts' own are: a skill that never stands in the prompts shares their words but not their
answers. On real data that nearly halved what was lost of such skills (docs/training.md has the figures).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from inlay.evals.inference import encode_pair, head_only_at, pad

KEPT_BYTES = 1 << 30
"""Bound on the teacher's final hidden states kept in memory; what does not fit is computed again."""


class Anchor:
    """Draws general prompts in seeded order and measures how far the adapted model has moved on them.

    `prompts` and `answers` (the base's own, of equal length) are strings; `rows` of them make a step;
    `prompt_weight` is the weight of the prompts' positions beside the answers'.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompts: list[str],
        answers: list[str],
        *,
        rows: int,
        prompt_weight: float,
        seed: int,
        device: str,
    ) -> None:
        self.pairs = [encode_pair(tokenizer, p, a) for p, a in zip(prompts, answers, strict=True)]
        self.rows = min(rows, len(self.pairs))
        self.prompt_weight = prompt_weight
        self.pad_id = tokenizer.pad_token_id
        self.device = device
        self.tokens = 0
        """General tokens the student has seen so far, prompt and answer."""
        self._teacher: dict[int, torch.Tensor] = {}
        self._kept = 0
        self._draws = self._endless(torch.Generator().manual_seed(seed))

    def _endless(self, generator: torch.Generator) -> Iterator[int]:
        while True:
            yield from torch.randperm(len(self.pairs), generator=generator).tolist()

    def kl(self, model: Any) -> torch.Tensor:
        """Mean over answer positions + prompt_weight × mean over prompt positions of KL(base ‖ model), in
        nats; a scalar with gradient.

        KL = Σ_v p(v) (log p(v) − log q(v)), with p the base (adapter off) and q the model.
        """
        chosen = [next(self._draws) for _ in range(self.rows)]
        self.tokens += sum(len(self.pairs[i][0]) for i in chosen)
        logits, _ = self._forward(model, chosen)
        student = torch.log_softmax(logits.float(), dim=-1)
        teacher = self._teacher_log_probs(model, chosen)
        return (self._weights(chosen) * (teacher.exp() * (teacher - student)).sum(-1)).sum()

    def _weights(self, chosen: list[int]) -> torch.Tensor:
        """What each predicting position counts, (positions,): those of the answers sum to 1."""
        answers = torch.cat(
            [torch.arange(1, len(ids)) >= n_prompt for ids, n_prompt in (self.pairs[i] for i in chosen)]
        )
        weights = torch.where(
            answers, 1.0 / answers.sum(), self.prompt_weight / (~answers).sum().clamp_min(1)
        )
        return weights.to(self.device)

    def _forward(self, model: Any, chosen: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (positions, vocab) and final hidden states (positions, hidden), all positions that predict a
        token, row after row in the order chosen."""
        rows = [self.pairs[i][0] for i in chosen]
        ids, mask = pad(rows, self.pad_id, side="right", device=self.device)
        predicts = torch.zeros_like(mask, dtype=torch.bool)
        predicts[:, :-1] = mask[:, 1:].bool()
        with head_only_at(model, predicts) as seen:
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0]
        return logits, seen[0]

    def _teacher_log_probs(self, model: Any, chosen: list[int]) -> torch.Tensor:
        """The base's log-probabilities for the same positions. Kept as hidden states, which are some hundred
        times smaller; an architecture that changes logits after its head would make them wrong, so the first
        batch is compared, and nothing is kept where the two differ."""
        with torch.no_grad(), _as_base(model):
            missing = sorted(set(chosen) - set(self._teacher))
            if missing:
                logits, hidden = self._forward(model, chosen)
                if self._kept == 0 and not torch.allclose(_head(model, hidden), logits.float(), atol=1e-4):
                    self._kept = KEPT_BYTES
                sizes = [len(self.pairs[i][0]) - 1 for i in chosen]
                for i, rows in zip(chosen, hidden.split(sizes), strict=True):
                    if i not in self._teacher and self._kept + rows.nbytes <= KEPT_BYTES:
                        self._teacher[i] = rows.clone()
                        self._kept += rows.nbytes
            else:
                logits = _head(model, torch.cat([self._teacher[i] for i in chosen]))
            return torch.log_softmax(logits.float(), dim=-1)


def _head(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    return model.get_output_embeddings()(hidden).float()


@contextlib.contextmanager
def _as_base(model: Any) -> Iterator[None]:
    """The model with its adapter off and without dropout."""
    training = model.training
    model.eval()
    with model.disable_adapter():
        yield
    model.train(training)
