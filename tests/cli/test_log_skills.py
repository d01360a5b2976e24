"""inlay log NAME --skills: the text, the object, the page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from line_fakes import grown
from registry_fakes import score

import inlay
from inlay.cli import run
from inlay.evals.line_html import ROWS, heatmaps, write_line
from inlay.evals.lines import line
from inlay.evals.statistics import tango_interval
from inlay.evals.suites import Suite

VERSIONS = [
    {"general-v1": [97, 90], "legal-test": [60]},
    {"general-v1": [41, 86], "legal-test": [88]},
    {"legal-test": [89]},
]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("skills")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INLAY_CACHE", str(folder / "cache"))
        with grown(folder, base={"general-v1": [97, 91], "legal-test": [3]}, versions=VERSIONS) as registry:
            registry.yank("legal@v2", why="bad")
    yield folder / "store"


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run(["log", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_terminal_says_where_a_skill_was_lost(
    told: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = said(capsys, "legal", "--skills", "--store", str(told))
    assert code == 0 and err == "" and max(map(len, out.splitlines())) <= 80
    assert "skill0: lost at v2, 97 -> 41, p < 0.001" in out and "legal-test: learnt at v1, 3 -> 60" in out
    row = next(text for text in out.splitlines() if text.startswith("skill0 "))
    assert row.split() == ["skill0", "97", "97", "41▼", "·", "██▄·"]
    assert "inlay eval legal@v3 --suite general-v1" in out and "yanked" in out


def test_the_object_is_the_lines(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "legal", "--skills", "--json", "--store", str(told))
    with inlay.Registry.open(told) as registry:
        expected = json.loads(json.dumps(line(registry, "legal").to_dict()))
        only = json.loads(json.dumps(line(registry, "legal", "legal-test").to_dict()))
    assert code == 0 and json.loads(out)["result"] == expected
    _, out, _ = said(capsys, "legal", "--skills", "--suite", "legal-test", "--json", "--store", str(told))
    assert json.loads(out)["result"] == only != expected


def test_the_page(told: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "made" / "line.html"
    code, out, _ = said(capsys, "legal", "--skills", "--html", str(target), "--store", str(told))
    page = target.read_text()
    assert code == 0 and out.endswith(f"written to {target}\n")
    assert "skill0: lost at v2, 97 -&gt; 41, p &lt; 0.001" in page
    assert page.count('src="data:image/svg+xml;base64,') == 2 == page.count("<img")
    assert not re.search(r"https?://|<script|@import|url\(", page)
    assert '<td class="fell">41 ▼</td>' in page and '<span class="state">yanked</span>' in page
    low, high = (f"{100 * x:.1f}" for x in tango_interval(100, 56, 0))
    assert f"<td>-56.0 [{low},\u00a0{high}]</td><td>56 / 0</td><td>&lt; 0.001</td>" in page
    assert "<code>inlay eval legal@v3 --suite general-v1</code>" in page


def test_what_was_written_stays_text(told: Path, tmp_path: Path) -> None:
    name = "<script>alert(1)</script>\x1b[2J"
    with inlay.Registry.open(told) as registry:
        rows = [
            {"id": f"{k}", "prompt": "?", "answer": "!", "skill": name if k % 2 else "plain"}
            for k in range(6)
        ]
        suite = Suite.of_rows("nasty", rows)
        registry.put_suite(
            "nasty", suite.digest, suite.to_jsonl(), metric=suite.metric, skills=suite.skill_summary()
        )
        score(registry, "legal@v1", "nasty", (True, False) * 3)
        found = line(registry, "legal", "nasty")
    page = write_line(tmp_path / "line.html", found).read_text()
    assert "<script" not in page and "\x1b" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[2J" in page


def test_a_long_line_has_several_images(tmp_path: Path) -> None:
    versions = [{"t": [k]} for k in range(1, ROWS + 3)]
    with grown(tmp_path, base={"t": [0]}, versions=versions) as registry:
        assert len(heatmaps(line(registry, "legal"))) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--skills"],
        ["legal", "--suite", "legal-test"],
        ["legal", "--html", "x.html"],
        ["legal", "--skills", "--before", "3"],
        ["legal", "--skills", "--verb", "add"],
        ["legal", "--skills", "--changelog"],
        ["legal", "--skills", "--suite", "nothing"],
        ["leagl", "--skills"],
    ],
)
def test_what_says_nothing_together_is_refused(
    told: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    code, out, err = said(capsys, *arguments, "--store", str(told))
    assert code == 2 and out == "" and len(err.splitlines()) == 1
