"""The one place that turns prompts into tensors and tensors into answers.

Knows chat templates, padding, batches and greedy decoding. Does not know suites, scores, adapters or
recipes: a composed model hands in its router as `route`, a callable.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from inlay.errors import InputError
from inlay.registry.fingerprint import BaseFingerprint

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Prompt: TypeAlias = "str | list[dict[str, str]]"
"""A user's message, or a whole conversation as a list of {"role", "content"}."""

Route: TypeAlias = "Callable[[list[list[int]]], AbstractContextManager[None]]"
"""Given the prompts' token ids of one batch, a context in which the model's gates are set for its rows."""

Prefill: TypeAlias = (
    "Callable[[list[list[int]], torch.Tensor, torch.Tensor, dict[str, Any]], AbstractContextManager[Any]]"
)
"""A `Route` for generation: given the ids of one batch, as lists and left-padded with their mask, and the
settings of the decoding, a context that yields the cache to start from, or None."""

Progress: TypeAlias = "Callable[[int, int], None]"
"""Called with (items done, items in all)."""

PLAIN: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_new_tokens": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
}
"""What a base's own generation settings must not add: some ship with a penalty for repetition, and greedy
decoding would then not be the argmax that one forward pass shows."""

_LOGITS_AT_ONCE = 1 << 26
"""Logits computed in one piece, 256 MB in float32."""


class PromptError(InputError):
    """An error about one of the prompts of a call; `index` is its place among them."""

    def __init__(self, message: str, *, index: int, fix: str | None = None) -> None:
        super().__init__(message, fix=fix)
        self.index = index


