"""Going on from a version: its weights are the start, and its tasks are measured beside the new ones.

The adapter that is trained has the parent's kind and configuration. More rank and more modules can be asked
for: a LoRA grows by rows of A whose columns of B are zero, so that the start stays the parent exactly.

    [B₀ 0] @ [A₀; A₁] = B₀ A₀
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from inlay.errors import InputError, ReferenceNotFound
from inlay.evals.comparing import kept
from inlay.evals.earlier_tasks import EarlierTasks, earlier_tasks
from inlay.evals.ledger import Say, paired, scored
from inlay.evals.suites import Suite
from inlay.registry import Registry, Version
from inlay.registry.kinds import CONVERSION, KINDS, classify
from inlay.registry.peft_config import PeftConfig as Read
from inlay.trainers.placement import ALL, ALL_LINEAR
from inlay.trainers.settings import Settings

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel

    from inlay.composer.model import ComposedModel
    from inlay.evals.inference import Base, Progress

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
GROWS = ("rank", "alpha", "target_modules")
"""Settings of an adapter's shape that may differ from the parent's."""
STAYS = ("kind", "layers", "rank_pattern", "alpha_pattern", "virtual_tokens")
"""Those that may not."""
ANSWER_TOKENS = 32
"""Length of the parent's own answers to its prompts, in tokens; longer ones are cut there."""


def parent_of(ref: str | Version, store: Registry) -> Version:
    """The version that `ref` names; InputError for a variant's lock and for what was yanked or let go."""
    found = store.resolve(ref) if isinstance(ref, str) else ref
    if not isinstance(found, Version):
        raise InputError(
            f"training goes on from a version of an adapter, and {found.ref} is a variant's lock",
            fix="name one of its members: " + ", ".join(member.ref for member in found.members),
        )
    if found.state != "active":
        raise InputError(
            f"{found.ref} was {found.state}, nothing goes on from it", fix="name another version"
        )
    return found


def line_of(version: Version, store: Registry) -> tuple[list[Version], list[str]]:
    """The versions from the first one to `version`, each trained on from the one before, and what of them is
    not known here, as sentences."""
    found, notes = [version], []
    while (parent := (_run(store, found[0]) or {}).get("parent")) is not None:
        earlier = _named(store, parent)
        if earlier is None or earlier.digest in {each.digest for each in found}:
            notes.append(f"{parent['ref']}, from which {found[0].ref} went on, is not known here.")
            break
        found.insert(0, earlier)
    return found, notes


def _named(store: Registry, parent: Mapping[str, Any]) -> Version | None:
    for ref in (parent["ref"], parent["digest"]):
        try:
            thing = store.resolve(ref)
        except ReferenceNotFound:
            continue
        if isinstance(thing, Version) and thing.digest == parent["digest"]:
            return thing
    return None


def _run(store: Registry, version: Version) -> Mapping[str, Any] | None:
    return kept(version, partial(store.run_of, version))


def _prompts_of(version: Version, store: Registry) -> tuple[tuple[Version, tuple[str, ...]], ...]:
    """`Start.prompts` of a version."""
    seen: set[str] = set()
    found = []
    for each in line_of(version, store)[0]:
        own = [p for p in (_run(store, each) or {}).get("examples") or () if p not in seen]
        seen.update(own)
        if own:
            found.append((each, tuple(own)))
    return tuple(found)


def tasks_of(line: Sequence[Version], store: Registry) -> tuple[dict[str, str], list[str]]:
    """{digest of a target suite: the version of `line` that was the first to declare it}, and sentences about
    versions of which nobody knows any."""
    learnt: dict[str, str] = {}
    notes = []
    for version in line:
        run = _run(store, version)
        if run is None:
            notes.append(f"{version.ref} has no training record, and so no tasks that are known.")
        for suite in ((run or {}).get("declared") or {}).get("target") or ():
            learnt.setdefault(suite["digest"], version.ref)
    return learnt, notes


def measured(
    composed: ComposedModel, parent: Version, own: Sequence[Suite], store: Registry, say: Say | None = None
) -> EarlierTasks:
    """What `composed`, trained on from `parent`, kept of the tasks of the line, and what each scores on
    `own`, the new version's targets. Scores go into the store; of the parent only those that it lacks are
    made."""
    version = composed.target
    assert isinstance(version, Version)
    line, notes = line_of(parent, store)
    learnt, unknown = tasks_of(line, store)
    suites = []
    for digest in learnt:
        try:
            suites.append(Suite.from_store(store, digest))
        except ReferenceNotFound:
            notes.append(f"A suite of {learnt[digest]} is not here ({digest[:15]}…), and was not asked.")
    learnt |= {suite.digest: version.ref for suite in own if suite.digest not in learnt}
    suites += [suite for suite in own if learnt[suite.digest] == version.ref]

    def of(subject: Version, suite: Suite) -> dict[str, Any]:
        return {"suite": suite, "subject": subject.digest, "label": subject.ref, "store": store, "say": say}

    after = [paired(composed.base_chat, composed.chat, **of(version, suite))[1] for suite in suites]
    composed.swap(parent)
    try:
        before = [scored(composed.chat, **of(parent, suite)) for suite in suites]
    finally:
        composed.swap(version)
    refs = [*(each.ref for each in line), version.ref]
    return earlier_tasks(list(zip(before, after, strict=True)), learnt, refs, store, notes=[*notes, *unknown])


