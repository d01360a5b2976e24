"""On a real model and real suites: the outcomes of an independent scoring, to the item.

The independent scorer is plain transformers: one prompt at a time, no batch, no padding, no teacher forcing;
its text compared with the answer as strings.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from inlay.evals import Chat, Suite, evaluate_model
from inlay.evals.inference import load_base

pytestmark = [pytest.mark.slow, pytest.mark.data, pytest.mark.timeout(600)]

ITEMS = 40
"""Of each of the twelve skills."""


def test_outcomes_are_those_of_generating_one_by_one(data_dir: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    path = data_dir / "models" / "mini-instruct"
    rows = [
        {**json.loads(line), "skill": file.stem, "split": file.parent.name}
        for file in sorted((data_dir / "suites" / "general").glob("*/*.jsonl"))
        for line in file.read_text().splitlines()[:ITEMS]
    ]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    said = {}
    for row in rows:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        with torch.inference_mode():
            out = model.generate(**ids, max_new_tokens=64, do_sample=False)
        said[row["id"]] = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    expected = {row["id"]: said[row["id"]].strip() == row["answer"].strip() for row in rows}

    chat = Chat(load_base(path))
    suite = Suite.of_rows("general", rows)
    result = evaluate_model(chat, suite)
    assert len(suite) == 12 * ITEMS and 0.7 < result.score < 0.99
    assert dict(zip((i.id for i in suite.items), result.outcomes, strict=True)) == expected
    # What is generated in batches is what is generated one by one, and scores the same by another way.
    generated = evaluate_model(chat, Suite.of_rows("general", rows, metric="contains"))
    assert generated.answers == {key: text.strip() for key, text in said.items()}
    contained = {row["id"]: row["answer"].casefold() in said[row["id"]].casefold() for row in rows}
    assert dict(zip((i.id for i in suite.items), generated.outcomes, strict=True)) == contained
