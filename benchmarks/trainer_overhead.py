"""What Inlay's trainer costs over bare TRL with the same settings, on the built-in base.

Both sides in one process, in turns; medians of the rounds' ratios with quartiles. Each side starts from the
loaded base and tokenized rows and ends with a trained adapter, its trainer made anew, so that what is done
once (the teacher's states, the last checkpoint) counts as it does in a run. Where KL is off both must come to
the same weights, bit for bit.

    python benchmarks/trainer_overhead.py [ROUNDS]

KL is drawn at 0.3 general tokens for each task token. The base's own answers to general prompts, generated
once per base and kept, are not in it. One thread. Judged by processor seconds, which other work on a shared
machine does not lengthen; the clock's ratios, in which waiting for the disk counts, stand beside them.
"""

from __future__ import annotations

import hashlib
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset as Table
from peft import LoraConfig, get_peft_model
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from inlay.builtin import base_path
from inlay.builtin.tasks import rows
from inlay.evals.inference import Base, base_answers, encode_pair, load_base, quiet_transformers
from inlay.evals.prompts import read_prompts
from inlay.registry.fingerprint import cache_dir
from inlay.trainers.checkpoints import Checkpoints
from inlay.trainers.data import Dataset, read_dataset
from inlay.trainers.fit import fit, release
from inlay.trainers.settings import Settings

STEPS, BATCH, RANK, RATE = 100, 16, 16, 1e-3
RATIO = 0.3
LIMITS = {"without KL": 1.05, "with KL": 1.60}


def bits(model: Any) -> str:
    state = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            state.update(name.encode() + parameter.detach().numpy().tobytes())
    return state.hexdigest()


class Times:
    """Seconds since it was made: of the processor, and of the clock."""

    def __init__(self) -> None:
        self.since = time.process_time(), time.perf_counter()

    def taken(self) -> tuple[float, float]:
        return time.process_time() - self.since[0], time.perf_counter() - self.since[1]


def bare(base: Base, data: Dataset) -> tuple[tuple[float, float], str]:
    """Seconds and weights of TRL alone, as its documentation has it, with the settings that ours give it."""
    times = Times()
    made = []
    for example in data:
        ids, n_prompt = encode_pair(base.tokenizer, example.messages, example.answer)
        made.append({"input_ids": ids, "labels": [-100] * n_prompt + ids[n_prompt:]})
    set_seed(0)
    config = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(base.model, config)
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        arguments = SFTConfig(
            output_dir=folder,
            learning_rate=RATE,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            max_steps=STEPS,
            per_device_train_batch_size=BATCH,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            seed=0,
            data_seed=0,
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        trainer = SFTTrainer(
            model=model, args=arguments, train_dataset=Table.from_list(made), processing_class=base.tokenizer
        )
        for callback in ("PrinterCallback", "ProgressCallback"):
            for held in [c for c in trainer.callback_handler.callbacks if type(c).__name__ == callback]:
                trainer.remove_callback(held)
        trainer.train()
    seconds, weights = times.taken(), bits(model)
    model.unload()
    base.model.__dict__.pop("forward", None)
    base.model.eval()
    return seconds, weights


def ours(
    base: Base, data: Dataset, general: tuple[list[str], list[str]], kl: float
) -> tuple[tuple[float, float], str, float]:
    """Seconds, weights, and general tokens for each task token."""
    settings = Settings().replaced(
        learning_rate=RATE,
        max_steps=STEPS,
        batch_size=BATCH,
        rank=RANK,
        alpha=2 * RANK,
        kl=kl,
        kl_ratio=RATIO if kl else 0.0,
    )
    with tempfile.TemporaryDirectory() as folder:
        times = Times()
        checkpoints = Checkpoints(Path(folder) / "run")
        with checkpoints.held():
            fitted = fit(base, data, settings, general=general, checkpoints=checkpoints)
            seconds = times.taken()
    weights = bits(fitted.model)
    release(fitted)
    return seconds, weights, fitted.general_tokens / fitted.task_tokens


def quartiles(ratios: list[float]) -> str:
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.2f}x ({low:.2f} to {high:.2f})"


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    base = load_base(base_path())
    data = read_dataset(rows("ticket-queue", "train", 800, 0))
    prompts = read_prompts(None)
    general = (prompts, base_answers(base, prompts, cache_dir=cache_dir()))
    bare(base, data)
    ours(base, data, general, 1.0)
    ratios: dict[str, list[tuple[float, ...]]] = {name: [] for name in LIMITS}
    for number in range(rounds):
        order = ["bare", *LIMITS] if number % 2 else [*LIMITS, "bare"]
        seconds: dict[str, tuple[float, float]] = {}
        weights: dict[str, str] = {}
        for side in order:
            if side == "bare":
                seconds[side], weights[side] = bare(base, data)
            else:
                kl = float(side == "with KL")
                seconds[side], weights[side], share = ours(base, data, general, kl)
                assert not kl or abs(share - RATIO) < 0.02, share
        assert weights["without KL"] == weights["bare"], "the two trained something else"
        assert weights["with KL"] != weights["bare"]
        for name in LIMITS:
            ratios[name].append(tuple(a / b for a, b in zip(seconds[name], seconds["bare"], strict=True)))
    print(
        f"{STEPS} steps of {BATCH} rows, {rounds} rounds, TRL alone {seconds['bare'][0]:.1f} s; same weights"
    )
    for name, limit in LIMITS.items():
        processor, clock = (list(each) for each in zip(*ratios[name], strict=True))
        missed = "" if statistics.median(processor) <= limit else ", MISSED"
        print(f"{name}: {quartiles(processor)}, asked at most {limit:.2f}x{missed}; clock {quartiles(clock)}")


if __name__ == "__main__":
    main()
