"""Fitting an adapter to data: TRL trains, PEFT adapts; ours is the anchor to the base.

Knows tensors, not the registry: `inlay.trainers.run` declares, evaluates and registers around it.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from transformers import TrainerCallback, set_seed

from inlay.errors import InputError
from inlay.evals.inference import Base, quiet_transformers
from inlay.trainers import out_of_memory, processes
from inlay.trainers.checkpoints import Checkpoints
from inlay.trainers.cost import Cost, measuring
from inlay.trainers.extraction import copy_of, extracted
from inlay.trainers.keeping import Keeper
from inlay.trainers.kinds import config_of, leaves_the_base, put_on, take_off
from inlay.trainers.methods import method_named
from inlay.trainers.methods.job import Job
from inlay.trainers.remembering import Remembering
from inlay.trainers.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from inlay.composer.factors import Adapter
    from inlay.evals.inference import Progress
    from inlay.trainers.going_on import Start
    from inlay.trainers.reading import Data

StepProgress = Callable[[int, int, dict[str, float]], None]
"""Called with (steps done, steps in all, {"loss", "kl", "learning_rate"} of the last one)."""


@dataclass
class Fitted:
    """A trained adapter still on its base, and what it took."""

    base: Base
    model: PeftModel
    steps: int
    cost: Cost
    curve: list[dict[str, float]] = field(default_factory=list)
    """One row a step: step, loss (nats per answer token), kl (nats per answer position), learning_rate."""
    resumed: list[int] = field(default_factory=list)
    """The steps from which the run was taken up after an end before its time."""
    remembering: dict[str, Any] = field(default_factory=dict)
    """What kept it from forgetting and what that took, plain JSON (`Remembering.record`)."""
    method: dict[str, Any] = field(default_factory=dict)
    """What the method says of its rows and, for `full`, of what was extracted; plain JSON."""
    whole: PreTrainedModel | None = None
    """The fully fine-tuned model that the adapter was extracted from, until `release`."""

    @property
    def seconds(self) -> float:
        return self.cost.seconds

    @property
    def task_tokens(self) -> int:
        return self.cost.task_tokens

    @property
    def general_tokens(self) -> int:
        return self.cost.general_tokens


class _Steps(TrainerCallback):
    def __init__(self, progress: StepProgress | None) -> None:
        self.progress = progress
        self.curve: list[dict[str, float]] = []
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        rate = kwargs["lr_scheduler"].get_last_lr()[0]
        figures = self.trainer.step_figures()
        sums = processes.together(list(figures.values()), args.device)
        means = {name: value / processes.count() for name, value in zip(figures, sums, strict=True)}
        row = {"step": state.global_step, **means, "learning_rate": rate}
        self.curve.append(row)
        if not math.isfinite(row["loss"]):
            raise InputError(
                f"the loss must stay finite, and at step {state.global_step} it is {row['loss']}",
                fix=f"lower the learning rate ({args.learning_rate:g})",
            )
        if self.progress:
            self.progress(state.global_step, state.max_steps, row)

    def state_dict(self) -> dict[str, Any]:
        """What `Keeper` keeps: the curve so far, the tokens behind it, and what the first step's took."""
        trainer = self.trainer
        return {
            "curve": self.curve,
            "flops_a_token": trainer.flops_a_token,
            "task_tokens": trainer._total_train_tokens,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.curve = state["curve"]
        self.trainer.flops_a_token = state["flops_a_token"]
        self.trainer._total_train_tokens = state["task_tokens"]


def fit(
    base: Base,
    data: Data,
    settings: Settings,
    *,
    general: tuple[list[str], list[str]] | None = None,
    others: Sequence[Adapter] = (),
    start: Start | None = None,
    preparing: Progress | None = None,
    answering: Progress | None = None,
    progress: StepProgress | None = None,
    checkpoints: Checkpoints | None = None,
) -> Fitted:
    """Train an adapter on `data`, by the method that the settings name.

    `general`: prompts and the base's own answers for KL, replay and early stop; needed where the settings ask
    for one of them. `others`: adapters to which it begins orthogonal. `start`: a version whose weights it
    goes on from. `preparing`: told of the rows that the method makes out of the data, where that takes long;
    `answering`: of the start's own answers, where it is kept.
    The returned model wraps `base.model`: `release` gives the bare base back, as does any error.
    `checkpoints`: where the run is kept on the way; from the newest it goes on. Without them an interruption
    loses what was done. Raises InputError for a row longer than the context, for a loss that is not finite
    and for a step that does not fit the memory; Interrupted where somebody stopped it.
    """
    method = method_named(settings.method)
    trains_all = method.TRAINS == "all"
    if trains_all and start is not None:
        raise InputError(
            f"{settings.method} trains all of the base, and cannot go on from {start.version.ref}",
            fix="leave --from away, or take another method",
        )
    config = start.config if start is not None else config_of(settings, base.model)
    beside = trains_all or not leaves_the_base(config)
    remembering = Remembering.of(base, settings, general, others, teacher=base.model if beside else None)
    anchor = remembering.anchor
    prepared = method.prepared(base, data, settings, preparing)
    rows = remembering.rows(prepared.rows)
    parent = start.anchor(base, settings, answering) if start is not None else None
    set_seed(settings.seed)
    steps, keeper = _Steps(progress), Keeper(checkpoints)
    with _hushed():
        model = copy_of(base) if trains_all else put_on(base.model, config, settings, fresh=start is None)
    whole = None
    try:
        with (
            tempfile.TemporaryDirectory(prefix="inlay-train-") as folder,
            quiet_transformers(),
            _hushed(),
            _checkpointing_undone(base.model),
            out_of_memory.said(settings, str(base.model.device)),
        ):
            if start is not None:
                start.put_into(model)
            arguments = _arguments(settings, folder, base)
            callbacks = [steps, *remembering.begin(model), *([parent] if parent else []), keeper]
            trainer = method.trainer(Job(base, model, rows, settings, anchor, arguments, callbacks))
            trainer.penalties = [remembering.penalty] if remembering.penalty is not None else []
            if parent is not None:
                trainer.penalties.append(partial(parent.term, model))
            steps.trainer = trainer
            for callback in ("PrinterCallback", "ProgressCallback"):
                for held in [c for c in trainer.callback_handler.callbacks if type(c).__name__ == callback]:
                    trainer.remove_callback(held)
            with measuring(str(base.model.device)) as measured:
                keeper.train(trainer)
        record = {**prepared.record, **getattr(trainer, "record", {})}
        if trains_all:
            whole = model.eval()
            model, record["extraction"] = extracted(base, whole, settings.rank)
    except BaseException:
        _restore(base, model)
        raise
    model.eval()
    task = int(trainer._total_train_tokens)
    beside_it = anchor.tokens * processes.count() if anchor else 0
    cost = Cost(
        seconds=keeper.seconds,
        task_tokens=task,
        general_tokens=beside_it,
        flops=trainer.flops_a_token * (task + beside_it) if trainer.flops_a_token else None,
        peak_bytes=measured.peak_bytes,
        memory=measured.memory,
        device=str(base.model.device),
    )
    return Fitted(
        base=base,
        model=model,
        steps=trainer.state.global_step,
        cost=cost,
        curve=steps.curve,
        resumed=keeper.resumed,
        remembering=remembering.record(task_tokens=cost.task_tokens, seconds=cost.seconds),
        method=record,
        whole=whole,
    )


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """TRL, PEFT and transformers warn each other of coming versions; nobody who trains can act on it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


@contextlib.contextmanager
def _checkpointing_undone(model: PreTrainedModel) -> Iterator[None]:
    """Afterwards the model is without what gradient checkpointing leaves on it: TRL, PEFT and transformers
    each put a hook on its embeddings, of which it remembers the last."""
    hooks, use_cache = model.get_input_embeddings()._forward_hooks, model.config.use_cache
    before = set(hooks)
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()
        model.config.use_cache = use_cache
        for added in set(hooks) - before:
            del hooks[added]


def save_adapter(fitted: Fitted, folder: Path) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`, and nothing else.

    Two things of PEFT's are mended, since a digest must not depend on them: it keeps names of modules in
    sets, and names the base by its path on this machine.
    """
    config = fitted.model.peft_config["default"]
    for name, value in vars(config).items():
        if isinstance(value, set):
            setattr(config, name, sorted(value))
    config.base_model_name_or_path = fitted.base.fingerprint.name
    config.inference_mode = True
    fitted.model.save_pretrained(
        folder, safe_serialization=True, save_embedding_layers=False, selected_adapters=["default"]
    )
    (folder / "README.md").unlink(missing_ok=True)


def release(fitted: Fitted) -> None:
    """Take the adapter off its base, which is then what it was before `fit`."""
    fitted.whole = None
    _restore(fitted.base, fitted.model)


def _restore(base: Base, model: PeftModel | PreTrainedModel) -> None:
    if isinstance(model, PeftModel):  # full fine-tuning has a copy of the base instead
        take_off(base.model, model)
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
        "gradient_accumulation_steps": settings.accumulate,
        "gradient_checkpointing": settings.gradient_checkpointing,
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
