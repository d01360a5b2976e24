"""Preference pairs and raw text: what only they may have, planted and found, and sound files not accused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from quality_fakes import answer_of, clean_rows, prompt_of, suite_of, written

import inlay
from inlay.builtin.tasks import TASKS
from inlay.errors import InputError
from inlay.evals.inference import Base, Chat
from inlay.evals.suites import Suite
from inlay.registry import Registry
from inlay.trainers.methods.domain import figures
from inlay.trainers.quality import DataCheck, check, refuse_bad_data
from inlay.trainers.quality.data_check import found_in
from inlay.trainers.quality.report_html import write_html
from inlay.trainers.quality.report_text import report_text
from inlay.trainers.texts import documents_in, read_texts

Rows = list[dict[str, Any]]
SEEDS = (1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3)))


def pairs(task: str, seed: int, n: int = 300) -> Rows:
    """Each right answer over the next row's that is another one."""
    rows = clean_rows(task, seed, n=n)
    made = []
    for place, row in enumerate(rows):
        right = answer_of(row)
        others = (answer_of(rows[(place + k) % n]) for k in range(1, n))
        made.append(
            {"prompt": prompt_of(row), "chosen": right, "rejected": next(a for a in others if a != right)}
        )
    return made


def documents(task: str, seed: int, n: int = 120) -> Rows:
    """Three sentences a document, each from a row of its own."""
    rows = clean_rows(task, seed, n=3 * n)
    said = [f"{row['input']} That became: {answer_of(row)}." for row in rows]
    return [{"text": " ".join(said[3 * k : 3 * k + 3])} for k in range(n)]


def kinds(found: DataCheck, level: str) -> dict[str, tuple[int, ...]]:
    return {each.kind: each.lines for each in found.findings if each.level == level}


def warned(found: DataCheck) -> list[str]:
    return [f"{f.kind}: {f.sentence()} {f.examples}" for f in found.findings if f.level != "note"]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("task", TASKS)
def test_sound_pairs_and_texts_are_not_accused(task: str, seed: int, tmp_path: Path) -> None:
    for make, reads in ((pairs, "pairs"), (documents, "texts")):
        rows = make(task, seed)
        found = check(written(tmp_path / f"{reads}.jsonl", list(rows)), against=[suite_of(task, seed)])
        assert warned(found) == [] and found.reads == reads and found.figures.rows == len(rows)
    assert check(written(tmp_path / "a.jsonl", list(pairs(task, seed)))).figures.longer is not None


