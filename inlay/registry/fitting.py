"""Whether every tensor of an adapter fits the base it is registered for.

PEFT only warns about keys that fit nothing; here they are refused by name, because such an adapter does not
do what it was trained to do. A key is `base_model.model.<module>.<what the kind keeps>`, or
`base_model.<name>` for what all modules share, or a whole tensor that the configuration announces
(modules_to_save, biases, the head of a task) or that PEFT adds by itself (embeddings that were trained or
resized).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from inlay.errors import InputError
from inlay.registry.fingerprint import BaseFingerprint
from inlay.registry.kinds import Kind, kind_of
from inlay.registry.module_names import (
    EMBEDDINGS,
    HEADS,
    embedding_width,
    find_in_base,
    nearest,
    spellings_of,
)
from inlay.registry.peft_config import CONFIG, PeftConfig
from inlay.registry.safetensors_header import TensorInfo
from inlay.registry.shapes import Place, Shape, Shared
from inlay.registry.targets import among, in_layers, name_in_base, targeted

# Heads that PEFT saves whole for a task, without a word in the configuration.
_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
# Architectures of transformers whose linear layers are Conv1D, with weights (in, out).
_CONV1D = ("GPT2", "OpenAIGPT", "ImageGPT", "DecisionTransformer")
_PREFIX = "base_model.model."
_SHARED = "base_model."
_AGAIN = "save the adapter again with PEFT"


@dataclass(frozen=True)
class Fit:
    """`rank` is the largest over the modules (0 for kinds without one); `targets` the last parts of their
    names; `whole` the keys of whole tensors; `low_rank` is False where a module is no matrix.
    """

    rank: int
    targets: tuple[str, ...]
    whole: tuple[str, ...]
    notes: tuple[str, ...]
    low_rank: bool = True


def fit(tensors: Mapping[str, TensorInfo], fields: Mapping[str, Any], base: BaseFingerprint) -> Fit:
    """Match every tensor with the base; InputError that names the key or module otherwise."""
    kind = kind_of(fields)
    config = PeftConfig(fields, kind.defaults)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    fitting = _Fitting(kind, config, base)
    return fitting.prompt(found) if kind.on == "prompt" else fitting.modules(found)


@dataclass
class _Fitting:
    kind: Kind
    config: PeftConfig
    base: BaseFingerprint
    whole: dict[str, Shape] = field(default_factory=dict)  # by the name the base would have
    whole_keys: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    adapted: set[str] = field(default_factory=set)  # the base's tensors that some module adapts

    def modules(self, found: Mapping[str, Shape]) -> Fit:
        """Every kind but those that only prepend a prompt."""
        modules: dict[str, dict[str, Shape]] = {}
        shared: dict[str, Shape] = {}
        for key, shape in found.items():
            rest = key.removeprefix(_PREFIX)
            if rest == key:
                name = key.removeprefix(_SHARED)
                if name == key or not self.kind.shared or not name.startswith(self.kind.marks):
                    raise _fits_nothing(
                        key, f"PEFT's keys start with {_PREFIX}", fix="save it with PEFT again"
                    )
                shared[name] = shape
                continue
            module, part = self._split(rest)
            if part is not None:
                held = modules.setdefault(module, {})
                if part in held:
                    raise _fits_nothing(key, f"module {module!r} has another {part}")
                held[part] = shape
            elif rest.endswith(".token_adapter.trainable_tokens_delta"):
                self._tokens(key, rest.removesuffix(".token_adapter.trainable_tokens_delta"), shape)
            else:
                self._whole(key, rest, shape, saved_as=_PREFIX)
        places = [
            (self._block if self.kind.on == "block" else self._module)(name, modules[name])
            for name in sorted(modules)
        ]
        if not modules and not (self.kind.shared and shared):
            raise InputError(
                f"the weights hold no {self.kind.peft_type} factors",
                fix="save the trained adapter with PEFT again",
            )
        if self.kind.shared:
            self._shared(shared, tuple(place for place, _ in places if place is not None))
        targets = {name.removesuffix(".base_layer").rpartition(".")[2] for name in modules}
        if not modules:  # all is shared: what it is for, only the configuration says
            named = (n.removesuffix(".weight") for n in self.base.tensors if n.endswith(".weight"))
            found_there = [n for n in named if among(self.config, n, "target_modules", unsure=True)]
            targets = {n.rpartition(".")[2] for n in found_there}
            if not targets:
                raise InputError(
                    f"the target_modules of {CONFIG} name nothing in the base {self.base.name}",
                    fix="give the base it was trained on",
                )
        else:
            self._note_left_out()
        if self.config.unmatched:
            fields = ", ".join(sorted(self.config.unmatched))
            self.notes.append(f"not checked module by module, because matching may take too long: {fields}")
        return Fit(
            rank=max((rank for _, rank in places), default=0),
            targets=tuple(sorted(targets)),
            whole=tuple(self.whole_keys),
            notes=tuple(self.notes),
            low_rank=all(place is None or len(place.weight) == 2 for place, _ in places),
        )

    def _split(self, rest: str) -> tuple[str, str | None]:
        """(module, what the kind keeps for it); (rest, None) if the key is none of the kind's."""
        parts = rest.split(".")
        for i in range(len(parts) - 1, 0, -1):
            if parts[i].startswith(self.kind.marks):
                part = ".".join(parts[i:])
                # PEFT calls DoRA's magnitude by either name, depending on its version.
                return ".".join(parts[:i]), part.replace("magnitude_vector.weight", "magnitude_vector")
        return rest, None

    def _module(self, name: str, found: dict[str, Shape]) -> tuple[Place | None, int]:
        """The place in the base that the tensors of one module fit, and their rank."""
        self._targeted(name)
        candidates = self._weights(name)
        if not candidates:
            plain = name.removesuffix(".base_layer")
            raise InputError(
                f"module {name!r} is not in the base {self.base.name}{nearest(plain, self.base)}",
                fix="give the base it was trained on",
            )
        refusal: InputError | None = None
        for base_name, weight in candidates:
            for place in self._orientations(name, base_name, weight, found):
                try:
                    rank = self._fits(place, base_name)
                    self.adapted.add(base_name)
                    return place, rank
                except InputError as error:
                    refusal = refusal or error
        assert refusal is not None
        raise refusal

    def _weights(self, name: str) -> list[tuple[str, Shape]]:
        """(name, shape) of the base's tensors that the module may adapt."""
        original = name_in_base(self.config, name)
        weights = []
        plain = original
        while plain.endswith(
            ".base_layer"
        ):  # PEFT nests its wrappers where one module has several parameters
            plain = plain.removesuffix(".base_layer")
        for parameter in self.config.names("target_parameters"):
            owner, _, leaf = parameter.rpartition(".")
            if not owner or plain == owner or plain.endswith(f".{owner}"):
                found = find_in_base(f"{plain}.{leaf}", self.base)
                weights += [found] if found else []
        own = self.whole.get(f"{original}.weight")
        found = find_in_base(f"{original}.weight", self.base)
        if found:
            # An embedding that was resized comes with the adapter, and its factors fit that one.
            weights.append((found[0], own) if own is not None else found)
        return weights

    def _orientations(
        self, name: str, base_name: str, weight: Shape, found: Mapping[str, Shape]
    ) -> list[Place]:
        def tensor(leaf: str) -> Shape | None:
            other = find_in_base(f"{name_in_base(self.config, name)}.{leaf}", self.base)
            return other[1] if other else None

        def place(inputs: int, outputs: int) -> Place:
            return Place(name, weight, inputs, outputs, found, self.config, tensor)

        if self.kind.peft_type == "LN_TUNING":
            return [place(0, 0)]
        if len(weight) == 3 and self.config.names("target_parameters"):
            return [place(weight[1], weight[2]), place(weight[2], weight[1])]
        if len(weight) > 2 and self.kind.peft_type == "LORA":
            return [place(weight[1], weight[0])]
        if len(weight) != 2:
            raise InputError(
                f"module {name!r}: {self.kind.peft_type} is checked on a matrix only, "
                f"{base_name} is {list(weight)}",
                fix="give the base it was trained on",
            )
        linear, conv1d = place(weight[1], weight[0]), place(weight[0], weight[1])
        if any("_embedding_" in part for part in found):
            return [conv1d]  # (rows, dim): what goes in is a row's number
        # PEFT sets fan_in_fan_out by the last module it met, so that a model with both sorts has either.
        if self.config.flag("fan_in_fan_out"):
            return [conv1d, linear]
        return [linear, conv1d] if self.base.architecture.startswith(_CONV1D) else [linear]

    def _fits(self, place: Place, base_name: str) -> int:
        """The rank if exactly the expected tensors are there; InputError otherwise."""
        assert self.kind.tensors is not None
        expected, rank = self.kind.tensors(place)
        key = f"{_PREFIX}{place.module}"
        for part in place.found:
            if part not in expected:
                pieces = part.split(".")
                if len(pieces) > 1 and ".".join([pieces[0], *pieces[2:]]) in expected:
                    raise _fits_nothing(
                        f"{key}.{part}", f"it carries the name of an adapter, {pieces[1][:40]!r}",
                        fix=f"{_AGAIN} (save_pretrained leaves that name out)",
                    )  # fmt: skip
                raise _fits_nothing(
                    f"{key}.{part}",
                    f"by its {CONFIG} a module of this {self.kind.peft_type} has {', '.join(expected)}",
                )
        for part in expected:
            if part not in place.found:
                there = next(iter(place.found)).removesuffix(".weight")
                raise InputError(
                    f"module {place.module!r} has {there} without {part.removesuffix('.weight')}", fix=_AGAIN
                )
        wrong = next((part for part in expected if place.found[part] != expected[part]), None)
        if wrong is None:
            return rank
        seen = place.size("lora_A.weight", 0)
        if self.kind.peft_type == "LORA" and seen and seen != rank:
            other = PeftConfig({**self.config.fields, "r": seen, "rank_pattern": None}, self.config.defaults)
            as_seen, _ = self.kind.tensors(replace(place, config=other))
            if as_seen == place.found:
                raise InputError(
                    f"module {place.module!r} has rank {seen}, {CONFIG} says {rank}",
                    fix="save the adapter together with its configuration again",
                )
        raise InputError(
            f"module {place.module!r}: {wrong} must be {list(expected[wrong])} for {base_name} "
            f"{list(place.weight)} and its {CONFIG}, got {list(place.found[wrong])}",
            fix="give the base it was trained on",
        )

    def _shared(self, found: Mapping[str, Shape], places: tuple[Place, ...]) -> None:
        assert self.kind.shared is not None
        expected = self.kind.shared(Shared(places, found, self.config))
        for name, shape in found.items():
            if name not in expected:
                raise _fits_nothing(f"{_SHARED}{name}", f"by its {CONFIG} nothing of that name is shared")
            if shape != expected[name]:
                raise InputError(
                    f"key {_SHARED + name!r} must be {list(expected[name])} by the modules that use it and "
                    f"its {CONFIG}, got {list(shape)}",
                    fix=_AGAIN,
                )
        for name in expected:
            if name not in found:
                raise InputError(f"{_SHARED + name!r}, which all modules share, is not there", fix=_AGAIN)

    def _targeted(self, name: str) -> None:
        """Refuse a module that the configuration does not target: PEFT would drop its tensors with a
        warning.
        """
        plain = name.removesuffix(".base_layer")
        for parameter in self.config.names("target_parameters"):
            owner = parameter.rpartition(".")[0]
            if not owner or plain == owner or plain.endswith(f".{owner}"):
                return
        if not targeted(self.config, name):
            raise InputError(
                f"module {name!r} fits nothing: the target_modules of {CONFIG} leave it out", fix=_AGAIN
            )

    def _note_left_out(self) -> None:
        """Note modules that are targeted by name and have no tensors: PEFT would start them anew.

        A note, no refusal: a checkpoint may hold layers that the model does not build.
        """
        targets = self.config.names_or_text("target_modules")
        if self.kind.on != "weight" or isinstance(targets, str) or self.config.get("layer_replication"):
            return
        left = [
            module
            for module in (n.removesuffix(".weight") for n in self.base.tensors if n not in self.adapted)
            if f"{module}.weight" in self.base.tensors
            and among(self.config, module, "target_modules", unsure=False)
            and (self.config.holds("target_modules", module) or in_layers(self.config, f"model.{module}"))
            and not among(self.config, module, "exclude_modules", unsure=True)
        ]
        if left:
            self.notes.append(
                f"{len(left)} modules that target_modules names have no tensors, the first is {left[0]}"
            )

    def _block(self, name: str, found: Mapping[str, Shape]) -> tuple[None, int]:
        """Adaption prompts (arXiv:2303.16199): vectors and a gate for a whole attention block."""
        below = [f"{name}.", *(f"{spelling}." for spelling in spellings_of(name))]
        if not any(tensor.startswith(tuple(below)) for tensor in self.base.tensors):
            raise InputError(
                f"module {name!r} is not in the base {self.base.name}", fix="give the base it was trained on"
            )
        length = self.config.count("adapter_len")
        width = embedding_width(self.base) or (found.get("adaption_prompt") or (0,))[-1]
        expected: dict[str, Shape] = {"adaption_prompt": (1, length, width), "adaption_gate": (1,)}
        self._exactly(found, expected, f"{_PREFIX}{name}.")
        return None, 0

    def prompt(self, found: Mapping[str, Shape]) -> Fit:
        """Kinds that prepend trained vectors: to the input, or (prefix, cartridge) to keys and values."""
        own: dict[str, Shape] = {}
        for key, shape in found.items():
            if key.startswith(_SHARED):
                self._whole(key, key.removeprefix(_SHARED), shape, saved_as=_SHARED)
            else:
                own[key] = shape
        config, kind = self.config, self.kind.peft_type
        tokens = config.count("num_virtual_tokens")
        given = config.get("token_dim") is not None
        width = embedding_width(self.base)
        if kind in ("PREFIX_TUNING", "CARTRIDGE"):
            dim = config.count("token_dim")
            heads = {s[0] for n, (_, s) in self.base.tensors.items() if n.endswith("k_proj.weight")}
            if heads and dim not in heads:
                raise InputError(
                    f"{CONFIG}: token_dim must be the width of the base's keys, one of {sorted(heads)[:8]}, "
                    f"got {dim}",
                    fix="give the base it was trained on",
                )
            expected: dict[str, Shape] = {"prompt_embeddings": (tokens, config.count("num_layers") * 2 * dim)}
        else:
            dim = config.count("token_dim") if given else (width or found.get("prompt_embeddings", (0,))[-1])
            if width and dim != width:
                raise InputError(
                    f"{CONFIG}: token_dim must be the width of the base's embedding, {width}, got {dim}",
                    fix="give the base it was trained on",
                )
            parts = config.count("num_transformer_submodules") if self._says_submodules else self._submodules
            expected = {"prompt_embeddings": (tokens * (1 if kind == "CPT" else parts), dim)}
            if kind == "MULTITASK_PROMPT_TUNING":
                tasks, ranks = config.count("num_tasks"), config.count("num_ranks")
                expected["prefix_task_cols"] = (tasks, tokens * parts, ranks)
                expected["prefix_task_rows"] = (tasks, ranks, dim)
        self._exactly(own, expected, "")
        return Fit(0, (), tuple(self.whole_keys), tuple(self.notes))

    @property
    def _says_submodules(self) -> bool:
        return self.config.get("num_transformer_submodules") is not None

    @property
    def _submodules(self) -> int:
        return 2 if self.config.get("task_type") == "SEQ_2_SEQ_LM" else 1

    def _exactly(self, found: Mapping[str, Shape], expected: Mapping[str, Shape], before: str) -> None:
        for part, shape in found.items():
            if part not in expected:
                raise _fits_nothing(
                    f"{before}{part}", f"a {self.kind.peft_type} adapter has {', '.join(expected)}"
                )
            if shape != expected[part]:
                raise InputError(
                    f"key {before + part!r} must be {list(expected[part])} by the base and its {CONFIG}, "
                    f"got {list(shape)}",
                    fix="give the base it was trained on",
                )
        for part in expected:
            if part not in found:
                raise InputError(f"{before + part!r} is not there", fix=_AGAIN)

    def _tokens(self, key: str, module: str, shape: Shape) -> None:
        """New rows of an embedding beside LoRA factors (trainable_token_indices)."""
        chosen = self.config.get("trainable_token_indices")
        lists = list(chosen.values()) if isinstance(chosen, Mapping) else [chosen]
        rows = [len(c) for c in lists if isinstance(c, list)]
        embedding = find_in_base(f"{module}.weight", self.base)
        if embedding is None or len(embedding[1]) != 2 or shape not in [(n, embedding[1][1]) for n in rows]:
            raise _fits_nothing(key, f"{list(shape)} is not what trainable_token_indices and the base make")

    def _whole(self, key: str, rest: str, shape: Shape, *, saved_as: str) -> None:
        """Refuse a key that is no factor unless it is a whole tensor that the configuration announces, or
        that PEFT adds by itself, and the base fits.
        """
        name = rest.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        module, _, leaf = name.rpartition(".")
        parts = module.split(".")
        saved = (*self.config.names("modules_to_save"), *_HEADS.get(str(self.config.get("task_type")), ()))
        # PEFT saves a module whose name ends so, with all that is below it.
        announced = any(".".join(parts[: i + 1]).endswith(saved) for i in range(len(parts)))
        bias = self.config.text("bias")
        is_bias = leaf == "bias" and bias is not None and (bias == "all" or bias.endswith("_only"))
        found = find_in_base(name, self.base)
        is_embedding = found is not None and (found[0].endswith(EMBEDDINGS) or parts[-1] in HEADS)
        if not announced and not (is_bias and found) and not is_embedding:
            raise _fits_nothing(
                key, f"no {self.kind.peft_type} factor, and neither modules_to_save nor bias announces it"
            )
        # A head for classification is new; anything the base has must keep its shape.
        if found is not None and found[1] != shape:
            if not is_embedding or len(shape) != 2 or shape[1:] != found[1][1:]:
                raise InputError(
                    f"key {key!r} has shape {list(shape)}, {found[0]} of the base {self.base.name} has "
                    f"{list(found[1])}",
                    fix="give the base it was trained on",
                )
            self.notes.append(
                f"{name} has {shape[0]} rows, the base {found[1][0]}: resize its embedding before loading"
            )
        self.whole[name] = shape
        self.whole_keys.append(key)


def _fits_nothing(key: str, why: str, fix: str | None = None) -> InputError:
    return InputError(
        f"key {key!r} fits nothing: {why}", fix=fix or "save the adapter again, or remove the key"
    )
