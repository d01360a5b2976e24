"""Raw text: documents out of files, blocks that do not leak, and what is held out of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from method_runs import documents, fitted

import inlay
from inlay.errors import InputError
from inlay.evals import Suite
from inlay.evals.inference import Base, Chat
from inlay.registry import Registry
from inlay.trainers.fit import release
from inlay.trainers.held_out import declared, held_apart
from inlay.trainers.methods import domain
from inlay.trainers.settings import Settings
from inlay.trainers.texts import read_texts


def naive_nats(model: Any, ids: list[int]) -> list[float]:
    """−log p of every token but the first, the row alone."""
    with torch.no_grad():
        log_p = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].float(), -1)
    return [-float(log_p[t - 1, ids[t]]) for t in range(1, len(ids))]


def packed_rows(base: Base, texts: list[str], block: int) -> list[dict[str, Any]]:
    prepared = domain.prepared(base, read_texts(texts), Settings(max_length=block))
    return domain.packing(prepared.rows, block)


def test_documents_of_a_text_file_stand_between_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(b"\n\nOne\r\nline two\r\n\r\n \t\nTwo.\n\n\n{Three}\n")
    data = read_texts(file)
    assert data.documents == ("One\nline two", "Two.", "{Three}")
    assert data.name == "text" and len(data.stated) == 3
    lines = tmp_path / "text.jsonl"
    lines.write_text("".join(json.dumps({"text": text, "licence": "CC0"}) + "\n" for text in data))
    again = read_texts(lines)
    assert again.digest == data.digest == read_texts(list(data)).digest
    assert again.provenance["licence"] == {"CC0": 3}
    assert data.manifest == {"digest": data.digest, "name": "text", "rows": 3}
    assert len(set(data.row_digests)) == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"text": "a"}\n{"txt": "b"}\n', "line 2 must have text, and has txt"),
        ('{"text": " "}\n', "line 1: the text is empty"),
        ('{"text": 3}\n', "line 1: text must be a string, and is a int"),
        ('{"text": "\\ud800"}\n', "line 1: text holds half of a surrogate pair"),
        ("", "must hold at least one document"),
    ],
)
def test_bad_lines_are_named(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(text)
    with pytest.raises(InputError, match=says):
        read_texts(file)


def test_packed_loss_is_that_of_the_documents_one_at_a_time(base: Base) -> None:
    """By TRL's trainer, in blocks of 64 that hold several documents, some of them cut: the mean over all
    predicted tokens."""
    data = read_texts(documents(12))
    made = fitted(base, "domain", data, max_steps=1, batch_size=64, kl=0.0, max_length=64)
    release(made)
    pieces = [ids for text in data for ids in domain.pieces(base.tokenizer, text, 64)]
    costs = [nats for ids in pieces for nats in naive_nats(base.model, ids)]
    assert made.method["packed"] is True and made.method["rows"] < len(pieces)
    assert made.curve[0]["loss"] == pytest.approx(sum(costs) / len(costs), rel=1e-5)
    assert made.task_tokens == made.method["tokens"] == sum(map(len, pieces))


def test_no_document_sees_another(base: Base) -> None:
    """Other text in front of a document leaves its logits in the block as they were."""
    batch = domain.Blocks(0)(
        [
            {"input_ids": [5, 6, 7, 8, 9], "labels": [5, 6, 7, 8, 9], "seq_lengths": [3, 2]},
            {"input_ids": [5, 6], "labels": [5, 6], "seq_lengths": [2]},
        ]
    )
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9], [-100, 6, -100, -100, -100]]
    assert batch["tokens"].tolist() == [5, 2]
    (row,) = packed_rows(base, documents(3), 512)
    first = row["seq_lengths"][0]
    places = domain.Blocks(0)([row])["position_ids"]
    ids = torch.tensor([row["input_ids"]])
    other = ids.clone()
    other[0, :first] = other[0, :first].flip(0)
    with torch.no_grad():
        one, two = (
            base.model(input_ids=x, position_ids=places, use_cache=False).logits for x in (ids, other)
        )
    assert not torch.equal(one[0, :first], two[0, :first])
    assert torch.allclose(one[0, first:], two[0, first:], atol=1e-5)


def test_a_model_that_ignores_position_ids_gets_one_document_a_row(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Blind:
        training, device = False, "cpu"

        def eval(self) -> None: ...

        def train(self, _mode: bool) -> None: ...

        def __call__(self, *, input_ids: torch.Tensor, **_: Any) -> Any:
            return base.model(input_ids=input_ids, use_cache=False)

    rows = packed_rows(base, documents(6), 256)
    assert domain.packs_exactly(base.model, rows)
    assert not domain.packs_exactly(Blind(), rows)
    learns = SimpleNamespace(peft_config={"default": SimpleNamespace(is_prompt_learning=True)})
    assert not domain.packs_exactly(learns, rows)

    monkeypatch.setattr(domain, "packs_exactly", lambda model, packed: False)
    data = read_texts(documents(6))
    made = fitted(base, "domain", data, max_steps=1, batch_size=64, kl=0.0)
    release(made)
    costs = [n for text in data for n in naive_nats(base.model, domain.pieces(base.tokenizer, text, 512)[0])]
    assert made.method["packed"] is False and made.method["rows"] == 6
    assert made.curve[0]["loss"] == pytest.approx(sum(costs) / len(costs), rel=1e-5)
    assert made.task_tokens == made.method["tokens"]


def test_replayed_answers_are_packed_among_the_documents(base: Base) -> None:
    """Their prompts have no loss, there either."""
    data = read_texts(documents(4))
    made = fitted(base, "domain", data, max_steps=1, batch_size=64, kl=0.0, replay=0.3)
    release(made)
    costs = [n for text in data for n in naive_nats(base.model, domain.pieces(base.tokenizer, text, 512)[0])]
    assert made.remembering["replay"]["rows"] == 2
    assert made.task_tokens > made.method["tokens"]
    assert made.curve[0]["loss"] != pytest.approx(sum(costs) / len(costs), rel=1e-5)


def test_figures_are_those_of_the_naive_loop_and_their_interval_the_ratios(base: Base) -> None:
    data = read_texts(documents(9))
    made = fitted(base, "domain", data, max_steps=4)
    before = domain.figures(Chat(base, model=base.model), data)  # the adapter's model runs through it
    after = domain.figures(Chat(base, model=made.model), data)
    naive = [naive_nats(made.model, domain.pieces(base.tokenizer, text, 512)[0]) for text in data]
    release(made)
    bare = domain.figures(Chat(base), data)
    assert before == after != bare
    for (nats, tokens), each in zip(after, naive, strict=True):
        assert tokens == len(each) and nats == pytest.approx(math.fsum(each), rel=1e-5)

    record = domain.compared(bare, after)
    tokens = np.array([n for _, n in bare])
    gains = np.array([b - a for (b, _), (a, _) in zip(bare, after, strict=True)])
    ratio = gains.sum() / tokens.sum()
    residual = gains - ratio * tokens
    error = math.sqrt(residual.var(ddof=1) / len(tokens)) / tokens.mean()
    reach = 2.306004 * error  # Student's t of 8 degrees of freedom
    assert record["gain"]["low"] == pytest.approx(ratio - reach, rel=1e-4)
    assert record["gain"]["high"] == pytest.approx(ratio + reach, rel=1e-4)
    assert record["perplexity"]["base"] == pytest.approx(
        math.exp(sum(n for n, _ in bare) / tokens.sum()), rel=1e-6
    )
    assert record["nats_per_token"]["adapter"] < record["nats_per_token"]["base"]
    assert f"the base {record['nats_per_token']['base']:.3f}" in domain.said(record)


def test_copies_of_a_document_are_held_out_together() -> None:
    data = read_texts([f"Text {i % 20}." for i in range(60)])
    train, held = held_apart(data, Settings(method="domain", held_out_share=0.2, seed=3))
    assert held is not None
    assert len(train) == 48 and len(held) == 12 and not set(train.row_digests) & set(held.row_digests)
    again = held_apart(data, Settings(method="domain", held_out_share=0.2, seed=3))
    assert again[0].digest == train.digest and again[1] is not None and again[1].digest == held.digest
    assert held_apart(data, Settings(method="domain", held_out_share=0.0)) == (data, None)
    same, given = held_apart(data, Settings(method="domain"), ["Text 3.", "Other."])
    assert same is data and given is not None and declared(given, data)["also_trained_on"] == 1


@pytest.mark.slow
@pytest.mark.data
def test_medical_text_becomes_likelier(data_dir: Path, store: Registry) -> None:
    result = inlay.train(
        data_dir / "models" / "mini-instruct",
        data_dir / "domain" / "medquad_text.txt",
        name="medquad",
        store=store,
        general=[Suite("small", Suite.load("general-v1").items[::50])],
        held_out=read_texts(data_dir / "domain" / "medquad_text_heldout.txt").only(range(100)),
        method="domain",
        max_steps=15,
        batch_size=4,
        learning_rate=5e-3,
        kl=0.0,
    )
    held = result.run["held_out"]
    assert held["gain"]["low"] > 0.2
    assert held["perplexity"]["adapter"] < held["perplexity"]["base"]
