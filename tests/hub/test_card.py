"""The model card: what it says, and that nothing said by others can say more than its words."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hub_fakes import make_adapter
from markdown_it import MarkdownIt

from inlay.evals.forgetting import ForgettingReport, Skill
from inlay.evals.statistics import Paired
from inlay.hub import card, record
from inlay.hub.licences import IDENTIFIERS, identifier
from inlay.registry import BaseRef, EvalRecord, Registry, digest_of, digest_of_json

NASTY = (
    "a|b\n# heading\n| c |<script>alert(1)</script> [x](http://evil) `code` **bold** "
    "![i](u) \\| &lt; {{ 7*7 }} \x1b[2J"
)
QUIET = "Which queue handles this message?"


def report(skill: str) -> ForgettingReport:
    counts = Paired(n=40, lost=6, gained=1, both=30)
    skills = (
        Skill(skill, True, counts, counts.p_value, counts.p_value),
        Skill("sums", False, Paired(20, 0, 0, 20), 1.0, 1.0),
    )
    return ForgettingReport(
        "legal@v1", "sha256:" + "0" * 64, ("general",), counts, Paired(20, 0, 0, 20), skills
    )


def put_scores(store: Registry, ref: str) -> None:
    """The version 8 of 10 right, the base 3 of 10; two lost, seven gained."""
    items = "".join(
        json.dumps({"id": str(i), "prompt": QUIET, "answer": "!"}) + "\n" for i in range(10)
    ).encode()
    store.put_suite("team/queue", digest_of(items), items, metric="exact_match/1", skills={})
    version = store.resolve(ref)
    mine = (True,) * 7 + (False, False) + (True,)
    base = (False,) * 7 + (True, True) + (True,)
    for subject, outcomes in (("base", base), (version.digest, mine)):
        score = sum(outcomes) / 10
        store.put_eval(
            EvalRecord(
                subject=subject,
                base_weights=version.base.weights,
                base_prompt=version.base.prompt,
                suite=digest_of(items),
                suite_name="team/queue",
                metric="exact_match/1",
                protocol=digest_of_json({}),
                protocol_detail={},
                score=score,
                n=10,
                low=score - 0.1,
                high=score + 0.1,
                outcomes=outcomes,
            )
        )


def composed(store: Registry, ref: str) -> dict[str, str]:
    """What a push would send, as texts."""
    from inlay.hub.pushing import _composed

    version: Any = store.resolve(ref)
    files = _composed(version, store, "acme/legal", version.path)
    found = {n: (f if isinstance(f, bytes) else f.read_bytes()) for n, f in files.items()}
    return {n: data.decode() for n, data in found.items() if not n.endswith(".safetensors")}


def parsed(text: str) -> tuple[Any, str]:
    """(the front matter as the hub's own class reads it, the body as HTML)."""
    from huggingface_hub import ModelCard

    read = ModelCard(text)
    return read.data, MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(read.text)


def tables(page: str) -> list[list[list[str]]]:
    """Every table of the page as rows of cells' texts."""
    found = []
    for table in re.findall(r"<table>(.*?)</table>", page, re.S):
        rows = re.findall(r"<tr>(.*?)</tr>", table, re.S)
        cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in rows]
        found.append([[html.unescape(re.sub(r"<[^>]+>", "", c)) for c in row] for row in cells])
    return found


@pytest.fixture
def told(store: Registry, small: Path, tmp_path: Path) -> Registry:
    """legal@v1, about which everything is told, scored and measured."""
    own = b"---\nlicense: cc-by-4.0\nbase_model: org/base\n---\n# Mine\n"
    dataset = {"name": NASTY, "rows": 7, "digest": "sha256:" + "ab" * 32}
    store.add(
        "legal",
        make_adapter(tmp_path / "a", more={"README.md": own}),
        base=small,
        why=NASTY,
        owner=NASTY[:80],
        run={"dataset": dataset, "examples": [QUIET]},
    )
    store.describe("legal", description=NASTY[:200])
    put_scores(store, "legal@v1")
    full = report(NASTY).to_dict()
    flip = {"suite": "s", "id": "1", "skill": "k", "held_out": True, "expected": "!", "model_answer": None}
    store.put_report("legal@v1", "forgetting", full | {"flips": [flip | {"prompt": QUIET}]})
    return store