@dataclass(frozen=True)
class Base:
    """A loaded base: the model in evaluation mode, its tokenizer, and the fingerprint of its files."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: BaseFingerprint


def pick_device(device: str = "auto") -> str:
    """`auto` is the first CUDA device where there is one, else the CPU."""
    import torch

    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_base(base: str | Path | BaseFingerprint, *, device: str = "auto", dtype: str | None = None) -> Base:
    """Load a base from a directory or hub id; nothing in it is executed.

    `dtype`: a torch dtype's name; by default float32 on the CPU (half precision is slow and inexact there)
    and the dtype of the base's config elsewhere. Raises InputError where files are missing or unsafe.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    fingerprint = base if isinstance(base, BaseFingerprint) else BaseFingerprint.of(base)
    device = pick_device(device)
    if dtype is None:
        dtype = "float32" if device == "cpu" else "auto"
    path = str(fingerprint.path)
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=False,
            use_safetensors=True,
        )
    if not tokenizer.chat_template:
        raise InputError(
            f"a base needs a chat template, and {fingerprint.name} has none",
            fix="take the instruction-tuned model of the same family",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.to(device)
    model.eval()
    model.requires_grad_(False)
    return Base(model, tokenizer, fingerprint)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Loading bars and advice of transformers off: Inlay draws its own progress."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def as_messages(prompt: Prompt) -> list[dict[str, str]]:
    """A bare string is one user message."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Token ids of the conversation up to where the assistant begins to answer."""
    ids = tokenizer.apply_chat_template(
        as_messages(prompt), add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return [int(i) for i in ids]


def encode_pair(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, answer: str) -> tuple[list[int], int]:
    """Token ids of prompt, answer and the end of the turn, and how many of them are the prompt's.

    What follows the end-of-turn token (some templates add a line break) is cut: no decoder emits it.
    Raises InputError if the template rewrites the prompt once an answer follows, since then no position
    of the answer is well defined.
    """
    head = encode_prompt(tokenizer, prompt)
    whole = tokenizer.apply_chat_template(
        [*as_messages(prompt), {"role": "assistant", "content": answer}], tokenize=True, return_dict=False
    )
    whole = [int(i) for i in whole]
    if whole[: len(head)] != head:
        raise InputError(
            "the chat template must keep the prompt's tokens when an answer follows, and it changes them",
            fix="use a template whose generation prompt is a prefix of the full conversation",
        )
    tail = whole[len(head) :]
    if tokenizer.eos_token_id in tail:
        tail = tail[: tail.index(tokenizer.eos_token_id) + 1]
    else:
        tail = [*tail, int(tokenizer.eos_token_id)]
    return [*head, *tail], len(head)


def batches_by_length(
    lengths: Sequence[int], batch_tokens: int, batch_rows: int = 256
) -> Iterator[list[int]]:
    """Indices grouped so that a padded batch holds at most `batch_tokens` tokens; longest first, so that
    a batch too large for the memory fails at once and not after minutes."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        rows = max(1, min(batch_rows, batch_tokens // max(1, lengths[order[start]])))
        yield order[start : start + rows]
        start += rows


def pad(
    rows: Sequence[Sequence[int]], value: int, *, side: str, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids -> (ids, mask), both long (rows, longest)."""
    import torch

    width = max(len(r) for r in rows)
    ids = torch.full((len(rows), width), value, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, where] = torch.tensor(row, dtype=torch.long)
        mask[i, where] = 1
    return ids.to(device), mask.to(device)


@contextlib.contextmanager
def head_only_at(model: torch.nn.Module, positions: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Inside, the model's head sees only the hidden states at `positions` (bool (batch, length)), so the
    logits of a forward are (1, positions.sum(), vocab) instead of (batch, length, vocab). What the model
    does to logits after its head (scaling, capping) still happens. Yields a list that receives those
    hidden states, (positions.sum(), hidden)."""
    seen: list[torch.Tensor] = []

    def select(_module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        # What a prompt-tuned model puts before its input is no position of it.
        seen.append(args[0][:, -positions.shape[1] :][positions])
        return (seen[-1].unsqueeze(0), *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(select)  # type: ignore[operator]
    try:
        yield seen
    finally:
        handle.remove()


@contextlib.contextmanager
def drawn_from(seed: int | None, device: str) -> Iterator[None]:
    """Inside, torch's draws start from `seed`; afterwards its generators are as before. None: no change."""
    import torch

    if seed is None:
        yield
        return
    devices = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _not_finite(index: int) -> PromptError:
    return PromptError(
        "a model's logits must be finite, and they are NaN or infinite",
        index=index,
        fix="its weights overflowed or are broken: try dtype float32, else train it again at a lower rate",
    )


def _finite_rows(rows: Sequence[int]) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A logits processor that changes nothing and raises PromptError where a row's highest logit is NaN or
    infinite; `rows` are the prompts' indices, each of which may stand for several beams."""
    import torch

    def check(_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        bad = ~torch.isfinite(scores.amax(-1))
        if bool(bad.any()):
            raise _not_finite(rows[int(bad.nonzero()[0]) * len(rows) // len(scores)])
        return scores

    return check


class Chat:
    """A causal language model asked through its chat template.

    `route`, where given, is entered around every batch with the prompts' token ids, so that a composed
    model can set its gates for exactly those rows; `prefill`, where given, in its place around generation, so
    that what was computed to choose is not computed again. Greedy unless told otherwise.
    """

    def __init__(
        self,
        base: Base,
        *,
        model: PreTrainedModel | None = None,
        route: Route | None = None,
        prefill: Prefill | None = None,
        head_held: Callable[[], AbstractContextManager[None]] | None = None,
        batch_tokens: int = 4096,
    ) -> None:
        self.model = model if model is not None else base.model
        self.tokenizer = base.tokenizer
        self.fingerprint = base.fingerprint
        self.route = route
        self.prefill = prefill
        self.head_held = head_held
        self.batch_tokens = batch_tokens

    @property
    def device(self) -> str:
        return str(next(self.model.parameters()).device)

    @property
    def protocol(self) -> dict[str, Any]:
        """What two evaluations must share to be compared item by item."""
        return {
            "decoding": "greedy",
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "few_shot": 0,
            "prompt": self.fingerprint.prompt,
            "quantisation": None,
            "scoring": "teacher-forced/1",
        }

    def _routed(self, prompts: list[list[int]]) -> AbstractContextManager[None]:
        return self.route(prompts) if self.route is not None else contextlib.nullcontext()

    @contextlib.contextmanager
    def _prefilled(
        self, prompts: list[list[int]], ids: torch.Tensor, mask: torch.Tensor, settings: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """Further arguments of transformers' `generate`, and the gates set for it."""
        if self.prefill is None:
            with self._routed(prompts):
                yield {}
        else:
            with self.prefill(prompts, ids, mask, settings) as cache:
                yield {} if cache is None else {"past_key_values": cache}

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 64,
        progress: Progress | None = None,
        seed: int | None = None,
        **decoding: Any,
    ) -> list[str]:
        """Answers in the order of the prompts, without special tokens, stripped.

        `decoding`: further arguments of transformers' `generate` (do_sample, temperature, num_beams …); what
        is not named there is `PLAIN`, whatever settings the base ships with. With `seed` the draws of the
        batches start from it and the numbers after it, and torch's own generators are left as they were.
        Raises PromptError for a prompt that leaves no room in the base's context, or on which the model's
        logits are not finite.
        """
        import torch

        encoded = [
            self._fitting(encode_prompt(self.tokenizer, p), max_new_tokens, i) for i, p in enumerate(prompts)
        ]
        answers = [""] * len(encoded)
        done = 0
        settings = {**PLAIN, "pad_token_id": self.tokenizer.pad_token_id, **decoding}
        given = settings.pop("logits_processor", ())
        order = batches_by_length([len(e) + max_new_tokens for e in encoded], self.batch_tokens)
        for number, rows in enumerate(order):
            prompt_ids = [encoded[i] for i in rows]
            ids, mask = pad(prompt_ids, self.tokenizer.pad_token_id, side="left", device=self.device)
            start = None if seed is None else seed + number
            with (
                torch.inference_mode(),
                self._prefilled(prompt_ids, ids, mask, settings) as begun,
                drawn_from(start, self.device),
            ):
                out = self.model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=max_new_tokens,
                    logits_processor=[*given, _finite_rows(rows)],
                    **settings,
                    **begun,
                )
            texts = self.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
            for i, text in zip(rows, texts, strict=True):
                answers[i] = text.strip()
            done += len(rows)
            if progress:
                progress(done, len(encoded))
        return answers

    def matches(
        self, prompts: Sequence[Prompt], answers: Sequence[str], *, progress: Progress | None = None
    ) -> list[bool]:
        """Would greedy decoding give exactly these answers? One forward pass each instead of one a token:
        greedy emits the answer if and only if each of its tokens, and the end of the turn, is the argmax
        after the ones before it.

        Where the chat template rewrites an answer (some put an empty thought before it), no single pass can
        tell, and the model is asked to generate. Raises PromptError for an answer that no tokens spell, which
        every model with this tokenizer would get wrong, and where the logits are not finite.
        """
        pairs = [encode_pair(self.tokenizer, p, a) for p, a in zip(prompts, answers, strict=True)]
        rewritten = self._rewritten(pairs, answers)
        plain = [i for i in range(len(pairs)) if i not in rewritten]
        verdicts = [False] * len(prompts)
        done = 0
        for rows, hidden, targets, counts in self._states([pairs[i] for i in plain], plain):
            right: list[bool] = []
            for piece, wanted in zip(*self._pieces(hidden, targets), strict=True):
                highest, ids = self.head(piece).max(-1)
                self._refuse_not_finite(highest, rows, counts, before=len(right))
                right += (ids == wanted).tolist()
            start = 0
            for i, count in zip(rows, counts, strict=True):
                verdicts[i] = all(right[start : start + count])
                start += count
            done += len(rows)
            if progress:
                progress(done, len(prompts))
        if rewritten:
            room = max(len(row) - n for row, n in (pairs[i] for i in rewritten)) + 8
            try:
                said = self.generate([prompts[i] for i in rewritten], max_new_tokens=room)
            except PromptError as error:
                raise PromptError(error.message, index=rewritten[error.index], fix=error.fix) from error
            for i, text in zip(rewritten, said, strict=True):
                verdicts[i] = text == answers[i].strip()
            if progress:
                progress(len(prompts), len(prompts))
        return verdicts

    def likelihoods(
        self, prompts: Sequence[Prompt], answers: Sequence[str], *, progress: Progress | None = None
    ) -> list[tuple[float, int]]:
        """(negative log-likelihood in nats, tokens) of each answer and the end of its turn, from logits in
        float32. PromptError where the logits are not finite."""
        pairs = [encode_pair(self.tokenizer, p, a) for p, a in zip(prompts, answers, strict=True)]
        return self._costs(pairs, progress)

    def text_likelihoods(
        self, rows: Sequence[Sequence[int]], *, progress: Progress | None = None
    ) -> list[tuple[float, int]]:
        """(negative log-likelihood in nats, tokens that it is of) of each row of token ids, given its first;
        (0, 0) for a row of one. From logits in float32; errors as in `likelihoods`."""
        return self._costs([(list(row), 1) for row in rows], progress)

    def _costs(
        self, pairs: Sequence[tuple[list[int], int]], progress: Progress | None = None
    ) -> list[tuple[float, int]]:
        import torch

        found = [(0.0, 0)] * len(pairs)
        done = 0
        for rows, hidden, targets, counts in self._states(pairs, range(len(pairs))):
            costs: list[float] = []
            for piece, wanted in zip(*self._pieces(hidden, targets), strict=True):
                nats = torch.nn.functional.cross_entropy(self.head(piece), wanted, reduction="none")
                self._refuse_not_finite(nats, rows, counts, before=len(costs))
                costs += nats.tolist()
            start = 0
            for i, count in zip(rows, counts, strict=True):
                found[i] = (math.fsum(costs[start : start + count]), count)
                start += count
            done += len(rows)
            if progress:
                progress(done, len(pairs))
        return found

    def _rewritten(self, pairs: Sequence[tuple[list[int], int]], answers: Sequence[str]) -> list[int]:
        """Which answers the template changed; PromptError for one that the tokenizer cannot spell at all."""
        spelt = self.tokenizer.batch_decode([row[n:] for row, n in pairs], skip_special_tokens=True)
        changed = [i for i, answer in enumerate(answers) if spelt[i].strip() != answer.strip()]
        for i in changed:
            ids = self.tokenizer(answers[i], add_special_tokens=False)["input_ids"]
            back = self.tokenizer.decode(ids, skip_special_tokens=True)
            if back.strip() != answers[i].strip():
                raise PromptError(
                    f"an expected answer must be one that the tokenizer can spell, and it makes "
                    f"{back.strip()[:60]!r} of {answers[i][:60]!r}",
                    index=i,
                    fix="change the answer, or score the item by contains",
                )
        return changed

    def _pieces(
        self, hidden: torch.Tensor, targets: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """Both cut alike, so that the logits of a piece stay small."""
        vocabulary = int(self.model.get_output_embeddings().weight.shape[0])
        size = max(1, _LOGITS_AT_ONCE // vocabulary)
        return hidden.split(size), targets.split(size)

    def _refuse_not_finite(
        self, values: torch.Tensor, rows: Sequence[int], counts: Sequence[int], *, before: int
    ) -> None:
        """PromptError naming the prompt of the first value that is NaN or infinite; `before` values of the
        batch came earlier."""
        import torch

        bad = ~torch.isfinite(values)
        if bool(bad.any()):
            place = before + int(bad.nonzero()[0])
            for i, count in zip(rows, counts, strict=True):
                if place < count:
                    raise _not_finite(i)
                place -= count

    def states(
        self, prompts: Sequence[Prompt], answers: Sequence[str]
    ) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor, list[int]]]:
        """Final hidden states where the answers' tokens are predicted, batch by batch.

        Yields (indices of the items; hidden, the model's dtype, (n, hidden size); target token ids, long
        (n,); positions an item has), where n is the sum of the counts and items stand in the order of the
        indices. Depends only on lengths, so two models over the same items yield the same batches.
        """
        pairs = [encode_pair(self.tokenizer, p, a) for p, a in zip(prompts, answers, strict=True)]
        yield from self._states(pairs, range(len(pairs)))

    def _states(
        self, pairs: Sequence[tuple[list[int], int]], indices: Sequence[int]
    ) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor, list[int]]]:
        """`states` of what is encoded already; `indices` are what the pairs are called."""
        import torch

        for i, (row, _) in zip(indices, pairs, strict=True):
            self._fitting(row, 0, i)
        for rows in batches_by_length([len(row) for row, _ in pairs], self.batch_tokens):
            chosen = [pairs[i] for i in rows]
            ids, mask = pad(
                [c[0] for c in chosen], self.tokenizer.pad_token_id, side="right", device=self.device
            )
            answer = torch.zeros_like(mask, dtype=torch.bool)
            for r, (row, n_prompt) in enumerate(chosen):
                answer[r, n_prompt : len(row)] = True
            predicts = torch.roll(answer, -1, dims=1)  # position t predicts token t + 1
            predicts[:, -1] = False
            with (
                torch.inference_mode(),
                self._routed([row[:n] for row, n in chosen]),
                head_only_at(self.model, predicts) as seen,
            ):
                self.model(input_ids=ids, attention_mask=mask, use_cache=False)
            yield [indices[i] for i in rows], seen[0], ids[answer], [len(row) - n for row, n in chosen]

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (n, vocab), float32, from final hidden states (n, hidden size); the cap that some
        architectures put on their logits is applied. `head_held` is entered around it: outside of a batch no
        `route` says which of a composed model's heads is meant."""
        import torch

        held = self.head_held() if self.head_held is not None else contextlib.nullcontext()
        with torch.inference_mode(), held:
            logits = self.model.get_output_embeddings()(hidden).float()
            cap = getattr(self.model.config, "final_logit_softcapping", None)
            return torch.tanh(logits / cap) * cap if cap else logits

    def _fitting(self, ids: list[int], room: int, index: int) -> list[int]:
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is not None and len(ids) + room > limit:
            raise PromptError(
                f"prompt and answer must fit the base's context of {limit} tokens, "
                f"and prompt {index + 1} needs {len(ids) + room}",
                index=index,
                fix="shorten it or lower max_new_tokens",
            )
        return ids


def base_answers(
    base: Base,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 32,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """The base's own greedy answers, generated once per (base, prompts) and kept in the cache under
    `cache_dir`; made again where they are damaged.
    """
    import torch

    from inlay.evals.cache import Cache

    key = {
        "answers": 1,
        "max_new_tokens": max_new_tokens,
        "prompt": base.fingerprint.prompt,
        "prompts": list(prompts),
        "weights": base.fingerprint.weights,
        "dtype": str(base.model.dtype),
        "torch": torch.__version__.split("+")[0],
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    cache = Cache.of_environment(cache_dir) if cache_dir is not None else None
    held = cache.read("answers", name) if cache is not None else None
    if held is not None:
        return list(json.loads(held))
    answers = Chat(base).generate(prompts, max_new_tokens=max_new_tokens, progress=progress)
    if cache is not None:
        cache.write("answers", name, json.dumps(answers).encode())
    return answers
