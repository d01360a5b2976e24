"""A run written down: read, printed, read again, and the same run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import inlay
from inlay.builtin import base_path
from inlay.builtin.tasks import rows
from inlay.errors import InputError
from inlay.evals.suites import Suite
from inlay.registry import Registry
from inlay.trainers.config import read_config, written
from inlay.trainers.settings import Settings, settings_for

LOHA = {"peft_type": "LOHA", "r": 2, "target_modules": ["q_proj"]}


def test_a_file_is_the_arguments_of_train(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "base: builtin\ndata: tickets.jsonl\nname: tickets\neval: test.jsonl\ngeneral: [a.jsonl, b.jsonl]\n"
        "minimum: 1\npreset: style\nlearning_rate: 1e-3\nlayers: 1\nkind: {peft_type: LOHA, r: 2}\n"
    )
    assert read_config(tmp_path / "run.yaml") == {
        "base": str(base_path()),
        "data": "tickets.jsonl",
        "name": "tickets",
        "target": ("test.jsonl",),
        "general": ("a.jsonl", "b.jsonl"),
        "minimum": 1.0,
        "preset": "style",
        "learning_rate": 1e-3,
        "layers": 1,
        "kind": {"peft_type": "LOHA", "r": 2},
    }


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"preset": "domain", "learning_rate": 3e-5},
        {"layers": "late", "target_modules": "q_proj,v_proj", "rank_pattern": {"q_proj": 8}},
        {"target_modules": r".*\.(q|k)_proj", "kind": "pissa", "alpha": 1e16},
        {"kind": {**LOHA, "rank_dropout": 0.1}, "gradient_checkpointing": True},
        {"kind": {"peft_type": "LORA", "target_modules": ["q_proj"], "layer_replication": [[0, 1], [0, 2]]}},
    ],
)
def test_what_is_printed_reads_as_the_same_run(asked: dict[str, Any], tmp_path: Path) -> None:
    run = {"base": str(base_path()), "data": "tickets.jsonl", "name": "tickets", "target": ("test.jsonl",)}
    file = tmp_path / "run.yaml"
    file.write_text(written(base_path(), {**run, **asked, "why": ""}))
    back = read_config(file)
    assert {key: back[key] for key in run} == run and "why" not in back
    wanted = settings_for(base_path(), **asked)
    chosen = {k: v for k, v in back.items() if k in {f.name for f in dataclasses.fields(Settings)}}
    assert settings_for(tmp_path, **chosen) == wanted, "whatever the base recommends by then"
    assert written(base_path(), back).count("#") == 0, "now all of it is asked for"


def test_what_is_printed_says_who_gave_it_and_no_path_of_this_machine() -> None:
    text = written(base_path(), {"base": base_path(), "preset": "domain", "epochs": 2})
    lines = text.splitlines()
    assert "rank: 64  # preset domain" in lines and "epochs: 2.0" in lines
    assert "batch_size: 16  # the base's inlay.json" in lines
    assert "base: builtin" in lines and str(base_path()) not in text


def test_the_same_run_by_its_configuration(store: Registry, tmp_path: Path) -> None:
    suite = tmp_path / "small.jsonl"
    suite.write_bytes(Suite("small", Suite.load("general-v1").items[::100]).to_jsonl())
    data = rows("ticket-queue", "train", 12, 0)
    given: dict[str, Any] = {
        "general": [str(suite)],
        "preset": "task",
        "max_steps": 2,
        "batch_size": 4,
        "kl": 0.0,
        "layers": "0",
    }
    first = inlay.train(base_path(), data, name="tickets", store=store, **given)
    (tmp_path / "run.yaml").write_text(
        written(base_path(), {**given, "base": base_path(), "name": "tickets"})
    )
    again = inlay.train(**read_config(tmp_path / "run.yaml"), data=data, store=store)
    assert again.version.digest == first.version.digest
    assert again.run["settings"] == first.run["settings"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("learning_rat: 1", r"has no key 'learning_rat'; did you mean learning_rate\?"),
        ("lr: 1", r"did you mean learning_rate\?"),
        ("kl-batch: 1", r"did you mean kl_batch_size\?"),
        ("batch-size: 1", r"did you mean batch_size\?"),
        ("target: a.jsonl", r"did you mean eval\?"),
        ("zzzzz: 1", "there are accumulate, alpha"),
        ("seed: 1\nseed: 2", "has the key 'seed' twice, again at line 2"),
        ("- a", "is a mapping, and this one is a list"),
        ("name: [a]", r"name must be a text, and is \"\['a'\]\""),
        ("eval: [1]", "eval must be a text or a list of them"),
        ("minimum: high", "minimum must be a number"),
        ("rank: many", "rank must be a number"),
        ("rank: 2.5", "rank must be a whole number"),
        ("gradient_checkpointing: 1", "gradient_checkpointing must be true or false"),
        ("preset: tasks", "the preset must be none or task"),
        ("kind: {r: 2}", "says its peft_type"),
        ("kind: &a lora\nmethod: *a", "must not use anchors or aliases"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text + "\n")
    with pytest.raises(InputError, match=says) as raised:
        read_config(tmp_path / "run.yaml")
    assert "\n" not in str(raised.value)
