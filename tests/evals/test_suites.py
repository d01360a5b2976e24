"""Suites: what is read, what is refused and where, and a digest that only content changes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from inlay.errors import InputError, ReferenceNotFound
from inlay.evals.suites import Item, Suite

GOOD = '{"prompt": "p", "answer": "a"}'


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(exist_ok=True)
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


CHOICE = {"prompt": "Larger: 3 or 9?", "choices": ["3", "9"], "answer": 1, "metric": "multiple_choice"}


def test_what_an_item_may_say_comes_back() -> None:
    rows = [
        CHOICE,
        {"prompt": "six?", "answer": "six", "references": ["6"], "slice": "digits", "cluster": "c"},
        {"prompt": "six?", "references": ["six", "6"]},
        {"prompt": "some JSON", "metric": "json_valid"},
    ]
    suite = Suite.of_rows("s", rows)
    choice, two, three, four = suite.items
    assert (choice.answer, choice.choices) == ("9", ("3", "9"))
    assert two.accepted == three.accepted == ("six", "6") and (two.slice, two.cluster) == ("digits", "c")
    assert four.answer == "" and "answer" not in four.to_row()
    assert suite.metric == "exact_match/1+json_valid/1+multiple_choice/1" and not suite.graded
    assert [suite.metric_of(i).name for i in suite.items] == [
        "multiple_choice", "exact_match", "exact_match", "json_valid",
    ]  # fmt: skip
    again = Suite.from_jsonl("s", suite.to_jsonl(), metric=suite.metric)
    assert again == suite and again.to_jsonl() == suite.to_jsonl()


def test_canonical_bytes_of_plain_suites_are_what_they_were() -> None:
    suite = Suite.of_rows(
        "s", [{"id": "x", "prompt": "p", "answer": "a", "cluster": "c"}, {"prompt": "q", "answer": "b"}]
    )
    assert suite.to_jsonl() == (
        b'{"answer":"a","cluster":"c","id":"x","prompt":"p","skill":"all","split":"held_out"}\n'
        b'{"answer":"b","id":"s-2","prompt":"q","skill":"all","split":"held_out"}\n'
    )


def test_another_default_is_written_into_the_items_of_a_mixed_suite() -> None:
    rows = [CHOICE, {"prompt": "p", "answer": "a"}]
    suite = Suite.of_rows("s", rows, metric="contains")
    assert suite.metric == "contains/1+multiple_choice/1" and suite.items[1].metric == "contains"
    assert Suite.from_jsonl("s", suite.to_jsonl(), metric=suite.metric) == suite
    part = Suite("part", suite.items[1:], suite.metric)
    assert part.metric == "contains/1" and part.metric_of(part.items[0]).name == "contains"


def test_metrics_that_make_no_one_score_are_refused() -> None:
    rows = [{"prompt": "p", "answer": "a"}, {"prompt": "p", "answer": "a", "metric": "token_f1"}]
    with pytest.raises(InputError, match=r"all graded in one way.*exact_match/1, token_f1/1.*two suites"):
        Suite.of_rows("s", rows)
    with pytest.raises(InputError, match="all graded in one way"):
        Suite.of_rows("s", [*rows[1:], {"prompt": "p", "answer": "a", "metric": "perplexity"}])
    both = Suite.of_rows("s", [*rows[1:], {"prompt": "p", "answer": "a", "metric": "rouge_l"}])
    assert both.graded and both.higher_is_better


def test_a_header_names_the_metric_and_is_no_item(tmp_path: Path) -> None:
    header = '{"suite": {"metric": "contains", "description": "What it is."}}'
    plain, headed = write(tmp_path / "a.jsonl", GOOD), write(tmp_path / "b" / "a.jsonl", header, GOOD)
    suite = Suite.load(headed)
    assert (len(suite), suite.metric, suite.description) == (1, "contains/1", "What it is.")
    assert suite.items[0].id == "a-2"  # ids count lines, so that they can be found
    assert Suite.load(headed, metric="exact_match").metric == "exact_match/1"
    assert Suite.load(plain).metric == "exact_match/1"
    kept = json.dumps({"id": "i", **json.loads(GOOD)})
    one, two = write(tmp_path / "one.jsonl", kept), write(tmp_path / "two.jsonl", header, kept)
    assert Suite.load(one, name="x").skills == ("one",)
    same = [Suite.from_jsonl("x", path.read_bytes()) for path in (one, two)]
    assert same[0].digest == same[1].digest and same[0].metric != same[1].metric
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "one.jsonl", '{"prompt": "p", "answer": "x"}')
    write(tmp_path / "folder" / "two.jsonl", header, '{"prompt": "p", "answer": "y"}')
    folder = Suite.load(tmp_path / "folder")
    assert {i.skill: folder.metric_of(i).name for i in folder.items} == {
        "one": "exact_match",
        "two": "contains",
    }


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ('{"suite": "x"}', "must be an object, not str"),
        ('{"suite": {"version": 1}}', "unknown key 'version'"),
        ('{"suite": {"metric": "accuracy"}}', "no metric 'accuracy'"),
        ('{"suite": {"metric": 3}}', "`metric` must be text, not int"),
        ('{"suite": {}}', "has a header only"),
    ],
)
def test_a_bad_header_is_named(tmp_path: Path, header: str, says: str) -> None:
    lines = [header] if says.startswith("has") else [header, GOOD]
    with pytest.raises(InputError, match=r"bad\.jsonl") as caught:
        Suite.load(write(tmp_path / "bad.jsonl", *lines))
    assert says in str(caught.value)
