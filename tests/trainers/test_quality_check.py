"""The check as a whole, and its parts against naive oracles."""

from __future__ import annotations

import itertools
import json
import re
import statistics
import time
from pathlib import Path
from random import Random

import pytest
from quality_fakes import ERRORS, WARNINGS, clean_rows, suite_of, written

from inlay.errors import InputError
from inlay.evals.contamination import normalised
from inlay.evals.inference import Base, Chat
from inlay.evals.suites import Suite
from inlay.trainers.data import read_dataset
from inlay.trainers.quality import check, refuse_bad_data
from inlay.trainers.quality.defects import DEFECTS
from inlay.trainers.quality.figures import Quantiles
from inlay.trainers.quality.material import contents, material_of
from inlay.trainers.quality.personal_data import IBAN_LENGTHS, iban, luhn, personal_data
from inlay.trainers.quality.report_html import write_html
from inlay.trainers.quality.report_text import report_text
from inlay.trainers.quality.similar import shingles, similar, similarity
from inlay.trainers.quality.spread import robust_z
from inlay.trainers.quality.wordings import effective, wordings

ROOT = Path(__file__).parents[2]
GOOD = [{"prompt": f"Where is parcel {n}?", "completion": f"In depot {n % 7}."} for n in range(40)]


def test_what_no_check_can_read(tmp_path: Path) -> None:
    for name, data, says in (
        ("absent.jsonl", None, "there is none at"),
        ("empty.jsonl", b"", "holds none"),
        ("binary.jsonl", b"\x7fELF\xff\xfe", "must be UTF-8"),
    ):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=says):
            check(tmp_path / name)
    with pytest.raises(InputError, match="is a folder"):
        check(tmp_path)


def test_all_bad_lines_are_named_and_the_others_read(tmp_path: Path) -> None:
    lines = [
        GOOD[0],
        "",
        '{"prompt": "a", ',
        "[" * 100_000,
        '{"n": ' + "1" * 5000 + "}",
        {"prompt": "\ud800", "completion": "b"},
        {"prompt": " ", "completion": "b"},
        {"prompt": "a", "completion": None},
        GOOD[1],
        {"prompt": "One\u2028line", "completion": "yes"},
    ]
    found = check(written(tmp_path / "d.jsonl", lines))
    form, empty = found.of_level("error")
    assert (form.kind, form.lines) == ("form", (3, 4, 5, 6, 8))
    assert (empty.kind, empty.lines) == ("empty", (2, 7))
    assert empty.message == "1 prompt, 1 line empty"
    assert (found.figures.lines, found.figures.rows) == (10, 3)
    assert (
        "half of a surrogate pair" in check(written(tmp_path / "e.jsonl", [lines[5]])).findings[0].examples[0]
    )


def test_line_separators_inside_strings_are_no_line_ends(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"prompt": "a\u2028b\x85c", "completion": "d"}\r\n', encoding="utf-8")
    assert read_dataset(tmp_path / "d.jsonl").examples[0].prompt == "a\u2028b\x85c"


def test_training_is_refused_on_errors_and_told_the_warnings(tmp_path: Path) -> None:
    rows = clean_rows("order-slip", 11, n=200)
    assert refuse_bad_data(read_dataset(rows), against=[suite_of("order-slip", 11)]) == ()
    doubled = refuse_bad_data(read_dataset([*rows, rows[3]]))
    assert [(f.kind, f.lines) for f in doubled] == [("duplicate", (201,))]
    rows[7]["consent"] = "withdrawn"
    with pytest.raises(InputError, match=r"1 row is marked as not to be trained on: line 8") as refused:
        refuse_bad_data(read_dataset(rows, name="orders"))
    assert "only who set the mark may take it away" in (refused.value.fix or "")
    suite = Suite.of_rows("mine", [{"prompt": GOOD[5]["prompt"], "answer": "In depot 5."}])
    with pytest.raises(InputError, match="1 prompt is in the suite mine: line 6"):
        refuse_bad_data(read_dataset(GOOD), against=[suite])


def test_five_thousand_rows_are_checked_in_two_seconds() -> None:
    data = read_dataset(clean_rows("case-card", 12, n=5000))
    start = time.process_time()
    refuse_bad_data(data)
    assert time.process_time() - start < 2.0


def test_rows_that_are_all_alike_and_hostile_texts_take_no_longer() -> None:
    row = {"prompt": "Where is the parcel that I ordered in May?", "completion": "In depot 5."}
    hostile = ["[" * 50_000, "<p " * 20_000, "**" * 30_000, "1 " * 30_000, "a." * 30_000 + "@", ":" * 50_000]
    rows = [row] * 5000 + [{"prompt": f"Look: {text}", "completion": f"{text} Well."} for text in hostile]
    start = time.process_time()
    [doubled] = [f for f in refuse_bad_data(read_dataset(rows)) if f.kind == "duplicate"]
    assert time.process_time() - start < 4.0
    assert len(doubled.lines) == 4999


