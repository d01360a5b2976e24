"""The kinds of adapters that can be trained: settings in, PEFT's configuration out.

A kind is one function with its name in `KINDS`; any other kind of PEFT's is its configuration as it stands.
Imports no torch by itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError
from inlay.trainers.naming import meant
from inlay.trainers.placement import ALL, ALL_LINEAR, refuse_idle, targets_of

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

    from inlay.trainers.settings import Settings

_TASK = "CAUSAL_LM"
_OF_A_SAVED_ONE = ("inference_mode", "base_model_name_or_path", "revision", "peft_version", "auto_mapping")
"""Fields of a saved adapter's configuration that say where it came from, not how one is made."""


def lora(settings: Settings, model: PreTrainedModel, **more: Any) -> PeftConfig:
    """W + B A × alpha / rank (arXiv:2106.09685); composes with others."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=_targets(settings, model),
        rank_pattern=dict(settings.rank_pattern),
        alpha_pattern=dict(settings.alpha_pattern),
        bias="none",
        task_type=_TASK,
        **more,
    )


def rslora(settings: Settings, model: PreTrainedModel) -> PeftConfig:
    """LoRA scaled by alpha / √rank, for high ranks (arXiv:2312.03732); composes with others."""
    return lora(settings, model, use_rslora=True)


def dora(settings: Settings, model: PreTrainedModel) -> PeftConfig:
    """LoRA of the direction and a magnitude a column (arXiv:2402.09353); used alone."""
    return lora(settings, model, use_dora=True)


def pissa(settings: Settings, model: PreTrainedModel) -> PeftConfig:
    """LoRA that begins at W's main directions (arXiv:2404.02948); kept as a LoRA of twice the rank."""
    from inlay.trainers.pissa import doubled

    return doubled(settings, lora(settings, model))


def qlora(settings: Settings, model: PreTrainedModel) -> PeftConfig:
    """LoRA trained on the base in 4 bits (arXiv:2305.14314), on CUDA; composes with others."""
    from inlay.trainers.quantised import refuse_cpu

    refuse_cpu(model.device.type)
    return lora(settings, model)


def prefix(settings: Settings, model: PreTrainedModel) -> PeftConfig:
    """Learned keys and values before every prompt (arXiv:2101.00190); used alone."""
    from peft import PrefixTuningConfig

    _refuse_placement(settings, "prefix tuning is in every layer")
    read = model.config.get_text_config()
    heads = read.hidden_size // read.num_attention_heads
    if (getattr(read, "head_dim", None) or heads) != heads:
        raise InputError(
            f"PEFT makes prefixes for heads of hidden size / heads = {heads}, and this base's have "
            f"{read.head_dim}",
            fix="train another kind",
        )
    return PrefixTuningConfig(num_virtual_tokens=settings.virtual_tokens, task_type=_TASK)


def ia3(settings: Settings, model: PreTrainedModel) -> PeftConfig:
    """One factor for each key, value and feed-forward activation (arXiv:2205.05638); used alone."""
    from peft import IA3Config
    from peft.utils.constants import (
        TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
        TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
    )

    _refuse_patterns(settings, "(IA)³")
    family = model.config.model_type
    if family not in TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING:
        raise InputError(
            f"PEFT knows no modules for (IA)³ in a {family}",
            fix="give its target_modules and feedforward_modules by --peft-config",
        )
    targets = settings.target_modules
    if targets == ALL_LINEAR:
        targets = tuple(TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING[family])
    modules = targets_of(model, targets, settings.layers)
    inner = tuple(TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[family])
    return IA3Config(
        target_modules=modules,
        feedforward_modules=[module for module in modules if module.endswith(inner)],
        task_type=_TASK,
    )


_MAKERS = {make.__name__: make for make in (lora, rslora, dora, pissa, qlora, prefix, ia3)}
KINDS = tuple(_MAKERS)
"""Every kind, in the order in which help and documentation name them."""


def said(kind: str) -> str:
    """What a kind in `KINDS` is, in a line."""
    return str(_MAKERS[kind].__doc__).partition("\n")[0]


def read_kind(written: Any) -> str | dict[str, Any]:
    """A name, or the configuration of a PEFT adapter as plain data.

    Raises InputError for a configuration without a peft_type, of a kind that PEFT does not have or that the
    registry cannot hold.
    """
    if isinstance(written, str):
        return written
    if not isinstance(written, Mapping):
        raise InputError(f"kind must be a name or a PEFT configuration, and is {written!r}")
    from inlay.registry.kinds import KINDS as WRITTEN_BY_PEFT

    named = written.get("peft_type")
    peft_type = str(named).upper()
    if peft_type not in WRITTEN_BY_PEFT:
        raise InputError(
            f"a PEFT configuration says its peft_type, and this one says {str(named)[:60]!r}",
            fix=meant(peft_type, WRITTEN_BY_PEFT),
        )
    kind = WRITTEN_BY_PEFT[peft_type]
    if kind.refused:
        raise InputError(f"{peft_type} cannot be registered: it {kind.refused}", fix=kind.fix)
    try:
        plain = json.loads(json.dumps(dict(written), allow_nan=False))
    except (TypeError, ValueError):
        raise InputError("a PEFT configuration must be plain data, and this one is not") from None
    return {**{k: v for k, v in plain.items() if k not in _OF_A_SAVED_ONE}, "peft_type": peft_type}


