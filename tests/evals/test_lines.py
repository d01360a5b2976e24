"""Lines of versions: which scores stand in the matrix, what fell where, and what is said about gaps."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from difference_fakes import keep, plain_json, run_record
from line_fakes import PER_SKILL, answered, grown
from registry_fakes import score
from rich.console import Console
from scipy.stats import binomtest

from inlay.errors import InputError, ReferenceNotFound
from inlay.evals.line_text import line_rows, print_line, strip
from inlay.evals.lines import Line, line
from inlay.registry import Registry

GENERAL = {"general-v1": [97, 90, 88, 15]}
STORY = [
    {"general-v1": [97, 90, 85, 14], "legal-test": [60]},
    {"general-v1": [96, 86, 20, 14], "legal-test": [88]},
    {"general-v1": [41, 82, 80, 13], "legal-test": [90]},
    {"general-v1": [90, 78, 80, 13], "legal-test": [90]},
]


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Registry]:
    with grown(
        tmp_path, base={**GENERAL, "legal-test": [3]}, held_out={"general-v1": 3}, versions=STORY
    ) as registry:
        yield registry


def column(found: Line, label: str) -> int:
    return [c.label for c in found.columns].index(label)


def naive_p(found: Line, j: int, row: int, against: int) -> float:
    """McNemar's exact p from how the outcomes were made: the first k of 100 items right."""
    before, after = (round(PER_SKILL * float(found.scores[i][j] or 0)) for i in (against, row))
    flips = abs(before - after)
    return float(binomtest(0, flips).pvalue) if flips else 1.0


def test_the_matrix_holds_what_was_scored(told: Registry) -> None:
    found = line(told, "legal")
    assert found.labels == ("base", "v1", "v2", "v3", "v4")
    assert [(c.label, c.role, c.n, c.learned) for c in found.columns] == [
        ("legal-test", "target", 100, 1),
        ("skill0", "general", 100, 0),
        ("skill1", "general", 100, 0),
        ("skill2", "general", 100, 0),
        ("skill3", "protected", 100, 0),
    ]
    by_hand = [[3, 97, 90, 88, 15], *([v["legal-test"][0], *v["general-v1"]] for v in STORY)]
    assert [[round(100 * float(x or 0)) for x in row] for row in found.scores] == by_hand
    assert found.gaps == () and found.commands() == [] and found.notes == ()


def test_figures_stand_in_pairs(told: Registry) -> None:
    found = line(told, "legal")
    general = [[97, 90, 88], [97, 90, 85], [96, 86, 20], [41, 82, 80], [90, 78, 80]]
    last = general[-1]
    bwt = sum(last[j] - general[0][j] for j in range(3)) / 300
    worst = sum(max(row[j] for row in general[:-1]) - last[j] for j in range(3)) / 300
    assert found.forgetting["bwt"].value == pytest.approx(bwt)
    assert found.forgetting["forgetting"].value == pytest.approx(worst)
    assert found.forgetting["average_accuracy"].value == pytest.approx(sum(last) / 300)
    assert found.forgetting["fwt"].columns == 0
    assert found.learning["average_accuracy"].value == pytest.approx(0.9)
    assert found.learning["bwt"].value == pytest.approx(0.3)
    assert found.learning["forgetting"].value == pytest.approx(0.0)


