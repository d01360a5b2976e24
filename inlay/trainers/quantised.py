"""The base in 4 bits, for QLoRA (arXiv:2305.14314): trained on, never measured on.

What comes out is registered for the base as it is and measured on that.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING

from inlay.errors import InputError
from inlay.evals.inference import Base, quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from inlay.trainers.settings import Settings


def refuse_cpu(device: str) -> None:
    """InputError where a 4-bit base cannot be trained on."""
    if device != "cuda":
        raise InputError(f"QLoRA needs CUDA, and this run is on the {device}", fix="train kind: lora")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("QLoRA needs bitsandbytes, which is not installed", fix="pip install bitsandbytes")


@contextlib.contextmanager
def ground(base: Base, settings: Settings) -> Iterator[Base]:
    """The base to train on: itself, or for QLoRA its weights in 4 bits (NF4, doubly quantised, computing in
    bfloat16). Meanwhile the base waits in the memory of the CPU."""
    if settings.kind != "qlora":
        yield base
        return
    device = base.model.device
    refuse_cpu(device.type)
    base.model.to("cpu")
    try:
        yield Base(
            _in_four_bits(base, str(device), settings.gradient_checkpointing),
            base.tokenizer,
            base.fingerprint,
        )
    finally:
        base.model.to(device)


def _in_four_bits(base: Base, device: str, checkpointing: bool) -> PreTrainedModel:
    import torch
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            str(base.fingerprint.path),
            quantization_config=config,
            dtype=torch.bfloat16,
            device_map={"": device},
            trust_remote_code=False,
            use_safetensors=True,
        )
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
    return model.eval()
