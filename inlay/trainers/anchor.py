"""What keeps an adapter close to its base: KL on general prompts and the base's own answers.

The base's distribution is the teacher, the adapted model the student. Forward KL, as in RL's Razor
(arXiv:2509.04259) and replay with KL (arXiv:2512.22337). It is taken where the answers' tokens are predicted
and where the prompts' own are: a skill that never stands in the prompts shares their words but not their
answers. On real data that nearly halved what was lost of such skills (docs/training.md has the figures).

What makes it cheap: the teacher's final hidden states are kept, and general prompts, which are short and of
many lengths, go through the model one behind the other in one row instead of padded to the longest. What
bounds its memory: logits exist for a piece of the positions at a time, and are made again on the way back.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from inlay.evals.inference import encode_pair, head_only_at, pad

KEPT_BYTES = 1 << 30
"""Bound on the teacher's final hidden states kept in memory; what does not fit is computed again."""
TOGETHER = 512
"""Tokens of the prompts whose states are computed at once to be kept, always the same ones: a batch of others
would round differently, and a run that is taken up would no longer have the bits of an unbroken one."""
LOGITS_AT_ONCE = 1 << 26
"""Logits of one piece of the positions, 256 MB in float32; a step whose logits are fewer is one piece."""
PACKED_TOKENS = 2048
"""Longest row of general prompts that stand one behind the other: attention masks grow with its square."""
SAME = 1e-3
"""Nats a position by which two ways through a model may differ and be called the same: half precision rounds
by less, a row that sees another's tokens is off by hundreds of times as much."""


