"""What holds for every method: the same seed, the base left alone, a version that loads and answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from method_runs import ANSWERS, PROMPTS, QUICK, data_for, documents, fitted, pairs, tickets, trained_bytes

import inlay
from inlay.errors import InputError
from inlay.evals import Suite
from inlay.evals.inference import Base, encode_pair
from inlay.registry import Registry
from inlay.trainers.checkpoints import Checkpoints
from inlay.trainers.fit import fit, release, save_adapter
from inlay.trainers.methods import METHODS
from inlay.trainers.reading import layout_of, read
from inlay.trainers.settings import Settings

ROWS: dict[str, Any] = {"dpo": pairs, "domain": documents}


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bytes(base: Base, method: str, tmp_path: Path) -> None:
    one, again, other = (
        trained_bytes(base, method, tmp_path / name, seed=seed)
        for name, seed in (("one", 0), ("again", 0), ("other", 1))
    )
    assert one == again != other


@pytest.mark.parametrize("method", METHODS)
def test_the_anchor_has_its_part_in_every_method(base: Base, method: str) -> None:
    """At the first step the model is the base, and later it is not."""
    made = fitted(base, method, max_steps=3)
    release(made)
    assert made.curve[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert made.curve[2]["kl"] > 1e-4
    assert made.general_tokens == 3 * sum(
        len(encode_pair(base.tokenizer, p, a)[0])
        for p, a in zip(PROMPTS, ["RIVER GARDEN", "52"], strict=True)
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_run_registers_a_version_that_loads_and_answers(base: Base, store: Registry, method: str) -> None:
    small = Suite("small", Suite.load("general-v1").items[::80])
    target = Suite.of_rows("tickets-test", tickets(8, "test"))
    result = inlay.train(
        base,
        ROWS.get(method, tickets)(24),
        name="tickets",
        store=store,
        general=[small],
        target=[target],
        general_prompts=PROMPTS,
        method=method,
        **QUICK,
    )
    run = store.run_of(result.version)
    assert run is not None and run["settings"]["method"] == method
    assert run["tokens"]["task"] > 0
    model = inlay.compose("tickets@v1", store=store, base=base)
    try:
        (answer,) = model.generate([tickets(1, "test")[0]["input"]], max_new_tokens=4)
        assert isinstance(answer, str)
    finally:
        model.detach()
    if method in ("dpo", "domain"):
        held = run["held_out"]
        assert held["rows"] == 1 and run["dataset"]["rows"] == 23 and held["also_trained_on"] == 0
        assert "held-out" in result.verdict
    else:
        assert "held_out" not in run
    if method == "full":
        assert set(run["method"]["whole"]) == {"tickets-test", "small"}
        assert "At rank 2 the adapter lacks" in result.verdict
    if method == "distill":
        assert "Of 24 answers" in result.verdict


@pytest.mark.parametrize("method", METHODS)
def test_what_goes_wrong_leaves_the_base_bare(base: Base, method: str) -> None:
    def stop(done: int, _steps: int, _figures: dict[str, float]) -> None:
        if done == 2:
            raise RuntimeError("pulled the plug")

    settings = Settings().replaced(**{**QUICK, "method": method, "kl": 0.0})
    with pytest.raises(RuntimeError, match="pulled the plug"):
        fit(base, data_for(method), settings, progress=stop)
    assert "forward" not in base.model.__dict__ and not base.model.training


@pytest.mark.parametrize("method", METHODS)
def test_a_run_taken_up_has_the_bytes_of_an_unbroken_one(base: Base, method: str, tmp_path: Path) -> None:
    def stop(done: int, _steps: int, _figures: dict[str, float]) -> None:
        if done == 3:
            raise RuntimeError("pulled the plug")

    settings = Settings().replaced(**{**QUICK, "method": method, "max_steps": 4})
    general = (PROMPTS, ANSWERS)
    kept = Checkpoints(tmp_path / "kept", every=1)
    kept.folder.mkdir()
    with pytest.raises(RuntimeError, match="pulled the plug"):
        fit(base, data_for(method), settings, general=general, progress=stop, checkpoints=kept)
    written = {}
    for name, checkpoints in (("again", kept), ("unbroken", None)):
        made = fit(base, data_for(method), settings, general=general, checkpoints=checkpoints)
        save_adapter(made, tmp_path / name)
        written[name] = (tmp_path / name / "adapter_model.safetensors").read_bytes()
        assert made.resumed == ([2] if checkpoints else []) and len(made.curve) == 4
        release(made)
    assert written["again"] == written["unbroken"]


def test_a_file_of_another_layout_is_named_before_anything_starts(tmp_path: Path) -> None:
    files = {
        "rows.jsonl": json.dumps(tickets(1)[0]),
        "pairs.jsonl": json.dumps(pairs(1)[0]),
        "texts.jsonl": '{"text": "One."}',
        "texts.txt": "One.\n\nTwo.",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    says = {
        ("dpo", "rows"): "dpo wants prompt, chosen, rejected, and .*line 1 has input, instruction, output",
        ("domain", "pairs"): "domain wants raw text, and .*line 1 has chosen, prompt, rejected",
        ("sft", "pairs"): "sft wants prompt and answer a row, and .*line 1 has chosen, prompt, rejected",
        ("full", "texts"): "full wants prompt and answer a row, and .*line 1 has text",
    }
    for (method, layout), message in says.items():
        with pytest.raises(InputError, match=message):
            read(tmp_path / f"{layout}.jsonl", method)
    with pytest.raises(InputError, match=r"distill wants prompt and answer a row, and .*has plain text"):
        read(tmp_path / "texts.txt", "distill")
    for method, name in (("domain", "texts.txt"), ("domain", "texts.jsonl"), ("dpo", "pairs.jsonl")):
        assert len(read(tmp_path / name, method)) >= 1


def test_rows_are_known_by_their_keys() -> None:
    assert [
        layout_of(row) for row in (tickets(1)[0], pairs(1)[0], {"text": "a"}, "a", {"question": "b"})
    ] == [
        "rows",
        "pairs",
        "texts",
        "texts",
        None,
    ]


def test_ready_made_data_of_another_method_is_refused() -> None:
    with pytest.raises(InputError, match="dpo wants pairs, and tickets is Dataset"):
        read(data_for("sft"), "dpo")


def test_suites_measure_what_is_no_raw_text_and_no_pairs(base: Base, store: Registry) -> None:
    with pytest.raises(InputError, match="sft is measured on suites, not on held-out rows"):
        inlay.train(base, tickets(4), name="tickets", store=store, held_out=tickets(2))