@dataclass(frozen=True)
class Start:
    """A version's adapter as the start of a training. `told`: those of `GROWS` that were asked for."""

    version: Version
    raw: Mapping[str, Any]
    weights: bytes = field(repr=False)
    told: Mapping[str, Any] = field(default_factory=dict)
    prompts: tuple[tuple[Version, tuple[str, ...]], ...] = field(default=(), repr=False)
    """Prompts that the versions of its line were trained on, as the records kept them, the first version
    first; each prompt stands with the first that has it, and versions without any are left out."""

    @classmethod
    def of(cls, version: Version, store: Registry, settings: Mapping[str, Any]) -> Start:
        """`settings`: those that were asked for. InputError where the adapter has no such start."""
        raw = json.loads(store.read_file(version, CONFIG))
        said = classify(raw)
        if said.exactness == CONVERSION:
            raise InputError(
                f"{version.ref} was started by {said.kind}, which moved a part of the base into it",
                fix="register it again with `inlay add --initial`, and go on from that",
            )
        asked = {key: value for key, value in settings.items() if value is not None}
        read = Settings().replaced(**asked)
        told = {key: getattr(read, key) for key in GROWS if key in asked}
        made = cls(version, raw, store.read_file(version, WEIGHTS), told, _prompts_of(version, store))
        made._refuse_shrinking()
        recorded = (_run(store, version) or {}).get("settings") or {}
        made._refuse_others(read, [key for key in STAYS if key in asked], recorded)
        return made

    def _refuse_others(self, read: Settings, asked: Sequence[str], recorded: Mapping[str, Any]) -> None:
        own = self.shaped(read)
        for key in asked:
            value = getattr(read, key)
            # Where it was placed, only the record says in words.
            if value != getattr(own, key) and (key != "layers" or value != recorded.get(key)):
                raise InputError(
                    f"going on keeps the adapter's {key}, and {self.version.ref} has "
                    f"{getattr(own, key) or 'none'}, not {value}",
                    fix=f"leave --{key.replace('_', '-')} away",
                )

    def _refuse_shrinking(self) -> None:
        told = [key for key in ("rank", "alpha") if key in self.told]
        if not told:
            return
        ref, leave = self.version.ref, f"leave --{told[0]} away"
        if self.raw["peft_type"] != "LORA":
            raise InputError(
                f"only a LoRA grows in going on, and {ref} is of the kind {self.version.kind}", fix=leave
            )
        if self.raw.get("rank_pattern") or self.raw.get("alpha_pattern"):
            raise InputError(f"{ref} has ranks of its own for single modules, which stay", fix=leave)
        if self._rank < self._own.count("r"):
            raise InputError(
                f"going on keeps the start exactly, and rank {self._rank} has no room for {ref}'s "
                f"{self._own.count('r')}",
                fix=f"{leave}, or name a higher one",
            )

    @cached_property
    def config(self) -> PeftConfig:
        """PEFT's configuration of the adapter that is trained: the version's, grown as it was told."""
        from peft import PeftConfig

        with tempfile.TemporaryDirectory(prefix="inlay-start-") as folder:
            Path(folder, CONFIG).write_text(json.dumps(self.raw), encoding="utf-8")
            config = PeftConfig.from_pretrained(folder)
        config.inference_mode, config.base_model_name_or_path = False, None
        if self.raw["peft_type"] == "LORA":
            config.init_lora_weights = True
            config.r, config.lora_alpha = self._rank, self._alpha
        if "target_modules" in self.told:
            targets = self.told["target_modules"]
            config.target_modules = targets if isinstance(targets, str) else set(targets)
        return config

    @property
    def _rank(self) -> int:
        return int(self.told.get("rank", self._own.count("r")))

    @property
    def _alpha(self) -> float:
        """As asked for; else the one that leaves the scaling as it is."""
        kept = self._scaling(self._own.count("r"), self._own.get("lora_alpha")) * self._divisor(self._rank)
        return float(self.told.get("alpha", kept))

    @property
    def _rescaled(self) -> float:
        """What B is multiplied by, so that the delta stays under the new rank and alpha."""
        if self.raw["peft_type"] != "LORA":
            return 1.0
        own = self._scaling(self._own.count("r"), self._own.get("lora_alpha"))
        return own / self._scaling(self._rank, self._alpha)

    @property
    def _own(self) -> Read:
        return Read(self.raw, KINDS["LORA"].defaults)

    def _divisor(self, rank: int) -> float:
        return math.sqrt(rank) if self.raw.get("use_rslora") else float(rank)

    def _scaling(self, rank: int, alpha: float) -> float:
        return alpha / self._divisor(rank)

    def shaped(self, settings: Settings) -> Settings:
        """`settings` with the shape that the adapter has: where it is, its modules say by name."""
        kind = self._kind
        changes: dict[str, Any] = {"kind": kind, "layers": ALL, "rank_pattern": {}, "alpha_pattern": {}}
        if self.raw["peft_type"] == "LORA":
            patterns = {key: self.raw.get(key) or {} for key in ("rank_pattern", "alpha_pattern")}
            changes |= {"rank": self._rank, "alpha": self._alpha, **patterns}
            changes["kind"] = "qlora" if settings.kind == "qlora" and kind == "lora" else kind
        if kind == "prefix":
            changes["virtual_tokens"] = self.raw["num_virtual_tokens"]
        targets = self.told.get("target_modules", self.raw.get("target_modules"))
        if targets is None or isinstance(kind, dict):  # a configuration says where it is
            changes["target_modules"] = ALL_LINEAR
        else:
            changes["target_modules"] = targets if isinstance(targets, str) else tuple(sorted(targets))
        return settings.replaced(**changes)

    @property
    def _kind(self) -> str | dict[str, Any]:
        """The trainers' name of the kind; the whole configuration where they have none."""
        marks = tuple(key for key in ("use_dora", "use_rslora") if self.raw.get(key))
        named = {
            ("LORA",): "lora",
            ("LORA", "use_rslora"): "rslora",
            ("LORA", "use_dora"): "dora",
            ("PREFIX_TUNING",): "prefix",
            ("IA3",): "ia3",
        }
        found = named.get((self.raw["peft_type"], *marks))
        return dict(self.raw) if found is None else found

    def put_into(self, model: PeftModel) -> None:
        """Load the version's weights into the fresh adapter of `model`, which then computes what base and
        version do. InputError where the adapter has no place for some of them."""
        import torch
        from peft import get_peft_model_state_dict, set_peft_model_state_dict
        from safetensors.torch import load

        fresh = {
            key: tensor.detach().clone()
            for key, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()
        }
        for key, tensor in sorted(load(self.weights).items()):
            place = fresh.get(key)
            if place is None:
                raise InputError(
                    f"going on keeps the start exactly, and {self.version.ref} adapts "
                    f"{key.removeprefix('base_model.model.').rpartition('.lora_')[0] or key}, which the "
                    "target modules leave out",
                    fix="leave --target-modules away, or name all of the version's",
                )
            part = tuple(slice(0, size) for size in tensor.shape)
            if tensor.ndim != place.ndim or place[part].shape != tensor.shape:
                raise InputError(
                    f"{self.version.ref} has {key} as {tuple(tensor.shape)}, and here it is "
                    f"{tuple(place.shape)}"
                )
            if ".lora_B." in key or ".lora_embedding_B" in key:
                tensor = tensor.to(torch.float32) * self._rescaled
            place[part] = tensor.to(place.device, place.dtype)
        set_peft_model_state_dict(model, fresh)

    def refuse_keeping_nothing(self) -> None:
        """InputError where no record of the line kept prompts to hold a training to."""
        if not self.prompts:
            raise InputError(
                f"keeping a parent asks it prompts that it was trained on, and {self.version.ref} has none "
                "in its record",
                fix="leave --keep-parent away",
            )

    def anchor(self, base: Base, settings: Settings, progress: Progress | None = None) -> ParentAnchor | None:
        """What holds the training to the version's own answers, to the prompts of all of its line; None where
        `keep_parent` is 0. Before the base has its adapter on."""
        if settings.keep_parent == 0:
            return None
        self.refuse_keeping_nothing()
        from inlay.composer.alone import put_on, twin_of
        from inlay.evals.inference import Chat
        from inlay.trainers.anchor import Anchor

        files = {CONFIG: json.dumps(self.raw).encode(), WEIGHTS: self.weights}
        teacher = put_on(twin_of(base.model), files, self.version.ref)
        learned = teacher.active_peft_config.is_prompt_learning
        chat = Chat(base, model=teacher)
        chat.batch_tokens = 1 if learned else chat.batch_tokens
        prompts = [prompt for _, of_one in self.prompts for prompt in of_one]
        anchor = Anchor(
            base.tokenizer,
            prompts,
            chat.generate(prompts, max_new_tokens=ANSWER_TOKENS, progress=progress),
            rows=settings.kl_batch_size,
            prompt_weight=settings.kl_prompt,
            seed=settings.seed,
            device=str(base.model.device),
            teacher=teacher,
        )
        return ParentAnchor(anchor, settings.keep_parent)


class ParentAnchor(TrainerCallback):
    """KL(parent ‖ adapted), weighted, on prompts that its line was trained on and its own answers. A callback
    only so that a run that is taken up goes on drawing where it stopped."""

    def __init__(self, anchor: Any, weight: float) -> None:
        self.anchor = anchor
        self.weight = weight

    def term(self, model: Any) -> torch.Tensor:
        """What it adds to a step's loss, a scalar with gradient."""
        return self.weight * self.anchor.kl(model)

    def state_dict(self) -> dict[str, Any]:
        return self.anchor.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.anchor.load_state_dict(state)
