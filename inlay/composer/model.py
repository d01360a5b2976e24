"""From a reference or a recipe to a model on the device that answers.

Resolves, plans, loads; afterwards `ComposedModel` holds a normal transformers model whose base can be had
back, bit for bit, at any time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from inlay.composer.alone import load_alone
from inlay.composer.bank import Bank
from inlay.composer.merging.loading import adapter_of
from inlay.composer.plan import Plan, make_plan
from inlay.composer.routers.probe import Probe, pooled
from inlay.errors import BaseMismatch, InputError
from inlay.evals.inference import Base, Chat, Prompt, load_base
from inlay.registry import BaseRef, Lock, Recipe, Registry, Version

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from inlay.evals import ForgettingReport
    from inlay.registry.fingerprint import BaseFingerprint

BaseLike = str | Path | Base | None


class ComposedModel:
    """A base with the adapters of one lock, or of one adapter version, in its bank.

    `.model` is the transformers model itself; for a stack it speaks as composed wherever it is called. A
    routed variant must see a whole prompt before it can choose, so there only `.generate` and `.chat` route,
    and a bare call of `.model` is the base. An adapter without factors is run by PEFT: `.model` is then a
    PeftModel over the base's tensors (`composer.alone`). `.report` is what was measured last, or None.
    """

    def __init__(self, base: Base, store: Registry, target: Lock | Version, plan: Plan) -> None:
        self.base = base
        self.store = store
        self.report: ForgettingReport | None = None
        self._bank = Bank(base.model)
        self._held: dict[str, int] = {}
        self._alone: PeftModel | None = None
        self.base_chat = Chat(
            base,
            route=lambda _prompts: self._bank.gate.held_at(None),
            head_held=lambda: self._bank.gate.held_at(None),
        )
        """The bare base, asked through the same model with the gate closed; the base itself beside PEFT."""
        self.chat = Chat(base, route=self._routed)
        self._load(target, plan)

    def _load(self, target: Lock | Version, plan: Plan) -> None:
        """Read and load what is not in the bank yet, turn the gate, unload what no longer speaks.

        Whatever fails, fails before the gate is turned: what served goes on serving.
        """
        routers = load_routers(self.store, plan, target.ref)
        alone = None
        if plan.alone is not None:
            self._bank.refuse_others()
            alone = load_alone(self.base.model, self.store, plan.alone.version)
        in_bank = plan.slots if alone is None else ()
        missing = {slot.digest: slot for slot in in_bank if slot.digest not in self._held}
        adapters = [adapter_of(self.store, slot) for slot in missing.values()]
        held = {**self._held, **dict(zip(missing, self._bank.load_all(adapters), strict=True))}
        slots = [held[slot.digest] for slot in in_bank]
        closed = plan.gate(tuple(None for _ in plan.routes)) if alone is None else []
        try:
            self._bank.unfold()
            self._bank.gate.set(self._gate_rows([closed], slots)[0])
        except BaseException:
            for key in missing:
                self._bank.unload(held[key])
            raise
        self.target, self.plan, self._routers, self._slots = target, plan, routers, slots
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
        progress: Callable[[int, int], None] | None = None,
        **decoding: Any,
    ) -> list[str]:
        """Answers in the order of the prompts; greedy unless `decoding` says otherwise.

        A prompt is a user's string or a list of {"role", "content"} messages. `weights`: for each prompt
        how much of which member it gets, by the reference that the plan's slot has; members left out get
        nothing, {} is the bare base, None is what the recipe says. InputError for another number of
        weights than of prompts, an unknown member, a weight that is not finite, or an adapter run by PEFT.
        """
        chat = self.chat
        if weights is not None:
            if self.plan.alone is not None:
                raise InputError(
                    f"only members of a bank can be weighed, and {self.target.ref} is run by PEFT",
                    fix="ask .base_chat for the base's answers",
                )
            if len(weights) != len(prompts):
                raise InputError(
                    f"each prompt must have its weights, and there are {len(prompts)} and {len(weights)}",
                    fix="write None where a prompt takes what the recipe says",
                )
            order = batches_of(self.tokenizer, prompts, max_new_tokens, chat.batch_tokens)
            rows = iter([self._weights_of([weights[i] for i in batch]) for batch in order])
            chat = Chat(
                self.base, route=lambda ids: self._routed(ids, next(rows)), batch_tokens=chat.batch_tokens
            )
        return chat.generate(prompts, max_new_tokens=max_new_tokens, progress=progress, **decoding)

    def _weights_of(self, weights: Sequence[Mapping[str, float] | None]) -> list[list[float] | None]:
        """The gate of each row of a batch, a value for each slot of the plan; None: as the recipe says."""
        names = [slot.ref for slot in self.plan.slots]
        for name in (name for given in weights for name in given or {}):
            if name not in names:
                raise InputError(
                    f"weights must be for members of {self.target.ref}, and {name!r} is none",
                    fix=f"its members: {', '.join(names)}",
                )
        return [
            None if given is None else [float(given.get(name, 0.0)) for name in names] for given in weights
        ]

    def choices(self, prompts: Sequence[Prompt]) -> list[tuple[str, ...]]:
        """What each route of the plan chooses for each prompt: the expert's reference, or "base"."""
        from inlay.evals.inference import batches_by_length, encode_prompt

        encoded = [encode_prompt(self.tokenizer, prompt) for prompt in prompts]
        found: list[tuple[str, ...]] = [()] * len(encoded)
        for rows in batches_by_length([len(e) for e in encoded], self.chat.batch_tokens):
            for i, row in zip(rows, self._choose([encoded[i] for i in rows]), strict=True):
                found[i] = tuple(
                    "base" if c is None else route.experts[c]
                    for c, route in zip(row, self.plan.routes, strict=True)
                )
        return found

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
    def _routed(
        self, prompts: list[list[int]], given: Sequence[list[float] | None] | None = None
    ) -> Iterator[None]:
        if self.plan.slots and not self._held and self._alone is None:
            raise InputError(
                f"{self.target.ref} was detached and cannot answer", fix="compose it again, or swap to it"
            )
        if given is None and not self.plan.routed:
            yield  # the gate stands as the recipe says
            return
        rows = [self.plan.gate(choice) for choice in self._choose(prompts)]
        if given is not None:
            rows = [said if mine is None else mine for mine, said in zip(given, rows, strict=True)]
        with self._bank.gate.held_at(self._gate_rows(rows, self._slots)):
            yield

    def _choose(self, prompts: list[list[int]]) -> list[tuple[int | None, ...]]:
        """The choice of every route for every prompt; one pass of the bare base for each router."""
        columns = []
        for router in self._routers:
            with self._bank.gate.held_at(None):
                features = pooled(
                    self.model, prompts, self.tokenizer.pad_token_id, seed=router.seed, width=router.width
                )
            columns.append(router.choose(features))
        return list(zip(*columns, strict=True)) if columns else [()] * len(prompts)

    def _gate_rows(self, rows: Sequence[Sequence[float]], slots: Sequence[int]) -> torch.Tensor:
        """A value for each slot of a plan -> one for each slot of the bank, float32 (rows, slots)."""
        gate = torch.zeros(len(rows), self._bank.slots)
        gate[:, list(slots)] = torch.tensor(rows, dtype=torch.float32).reshape(len(rows), len(slots))
        return gate


