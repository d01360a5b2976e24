"""Texts and recipes from people who mean harm: stored whole or refused, and never more than text."""

from __future__ import annotations

import contextlib
import io
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fault_fakes import said
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inlay.cli import run
from inlay.errors import InlayError, InputError
from inlay.registry import Guard, Recipe, Registry, printable
from inlay.registry.recipes import load_yaml

TEXTS = {
    "sql": "'; DROP TABLE journal; UPDATE versions SET why = \"x\" WHERE 1=1; --",
    "like": "%_[a-z]*?",
    "clears the screen": "\x1b[2J\x1b[H\x1b[31mgone",
    "sets the title": "\x1b]0;owned\x07",
    "8 bit escape": "\x9b2J",
    "lines": "one\ntwo\r\nthree\x0bfour\x0cfive\x85six\u2028seven\u2029eight",
    "right to left": "\u202egnirts\u202c \u2066x\u2069",
    "invisible": "a\u200bb\ufeffc\u00add\U000e0041",
    "nul": "before\x00after",
    "lone surrogate": "\ud800 and \udfff",
    "backspaces": "safe\x08\x08\x08\x08evil",
    "markup": "<script>alert(1)</script>[bold red]rich[/]",
    "formula": "=HYPERLINK(1)",
    "tabs": "\t\t",
}  # fmt: skip
ANY = st.text(st.characters(), max_size=300) | st.sampled_from(list(TEXTS.values()))
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def shown(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a verb."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(list(arguments))
    return code, out.getvalue(), err.getvalue()


def check_shown(text: str, lines: int | None = None) -> None:
    """Nothing in it steers a terminal or cannot be written to one."""
    text.encode()
    for line in text.split("\n"):
        assert line == printable(line), ascii(line)
    assert lines is None or text.count("\n") == lines, ascii(text)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_reasons_owners_and_descriptions_are_text_and_nothing_else(text: str, full: Registry) -> None:
    tables = set(said(full.path))
    event = full.promote("legal@v3", "prod", why=text, who=text)
    full.yank("legal@v1", why=text + ".", rollback_dependents=True, otherwise="disable")
    with contextlib.suppress(InputError):  # a description may refuse what is not one line
        full.describe("legal", owner=text, description=text)
    full.set_guard("legal@prod", {"forget": 0.1, "suites": {"general": ["general"]}}, why=text)
    if "\ud800" not in text:
        assert full.journal("legal", limit=50)[-1].why == "made" and event.why == text
        with Registry.open(full.path) as other:
            assert next(e for e in other.journal("legal") if e.seq == event.seq).why == text
    at = ["--store", str(full.path)]
    for verb in (
        ["log"],
        ["log", "legal"],
        ["ls"],
        ["ls", "legal"],
        ["show", "legal@prod"],
        ["guard", "legal@prod"],
    ):
        code, out, err = shown(*verb, *at)
        assert code == 0, (verb, err)
        check_shown(out)
        code, out, _ = shown(*verb, *at, "--json")
        assert code == 0 and out.count("\n") == 1 and json.loads(out)["schema"] == 1
        out.encode()
    assert shown("log", "--limit", "1", *at)[1].count("\n") == 1
    assert full.fsck() == [] and set(said(full.path)) == tables


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_no_such_name_is_taken_and_the_refusal_is_one_safe_line(
    text: str, full: Registry, made: Path
) -> None:
    before = said(full.path)
    at = ["--store", str(full.path)]
    for verb in (
        ["add", text, str(made / "legal4"), "--base", str(made / "base")],
        ["add", "legal", text, "--base", str(made / "base")],
        ["add", "legal", str(made / "legal4"), "--base", text],
        ["promote", f"legal@{text}"],
        ["promote", "legal@v1", text],
        ["promote", "legal@v1", "prod", "--expect", text],
        ["rollback", "legal@prod", "--to", text, "--why", "x"],
        ["rollback", "legal@prod", "--to-time", text, "--why", "x"],
        ["yank", text, "--why", "x"],
        ["show", text],
        ["log", text],
        ["ls", text],
        ["lock", "acme", text],
    ):  # fmt: skip
        code, out, err = shown(*verb, *at)
        assert code in (1, 2, 3) and out == "", (verb, code, out, err)
        check_shown(err, lines=1)
        code, out, _ = shown(*verb, *at, "--json")
        assert json.loads(out)["error"]["message"]
        out.encode()
    assert said(full.path) == before


def test_long_texts_are_refused_before_anything_is_written(full: Registry, made: Path) -> None:
    before, long = said(full.path), "x" * 1_000_000
    for attempt in (
        lambda: full.promote("legal@v3", "prod", why=long),
        lambda: full.promote("legal@v3", "prod", who=long),
        lambda: full.rollback("legal@prod", why=long),
        lambda: full.yank("legal@v3", why=long),
        lambda: full.set_guard("legal@prod", None, why=long),
        lambda: full.add("legal", made / "legal4", base=made / "base", why=long),
        lambda: full.add(long, made / "legal4", base=made / "base"),
        lambda: full.lock("acme", "legal@v1", why=long),
        lambda: full.describe("legal", owner=long),
        lambda: full.describe("legal", description=long),
        lambda: full.describe("legal", tag=[long]),
        lambda: full.retire("legal@v3", why=long),
        lambda: full.purge("legal@v3", why=long),
    ):
        with pytest.raises(InlayError) as caught:
            attempt()
        assert len(str(caught.value)) < 2000
        assert said(full.path) == before
    code, _, err = shown("promote", "legal@v3", "--why", long[:100_000], "--store", str(full.path))
    assert code == 2 and len(err) < 2000


@QUICK
@given(ANY)
def test_any_reason_comes_back_as_it_was(full: Registry, text: str) -> None:
    number = 1 + full.journal_head()[0] % 3
    event = full.promote(f"legal@v{number}", "fuzzed", why=text, who=text or "x")
    kept = full.journal("legal", limit=1)[0]
    assert kept == event
    try:
        text.encode()
        assert kept.why == text
    except UnicodeEncodeError:
        assert kept.why == text.encode("utf-8", "backslashreplace").decode()
    check_shown(kept.sentence(), lines=0)
    assert full._store.db.rows("SELECT count(*) FROM names")[0][0] == 5


@QUICK
@given(ANY)
def test_any_name_is_found_or_refused(full: Registry, text: str) -> None:
    for attempt in (full.resolve, full.journal, full.versions, full.suite, full.evals, full.about):
        try:
            attempt(text)
        except InlayError as error:
            check_shown(printable(str(error)), lines=0)


BOMBS = {
    "billion laughs": "a: &a [x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}]\n" for p, c in pairwise("abcdefghi")),
    "brackets": "[" * 60_000,
    "braces": "{a: " * 15_000,
    "dashes": "- " * 30_000,
    "question marks": "? " * 30_000,
    "merge keys": "<<: {<<: {a: 1}}",
    "python": "!!python/object/apply:os.system ['true']",
    "binary": "forget: !!binary aGVsbG8=",
    "a large number": "forget: " + "9" * 60_000,
    "base 60": "forget: " + ":".join(["59"] * 20_000),
    "hexadecimal": "forget: 0x" + "f" * 50_000,
    "hexadecimal rank": "merge: [legal@v1, style@v1]\nrank: 0x" + "f" * 50_000,
    "two documents": "forget: 0.1\n---\nforget: 0.2\n",
    "a key twice": "forget: 0.1\nforget: 0.9\n",
    "a key twice, inside": "forget: 0.1\nsuites: {general: [a], general: [b]}\n",
    "a key twice, spelled differently": 'forget: 0.1\n"forget": 0.9\n',
    "nul": "forget: \x00",
    "too long": "# " + "x" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused_at_once_wherever_yaml_is_read(bomb: str, full: Registry, tmp_path: Path) -> None:
    before, file = said(full.path), tmp_path / "it.yaml"
    file.write_text(bomb)
    started = time.perf_counter()
    with pytest.raises(InputError) as caught:
        Guard.of(load_yaml(bomb, "guard"))
    check_shown(str(caught.value), lines=0)
    with pytest.raises(InputError) as caught:
        Recipe.of(bomb + "\n")
    check_shown(str(caught.value), lines=0)
    for verb in (
        ["lock", "acme", str(file)],
        ["guard", "legal@prod", "--set", str(file)],
        ["plan", str(file)],
    ):
        code, out, err = shown(*verb, "--store", str(full.path))
        assert code == 2 and out == "", (verb, err)
        check_shown(err, lines=1)
    assert time.perf_counter() - started < 5
    assert said(full.path) == before


YAMLISH: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY, inner, max_size=4),
    max_leaves=12,
)


@QUICK
@given(st.dictionaries(st.sampled_from(["forget", "gain", "regress", "suites", "x"]), YAMLISH, max_size=4))
def test_any_guard_is_one_or_refused(value: dict[str, Any]) -> None:
    with contextlib.suppress(InputError):
        guard = Guard.of(value)
        assert guard is None or all(0 <= x <= 1 for x in (guard.forget, guard.regress) if x is not None)


@QUICK
@given(YAMLISH)
def test_any_recipe_is_one_or_refused(value: Any) -> None:
    with contextlib.suppress(InputError):
        found = Recipe.of({"compose": value} if isinstance(value, dict) else {"stack": [value]})
        assert Recipe.of(json.loads(found.text)) == found  # what a lock keeps of it says the same
