"""The few-shot prompt: laid out, drawn, cut to the context, chosen; and what its scores do not pass for."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from evals_fakes import FakeFingerprint

from inlay.builtin.tasks import rows
from inlay.errors import InputError
from inlay.evals import Suite
from inlay.evals.inference import Base, Chat, as_messages, encode_pair
from inlay.evals.scoring import evaluate_model, to_record
from inlay.registry.guards import Guard
from inlay.trainers.data import Example, read_dataset
from inlay.trainers.few_shot import DEV_ROWS, FewShot, Shots, choose, dev_suite, laid_out, split, text_of

EXAMPLES = [Example(f"word{n} colour", ("red", "blue", "green")[n % 3]) for n in range(60)]
TARGET = Suite.of_rows("target", [{"prompt": "asked never", "answer": "red"}])


class WordTokenizer:
    """A token a word; a message costs one more for its role."""

    def apply_chat_template(self, messages: Sequence[dict[str, str]], **_: Any) -> list[int]:
        return [0] * sum(1 + len(message["content"].split()) for message in messages)

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [0] * len(text.split())}


class CountingChat:
    """Right where exactly `right` examples stand as turns before the request; remembers what it was asked."""

    def __init__(self, right: int, context: int = 400) -> None:
        self.right = right
        self.tokenizer = WordTokenizer()
        self.model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=context))
        self.fingerprint = FakeFingerprint()
        self.device = "cpu"
        self.protocol = {"decoding": "greedy", "dtype": "float32", "few_shot": 0}
        self.asked: list[Any] = []

    def matches(self, prompts: Sequence[Any], answers: Sequence[str], **_: Any) -> list[bool]:
        self.asked += prompts
        return [sum(m["role"] == "assistant" for m in as_messages(p)) == self.right for p in prompts]


def test_layouts_are_what_they_say() -> None:
    one = Example("2 + 2", "4")
    two = Example((("system", "count"), ("user", "3 + 3")), "6")
    asked = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "5 + 5"}]
    assert laid_out(asked, [one, two], "turns") == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "2 + 2"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "3 + 3"},
        {"role": "assistant", "content": "6"},
        {"role": "user", "content": "5 + 5"},
    ]
    text = "Examples:\n\n2 + 2\nAnswer: 4\n\n3 + 3\nAnswer: 6\n\nNow:\n\n5 + 5\nAnswer:"
    assert laid_out("5 + 5", [one, two], "text") == text
    assert laid_out(asked, [one, two], "text") == [asked[0], {"role": "user", "content": text}]
    assert laid_out(asked, [], "turns") == asked


def test_split_holds_back_a_quarter_and_no_prompt_stands_on_both_sides() -> None:
    pool, dev = split([*EXAMPLES, *EXAMPLES], 0)  # every prompt twice
    assert len(dev) == 30
    assert not {text_of(e.messages) for e in pool} & {text_of(e.messages) for e in dev}
    many = [Example(str(n), "x") for n in range(2000)]
    assert [len(part) for part in split(many, 0)] == [2000 - DEV_ROWS, DEV_ROWS]
    assert split(many, 0) == split(many, 0) != split(many, 1)
    assert split(EXAMPLES[:3], 0) == (EXAMPLES[:3], [])
    assert split([Example("same", "a")] * 8, 0) == ([Example("same", "a")] * 8, [])


def shots_in(prompt: Any) -> list[str]:
    """The answers of the examples before a request laid out as turns."""
    return [m["content"] for m in as_messages(prompt) if m["role"] == "assistant"]


def test_each_class_has_its_share_of_a_draw() -> None:
    skewed = [Example(f"a{n}", "often") for n in range(50)] + [Example(f"b{n}", "rare") for n in range(5)]
    model = FewShot(CountingChat(0), Shots(8), skewed)  # type: ignore[arg-type]
    assert Counter(shots_in(model.prompt("now", 1))) == {"often": 4, "rare": 4}
    again = FewShot(CountingChat(0), Shots(8), skewed)  # type: ignore[arg-type]
    other = FewShot(CountingChat(0), Shots(8, seed=1), skewed)  # type: ignore[arg-type]
    assert model.prompt("now", 1) == again.prompt("now", 1) != other.prompt("now", 1)
    assert model.protocol == again.protocol
    assert model.protocol["few_shot"] == 8 and model.protocol["shots"] != other.protocol["shots"]


def test_nearest_examples_equal_a_naive_search() -> None:
    """The order of cosines of (1 + log count) · (1 + log((1 + n) / (1 + df))), in plain Python."""
    texts = [
        "my card is lost",
        "card card payment",
        "the weather today",
        "lost parcel today",
        "my my my card",
    ]
    pool = [Example(text, str(n)) for n, text in enumerate(texts)]

    def words(text: str) -> Counter[str]:
        return Counter(re.findall(r"\w+", text.lower()))

    def vector(text: str) -> dict[str, float]:
        weights = {}
        for word, count in words(text).items():
            df = sum(word in words(other) for other in texts)
            if df:
                weights[word] = (1 + math.log(count)) * (1 + math.log((1 + len(texts)) / (1 + df)))
        norm = math.sqrt(sum(w * w for w in weights.values()))
        return {word: w / norm for word, w in weights.items()}

    request = "where is my lost card payment"
    asked = vector(request)
    likeness = [sum(asked.get(w, 0.0) * v for w, v in vector(text).items()) for text in texts]
    expected = [str(n) for n in sorted(range(len(texts)), key=lambda n: -likeness[n])[:3]][::-1]
    model = FewShot(CountingChat(0), Shots(3, draw="nearest"), pool)  # type: ignore[arg-type]
    assert shots_in(model.prompt(request, 1)) == expected


def test_examples_that_do_not_fit_go_from_the_far_end() -> None:
    chat = CountingChat(0, context=40)
    model = FewShot(chat, Shots(8), EXAMPLES)  # type: ignore[arg-type]
    whole = FewShot(CountingChat(0), Shots(8), EXAMPLES).prompt("a b c", model.room)  # type: ignore[arg-type]
    cut = model.prompt("a b c", model.room)
    # An example takes 3 + 2 tokens, the request 4, the room 1 + 8: five examples are 38 of 40.
    assert model.room == 9 and len(shots_in(cut)) == 5
    assert as_messages(cut) == as_messages(whole)[-11:]
    assert model.shortened == 1
    assert model.prompt("w " * 60, model.room) == "w " * 60  # the base itself will say that it is too long


def test_choice_is_the_best_on_dev_rows_and_no_target_item_is_asked(tmp_path: Path) -> None:
    chat = CountingChat(right=4)
    choice = choose(chat, EXAMPLES, TARGET, cache=tmp_path)  # type: ignore[arg-type]
    assert choice.model.shots == Shots(4)
    assert [one.shots.k for one in choice.tried] == [2, 4, 8, 16, 32, 4, 4, 4]
    assert [one.score for one in choice.tried] == [0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0]
    assert [one.n for one in choice.tried] == [15] * 8
    assert len({(o.shots.k, o.shots.draw, o.shots.seed, o.shots.layout) for o in choice.tried}) == 8
    asked = {as_messages(prompt)[-1]["content"] for prompt in chat.asked}
    assert not any("asked never" in text for text in asked)
    kept = choice.to_dict()
    assert (kept["k"], kept["layout"], kept["dev_metric"]) == (4, "turns", "exact_match/1")
    fresh = CountingChat(right=4)
    again = choose(fresh, EXAMPLES, TARGET, cache=tmp_path)  # type: ignore[arg-type]
    assert again.to_dict() == kept and fresh.asked == []


def test_sizes_that_do_not_fit_are_no_candidates_and_few_rows_are_not_split() -> None:
    small = choose(CountingChat(4, context=40), EXAMPLES, TARGET)  # type: ignore[arg-type]
    assert [one.shots.k for one in small.tried][:3] == [1, 2, 4]
    assert max(one.shots.k for one in small.tried) == 4
    unmeasured = choose(CountingChat(1), EXAMPLES[:3], TARGET)  # type: ignore[arg-type]
    assert unmeasured.model.shots.k == 2 and [one.score for one in unmeasured.tried] == [None]
    with pytest.raises(InputError, match="at least one example"):
        FewShot(CountingChat(1), Shots(1), [])  # type: ignore[arg-type]


def test_dev_rows_are_scored_as_the_target_is_where_they_can_be() -> None:
    choices = [{"prompt": "p", "answer": "red", "choices": ["red", "blue", "green"]}]
    chosen = dev_suite(EXAMPLES[:3], Suite.of_rows("c", choices, metric="multiple_choice"))
    assert chosen.metric == "multiple_choice/1" and chosen.items[1].choices == ("red", "blue", "green")
    foreign = dev_suite([Example("p", "mauve")], Suite.of_rows("c", choices, metric="multiple_choice"))
    assert foreign.metric == "exact_match/1" and foreign.items[0].choices == ()
    pattern = Suite.of_rows("r", [{"prompt": "p", "answer": "^r"}], metric="regex")
    assert dev_suite(EXAMPLES[:3], pattern).metric == "exact_match/1"
    graded = Suite.of_rows("g", [{"prompt": "p", "answer": "a b"}], metric="token_f1")
    assert dev_suite(EXAMPLES[:3], graded).metric == "token_f1/1"


def test_scores_are_those_of_the_written_out_prompt_and_pass_no_guard(base: Base) -> None:
    """On the real base: the same outcomes and likelihoods as the prompt written by hand."""
    data = list(read_dataset(rows("ticket-queue", "train", 12, 0)))
    model = FewShot(Chat(base), Shots(2), data[:8])
    requests, answers = [e.messages for e in data[8:]], [e.answer for e in data[8:]]
    shown = [e for e in data[:8] if e.answer in shots_in(model.prompt(requests[0], model.room))]
    written = [model.prompt(request, model.room) for request in requests]
    assert all(len(as_messages(prompt)) == 5 for prompt in written) and shown
    assert model.likelihoods(requests, answers) == Chat(base).likelihoods(written, answers)
    assert model.matches(requests, answers) == Chat(base).matches(written, answers)
    assert model.generate(requests[:1], max_new_tokens=4) == Chat(base).generate(
        written[:1], max_new_tokens=4
    )
    limit = base.model.config.max_position_embeddings
    full = FewShot(Chat(base), Shots(64), data)
    assert all(len(encode_pair(base.tokenizer, full.prompt(r, full.room), "x")[0]) <= limit for r in requests)
    suite = Suite.of_rows("t", rows("ticket-queue", "test", 4, 0))
    record = to_record(evaluate_model(model, suite))
    assert record.protocol_detail["few_shot"] == 2
    guard = Guard.of({"gain": 0.1, "suites": {"target": ["t"]}})
    assert not guard.admits(record) and guard.admits(to_record(evaluate_model(Chat(base), suite)))
