"""The arithmetic of blame on outcomes written by hand, and how its report reads."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from inlay.errors import InputError
from inlay.evals.blame import BlameReport, Measured, Part, blame
from inlay.evals.blame_html import write_blame
from inlay.evals.blame_text import bar
from inlay.evals.statistics import Paired, holm, mcnemar, tango_interval
from inlay.evals.suites import Suite

N = 100


def suite_of(**skills: tuple[int, bool]) -> Suite:
    """Skills with (items, held out)."""
    rows = [
        {"prompt": f"{skill} {k}", "answer": "a", "id": f"{skill}{k}", "skill": skill}
        | {"split": "held_out" if held else "protected"}
        for skill, (n, held) in skills.items()
        for k in range(n)
    ]
    return Suite.of_rows("general", rows)


GENERAL = suite_of(sums=(60, True), words=(40, True), kept=(50, False), never=(30, True))
TARGET = Suite.of_rows("target", [{"prompt": f"t{k}", "answer": "a", "id": f"t{k}"} for k in range(20)])


def outcomes(wrong: Callable[[str, int], bool], suite: Suite = GENERAL) -> list[bool]:
    """Right but where `wrong(skill, number within the skill)`; the base never answers `never`."""
    seen: dict[str, int] = {}
    found = []
    for item in suite.items:
        seen[item.skill] = seen.get(item.skill, -1) + 1
        found.append(item.skill != "never" and not wrong(item.skill, seen[item.skill]))
    return found


def scores(wrong: Callable[[str, int], bool], right_targets: int = 10) -> Measured:
    return Measured([outcomes(wrong)], [[k < right_targets for k in range(20)]])


def report(**changes: Any) -> BlameReport:
    """Three members: `bad` breaks 20 sums, `odd` 3 words, `fine` nothing; the whole breaks both."""
    parts = [
        Part("fine@v1", "stack.0", 1.0, scores(lambda s, k: False, 12), scores(broken_by("bad", "odd"), 13)),
        Part("bad@v1", "stack.1", 0.5, scores(broken_by("bad"), 15), scores(broken_by("odd"), 11)),
        Part("odd@v1", "stack.2", 1.0, scores(broken_by("odd"), 10), scores(broken_by("bad"), 16)),
    ]
    given = {
        "base": scores(lambda s, k: False),
        "whole": scores(broken_by("bad", "odd"), 16),
        "general": [GENERAL],
        "target": [TARGET],
        "subject": "acme@v2",
        "base_weights": "sha256:" + "0" * 64,
    }
    return blame(parts, **{**given, **changes})


def broken_by(*members: str) -> Callable[[str, int], bool]:
    def wrong(skill: str, number: int) -> bool:
        return (skill == "sums" and number < 20 and "bad" in members) or (
            skill == "words" and number < 3 and "odd" in members
        )

    return wrong


def test_members_are_ranked_by_what_removing_them_brings_back() -> None:
    found = report()
    assert [member.name for member in found.members] == ["bad@v1", "odd@v1", "fine@v1"]
    bad, odd, fine = found.members
    assert bad.removed == Paired(N, 20, 0, N - 23), "held-out items of reached skills: 60 sums and 40 words"
    assert bad.alone == Paired(N, 20, 0, 80)
    assert odd.removed == Paired(N, 3, 0, 77)
    assert fine.removed.loss == fine.alone.loss == 0.0
    assert found.whole == Paired(N, 23, 0, 77)
    low, high = tango_interval(N, 20, 0)
    assert bad.removed.loss_interval == (-high, -low)
    adjusted = holm([mcnemar(20, 0), mcnemar(3, 0), 1.0])
    assert [m.p_adjusted for m in found.members] == pytest.approx(adjusted)
    assert found.interaction == pytest.approx(0.0)
    assert [(hit.name, hit.removed.lost, hit.removed.n) for hit in bad.skills] == [("sums", 20, 60)]
    assert fine.skills == ()


def test_a_culprit_is_named_only_where_it_is_shown() -> None:
    found = report()
    assert found.culprit is found.members[0]
    assert "removing bad@v1 brings back 20.0" in found.verdict
    assert not found.members[1].shown, "three items of a hundred: p = 0.25"
    parts = [Part("odd@v1", "stack.0", 1.0, scores(broken_by("odd")), scores(broken_by()))]
    weak = blame(
        parts,
        base=scores(broken_by()),
        whole=scores(broken_by("odd")),
        general=[GENERAL],
        target=[TARGET],
        subject="acme@v2",
        base_weights="",
    )
    assert weak.culprit is None and "no single member is shown to be to blame" in weak.verdict


def test_holm_counts_the_members() -> None:
    """Six items of a hundred: p = 1/32, which one member survives and two do not."""

    def wrong(skill: str, number: int) -> bool:
        return skill == "sums" and number < 6

    for others, shown in ((0, True), (1, False)):
        parts = [Part("six@v1", "stack.0", 1.0, scores(wrong), scores(broken_by()))]
        parts += [Part(f"none{i}@v1", "", 1.0, scores(broken_by()), scores(wrong)) for i in range(others)]
        found = report_of(parts, scores(wrong))
        assert found.members[0].p == pytest.approx(2 / 64)
        assert (found.culprit is not None) is shown


def report_of(parts: Sequence[Part], whole: Measured) -> BlameReport:
    return blame(
        parts,
        base=scores(broken_by()),
        whole=whole,
        general=[GENERAL],
        target=[TARGET],
        subject="acme@v2",
        base_weights="",
    )


def test_what_hurts_only_together_is_interaction() -> None:
    parts = [
        Part(f"{name}@v1", f"stack.{i}", 1.0, scores(broken_by()), scores(broken_by()))
        for i, name in enumerate(("one", "two"))
    ]
    found = report_of(parts, scores(broken_by("bad")))
    assert found.interaction == pytest.approx(0.2)
    assert all(member.shown and member.alone.loss == 0.0 for member in found.members)
    assert "two@v1 shown as well" in found.verdict


def test_ties_go_to_what_loses_more_alone() -> None:
    parts = [
        Part("mild@v1", "stack.0", 1.0, scores(broken_by("odd")), scores(broken_by())),
        Part("harsh@v1", "stack.1", 1.0, scores(broken_by("bad")), scores(broken_by())),
    ]
    assert report_of(parts, scores(broken_by("bad"))).members[0].name == "harsh@v1"


def test_targets_say_what_a_member_gains_and_removing_it_costs() -> None:
    shares = {member.name: member.targets[0] for member in report().members}
    assert shares["bad@v1"].alone.delta == pytest.approx(5 / 20)
    assert shares["bad@v1"].removed.delta == pytest.approx((16 - 11) / 20)
    assert shares["odd@v1"].removed.delta == 0.0


def test_items_of_one_cluster_count_as_such() -> None:
    rows = [{**item.to_row(), "cluster": f"c{i // 4}"} for i, item in enumerate(GENERAL.items)]
    clustered = Suite.of_rows("general", rows)
    found = report(general=[clustered]).members[0].removed
    plain = report().members[0].removed
    assert found.loss == plain.loss
    width = [high - low for low, high in (found.loss_interval, plain.loss_interval)]
    assert width[0] > width[1], "twenty lost items of five templates say less than twenty of their own"


def test_the_report_is_the_same_when_read_again() -> None:
    found = report(passes=7, remembered=1)
    written = found.to_dict()
    assert BlameReport.from_dict(written) == found
    assert written["culprit"] == "bad@v1"
    assert written["members"][0]["brings_back"]["estimate"] == pytest.approx(0.2)
    with pytest.raises(InputError, match="schema 1, got 9"):
        BlameReport.from_dict({**written, "schema": 9})


def test_outcomes_must_cover_the_suites() -> None:
    with pytest.raises(InputError, match="an outcome for each item"):
        report(whole=Measured([[True]], [[True] * 20]))


def test_bars_are_drawn_to_an_eighth() -> None:
    assert bar(0.5, 1.0, columns=8) == "████"
    assert bar(1.0, 1.0, columns=8) == "█" * 8
    assert bar(5.5 / 64, 1.0, columns=8) == "▊"
    assert bar(0.0, 1.0, columns=8) == ""
    assert bar(-0.25, 1.0, columns=8) == "░░"


def test_the_terminal_gets_80_columns_and_no_commands() -> None:
    from rich.console import Console

    nasty = Part(
        "[red]\x1b[31mevil\n" + "x" * 60, "stack.0", 1.0, scores(broken_by("bad")), scores(broken_by())
    )
    file = io.StringIO()
    report_of([nasty], scores(broken_by("bad"))).print(Console(file=file, width=80, color_system=None))
    text = file.getvalue()
    assert "\x1b" not in text and "[red]" in text
    rows = text.splitlines()
    assert max(map(len, rows)) <= 80
    assert any("█" * 10 in row and "20.0" in row for row in rows), "the bars"
    assert any("removal returns" in row for row in rows)
    whole = io.StringIO()
    report().print(Console(file=whole, width=80, color_system=None))
    table = [row for row in whole.getvalue().splitlines() if "bad@v1" in row and "[" in row]
    assert any("20.0 [13.3, 28.9]" in row and "< 0.001" in row for row in table)
    assert "…" not in whole.getvalue(), "nothing is cut where names are short"


def test_the_page_escapes_names_and_needs_nothing_else(tmp_path: Path) -> None:
    parts = [Part("<script>alert(1)</script>", "stack.0", 1.0, scores(broken_by("bad")), scores(broken_by()))]
    page = write_blame(
        tmp_path / "out" / "blame.html", report_of(parts, scores(broken_by("bad")))
    ).read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "20.0 [13.3, 28.9]" in page and "<svg" in page