def test_what_was_lost_is_named_with_its_version(told: Registry) -> None:
    found = line(told, "legal")
    lost = {found.columns[c.column].label: (c.row, c.against, c.kind) for c in found.lost}
    # skill1 goes down four items at a time: no single step is more than chance, all three together are.
    assert lost == {"skill2": (2, 1, "before"), "skill0": (3, 2, "before"), "skill1": (4, 1, "best")}
    assert found.sentences() == [
        "legal-test: learnt at v1, 3 -> 60, p < 0.001; v4 has 90",
        "skill2: lost at v2, 85 -> 20, p < 0.001; v4 has 80",
        "skill0: lost at v3, 96 -> 41, p < 0.001; v4 has 90",
        f"skill1: worn down by v4, 90 (v1) -> 78, p = {found.lost[-1].p_adjusted:.3f}",
    ]
    step = found.step(3, column(found, "skill0"))
    assert step is not None and step.fell and (step.worse, step.better) == (55, 0)
    assert step.delta == pytest.approx(-0.55) and step.low is not None and step.high is not None
    assert step.low < step.delta < step.high < 0
    rise = found.step(4, column(found, "skill0"))
    assert rise is not None and rise.rose and not rise.fell


def test_the_tests_are_mcnemars_adjusted_by_holm(told: Registry) -> None:
    found = line(told, "legal")
    for kind in ("before", "best"):
        family = [c for c in found.changes if c.kind == kind]
        assert len(family) == 4 * 5, "every version after the base on every column"
        raw = []
        for change in family:
            p = naive_p(found, change.column, change.row, change.against)
            p = min(1.0, p * (change.row if kind == "best" else 1))
            assert change.p == pytest.approx(p, rel=1e-9)
            raw.append(p)
        # Holm by its definition: the k-th smallest times what is left, never smaller than one before it.
        order, running = sorted(range(len(raw)), key=raw.__getitem__), 0.0
        for rank, index in enumerate(order):
            running = max(running, min(1.0, raw[index] * (len(raw) - rank)))
            assert family[index].p_adjusted == pytest.approx(running, rel=1e-9)
            assert family[index].fell == (running < 0.05 and family[index].delta < 0)
    scores = [row[column(found, "skill0")] for row in found.scores]
    for change in found.changes:
        if change.kind == "best" and change.column == column(found, "skill0"):
            assert scores[change.against] == max(float(s or 0) for s in scores[: change.row])


def test_noise_is_seldom_called_a_loss(tmp_path: Path) -> None:
    """Six versions that are the same model but for noise; a fall anywhere in the line is a wrong one."""
    from inlay.evals.line_records import Column
    from inlay.evals.line_tests import changes

    dice, wrong, trials = random.Random(1), 0, 100
    columns = [Column("s", "d", "s", f"k{j}", "general", 200, "exact_match/1", 0) for j in range(4)]
    for _ in range(trials):
        outcomes = []
        for _ in columns:
            rates = [dice.random() ** 0.3 for _ in range(200)]
            outcomes.append([tuple(dice.random() < rate for rate in rates) for _ in range(6)])
        wrong += any(c.fell for c in changes(columns, outcomes, [()] * 4))
    assert wrong <= 0.1 * trials, "two families of tests, each at 5%"


def test_a_gap_is_a_gap(tmp_path: Path) -> None:
    versions = [{"general-v1": [90, 80]}, {"legal-test": [70]}, {"general-v1": [50, 79], "legal-test": [80]}]
    with grown(tmp_path, base={"general-v1": [91, 82], "legal-test": [10]}, versions=versions) as registry:
        found = line(registry, "legal")
        assert [[None if s is None else round(100 * s) for s in row] for row in found.scores] == [
            [10, 91, 82],
            [None, 90, 80],
            [70, None, None],
            [80, 50, 79],
        ]
        assert found.commands() == [
            "inlay eval legal@v1 --suite legal-test",
            "inlay eval legal@v2 --suite general-v1",
        ]
        assert found.learning["bwt"].value is None and found.learning["bwt"].missing == ((1, 0),)
        assert found.learning["average_accuracy"].value == pytest.approx(0.8)
        assert found.forgetting["bwt"].value == pytest.approx((50 - 91 + 79 - 82) / 200)
        assert found.forgetting["forgetting"].value is None
        assert found.commands(found.forgetting["forgetting"].missing) == [
            "inlay eval legal@v2 --suite general-v1"
        ]
        # The test goes over the gap, and the sentence says so.
        assert "skill0: lost at v3, 90 (v1) -> 50, p < 0.001" in found.sentences()
        registry.retire("legal@v2", why="never used")
        assert line(registry, "legal").commands() == ["inlay eval legal@v1 --suite legal-test"]


