"""What keeps an adapter close to its base: KL on general prompts and the base's own answers.

The base's distribution at the positions of its own answers is the teacher; the adapted model the student.
Forward KL, as in RL's Razor (arXiv:2509.04259) and replay with KL (arXiv:2512.22337).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from inlay.evals.inference import encode_pair, head_only_at, pad

KEPT_BYTES = 1 << 30
"""Bound on the teacher's log-probabilities kept in memory; what does not fit is computed again."""


class Anchor:
    """Draws general prompts in seeded order and measures how far the adapted model has moved on them.

    `prompts` and `answers` (the base's own, of equal length) are strings; `rows` of them make a step.
    """

    def __init__(
        self, tokenizer: Any, prompts: list[str], answers: list[str], *, rows: int, seed: int, device: str
    ) -> None:
        self.pairs = [encode_pair(tokenizer, p, a) for p, a in zip(prompts, answers, strict=True)]
        self.rows = min(rows, len(self.pairs))
        self.pad_id = tokenizer.pad_token_id
        self.device = device
        self.tokens = 0
        """General tokens seen so far, prompt and answer."""
        self._teacher: dict[int, torch.Tensor] = {}
        self._kept = 0
        self._draws = self._endless(torch.Generator().manual_seed(seed))

    def _endless(self, generator: torch.Generator) -> Iterator[int]:
        while True:
            yield from torch.randperm(len(self.pairs), generator=generator).tolist()

    def kl(self, model: Any) -> torch.Tensor:
        """Mean over answer positions of KL(base ‖ model), in nats; a scalar with gradient.

        KL = Σ_v p(v) (log p(v) − log q(v)), with p the base (adapter off) and q the model.
        """
        chosen = [next(self._draws) for _ in range(self.rows)]
        student = torch.log_softmax(self._logits(model, chosen).float(), dim=-1)
        teacher = self._teacher_log_probs(model, chosen)
        return (teacher.exp() * (teacher - student)).sum(-1).mean()

    def _logits(self, model: Any, chosen: list[int]) -> torch.Tensor:
        """(answer positions of the chosen rows, vocab), rows in the order chosen."""
        rows = [self.pairs[i] for i in chosen]
        ids, mask = pad([ids for ids, _ in rows], self.pad_id, side="right", device=self.device)
        self.tokens += int(mask.sum())
        predicts = torch.zeros_like(mask, dtype=torch.bool)
        for r, (row, n_prompt) in enumerate(rows):
            predicts[r, n_prompt - 1 : len(row) - 1] = True  # position t predicts token t + 1
        with head_only_at(model, predicts):
            return model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0]

    def _teacher_log_probs(self, model: Any, chosen: list[int]) -> torch.Tensor:
        missing = sorted(set(chosen) - set(self._teacher))
        fresh: dict[int, torch.Tensor] = {}
        if missing:
            seen = self.tokens
            with torch.no_grad(), _as_base(model):
                log_probs = torch.log_softmax(self._logits(model, missing).float(), dim=-1)
            self.tokens = seen
            counts = [len(self.pairs[i][0]) - self.pairs[i][1] for i in missing]
            fresh = dict(zip(missing, log_probs.split(counts), strict=True))
            for i, rows in fresh.items():
                if self._kept + rows.nbytes <= KEPT_BYTES:
                    self._teacher[i] = rows.clone()
                    self._kept += rows.nbytes
        return torch.cat([self._teacher[i] if i in self._teacher else fresh[i] for i in chosen])


@contextlib.contextmanager
def _as_base(model: Any) -> Iterator[None]:
    """The model with its adapter off and without dropout."""
    training = model.training
    model.eval()
    with model.disable_adapter():
        yield
    model.train(training)
