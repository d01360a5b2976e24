"""Suites: what is read, what is refused and where, and a digest that only content changes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from inlay.errors import InputError, ReferenceNotFound
from inlay.evals.metrics import METRICS, contains, exact_match, metric
from inlay.evals.suites import Item, Suite

GOOD = '{"prompt": "p", "answer": "a"}'


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ('{"prompt": "p", ', "malformed JSON"),
        ("[" * 100_000, "malformed JSON"),
        ("[1, 2]", "must hold a JSON object, and this is a list"),
        ('{"answer": "a"}', "`prompt` is missing"),
        ('{"prompt": "p"}', "`answer` is missing"),
        ('{"prompt": "p", "answer": ""}', "`answer` must not be empty"),
        ('{"prompt": "p", "answer": 7}', "`answer` must be text, not int"),
        ('{"prompt": null, "answer": "a"}', "`prompt` must be text, not NoneType"),
        ('{"prompt": "p", "answer": "a", "split": "test"}', "`split` must be one of held_out, protected"),
        ('{"prompt": "p", "answer": "a", "skill": ["x"]}', "`skill` must be text, not list"),
        ('{"prompt": "p", "answer": "\\ud800"}', "half of a surrogate pair"),
        ('{"instruction": "i", "input": ""}', "`instruction` needs `output`"),
        ('{"instruction": "i", "input": 4, "output": "o"}', "`input` must be text"),
        ('{"messages": [], "answer": "a"}', "at least one message"),
        ('{"messages": [{"role": "user"}], "answer": "a"}', "each message must be"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "`answer` is missing"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = write(tmp_path / "bad.jsonl", GOOD, line, GOOD)
    with pytest.raises(InputError, match=r"bad\.jsonl, line 2") as caught:
        Suite.load(path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_byte_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(GOOD.encode() + b'\n{"prompt": "\xff", "answer": "a"}\n')
    with pytest.raises(InputError, match=r"line 2: a suite must be UTF-8"):
        Suite.load(path)


def test_empty_and_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is empty"):
        Suite.load(write(tmp_path / "none.jsonl"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="has none"):
        Suite.load(tmp_path / "folder")
    with pytest.raises(ReferenceNotFound, match="is none; check the path"):
        Suite.load(tmp_path / "absent.jsonl")
    with pytest.raises(InputError, match="needs at least one item"):
        Suite("x", ())


def test_two_items_with_one_id(tmp_path: Path) -> None:
    row = '{"id": "one", "prompt": "p", "answer": "a"}'
    with pytest.raises(InputError, match="'one' more than once"):
        Suite.load(write(tmp_path / "s.jsonl", row, GOOD, row))


def test_unknown_metric(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no metric 'bleurt'.*exact_match/1"):
        Suite.load(write(tmp_path / "s.jsonl", GOOD), metric="bleurt")


def test_every_format(tmp_path: Path) -> None:
    suite = Suite.load(
        write(
            tmp_path / "My Tasks.jsonl",
            '{"id": 7, "prompt": "p", "answer": "a", "cluster": "c"}',
            '{"prompt": "p", "completion": "c"}',
            '{"instruction": "i", "input": "x", "output": "o"}',
            '{"instruction": "i", "input": "", "output": "o"}',
            '{"messages": [{"role": "user", "content": "u"}], "answer": "m"}',
            '{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "last"}]}',
        )
    )
    assert suite.name == "my-tasks"
    assert [i.id for i in suite.items] == ["7", *(f"My Tasks-{k}" for k in (2, 3, 4, 5, 6))]
    assert suite.prompts()[:4] == ["p", "p", "i\nx", "i"]
    assert suite.prompts()[4:] == [[{"role": "user", "content": "u"}]] * 2
    assert suite.answers() == ["a", "c", "o", "o", "m", "last"]
    assert suite.items[4].text == "user: u"
    assert suite.skills == ("My Tasks",)


def test_a_missing_last_newline_a_bom_and_crlf_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n" + GOOD.encode())
    assert len(Suite.load(path)) == 2


def test_folder_with_splits(tmp_path: Path) -> None:
    for split, skills in (("held_out", ("sort", "copy")), ("protected", ("upper",))):
        (tmp_path / "general" / split).mkdir(parents=True)
        for skill in skills:
            write(tmp_path / "general" / split / f"{skill}.jsonl", GOOD, GOOD)
    suite = Suite.load(tmp_path / "general")
    assert suite.name == "general" and len(suite) == 6
    assert suite.skill_summary() == {
        "copy": {"items": 2, "held_out": 2},
        "sort": {"items": 2, "held_out": 2},
        "upper": {"items": 2, "held_out": 0},
    }
    assert suite.held_out.skills == ("copy", "sort") and suite.protected.skills == ("upper",)
    assert len(suite.held_out) == 4


def test_folder_of_plain_files_is_held_out(tmp_path: Path) -> None:
    write(tmp_path / "one.jsonl", GOOD)
    write(tmp_path / "two.jsonl", GOOD)
    suite = Suite.load(tmp_path)
    assert suite.skills == ("one", "two") and all(i.held_out for i in suite.items)


def test_digest_is_of_content_alone(tmp_path: Path) -> None:
    one = Suite.load(
        write(
            tmp_path / "a.jsonl",
            '{"id": "x", "prompt": "é", "answer": "a", "skill": "s", "split": "held_out"}',
        )
    )
    other = Suite.load(
        write(tmp_path / "b.jsonl", '{"answer":"a","skill":"s","prompt":"\\u00e9","id":"x","extra":1}'),
        metric="contains",
    )
    assert one.digest == other.digest
    line = '{"answer":"a","id":"x","prompt":"é","skill":"s","split":"held_out"}\n'
    assert one.digest == "sha256:" + hashlib.sha256(line.encode()).hexdigest()
    changed = Suite("a", (Item("x", "é", "b", "s"),))
    assert changed.digest != one.digest


def test_writing_and_reading_again_changes_nothing(tmp_path: Path) -> None:
    items = (
        Item("1", "line one\nline two", "a\u2028b", "s", held_out=False, cluster="c"),
        Item("2", (("system", "be brief"), ("user", "hi")), "yo"),
    )
    suite = Suite("x", items)
    again = Suite.from_jsonl("x", suite.to_jsonl())
    assert again == suite and again.digest == suite.digest


def test_from_a_store() -> None:
    kept = Suite("kept", (Item("1", "p", "a"),), "contains")
    row = SimpleNamespace(name="kept", items="sha256:1", metric="contains/1")

    class Store:
        def suite(self, name: str) -> SimpleNamespace:
            if name != "kept":
                raise ReferenceNotFound(f"no {name}")
            return row

        def get_object(self, digest: str) -> bytes:
            assert digest == "sha256:1"
            return kept.to_jsonl()

    assert Suite.load("kept", store=Store()) == kept
    with pytest.raises(ReferenceNotFound):
        Suite.load("unknown", store=Store())
    assert Suite.load("general-v1", store=Store()).name == "general-v1"  # shipped, where the store has none


def test_what_ships_is_enough_for_a_five_point_guard() -> None:
    suite = Suite.load("general-v1")
    assert len(suite.held_out) >= 400
    assert {i.skill for i in suite.held_out.items} & {i.skill for i in suite.protected.items} == set()


def test_rows_are_json_objects() -> None:
    for line in Suite.load("general-v1").to_jsonl().splitlines()[:5]:
        assert set(json.loads(line)) == {"id", "prompt", "answer", "skill", "split"}


def test_metrics() -> None:
    assert exact_match(" Paris\n", "Paris") and not exact_match("paris", "Paris")
    assert contains("It is PARIS.", "Paris") and not contains("Par is", "Paris")
    assert metric("exact_match") is metric("exact_match/1")
    assert len({m.key for m in METRICS}) == len(METRICS)
