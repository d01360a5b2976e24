"""From a reference or a recipe to a model on the device that answers.

Resolves, plans, loads; afterwards `ComposedModel` holds a normal transformers model whose base can be had
back, bit for bit, at any time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from inlay.composer.alone import load_alone
from inlay.composer.bank import Bank
from inlay.composer.bases import check_base, whereabouts
from inlay.composer.merging.loading import adapter_of
from inlay.composer.plan import Plan, make_plan
from inlay.composer.prefill import keeps_rows, passed, put_rows, without_last
from inlay.composer.routers.choice import Choice
from inlay.composer.routers.seen import Seen, pool, pooled
from inlay.composer.routing import Ask, Decision, Turn, allow_list, load_routing
from inlay.errors import BaseMismatch, InputError
from inlay.evals.inference import Base, Chat, Prompt, batches_by_length, encode_prompt, load_base, pad
from inlay.registry import Lock, Recipe, Registry, Version

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

    from inlay.evals import ForgettingReport

BaseLike = str | Path | Base | None


@dataclass(frozen=True)
class Answer:
    """An answer, and what each route of the plan chose for it."""

    text: str
    decisions: tuple[Decision, ...]


class ComposedModel:
    """A base with the adapters of one lock, or of one adapter version, in its bank.

    `.model` is the transformers model itself; for a stack, and where tokens are routed, it speaks as composed
    wherever it is called. A variant routed by request must see a whole prompt before it can choose, so there
    only `.generate`, `.answers` and `.chat` route, and a bare call of `.model` is the base. An adapter
    without factors is run by PEFT: `.model` is then a PeftModel over the base's tensors (`composer.alone`).
    `.report` is what was measured last, or None.
    """

    def __init__(
        self,
        base: Base,
        store: Registry,
        target: Lock | Version,
        plan: Plan,
        *,
        allow: Collection[str] | None = None,
    ) -> None:
        self.base = base
        self.store = store
        self.report: ForgettingReport | None = None
        self.allow = allow_list(allow)
        self._bank = Bank(base.model)
        self._held: dict[str, int] = {}
        self._alone: PeftModel | None = None
        self.base_chat = Chat(
            base,
            route=lambda _prompts: self._bank.gate.held_at(None),
            head_held=lambda: self._bank.gate.held_at(None),
        )
        """The bare base, asked through the same model with the gate closed; the base itself beside PEFT."""
        self.chat = Chat(base, route=self._routed, prefill=self._prefilled)
        try:
            self._load(target, plan)
        except BaseException:
            self._bank.detach()  # nobody else could
            raise

    def _load(self, target: Lock | Version, plan: Plan) -> None:
        """Read and load what is not in the bank yet, turn the gate, unload what no longer speaks.

        Whatever fails, fails before the gate is turned: what served goes on serving.
        """
        alone = None
        if plan.alone is not None:
            self._bank.refuse_others()
            alone = load_alone(self.base.model, self.store, plan.alone.version)
        in_bank = plan.slots if alone is None else ()
        missing = {slot.digest: slot for slot in in_bank if slot.digest not in self._held}
        by_tokens = any(route.by_tokens for route in plan.routes)
        adapters = {
            digest: adapter_of(self.store, slot)
            for digest, slot in {slot.digest: slot for slot in in_bank}.items()
            if digest in missing or by_tokens
        }
        routing = load_routing(self.store, plan, adapters)
        loaded = self._bank.load_all([adapters[digest] for digest in missing])
        held = {**self._held, **dict(zip(missing, loaded, strict=True))}
        slots = [held[slot.digest] for slot in in_bank]
        try:
            self._bank.unfold()
            # What no request has a say in; where one has, `.chat` sets the gate anew.
            nobody = tuple(Choice(None) for _ in plan.routes)
            resting = routing.turn([nobody], [Ask(allow=self.allow)])
            gate = routing.gate(resting, slots, self._bank.slots) if alone is None else (None, [])
            self._bank.gate.set(*gate)
        except BaseException:
            for key in missing:
                self._bank.unload(held[key])
            raise
        self.target, self.plan, self.routing, self._slots = target, plan, routing, slots
        for slot in set(held.values()) - set(slots):
            self._bank.unload(slot)
        self._held = {slot.digest: number for slot, number in zip(in_bank, slots, strict=True)}
        self._speaks_through(alone)

    def _speaks_through(self, alone: PeftModel | None) -> None:
        self._alone = alone
        self.chat.model = self.model
        # Padding would stand between a learned prompt and the request, and move one away from the other.
        prompted = alone is not None and alone.active_peft_config.is_prompt_learning
        self.chat.batch_tokens = 1 if prompted else self.base_chat.batch_tokens

    @property
    def model(self) -> PreTrainedModel:
        # A PeftModel is called and generates as the transformers model inside it does.
        return self.base.model if self._alone is None else self._alone

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.base.tokenizer

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 64,
        weights: Sequence[Mapping[str, float] | None] | None = None,
        experts: Sequence[str | None] | None = None,
        allow: Sequence[Collection[str] | None] | None = None,
        progress: Callable[[int, int], None] | None = None,
        **decoding: Any,
    ) -> list[str]:
        """Answers in the order of the prompts; greedy unless `decoding` says otherwise.

        A prompt is a user's string or a list of {"role", "content"} messages. For each prompt, where given:
        `weights`, how much of which member it gets, by the reference that the plan's slot has; members left
        out get nothing, {} is the bare base, None is what the recipe says. `experts`: the expert it names,
        for routes by request; None is the base. `allow`: the adapters it may reach, by name, reference or
        digest; no router chooses what is not among them, and what the recipe always uses must be; None allows
        what the model was composed for. InputError for another number of them than of prompts, an unknown
        member or expert, a weight that is not finite, what may not be reached, members of an adapter run by
        PEFT.
        """
        asks = self._asks(prompts, weights, experts, allow)
        call = _Call(self, prompts, asks, max_new_tokens)
        return call.chat.generate(prompts, max_new_tokens=max_new_tokens, progress=progress, **decoding)

    def answers(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 64,
        weights: Sequence[Mapping[str, float] | None] | None = None,
        experts: Sequence[str | None] | None = None,
        allow: Sequence[Collection[str] | None] | None = None,
        progress: Callable[[int, int], None] | None = None,
        **decoding: Any,
    ) -> list[Answer]:
        """`generate`, and with each answer what every route chose and how sure it was."""
        call = _Call(
            self, prompts, self._asks(prompts, weights, experts, allow), max_new_tokens, explain=True
        )
        texts = call.chat.generate(prompts, max_new_tokens=max_new_tokens, progress=progress, **decoding)
        return [Answer(text, decided) for text, decided in zip(texts, call.decided, strict=True)]

    def decide(
        self,
        prompts: Sequence[Prompt],
        *,
        experts: Sequence[str | None] | None = None,
        allow: Sequence[Collection[str] | None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[tuple[Decision, ...]]:
        """What each route of the plan chooses for each prompt, without answering. Routes of tokens are
        watched in a pass over the prompt."""
        self._refuse_detached()
        asks = self._asks(prompts, None, experts, allow)
        ids = [encode_prompt(self.tokenizer, prompt) for prompt in prompts]
        found: list[tuple[Decision, ...]] = [()] * len(ids)
        done = 0
        for rows in batches_by_length([len(row) for row in ids], self.chat.batch_tokens):
            given = [asks[i] for i in rows]
            choices = self.routing.choices(self._see([ids[i] for i in rows]), given)
            shares: dict[int, torch.Tensor] = {}
            if self.routing.token_routes:
                device = self.chat.device
                padded, mask = pad(
                    [ids[i] for i in rows], self.tokenizer.pad_token_id, side="left", device=device
                )
                with self._turned(self.routing.turn(choices, given)), self._watched(mask, shares):
                    passed(self.base.model, padded, mask)
            for i, decisions in zip(rows, self.routing.decisions(choices, shares), strict=True):
                found[i] = decisions
            done += len(rows)
            if progress:
                progress(done, len(ids))
        return found

    def _asks(
        self,
        prompts: Sequence[Prompt],
        weights: Sequence[Mapping[str, float] | None] | None,
        experts: Sequence[str | None] | None,
        allow: Sequence[Collection[str] | None] | None,
    ) -> list[Ask]:
        for what, given in (("weights", weights), ("expert", experts), ("allow-list", allow)):
            if given is not None and (isinstance(given, str) or len(given) != len(prompts)):
                raise InputError(
                    f"each prompt must have its {what}, and there are {len(prompts)} and "
                    f"{1 if isinstance(given, str) else len(given)}",
                    fix="write None where a prompt takes what the recipe says",
                )
        if self.plan.alone is not None and weights is not None:
            raise InputError(
                f"only members of a bank can be weighed, and {self.target.ref} is run by PEFT",
                fix="ask .base_chat for the base's answers",
            )
        some = [None] * len(prompts)
        return [
            Ask(self._weights_of(w), e, self.allow + allow_list(a))
            for w, e, a in zip(weights or some, experts or some, allow or some, strict=True)
        ]

    def _weights_of(self, given: Mapping[str, float] | None) -> tuple[float, ...] | None:
        """A value for each slot of the plan; None: as the recipe says."""
        if given is None:
            return None
        names = [slot.ref for slot in self.plan.slots]
        for name in given:
            if name not in names:
                raise InputError(
                    f"weights must be for members of {self.target.ref}, and {name!r} is none",
                    fix=f"its members: {', '.join(names)}",
                )
        return tuple(float(given.get(name, 0.0)) for name in names)

    def swap(self, ref: str | Lock | Version) -> None:
        """Put another lock or version of the same base in the place of this one; what both have stays loaded.

        Everything is checked, read and loaded before the gate is turned, so a failure leaves the old one
        serving; what only the old one had is unloaded afterwards.
        """
        target = self.store.resolve(ref) if isinstance(ref, str) else ref
        if target.base.weights != self.target.base.weights:
            raise BaseMismatch(f"a swap keeps the base, and {target.ref} was made for {target.base.name}")
        self._load(target, make_plan(self.store, target))
        self.report = None

    def fold(self) -> None:
        """Answer from copies of the weights with the deltas in them, as long as nothing is swapped: fastest
        where one variant has the device to itself, at the price of those weights' memory. The base's own
        weights are not touched. InputError for a route, whose weights differ from request to request.
        """
        if self.plan.routed:
            raise InputError(f"{self.target.ref} has a route, and only what never changes can be folded")
        if self.plan.alone is not None:
            raise InputError(f"only a bank can be folded, and {self.target.ref} is run by PEFT")
        self._bank.fold()

    def unfold(self) -> None:
        """Let go of the copies that `fold` made."""
        self._bank.unfold()

    def detach(self) -> None:
        """Take every adapter off; `.model` is then the base, bit for bit. A swap puts adapters on again."""
        self._bank.detach()
        self._held = {}
        self._speaks_through(None)

    @contextlib.contextmanager
    def _routed(self, prompts: list[list[int]], asks: Sequence[Ask] | None = None) -> Iterator[None]:
        """The gates for a batch of prompts."""
        self._refuse_detached()
        if asks is None and self._settled:
            yield
            return
        asks = asks or [Ask(allow=self.allow)] * len(prompts)
        choices = self.routing.choices(self._see(prompts), asks)
        with self._turned(self.routing.turn(choices, asks)):
            yield

    @contextlib.contextmanager
    def _prefilled(
        self,
        prompts: list[list[int]],
        ids: torch.Tensor,
        mask: torch.Tensor,
        settings: Mapping[str, Any],
        asks: Sequence[Ask] | None = None,
        record: Callable[[list[tuple[Decision, ...]]], None] | None = None,
    ) -> Iterator[DynamicCache | None]:
        """The gates for a batch that is to be answered, and the cache to start from. `record` hears what was
        decided, once it is answered."""
        self._refuse_detached()
        if asks is None and self._settled:
            yield None
            return
        asks = asks or [Ask(allow=self.allow)] * len(prompts)
        seen, cache = self._see(prompts), None
        if self.routing.reads_states and keeps_rows(settings) and ids.shape[1] > 1:
            with self._bank.gate.held_at(None):
                cache, states = passed(self.base.model, ids, mask, states=True)
            pools = pool(states, mask)
            seen = replace(seen, look=lambda: pools)
        choices = self.routing.choices(seen, asks)
        turn = self.routing.turn(choices, asks)
        shares: dict[int, torch.Tensor] = {}
        watched = self._watched(mask, shares) if record is not None else contextlib.nullcontext()
        with self._turned(turn), watched:
            yield self._begun(cache, turn, ids, mask)
        if record is not None:
            record(self.routing.decisions(choices, shares))

    def _begun(
        self, cache: DynamicCache | None, turn: Turn, ids: torch.Tensor, mask: torch.Tensor
    ) -> DynamicCache | None:
        """The base's cache of all prompts but their last token, the rows of experts computed anew; None where
        nothing of it would be left."""
        speaking = turn.speaking
        if cache is None or bool(speaking.all()):
            return None
        cache = without_last(cache)
        rows = speaking.nonzero().flatten()
        if len(rows):
            with self._turned(turn.only(rows)):
                other, _ = passed(self.base.model, ids[rows, :-1], mask[rows, :-1])
            assert other is not None  # the same model gave one that could be mended
            put_rows(cache, rows, other)
        return cache

    @property
    def _settled(self) -> bool:
        """Does the gate stand as the recipe says, whatever is asked?"""
        return all(route.by_tokens for route in self.plan.routes)

    def _refuse_detached(self) -> None:
        if self.plan.slots and not self._held and self._alone is None:
            raise InputError(
                f"{self.target.ref} was detached and cannot answer", fix="compose it again, or swap to it"
            )

    def _see(self, prompts: Sequence[Sequence[int]]) -> Seen:
        """The prompts of one batch; their states are those of the bare base."""

        def look() -> torch.Tensor:
            with self._bank.gate.held_at(None):
                return pooled(self.base.model, prompts, self.tokenizer.pad_token_id)

        return Seen(prompts, self.tokenizer, look)

    def _turned(self, turn: Turn) -> contextlib.AbstractContextManager[None]:
        if self._alone is not None:
            return contextlib.nullcontext()
        return self._bank.gate.held_at(*self.routing.gate(turn, self._slots, self._bank.slots))

    @contextlib.contextmanager
    def _watched(self, mask: torch.Tensor, shares: dict[int, torch.Tensor]) -> Iterator[None]:
        """Afterwards `shares` holds what the experts of each route of tokens had of prompts under `mask`."""
        if not self.routing.token_routes:
            yield
            return
        with self._bank.gate.observed() as observed:
            observed.mask = mask
            yield
        for place, number in enumerate(self.routing.token_routes):
            found = observed.shares(place)
            experts = len(self.plan.routes[number].experts)
            shares[number] = torch.zeros(len(mask), experts) if found is None else found


class _Call:
    """One call of a model: what each prompt asks for beside its words, dealt to the batches in which a chat
    takes them, and what was decided."""

    def __init__(
        self,
        model: ComposedModel,
        prompts: Sequence[Prompt],
        asks: Sequence[Ask],
        room: int,
        *,
        explain: bool = False,
    ) -> None:
        plain = all(ask == Ask(allow=model.allow) for ask in asks)
        self.model, self.asks, self.explain = model, asks, explain
        self.decided: list[tuple[Decision, ...]] = [()] * len(prompts)
        self.chat = model.chat
        if explain or not plain:
            self.chat = Chat(
                model.base,
                model=model.model,
                prefill=self._prefilled,
                batch_tokens=model.chat.batch_tokens,
            )
            self._batches = iter(batches_of(model.tokenizer, prompts, room, self.chat.batch_tokens))

    def _prefilled(
        self, prompts: list[list[int]], ids: torch.Tensor, mask: torch.Tensor, settings: Mapping[str, Any]
    ) -> contextlib.AbstractContextManager[DynamicCache | None]:
        batch = next(self._batches)

        def record(decisions: list[tuple[Decision, ...]]) -> None:
            for i, one in zip(batch, decisions, strict=True):
                self.decided[i] = one

        return self.model._prefilled(
            prompts, ids, mask, settings, [self.asks[i] for i in batch], record if self.explain else None
        )


def batches_of(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], room: int, batch_tokens: int
) -> list[list[int]]:
    """Which prompts `Chat.generate` answers together, and in which order."""
    lengths = [len(encode_prompt(tokenizer, prompt)) + room for prompt in prompts]
    return list(batches_by_length(lengths, batch_tokens))


def compose(
    what: str | Path | Mapping[str, Any] | Lock | Version,
    *,
    store: Registry | str | Path | None = None,
    base: BaseLike = None,
    device: str = "auto",
    dtype: str | None = None,
    allow: Collection[str] | None = None,
    accept_prompt_change: bool = False,
) -> ComposedModel:
    """Load what a reference (`acme@prod`), a recipe (path, YAML, dict), a lock or a version says.

    `base`: where the base lies on this machine, or an already loaded one; by default where the registry
    last saw it. `allow`: for whom it is composed may reach these adapters only, by name, reference or digest,
    whatever a router or a request says. Raises ReferenceNotFound, InputError (recipe, plan), BaseMismatch
    (another base, or a changed tokenizer or chat template without `accept_prompt_change`), IntegrityError
    (bytes that changed).
    """
    from inlay.registry import Registry as Store

    store = store if isinstance(store, Store) else Store.open(store)
    target = _target(what, store, base, accept_prompt_change)
    plan = make_plan(store, target)
    loaded = (
        base
        if isinstance(base, Base)
        else load_base(base or whereabouts(target.base), device=device, dtype=dtype)
    )
    check_base(target.base, loaded, target.ref, accept_prompt_change=accept_prompt_change)
    return ComposedModel(loaded, store, target, plan, allow=allow)


def _target(what: Any, store: Registry, base: BaseLike, accept_prompt_change: bool) -> Lock | Version:
    if isinstance(what, Lock | Version):
        return what
    if (
        isinstance(what, str)
        and not what.lstrip().startswith("{")
        and "\n" not in what
        and not Path(what).is_file()
    ):
        return store.resolve(what)
    from inlay.composer.locking import fit_routers

    recipe = Recipe.of(what)
    routers = fit_routers(store, recipe, base=base, accept_prompt_change=accept_prompt_change)
    return store.pin(recipe, routers=routers)