def test_the_same_file_gives_the_same_findings(tmp_path: Path) -> None:
    for name in ("duplicate but for a typo", "national id"):
        lines = WARNINGS[name][1](Random(5), 3).lines
        file = written(tmp_path / "d.jsonl", lines)
        assert check(file).to_dict() == check(file).to_dict()


def test_what_the_base_measures(base: Base, tmp_path: Path) -> None:
    rows = clean_rows("add", 13, n=60)
    rows[9]["prompt"] = "What is 2 plus 2? " * 200
    said: list[str] = []
    found = check(written(tmp_path / "d.jsonl", rows), base=base, say=lambda what, done, n: said.append(what))
    material = found.material
    assert material.nats is not None and material.tokens is not None and material.limit == 512
    [costs] = Chat(base).likelihoods([rows[0]["prompt"]], [rows[0]["completion"]])
    assert material.nats[0] == pytest.approx(costs[0] / costs[1], abs=1e-4)
    ids = base.tokenizer.apply_chat_template(
        [
            {"role": "user", "content": rows[0]["prompt"]},
            {"role": "assistant", "content": rows[0]["completion"]},
        ],
        tokenize=True,
        return_dict=False,
    )
    assert abs(material.tokens[0] - len(ids)) <= 1  # without what follows the end of the turn
    assert material.nats[9] != material.nats[9]
    assert [(f.kind, f.lines) for f in found.of_level("error")] == [("too-long", (10,))]
    assert len(set(said)) == 2
    assert check(tmp_path / "d.jsonl", base=base, surprisal=False).figures.nats is None
    short = check(tmp_path / "d.jsonl", base=base, surprisal=False, max_length=5)
    assert len(short.of_level("error")[0].lines) == 60


# The parts.


def test_similar_texts_are_those_that_a_loop_over_all_pairs_finds() -> None:
    rng = Random(3)
    words = ["parcel", "depot", "yellow", "courier", "morning", "signature", "window", "street", "garden"]
    texts = [" ".join(rng.choices(words, k=12)) for _ in range(120)]
    texts += [text + " today" for text in texts[:20]]
    runs = [shingles(text) for text in texts]

    def naive(a: str, b: str) -> float:
        one, two = (
            {padded[k : k + 5] for k in range(len(padded) - 4)}
            for padded in (f" {normalised(text)} " for text in (a, b))
        )
        return len(one & two) / len(one | two)

    found = {(i, j): alike for i, j, alike in similar(runs)}
    for (i, j), alike in found.items():
        assert alike == pytest.approx(naive(texts[i], texts[j])) and alike >= 0.7
    must = {
        (i, j) for i, j in itertools.combinations(range(len(texts)), 2) if naive(texts[i], texts[j]) >= 0.85
    }
    assert {(n, 120 + n) for n in range(20)} <= must and must <= set(found)
    across = {(i, j) for i, j, _ in similar(runs, first=120)}
    assert across == {(i, j) for i, j in found if i < 120 <= j}
    assert similarity(frozenset(), frozenset()) == 0.0


def test_robust_z_is_by_median_and_mad() -> None:
    values = [1.0, 2.0, 2.0, 3.0, 4.0, 50.0]
    middle = statistics.median(values)
    spread = 1.4826 * statistics.median(abs(v - middle) for v in values)
    assert robust_z(values, 0.1) == pytest.approx([(v - middle) / spread for v in values])
    assert robust_z([2.0, 2.0, 3.0], 0.5) == [0.0, 0.0, 2.0]
    assert robust_z([], 1.0) == []


def test_quantiles_are_by_nearest_rank() -> None:
    assert Quantiles.of([float(n) for n in range(1, 101)]) == Quantiles(1.0, 50.0, 95.0, 100.0)
    assert Quantiles.of([float("nan"), 3.0]) == Quantiles(3.0, 3.0, 3.0, 3.0)
    assert Quantiles.of([float("nan")]) is None


def test_check_digits_accept_one_in_ten_and_one_in_97() -> None:
    for number in ("4111111111111111", "5500000000000004", "378282246310005"):
        assert luhn(number)
        wrong = [number[:7] + str(d) + number[8:] for d in range(10) if str(d) != number[7]]
        assert not any(luhn(other) for other in wrong)
    for text in ("DE89370400440532013000", "GB82WEST12345698765432", "FR1420041010050500013M02606"):
        assert iban(text) and len(text) == IBAN_LENGTHS[text[:2]]
        assert not iban(text[:-1] + ("0" if text[-1] != "0" else "1")) and not iban(text[:-1])


