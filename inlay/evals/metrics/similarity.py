"""Semantic similarity: the cosine between embeddings of prediction and answer, by a model that the caller
names (`evaluate(…, embedding=PATH)`); the protocol carries its fingerprint.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.evals.metrics.rule import Metric

if TYPE_CHECKING:
    import torch

    from inlay.registry.fingerprint import BaseFingerprint

_BATCH_TOKENS = 4096
_NO_LIMIT = 1 << 30


class Embedder:
    """Texts to vectors: the mean over a text's tokens of the model's last hidden states.

    Raises InputError where the folder has no tokenizer or no safetensors; nothing in it is executed.
    """

    def __init__(self, path: str | Path, *, device: str = "cpu") -> None:
        self.fingerprint, self._model, self._tokenizer = _loaded(str(path), device)
        self._device = device

    @property
    def protocol(self) -> dict[str, Any]:
        """What a protocol must say about it."""
        return {"weights": self.fingerprint.weights, "prompt": self.fingerprint.prompt}

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors, float32 (texts, hidden), on the CPU; zeros for a text without tokens. Texts longer
        than the model's context are cut."""
        import torch

        from inlay.evals.inference import batches_by_length, pad

        # Some keep rows of their position table for padding; their tokenizer knows how many are left.
        room = getattr(self._model.config, "max_position_embeddings", _NO_LIMIT)
        limit = min(room, self._tokenizer.model_max_length)
        rows = [self._tokenizer(text, truncation=True, max_length=limit)["input_ids"] for text in texts]
        vectors = torch.zeros(len(texts), self._model.config.hidden_size)
        some = [i for i, row in enumerate(rows) if row]
        for batch in batches_by_length([len(rows[i]) for i in some], _BATCH_TOKENS):
            chosen = [some[k] for k in batch]
            ids, mask = pad([rows[i] for i in chosen], 0, side="right", device=self._device)
            with torch.inference_mode():
                hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            kept = mask.unsqueeze(-1)
            means = (hidden * kept).sum(1) / kept.sum(1)
            vectors[chosen] = torch.nn.functional.normalize(means, dim=-1).cpu()
        return vectors

    def cosines(self, ones: Sequence[str], others: Sequence[str]) -> list[float]:
        """The cosine of each pair, -1 to 1."""
        pairs = (self(ones) * self(others)).sum(-1).clamp(-1.0, 1.0)
        return [float(x) for x in pairs]


@lru_cache(maxsize=1)
def _loaded(path: str, device: str) -> tuple[BaseFingerprint, Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    from inlay.evals.inference import quiet_transformers
    from inlay.registry.fingerprint import BaseFingerprint

    fingerprint = BaseFingerprint.of(path)
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(str(fingerprint.path), trust_remote_code=False)
        model = AutoModel.from_pretrained(
            str(fingerprint.path), dtype="auto", trust_remote_code=False, use_safetensors=True
        )
    model.to(device).eval()
    return fingerprint, model, tokenizer


def similarity(cosine: float) -> float:
    """The cosine itself, -1 to 1; of several references the nearest."""
    return cosine


SIMILARITY = Metric("similarity", 1, "generate", similarity, graded=True, lowest=-1.0, embeds=True)
