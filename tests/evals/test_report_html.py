"""The page: complete, self-contained, and nothing a model wrote is markup in it."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from evals_fakes import result_of, suite_of
from report_fakes import EVIL, full_report

from inlay.errors import InputError
from inlay.evals.drift import Drift
from inlay.evals.forgetting import ForgettingReport, compare
from inlay.evals.report_html import Estimate, Subject, write_report
from inlay.evals.report_plots import heatmap
from inlay.evals.report_tables import tables


class Page(HTMLParser):
    """Tags and visible text; fails on what is left open."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def report_of(lost: set[int], label: str, *, n: int = 120) -> ForgettingReport:
    suite, target = suite_of(n), suite_of(80, name="acme-support")
    base = result_of(suite, [True] * n)
    model = result_of(
        suite, [k not in lost for k in range(n)], subject=label, answers={f"i{k}": EVIL for k in range(n)}
    )
    gained = result_of(target, [k < 76 for k in range(80)], subject=label)
    drift = Drift(40, 500, 0.1, 0.2, 0.05, 0.01)
    return compare(base, model, targets=[(result_of(target, [False] * 80), gained)], drift=drift)


@pytest.fixture(scope="module")
def page_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    good, bad = report_of({1}, "acme@v1"), report_of(set(range(90)), f"acme@v2 {EVIL}")
    path = write_report(
        tmp_path_factory.mktemp("report") / "made" / "report.html",
        f"Demo {EVIL}",
        [
            Subject.base(good),
            Subject.of(good, kind="variant"),
            Subject.of(bad, kind="refused", note=f"refused: {EVIL}"),
            Subject("only a score", "adapter", learned=Estimate(0.5, 0.4, 0.6)),
        ],
        intro=[f"An intro {EVIL}"],
        journal=["1. promoted", f"2. refused {EVIL}"],
        allowed=0.05,
    )
    return path.read_text(encoding="utf-8")


def test_nothing_written_by_a_model_is_markup(page_text: str) -> None:
    page = Page(page_text)
    assert not {"script", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    assert all(not key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert page_text.count("&lt;script&gt;document.title=&#39;owned&#39;&lt;/script&gt;") >= 5
    assert "<script" not in page_text
    assert "<script>document.title='owned'</script>" in page.text  # it is shown, as text


def test_the_page_fetches_nothing(page_text: str) -> None:
    page = Page(page_text)
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(sources) == 3 and all(str(s).startswith("data:image/svg+xml;base64,") for s in sources)
    assert not {"link", "base"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?://|url\(", page_text)
    assert any(attrs.get("http-equiv") == "Content-Security-Policy" for _, attrs in page.tags)


def test_it_is_made_for_phones_and_paper(page_text: str) -> None:
    page = Page(page_text)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    assert "@media print" in page_text
    assert not re.search(r"[^-]width:\s*\d+px", page_text)
    assert sum("alt" in attrs for tag, attrs in page.tags if tag == "img") == 3


def test_plots_are_whole_and_inert(page_text: str) -> None:
    for encoded in re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", page_text):
        svg = base64.b64decode(encoded)
        root = ElementTree.fromstring(svg)
        names = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert "script" not in names and "foreignObject" not in names
        assert "path" in names


def test_it_says_the_figures(page_text: str) -> None:
    text = Page(page_text).text
    assert "acme@v1 " in text and "(verdict)" in text
    assert "95.0 [87.8,\u00a098.0]" in text  # 76 of 80, Wilson
    assert "points lost [95%]" in text and "allowance of 5.0 points" in text
    assert "12 of 90 lost items shown" in text
    assert "KL to the base 0.1000 nats" in text
    assert "1. promoted" in text


def test_the_same_data_gives_the_same_bytes(tmp_path: Path) -> None:
    subjects = [Subject.of(report_of({1, 2}, "acme@v1"))]
    one = write_report(tmp_path / "1.html", "t", subjects).read_bytes()
    assert one == write_report(tmp_path / "2.html", "t", subjects).read_bytes()


def test_a_page_without_anything_to_plot(tmp_path: Path) -> None:
    text = write_report(tmp_path / "r.html", "empty", []).read_text()
    assert not [tag for tag, _ in Page(text).tags if tag == "img"]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InputError, match=r"must be one of base, adapter, .*'champion'"):
        Subject("x", "champion")


def test_subjects_follow_from_the_report() -> None:
    report = report_of({0, 4, 8}, "acme@v1")
    subject, base = Subject.of(report), Subject.base(report)
    assert subject.label == "acme@v1" and subject.lost is not None and subject.learned is not None
    assert (subject.lost.value, subject.lost.low) == (report.lost, report.interval[0])
    assert subject.learned.value == 0.95 and base.learned is not None and base.learned.value == 0
    scores = {bar.name: bar.score.value for bar in subject.skills}
    assert scores == {"skill0": 0.9, "skill1": 1.0, "skill2": 1.0, "skill3": 1.0}


def test_everything_measured_is_on_the_page(tmp_path: Path) -> None:
    report = full_report()
    page_text = write_report(tmp_path / "r.html", "t", [Subject.of(report)]).read_text(encoding="utf-8")
    page = Page(page_text)
    headings = [tag for tag, _ in page.tags if tag == "h3"]
    assert len(headings) == len(tables(report)) + 2  # and the flips, both ways
    for table in tables(report):
        assert table.title in page.text
    assert "the <mark>red</mark> car" in page_text and "the <mark>blue</mark> car" in page_text
    assert (
        "<mark>a</mark> red <mark>boat</mark>" in page_text
    )  # what the base said to an item that was gained
    assert "5 of 49 lost items shown" in page.text and "99,200 more characters are not shown" in page.text
    assert "(answer not kept)" in page.text and "(nothing)" in page.text


def test_what_steers_the_eye_is_shown_instead_of_done(tmp_path: Path) -> None:
    text = write_report(tmp_path / "r.html", EVIL, [Subject.of(full_report())]).read_text(encoding="utf-8")
    assert not any(c in text for c in "\x1b\x07\u202e\u202c\ud800")
    assert "\\u202egnp\\u202c \\x1b[31mred\\x07 \\ud800" in text
    zero_width = "می\u200cخواهم"  # a word that needs its joiner
    text = write_report(tmp_path / "r.html", zero_width, []).read_text(encoding="utf-8")
    assert f"<h1>{zero_width}</h1>" in text


def test_a_heatmap_says_its_figures_and_its_gaps() -> None:
    address = heatmap(["v1", EVIL], ["copy", "sort"], [[0.5, None], [1.0, 0.004]], "scores")
    svg = ElementTree.fromstring(base64.b64decode(address.partition(",")[2]))
    names = {element.tag.rpartition("}")[2] for element in svg.iter()}
    assert not {"script", "foreignObject", "image"} & names
    with pytest.raises(InputError, match=r"one value a cell: 1 rows of 2, got \[1\]"):
        heatmap(["v1"], ["a", "b"], [[0.5]], "t")
    with pytest.raises(InputError, match="one value a cell"):
        heatmap([], [], [], "t")
