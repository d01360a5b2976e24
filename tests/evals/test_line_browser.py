"""The page of a line in a real browser: nothing that was written runs, and a phone never scrolls sideways."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
from line_fakes import grown
from registry_fakes import score
from report_fakes import EVIL
from test_report_browser import HARNESS, MEASURE, POLICY, Chromium, chromium

from inlay.evals.line_html import write_line
from inlay.evals.lines import line
from inlay.evals.suites import Suite

__all__ = ["chromium"]
pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.timeout(300)]

WIDTHS = (360, 1200)


def test_it_fits_and_runs_nothing(chromium: Chromium, tmp_path: Path) -> None:
    versions = [{"general-v1": [97 - k, 90, 20 * (k % 4)]} for k in range(12)]
    with grown(tmp_path, base={"general-v1": [97, 91, 88]}, versions=versions) as registry:
        evil = EVIL.encode(errors="ignore").decode()
        rows = [{"id": f"{k}", "prompt": "?", "answer": "!", "skill": f"{evil} {k % 2}"} for k in range(20)]
        suite = Suite.of_rows("nasty", rows)
        registry.put_suite(
            "nasty", suite.digest, suite.to_jsonl(), metric=suite.metric, skills=suite.skill_summary()
        )
        score(registry, "legal@v2", "nasty", (True, False) * 10)
        page = write_line(tmp_path / "line.html", line(registry, "legal"))
    # With the page's policy taken away the escaping alone must hold.
    text, removed = POLICY.subn("", page.read_text(encoding="utf-8"))
    assert removed == 1
    (tmp_path / "measured.html").write_text(text.replace("</body>", MEASURE + "</body>"), encoding="utf-8")
    frames = "".join(
        f'<iframe src="measured.html" style="border:0;width:{width}px;height:900px"></iframe>'
        for width in WIDTHS
    )
    (tmp_path / "harness.html").write_text(HARNESS + frames)
    flags = ("--dump-dom", "--virtual-time-budget=8000", "--allow-file-access-from-files")
    dom = chromium(tmp_path / "harness.html", *flags)
    found = [json.loads(html.unescape(x)) for x in re.findall(r'<p class="found">(.*?)</p>', dom)]
    assert sorted(one["width"] for one in found) == list(WIDTHS)
    for one in found:
        assert one["scroll"] <= one["width"], one
        assert one["images"] == one["drawn"] == 2, one
    whole = chromium(tmp_path / "measured.html", "--dump-dom", "--virtual-time-budget=2000")
    title = re.search(r"<title>(.*?)</title>", whole, re.DOTALL)
    assert title is not None and title[1] == "legal: its versions", "what was written would have changed it"
