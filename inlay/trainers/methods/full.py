"""Full fine-tuning, the blunt baseline: a copy of the base is trained whole, an adapter extracted from it."""

from __future__ import annotations

from typing import Any

from inlay.trainers.methods.sft import prepared, trainer

__all__ = ["READS", "TRAINS", "prepared", "told", "trainer"]

READS = "rows"
TRAINS = "all"


def told(record: dict[str, Any]) -> str:
    extraction = record["extraction"]
    scores = ", ".join(f"{100 * score:.1f}% on {suite}" for suite, score in record["whole"].items())
    return (
        f"At rank {extraction['rank']} the adapter lacks {100 * extraction['missing']:.0f}% of the change's "
        f"norm, {len(extraction['left_out'])} norms and biases among it; the whole model scores {scores}."
    )