def test_only_comparable_scores_share_a_column(tmp_path: Path) -> None:
    versions = [{"general-v1": [90]}, {"general-v1": [80]}, {}, {}]
    with grown(tmp_path, base={"general-v1": [91]}, versions=versions) as registry:
        score(registry, "legal@v3", "general-v1", answered(10), protocol={"template": "chat", "dtype": "x"})
        assert line(registry, "legal").notes == (
            "v3 on general-v1 is a gap: it was scored under another protocol (dtype).",
        )
        keep(registry, "general-v1", 50)
        score(registry, "legal@v4", "general-v1", (True,) * 50)
        found = line(registry, "legal")
        assert [row[0] for row in found.scores] == [0.91, 0.9, 0.8, None, None]
        assert len(found.notes) == 2 and "another content of that name" in found.notes[1]
        # The way that most versions were scored in, though another was newer.
        score(registry, "legal@v1", "general-v1", (True,) * 50)
        score(registry, "legal@v2", "general-v1", (False,) * 50)
        found = line(registry, "legal")
        assert [row[0] for row in found.scores] == [None, 1.0, 0.0, None, 1.0]
        assert "inlay eval legal@v3 --suite general-v1" in found.commands()
        # The other content is still there by its digest, and by that alone.
        (digest,) = {e.suite for e in registry.evals("legal@v3")}
        older = line(registry, "legal", digest)
        assert [row[0] for row in older.scores] == [0.91, 0.9, 0.8, None, None]
        assert older.commands() == [f"inlay eval legal@v{n} --suite {digest}" for n in (3, 4)]


def test_tasks_learnt_in_turn_by_several_names(tmp_path: Path) -> None:
    rates = {
        "task-a": [[5], [80], [60], [30]],
        "task-b": [[6], [9], [85], [70]],
        "task-c": [[7], [4], [20], [90]],
    }
    versions = [{task: rows[i + 1] for task, rows in rates.items()} for i in range(3)]
    base = {task: rows[0] for task, rows in rates.items()}
    with grown(tmp_path, base=base, versions=versions) as registry:
        refs, tasks = ["legal@v1", "legal@v2", "legal@v3"], ["task-a", "task-b", "task-c"]
        found = line(registry, refs, tasks, by="suite")
        assert found.labels == ("base", *refs) and [c.learned for c in found.columns] == [1, 2, 3]
        assert [c.label for c in found.columns] == tasks
        figures = {key: figure.value for key, figure in found.learning.items()}
        assert figures == {
            "average_accuracy": pytest.approx((30 + 70 + 90) / 300),
            "bwt": pytest.approx((30 - 80 + 70 - 85) / 200),
            "fwt": pytest.approx((9 - 6 + 20 - 7) / 200),
            "forgetting": pytest.approx((80 - 30 + 85 - 70) / 200),
        }
        assert [found.labels[c.row] for c in found.lost] == ["legal@v2", "legal@v3"]


def test_a_target_is_learnt_where_it_was_declared(tmp_path: Path) -> None:
    declared = {"target": [{"name": "new-test", "digest": "sha256:" + "0" * 64}], "minimum": None}
    run = {**run_record({"name": "d", "rows": 1}), "declared": declared}
    versions = [{"new-test": [10]}, {"new-test": [20]}, {"new-test": [80]}]
    with grown(tmp_path, base={"new-test": [4]}, versions=versions, runs=[None, None, run]) as registry:
        found = line(registry, "legal")
        assert found.columns[0].learned == 3 and found.columns[0].role == "target"
        assert found.learning["fwt"].value == pytest.approx((20 - 4) / 100)
        registry.lock("acme", {"stack": ["legal@v1"]})
        registry.lock("acme", {"stack": ["legal@v1", "legal@v3"]})
        for number in (1, 2):
            score(registry, f"acme@v{number}", "new-test", answered(30 * number))
        variant = line(registry, "acme")
        assert variant.labels == ("base", "v1", "v2") and variant.columns[0].learned == 2