def test_the_front_matter_is_read_by_the_hubs_own_class(told: Registry) -> None:
    data, _ = parsed(composed(told, "legal@v1")["README.md"])
    assert (data.license, data.library_name, data.pipeline_tag) == ("cc-by-4.0", "peft", "text-generation")
    assert data.base_model == "org/base"
    assert data.tags == ["inlay", "lora"]
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == (
        "team/queue",
        "exact_match",
        0.8,
    )
    assert result.metric_name == "exact_match/1, n=10, 95% interval 0.7000 to 0.9000"


def test_no_table_breaks_and_nothing_from_outside_is_markup(told: Registry) -> None:
    readme = composed(told, "legal@v1")["README.md"]
    _, page = parsed(readme)
    for table in tables(page):
        assert {len(row) for row in table} == {len(table[0])}, table
    headings = re.findall(r"<h(\d)>(.*?)</h\1>", page)
    assert [text for _, text in headings] == [
        "legal",
        "What it was trained on",
        "Scores",
        "What it forgot",
        "How to use it",
        "How to verify it",
        "How to roll it back",
    ]
    assert "<script" not in page and "<img" not in page and "<strong>" not in page and "evil" in page
    assert set(re.findall(r'href="([^"]*)"', page)) == {"https://huggingface.co/org/base", "ORIGINAL_CARD.md"}
    assert "\x1b" not in readme, "no control character"
    facts = {row[0]: row[1] for row in tables(page)[0]}
    # Read back, the words are the words, on one line.
    expected = " ".join(NASTY.split()).replace("\x1b", r"\x1b")
    assert facts["why"] == expected
    assert tables(page)[2][3][0] == expected, "the skill of the forgetting table"


def test_scores_stand_beside_the_bases_with_a_paired_difference(told: Registry) -> None:
    _, page = parsed(composed(told, "legal@v1")["README.md"])
    _, row = tables(page)[1]
    paired = Paired(n=10, lost=2, gained=7, both=1)
    low, high = (100 * bound for bound in paired.interval)
    assert row == [
        "team/queue",
        "exact_match/1",
        "10",
        "80.0% (70.0 to 90.0)",
        "30.0% (20.0 to 40.0)",
        f"+50.0 ({low:+.1f} to {high:+.1f})",
    ]


def test_forgetting_is_told_by_skill_with_estimate_and_bound(told: Registry) -> None:
    _, page = parsed(composed(told, "legal@v1")["README.md"])
    rows = tables(page)[2]
    assert [row[0] for row in rows[1:3]] == ["all held-out skills", "all protected skills"]
    counts = Paired(n=40, lost=6, gained=1, both=30)
    low, high = (100 * bound for bound in counts.loss_interval)
    lost = f"12.5 ({low:.1f} to {high:.1f})"
    assert rows[1][1:] == ["held out", "40", "90.0%", "77.5%", lost, f"{100 * counts.loss_upper:.1f}"]
    assert rows[2][1:4] == ["protected", "20", "100.0%"]
    assert [row[1] for row in rows[3:]] == ["held out", "protected"]


def test_no_row_prompt_or_path_leaves(told: Registry, tmp_path: Path) -> None:
    files = composed(told, "legal@v1")
    for name, text in files.items():
        assert QUIET not in text, name
        assert str(tmp_path) not in text, name
    sent = json.loads(files["inlay.json"])
    assert (sent["ref"], sent["kind"]) == ("legal@v1", "version")
    assert sent["digest"] == told.resolve("legal@v1").digest == digest_of_json(sent["manifest"])
    assert sent["evals"][0]["score"] == 0.8 and "outcomes" not in sent["evals"][0]
    assert sent["forgetting"]["held_out"] == {"n": 40, "lost": 6, "gained": 1, "both": 30}
    assert "flips" not in sent["forgetting"]


