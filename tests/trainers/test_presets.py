"""Presets: what they set, and what counts before and after them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import inlay
from inlay.builtin.tasks import rows
from inlay.errors import InputError
from inlay.evals import Suite
from inlay.evals.inference import Base
from inlay.registry import Registry
from inlay.trainers.presets import NAMES, PRESETS, Preset, method_of, values_of
from inlay.trainers.settings import Settings, settings_for, settled


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base that recommends a rate and a rank."""
    given = {"training_defaults": {"learning_rate": 0.004, "rank": 4, "kl_batch_size": 5}}
    (tmp_path / "inlay.json").write_text(json.dumps(given))
    return tmp_path


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_every_preset_is_settings_and_says_what_it_is_for(preset: Preset) -> None:
    settings = settings_for("nowhere", preset=preset.name)
    assert {k: getattr(settings, k) for k in preset.values} == dict(preset.values)
    assert settings.preset == preset.name
    assert settings.learning_rate == pytest.approx(preset.rate * Settings().learning_rate)
    assert 20 < len(preset.says) < 200 and not preset.says.endswith(".")


def test_what_is_asked_for_counts_before_the_preset_and_that_before_the_base(folder: Path) -> None:
    settings, givers = settled(folder, {"preset": "domain", "epochs": 2, "seed": None})
    assert (settings.epochs, givers["epochs"]) == (2.0, "asked for")
    assert (settings.rank, givers["rank"]) == (64, "preset domain")
    assert settings.learning_rate == 0.002, "a preset's rate is a multiple of the base's"
    assert (settings.kl_batch_size, givers["kl_batch_size"]) == (5, "the base's inlay.json")
    assert settings.seed == 0 and "seed" not in givers


def test_without_a_preset_nothing_changes(folder: Path) -> None:
    assert values_of("none", 1.0) == {}
    assert settings_for(folder, preset="none") == settings_for(folder)


def test_task_keeps_the_base_its_own_rank_and_rate(folder: Path) -> None:
    settings = settings_for(folder, preset="task")
    assert (settings.learning_rate, settings.rank) == (0.004, 4)


def test_a_base_may_recommend_a_preset(tmp_path: Path) -> None:
    (tmp_path / "inlay.json").write_text('{"training_defaults": {"preset": "style", "rank": 3}}')
    assert settings_for(tmp_path).rank == 8
    assert settings_for(tmp_path, preset="none").rank == 3


def test_a_preset_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="the preset must be none or task"):
        settings_for("nowhere", preset="tasks")


def test_the_method_of_a_preset_reads_the_data() -> None:
    assert [method_of(name) for name in (None, *NAMES)] == [
        "sft",
        "sft",
        "sft",
        "sft",
        "sft",
        "domain",
        "dpo",
    ]


def test_a_preset_trains(base: Base, store: Registry) -> None:
    pairs = [
        {"prompt": row["input"], "chosen": row["output"], "rejected": "none"}
        for row in rows("ticket-queue", "train", 12, 0)
    ]
    given: dict[str, Any] = {
        "general": [Suite("small", Suite.load("general-v1").items[::100])],
        "general_prompts": ["Copy: lamp", "Which number is larger, 14 or 52?"],
        "max_steps": 2,
        "batch_size": 4,
        "held_out_share": 0.2,
    }
    result = inlay.train(base, pairs, name="polite", store=store, preset="preference", **given)
    kept = result.run["settings"]
    assert (kept["preset"], kept["method"], kept["batch_size"]) == ("preference", "dpo", 4)
    assert kept["learning_rate"] == pytest.approx(0.1 * settings_for(base.fingerprint.path).learning_rate)