def test_what_the_base_cannot_do_is_not_forgotten(tmp_path: Path) -> None:
    versions = [{"general-v1": [95, 60]}, {"general-v1": [94, 0]}]
    with grown(tmp_path, base={"general-v1": [95, 9]}, versions=versions) as registry:
        found = line(registry, "legal")
        assert [c.role for c in found.columns] == ["general", "beyond"]
        assert found.lost == () and found.forgetting["bwt"].columns == 1
        assert found.sentences() == ["No column changed by more than chance at any version."]


def test_guessing_right_is_no_skill(tmp_path: Path) -> None:
    from inlay.evals.suites import Suite

    with grown(tmp_path, base={"t": [3]}, versions=[{"t": [50]}]) as registry:
        rows = [
            {"id": f"{k}", "prompt": "?", "choices": ["a", "b"], "answer": "a", "skill": f"s{k % 2}"}
            for k in range(200)
        ]
        suite = Suite.of_rows("general-v1", rows, metric="multiple_choice")
        registry.put_suite(
            "general-v1", suite.digest, suite.to_jsonl(), metric=suite.metric, skills=suite.skill_summary()
        )
        for subject, rates in (("base", (53, 80)), ("legal@v1", (50, 78))):
            score(registry, subject, "general-v1", answered(*rates), metric=suite.metric)
        found = line(registry, "legal")
    roles = {c.label: c.role for c in found.columns if c.suite == "general-v1"}
    # Of two choices half are right by guessing: 53 of 100 are 3 of the 50 left, 80 are 30.
    assert roles == {"s0": "beyond", "s1": "general"}


def test_a_version_that_is_gone_is_left_out_or_marked(told: Registry, tmp_path: Path) -> None:
    told.yank("legal@v3", why="bad")
    told.retire("legal@v2", why="space")
    found = line(told, "legal")
    assert [s.state for s in found.subjects] == ["active", "retired", "yanked", "active"]
    assert found.scores == line(told, ["legal@v1", "legal@v2", "legal@v3", "legal@v4"]).scores
    said = [text.plain for text in line_rows(found, 80)]
    head = next(i for i, text in enumerate(said) if text.split() == ["base", "v1", "v2", "v3", "v4"])
    assert said[head + 1].split() == ["retired", "yanked"]
    found = line(told, "legal", suite="legal-test")
    assert [c.suite for c in found.columns] == ["legal-test"]


def test_never_scored_and_purged(tmp_path: Path) -> None:
    with grown(tmp_path, base={"t": [3]}, versions=[{"t": [50]}, {}, {"t": [60]}]) as registry:
        registry.purge("legal@v2", why="the law")
        found = line(registry, "legal")
        assert found.labels == ("base", "v1", "v3") and found.gaps == ()
        assert found.notes == ("legal@v2 was purged before it was scored, and is left out.",)


