"""Replay: how many general rows, which, with what loss, and that they hold the base."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

import inlay
from inlay.builtin.tasks import rows
from inlay.errors import InputError
from inlay.evals import Suite
from inlay.evals.inference import Base, base_answers
from inlay.registry import Registry
from inlay.trainers.data import read_dataset
from inlay.trainers.fit import fit, release
from inlay.trainers.methods import sft
from inlay.trainers.protected import Protected
from inlay.trainers.remembering import in_words
from inlay.trainers.replay import mixed
from inlay.trainers.settings import Settings

PROMPTS = [
    "Write these words in upper case: river garden",
    "Which number is larger, 14 or 52?",
    "Copy the word: lamp",
    "Add 4 and 17",
    "What is the last word here: grass, hill, stone",
]


def task(base: Base, n: int) -> list[dict[str, Any]]:
    return sft.prepared(base, read_dataset(rows("ticket-queue", "train", n, 0)), Settings()).rows


@pytest.mark.parametrize(("share", "wanted"), [(0.1, 2), (0.25, 7), (0.5, 20), (0.75, 60)])
def test_share_of_all_rows_each_prompt_as_often_as_any_other(base: Base, share: float, wanted: int) -> None:
    own = task(base, 20)
    answers = base_answers(base, PROMPTS, max_new_tokens=8)
    found = mixed(base, own, PROMPTS, answers, share, seed=3)
    assert found.rows[:20] == own and found.replayed == wanted == len(found.rows) - 20
    counts = Counter(tuple(row["input_ids"]) for row in found.rows[20:])
    assert max(counts.values()) - min(counts.values() if len(counts) == 5 else [0]) <= 1
    general = sum(len(row["input_ids"]) for row in found.rows[20:])
    assert found.token_share == general / (general + sum(len(row["input_ids"]) for row in own))
    assert mixed(base, own, PROMPTS, answers, share, seed=3) == found
    assert mixed(base, own, PROMPTS, answers, 0.25, seed=4) != found


def test_a_general_row_is_what_sft_makes_of_prompt_and_answer(base: Base) -> None:
    answers = base_answers(base, PROMPTS, max_new_tokens=8)
    pairs = [{"prompt": p, "completion": a} for p, a in zip(PROMPTS, answers, strict=True)]
    own = sft.prepared(base, read_dataset(pairs), Settings()).rows
    found = mixed(base, task(base, 5), PROMPTS, answers, 0.5, seed=0).rows[5:]
    assert sorted(row["input_ids"] for row in found) == sorted(row["input_ids"] for row in own)
    assert all(row in own for row in found)


def test_pairs_are_refused(base: Base) -> None:
    with pytest.raises(InputError, match="one answer"):
        mixed(base, [{"chosen": [1], "rejected": [2]}], PROMPTS, PROMPTS, 0.5, seed=0)


@pytest.mark.slow
def test_replay_holds_what_plain_training_loses(base: Base) -> None:
    """No KL; of the prompts replayed the base's answers are kept, without it they are not."""
    answers = base_answers(base, PROMPTS, max_new_tokens=8)
    probe = Protected(tuple(PROMPTS), tuple(answers))

    def kept(share: float) -> int:
        settings = Settings().replaced(
            max_steps=40, batch_size=8, rank=4, kl=0.0, replay=share, learning_rate=5e-3
        )
        data = read_dataset(rows("ticket-queue", "train", 64, 0))
        fitted = fit(base, data, settings, general=(PROMPTS, answers))
        found = sum(probe.kept(base, fitted.model))
        release(fitted)
        assert ("replay" in fitted.remembering) is (share > 0)
        return found

    assert kept(0.5) == 5
    assert kept(0.0) <= 2


def test_record_and_words(base: Base, store: Registry) -> None:
    result = inlay.train(
        base,
        rows("ticket-queue", "train", 24, 0),
        name="tickets",
        store=store,
        general=[Suite("small", Suite.load("general-v1").items[::100])],
        general_prompts=PROMPTS,
        max_steps=2,
        batch_size=4,
        rank=2,
        kl=0.0,
        replay=0.2,
    )
    run = store.run_of(result.version)
    assert run is not None and run["settings"]["replay"] == 0.2
    assert run["general_prompts"] == len(PROMPTS)
    assert run["remembering"]["replay"]["rows"] == 6
    assert result.remembering == in_words(run["remembering"])
    assert result.remembering[0].startswith("6 rows of general prompts were replayed among the task's, ")


@pytest.mark.parametrize("method", ["domain", "distill"])
def test_replay_goes_with_other_methods_of_one_answer(base: Base, method: str) -> None:
    from inlay.trainers.texts import read_texts

    answers = base_answers(base, PROMPTS, max_new_tokens=8)
    pairs = [
        {"prompt": f"Copy the word: {word}", "completion": word} for word in ("lamp", "hill", "road", "tree")
    ]
    data = (
        read_texts([f"A text about a {p['completion']}." for p in pairs])
        if method == "domain"
        else read_dataset(pairs)
    )
    settings = Settings().replaced(method=method, max_steps=2, batch_size=4, rank=2, kl=0.0, replay=0.5)
    fitted = fit(base, data, settings, general=(PROMPTS, answers))
    release(fitted)
    assert fitted.remembering["replay"]["rows"] == 4
    assert all(row["loss"] > 0 for row in fitted.curve)
