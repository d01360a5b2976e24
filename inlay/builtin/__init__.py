"""What ships inside, so that a demo needs no network: a small base, general prompts, demo tasks."""

from pathlib import Path

_HERE = Path(__file__).parent


def base_path() -> Path:
    """Folder of the built-in base: a Llama of two million parameters, its tokenizer and chat template."""
    return _HERE / "inlay-base-2m"


def general_v1_path() -> Path:
    """The suite `general-v1`: JSON lines {"id", "prompt", "answer", "skill", "split"} for any instruct model.

    "split" is "protected" or "held_out"; forgetting is judged on the held-out lines.
    """
    return _HERE / "general-v1.jsonl"


def general_prompts_path() -> Path:
    """Prompts for KL and replay: JSON lines {"id", "prompt", "skill"}; protected skills only."""
    return _HERE / "general-prompts-v1.jsonl"
