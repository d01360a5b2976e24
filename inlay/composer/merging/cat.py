"""CAT: a stack whose weights are learned, one number for each module and adapter.

    Δ_m = Σ_t c_mt B_mt A_mt,  c minimises CE(examples) + kl · KL(base ‖ sum) on general prompts

Prabhakar et al., LoRA Soups, arXiv:2410.13025. Every c begins at 1, which is the plain stack; Adam, its rate
falling to 0. Where the paper learns from examples alone, `general` prompts keep the sum near its base: the
KL is in nats, over the positions of the base's own greedy answers. The result is exact factors of rank
Σ r_t, cut where asked.

Knows tensors, prompts and a base. What it learns is data, so a recipe cannot name it: `add_cat` registers it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from inlay.composer.bank import BankLayer, in_out
from inlay.composer.factors import Adapter
from inlay.composer.merging.merge import check_factors, merged
from inlay.composer.merging.methods import Settings
from inlay.composer.stacking import stacked
from inlay.errors import InputError
from inlay.evals.inference import base_answers, batches_by_length, encode_pair, head_only_at, pad

if TYPE_CHECKING:
    from inlay.evals.inference import Base, Progress, Prompt

Example = tuple["Prompt", str]
"""A prompt and the answer to it."""
Encoded = tuple[list[int], int]
"""Token ids of a prompt and its answer, and how many of them are the prompt's."""

ANSWER_TOKENS = 32
"""Length of the base's own answers to general prompts, in tokens; longer ones are cut there."""
BATCH_TOKENS = 4096
"""Padded tokens of a batch where losses are only measured."""