@pytest.mark.parametrize(
    ("kind", "text", "wrong"),
    [
        ("e-mail addresses", "jane.doe@mail.example.org", "jane.doe@mail"),
        ("card numbers", "4111 1111 1111 1111", "4111 1111 1111 1112"),
        ("IBANs", "DE89 3704 0044 0532 0130 00", "DE88 3704 0044 0532 0130 00"),
        ("network addresses", "93.184.216.34", "93.184.216.340"),
        ("network addresses", "2001:db8:85a3:0:0:8a2e:370:7334", "12:30:45"),
        ("phone numbers", "+49 30 901820", "+49 30 90"),
        ("phone numbers", "(212) 555-0142", "2125 550142"),
        ("national ids (ES)", "12345678Z", "12345678A"),
        ("national ids (ES)", "X1234567L", "X1234567M"),
        ("national ids (IT)", "RSSMRA85T10A562S", "RSSMRA85T10A562T"),
        ("national ids (FR)", "1 84 12 76 451 089 46", "1 84 12 76 451 089 47"),
        ("national ids (BR)", "529.982.247-25", "529.982.247-26"),
        ("national ids (CN)", "11010519491231002X", "110105194912310021"),
        ("national ids (PL)", "44051401359", "44051401358"),
        ("national ids (SE)", "811228-9874", "811228-9873"),
        ("national ids (GB, health)", "943 476 5919", "943 476 5918"),
        ("national ids (IN)", "2341 2341 2346", "2341 2341 2347"),
    ],
)
def test_personal_data_by_form_and_check(kind: str, text: str, wrong: str) -> None:
    assert list(personal_data(f"It is {text}, she said")) == [(kind, text)]
    assert kind not in dict(personal_data(f"It is {wrong}, she said"))


def test_ordinary_numbers_are_not_personal() -> None:
    for text in (
        "Add 17 and 2,450,000 and 3.14159, then 10 - 20 - 30 - 40.",
        "Version 10.2.3.4 of 2024-11-29 at 12:30:45, order 20241129-17",
        "There are 450 000 people, 17 000/5 = 3 400 a year.",
        "300 000 + 150 000 = 450 000; 0.5 * 0.25 = 0.125; std::vector<int>::size",
        "ISBN 978-3-16-148410-0, batch 1234567890123",
    ):
        assert list(personal_data(text)) == [], text


def test_wordings_and_contents() -> None:
    texts = [f"Name the queue.\nMessage {n}" for n in range(30)] + [
        f"Row {n}\nWhich queue?" for n in range(30)
    ]
    assert contents(texts) == [f"Message {n}" for n in range(30)] + [f"Row {n}" for n in range(30)]
    material = material_of(read_dataset([{"prompt": text, "completion": "x"} for text in texts]))
    assert wordings(material) == {"Name the queue.": 30, "Which queue?": 30}
    assert effective(wordings(material)) == pytest.approx(2.0)
    free = material_of(
        read_dataset([{"prompt": f"What is {n} plus {n}?", "completion": "x"} for n in range(9)])
    )
    assert wordings(free) == {"what is # plus …": 9}


def test_every_kind_of_defect_is_documented() -> None:
    assert all(len(kinds) == len(set(kinds)) for kinds in DEFECTS.values())
    assert {reads: len(kinds) for reads, kinds in DEFECTS.items()} == {"rows": 16, "pairs": 17, "texts": 11}
    source = "".join(path.read_text() for path in (ROOT / "inlay/trainers/quality/defects").glob("*.py"))
    kinds = set(re.findall(r'"(?:error|warning|note)",\s*"([a-z-]+)"', source)) | {
        "no-licence",
        "no-origin",
        "no-consent",
    }
    documented = (ROOT / "docs/data.md").read_text()
    assert len(kinds) >= 20 and {kind for kind in kinds if f"| {kind} |" not in documented} == set()


# The reports.


def spoilt(folder: Path) -> Path:
    lines = ERRORS["marked"][1](Random(2), 3).lines
    evil = "<script>alert(1)</script> \u202e j.doe@mail.example.org"
    return written(folder / "data.jsonl", [*lines, {"prompt": evil, "completion": "\x1b[31m" + evil}, "{"])


@pytest.mark.parametrize("width", [40, 80])
def test_words_fit_the_terminal(width: int, tmp_path: Path) -> None:
    found = check(spoilt(tmp_path))
    text = report_text(found, width=width)
    assert max(map(len, text.splitlines())) <= width
    flat = " ".join(text.split())
    assert flat.startswith("data.jsonl: 502 lines; 2 errors, ")
    assert "error (forbidden): 3 rows are marked as not to be trained on: lines " in flat
    assert "\x1b" not in text and "\u202e" not in text and "j.doe" not in text


def test_the_page_is_complete_and_safe(base: Base, tmp_path: Path) -> None:
    found = check(spoilt(tmp_path), base=base)
    page = write_html(tmp_path / "pages" / "data.html", found).read_text()
    assert page == write_html(tmp_path / "again.html", found).read_text()
    assert "<script" not in page and "http://" not in page and "https://" not in page and "\u202e" not in page
    assert page.count('src="data:image/svg+xml;base64,') == page.count("<img") == 4
    for finding in found.findings:
        assert f"{finding.level} ({finding.kind}):" in page


def test_json_is_plain(base: Base, tmp_path: Path) -> None:
    told = json.loads(json.dumps(check(spoilt(tmp_path), base=base).to_dict()))
    assert told["ok"] is False and told["base"] and "material" not in told
    assert told["figures"]["rows"] == 501 and told["figures"]["lines"] == 502
    assert {"level", "kind", "message", "fix", "lines", "examples"} == set(told["findings"][0])