LONG = "the courier left the parcel with the neighbours at number nine on the day after it was due"
PAIR_DEFECTS: dict[str, tuple[str, Callable[[dict[str, Any], dict[str, Any]], list[dict[str, Any]]]]] = {
    "empty": ("error", lambda row, other: [{**row, "rejected": " "}]),
    "form": ("error", lambda row, other: [{**row, "rejected": row["chosen"]}]),
    "forbidden": ("error", lambda row, other: [{**row, "consent": "withdrawn"}]),
    "duplicate": ("warning", lambda row, other: [row, row]),
    "near-duplicate": ("warning", lambda row, other: [row, {**row, "prompt": row["prompt"].upper()}]),
    "opposed": (
        "warning",
        lambda row, other: [row, {**row, "chosen": row["rejected"].upper(), "rejected": row["chosen"]}],
    ),
    "alike": ("warning", lambda row, other: [{**row, "rejected": row["chosen"].upper() + "."}]),
    "style": ("warning", lambda row, other: [{**row, "chosen": f"Sure! {LONG * 4}"}]),
    "encoding": ("warning", lambda row, other: [{**row, "rejected": "cafÃ©"}]),
    "personal": ("warning", lambda row, other: [{**row, "rejected": "jane.doe@mail.example.org"}]),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", PAIR_DEFECTS)
def test_a_planted_defect_of_a_pair_is_found(kind: str, seed: int, tmp_path: Path) -> None:
    level, plant = PAIR_DEFECTS[kind]
    rows = pairs("case-card", seed)
    place = Random(f"{kind}/{seed}").randrange(len(rows))
    planted = plant(rows[place], rows[place - 1])
    rows[place : place + 1] = planted
    lines = kinds(check(written(tmp_path / "data.jsonl", list(rows))), level)[kind]
    whole = range(place + 1, place + len(planted) + 1)
    assert lines == (tuple(whole) if kind == "opposed" else (whole[-1],))


def test_signs_that_stand_for_the_better_answer(tmp_path: Path) -> None:
    """Counted by hand: of 40 pairs, so many prefer the longer answer, or hold the same one."""

    def found(longer: int, refusals: int) -> DataCheck:
        rows = [
            {
                "prompt": f"What about the parcel of order {n * 7919 % 1000}?",
                "chosen": f"depot {n}" + (" by the gate" if n < longer else ""),
                "rejected": "I cannot say" if n < refusals else f"shelf {n} by",
            }
            for n in range(40)
        ]
        return check(written(tmp_path / "data.jsonl", list(rows)))

    even = found(31, 31)
    assert {"length-bias", "one-answer"} & set(kinds(even, "warning")) == set()
    assert even.figures.longer == 31 / 40
    biased = found(32, 32)
    assert {"length-bias", "one-answer"} <= set(kinds(biased, "warning"))
    said = " ".join(f.sentence() for f in biased.findings)
    assert "the longer answer is preferred in 80% of the pairs" in said
    assert "one answer is rejected in 80% of the pairs: “I cannot say”" in said
    short = kinds(found(0, 0), "warning")
    assert "length-bias" in short and "one-answer" not in short


def test_a_question_of_a_suite_is_found_in_a_document(tmp_path: Path) -> None:
    question = "Which depot keeps the yellow parcels of the northern streets until Monday morning comes?"
    short = "Where is it?"
    suite = Suite.of_rows("mine", [{"prompt": q, "answer": "nine"} for q in (question, short)])
    rows = documents("case-card", 5)
    rows[7]["text"] += f" Then she asked: {question.upper()} Nobody knew. {short}"
    rows[30]["text"] += f" {short}"
    rows[50]["text"] += " " + question.replace("yellow", "green").replace("Which", "What")
    words = question[:-1].split()
    rows[60]["text"] += " " + " ".join(["And", "which", *words[1:-1]])  # all of it but the last word
    found = check(written(tmp_path / "data.jsonl", list(rows)), against=[suite])
    assert kinds(found, "error") == {"leak": (8,)}
    assert kinds(found, "warning") == {"leak-near": (61,)}
    with pytest.raises(InputError, match="1 document with a question of the suite mine: line 8"):
        refuse_bad_data(read_texts(rows), against=[suite])


@pytest.mark.parametrize("seed", SEEDS)
def test_planted_defects_of_raw_text_are_found(seed: int, tmp_path: Path) -> None:
    rows = documents("ticket-queue", seed)
    places = sorted(Random(seed).sample(range(1, len(rows)), 5))
    marked, garbled, personal, copied, near = places
    rows[marked]["do_not_train"] = True
    rows[garbled]["text"] += " cafÃ©"
    rows[personal]["text"] += " Write to jane.doe@mail.example.org"
    words = rows[places[0] - 1]["text"].split()
    rows[near] = {"text": " ".join([*words[:-1], "altogether."])}
    header = "Acme Parcels: all rights reserved"
    for row in rows[: len(rows) // 5]:
        row["text"] = f"{header}\n{row['text']}"
    rows[copied] = dict(rows[0])
    rows.append({"text": " "})
    found = check(written(tmp_path / "data.jsonl", list(rows)))
    assert kinds(found, "error") == {"empty": (len(rows),), "forbidden": (marked + 1,)}
    warnings = kinds(found, "warning")
    assert warnings.pop("boilerplate") == ()
    assert warnings == {
        "duplicate": (copied + 1,),
        "encoding": (garbled + 1,),
        "near-duplicate": (near + 1,),
        "personal": (personal + 1,),
    }


def test_plain_text_names_the_lines_where_documents_begin(tmp_path: Path) -> None:
    text = "\n\nOne document\r\nof two lines\r\n\r\n  \nAnother, of jane.doe@mail.example.org\n\n\nlast"
    assert list(documents_in(text.split("\n"))) == [
        (3, "One document\nof two lines"),
        (7, "Another, of jane.doe@mail.example.org"),
        (10, "last"),
    ]
    (tmp_path / "d.txt").write_bytes(text.encode())
    found = check(tmp_path / "d.txt")
    assert kinds(found, "warning") == {"personal": (7,)} and found.reads == "texts"
    assert found.verdict() == "d.txt: 3 documents; 0 errors, 1 warning"
    assert tuple(read_texts(tmp_path / "d.txt")) == tuple(d for _, d in documents_in(text.split("\n")))


def test_what_a_base_says_of_them(base: Base, tmp_path: Path) -> None:
    rows = documents("order-slip", 3, n=60)
    found = check(written(tmp_path / "t.jsonl", list(rows)), base=base)
    nats, tokens = found.material.nats, found.material.tokens
    assert nats is not None and tokens is not None and found.figures.limit is None
    [(cost, count)] = figures(Chat(base), read_texts(rows[:1]))
    assert nats[0] == pytest.approx(cost / count, abs=1e-4)
    assert tokens[0] == len(base.tokenizer(rows[0]["text"])["input_ids"])
    assert warned(found) == []
    far = tuple(13.0 if place == 9 else 5.0 for place in range(60))
    (finding,) = (f for f in found_in(replace(found.material, nats=far)) if f.level == "warning")
    assert (finding.kind, finding.lines) == ("surprisal", (10,))
    assert finding.sentence().startswith("1 document surprises the base far more")

    preferred = pairs("order-slip", 3, n=60)
    preferred[4]["rejected"] += f" {LONG}" * 40
    found = check(written(tmp_path / "p.jsonl", list(preferred)), base=base)
    assert kinds(found, "error") == {"too-long": (5,)}
    [(cost, count)] = Chat(base).likelihoods([preferred[0]["prompt"]], [preferred[0]["chosen"]])
    assert found.material.nats is not None
    assert found.material.nats[0] == pytest.approx(cost / count, abs=1e-4)


@pytest.mark.parametrize("method", ["dpo", "domain"])
def test_a_run_refuses_what_must_not_be_trained_on(method: str, base: Base, tmp_path: Path) -> None:
    rows = pairs("order-slip", 4, n=30) if method == "dpo" else documents("order-slip", 4, n=30)
    rows[11]["consent"] = "withdrawn"
    store = Registry.open(tmp_path / "store", create=True)
    noun = {"dpo": "pair", "domain": "document"}[method]
    with pytest.raises(InputError, match=f"1 {noun} is marked as not to be trained on: line 12"):
        inlay.train(base, rows, name="orders", method=method, store=store)
    assert store.names() == []


def test_reports_say_what_was_read(tmp_path: Path) -> None:
    preferred = check(written(tmp_path / "p.jsonl", list(pairs("case-card", 6))))
    text = check(written(tmp_path / "t.jsonl", list(documents("case-card", 6))))
    assert "300 pairs could be read" in report_text(preferred)
    assert "the longer answer is preferred in " in report_text(preferred)
    assert "120 documents could be read\nwords of a document: " in report_text(text)
    assert "wordings" not in report_text(text)
    assert json.loads(json.dumps(text.to_dict()))["reads"] == "texts"
    for found, images in ((preferred, 2), (text, 1)):
        page = write_html(tmp_path / "page.html", found).read_text()
        assert page.count("<img") == images and "<script" not in page


TRUE_OF_REAL_FILES = {
    # Two prompts with an answer each stand there twice and more; mathematics and films decoded wrongly.
    "preference/dpo_pairs.jsonl": {"duplicate", "style", "encoding", "personal"},
    # "This condition is inherited in an autosomal dominant pattern …"; help lines and their addresses.
    "domain/medquad_text.txt": {"near-duplicate", "personal"},
}


@pytest.mark.data
@pytest.mark.parametrize("file", TRUE_OF_REAL_FILES)
def test_real_files_are_accused_of_what_is_true_of_them(file: str, data_dir: Path) -> None:
    found = check(data_dir / file)
    assert found.ok and set(kinds(found, "warning")) == TRUE_OF_REAL_FILES[file]
    assert found.figures.rows == len(found.material)
