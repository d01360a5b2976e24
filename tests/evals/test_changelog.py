"""The changelog: what it tells, that its figures are the scores', and that nothing in it can be forged."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from difference_fakes import MAY, run_record, story
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from registry_fakes import make_adapter, make_base, score

import inlay
from inlay.errors import InputError, ReferenceNotFound
from inlay.evals.changelog import changelog, escape
from inlay.evals.statistics import tango_interval
from inlay.registry import Registry, digest_of, printable

GUARD = {"gain": 0.9, "suites": {"target": ["legal-test"]}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The story, and what became of its versions."""
    folder = tmp_path_factory.mktemp("story")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INLAY_CACHE", str(folder / "cache"))
        patch.setenv("INLAY_USER", "anna")
        with story(folder) as registry:
            registry.promote("legal@v1", "prod", why="the first that works")
            registry.set_guard("legal@prod", GUARD, why="contract of March")
            with pytest.raises(inlay.GuardRefused):
                registry.promote("legal@v2", "prod", why="newer")
            registry.promote("legal@v2", "prod", why="the deadline is today", force=True)
            registry.put_report("legal@v2", "forgetting", {"verdict": "legal@v2 forgets 7.5 points."})
            registry.lock("acme", {"stack": ["legal@v1", "style@v1"]}, why="for acme")
            registry.promote("acme@v1", "prod")
            registry.lock("acme", {"stack": ["legal@v2", {"use": "style@v1", "weight": 0.6}]})
            registry.promote("acme@v2", "prod")
            registry.rollback("legal@prod", why="hallucinates clauses", dependents=True)
            registry.yank("legal@v2", why="never again")
    return folder


@pytest.fixture
def registry(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.setenv("INLAY_USER", "anna")
    shutil.copytree(made / "store", tmp_path / "store")
    with inlay.Registry.open(tmp_path / "store") as registry:
        yield registry


def section(text: str, ref: str) -> list[str]:
    """The lines under the heading of one version."""
    lines = text.splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith(f"## `{ref}`"))
    end = next((k for k in range(start + 1, len(lines)) if lines[k].startswith(("## ", "---"))), len(lines))
    return lines[start + 1 : end]