def test_graded_metrics_are_tested_and_keep_their_unit(tmp_path: Path) -> None:
    import numpy as np
    from scipy.stats import ttest_rel

    with grown(tmp_path, base={"t": [3]}, versions=[{"t": [50]}, {"t": [60]}]) as registry:
        keep(registry, "nats", 40)
        dice = np.random.default_rng(1)
        rows = [dice.gamma(2.0, 1.0, 40)]
        rows += [rows[0] + dice.normal(0.02, 0.1, 40), rows[0] + dice.normal(1.0, 0.1, 40)]
        for subject, values in zip(("base", "legal@v1", "legal@v2"), rows, strict=True):
            outcomes = tuple(float(x) for x in values)
            score(registry, subject, "nats", outcomes, metric="bits_per_byte/1")
        found = line(registry, "legal")
        j = column(found, "nats")
        assert not found.columns[j].higher_is_better and not found.columns[j].of_one
        assert found.scores[2][j] == pytest.approx(float(np.mean(rows[2])))
        step = found.step(2, j)
        assert (
            step is not None and step.fell and step.delta == pytest.approx(float(np.mean(rows[1] - rows[2])))
        )
        assert step.p <= 1e-6 and ttest_rel(rows[1], rows[2]).pvalue <= 1e-6
        assert found.learning["average_accuracy"].columns == 1, "only shares of one are averaged"
        assert any(s.startswith(f"nats: lost at v2, {found.scores[1][j]:.3g} -> ") for s in found.sentences())
        assert strip(found, j) == ""
        plain_json(found.to_dict())


def test_the_last_few_are_a_line_of_their_own(told: Registry) -> None:
    found = line(told, "legal", last=2)
    assert found.labels == ("base", "v3", "v4") and len(found.scores) == 3
    assert found.scores[1:] == line(told, "legal").scores[3:]
    assert found.notes == ("Versions before legal@v3 are not looked at; --limit takes more of them.",)
    assert line(told, "legal", last=4) == line(told, "legal")


def test_bad_input(told: Registry) -> None:
    with pytest.raises(ReferenceNotFound):
        line(told, "leagl")
    with pytest.raises(InputError, match="none of the versions was scored on 'nothing'"):
        line(told, "legal", suite="nothing")
    told.lock("acme", {"stack": ["legal@v1"]})
    with pytest.raises(InputError, match="none of its versions has any"):
        line(told, "acme")
    with pytest.raises(InputError, match="at least one version"):
        line(told, [])


def test_json_says_all_of_it(told: Registry) -> None:
    found = line(told, "legal")
    written = plain_json(found.to_dict())
    assert written["scores"] == [list(row) for row in found.scores]
    assert written["rows"][1]["ref"] == "legal@v1" and written["sentences"] == found.sentences()
    assert written["forgetting"]["bwt"]["value"] == found.forgetting["bwt"].value
    assert len(written["changes"]) == len(found.changes) and written["missing"] == []


@pytest.mark.parametrize("count", [2, 30])
def test_the_text_fits_and_loses_nothing(tmp_path: Path, count: int) -> None:
    dice = random.Random(3)
    versions = [{"general-v1": [dice.randrange(40, 100) for _ in range(4)]} for _ in range(count)]
    with grown(tmp_path, base={"general-v1": [97, 90, 88, 70]}, versions=versions) as registry:
        found = line(registry, "legal")
    wanted = [f"{100 * float(value or 0):.0f}" for row in found.scores for value in row]
    for width in (50, 60, 80, 200):
        said = [text.plain for text in line_rows(found, width)]
        assert max(map(len, said)) <= width
        words = " ".join(said).split()
        assert {f"v{row}" for row in range(1, count + 1)} <= set(words)
        # Every score stands in the tables, as often as it was made.
        numbers = Counter(word.rstrip("▼▲") for word in words)
        assert all(numbers[number] >= times for number, times in Counter(wanted).items())


def test_the_heat_strip_and_its_plain_form(told: Registry) -> None:
    found = line(told, "legal")
    assert strip(found, column(found, "skill2")) == "█▇▂▇▇"
    assert strip(found, column(found, "skill2"), ascii_only=True) == "#%.%%"
    plain = [text.plain for text in line_rows(found, 80, ascii_only=True)]
    assert all(text.isascii() for text in plain) and any("41-" in text for text in plain)
    assert [len(text) for text in plain] == [len(text.plain) for text in line_rows(found, 80)]
    console = Console(width=80, record=True, force_terminal=True, color_system="standard")
    with console.capture() as capture:
        print_line(found, console)
    assert "\x1b[1;31m" in capture.get() and "41▼" in capture.get() and "60▲" in capture.get()


