"""The verbs of upkeep as users meet them: describe, retire, purge, bundle, unbundle, fsck, and pages."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from registry_fakes import make_adapter, make_base

from inlay.cli import run
from inlay.registry import Registry


@pytest.fixture(scope="module")
def three_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed store with legal@v1 … v3 and style@v1, v2."""
    folder = tmp_path_factory.mktemp("verbs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INLAY_CACHE", str(folder / "cache"))
        patch.setenv("INLAY_USER", "anna")
        base = make_base(folder / "base")
        with Registry.open(folder / "store", create=True) as registry:
            for name, seed in (("legal", 1), ("legal", 2), ("legal", 3), ("style", 11), ("style", 12)):
                registry.add(name, make_adapter(folder / f"{name}{seed}", seed=seed), base=base)
    return folder / "store"


@pytest.fixture
def store(three_made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """legal@v1 … v3 and style@v1, v2; the working folder is above it."""
    shutil.copytree(three_made, tmp_path / "adapters_store")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "adapters_store"


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def result(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    code, out, err = said(capsys, *arguments, "--json")
    assert code == 0, (out, err)
    return json.loads(out)["result"]


def test_describing_shows_in_lists_and_in_show(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "describe", "legal", "--owner", "legal-team", "--tag", "gdpr")[0] == 0
    assert said(capsys, "describe", "legal@v2", "--description", "more data", "--tag", "reviewed")[0] == 0
    assert said(capsys, "describe", "legal", "--tag", "gdpr")[1] == "nothing to do\n"
    rows = result(capsys, "ls", "--tag", "gdpr")
    assert [(r["name"], r["owner"], r["tags"]) for r in rows] == [("legal", "legal-team", ["gdpr"])]
    assert [v["ref"] for v in result(capsys, "ls", "legal", "--tag", "reviewed")] == ["legal@v2"]
    shown = result(capsys, "show", "legal@v2")
    assert (shown["owner"], shown["description"], shown["tags"]) == (
        "legal-team",
        "more data",
        ["gdpr", "reviewed"],
    )
    _, out, _ = said(capsys, "show", "legal@v2")
    assert "about     more data" in out and "tags      gdpr, reviewed" in out and "licence   none" in out
    assert said(capsys, "ls", "--tag", "nobody")[1] == "no such names\n"
    assert said(capsys, "describe", "legal")[0] == 2


def test_the_next_page_is_printed_as_a_command_that_works(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for first, expected in (
        (["ls", "--limit", "1"], ["legal", "style"]),
        (["ls", "legal", "--limit", "2"], ["legal@v3", "legal@v2", "legal@v1"]),
    ):
        seen, command = [], first
        while True:
            code, out, err = said(capsys, *command, "--json")
            assert code == 0
            seen += [row.get("ref", row.get("name")) for row in json.loads(out)["result"]]
            if not err:
                break
            assert err.startswith("there is more: inlay ls")
            command = err.removeprefix("there is more: inlay ").split()
        assert seen == expected
    assert said(capsys, "ls", "--before", "v2")[0] == 2
    assert said(capsys, "ls", "legal", "--after", "x")[0] == 2
    assert said(capsys, "ls", "legal", "--before", "two")[0] == 2


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_a_list_keeps_its_names_whole_and_fits(
    store: Path, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(["describe", "legal", "--description", "clauses of contracts " * 5, "--tag", "gdpr"])
    run(["promote", "legal@v2"])
    capsys.readouterr()
    monkeypatch.setenv("COLUMNS", str(columns))
    _, out, _ = said(capsys, "ls")
    lines = out.splitlines()
    assert max(map(len, lines)) <= columns
    assert [line.split()[0] for line in lines] == ["name", "legal", "style"]
    assert "prod → v2" in out


def test_retiring_says_what_happened_and_gc_takes_it(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["promote", "legal@v1"])
    capsys.readouterr()
    code, _, err = said(capsys, "retire", "legal@v2", "legal@v1", "--why", "tidy")
    assert code == 1 and "legal@v1 was live as legal@prod" in err
    _, out, _ = said(capsys, "retire", "legal@v2", "--why", "tidy", "--dry-run")
    assert out.startswith("would happen: ")
    assert said(capsys, "retire", "legal@v2", "--why", "tidy")[0] == 0
    assert [v["state"] for v in result(capsys, "ls", "legal")] == ["active", "retired", "active"]
    assert "RETIRED" in said(capsys, "show", "legal@v2")[1]
    assert said(capsys, "promote", "legal@v2")[0] == 2


def test_purging_asks_first(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("click.confirm", lambda *_, **__: False)
    code, out, _ = said(capsys, "purge", "legal@v3", "--why", "law")
    assert code == 1 and out == "nothing was erased\n"
    assert result(capsys, "ls", "legal")[0]["state"] == "active"
    assert said(capsys, "purge", "legal@v3", "--why", "law", "--yes")[0] == 0
    shown = result(capsys, "show", "legal@v3")
    assert shown["state"] == "purged" and shown["ended"]["verb"] == "purge"
    assert result(capsys, "fsck") == {"problems": [], "repaired": []}


def test_a_bundle_makes_a_mirror_and_mends_a_store(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["promote", "legal@v1", "--why", "first"])
    capsys.readouterr()
    made = result(capsys, "bundle", "all.bundle")
    assert made["versions"] == 5 and Path("all.bundle").stat().st_size == made["bytes"]
    assert said(capsys, "bundle", "all.bundle")[0] == 2
    run(["init", "mirror"])
    capsys.readouterr()
    mirror = ("--store", "mirror")
    dry = result(capsys, "unbundle", "all.bundle", "--dry-run", *mirror)
    assert dry["dry_run"] and len(dry["versions"]) == 5 and result(capsys, "ls", *mirror) == []
    done = result(capsys, "unbundle", "all.bundle", *mirror)
    assert done["versions"] == dry["versions"] and done["events"] == 6
    assert said(capsys, "unbundle", "all.bundle", *mirror)[1] == "nothing to take over: all of it is here\n"
    assert result(capsys, "log", *mirror) == result(capsys, "log")

    with Registry.open(store) as registry:
        objects = dict(registry._store.objects.all())
    for number, path in enumerate(objects.values()):
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-1] + b"?") if number % 2 else path.unlink()
    code, out, _ = said(capsys, "fsck")
    assert code == 1 and len(out.splitlines()) >= len(objects)
    code, out, _ = said(capsys, "fsck", "--repair", "--from", "all.bundle")
    assert code == 0 and out.endswith("the store is sound now\n")
    assert len(out.splitlines()) == len(objects) + 1
    assert said(capsys, "fsck", "--from", "all.bundle")[0] == 2


def test_a_cut_journal_shows_against_a_head_kept_elsewhere(
    store: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run(["promote", "legal@v1"])
    capsys.readouterr()
    _, head, _ = said(capsys, "log", "--head")
    (tmp_path / "head.txt").write_text(head)
    assert said(capsys, "fsck", "--head", "head.txt")[0] == 0
    assert said(capsys, "fsck", "--head", head.strip())[0] == 0
    raw = sqlite3.connect(store / "registry.db")
    raw.execute("DROP TRIGGER journal_refuse_delete")
    raw.execute("DELETE FROM journal WHERE verb = 'promote'")
    raw.commit()
    raw.close()
    code, out, _ = said(capsys, "fsck", "--head", "head.txt")
    assert code == 1
    assert "trigger journal_refuse_delete is missing" in out and "the tail was cut" in out
    code, out, _ = said(capsys, "fsck", "--repair")
    assert code == 0 and "put the trigger journal_refuse_delete back" in out
    assert said(capsys, "fsck", "--head", "head.txt")[0] == 1  # what was cut stays cut
    assert said(capsys, "fsck", "--head", "six")[0] == 2