def test_files_and_the_way_back_are_named(told: Registry) -> None:
    files = composed(told, "legal@v1")
    version: Any = told.resolve("legal@v1")
    _, page = parsed(files["README.md"])
    listed = {row[0]: (row[1], row[2]) for row in tables(page)[3][1:]}
    for path in version.path.iterdir():
        assert listed[path.name] == (str(path.stat().st_size), digest_of(path.read_bytes()))
    assert "inlay rollback legal@prod --why" in files["README.md"]
    assert files["ORIGINAL_CARD.md"].endswith("# Mine\n")


def test_nothing_measured_is_said_so(store: Registry, small: Path, tmp_path: Path) -> None:
    store.add("bare", make_adapter(tmp_path / "b"), base=small)
    files = composed(store, "bare@v1")
    data, page = parsed(files["README.md"])
    assert "None were measured." in page and "Not measured." in page and "Not recorded." in page
    assert data.eval_results is None and data.license is None and data.base_model is None
    assert "ORIGINAL_CARD.md" not in files
    assert 'from_pretrained("path/to/the/base")' in files["README.md"], "a folder's name is no hub id"


@pytest.mark.parametrize(
    ("given", "known"),
    [
        ("mit", "mit"),
        ("MIT License", "mit"),
        ("Apache-2.0", "apache-2.0"),
        ("Apache License", None),
        ("ours", None),
    ],
)
def test_licences_the_hub_knows(given: str, known: str | None) -> None:
    assert identifier(given) == known
    assert known is None or known in IDENTIFIERS


def test_a_licence_the_hub_does_not_know_has_a_name(store: Registry, small: Path, tmp_path: Path) -> None:
    own = b"---\nlicense: other\nlicense_name: ours-1.0\nlicense_link: LICENSE\n---\n"
    store.add("ours", make_adapter(tmp_path / "b", more={"README.md": own}), base=small)
    data, _ = parsed(composed(store, "ours@v1")["README.md"])
    assert (data.license, data.license_name, data.license_link) == ("other", "ours-1.0", "LICENSE")
    more = {"LICENSE": b"The ACME: licence\n\nwords"}
    store.add("odd", make_adapter(tmp_path / "c", more=more), base=small)
    data, _ = parsed(composed(store, "odd@v1")["README.md"])
    assert (data.license, data.license_name) == ("other", "The ACME: licence")


@pytest.mark.parametrize(
    ("source", "configured", "said", "expected"),
    [
        ("org/base", None, None, "org/base"),
        ("gpt2", None, None, "gpt2"),
        ("/srv/models/base", "/srv/models/base", None, None),
        ("/srv/models/base", "org/base", None, "org/base"),
        ("/srv/models/base", "models", "org/base", "org/base"),
        ("/srv/models/base", "../base", ["org/a", "org/b"], None),
    ],
)
def test_a_base_is_named_only_by_a_hub_id(
    source: str, configured: Any, said: Any, expected: str | None
) -> None:
    base = BaseRef("sha256:" + "0" * 64, "sha256:" + "1" * 64, "base", source=source)
    assert card.base_repo({"base_model_name_or_path": configured}, base, said) == expected
    assert ("repo" in record.base_dict(base)) == (source == "org/base")


def test_the_same_gives_the_same_bytes(told: Registry) -> None:
    assert composed(told, "legal@v1") == composed(told, "legal@v1")


@pytest.mark.parametrize("text", ["| x |", "- a", "1. b", "&amp;", "a\u2028b", "x" * 1000, "\ud800", ""])
def test_any_text_is_one_line_of_plain_words(text: str) -> None:
    made = card.escaped(text)
    assert "\n" not in made and len(html.unescape(made)) <= card.LONGEST
    made.encode()
    page = MarkdownIt("commonmark").enable("table").render(f"| a | b |\n|---|---|\n| {made} | z |\n")
    (_, row), *_ = tables(page)
    assert len(row) == 2 and row[1] == "z"
    if len(text) < 100 and text.isascii():
        assert row[0] == text
