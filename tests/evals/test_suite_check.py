"""What `inlay suite check` finds, each thing planted, and that sound suites are left alone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from inlay.errors import InputError
from inlay.evals.contamination import Training, normalised, overlaps, runs, training_prompts
from inlay.evals.statistics import needed_items, probability_of_passing
from inlay.evals.suite_check import FEW, SuiteCheck, check
from inlay.evals.suites import Item, Suite
from inlay.registry import Registry

WORDS = [f"word{n}" for n in range(2000)]


def sound(n: int = 60, **more: Any) -> list[Item]:
    """Items with nothing wrong."""
    rng = Random(0)
    return [
        Item(f"i{k}", f"Question {k}: {' '.join(rng.sample(WORDS, 12))}?", f"answer {k}", **more)
        for k in range(n)
    ]


def kinds(found: SuiteCheck) -> dict[str, tuple[str, ...]]:
    return {f.kind: f.items for f in found.findings}


def checked(items: list[Item], metric: str = "exact_match", **more: Any) -> SuiteCheck:
    return check(Suite("s", tuple(items), metric), **more)


def test_a_sound_suite_has_no_findings() -> None:
    found = checked(sound())
    assert found.findings == () and found.ok
    assert found.verdict() == "s: 60 items, 60 held out; 0 errors, 0 warnings"
    assert json.loads(json.dumps(found.to_dict()))["ok"] is True


def test_doubled_and_contradicting_prompts() -> None:
    items = sound()
    items += [
        Item("again", items[0].text, items[0].answer),
        Item("spaces", f" {items[1].text.replace(' ', '  ')} ", items[1].answer),
        Item("louder", items[2].text.upper().replace("?", " !"), items[2].answer),
        Item("other", items[3].text, "something else"),
        Item("fine", items[4].text.replace("?", "!"), "something else"),
    ]
    found = checked(items)
    assert kinds(found) == {
        "contradiction": ("i3", "other"),
        "duplicate": ("again", "spaces"),
        "near-duplicate": ("louder",),
    }
    assert not found.ok and len(found.errors) == 2
    assert found.verdict().endswith("2 errors, 1 warning")


def test_signs_that_carry_meaning_keep_prompts_apart() -> None:
    assert normalised("What is 3 + 4?") != normalised("What is 3 - 4?")
    assert normalised("“Sort”: b, a.") == normalised("sort b a") == "sort b a"
    assert "near-duplicate" not in kinds(
        checked([*sound(), Item("a", "What is 3 + 3?", "6"), Item("b", "What is 3 * 2?", "6")])
    )


def test_the_same_question_with_other_choices_is_another_question() -> None:
    ask = {"prompt": "Which one?", "metric": "multiple_choice"}
    items = [
        Item("a", answer="x", choices=("x", "y"), **ask),
        Item("b", answer="z", choices=("z", "y"), **ask),
    ]
    assert kinds(checked([*sound(), *items])) == {}


def test_a_prompt_that_ends_in_its_answer_is_a_leak() -> None:
    items = [
        *sound(),
        Item("a", "Capital of France?\nAnswer: Paris", "Paris"),
        Item("b", "Capital of Italy? The answer is ROME.", "Rome"),
        Item("c", "Is it wet? Answer yes or no.", "no"),
        Item("d", "Repeat these words: red fox", "red fox"),
        Item("e", "Q: 1 + 1? Answer: 2\nQ: 2 + 2?", "2"),
        Item("f", "Q: 1 + 1? Answer: 2\nQ: 2 + 2? Answer: 4", "4"),
    ]
    found = checked(items)
    assert kinds(found) == {"leak": ("a", "b", "f")} and not found.ok


def test_copying_is_no_leak_and_an_exception_is_worth_a_look() -> None:
    copies = [
        Item(f"c{n}", f"Say it again: {WORDS[n]} b c", f"{WORDS[n]} b c", skill="copy") for n in range(40)
    ]
    found = checked([*sound(), *copies])
    assert kinds(found) == {"answers-in-prompts": ("copy",)}
    assert found.findings[0].level == "note" and found.ok
    assert {s.name: s.in_prompt for s in found.skills} == {"all": 0.0, "copy": 1.0}
    odd = [Item(f"o{n}", f"Reverse: {n} b c", f"c b {n}", skill="reverse") for n in range(40)]
    found = checked([*odd[:-1], Item("odd", "Reverse a b a", "a b a", skill="reverse")])
    assert kinds(found) == {"answer-in-prompt": ("odd",)} and found.ok


def test_patterns_and_words_to_avoid_are_no_answers_that_leak() -> None:
    items = [Item(f"p{n}", f"Write {n} b c. Answer: {n}", f"{n}") for n in range(40)]
    assert checked(items, "regex").findings == ()
    avoid = [Item("a", "Do not say: red big fox", "red big fox", metric="contains_not")]
    assert checked([*sound(), *avoid]).findings == ()
    assert len(kinds(checked(items))["leak"]) == 40


def test_items_in_training_data(tmp_path: Path) -> None:
    items = sound()
    near = items[2].text.split()
    rows: list[dict[str, Any]] = [
        {"prompt": items[0].text, "completion": "x"},
        {
            "messages": [
                {"role": "user", "content": items[1].text.upper()},
                {"role": "assistant", "content": "x"},
            ]
        },
        {"instruction": " ".join(near[:-1]), "input": "and more", "output": "x"},
        {"prompt": " ".join(near[:9]), "completion": "half of it"},
        {"prompt": [{"role": "user", "content": items[4].text}], "completion": "x"},
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = checked(items, training=[path])
    assert kinds(found) == {
        "in-training-same": ("i0 (line 1)", "i4 (line 5)"),
        "in-training-normalised": ("i1 (line 2)",),
        "in-training-near": ("i2 (line 3, 85%)",),
    }
    assert [f.level for f in found.findings] == ["error", "error", "warning"]
    # 14 words make 7 runs of eight, of which all but the last stand in the row
    (overlap,) = [o for o in overlaps(items, training_prompts(path)) if o.degree == "near"]
    assert len(runs(normalised(items[2].text))) == 7 and overlap.share == pytest.approx(6 / 7)


def test_a_template_that_all_rows_share_is_no_overlap() -> None:
    frame = (
        "Read the following message of a customer and answer with the queue it belongs to, nothing else: {}"
    )
    items = [Item(f"i{n}", frame.format(WORDS[n]), f"q{n}") for n in range(40)]
    rows = Training("train", tuple(frame.format(WORDS[500 + n]) for n in range(100)))
    assert overlaps(items, rows) == []
    # Three rows that are alike are no template yet.
    assert len(overlaps(items, Training("few", rows.prompts[:3]))) == 40


def test_training_data_that_cannot_be_read_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    for text, message in (
        ('{"prompt": "a"}\n{"prompt"', "line 2 is not JSON"),
        ("[1]\n", "line 1 must be a JSON object, and is a list"),
        ('{"text": "a"}\n', "line 1: there is no `prompt`"),
        ('{"messages": []}\n', "line 1: there is no `prompt`"),
        ("\n", "must hold at least one row"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            training_prompts(path)
    with pytest.raises(InputError, match="there is none at"):
        training_prompts(tmp_path / "none.jsonl")
    path.write_text('{"suite": {"metric": "contains"}}\n{"prompt": "a"}\n')
    assert training_prompts(path).prompts == ("", "a", "")


def test_skills_on_both_sides_and_small_ones() -> None:
    items = [*sound(), Item("p", "Something else altogether?", "x", held_out=False)]
    items += [Item(f"f{n}", f"Few {n}?", f"a {n}", skill="few", held_out=False) for n in range(FEW - 1)]
    found = checked(items)
    assert [f.message for f in found.errors] == ["skill all is both held out and protected: 60 and 1 items"]
    assert kinds(found)["few-items"] == (f"few ({FEW - 1})",)
    assert {s.name: s.split for s in found.skills} == {"all": "both", "few": "protected"}


def test_a_constant_reply_and_a_preferred_place() -> None:
    spam = [
        Item(f"s{n}", f"Is it spam? {WORDS[n]} {n}", "ham" if n % 10 else "spam", skill="spam")
        for n in range(50)
    ]
    found = checked(spam)
    assert [f.message for f in found.findings] == ["in spam a reply that is always 'ham' scores 90%"]
    assert found.skills[0].constant == 0.9 and found.skills[0].commonest == "ham"

    def choice(n: int, place: int) -> Item:
        others = [f"b{n}", f"c{n}", f"d{n}"]
        return Item(f"m{n}", f"Which? {n}", f"a{n}", choices=(*others[:place], f"a{n}", *others[place:]))

    first = checked([choice(n, 0 if n % 2 else n // 2 % 4) for n in range(60)], "multiple_choice")
    assert kinds(first).keys() == {"places"} and "number 1 in" in first.findings[0].message
    assert checked([choice(n, n % 4) for n in range(60)], "multiple_choice").findings == ()


def test_an_empty_reply_that_passes() -> None:
    items = [
        Item("open", "Anything?", ".*", metric="regex"),
        Item("maybe", "Some letters?", "[a-z]*", metric="regex"),
    ]
    found = checked([*sound(), *items, Item("some", "Something?", ".+", metric="regex")])
    assert kinds(found) == {"silence": ("open", "maybe")}


def test_few_clusters() -> None:
    def clustered(groups: int) -> SuiteCheck:
        return checked([Item(f"i{n}", f"Q {n}?", f"a {n}", cluster=f"c{n % groups}") for n in range(60)])

    assert "few-clusters" not in kinds(clustered(20))
    found = clustered(19)
    assert "stand in 19 clusters" in found.findings[0].message
    assert found.skills[0].groups == 19


def test_power_is_that_of_the_guard() -> None:
    found = checked(
        [*sound(120), *(Item(f"p{n}", f"P {n}?", f"b {n}", "p", False) for n in range(40))], limit=0.1
    )
    assert found.power is not None
    assert (found.power.n, found.power.needed) == (120, needed_items(0.1))
    assert found.power.passing == tuple(
        (loss, probability_of_passing(120, loss, 0.1)) for loss in (0.0, 0.05, 0.1, 0.2)
    )
    assert "NOT ENOUGH" in found.power.sentences()[0]
    protected = checked([Item(f"p{n}", f"P {n}?", f"b {n}", "p", False) for n in range(40)])
    assert protected.power is not None and protected.power.passing == ()
    assert "nothing to judge" in protected.power.sentences()[0]
    for limit in (0.0, 0.5, -1.0):
        with pytest.raises(InputError, match="a guard's limit"):
            checked(sound(), limit=limit)
    assert checked(sound(), "token_f1").power is None


def test_another_suite_of_the_same_name_in_the_store(store: Registry) -> None:
    suite, other = Suite("s", tuple(sound())), Suite("s", tuple(sound(40)))
    assert check(suite, store=store).findings == ()
    store.put_suite("s", other.digest, other.to_jsonl(), metric=other.metric, skills=other.skill_summary())
    (finding,) = check(suite, store=store).findings
    assert finding.kind == "other-digest" and "with 40 items, this is" in finding.message
    assert check(other, store=store).findings == ()


def test_what_a_suite_says_is_made_printable() -> None:
    found = checked(
        [*sound(), Item("a\x1b[31m", "Q? Answer: x", "x"), Item("b", "P?", "y", skill="e\x1b[2J")]
    )
    assert all("\x1b" not in f.sentence() for f in found.findings)
    assert "\\x1b[31m" in found.errors[0].sentence()


def test_ten_thousand_items_against_twenty_thousand_rows_take_no_quadratic_time() -> None:
    rng = Random(1)

    def texts(n: int) -> list[str]:
        return [" ".join(rng.choices(WORDS, k=20)) for _ in range(n)]

    def seconds(n: int) -> float:
        items = [Item(f"i{k}", text, WORDS[k % 2000]) for k, text in enumerate(texts(n))]
        rows = Training("rows", tuple(texts(2 * n)))
        start = time.process_time()
        checked(items, training=[rows])
        return time.process_time() - start

    small, large = seconds(1000), seconds(10_000)
    assert large < 30 * small  # ten times the items; quadratic would be a hundred times