def test_the_story_of_an_adapter(registry: Registry) -> None:
    text = changelog(registry, "legal")
    headings = [line.split(",")[0] for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["## `legal@v2`", "## `legal@v1`", "## Conditions for going live"], "newest first"
    assert "Live now: `prod` is `legal@v1`." in text
    second = section(text, "legal@v2")
    assert second[1] == "Why: with May's tickets (anna)"
    assert "- Trained on tickets-may (1,600 rows) instead of tickets-march (1,000 rows)." in second
    assert "- Rank 4 instead of 2 (256 parameters)." in second
    assert "- Licence: mit instead of none stated." in second
    assert "- Forgetting: legal@v2 forgets 7.5 points." in second
    told = [line.split(": ", 1)[1] for line in second if line.startswith("- 20")]
    assert [line.split("**")[1] for line in told] == ["refused", "forced", "rolled back", "withdrawn"]
    refused, forced, back, yanked = told
    gain = 100 * sum(
        int(y) - int(x)
        for x, y in zip(
            registry.evals("base", "legal-test")[0].outcomes,
            registry.evals("legal@v2", "legal-test")[0].outcomes,
            strict=True,
        )
    ) / 200  # fmt: skip
    reason = f"gains {gain:.1f} points over the base on legal-test (lower bound"
    assert refused.startswith(f"**refused** as `prod` by its guard: {reason}")
    assert refused.endswith("Reason: newer (anna)")
    assert forced.startswith(f"**forced** live as `prod` in place of `legal@v1`. Its guard said no: {reason}")
    assert forced.endswith("Reason: the deadline is today (anna)")
    assert back == "**rolled back** as `prod`, to `legal@v1`. Reason: hallucinates clauses (anna)"
    assert yanked == "**withdrawn** (yanked), not to be used again. Reason: never again (anna)"
    first = [line.split(": ", 1)[1] for line in section(text, "legal@v1") if line.startswith("- 20")]
    assert first == [
        "**live** as `prod`. Reason: the first that works (anna)",
        "replaced as `prod` by `legal@v2`.",
        "**live again** as `prod`, rolled back from `legal@v2`. Reason: hallucinates clauses (anna)",
    ]
    rule = text.split("## Conditions for going live")[1].splitlines()[2]
    assert "`prod` asks for at least 90.0 points gained over the base. Reason: contract of March" in rule


def test_every_threshold_of_a_guard_is_told(registry: Registry) -> None:
    wide = {"skill": {"sort": 0.1, "*": 0.2}, "rigidity": 0.1, "retention": 0.8, "overhead": 0.3}
    suites = {"general": ["legal-test"], "target": ["legal-test"]}
    registry.set_guard("legal@prod", {**wide, "suites": suites})
    rules = changelog(registry, "legal").split("## Conditions for going live")[1]
    assert (
        "asks for at most 10.0 (sort), 20.0 (others) points of any one held-out skill forgotten, at most "
        "10.0 points lost when asked less neatly, at least 80.0% of each member's own gain kept, at most "
        "30.0% more time a token."
    ) in rules


def test_the_story_of_a_variant(registry: Registry) -> None:
    text = changelog(registry, "acme")
    assert "Live now: `prod` is `acme@v1`." in text
    first, second = section(text, "acme@v1"), section(text, "acme@v2")
    assert "- Made of `legal@v1`, `style@v1`." in first
    assert "- `legal@v2` in place of `legal@v1`." in second
    assert "- `style@v1` weighs 0.6 instead of 1." in second
    (back,) = [line for line in second if "rolled back" in line]
    assert back.endswith(
        "**rolled back** as `prod`, to `acme@v1`. Because of legal@v2. Reason: hallucinates clauses (anna)"
    )


def test_the_figures_are_those_of_the_scores(registry: Registry) -> None:
    lines = section(changelog(registry, "legal"), "legal@v2")
    scored = {e.suite_name: e.score for e in registry.evals("legal@v2")}
    base = {e.suite_name: e.score for e in registry.evals("base")}
    low, high = tango_interval(200, 12, 40)
    assert (
        f"- legal-test: {100 * scored['legal-test']:.1f}% right, up 14.0 points (95% {100 * low:.1f} to "
        f"{100 * high:.1f}) against `legal@v1`, more than chance (200 questions). The base: "
        f"{100 * base['legal-test']:.1f}%."
    ) in lines
    low, high = tango_interval(400, 30, 0)
    assert any(
        line.startswith(
            f"- general-v1: {100 * scored['general-v1']:.1f}% right, down 7.5 points (95% "
            f"{-100 * high:.1f} to {-100 * low:.1f}) against `legal@v1`, more than chance (400 questions)."
        )
        for line in lines
    )


def test_what_could_be_chance_is_called_so_and_what_stands_alone_too(registry: Registry) -> None:
    registry.put_suite(
        "alone", digest_of(b'{"id": "a"}\n'), b'{"id": "a"}\n', metric="exact_match/1", skills={}
    )
    score(registry, "style@v1", "alone", (True, False, True, True))
    lines = section(changelog(registry, "style"), "style@v1")
    (line,) = [line for line in lines if "alone" in line]
    assert line.startswith("- alone: 75.0% right (95% ") and "nothing to compare it with" in line
    general = registry.evals("legal@v1", "general-v1")[0].outcomes
    score(registry, "style@v1", "general-v1", (not general[0], *general[1:]))
    lines = section(changelog(registry, "style"), "style@v1")
    (line,) = [line for line in lines if "general-v1" in line]
    assert "points (95% -" in line and "against the base, could be chance (400 questions)." in line


def test_since(registry: Registry) -> None:
    whole = changelog(registry, "legal")
    recent = changelog(registry, "legal", since="v1")
    assert changelog(registry, "legal", since="legal@v1") == recent.replace("after v1", "after legal@v1")
    assert section(recent, "legal@v2") == section(whole, "legal@v2")
    assert "Trained on" not in "\n".join(section(recent, "legal@v1")), "it is told already"
    assert any("live again" in line for line in section(recent, "legal@v1")), "its moves since are told"
    yanked = next(e for e in registry.journal("legal") if e.verb == "rollback")
    last = changelog(registry, "legal", since=yanked.at)
    assert [line for line in last.splitlines() if line.startswith("- 20")] == [
        line for line in whole.splitlines() if "withdrawn" in line
    ]
    assert "Nothing has happened since." in changelog(registry, "legal", since="2999-01-01")
    with pytest.raises(ReferenceNotFound):
        changelog(registry, "legal", since="v9")
    with pytest.raises(InputError):
        changelog(registry, "legal", since="yesterday")
    with pytest.raises(ReferenceNotFound):
        changelog(registry, "leagl")


def test_the_same_store_tells_the_same_story(registry: Registry, made: Path) -> None:
    with inlay.Registry.open(made / "store") as original:
        assert changelog(original, "acme") == changelog(registry, "acme")


def test_purged_and_disabled(registry: Registry) -> None:
    registry.purge(["legal@v2"], why="the law")
    registry.rollback("acme@prod", why="out of use", otherwise="disable")
    text = changelog(registry, "legal")
    assert any("**erased** (purged). Reason: the law" in line for line in section(text, "legal@v2"))
    assert not any("Forgetting" in line for line in section(text, "legal@v2")), "its reports went with it"
    assert "`prod` is switched off" in changelog(registry, "acme")
    assert any("**taken off**" in line for line in section(changelog(registry, "acme"), "acme@v1"))


EVIL = [
    "<script>alert(1)</script> & <b>bold</b>",
    "| a | b |\n|---|---|\n| c | d |",
    "# heading\n\n- item\n1. item\n> quote",
    "[click](https://example.org) ![](x) <https://example.org>",
    "https://example.org www.example.org a@example.org @someone",
    "`code` ``` ~~gone~~ *stars* __lines__ $x^2$ \\",
    "&lt;b&gt; &copy; &#64;someone",
    "- item",
    "12. item",
    "=== ",
    "    indented",
    "ends with a backslash \\",
    "escape \x1b[2J and bell \x07 and \u202e",
]


def rendered(text: str) -> str:
    markdown = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return str(markdown.render(text))


def as_html(text: str) -> str:
    """What a reader must see of `text`: itself on one line, as HTML writes it."""
    shown = printable(text.strip())
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


@pytest.mark.parametrize("text", EVIL)
def test_what_people_wrote_is_shown_and_not_obeyed(text: str) -> None:
    assert rendered(f"Why: {escape(text)} (anna)") == f"<p>Why: {as_html(text)} (anna)</p>\n"
    assert rendered(escape(text)) == f"<p>{as_html(text)}</p>\n"
    assert (
        rendered(f"- {escape(text)}.\n- next") == f"<ul>\n<li>{as_html(text)}.</li>\n<li>next</li>\n</ul>\n"
    )
    for link in ("://", "www.", " @", "a@example"):
        assert link not in f" {escape(text)}"


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=60).filter(lambda t: t.strip()))
def test_any_text_is_shown_as_it_was_written(text: str) -> None:
    shown = as_html(text)
    assert rendered(f"- Reason: {escape(text)} (anna)") == f"<ul>\n<li>Reason: {shown} (anna)</li>\n</ul>\n"


def test_evil_words_in_a_store_open_no_tag(registry: Registry, made: Path, tmp_path: Path) -> None:
    for number, evil in enumerate(EVIL):
        folder = make_adapter(tmp_path / f"evil{number}", seed=20 + number)
        data: dict[str, Any] = {**MAY, "name": evil}
        registry.add("evil", folder, base=make_base(tmp_path / "base"), why=evil, run=run_record(data))
        registry.promote(f"evil@v{number + 1}", "prod", why=evil)
    registry.put_report("evil@v1", "forgetting", {"verdict": "".join(EVIL)})
    registry.describe("evil", description="# " + EVIL[0])
    html = rendered(changelog(registry, "evil"))
    for tag in ("<script", "<b>", "<table", "<a ", "<img", "<ol", "<blockquote", "<del", "<pre"):
        assert tag not in html
    assert html.count("<h1") == 1 and html.count("<h2") == len(EVIL)
    assert "\x1b" not in html