def batches_of(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], room: int, batch_tokens: int
) -> list[list[int]]:
    """Which prompts `Chat.generate` answers together, and in which order."""
    from inlay.evals.inference import batches_by_length, encode_prompt

    lengths = [len(encode_prompt(tokenizer, prompt)) + room for prompt in prompts]
    return list(batches_by_length(lengths, batch_tokens))


def compose(
    what: str | Path | Mapping[str, Any] | Lock | Version,
    *,
    store: Registry | str | Path | None = None,
    base: BaseLike = None,
    device: str = "auto",
    dtype: str | None = None,
    accept_prompt_change: bool = False,
) -> ComposedModel:
    """Load what a reference (`acme@prod`), a recipe (path, YAML, dict), a lock or a version says.

    `base`: where the base lies on this machine, or an already loaded one; by default where the registry
    last saw it. Raises ReferenceNotFound, InputError (recipe, plan), BaseMismatch (another base, or a changed
    tokenizer or chat template without `accept_prompt_change`), IntegrityError (bytes that changed).
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
    return ComposedModel(loaded, store, target, plan)


def check_base(wanted: BaseRef, loaded: Base, ref: str, *, accept_prompt_change: bool = False) -> None:
    """BaseMismatch unless the loaded base is the one that `ref` was made for."""
    check_fingerprint(wanted, loaded.fingerprint, ref, accept_prompt_change=accept_prompt_change)


def check_fingerprint(
    wanted: BaseRef, found: BaseFingerprint, ref: str, *, accept_prompt_change: bool = False
) -> None:
    """`check_base` for a base that was not loaded."""
    if found.weights != wanted.weights:
        raise BaseMismatch(
            f"{ref} was made for the base {wanted.name} ({wanted.weights[:19]}…), "
            f"and {found.name} has the weights {found.weights[:19]}…",
            fix="name the right base with --base",
        )
    if found.prompt != wanted.prompt and not accept_prompt_change:
        raise BaseMismatch(
            f"{ref} was made for another tokenizer or chat template of {wanted.name}",
            fix="acknowledge the change with --accept-prompt-change",
        )


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


def whereabouts(base: BaseRef) -> str:
    """Where the registry last saw a base; InputError if nobody told it."""
    if not base.source:
        raise InputError(f"nobody told where the base {base.name} lies", fix="name it with --base")
    return base.source


def load_routers(store: Registry, plan: Plan, ref: str) -> list[Probe]:
    """The fitted router of each route; InputError or IntegrityError where one is missing or foreign."""
    routers = []
    for number, route in enumerate(plan.routes):
        if route.by != Probe.name:
            raise InputError(
                f"{route.path}: this version has no router {route.by!r}", fix=f"route by {Probe.name}"
            )
        if route.router is None:
            raise InputError(
                f"the route at {route.path} of {ref} has no fitted router", fix="lock the recipe again"
            )
        data = store.get_object(route.router)
        routers.append(Probe.from_bytes(data, base=plan.base.weights, experts=_route_digests(plan, number)))
    return routers


def _route_digests(plan: Plan, number: int) -> list[str]:
    """For each expert of a route, what it consists of: the digests of its leaves, joined in their order."""
    return [
        "+".join(
            version.digest
            for leaf in plan.leaves
            if (number, expert) in leaf.conditions
            for version in plan.slots[leaf.slot].versions
        )
        for expert in range(len(plan.routes[number].experts))
    ]
