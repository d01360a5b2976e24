"""Training files: three layouts, and a clear line for everything that is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inlay.errors import InputError
from inlay.trainers.data import Example, read_dataset


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_three_layouts_in_one_file(tmp_path: Path) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello "},
    ]
    file = written(
        tmp_path / "mixed.jsonl",
        {"instruction": "Say it", "input": "loud", "output": "IT"},
        {"instruction": "Say it", "input": "", "output": "it"},
        {"prompt": "Again?", "completion": " yes"},
        {"messages": chat},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"prompt": [{"role": "user", "content": "c"}], "completion": [{"role": "assistant", "content": "d"}]},
    )
    data = read_dataset(file)
    assert data.name == "mixed"
    assert data.examples == (
        Example("Say it\nloud", "IT"),
        Example("Say it", "it"),
        Example("Again?", "yes"),
        Example((("system", "Be brief."), ("user", "Hi")), "Hello"),
        Example("a", "b"),
        Example("c", "d"),
    )
    assert data.examples[3].text == "Hi"
    assert data.examples[3].messages == chat[:2]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("", "line 2 is empty"),
        ('{"prompt": "a", ', "line 2 is not JSON"),
        ("[1, 2]", "line 2 must be a JSON object"),
        ({"question": "a", "answer": "b"}, "line 2 has the keys answer, question"),
        ({"prompt": "a", "completion": "  "}, "line 2: the answer is empty"),
        ({"prompt": " ", "completion": "b"}, "line 2: the prompt is empty"),
        ({"prompt": 3, "completion": "b"}, "line 2: prompt must be a string"),
        ({"instruction": "a", "input": None, "output": "b"}, "line 2: input must be a string"),
        ({"messages": [{"role": "user", "content": "a"}]}, "line 2: messages must be a list of at least"),
        (
            {"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]},
            "line 2: the last",
        ),
        ({"messages": [{"role": "user"}, {"role": "assistant", "content": "b"}]}, "line 2: each message"),
    ],
)
def test_bad_lines_are_named(bad: Any, says: str, tmp_path: Path) -> None:
    file = written(tmp_path / "d.jsonl", {"prompt": "a", "completion": "b"}, bad)
    with pytest.raises(InputError, match=says):
        read_dataset(file)


def test_missing_empty_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is none at"):
        read_dataset(tmp_path / "absent.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="empty holds none"):
        read_dataset(tmp_path / "empty.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9"}')
    with pytest.raises(InputError, match="must be UTF-8"):
        read_dataset(tmp_path / "latin.jsonl")


def test_digest_is_of_the_content_in_its_order(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    one = read_dataset(written(tmp_path / "one.jsonl", *rows))
    same = read_dataset(rows, name="other")
    assert one.digest == same.digest == read_dataset([{"instruction": "a", "output": "b"}, rows[1]]).digest
    assert one.digest != read_dataset(rows[::-1]).digest
    assert one.manifest == {"digest": one.digest, "name": "one", "rows": 2}
