"""The kinds of adapters that can be trained: settings in, PEFT's configuration out."""

from __future__ import annotations

from peft import LoraConfig, PeftConfig

from inlay.trainers.settings import Settings


def config_of(settings: Settings) -> PeftConfig:
    """PEFT's configuration for these settings."""
    targets = settings.target_modules
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=targets if isinstance(targets, str) else list(targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
