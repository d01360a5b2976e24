"""The page in a real browser without a head: nothing runs, nothing overflows, images load, paper works."""

from __future__ import annotations

import html
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from report_fakes import EVIL, full_report

from inlay.evals.report_html import Subject, write_report

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.timeout(300)]

POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
WIDTHS = (360, 800, 1400)
MEASURE = """<script>addEventListener("load", () => {
  const images = [...document.images], root = document.documentElement;
  parent.postMessage({width: innerWidth, scroll: root.scrollWidth,
                      images: images.length, drawn: images.filter(i => i.naturalWidth > 0).length}, "*");
});</script>"""
HARNESS = """<!doctype html><title>harness</title><body><script>
  addEventListener("message", e => { const p = document.createElement("p");
    p.className = "found"; p.textContent = JSON.stringify(e.data); document.body.append(p); });
</script>"""

Chromium = Callable[..., str]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Chromium:
    """Runs Chromium on a page and gives what it wrote; no page of these tests may reach a network."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    assert program is not None, "these tests need Chromium (apt-get install chromium)"
    profile = tmp_path_factory.mktemp("profile")

    def run(page: Path, *arguments: str) -> str:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        flags += [f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND"]
        done = subprocess.run(
            [program, *flags, *arguments, page.as_uri()], capture_output=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
        return done.stdout.decode("utf-8", errors="replace")

    return run


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything in it, most of it written by somebody who means ill."""
    report = full_report()
    return write_report(
        tmp_path_factory.mktemp("page") / "report.html",
        f"Report {EVIL}",
        [Subject.base(report), Subject.of(report, kind="variant", note=EVIL)],
        intro=[EVIL],
        journal=[EVIL],
        allowed=0.05,
    )


def title_of(dom: str) -> str:
    found = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert found is not None
    return html.unescape(found[1])


def test_nothing_that_a_model_wrote_runs(page: Path, chromium: Chromium, tmp_path: Path) -> None:
    """With the page's policy taken away, so that the escaping alone must hold."""
    bare, shown = tmp_path / "bare.html", tmp_path / "shown.html"
    text, removed = POLICY.subn("", page.read_text(encoding="utf-8"))
    assert removed == 1
    bare.write_text(text, encoding="utf-8")
    assert title_of(chromium(bare, "--dump-dom", "--virtual-time-budget=2000")).startswith("Report <script>")
    # The same text as markup does run: the canary sings.
    shown.write_text(
        f"<!doctype html><title>t</title>{EVIL.encode(errors='ignore').decode()}", encoding="utf-8"
    )
    assert title_of(chromium(shown, "--dump-dom", "--virtual-time-budget=2000")) == "owned"


def test_no_width_makes_the_page_scroll_sideways(page: Path, chromium: Chromium, tmp_path: Path) -> None:
    """Oracle: the browser's own layout, of the page in frames as wide as a phone, a tablet and a desk."""
    measured = POLICY.sub("", page.read_text(encoding="utf-8")).replace("</body>", MEASURE + "</body>")
    (tmp_path / "measured.html").write_text(measured, encoding="utf-8")
    frames = "".join(
        f'<iframe src="measured.html" style="border:0;width:{width}px;height:900px"></iframe>'
        for width in WIDTHS
    )
    (tmp_path / "harness.html").write_text(HARNESS + frames)
    dom = chromium(
        tmp_path / "harness.html",
        "--dump-dom",
        "--virtual-time-budget=8000",
        "--allow-file-access-from-files",
    )
    found = [json.loads(html.unescape(x)) for x in re.findall(r'<p class="found">(.*?)</p>', dom)]
    assert sorted(one["width"] for one in found) == list(WIDTHS)
    for one in found:
        assert one["scroll"] <= one["width"], one
        assert one["images"] == one["drawn"] == 5, one


def test_it_prints(page: Path, chromium: Chromium, tmp_path: Path) -> None:
    file = tmp_path / "report.pdf"
    chromium(page, f"--print-to-pdf={file}", "--no-pdf-header-footer")
    data = file.read_bytes()
    assert data.startswith(b"%PDF") and 1 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 20


def test_it_is_dark_where_the_reader_is(page: Path, chromium: Chromium, tmp_path: Path) -> None:
    from PIL import Image

    def paper(*arguments: str) -> tuple[int, ...]:
        file = tmp_path / f"{len(arguments)}.png"
        chromium(page, f"--screenshot={file}", "--window-size=900,600", *arguments)
        return Image.open(io.BytesIO(file.read_bytes())).convert("RGB").getpixel((2, 2))  # type: ignore[return-value]

    assert paper() == (255, 255, 255)
    assert max(paper("--blink-settings=preferredColorScheme=0")) < 60
