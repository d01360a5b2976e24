"""A training of few steps on the built-in base, and what it came to, bit for bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from inlay.builtin.tasks import rows
from inlay.evals import Suite
from inlay.evals.inference import Base, base_answers
from inlay.registry import Registry
from inlay.registry.fingerprint import cache_dir
from inlay.trainers.checkpoints import Checkpoints
from inlay.trainers.fit import Fitted, fit, release
from inlay.trainers.reading import read
from inlay.trainers.settings import Settings

PROMPTS = [
    "Write these words in upper case: river garden",
    "Which number is larger, 14 or 52?",
    "Copy the word: lamp",
    "Reverse the word: stone",
    "What is 3 plus 4?",
]
ROWS = 12
STEPS = 6
"""Two passes over the rows in batches of four."""


def few_steps(**more: Any) -> Settings:
    quick = {"max_steps": STEPS, "batch_size": 4, "kl_batch_size": 2, "rank": 2, "alpha": 4}
    return Settings().replaced(**{**quick, "learning_rate": 1e-2, **more})


def bits(fitted: Fitted) -> str:
    """A digest of all that was trained."""
    state = hashlib.sha256()
    for name, parameter in sorted(fitted.model.named_parameters()):
        if parameter.requires_grad:
            state.update(name.encode() + parameter.detach().numpy().tobytes())
    return state.hexdigest()


def fitted_on(
    base: Base,
    settings: Settings,
    *,
    prompts: Sequence[str] = PROMPTS,
    data: Sequence[Any] | None = None,
    checkpoints: Checkpoints | None = None,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> tuple[str, Fitted]:
    """The bits and the rest of a training, its adapter taken off again."""
    given = read(data or rows("ticket-queue", "train", ROWS, 0), settings.method, name="few")
    general = (list(prompts), base_answers(base, prompts, max_new_tokens=16, cache_dir=cache_dir()))
    fitted = fit(base, given, settings, general=general, checkpoints=checkpoints, progress=progress)
    made = bits(fitted)
    release(fitted)
    return made, fitted


def command_in(folder: Path) -> list[str]:
    """`inlay train` on files in `folder`, which it makes, and into a store there; judged on a few items."""
    store = folder / "store"
    Registry.open(store, create=True).close()
    made = {"data": rows("ticket-queue", "train", ROWS, 0), "prompts": [{"prompt": p} for p in PROMPTS]}
    for name, each in made.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))
    (folder / "kept.jsonl").write_bytes(Suite("kept", Suite.load("general-v1").items[::60]).to_jsonl())
    return [
        "train", str(folder / "data.jsonl"), "--base", "builtin", "--name", "tickets", "--json",
        "--store", str(store), "--general", str(folder / "kept.jsonl"),
        "--general-prompts", str(folder / "prompts.jsonl"), "--steps", "3",
    ]  # fmt: skip