class Anchor:
    """Draws general prompts in seeded order and measures how far the adapted model has moved on them.

    `prompts` and `answers` (the base's own, of equal length) are strings; `prompt_weight` is the weight of
    the prompts' positions beside the answers'. A step draws `rows` of them, or, where `ratio` is above 0, so
    many that all general tokens so far are `ratio` times the task's, to within one prompt. `teacher`: the
    base, where it is not the model with its adapter off (full fine-tuning).
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
        ratio: float = 0.0,
        teacher: Any = None,
    ) -> None:
        self.pairs = [encode_pair(tokenizer, p, a) for p, a in zip(prompts, answers, strict=True)]
        self.rows = min(rows, len(self.pairs))
        self.ratio = ratio
        self.prompt_weight = prompt_weight
        self.pad_id = tokenizer.pad_token_id
        self.seed = seed
        self.device = device
        self.teacher = teacher
        self.clock = Clock(device)
        self.load_state_dict({"drawn": 0, "owed": 0.0, "tokens": 0, "seconds": 0.0})
        self._states: dict[int, torch.Tensor] = {}
        self._groups: dict[int, list[int]] = {}
        self._plain = self._packs = True
        self._tried = False

    def state_dict(self) -> dict[str, Any]:
        """Where the draws are and what they took, as plain JSON: what a run that is taken up is given."""
        return {
            "drawn": self._drawn,
            "owed": self._owed,
            "tokens": self.tokens,
            "seconds": self.clock.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on drawing where `state_dict` was taken."""
        self._drawn, self._owed = state["drawn"], state["owed"]
        self.tokens: int = state["tokens"]
        """General tokens the student has seen so far, prompt and answer."""
        self.clock.seconds = state["seconds"]
        self._draws = itertools.islice(self._endless(), self._drawn, None)

    def _endless(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield from torch.randperm(len(self.pairs), generator=generator).tolist()

    def _draw(self, task_tokens: int) -> list[int]:
        """The prompts of a step. Under a ratio the draws run up to one prompt ahead of what is owed, which
        the next steps draw less, down to none."""
        chosen: list[int] = []
        self._owed += self.ratio * task_tokens
        while self._owed > 0.0 if self.ratio else len(chosen) < self.rows:
            chosen.append(next(self._draws))
            if self.ratio:
                self._owed -= len(self.pairs[chosen[-1]][0])
        self._drawn += len(chosen)
        self.tokens += sum(len(self.pairs[i][0]) for i in chosen)
        return chosen

    def kl(self, model: Any, task_tokens: int = 0) -> torch.Tensor | None:
        """Mean over answer positions + prompt_weight × mean over prompt positions of KL(base ‖ model), in
        nats; a scalar with gradient. None where the ratio lets this step of `task_tokens` draw none.

        KL = Σ_v p(v) (log p(v) − log q(v)), with p the base (adapter off) and q the model.
        """
        chosen = self._draw(task_tokens)
        if not chosen:
            return None
        self.clock.start()
        self._try_ways(model)
        weights = self._weights(chosen)
        if self._plain:
            divergence = self._in_pieces(
                model, self._hidden(model, chosen), self._base_hidden(model, chosen), weights
            )
        else:
            student, _ = self._logits(model, chosen)
            with torch.no_grad(), self._as_base(model) as base:
                teacher, _ = self._logits(base, chosen)
            divergence = _divergence(student, teacher, weights)
        self.clock.stop()
        if divergence.requires_grad:
            divergence.register_hook(self.clock.start)
        return divergence

    def _weights(self, chosen: list[int]) -> torch.Tensor:
        """What each predicting position counts, (positions,): those of the answers sum to 1."""
        answers = torch.cat(
            [torch.arange(1, len(ids)) >= n_prompt for ids, n_prompt in (self.pairs[i] for i in chosen)]
        )
        weights = torch.where(
            answers, 1.0 / answers.sum(), self.prompt_weight / (~answers).sum().clamp_min(1)
        )
        return weights.to(self.device)

    def _in_pieces(
        self, model: Any, hidden: torch.Tensor, teacher: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """The divergence from final hidden states, both (positions, hidden), so that no more than
        `LOGITS_AT_ONCE` logits of either model exist at a time, on the way back as well."""
        head, base_head = model.get_output_embeddings(), self._base_head(model)

        def piece(mine: torch.Tensor, base: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                goal = base_head(base)
            return _divergence(head(mine), goal, weight)

        size = max(1, LOGITS_AT_ONCE // int(base_head.weight.shape[0]))
        if len(hidden) <= size:
            return piece(hidden, teacher, weights)
        parts = zip(hidden.split(size), teacher.split(size), weights.split(size), strict=True)
        return torch.stack([checkpoint(piece, *part, use_reentrant=False) for part in parts]).sum()

    def _hidden(self, model: Any, chosen: list[int]) -> torch.Tensor:
        """Final hidden states (positions, hidden) of all positions that predict a token, row after row in the
        order chosen."""
        inputs, predicts = self._inputs(model, chosen)
        with _head_spared(model, predicts) as seen:
            model(**inputs, use_cache=False)
        return seen[0]

    def _logits(self, model: Any, chosen: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """As the model gives them, (positions, vocab), and the hidden states that `_hidden` gives."""
        inputs, predicts = self._inputs(model, chosen)
        with head_only_at(model, predicts) as seen:
            logits = model(**inputs, use_cache=False).logits[0]
        return logits, seen[0]

    def _inputs(self, model: Any, chosen: list[int]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """What the model is called with, and which positions predict a token, bool of the ids' shape.

        Packed: ids and position ids (1, tokens), from which transformers sees where a row ends; else ids and
        mask (rows, longest)."""
        rows = [self.pairs[i][0] for i in chosen]
        if self._packs and sum(map(len, rows)) <= PACKED_TOKENS and not _learns_a_prompt(model):
            places = torch.cat([torch.arange(len(row)) for row in rows])
            ids = torch.tensor([[token for row in rows for token in row]])
            predicts = torch.cat([places[1:] > 0, torch.tensor([False])])
            inputs = {"input_ids": ids.to(self.device), "position_ids": places[None].to(self.device)}
            return inputs, predicts[None].to(self.device)
        ids, mask = pad(rows, self.pad_id, side="right", device=self.device)
        predicts = torch.zeros_like(mask, dtype=torch.bool)
        predicts[:, :-1] = mask[:, 1:].bool()
        return {"input_ids": ids, "attention_mask": mask}, predicts

    def _base_hidden(self, model: Any, chosen: list[int]) -> torch.Tensor:
        """`_hidden` of the base. Kept, which takes some hundred times less than its logits would."""
        for i in chosen:
            if i in self._groups and i not in self._states:
                self._states |= self._base_states(model, self._groups[i])
        passing = [i for i in dict.fromkeys(chosen) if i not in self._groups]
        found = self._states | self._base_states(model, passing) if passing else self._states
        return torch.cat([found[i] for i in chosen])

    def _base_states(self, model: Any, prompts: list[int]) -> dict[int, torch.Tensor]:
        """Prompt -> what `_hidden` of the base has of it."""
        with torch.no_grad(), self._as_base(model) as base:
            hidden = self._hidden(base, prompts)
        sizes = [len(self.pairs[i][0]) - 1 for i in prompts]
        return dict(zip(prompts, hidden.split(sizes), strict=True))

    def _grouped(self, room: int) -> dict[int, list[int]]:
        """Prompt -> those whose states are computed with its own: its neighbours in the order of the first
        draws, which are wanted soonest. As many prompts as have `room` positions together."""
        groups: list[list[int]] = []
        size = 0
        for i in itertools.islice(self._endless(), len(self.pairs)):
            positions = len(self.pairs[i][0]) - 1
            room -= positions
            if room < 0:
                break
            if not groups or size + positions > TOGETHER:
                groups.append([])
                size = 0
            groups[-1].append(i)
            size += positions
        return {i: group for group in groups for i in group}

    def _try_ways(self, model: Any) -> None:
        """See once, on two prompts, which short ways this base allows: `_plain`, its logits are what its head
        makes of the hidden states and nothing more; `_packs`, rows one behind the other do not see each
        other. One that allows neither is asked as it stands."""
        if self._tried:
            return
        self._tried = True
        two = list(range(min(2, len(self.pairs))))
        with torch.no_grad(), self._as_base(model) as base:
            self._packs = False
            logits, hidden = self._logits(base, two)
            self._plain = _same(self._base_head(model)(hidden), logits)
            self._packs = True
            self._packs = _same(self._logits(base, two)[0], logits)
        self._groups = self._grouped(KEPT_BYTES // (hidden.shape[1] * hidden.element_size()))

    @contextlib.contextmanager
    def _as_base(self, model: Any) -> Iterator[Any]:
        """The base: `teacher`, or the model with its adapter off and without dropout."""
        if self.teacher is not None:
            yield self.teacher
            return
        training = model.training
        model.eval()
        with model.disable_adapter():
            yield model
        model.train(training)

    def _base_head(self, model: Any) -> Any:
        head = (self.teacher if self.teacher is not None else model).get_output_embeddings()
        return getattr(head, "base_layer", head)


class Clock:
    """Seconds between `start` and `stop`, summed; what the device was asked to do in between is waited for.

    Both fit a tensor's `register_hook`: autograd goes back through what was computed last first, so that the
    time from the anchor's gradient to that of the loss before it is the anchor's own.
    """

    def __init__(self, device: str) -> None:
        self.seconds = 0.0
        self._cuda = device.startswith("cuda")
        self._since: float | None = None

    def start(self, _gradient: torch.Tensor | None = None) -> None:
        self._since = self._now()

    def stop(self, _gradient: torch.Tensor | None = None) -> None:
        """Does nothing where nothing was started."""
        if self._since is not None:
            self.seconds += self._now() - self._since
            self._since = None

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def _divergence(student: torch.Tensor, teacher: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Σ_t weights[t] Σ_v p(v) (log p(v) − log q(v)) of logits (positions, vocab); in float32."""
    mine, base = torch.log_softmax(student.float(), dim=-1), torch.log_softmax(teacher.float(), dim=-1)
    return (weights * (base.exp() * (base - mine)).sum(-1)).sum()


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Do both logits, (positions, vocab), say the same to `SAME` nats at every position?"""
    one, other = torch.log_softmax(one.float(), dim=-1), torch.log_softmax(other.float(), dim=-1)
    return bool(((one.exp() * (one - other)).sum(-1).abs() < SAME).all())


def _learns_a_prompt(model: Any) -> bool:
    """Does an adapter put tokens or states of its own before the input, which only a padded row takes?"""
    return any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values())


@contextlib.contextmanager
def _head_spared(model: Any, positions: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """As `head_only_at`, whose list it yields, and the head itself sees a single position."""
    seen: list[torch.Tensor] = []

    def select(_module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        seen.append(args[0][:, -positions.shape[1] :][positions])
        return (args[0][:1, -1:], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield seen
    finally:
        handle.remove()
