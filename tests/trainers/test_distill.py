"""Self-distillation: which rewrites are kept, what is trained on then, and that the base is asked once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from method_runs import fitted, tickets

from inlay.evals.inference import Base, Chat, encode_pair
from inlay.trainers.data import Example, read_dataset
from inlay.trainers.fit import release
from inlay.trainers.methods import distill
from inlay.trainers.settings import Settings

ROWS = [
    {"prompt": "2 + 2?", "completion": "Four apples. The answer is 4"},
    {"prompt": "Capital of France?", "completion": "Paris"},
    {"prompt": "Say yes", "completion": "yes"},
    {"prompt": "Say no", "completion": "no"},
    {"prompt": "Count", "completion": "one"},
    {"prompt": "word " * 700, "completion": "long"},
]
SAID = ["Two and two make four.\nAnswer: 4.", "the PARIS", "no", "", "one " * 300]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """A base that says `SAID`; what it is asked."""
    calls: list[list[Any]] = []

    def answer(self: Chat, prompts: list[Any], **_: Any) -> list[str]:
        calls.append(list(prompts))
        return SAID[: len(prompts)]

    monkeypatch.setattr(Chat, "generate", answer)
    return calls


def test_a_rewrite_is_kept_where_it_says_the_same(base: Base, asked: list[list[Any]], tmp_path: Path) -> None:
    data = read_dataset(ROWS)
    made = distill.rewritten(base, data, Settings(method="distill"), cache=tmp_path)
    assert [e.answer for e in made] == [SAID[0], SAID[1], "yes", "no", "one", "long"]
    assert [e.prompt for e in made] == [e.prompt for e in data]
    assert made.record == {
        "checker": "normalised",
        "rows": 6,
        "share_kept": 2 / 6,
        "kept": 2,
        "disagrees": 1,
        "unfinished": 1,
        "empty": 1,
        "no_room": 1,
    }
    (requests,) = asked
    assert len(requests) == 5 and "2 + 2?" in requests[0] and "The answer is 4" in requests[0]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"checker": "exact"}, []),
        ({"checker": "normalised"}, [0, 1]),
        ({"checker": "f1", "checker_f1": 0.4}, [0, 1]),
        ({"checker": "f1", "checker_f1": 0.9}, [1]),
    ],
)
def test_checkers_by_name(
    settings: dict[str, Any], kept: list[int], base: Base, asked: list[list[Any]], tmp_path: Path
) -> None:
    made = distill.rewritten(
        base, read_dataset(ROWS[:3]), Settings(method="distill", **settings), cache=tmp_path
    )
    assert [i for i, e in enumerate(made) if e.answer == SAID[i]] == kept


def test_a_checker_may_be_given_and_decides(base: Base, asked: list[list[Any]], tmp_path: Path) -> None:
    seen = []

    def never(rewrite: str, reference: str) -> bool:
        seen.append((rewrite, reference))
        return False

    settings = Settings(method="distill")
    made = distill.rewritten(base, read_dataset(ROWS[:3]), settings, checker=never, cache=tmp_path)
    assert seen == [(said, row["completion"]) for said, row in zip(SAID, ROWS[:3], strict=False)]
    assert made.record["checker"] == "given" and made.record["kept"] == 0
    assert made.digest == read_dataset(ROWS[:3]).digest


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("3 * 4 = 12\n#### 12", "12"),
        ("I think the answer is Paris.", "Paris."),
        ("Answer: 7\nThe answer: 8", "8"),
        ("First.\nSecond.", "Second."),
        (" only ", "only"),
        ("", ""),
    ],
)
def test_the_final_answer(text: str, final: str) -> None:
    assert distill.final_answer(text) == final


def test_the_request_is_the_last_message_of_a_conversation() -> None:
    example = Example((("system", "Be brief."), ("user", "{Hi}")), "Hello")
    first, last = distill.request_of(example)
    assert first == {"role": "system", "content": "Be brief."}  # type: ignore[comparison-overlap]
    assert last["role"] == "user" and "{Hi}" in last["content"] and "Hello" in last["content"]  # type: ignore[index]


def test_the_base_is_asked_once_per_data(base: Base, asked: list[list[Any]], tmp_path: Path) -> None:
    settings = Settings(method="distill")
    first = distill.rewritten(base, read_dataset(ROWS[:3]), settings, cache=tmp_path)
    again = distill.rewritten(base, read_dataset(ROWS[:3]), settings, cache=tmp_path)
    assert len(asked) == 1 and again == first
    distill.rewritten(base, read_dataset(ROWS[:2]), settings, cache=tmp_path)
    assert len(asked) == 2


def test_what_is_trained_on_is_the_rewrite(base: Base, asked: list[list[Any]], tmp_path: Path) -> None:
    data = read_dataset(ROWS[:3])
    made = distill.rewritten(base, data, Settings(), cache=tmp_path)
    prepared = distill.prepared(base, made, Settings())
    assert prepared.record is made.record and len(prepared.rows) == 3
    for row, example in zip(prepared.rows, made, strict=True):
        ids, n_prompt = encode_pair(base.tokenizer, example.messages, example.answer)
        assert row == {"input_ids": ids, "labels": [-100] * n_prompt + ids[n_prompt:]}
    run = fitted(base, "distill", made, max_steps=1, batch_size=3, kl=0.0)
    release(run)
    assert run.method == made.record
    assert run.task_tokens == sum(len(row["input_ids"]) for row in prepared.rows)


def test_the_base_itself_is_asked(base: Base, tmp_path: Path) -> None:
    """The built-in base rewrites nothing sensible, and no row is lost by it."""
    data = read_dataset(tickets(6))
    made = distill.rewritten(base, data, Settings(method="distill"), cache=tmp_path)
    outcomes = ("kept", "disagrees", "unfinished", "empty", "no_room")
    assert sum(made.record[name] for name in outcomes) == len(made) == 6
