"""What is shown piece by piece is what decoding all of it shows."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from inlay.evals.inference import Base
from inlay.serving.streaming import HALF, Spelling, TextStream

TEXT = "Grüße 🙂👩‍👩‍👧 日本語 \n x  y . don't 3 4,5\n\n- “quoted” "


def pushed(stream: TextStream, ids: list[int]) -> list[str]:
    return [*(stream.push(i) for i in ids), stream.end()]


def sequences(tokenizer: object, count: int, seed: int = 0) -> list[list[int]]:
    """Whatever a model may say: any tokens, single bytes mostly, real text cut anywhere."""
    draw, size = random.Random(seed), len(tokenizer)  # type: ignore[arg-type]
    text = tokenizer(TEXT * 4, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
    found = []
    for i in range(count):
        n = draw.randrange(1, 100)
        if i % 3 == 0:
            found.append([draw.randrange(size) for _ in range(n)])
        elif i % 3 == 1:
            found.append([draw.randrange(size if draw.random() < 0.3 else 262) for _ in range(n)])
        else:
            start = draw.randrange(len(text))
            found.append(text[start : start + n])
    return found


def check_exact(tokenizer: object, count: int) -> None:
    spelling = Spelling.of(tokenizer)  # type: ignore[arg-type]
    early = 0
    for ids in sequences(tokenizer, count):
        pieces = pushed(TextStream(spelling), ids)
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True), ids  # type: ignore[attr-defined]
        early += sum(1 for piece in pieces[: len(ids) // 2] if piece)
    assert early > count, "text must come while it is made, and not at the end"


def test_pieces_join_to_what_decoding_shows(base: Base) -> None:
    check_exact(base.tokenizer, 300)


@pytest.mark.data
@pytest.mark.parametrize("name", ["mini-instruct", "stories260k"])
def test_pieces_join_to_what_real_tokenizers_show(data_dir: Path, name: str) -> None:
    """One of bytes, one that falls back to bytes."""
    check_exact(AutoTokenizer.from_pretrained(data_dir / "models" / name), 300)


def test_half_a_character_is_never_shown(base: Base) -> None:
    ids = base.tokenizer("a🙂b日", add_special_tokens=False)["input_ids"]
    assert len(ids) > 6, "the characters must be several tokens each"
    pieces = pushed(TextStream(Spelling.of(base.tokenizer)), ids)
    assert "".join(pieces) == base.tokenizer.decode(ids, skip_special_tokens=True)
    assert not any(HALF in piece for piece in pieces)
    cut = pushed(TextStream(Spelling.of(base.tokenizer)), ids[:-1])
    assert HALF in cut[-1] and not any(HALF in piece for piece in cut[:-1])


def test_a_stop_text_is_held_back_until_it_is_decided(base: Base) -> None:
    spelling = Spelling.of(base.tokenizer)
    ids = base.tokenizer("one two END and on", add_special_tokens=False)["input_ids"]
    text = base.tokenizer.decode(ids, skip_special_tokens=True)
    for stop in ("END", "END of", " two", "o", "E", "two END and on", "nowhere", " on"):
        stream = TextStream(spelling, (stop, "never"))
        shown = ""
        for i in ids:
            shown += stream.push(i)
            assert text.startswith(shown) and stop not in shown
            if stream.stopped:
                break
        shown += stream.end()
        place = text.find(stop)
        assert stream.stopped == (place >= 0)
        assert shown == (text[:place] if place >= 0 else text)


def test_the_earliest_of_several_stop_texts_counts(base: Base) -> None:
    ids = base.tokenizer("red green blue", add_special_tokens=False)["input_ids"]
    text = base.tokenizer.decode(ids)
    stream = TextStream(Spelling.of(base.tokenizer), ("blue", "green", "n b"))
    assert "".join(pushed(stream, ids)) == text[: text.find("green")]


def test_a_stop_text_in_what_was_held_back(base: Base) -> None:
    """The last bytes are no character and never will be: only the end shows that the stop text is there."""
    ids = base.tokenizer("a🙂", add_special_tokens=False)["input_ids"][:-1]
    stream = TextStream(Spelling.of(base.tokenizer), (HALF,))
    assert "".join(pushed(stream, ids)) == "a" and stream.stopped
