"""The page of a choice in a real browser: nothing that was written runs, and a phone never scrolls aside."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from frontier_fakes import report
from report_fakes import EVIL
from test_report_browser import HARNESS, MEASURE, POLICY, Chromium, chromium

from inlay.evals.frontier_html import write_frontier

__all__ = ["chromium"]
pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.timeout(300)]

WIDTHS = (360, 1200)


def test_it_fits_and_runs_nothing(chromium: Chromium, tmp_path: Path) -> None:
    plain = report()
    evil = EVIL.encode(errors="ignore").decode()
    nasty = replace(
        plain,
        points=tuple(replace(p, name=f"{evil} alone") if p.kind == "alone" else p for p in plain.points),
        adapters={f"{evil}@v1": "sha256:1"},
        notes=(evil,),
        recipe=f"compose: {evil}",
    )
    page = write_frontier(tmp_path / "page.html", nasty)
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
        assert one["images"] == one["drawn"] == 1, one
    whole = chromium(tmp_path / "measured.html", "--dump-dom", "--virtual-time-budget=2000")
    title = re.search(r"<title>(.*?)</title>", whole, re.DOTALL)
    assert title is not None and title[1] == "How acme@v1 was chosen", (
        "what was written would have changed it"
    )