def test_nothing_that_was_written_steers_the_terminal(tmp_path: Path) -> None:
    from inlay.evals.suites import Suite

    with grown(tmp_path, base={"t": [3]}, versions=[{"t": [50]}]) as registry:
        rows = [
            {
                "id": f"{k}",
                "prompt": "?",
                "answer": "!",
                "skill": f"[bold]\x1b[2J{'evil' if k % 2 else 'good'}",
            }
            for k in range(10)
        ]
        suite = Suite.of_rows("nasty", rows)
        registry.put_suite(
            "nasty", suite.digest, suite.to_jsonl(), metric=suite.metric, skills=suite.skill_summary()
        )
        score(registry, "legal@v1", "nasty", (True,) * 10)
        found = line(registry, "legal")
    console = Console(width=80, record=True)
    with console.capture() as capture:
        print_line(found, console)
    assert "\x1b" not in capture.get() and "[bold]\\x1b[2Jevil" in capture.get()
    assert json.loads(json.dumps(found.to_dict()))["columns"]


def test_what_asks_a_suite_less_neatly_is_shown_where_it_is_named(tmp_path: Path) -> None:
    with grown(
        tmp_path, base={"t": [3], "t--rigid": [2]}, versions=[{"t": [50], "t--rigid": [40]}]
    ) as registry:
        assert [c.suite for c in line(registry, "legal").columns] == ["t"]
        assert [c.suite for c in line(registry, "legal", "t--rigid").columns] == ["t--rigid"]


def test_a_version_that_lost_much_is_counted_first(tmp_path: Path) -> None:
    skills = 20
    versions = [{"general-v1": [90] * skills}, {"general-v1": [10] * (skills - 1) + [90]}]
    with grown(
        tmp_path, base={"general-v1": [90] * skills}, held_out={"general-v1": 8}, versions=versions
    ) as r:
        found = line(r, "legal")
    said = found.sentences()
    assert said[0] == "At v2 fell by more than chance: 8 of 8 held out, 11 of 12 protected."
    assert len(said) == 1 + 19 and "skill9 (protected): lost at v2, 90 -> 10, p < 0.001" in said
    printed = [text.plain for text in line_rows(found, 80)]
    assert f"  … and {len(said) - 12} more, marked in the tables" in printed
    assert sum("▼" in text for text in printed) == 19 + 1, "each in the tables, and the legend"


def test_a_suite_is_general_where_somebody_says_so(tmp_path: Path) -> None:
    suites = ("by-guard", "by-recipe", "by-report", "by-run", "nobody")
    run = {"declared": {"general": [{"name": "by-run", "digest": "sha256:" + "0" * 64}], "target": []}}
    base = {suite: [80] for suite in suites}
    with grown(tmp_path, base=base, versions=[{suite: [79] for suite in suites}], runs=[run]) as registry:
        assert [c.suite for c in line(registry, "legal").columns if c.role == "general"] == ["by-run"]
        registry.promote("legal@v1", "prod")
        registry.set_guard("legal@prod", {"forget": 0.05, "suites": {"general": ["by-guard"]}})
        registry.put_report("legal@v1", "forgetting", {"suites": ["by-report"]})
        found = line(registry, "legal")
        assert [c.suite for c in found.columns] == ["by-recipe", "nobody", "by-guard", "by-report", "by-run"]
        assert [c.role for c in found.columns] == ["target"] * 2 + ["general"] * 3
        guard = {"forget": 0.05, "suites": {"general": ["by-recipe"]}}
        registry.lock("acme", {"compose": {"stack": ["legal@v1"]}, "guard": guard})
        score(registry, "acme@v1", "by-recipe", answered(70))
        assert [c.role for c in line(registry, "acme").columns] == ["general"]
