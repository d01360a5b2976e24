"""The report of a run: rebuilt from the store, on narrow terminals, and as a page without foreign markup."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evals_fakes import result_of, suite_of
from registry_fakes import make_adapter, make_base
from report_fakes import EVIL, full_report
from rich.cells import cell_len
from rich.console import Console
from test_report_html import Page

from inlay.errors import InputError
from inlay.evals.forgetting import compare
from inlay.evals.ledger import keep_suite
from inlay.evals.scoring import EvalResult, to_record
from inlay.registry import Registry, Version
from inlay.registry.fingerprint import BaseFingerprint
from inlay.trainers.baselines import BAG_OF_WORDS, BASE, FEW_SHOT, Baseline, Baselines
from inlay.trainers.cost import Cost
from inlay.trainers.imported import Imported
from inlay.trainers.run_report import RunReport
from inlay.trainers.run_tables import manifest_tables, run_tables
from inlay.trainers.run_text import curve_lines
from inlay.trainers.verdict import judge

N = 120
TARGET = suite_of(N, name="tickets-test")
GENERAL = suite_of(800, skills=2, held_out=1)
CURVE = [{"step": n, "loss": 4.0 / n, "kl": 0.01 * n, "learning_rate": 1e-3} for n in range(1, 41)]


def right(share: float) -> list[bool]:
    return [k < round(share * N) for k in range(N)]


def rows() -> Baselines:
    given = {BASE: 0.1, FEW_SHOT: 0.4, BAG_OF_WORDS: 0.6}
    found = [Baseline.of(kind, kind, result_of(TARGET, right(x)), {"k": 4}) for kind, x in given.items()]
    return Baselines((*found, Baseline.imported(Imported("people", 0.95), TARGET)), ("No such thing.",))


def run_of(baselines: Baselines | None) -> dict[str, Any]:
    run: dict[str, Any] = {
        "base": {"name": "tiny", "weights": "w", "prompt": "p"},
        "dataset": {"name": "tickets", "rows": 900, "digest": "sha256:1", "licence": {"name": "CC0"}},
        "declared": {
            "general": [{"name": GENERAL.name, "digest": GENERAL.digest}],
            "minimum": 0.8,
            "target": [{"name": TARGET.name, "digest": TARGET.digest}],
        },
        "settings": {"learning_rate": 0.001},
        "versions": {"torch": "2"},
        "steps": 40,
        "curve": CURVE,
        "cost": Cost(61.5, 12_345, 678, 2.5e12, 700_000_000, "resident").to_dict(),
    }
    return run if baselines is None else {**run, "baselines": baselines.to_dict()}


def report(**changes: Any) -> RunReport:
    mine = result_of(TARGET, right(0.9), subject="tickets@v1")
    forgetting = compare(
        result_of(GENERAL, [True] * 800), result_of(GENERAL, [True] * 800, subject="tickets@v1")
    )
    verdict = judge("tickets@v1", [mine], rows(), forgetting, minimum=0.8)
    made = RunReport("tickets@v1", "sha256:2", run_of(rows()), forgetting, rows(), (mine,), verdict)
    return replace(made, **changes)


def printed(report: RunReport, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    report.print(console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [40, 80])
def test_it_fits_the_terminal_and_says_the_verdict_first(width: int) -> None:
    text = printed(report(), width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert text.startswith("Ship tickets@v1: it beats all")
    for said in ("90.0 [83.3, 94.2]", "beaten", "12,345", "2.5e+12", "700 MB", "No such thing."):
        assert said in text
    plot = [line for line in text.splitlines() if "┤" in line or "└" in line]
    assert 5 < len(plot) <= 12 and plot[0].startswith("   4 ┤•")


def test_tables_hold_every_score_and_the_pair() -> None:
    scores, pair, cost = run_tables(report())
    assert [row[0] for row in scores.rows] == ["tickets@v1", BASE, FEW_SHOT, BAG_OF_WORDS, "people"]
    assert [row[-1] for row in scores.rows] == ["", "beaten", "beaten", "beaten", "–"]
    assert scores.rows[1][2].startswith("80.0 [") and scores.rows[4][2] == "-5.0"
    assert [row[0] for row in pair.rows] == ["gained on tickets-test", "lost of held-out general skills"]
    assert pair.rows[1][1].startswith("0.0 [") and pair.rows[1][2] == "400"
    assert dict(cost.rows)["seconds"] == "61.5" and "base among it" in cost.note
    listed = {table.title: dict(table.rows) for table in manifest_tables(report())}
    assert listed["Data"]["licence.name"] == "CC0" and listed["Data"]["rows"] == "900"
    assert listed["Declared before training"]["target.1.name"] == "tickets-test"


def test_a_score_from_elsewhere_may_have_the_name_of_another() -> None:
    named = replace(rows().rows[3], name=BASE)
    baselines = Baselines((*rows().rows[:3], named))
    mine = report().results
    verdict = judge("tickets@v1", mine, baselines, report().forgetting)
    scores, _, _ = run_tables(report(baselines=baselines, verdict=verdict))
    assert scores.rows[1][2].startswith("80.0 [") and scores.rows[4][2] == "-5.0"


def test_rigidity_stands_in_the_pair() -> None:
    rigid = full_report().rigidity
    assert rigid is not None
    parts = [{**part, "role": "target"} for part in rigid["parts"]]
    forgetting = replace(report().forgetting, rigidity={**rigid, "parts": parts})
    _, pair, _ = run_tables(report(forgetting=forgetting))
    row = parts[0]["rows"][0]["model"]
    lost = 100 * (row["lost"] - row["gained"]) / row["n"]
    assert pair.rows[2][0] == "lost to typos and the like" and pair.rows[2][1].startswith(f"{lost:.1f} [")


def test_curve_is_the_mean_of_what_falls_into_each_column() -> None:
    values = [8.0, 6.0, 5.0, 3.0, 2.0, 0.0]
    lines = curve_lines(values, (1, 600), columns=9, lines=8)
    assert [line.split("┤")[1] for line in lines[:8]] == [
        "•",
        "",
        " •",
        "  •",
        "   •",
        "    •",
        "",
        "     •",
    ]
    assert [line.split("┤")[0].strip() for line in lines[:8]] == ["8", "", "", "4", "", "", "", "0"]
    assert lines[8] == "  └──────" and lines[9].split() == ["1", "600"]
    pairs = curve_lines([4.0, 2.0, 1.0, 1.0], (1, 4), columns=7, lines=3)
    assert pairs == ["  4 ┤", "2.5 ┤•", "  1 ┤ •", "    └──", "     1 4"]
    assert curve_lines([4.0, 2.0], (1, 2), columns=1, lines=3)[1] == "3 ┤•"
    flat = curve_lines([1.0, 1.0], (1, 2), columns=40)
    assert flat[7].endswith("┤••") and len(flat) == 10


def test_page_is_whole_self_contained_and_nothing_in_it_is_markup(tmp_path: Path) -> None:
    evil = replace(rows().rows[3], name=f"people {EVIL}")
    baselines = Baselines((*rows().rows[:3], evil), (f"note {EVIL}",))
    mine = report().results
    forgetting = full_report()
    verdict = judge(f"t@v1 {EVIL}", mine, baselines, forgetting, minimum=0.8)
    run = {**run_of(None), "dataset": {"name": EVIL, EVIL: "x"}}
    made = RunReport(f"t@v1 {EVIL}", "sha256:2", run, forgetting, baselines, mine, verdict)
    page = made.write_html(tmp_path / "deep" / "run.html").read_text()
    seen = Page(page)
    assert {tag for tag, _ in seen.tags} <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "div", "table", "thead"),
        *("tbody", "tr", "th", "td", "figure", "figcaption", "img", "details", "summary"),
    }
    sources = [str(a.get("src")) for tag, a in seen.tags if tag == "img"]
    assert len(sources) == 2 and all(s.startswith("data:image/svg+xml;base64,") for s in sources)
    assert "http" not in page.replace("http-equiv", "") and "\u202e" not in page and "\x1b" not in page
    for said in ("bag of words", "By skill", "Loss by step", "Declared before training", "61.5", "2.5e+12"):
        assert said in seen.text
    assert "\x1b" not in printed(made, 60)


def test_json_is_plain_and_has_no_outcomes() -> None:
    kept = json.loads(json.dumps(report().to_dict()))
    assert kept["verdict"]["decision"] == "ship" and kept["scores"][0]["score"] == 0.9
    assert [row["outcomes"] for row in kept["baselines"]] == [None] * 4
    assert kept["cost"]["flops"] == 2.5e12 and "curve" not in kept["run"]


def put(store: Registry, tmp_path: Path, run: dict[str, Any]) -> Version:
    base = BaseFingerprint.of(make_base(tmp_path / "base"))
    run = {**run, "base": {"name": base.name, "weights": base.weights, "prompt": base.prompt}}
    return store.add("tickets", make_adapter(tmp_path / "adapter"), base=base, run=run)


def score(store: Registry, version: Version, result: EvalResult, subject: str) -> EvalResult:
    keep_suite(store, result.suite)
    made = replace(
        result, subject=subject, base_weights=version.base.weights, base_prompt=version.base.prompt
    )
    store.put_eval(to_record(made))
    return made


@pytest.mark.parametrize("kept", [True, False])
def test_it_is_rebuilt_from_the_store(store: Registry, tmp_path: Path, kept: bool) -> None:
    """With baselines in the record, or, for an older one, with the base's score from the registry."""
    version = put(store, tmp_path, run_of(rows() if kept else None))
    score(store, version, result_of(TARGET, right(0.1)), "base")
    mine = score(store, version, result_of(TARGET, right(0.9)), version.digest)
    shown = replace(result_of(TARGET, right(1.0)), protocol={**mine.protocol, "few_shot": 4})
    score(store, version, shown, version.digest)  # later, with examples: not what the run is judged by
    for suites in (("general-v1",), ("another",)):
        store.put_report(version.digest, "forgetting", replace(report().forgetting, suites=suites).to_dict())
    found = RunReport.of("tickets@v1", store)
    assert found.ref == "tickets@v1" and found.results[0].outcomes == tuple(right(0.9))
    assert found.forgetting.suites == ("general-v1",)
    assert found.cost.flops == 2.5e12
    assert [row.kind for row in found.baselines] == ([r.kind for r in rows()] if kept else [BASE])
    assert found.baselines.rows[0].outcomes == tuple(right(0.1))
    assert found.verdict.decision == "ship"
    assert RunReport.of(version, store, allowed=0.0001).verdict.decision == "not enough evidence"


def test_what_is_missing_is_named(store: Registry, tmp_path: Path) -> None:
    version = put(store, tmp_path, run_of(rows()))
    with pytest.raises(InputError, match="was not measured; inlay forget tickets@v1"):
        RunReport.of("tickets@v1", store)
    store.put_report(version.digest, "forgetting", report().forgetting.to_dict())
    keep_suite(store, TARGET)
    with pytest.raises(InputError, match="no score on its target suite tickets-test"):
        RunReport.of("tickets@v1", store)
    store.add("bare", make_adapter(tmp_path / "bare", seed=1), base=BaseFingerprint.of(tmp_path / "base"))
    with pytest.raises(InputError, match="needs a training record"):
        RunReport.of("bare@v1", store)
