"""inlay diff, as its users meet it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from difference_fakes import story

from inlay.cli import run


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A closed store with the story and two locks; read only."""
    folder = tmp_path_factory.mktemp("diff")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INLAY_CACHE", str(folder / "cache"))
        with story(folder) as registry:
            registry.lock("acme", {"stack": ["legal@v1"]})
            registry.lock("acme", {"stack": ["legal@v2", "style@v1"]})
    yield folder / "store"


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_one_object_and_its_figures(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "diff", "legal@v1", "legal@v2", "--store", str(told), "--json")
    found = json.loads(out)
    assert code == 0 and found["schema"] == 1 and found["verb"] == "diff"
    result = found["result"]
    assert (result["a"]["ref"], result["b"]["ref"]) == ("legal@v1", "legal@v2")
    assert {s["suite"]: (s["won"], s["lost"]) for s in result["scores"]} == {
        "legal-test": (40, 12),
        "general-v1": (0, 30),
    }
    total = result["norms"][0]["total"]
    assert total["rank_a"] == 2 and total["rank_b"] == 4 and total["change"] > 0
    modules = result["norms"][0]["modules"]
    assert len(modules) == 4
    assert sum(m["norm_a"] ** 2 for m in modules) == pytest.approx(total["norm_a"] ** 2)


@pytest.mark.parametrize("columns", [100, 80, 40])
@pytest.mark.parametrize("pair", [("legal@v1", "legal@v2"), ("acme@v1", "acme@v2")])
def test_words_fit_the_terminal(
    told: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    columns: int,
    pair: tuple[str, str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, err = said(capsys, "diff", *pair, "--store", str(told))
    assert code == 0 and err == ""
    assert out.startswith(f"{pair[0]} → {pair[1]}\n")
    assert max(map(len, out.splitlines())) <= columns


def test_what_cannot_be_compared_is_one_line(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, piece in (
        (("legal@v1", "acme@v1"), "a version and acme@v1 a lock"),
        (("legal@v1", "legal@v9"), "no legal@v9"),
        (("legal@v1", "no good"), "a name must match"),
    ):
        code, out, err = said(capsys, "diff", *arguments, "--store", str(told))
        assert code == 2 and out == "" and len(err.splitlines()) == 1 and piece in err


def test_without_norms_torch_stays_out(told: Path) -> None:
    code = (
        "import sys; from inlay.cli import run;"
        "code = run(['diff', 'acme@v1', 'acme@v2', '--no-norms', '--store', sys.argv[1]]);"
        "sys.exit(code or len({'torch', 'scipy', 'numpy', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(told)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "deltas of" not in done.stdout and "+ style@v1, weight 1" in done.stdout
