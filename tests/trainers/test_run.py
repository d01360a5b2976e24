"""Training on the built-in base: the loss, the anchor, the record, and a base left as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import inlay
from inlay.builtin.tasks import rows
from inlay.errors import InputError
from inlay.evals import Suite
from inlay.evals.inference import Base, base_answers, encode_pair
from inlay.registry import Registry
from inlay.trainers.anchor import Anchor
from inlay.trainers.data import read_dataset
from inlay.trainers.fit import fit, release
from inlay.trainers.settings import Settings, settings_for

PROMPTS = [
    "Write these words in upper case: river garden",
    "Which number is larger, 14 or 52?",
    "Copy the word: lamp",
]
QUICK: dict[str, Any] = {
    "max_steps": 3,
    "batch_size": 4,
    "kl_batch_size": 2,
    "rank": 2,
    "alpha": 4,
    "learning_rate": 1e-2,
}


@pytest.fixture(scope="module")
def small() -> Suite:
    return Suite("small", Suite.load("general-v1").items[::50])


def data(n: int = 24) -> list[dict[str, str]]:
    return rows("ticket-queue", "train", n, 0)


def train(base: Base, store: Registry, small: Suite, **more: Any) -> inlay.TrainResult:
    settings = {**QUICK, "general": [small], "general_prompts": PROMPTS, **more}
    return inlay.train(base, settings.pop("data", data()), name="tickets", store=store, **settings)


def test_run_registers_what_it_made_with_its_record(base: Base, store: Registry, small: Suite) -> None:
    target = Suite.of_rows("tickets-test", rows("ticket-queue", "test", 20, 0))
    seen: list[tuple[str, int, int]] = []
    result = train(base, store, small, target=[target], minimum=0.9, say=lambda *step: seen.append(step))
    version = store.resolve("tickets@v1")
    assert result.version == version
    run = store.run_of(version)  # type: ignore[arg-type]
    assert run is not None
    assert run["dataset"]["digest"] == read_dataset(data()).digest
    assert run["declared"]["target"] == [{"name": "tickets-test", "digest": target.digest}]
    assert run["declared"]["minimum"] == 0.9
    assert run["settings"]["learning_rate"] == 1e-2 and run["settings"]["seed"] == 0
    assert run["steps"] == 3 and run["tokens"]["task"] > 0 and run["tokens"]["general"] > 0
    assert [row["step"] for row in run["curve"]] == [1, 2, 3]
    assert set(run["examples"]) <= {row["instruction"] + "\n" + row["input"] for row in data()}
    assert {e.suite_name for e in store.evals(version.digest)} == {"small", "tickets-test"}
    assert "below the 90.0% declared" in result.verdict
    assert ("training tickets" in seen[0][0]) or any("training tickets" in what for what, _, _ in seen)
    assert store.fsck() == []


def test_the_same_seed_gives_the_same_bytes(base: Base, store: Registry, small: Suite) -> None:
    first = train(base, store, small)
    again = train(base, store, small)
    other = train(base, store, small, seed=1)
    assert again.version.digest == first.version.digest
    assert other.version.digest != first.version.digest


def test_adapter_names_its_base_and_no_path_of_this_machine(
    base: Base, store: Registry, small: Suite
) -> None:
    version = train(base, store, small).version
    config = json.loads(store.read_file(version, "adapter_config.json"))
    assert config["base_model_name_or_path"] == base.fingerprint.name
    assert config["target_modules"] == sorted(config["target_modules"])
    assert str(base.fingerprint.path) not in json.dumps(config)


def test_loss_is_taken_on_the_answer_only(base: Base) -> None:
    """TRL's loss at step one equals the naive mean over answer tokens of -log p, adapter at zero."""
    dataset = read_dataset(data(4))
    fitted = fit(base, dataset, Settings().replaced(**{**QUICK, "kl": 0.0, "max_steps": 1, "warmup": 0.0}))
    release(fitted)
    losses = []
    for example in dataset:
        ids, n_prompt = encode_pair(base.tokenizer, example.messages, example.answer)
        with torch.inference_mode():
            log_p = torch.log_softmax(base.model(input_ids=torch.tensor([ids])).logits[0].float(), -1)
        losses += [-float(log_p[t - 1, ids[t]]) for t in range(n_prompt, len(ids))]
    assert fitted.curve[0]["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_anchor_equals_the_naive_divergence(base: Base) -> None:
    """Both passes over the teacher, fresh and from memory, against position-by-position KL in float64."""
    from peft import LoraConfig, get_peft_model

    answers = base_answers(base, PROMPTS, max_new_tokens=8)
    model = get_peft_model(base.model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    try:
        anchor = Anchor(base.tokenizer, PROMPTS, answers, rows=3, prompt_weight=0.25, seed=0, device="cpu")
        fresh, kept = float(anchor.kl(model)), float(anchor.kl(model))
        at_answers, at_prompts = [], []
        for prompt, answer in zip(PROMPTS, answers, strict=True):
            ids, n_prompt = encode_pair(base.tokenizer, prompt, answer)
            with torch.inference_mode():
                q = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
                with model.disable_adapter():
                    p = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
            divergence = (p.exp() * (p - q)).sum(-1)[:-1].tolist()
            at_prompts += divergence[: n_prompt - 1]
            at_answers += divergence[n_prompt - 1 :]
        expected = sum(at_answers) / len(at_answers) + 0.25 * sum(at_prompts) / len(at_prompts)
        assert fresh == pytest.approx(expected, rel=1e-3)
        assert kept == pytest.approx(expected, rel=1e-3)
        assert anchor.tokens == 2 * sum(len(ids) for ids, _ in anchor.pairs)
    finally:
        model.unload()
        base.model.eval()


def test_anchor_holds_the_base(base: Base) -> None:
    """With a high rate the divergence on general prompts stays lower with the anchor than without."""
    answers = base_answers(base, PROMPTS, max_new_tokens=8)

    def drift(kl: float) -> float:
        settings = Settings().replaced(
            **{**QUICK, "kl": kl, "max_steps": 12, "kl_batch_size": 3, "learning_rate": 2e-2}
        )
        fitted = fit(base, read_dataset(data()), settings, general=(PROMPTS, answers))
        probe = Anchor(base.tokenizer, PROMPTS, answers, rows=3, prompt_weight=0.0, seed=0, device="cpu")
        with torch.no_grad():
            value = float(probe.kl(fitted.model))
        release(fitted)
        return value

    assert drift(5.0) < 0.5 * drift(0.0)


def test_what_is_protected_is_not_what_is_measured(base: Base, store: Registry, small: Suite) -> None:
    with pytest.raises(InputError, match="must be apart"):
        train(base, store, small, general_prompts=[small.items[0].text, *PROMPTS])
    assert store.names() == []


def test_row_longer_than_the_context_is_named(base: Base, store: Registry, small: Suite) -> None:
    long = [*data(2), {"prompt": "word " * 600, "completion": "x"}]
    with pytest.raises(InputError, match=r"row 3 of tickets has"):
        train(base, store, small, data=long)
    assert store.names() == []


def test_settings_come_from_the_base_then_from_the_caller(tmp_path: Path) -> None:
    (tmp_path / "inlay.json").write_text('{"training_defaults": {"learning_rate": 0.003, "rank": 4}}')
    settings = settings_for(tmp_path, rank=8, epochs=None)
    assert (settings.learning_rate, settings.rank, settings.epochs) == (0.003, 8, Settings().epochs)
    assert settings_for(tmp_path / "elsewhere") == Settings()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"learning_rat": 1.0}, "is no training setting"),
        ({"learning_rate": -1.0}, "learning_rate must be above zero"),
        ({"kl": -0.1}, "kl must not be negative"),
        ({"rank": "four"}, "rank must be a number"),
        ({"method": "ppo"}, "the method must be sft"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Settings().replaced(**change)


def test_base_answers_are_kept_and_a_broken_file_is_made_again(base: Base, tmp_path: Path) -> None:
    first = base_answers(base, PROMPTS, max_new_tokens=8, cache_dir=tmp_path)
    (file,) = (tmp_path / "answers").iterdir()
    file.write_text(file.read_text().replace(first[0], "forged"))
    assert base_answers(base, PROMPTS, max_new_tokens=8, cache_dir=tmp_path) == first
    file.write_text("{")
    assert base_answers(base, PROMPTS, max_new_tokens=8, cache_dir=tmp_path) == first
