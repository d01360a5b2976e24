"""Ablations: compositions of one loaded model's members, asked together: the same items as rows of one batch,
each row with the gate of its own composition.

Everything that speaks lies in the bank's slots, so that nothing is loaded or rebuilt between two of them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from inlay.composer.factors import Adapter
from inlay.composer.merging.loading import adapter_of
from inlay.composer.model import ComposedModel
from inlay.composer.plan import Condition, Leaf
from inlay.composer.routers import Fitted
from inlay.composer.slots import MergedSlot, Slot
from inlay.errors import InputError
from inlay.evals.inference import Chat, Progress, Prompt, PromptError, encode_pair, encode_prompt

TOGETHER = 5
"""Voices that share a batch. More would save little, and an interruption loses what is under way."""
Term = tuple[str, float, tuple[Condition, ...]]
"""(digest of a slot, its weight, when it speaks)."""
Voice = Slot | MergedSlot | Adapter
"""What an ablation may name: a slot of a plan, or factors that are made already."""


@dataclass(frozen=True)
class Ablation:
    """One composition of slots. Two that would say the same are equal.

    `allowed`: (number of a route, classes it may choose, None for the base) of the routes that matter.
    """

    terms: tuple[Term, ...] = ()
    allowed: tuple[tuple[int, tuple[int | None, ...]], ...] = ()

    @classmethod
    def of(
        cls,
        leaves: Sequence[Leaf],
        slots: Sequence[Slot | MergedSlot],
        allowed: Sequence[tuple[int | None, ...]] = (),
    ) -> Ablation:
        """What `leaves` say, without what is silent; a route with one class left is no choice."""
        terms: dict[tuple[str, tuple[Condition, ...]], float] = {}
        for leaf in leaves:
            conditions = tuple(c for c in leaf.conditions if len(allowed[c[0]]) > 1)
            if all(expert in allowed[route] for route, expert in leaf.conditions):
                key = (slots[leaf.slot].digest, conditions)
                terms[key] = terms.get(key, 0.0) + leaf.weight
        spoken = sorted((digest, weight, when) for (digest, when), weight in terms.items() if weight)
        routes = sorted({route for _, _, when in spoken for route, _ in when})
        return cls(tuple(spoken), tuple((route, tuple(allowed[route])) for route in routes))

    @property
    def only(self) -> str | None:
        """The digest of the one slot that always speaks, with weight 1; None for anything else."""
        if len(self.terms) == 1 and self.terms[0][1:] == (1.0, ()):
            return self.terms[0][0]
        return None


class AblatedModel:
    """Voices over the bank of a composed model. Inside `with`, what they need beside what the model has is
    loaded; afterwards the bank is as it was.

    `slots`: everything that an ablation may name, by digest. Ablations that come up later must name what one
    of `ablations` does.
    """

    def __init__(
        self, model: ComposedModel, ablations: Sequence[Ablation], slots: Mapping[str, Voice]
    ) -> None:
        self.model = model
        self.expected: list[Ablation] = []
        """Voices that will be asked the same next; they are asked together."""
        self._width = TOGETHER
        self._slots = slots
        self._needed = list(
            dict.fromkeys(digest for ablation in ablations for digest, _, _ in ablation.terms)
        )
        self._extra: list[int] = []
        self._numbers: dict[str, int] = {}
        self._scores: dict[tuple[int, tuple[int, ...]], torch.Tensor] = {}
        self._said: dict[tuple[Ablation, str], list[Any]] = {}
        self.tokenizer = _CachedTokenizer(model.tokenizer)
        for number in {route for ablation in ablations for route, _ in ablation.allowed}:
            if not isinstance(model.routing.routers[number], Fitted):
                route = model.plan.routes[number]
                raise InputError(
                    f"an expert is masked where a router scores each prompt once, and {route.by} at "
                    f"{route.path or 'the root'} does not"
                )

    def __enter__(self) -> AblatedModel:
        held = self.model._held
        missing = [digest for digest in self._needed if digest not in held]
        bank = self.model._bank
        self._folded = bank.gate.state.folded
        adapters = [self._adapter(self._slots[digest]) for digest in missing]
        self._extra = bank.load_all(adapters) if adapters else []
        self._numbers = {**held, **dict(zip(missing, self._extra, strict=True))}
        return self

    def _adapter(self, voice: Voice) -> Adapter:
        return voice if isinstance(voice, Adapter) else adapter_of(self.model.store, voice)

    def __exit__(self, *_: object) -> None:
        for number in self._extra:
            self.model._bank.unload(number)
        self._extra = []
        if self._folded:
            self.model._bank.fold()

    def chat(self, ablation: Ablation) -> Chat:
        """The model as `ablation`; what it is asked, the expected ones are asked with it."""
        return _AblatedChat(self, ablation)

    def together(
        self,
        ablation: Ablation,
        what: str,
        prompts: Sequence[Prompt],
        answers: Sequence[str] | None,
        progress: Progress | None,
        how: Mapping[str, Any],
    ) -> list[Any]:
        """What `ablation` says to `prompts`, answered together with the next ones that are expected."""
        key = json.dumps([what, prompts, answers, dict(how)], sort_keys=True, default=str)
        if (ablation, key) not in self._said:
            others = [v for v in self.expected if v != ablation and (v, key) not in self._said]
            group = [ablation, *others[: self._width - 1]]
            try:
                found = self._ask(group, what, prompts, answers, progress, how)
            except PromptError:
                raise
            except InputError:
                if len(group) == 1:
                    raise
                # Some layers (experts of a mixture) see tokens without their rows, and take one gate for all.
                self._width, group = 1, [ablation]
                found = self._ask(group, what, prompts, answers, progress, how)
            for one, said in zip(group, found, strict=True):
                self._said[one, key] = said
        return self._said.pop((ablation, key))

    def _ask(
        self,
        group: Sequence[Ablation],
        what: str,
        prompts: Sequence[Prompt],
        answers: Sequence[str] | None,
        progress: Progress | None,
        how: Mapping[str, Any],
    ) -> list[list[Any]]:
        # In the order in which a chat takes its batches, longest first, so that rows meet their gates.
        lengths = [self._length(p, None if answers is None else answers[i]) for i, p in enumerate(prompts)]
        order = sorted(range(len(prompts)), key=lambda i: -lengths[i])
        rows = [(item, ablation) for item in order for ablation in group]
        taken = 0

        def route(ids: list[list[int]]) -> contextlib.AbstractContextManager[None]:
            nonlocal taken
            batch = rows[taken : taken + len(ids)]
            taken += len(ids)
            if any(self._prompt(prompts[item]) != given for (item, _), given in zip(batch, ids, strict=True)):
                raise RuntimeError("a chat must take its rows longest first, and took others")
            return self._held_at([ablation for _, ablation in batch], ids)

        base = self.model.base
        chat = Chat(
            base,
            model=base.model,
            route=route,
            head_held=lambda: self.head_held(group),
            batch_tokens=self.model.chat.batch_tokens,
        )
        chat.tokenizer = self.tokenizer
        asked = [prompts[item] for item, _ in rows]
        expected = () if answers is None else ([answers[item] for item, _ in rows],)

        def share(done: int, _all: int) -> None:
            if progress is not None:
                progress(done // len(group), len(prompts))

        try:
            found = getattr(chat, what)(asked, *expected, progress=share, **how)
        except PromptError as error:
            raise PromptError(error.message, index=rows[error.index][0], fix=error.fix) from error
        said: list[list[Any]] = [[None] * len(prompts) for _ in group]
        for (item, ablation), one in zip(rows, found, strict=True):
            said[group.index(ablation)][item] = one
        return said

    def held_at(self, ablation: Ablation, ids: list[list[int]]) -> contextlib.AbstractContextManager[None]:
        """The gate for prompts that all meet one ablation."""
        return self._held_at([ablation] * len(ids), ids)

    def head_held(self, group: Sequence[Ablation]) -> contextlib.AbstractContextManager[None]:
        """The gate for hidden states of many prompts, which have left their rows. An adapter on the output
        head has one ablation a batch, since the bank refuses it rows, and no route: plans refuse those."""
        row = None if len(group) > 1 or group[0].allowed else self._row(group[0], {})
        return self.model._bank.gate.held_at(row)

    def _held_at(
        self, ablations: Sequence[Ablation], ids: list[list[int]]
    ) -> contextlib.AbstractContextManager[None]:
        gate = self.model._bank.gate
        if len(set(ablations)) == 1 and not ablations[0].allowed:
            return gate.held_at(self._row(ablations[0], {}))
        choices = self._choices(ablations, ids)
        return gate.held_at(torch.stack([self._row(v, c) for v, c in zip(ablations, choices, strict=True)]))

    def _row(self, ablation: Ablation, chosen: Mapping[int, int | None]) -> torch.Tensor:
        """A value for each slot of the bank."""
        row = torch.zeros(self.model._bank.slots)
        for digest, weight, when in ablation.terms:
            if all(chosen[route] == expert for route, expert in when):
                row[self._numbers[digest]] += weight
        return row

    def _choices(self, ablations: Sequence[Ablation], ids: list[list[int]]) -> list[dict[int, int | None]]:
        """What each route that matters to a row chooses: the best class among those allowed."""
        found: list[dict[int, int | None]] = [{} for _ in ablations]
        for route in sorted({route for ablation in ablations for route, _ in ablation.allowed}):
            rows = [i for i, ablation in enumerate(ablations) if route in dict(ablation.allowed)]
            self._score(route, [ids[i] for i in rows])
            for i in rows:
                scores = self._scores[route, tuple(ids[i])]
                classes = dict(ablations[i].allowed)[route]
                values = [float(scores[-1 if c is None else c]) for c in classes]
                found[i][route] = classes[values.index(max(values))]
        return found

    def _score(self, route: int, ids: list[list[int]]) -> None:
        """One pass of the bare base for prompts that this router has not seen."""
        new = [list(one) for one in dict.fromkeys(map(tuple, ids)) if (route, one) not in self._scores]
        if not new:
            return
        router = self.model.routing.routers[route]
        assert isinstance(router, Fitted)
        found = router.probabilities(self.model._see(new))
        for one, scores in zip(new, found, strict=True):
            self._scores[route, tuple(one)] = scores

    def _prompt(self, prompt: Prompt) -> list[int]:
        return encode_prompt(self.tokenizer, prompt)

    def _length(self, prompt: Prompt, answer: str | None) -> int:
        if answer is None:
            return len(self._prompt(prompt))
        return len(encode_pair(self.tokenizer, prompt, answer)[0])


class _AblatedChat(Chat):
    """A chat that answers as one ablation. What it is asked, the ablations expected next are asked with it;
    hidden states it gives by itself."""

    def __init__(self, ablated: AblatedModel, ablation: Ablation) -> None:
        super().__init__(
            ablated.model.base,
            route=lambda ids: ablated.held_at(ablation, ids),
            head_held=lambda: ablated.head_held([ablation]),
            batch_tokens=ablated.model.chat.batch_tokens,
        )
        self.tokenizer = ablated.tokenizer
        self.ablated, self.ablation = ablated, ablation

    def matches(
        self, prompts: Sequence[Prompt], answers: Sequence[str], *, progress: Progress | None = None
    ) -> list[bool]:
        pairs = [encode_pair(self.tokenizer, p, a) for p, a in zip(prompts, answers, strict=True)]
        if self._rewritten(pairs, answers):  # the one case in which a chat asks twice, in two orders
            return super().matches(prompts, answers, progress=progress)
        return self.ablated.together(self.ablation, "matches", prompts, answers, progress, {})

    def likelihoods(
        self, prompts: Sequence[Prompt], answers: Sequence[str], *, progress: Progress | None = None
    ) -> list[tuple[float, int]]:
        return self.ablated.together(self.ablation, "likelihoods", prompts, answers, progress, {})

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 64,
        seed: int | None = None,
        progress: Progress | None = None,
        **decoding: Any,
    ) -> list[str]:
        how = {"max_new_tokens": max_new_tokens, "seed": seed, **decoding}
        return self.ablated.together(self.ablation, "generate", prompts, None, progress, how)


class _CachedTokenizer:
    """A tokenizer that renders a conversation once: every ablation is asked the same."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, *given: Any, **how: Any) -> Any:
        return self._tokenizer(*given, **how)

    def apply_chat_template(self, messages: Any, **how: Any) -> list[int]:
        key = json.dumps([messages, how], sort_keys=True)
        if key not in self._known:
            self._known[key] = self._tokenizer.apply_chat_template(messages, **how)
        return self._known[key]
