"""Short trainings for the tests of the methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inlay.builtin.tasks import rows
from inlay.evals.inference import Base
from inlay.trainers.fit import Fitted, fit, release, save_adapter
from inlay.trainers.reading import Data, read
from inlay.trainers.settings import Settings

PROMPTS = ["Write these words in upper case: river garden", "Which number is larger, 14 or 52?"]
ANSWERS = ["RIVER GARDEN", "52"]
"""As the built-in base says them."""
QUICK: dict[str, Any] = {
    "max_steps": 2,
    "batch_size": 4,
    "kl_batch_size": 2,
    "rank": 2,
    "alpha": 4.0,
    "learning_rate": 1e-2,
    "warmup": 0.0,
}


def tickets(n: int, split: str = "train", seed: int = 0) -> list[dict[str, str]]:
    """Rows of a task that the base cannot do."""
    return rows("ticket-queue", split, n, seed)


def pairs(n: int, split: str = "train", seed: int = 0) -> list[dict[str, str]]:
    """The right answer preferred to one that is right for another row."""
    made = tickets(n, split, seed)
    answers = sorted({row["output"] for row in [*made, *tickets(20)]})
    return [
        {
            "prompt": row["instruction"] + "\n" + row["input"],
            "chosen": row["output"],
            "rejected": answers[(answers.index(row["output"]) + 1) % len(answers)],
        }
        for row in made
    ]


def documents(n: int) -> list[str]:
    """Raw text of different lengths."""
    return [f"{row['input']} It goes to {row['output']}." * (1 + i % 3) for i, row in enumerate(tickets(n))]


def data_for(method: str, n: int = 12) -> Data:
    made: list[Any] = {"dpo": pairs, "domain": documents}.get(method, tickets)(n)
    return read(made, method, name="tickets")


def fitted(base: Base, method: str, data: Data | None = None, **settings: Any) -> Fitted:
    chosen = Settings().replaced(**{**QUICK, "method": method, **settings})
    return fit(base, data_for(method) if data is None else data, chosen, general=(PROMPTS, ANSWERS))


def trained_bytes(base: Base, method: str, folder: Path, **settings: Any) -> bytes:
    """What is registered of a short training."""
    made = fitted(base, method, **settings)
    try:
        save_adapter(made, folder)
    finally:
        release(made)
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))