def config_of(settings: Settings, model: PreTrainedModel) -> PeftConfig:
    """PEFT's configuration for these settings on this base. Raises InputError for what the base does not
    have, and for what cannot be trained, registered or asked."""
    if isinstance(settings.kind, str):
        return _MAKERS[settings.kind](settings, model)
    return _passed_through(settings, settings.kind, model)


def leaves_the_base(config: PeftConfig) -> bool:
    """Whether the base keeps every number under such an adapter, and with it off speaks as itself."""
    return config.peft_type == "LORA" and config.bias == "none" and not config.modules_to_save


def put_on(
    model: PreTrainedModel, config: PeftConfig, settings: Settings, *, fresh: bool = True
) -> PeftModel:
    """The base under an adapter of `config`; `fresh`: one that begins where the settings' kind does.

    A kind that does not leave the base alone is put on a twin of it, which shares its tensors but those that
    are trained (`composer.alone.twin_of`). Raises InputError where PEFT will not.
    """
    from peft import get_peft_model

    with _errors_of_peft(settings):
        if fresh and settings.kind == "pissa":
            from inlay.trainers.pissa import begun

            return begun(model, settings, config)
        if leaves_the_base(config):
            return get_peft_model(model, config)
        from inlay.composer.alone import twin_of

        held = {parameter.data_ptr() for parameter in model.parameters()}
        adapted = get_peft_model(twin_of(model), config)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    if not trained:
        raise InputError(
            "an adapter must have something to train, and this one has nothing",
            fix="see its PEFT configuration",
        )
    for parameter in trained:
        if parameter.data_ptr() in held:
            parameter.data = parameter.data.clone()
    return adapted


def take_off(model: PreTrainedModel, adapted: PeftModel) -> None:
    """Give the base back as it was before `put_on`."""
    if adapted.get_base_model() is model:
        adapted.unload()


def _targets(settings: Settings, model: PreTrainedModel) -> list[str] | str:
    """As PEFT wants them: as they were written where all layers are meant, else every module by name."""
    targets, patterns = settings.target_modules, (settings.rank_pattern, settings.alpha_pattern)
    if targets == ALL_LINEAR and settings.layers == ALL and not any(patterns):
        return ALL_LINEAR
    modules = targets_of(model, targets, settings.layers)
    for pattern, name in zip(patterns, ("rank_pattern", "alpha_pattern"), strict=True):
        refuse_idle(pattern, modules, name)
    if settings.layers != ALL:
        return modules
    return targets if isinstance(targets, str) else list(targets)


def _passed_through(settings: Settings, given: Mapping[str, Any], model: PreTrainedModel) -> PeftConfig:
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, get_peft_config

    from inlay.composer.alone import refusal_alone
    from inlay.registry.kinds import CONVERSION, classify

    peft_type = given["peft_type"]
    known = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[peft_type])}
    for name in given:
        if name not in known:
            raise InputError(f"{name!r} is no field of a {peft_type}", fix=meant(name, sorted(known)))
    placed: dict[str, Any] = {}
    if settings.target_modules != ALL_LINEAR or settings.layers != ALL:
        if "target_modules" not in known or given.get("target_modules"):
            _refuse_placement(settings, f"the configuration of this {peft_type} says where it is")
        placed["target_modules"] = targets_of(model, settings.target_modules, settings.layers)
    for name in ("rank_pattern", "alpha_pattern"):
        if getattr(settings, name):
            if name not in known or given.get(name):
                _refuse_patterns(settings, f"the configuration of this {peft_type}")
            placed[name] = dict(getattr(settings, name))
    with _errors_of_peft(settings):
        config = get_peft_config({"task_type": _TASK, **given, **placed})
    written = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    if classify(written).exactness == CONVERSION:
        raise InputError(
            f"init_lora_weights: {given['init_lora_weights']} would move a part of the base into the adapter",
            fix="take kind: pissa, which is kept in plain form",
        )
    reason = refusal_alone(written)
    if reason is not None:
        raise InputError(f"this {peft_type} could not be asked: {reason}", fix="train another kind")
    return config


@contextlib.contextmanager
def _errors_of_peft(settings: Settings) -> Iterator[None]:
    """Inside, what PEFT raises for a configuration that it or this base does not allow is one InputError."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, ImportError) as error:
        from inlay.registry.printable import printable

        kind = settings.kind if isinstance(settings.kind, str) else settings.kind["peft_type"]
        raise InputError(
            f"PEFT cannot make this {kind}: {printable(' '.join(str(error).split()))[:200]}"
        ) from (error)


def _refuse_placement(settings: Settings, because: str) -> None:
    if settings.target_modules != ALL_LINEAR or settings.layers != ALL:
        raise InputError(
            f"{because}, and target_modules or layers are set", fix="leave them at what they are by default"
        )
    _refuse_patterns(settings, "it")


def _refuse_patterns(settings: Settings, what: str) -> None:
    if settings.rank_pattern or settings.alpha_pattern:
        raise InputError(
            f"rank_pattern and alpha_pattern are LoRA's, and {what} has no use for them", fix="leave them out"
        )
