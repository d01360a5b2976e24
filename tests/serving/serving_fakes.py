"""Random adapters on the built-in base that change every answer, a scheduler with them in its bank, and ears
for what it says. Nothing here needs PEFT or a trained adapter."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from inlay.composer.merging.loading import adapter_of
from inlay.composer.plan import make_plan
from inlay.composer.routing import load_routing
from inlay.evals.inference import Base, Prompt, encode_prompt
from inlay.registry import Lock, Registry, Version
from inlay.serving.requests import Ended, Event, Failed, Request, Sampling, Token

if TYPE_CHECKING:
    from inlay.serving.scheduler import Scheduler, Ticket
    from inlay.serving.shelf import Loaded

TARGETS = ("q_proj", "v_proj", "down_proj")
PROMPTS = (
    "Which queue handles this message?\nMy parcel is late.",
    "What is it?",
    "Write the order slip.\n3 blue chairs for Anna",
    "Which number is larger, 14 or 52?",
    "Say something about the river",
    "Write these words in upper case: river garden",
    "Make a card for this case.\nOn Monday, Ben wrote: The screen is broken.",
    "Say the following again: leaf working",
)


def write_adapter(
    folder: Path,
    base: Base,
    *,
    seed: int,
    strength: float = 0.2,
    rank: int = 4,
    targets: Sequence[str] = TARGETS,
) -> Path:
    """A LoRA as PEFT saves one, both factors random."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(targets),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in base.model.named_modules():
        module = getattr(module, "inner", module)  # what a bank has wrapped
        if name.rpartition(".")[2] in targets:
            head = f"base_model.model.{name}"
            a = torch.randn(rank, module.in_features, generator=generator)
            b = torch.randn(module.out_features, rank, generator=generator)
            tensors[f"{head}.lora_A.weight"], tensors[f"{head}.lora_B.weight"] = a * strength, b * strength
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def put_adapters(
    store: Registry, base: Base, folder: Path, names: Sequence[str], *, strength: float = 0.2, seed: int = 1
) -> list[str]:
    """References of random adapters, of ranks 2 to 6, kept with examples that routers can be fitted on."""
    refs = []
    for number, name in enumerate(names):
        made = write_adapter(
            folder / name, base, seed=seed + number, strength=strength, rank=2 + 2 * (number % 3)
        )
        examples = [
            f"{PROMPTS[number % len(PROMPTS)]} {word}" for word in ("please", "now", "again", "today")
        ]
        refs.append(store.add(name, made, base=base.fingerprint, run={"examples": examples}).ref)
    return refs


@dataclass(eq=False)
class StandIn:
    """The fields of `shelf.Loaded`, for tests of what lies below the shelf."""

    target: Lock | Version | None
    plan: Any
    routing: Any
    slots: tuple[int, ...]
    nbytes: int
    ref: str
    digest: str


def bare(base: Base) -> Loaded:
    return StandIn(None, None, None, (), 0, "base", base.fingerprint.weights)  # type: ignore[return-value]


def load(scheduler: Scheduler, store: Registry, ref: str) -> Loaded:
    """A target in slots of its own; for the scheduler's thread, or before it starts."""
    target = store.resolve(ref)
    plan = make_plan(store, target)
    adapters = {slot.digest: adapter_of(store, slot) for slot in plan.slots}
    routing = load_routing(store, plan, adapters)
    slots = tuple(scheduler.bank.load_all([adapters[slot.digest] for slot in plan.slots]))
    return StandIn(target, plan, routing, slots, plan.nbytes, target.ref, target.digest)  # type: ignore[return-value]


@contextlib.contextmanager
def scheduling(
    base: Base, store: Registry | None = None, refs: Sequence[str] = (), **settings: Any
) -> Iterator[tuple[Scheduler, dict[str, Loaded]]]:
    """A started scheduler with these references and "base" in its bank; afterwards the base is bare again."""
    from inlay.serving.scheduler import Scheduler

    scheduler = Scheduler(base, **settings)
    try:
        loaded = {"base": bare(base)}
        for ref in refs:
            assert store is not None
            loaded[ref] = load(scheduler, store, ref)
        scheduler.start()
        yield scheduler, loaded
    finally:
        scheduler.stop()
        scheduler.bank.detach()


@dataclass
class Ear:
    """Hears one request. `end` is Ended or Failed once `done` is set."""

    events: list[Event] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    first: threading.Event = field(default_factory=threading.Event)
    """Set with the first token."""
    ticket: Ticket | None = None

    def __call__(self, event: Event) -> None:
        assert not self.done.is_set(), f"nothing may come after the end, and {event} did"
        self.events.append(event)
        if isinstance(event, Token):
            self.first.set()
        else:
            self.done.set()

    def wait(self, seconds: float = 60.0) -> Ended:
        """The end of an answer; what made it fail is raised."""
        assert self.done.wait(seconds), "the answer did not end in time"
        end = self.events[-1]
        if isinstance(end, Failed):
            raise end.error
        assert isinstance(end, Ended)
        return end

    @property
    def ids(self) -> list[int]:
        return [event.id for event in self.events if isinstance(event, Token)]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Token | Ended))


def request(
    base: Base,
    prompt: Prompt,
    *,
    tenant: str = "local",
    max_tokens: int = 16,
    weights: Mapping[str, float] | None = None,
    expert: str | None = None,
    **sampling: Any,
) -> Request:
    ids = tuple(encode_prompt(base.tokenizer, prompt))
    return Request("test", tenant, ids, Sampling(max_tokens, **sampling), weights, expert)


def ask(scheduler: Scheduler, loaded: Loaded, wanted: Request) -> Ear:
    ear = Ear()
    ear.ticket = scheduler.submit(loaded, wanted, ear)
    return ear
