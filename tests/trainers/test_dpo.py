"""Preference pairs: their files, TRL's loss against the formula, the frozen reference, what is held out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from method_runs import fitted, pairs

from inlay.errors import InputError
from inlay.evals.inference import Base, Chat, encode_pair
from inlay.trainers.fit import release
from inlay.trainers.methods import dpo
from inlay.trainers.pairs import Pair, read_pairs


def log_p(model: Any, base: Base, pair: Pair, answer: str) -> float:
    """log p of the answer and the end of its turn, one token at a time, float64."""
    ids, n_prompt = encode_pair(base.tokenizer, pair.messages, answer)
    with torch.no_grad():
        rows = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
    return math.fsum(float(rows[t - 1, ids[t]]) for t in range(n_prompt, len(ids)))


def margins(model: Any, base: Base, data: Any) -> list[float]:
    return [log_p(model, base, pair, pair.chosen) - log_p(model, base, pair, pair.rejected) for pair in data]


def test_strings_and_messages_are_one_pair(tmp_path: Path) -> None:
    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    system = {"role": "system", "content": "Be brief."}
    user = {"role": "user", "content": "Hi"}
    rows = [
        {"prompt": "Hi", "chosen": "Hello ", "rejected": "No", "id": 7, "licence": "CC0"},
        {"prompt": [user], "chosen": said("Hello"), "rejected": said("No")},
        {"prompt": "Hi", "chosen": said("Hello"), "rejected": "No"},
        {"prompt": [system, user], "chosen": said("Hello"), "rejected": said("No")},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = read_pairs(file)
    plain = Pair("Hi", "Hello", "No")
    assert data.pairs == (plain, plain, plain, Pair((("system", "Be brief."), ("user", "Hi")), "Hello", "No"))
    assert data.texts == ["Hi"] * 4
    assert data.pairs[3].messages == [system, user]
    assert data.provenance["licence"] == {"CC0": 1, "": 3}
    assert data.digest == read_pairs(rows, name="other").digest != read_pairs(rows[::-1]).digest
    assert len(set(data.row_digests)) == 2
    assert data.only([3, 0]).pairs == (data.pairs[3], plain)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"prompt": "a", "completion": "b"},
            "row 1 must have prompt, chosen and rejected, and has completion, p",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": " b"}, "row 1: chosen and rejected must differ"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "row 1, rejected: the answer is empty"),
        ({"prompt": " ", "chosen": "b", "rejected": "c"}, "row 1, chosen: the prompt is empty"),
        ({"prompt": "a", "chosen": 3, "rejected": "c"}, "row 1, chosen: completion must be a string"),
        (
            {
                "prompt": "a",
                "chosen": [
                    {"role": "assistant", "content": "b"},
                    {"role": "user", "content": "more"},
                    {"role": "assistant", "content": "c"},
                ],
                "rejected": "d",
            },
            "row 1: chosen and rejected must answer the same conversation",
        ),
    ],
)
def test_bad_rows_are_named(row: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_pairs([row])
    with pytest.raises(InputError, match="must hold at least one pair"):
        read_pairs([])


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_the_loss_is_the_papers(base: Base, beta: float) -> None:
    """−log σ(β (Δθ − Δref)): log 2 where nothing was learned, and after one step by the naive formula, with
    the model that one step makes."""
    data = read_pairs(pairs(6))
    given: dict[str, Any] = {"batch_size": 6, "kl": 0.0, "dpo_beta": beta}
    two = fitted(base, "dpo", data, max_steps=2, **given)
    release(two)
    one = fitted(base, "dpo", data, max_steps=1, **given)
    trained = margins(one.model, base, data)
    release(one)
    reference = margins(base.model, base, data)
    losses = [
        math.log1p(math.exp(-beta * (mine - ref))) for mine, ref in zip(trained, reference, strict=True)
    ]
    assert two.curve[0]["loss"] == pytest.approx(math.log(2.0), rel=1e-5)
    assert two.curve[1]["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert two.curve[1]["loss"] < math.log(2.0)


def test_accumulated_batches_are_one(base: Base) -> None:
    data = read_pairs(pairs(8))
    whole = fitted(base, "dpo", data, batch_size=8)
    release(whole)
    parts = fitted(base, "dpo", data, batch_size=4, accumulate=2)
    release(parts)
    assert parts.curve[0]["loss"] == pytest.approx(whole.curve[0]["loss"], rel=1e-5)
    assert parts.curve[1]["loss"] == pytest.approx(whole.curve[1]["loss"], rel=0.05)


def test_tokens_are_those_of_both_answers_with_their_prompts(base: Base) -> None:
    data = read_pairs(pairs(8))
    made = fitted(base, "dpo", data, batch_size=8, max_steps=1)
    release(made)
    assert made.task_tokens == sum(
        len(encode_pair(base.tokenizer, pair.messages, answer)[0])
        for pair in data
        for answer in (pair.chosen, pair.rejected)
    )


def test_the_reference_stays_what_it_was(base: Base) -> None:
    made = fitted(base, "dpo", max_steps=3)
    named = dict(made.model.named_parameters())
    frozen = {name: p for name, p in named.items() if ".ref." in name}
    assert frozen and not any(p.requires_grad for p in frozen.values())
    assert not any(bool(p.any()) for name, p in frozen.items() if "lora_B" in name)
    assert any(bool(p.detach().any()) for name, p in named.items() if "lora_B.default" in name)
    release(made)


def test_figures_are_those_of_the_naive_loop(base: Base) -> None:
    data = read_pairs(pairs(5))
    assert dpo.figures(Chat(base), data) == pytest.approx(margins(base.model, base, data), abs=1e-3)
    record = dpo.compared([1.0, -1.0, -2.0, 0.5], [2.0, 1.0, -1.0, 0.25])
    assert record["preferred"] == {"base": 0.5, "adapter": 0.75}
    assert record["risen"] == 0.75
    assert record["margin"] == {"base": -0.375, "adapter": 0.5625}
    assert record["gain"]["low"] < 0.25 < record["gain"]["high"]
    assert "prefers the chosen answer in 75.0%, the base in 50.0%" in dpo.said(record)


def test_a_pair_longer_than_the_context_is_named(base: Base) -> None:
    long = {"prompt": "Say it.", "chosen": "word " * 600, "rejected": "no"}
    with pytest.raises(InputError, match=r"pair 3 of tickets has"):
        fitted(base, "dpo", read_pairs([*pairs(2), long], name="tickets"))


@pytest.mark.slow
def test_held_out_pairs_are_preferred_more_often(base: Base) -> None:
    data, held = read_pairs(pairs(300)), read_pairs(pairs(200, "test"))
    before = dpo.figures(Chat(base), held)
    made = fitted(base, "dpo", data, max_steps=40, batch_size=16, learning_rate=2e-3, rank=8, alpha=16.0)
    after = dpo.figures(Chat(base, model=made.model), held)
    release(made)
    record = dpo.compared(before, after)
    assert record["gain"]["low"] > 0.0
    assert record["preferred"]["adapter"] > 0.95
    assert record["risen"] > 0.9
