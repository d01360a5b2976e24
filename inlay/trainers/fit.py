"""Fitting an adapter to data: TRL trains, PEFT adapts; ours is the anchor to the base.

Knows tensors, not the registry: `inlay.trainers.run` declares, evaluates and registers around it.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import TrainerCallback, set_seed

from inlay.errors import InputError
from inlay.evals.inference import Base, quiet_transformers
from inlay.trainers.anchor import Anchor
from inlay.trainers.data import Dataset
from inlay.trainers.kinds import config_of
from inlay.trainers.methods import method_named
from inlay.trainers.methods.job import Job
from inlay.trainers.settings import Settings

StepProgress = Callable[[int, int, dict[str, float]], None]
"""Called with (steps done, steps in all, {"loss", "kl", "learning_rate"} of the last one)."""


@dataclass
class Fitted:
    """A trained adapter still on its base, and what it took."""

    base: Base
    model: PeftModel
    steps: int
    seconds: float
    task_tokens: int
    general_tokens: int
    curve: list[dict[str, float]] = field(default_factory=list)
    """One row a step: step, loss (nats per answer token), kl (nats per answer position), learning_rate."""


class _Steps(TrainerCallback):
    def __init__(self, progress: StepProgress | None) -> None:
        self.progress = progress
        self.curve: list[dict[str, float]] = []
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        rate = kwargs["lr_scheduler"].get_last_lr()[0]
        row = {"step": state.global_step, **self.trainer.last, "learning_rate": rate}
        self.curve.append(row)
        if not torch.isfinite(torch.tensor(row["loss"])):
            raise InputError(
                f"the loss must stay finite, and at step {state.global_step} it is {row['loss']}",
                fix=f"lower the learning rate ({args.learning_rate:g})",
            )
        if self.progress:
            self.progress(state.global_step, state.max_steps, row)


def fit(
    base: Base,
    data: Dataset,
    settings: Settings,
    *,
    general: tuple[list[str], list[str]] | None = None,
    progress: StepProgress | None = None,
) -> Fitted:
    """Train a LoRA adapter on `data`; loss on the answers only.

    `general`: prompts and the base's own answers for the KL term; needed where `settings.kl` is above 0.
    The returned model wraps `base.model`: `release` gives the bare base back, as does any error.
    Raises InputError for a row longer than the context and for a loss that is not finite.
    """
    anchor = None
    if settings.kl > 0:
        if general is None:
            raise InputError(
                "KL to the base needs general prompts, and none were given", fix="set kl to 0 to do without"
            )
        anchor = Anchor(
            base.tokenizer,
            *general,
            rows=settings.kl_batch_size,
            prompt_weight=settings.kl_prompt,
            seed=settings.seed,
            device=str(base.model.device),
        )
    method = method_named(settings.method)
    rows = method.prepared(base, data, settings)
    set_seed(settings.seed)
    steps = _Steps(progress)
    model = get_peft_model(base.model, config_of(settings))
    try:
        with (
            tempfile.TemporaryDirectory(prefix="inlay-train-") as folder,
            quiet_transformers(),
            warnings.catch_warnings(),
        ):
            # TRL and transformers warn each other of their coming versions; nobody who trains can act on it.
            warnings.simplefilter("ignore", FutureWarning)
            arguments = _arguments(settings, folder, base)
            trainer = method.trainer(Job(base, model, rows, settings, anchor, arguments, [steps]))
            steps.trainer = trainer
            for callback in ("PrinterCallback", "ProgressCallback"):
                for held in [c for c in trainer.callback_handler.callbacks if type(c).__name__ == callback]:
                    trainer.remove_callback(held)
            start = time.perf_counter()
            trainer.train()
            seconds = time.perf_counter() - start
    except BaseException:
        _restore(base, model)
        raise
    model.eval()
    return Fitted(
        base=base,
        model=model,
        steps=trainer.state.global_step,
        seconds=seconds,
        task_tokens=int(trainer._total_train_tokens),
        general_tokens=anchor.tokens if anchor else 0,
        curve=steps.curve,
    )


def save_adapter(fitted: Fitted, folder: Path) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`, and nothing else.

    Two things of PEFT's are mended, since a digest must not depend on them: it keeps target modules in a set,
    and names the base by its path on this machine.
    """
    config = fitted.model.peft_config["default"]
    config.target_modules = sorted(config.target_modules)
    config.base_model_name_or_path = fitted.base.fingerprint.name
    config.inference_mode = True
    fitted.model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def release(fitted: Fitted) -> None:
    """Take the adapter off its base, which is then what it was before `fit`."""
    _restore(fitted.base, fitted.model)


def _restore(base: Base, model: PeftModel) -> None:
    model.unload()
    base.model.__dict__.pop("forward", None)  # TRL leaves its fused head on the instance
    base.model.eval()


def _arguments(settings: Settings, folder: str, base: Base) -> dict[str, Any]:
    """What transformers' TrainingArguments are given whatever the method."""
    return {
        "output_dir": folder,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": settings.warmup,  # transformers 5 reads a value below 1 as a share of the steps
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps,
        "per_device_train_batch_size": settings.batch_size,
        "weight_decay": settings.weight_decay,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": base.model.device.type == "cpu",
        "seed": settings.seed,
        "data_seed": settings.seed,
        "save_strategy": "no",
        "report_to": "none",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
