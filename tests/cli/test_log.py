"""inlay log: pages, filters, the head of the chain, the changelog."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from difference_fakes import story

import inlay
from inlay.cli import run
from inlay.evals.changelog import changelog


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A closed store whose journal has 3 rows of registering and 20 of moving legal@prod to and fro."""
    folder = tmp_path_factory.mktemp("log")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INLAY_CACHE", str(folder / "cache"))
        patch.setenv("INLAY_USER", "anna")
        with story(folder) as registry:
            for turn in range(10):
                registry.promote("legal@v1", "prod", why=f"turn {turn}")
                registry.promote("legal@v2", "prod")
    yield folder / "store"


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run(["log", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    code, out, _ = said(capsys, *arguments, "--json")
    assert code == 0
    return list(json.loads(out)["result"])


def test_following_the_hints_reads_the_whole_journal(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, seen = ["--limit", "7", "--store", str(told)], []
    for _ in range(4):
        code, out, err = said(capsys, *arguments)
        assert code == 0
        seen += [int(line.split()[0].removeprefix("#")) for line in out.splitlines()]
        if not err:
            break
        hint = err.strip().removeprefix("there is more: inlay log ").split()
        arguments = [*hint, "--store", str(told)]
    assert seen == list(range(23, 0, -1)) and err == ""


def test_a_page_ends_exactly(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, err = said(capsys, "--limit", "23", "--store", str(told))
    assert len(out.splitlines()) == 23 and err == ""
    _, out, err = said(capsys, "--limit", "22", "--store", str(told))
    assert len(out.splitlines()) == 22 and "inlay log --limit 22 --before 2" in err


def test_verbs_and_names(
    told: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import inlay.cli.journal

    for page in (3, 500):
        monkeypatch.setattr(inlay.cli.journal, "PAGE", page)
        found = rows(capsys, "--verb", "add", "--store", str(told))
        assert [row["to"] for row in found] == ["style@v1", "legal@v2", "legal@v1"]
        found = rows(
            capsys, "legal", "--verb", "add", "--verb", "promote", "--limit", "5", "--store", str(told)
        )
        assert [row["seq"] for row in found] == [23, 22, 21, 20, 19]
        _, _, err = said(capsys, "legal", "--verb", "add", "--limit", "1", "--store", str(told))
        assert "inlay log legal --verb add --limit 1 --before 2" in err
    _, out, _ = said(capsys, "style", "--store", str(told))
    assert out.splitlines() == [line for line in out.splitlines() if "registered style@v1" in line] != []
    _, out, _ = said(capsys, "--verb", "yank", "--store", str(told))
    assert out == "nothing yet\n"


def test_the_head_can_be_kept_elsewhere(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "--head", "--store", str(told))
    seq, digest = out.split()
    with inlay.Registry.open(told) as registry:
        assert code == 0 and (int(seq), digest) == registry.journal_head()
        assert (int(seq), digest) == (23, registry.journal(limit=1)[0].hash)
        assert not [problem for problem in registry.fsck((int(seq), digest)) if "journal" in problem]
    code, out, _ = said(capsys, "--head", "--store", str(told), "--json")
    assert json.loads(out)["result"] == {"seq": 23, "hash": digest}


def test_the_changelog(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with inlay.Registry.open(told) as registry:
        expected, recent = changelog(registry, "legal"), changelog(registry, "legal", since="v1")
    assert said(capsys, "legal", "--changelog", "--store", str(told)) == (0, expected, "")
    assert (
        said(capsys, "legal", "--changelog", "--since", "v1", "--store", str(told))[1] == recent != expected
    )
    _, out, _ = said(capsys, "legal", "--changelog", "--store", str(told), "--json")
    assert json.loads(out)["result"] == {"name": "legal", "markdown": expected}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--changelog"],
        ["legal", "--since", "v1"],
        ["legal", "--head"],
        ["--head", "--changelog"],
        ["legal", "--changelog", "--before", "3"],
        ["--head", "--verb", "add"],
        ["--before", "0"],
        ["legal", "--changelog", "--since", "yesterday"],
        ["leagl"],
    ],
)
def test_what_says_nothing_together_is_refused(
    told: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    code, out, err = said(capsys, *arguments, "--store", str(told))
    assert code == 2 and out == "" and len(err.splitlines()) == 1