@dataclass(frozen=True)
class Learning:
    """How to learn: `steps` of Adam from the rate `rate`, each on `rows` examples and `rows` general prompts;
    `kl`, the weight of the general prompts; `seed`, for the order of both."""

    steps: int = 150
    rate: float = 0.05
    rows: int = 8
    kl: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("steps", 0), ("rows", 1), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or not low <= value < 2**63:
                raise InputError(f"{name} must be a whole number from {low}, got {str(value)[:60]!r}")
        for name, high in (("rate", 1.0), ("kl", 1e6)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= high:
                raise InputError(f"{name} must be a number from 0 to {high:g}, got {str(value)[:60]!r}")


@dataclass(frozen=True)
class Cat(Adapter):
    """The learned sum. `coefficients`: for each module one number for each adapter, in their order, None
    where the adapter leaves the module alone. `loss`: mean cross-entropy of the examples' answers, in nats a
    token, as a plain stack and as learned, before anything is cut; `drift`: the same two of the KL to the
    base, None without general prompts."""

    coefficients: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    loss: tuple[float, float] = (math.nan, math.nan)
    drift: tuple[float, float] | None = None


def cat(
    adapters: Sequence[Adapter],
    examples: Sequence[Example],
    base: Base,
    *,
    general: Sequence[Prompt] = (),
    learning: Learning | None = None,
    rank: int | None = None,
    energy: float | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> Cat:
    """Learn how much of each adapter each module needs, from `examples` of what the sum is to do.

    `examples`: (prompt, answer) pairs, as many for each adapter as it is to count. `general`: prompts on
    which the base is to stay what it is. `rank`, `energy`: as in `merge`. The base is left as it was. The
    same inputs give the same bytes on a CPU (one machine, one version of torch, one number of threads).
    Raises InputError, before anything is learned, for adapters or examples that do not fit the base, and for
    numbers that leave all bounds while learning.
    """
    learning = learning or Learning()
    inputs, settings = list(adapters), Settings.of("task_arithmetic", len(adapters), rank=rank, energy=energy)
    check_factors(inputs)
    if not examples:
        raise InputError("cat learns from examples, and there are none", fix="give (prompt, answer) pairs")
    shown = _encoded(base, examples, "example")
    with torch.inference_mode(False), torch.enable_grad(), _Sum(base, inputs) as total:
        with total.closed():
            answers = base_answers(base, general, max_new_tokens=ANSWER_TOKENS) if general else []
        kept = _encoded(base, list(zip(general, answers, strict=True)), "general prompt")
        before = _measured(total, shown, kept)
        _learn(total, shown, kept, learning, progress)
        after = _measured(total, shown, kept)
        coefficients = total.coefficients()
    if not all(math.isfinite(value) for value in (*after, *total.values.tolist())):
        raise InputError(
            f"coefficients and losses must stay finite, and do not with rate {learning.rate:g} in "
            f"{base.model.dtype}",
            fix="lower the rate, or look at the adapters one by one",
        )
    made = concatenated(inputs, coefficients, name or f"cat({', '.join(a.name for a in inputs)})")
    exactness = "merged by cat"
    if rank is not None or energy is not None:
        made = merged([made], [1.0], settings, made.name)
        cut = max(made.truncation.values(), default=0.0)
        exactness += f", cut by up to {cut:.2g} of a module's norm" if cut > 1e-6 else ""
    notes = [
        f"learned from {len(shown)} examples and {len(kept)} general prompts in {learning.steps} steps, "
        f"seed {learning.seed}: loss {before[0]:.4f} as a plain stack, {after[0]:.4f} as learned"
    ]
    if kept:
        notes.append(f"KL to the base on general prompts: {before[1]:.4f} before, {after[1]:.4f} after")
    return Cat(
        made.name,
        made.factors,
        exactness=exactness,
        embeddings=made.embeddings,
        truncation=made.truncation,
        notes=tuple(notes),
        coefficients=coefficients,
        loss=(before[0], after[0]),
        drift=(before[1], after[1]) if kept else None,
    )


def concatenated(
    adapters: Sequence[Adapter], coefficients: Mapping[str, Sequence[float | None]], name: str
) -> Adapter:
    """Σ_t c_mt B_mt A_mt as factors: A = [A_1; …], B = [c_1 B_1, …]; float32."""
    weighed = []
    for i, adapter in enumerate(adapters):
        factors = {m: (a, b.float() * (coefficients[m][i] or 0.0)) for m, (a, b) in adapter.factors.items()}
        weighed.append((replace(adapter, factors=factors), 1.0))
    return stacked(weighed, name)


class _Sum:
    """The adapters beside the base's layers, each with a number that has a gradient; a context, at whose end
    the base is as it was.

        y = W x + B (c ⊙ (A x)),  c repeated over the columns of each adapter

    `values`: every c of the sum, (number of pairs,), float32 or the base's wider type.
    """

    def __init__(self, base: Base, adapters: Sequence[Adapter]) -> None:
        self.base = base
        self.adapters = adapters
        self.modules = sorted({module for adapter in adapters for module in adapter.factors})
        self.pairs = [(m, i) for m in self.modules for i, a in enumerate(adapters) if m in a.factors]
        layers = {module: _layer(base, module, adapters) for module in self.modules}
        parameter = next(base.model.parameters())
        dtype = torch.promote_types(base.model.dtype, torch.float32)
        self.values = torch.ones(len(self.pairs), dtype=dtype, device=parameter.device, requires_grad=True)
        self._layers = layers
        self._open = True
        self._hooks: list[Any] = []

    def __enter__(self) -> _Sum:
        for module, layer in self._layers.items():
            self._hooks.append(layer.register_forward_hook(self._hook(module, layer)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook(self, module: str, layer: torch.nn.Module) -> Any:
        held = [(p, self.adapters[i].factors[module]) for p, (m, i) in enumerate(self.pairs) if m == module]
        weight: torch.Tensor = layer.weight  # type: ignore[assignment]
        dtype = weight.dtype if weight.is_floating_point() else self.base.model.dtype
        down = torch.cat([a for _, (a, _) in held]).to(weight.device, dtype)
        up = torch.cat([b for _, (_, b) in held], dim=1).to(weight.device, dtype)
        columns = torch.tensor([p for p, (a, _) in held for _ in range(len(a))], device=self.values.device)
        lookup = isinstance(layer, torch.nn.Embedding)

        def added(_: torch.nn.Module, args: tuple[torch.Tensor, ...], y: torch.Tensor) -> torch.Tensor:
            if not self._open:
                return y
            gate = self.values[columns].to(weight.device, dtype)
            inner = (
                functional.embedding(args[0], down.T)
                if lookup
                else functional.linear(args[0].to(dtype), down)
            )
            return y + functional.linear(inner * gate, up).to(y.dtype)

        return added

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Inside, the model is the bare base."""
        self._open = False
        try:
            yield
        finally:
            self._open = True

    def coefficients(self) -> dict[str, tuple[float | None, ...]]:
        known = dict(zip(self.pairs, self.values.tolist(), strict=True))
        return {m: tuple(known.get((m, i)) for i in range(len(self.adapters))) for m in self.modules}

    def cross_entropy(self, rows: Sequence[Encoded]) -> torch.Tensor:
        """Mean over the answers' tokens of −log q, in nats."""
        logits, targets = self._logits(rows)
        return functional.cross_entropy(logits, targets)

    def kl(self, rows: Sequence[Encoded]) -> torch.Tensor:
        """Mean over the answers' tokens of KL(base ‖ sum), in nats."""
        with torch.no_grad(), self.closed():
            teacher = self._logits(rows)[0].log_softmax(-1)
        student = self._logits(rows)[0].log_softmax(-1)
        return (teacher.exp() * (teacher - student)).sum(-1).mean()

    def _logits(self, rows: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the answers' tokens are predicted: logits (n, vocab), at least float32; those tokens (n,)."""
        model, device = self.base.model, str(self.values.device)
        ids, mask = pad(
            [ids for ids, _ in rows], self.base.tokenizer.pad_token_id, side="right", device=device
        )
        answer = torch.zeros_like(mask, dtype=torch.bool)
        for row, (tokens, n_prompt) in enumerate(rows):
            answer[row, n_prompt : len(tokens)] = True
        predicts = torch.roll(answer, -1, dims=1)  # position t predicts token t + 1
        with head_only_at(model, predicts):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0]
        return logits.to(self.values.dtype), ids[answer]


def _layer(base: Base, module: str, adapters: Sequence[Adapter]) -> torch.nn.Module:
    """The base's layer of that name; InputError where it is not one that the factors fit."""
    owner = next(adapter for adapter in adapters if module in adapter.factors)
    try:
        layer = base.model.get_submodule(module)
    except AttributeError:
        raise InputError(f"{owner.name} adapts {module}, which the base does not have") from None
    if isinstance(layer, BankLayer):
        raise InputError("this base carries a composed model", fix="detach that one, or load the base again")
    a, b = owner.factors[module]
    if in_out(layer) != (int(a.shape[1]), int(b.shape[0])):
        raise InputError(
            f"{owner.name}: {module} is a {type(layer).__name__} of (in, out) {in_out(layer)}, its delta "
            f"{(int(a.shape[1]), int(b.shape[0]))}"
        )
    return layer


def _encoded(base: Base, examples: Sequence[Example], what: str) -> list[Encoded]:
    limit = getattr(base.model.config, "max_position_embeddings", None)
    pairs = [encode_pair(base.tokenizer, prompt, answer) for prompt, answer in examples]
    for number, (ids, _) in enumerate(pairs, 1):
        if limit is not None and len(ids) > limit:
            raise InputError(
                f"prompt and answer must fit the base's context of {limit} tokens, and {what} {number} "
                f"needs {len(ids)}",
                fix="shorten or leave it out",
            )
    return pairs


def _learn(
    total: _Sum, shown: list[Encoded], kept: list[Encoded], learning: Learning, progress: Progress | None
) -> None:
    optimizer = torch.optim.Adam([total.values], lr=learning.rate)
    generator = torch.Generator().manual_seed(learning.seed)
    some, others = (_draws(pairs, learning.rows, generator) for pairs in (shown, kept))
    for step in range(learning.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning.rate * (1 - step / learning.steps)
        # Not `backward`: a base whose weights ask for gradients would collect them.
        (gradient,) = torch.autograd.grad(total.cross_entropy(next(some)), [total.values])
        if kept and learning.kl:
            (held,) = torch.autograd.grad(total.kl(next(others)), [total.values])
            gradient = gradient + learning.kl * held
        total.values.grad = gradient
        optimizer.step()
        if progress:
            progress(step + 1, learning.steps)


def _draws(pairs: list[Encoded], rows: int, generator: torch.Generator) -> Iterator[list[Encoded]]:
    """Batches without end, every pair once before one comes again."""
    waiting: list[int] = []
    while True:
        while len(waiting) < min(rows, len(pairs)):
            waiting += torch.randperm(len(pairs), generator=generator).tolist()
        yield [pairs[i] for i in waiting[:rows]]
        del waiting[:rows]


def _measured(total: _Sum, shown: list[Encoded], kept: list[Encoded]) -> tuple[float, float]:
    """Cross-entropy of all examples and KL on all general prompts (0 without them), in nats a token."""
    found = []
    for of, pairs in ((total.cross_entropy, shown), (total.kl, kept)):
        weighed, tokens = 0.0, 0
        for rows in batches_by_length([len(ids) for ids, _ in pairs], BATCH_TOKENS):
            chosen = [pairs[i] for i in rows]
            count = sum(len(ids) - n for ids, n in chosen)
            with torch.no_grad():
                weighed += count * float(of(chosen))
            tokens += count
        found.append(weighed / max(1, tokens))
    return found[0], found[1]
