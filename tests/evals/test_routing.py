"""Routing figures against naive oracles; what is printed, drawn and kept of them."""

from __future__ import annotations

import base64
import io
import json
import math
import random
from collections import Counter
from xml.etree import ElementTree

import pytest
from evals_fakes import result_of, suite_of
from report_fakes import EVIL, full_report, full_routing, routed
from rich.console import Console
from scipy.stats import binomtest

from inlay.errors import InputError
from inlay.evals.forgetting import ForgettingReport
from inlay.evals.report_text import print_report
from inlay.evals.routing import BASE, GENERAL, TASK, Choices, Routed, RoutingReport, Share, Task, floor_of
from inlay.evals.routing_plots import routing_plots
from inlay.evals.routing_tables import routing_tables
from inlay.evals.statistics import Paired
from inlay.evals.suites import Suite

EXPERTS = ["tickets@v3", "faq@v1", "style@v2"]


def choices(prompts: list[Routed], experts: list[str] = EXPERTS) -> Choices:
    return Choices.of("", "probe", experts, prompts)


def test_shares_against_counting() -> None:
    prompts = routed(EXPERTS, 80, right=0.9, seed=3)
    found = choices(prompts)
    for name in ("task", "general", "protected", "out-of-scope"):
        group, mine = found.group(name), [one for one in prompts if one.group == name]
        right = sum(one.chosen == one.expected for one in mine)
        assert group is not None and (group.share.right, group.share.n) == (right, len(mine))
        oracle = binomtest(right, len(mine)).proportion_ci(method="wilson")
        assert group.share.interval == pytest.approx((oracle.low, oracle.high), abs=1e-12)
        assert group.confidence == pytest.approx(math.fsum(o.confidence or 0 for o in mine) / len(mine))
    each = []
    for expert, row in zip(EXPERTS, found.by_expert, strict=True):
        mine = [one for one in prompts if one.expected == expert]
        each.append(sum(one.chosen == expert for one in mine) / len(mine))
        assert (row.name, row.share.n, row.share.value) == (expert, 80, each[-1])
    assert found.macro == pytest.approx(sum(each) / 3)


def test_prompts_of_one_template_count_as_few() -> None:
    """Intervals hold the truth: 300 draws of 40 templates of ten prompts, right together or not."""
    rng, held, width = random.Random(1), 0, 0.0
    for _ in range(300):
        fates = [rng.random() < 0.9 for _ in range(40)]
        share = Share.of(
            [fate for fate in fates for _ in range(10)], [k for k in range(40) for _ in range(10)]
        )
        low, high = share.interval
        held, width = held + (low <= 0.9 <= high), width + high - low
        assert share.n == 400 and share.effective <= 40
    assert held >= 0.95 * 300 and width / 300 > 0.15
    plain = Share.of([True] * 380 + [False] * 20)
    assert (
        plain.effective == 400
        and plain.interval == Share.of([True] * 380 + [False] * 20, [None] * 400).interval
    )
    assert Share.of([True] * 40, [k // 2 for k in range(40)]).interval[1] == 1.0
    assert Share.of([]).interval == (0.0, 1.0) and Share.of([]).value == 0.0


def test_calibration_against_loops() -> None:
    prompts = routed(EXPERTS, 70, right=0.8, seed=5)
    prompts += [Routed(TASK, "s", f"edge{c}", EXPERTS[0], EXPERTS[0], c) for c in (0.0, 0.1, 0.5, 1.0)]
    found = choices(prompts)
    judged = [one for one in prompts if one.group in (TASK, GENERAL)]
    brier = error = 0.0
    for one in judged:
        brier += ((one.confidence or 0.0) - (one.chosen == one.expected)) ** 2 / len(judged)
    for k in range(10):
        held = [
            o
            for o in judged
            if k / 10 <= (o.confidence or 0.0) < (k + 1) / 10 or (k == 9 and o.confidence == 1)
        ]
        if held:
            right = sum(o.chosen == o.expected for o in held) / len(held)
            mean = sum(o.confidence or 0.0 for o in held) / len(held)
            error += len(held) / len(judged) * abs(right - mean)
            (here,) = [b for b in found.bins if b.low == k / 10]
            assert (here.n, here.confidence) == (len(held), pytest.approx(mean))
    assert sum(b.n for b in found.bins) == len(judged)
    assert found.ece == pytest.approx(error) and found.brier == pytest.approx(brier)


def test_a_router_without_confidences_has_no_calibration() -> None:
    prompts = [Routed(TASK, "s", "1", EXPERTS[0], EXPERTS[0]), Routed(GENERAL, "g", "2", BASE, BASE, 0.9)]
    found = choices(prompts)
    assert found.bins == () and found.ece is None and found.brier is None
    assert found.groups[0].confidence is None
    report = RoutingReport("acme@v2", (found,))
    assert not any("calibration" in sentence for sentence in report.sentences())
    assert [t.title for t in routing_tables(report.to_dict())] == [
        "Routing",
        "Routing by expert",
        "Confusion matrix",
    ]
    assert list(routing_plots(report.to_dict())) == ["Confusion matrix"]


def test_the_confusion_matrix_against_counting() -> None:
    prompts = routed(EXPERTS, 50, right=0.7, seed=2)
    matrix = choices(prompts).matrix(3)
    assert matrix.columns == (BASE, *EXPERTS) and matrix.left_out == 0
    assert matrix.rows == (*EXPERTS, "general", "protected", "out-of-scope")
    pairs = Counter((o.expected if o.group == TASK else o.group, o.chosen) for o in prompts)
    for row, counts in zip(matrix.rows, matrix.counts, strict=True):
        assert counts == tuple(pairs[row, column] for column in matrix.columns)


def test_of_many_experts_the_confused_ones_are_shown() -> None:
    experts = [f"e{k:03d}@v1" for k in range(1000)]
    prompts = [Routed(TASK, "s", f"{k}", e, e) for k, e in enumerate(experts) for _ in range(2)]
    prompts += [Routed(TASK, "s", "x", experts[700], experts[20]) for _ in range(5)]
    prompts += [
        Routed(GENERAL, "g", "y", BASE, experts[20]),
        Routed(TASK, "s", "z", experts[20], experts[999]),
    ]
    matrix = choices(prompts, experts).matrix(2)
    assert (matrix.columns, matrix.left_out) == ((BASE, experts[20], experts[700], "others"), 998)
    assert matrix.rows == (experts[20], experts[700], "general")
    assert matrix.counts == ((0, 2, 0, 1), (0, 5, 2, 0), (0, 1, 0, 0))
    report = RoutingReport("acme@v2", (choices(prompts, experts),))
    notes = {table.title: table.note for table in routing_tables(report.to_dict())}
    assert "The 6 of 1000 experts with the most confusions" in notes["Confusion matrix"]
    assert notes["Routing by expert"] == "The 20 of 1000 experts that get the least."
    plot = routing_plots(report.to_dict())["Confusion matrix"]
    assert plot.wide and "The 16 of 1000 experts" in plot.caption


def test_what_an_oracle_would_score_is_shared_by_hand() -> None:
    suite = suite_of(40, name="tickets")
    oracle, mine = [k % 4 != 0 for k in range(40)], [(k % 4 != 0 and k != 1) or k == 0 for k in range(40)]
    task = Task.of("tickets@v3", *(result_of(suite, x) for x in ([False] * 40, mine, oracle)))
    assert (task.base, task.routed, task.oracle, task.floor) == (0.0, 0.75, 0.75, pytest.approx(0.125))
    assert task.counts == Paired.of(oracle, mine) and task.counts.lost == task.counts.gained == 1
    weak = Task("faq", "faq@v1", 0.2, 0.18, 0.3, 0.35, Paired(50, 7, 1, 8))
    graded = Task("notes", "style@v2", 0.1, 0.3, 0.4, None, None)
    report = RoutingReport("acme@v2", (choices(routed(EXPERTS, 4)),), (task, weak, graded))
    assert (task.counted, weak.counted, graded.counted) == (True, False, False)
    assert report.oracle_share(counted=False) == pytest.approx((0.75 + 0.18) / (0.75 + 0.3))
    assert report.oracle_share(counted=True) == 1.0
    assert report.oracle_share(counted=False, gain=True) == pytest.approx((0.75 - 0.02) / (0.75 + 0.1))
    assert "100.0% over the 1 of 2 tasks whose expert beats the floor" in report.verdict
    alone = RoutingReport("acme@v2", report.routes, (graded,))
    assert alone.oracle_share(counted=False) is None and "oracle" not in alone.verdict
    assert "(none of the 1 experts beats" in RoutingReport("acme@v2", report.routes, (weak,)).verdict


def test_the_floor_is_what_no_skill_gets() -> None:
    def suite(*rows: dict[str, object]) -> Suite:
        return Suite.of_rows("s", [{"id": f"{k}", "prompt": f"q{k}", **row} for k, row in enumerate(rows)])

    assert floor_of(suite(*({"answer": x} for x in "aabc"))) == pytest.approx(0.5 + 0.1)
    options = {"choices": ["w", "x", "y", "z"], "metric": "multiple_choice"}
    assert floor_of(suite(*({**options, "answer": x} for x in "wxyz"))) == pytest.approx(0.25 + 0.1)


def test_the_verdict_in_words() -> None:
    prompts = [Routed(TASK, "s", f"{k}", EXPERTS[0], EXPERTS[k == 0]) for k in range(100)]
    tasks = (Task("s", EXPERTS[0], 0.0, 0.9, 0.91, 0.2, Paired(100, 2, 1, 89)),)
    only = RoutingReport("acme@v2", (choices(prompts),), tasks)
    assert only.verdict == (
        "acme@v2 sends 99.0% of task prompts to the right adapter (n=100, 95% interval 94.6 to 99.8), and "
        "keeps 98.9% of the oracle's score."
    )
    general = [Routed(GENERAL, "g", f"{k}", BASE, BASE) for k in range(50)]
    assert RoutingReport("acme@v2", (choices([*prompts, *general]),), tasks).verdict == (
        "acme@v2 sends 99.0% of task prompts to the right adapter (n=100, 95% interval 94.6 to 99.8), 100.0% "
        "of held-out general prompts to the base (n=50, 95% interval 92.9 to 100.0), and keeps 98.9% of the "
        "oracle's score."
    )
    assert RoutingReport("acme@v2", (choices(general),)).verdict == (
        "acme@v2 sends 100.0% of held-out general prompts to the base (n=50, 95% interval 92.9 to 100.0)."
    )
    outside = [Routed("out-of-scope", "o", "1", BASE, EXPERTS[0])]
    assert "neither task prompts nor" in RoutingReport("acme@v2", (choices(outside),)).verdict


def test_tokens_and_several_routes_are_said() -> None:
    one = Choices.of("stack.1", "arrow", EXPERTS, routed(EXPERTS, 5))
    two = Choices.of("stack.1.route.0", "probe", EXPERTS, routed(EXPERTS, 5))
    report = RoutingReport("acme@v2", (one, two))
    assert "arrow at stack.1 weighs the experts token by token" in " ".join(report.sentences())
    titles = [table.title for table in routing_tables(report.to_dict())]
    assert titles[0] == "Routing at stack.1" and titles[4] == "Routing at stack.1.route.0"
    assert set(routing_plots(report.to_dict())) <= set(titles) and len(routing_plots(report.to_dict())) == 4


def test_it_comes_back_from_json() -> None:
    report = full_routing("acme@v2")
    data = json.loads(json.dumps(report.to_dict()))
    assert (
        RoutingReport.from_dict(data) == report
        and RoutingReport.from_dict(data).to_dict() == report.to_dict()
    )
    assert data["routes"][0]["ece"] == report.routes[0].ece
    assert data["oracle"]["all"]["score"] == report.oracle_share(counted=False)
    with pytest.raises(InputError, match="must have schema 1, got 7"):
        RoutingReport.from_dict({**data, "schema": 7})
    whole = full_report("acme@v2")
    kept = ForgettingReport.from_dict(json.loads(json.dumps(whole.to_dict()))).routing
    assert kept is not None and RoutingReport.from_dict(kept) == full_routing("acme@v2")
    assert "routing" in whole.levels["registration"]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="of task, general, protected, out-of-scope, and is of 'other'"):
        Routed("other", "s", "i", BASE, BASE)
    for group, expected in ((TASK, BASE), (GENERAL, EXPERTS[0])):
        with pytest.raises(InputError, match=f"one of {group} expects '{expected}'"):
            Routed(group, "s", "i", expected, BASE)
    for confidence in (math.nan, 1.5, -0.1):
        with pytest.raises(InputError, match="between 0 and 1, and is"):
            Routed(GENERAL, "s", "i", BASE, BASE, confidence)
    with pytest.raises(InputError, match="and one names 'stranger@v1'"):
        choices([Routed(GENERAL, "s", "i", BASE, "stranger@v1")])
    with pytest.raises(InputError, match="and there are none"):
        choices([])
    suite = suite_of(4)
    good = result_of(suite, [True] * 4)
    with pytest.raises(InputError, match="a comparison needs one suite"):
        Task.of("a@v1", good, good, result_of(suite_of(5), [True] * 5))


@pytest.mark.parametrize("width", [60, 100])
@pytest.mark.parametrize("experts", [3, 9, 40])
def test_the_tables_fit(width: int, experts: int) -> None:
    labels = [f"adapter-with-a-name-{k}@v{k}+house-style@v2" for k in range(experts)]
    routing = RoutingReport("acme@v2", (choices(routed(labels, 250, right=0.6), labels),)).to_dict()
    out = io.StringIO()
    report = ForgettingReport("acme@v2", "b", (), Paired(0, 0, 0, 0), Paired(0, 0, 0, 0), (), routing=routing)
    print_report(report, Console(file=out, width=width))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    start = lines.index("Confusion matrix")
    shown = min(experts, 6)
    heads = ["base", *map(str, range(1, shown + 1)), *(["others"] if experts > 6 else [])]
    assert lines[start + 1].split() == ["prompts", *heads]


def test_plots_say_the_counts_and_run_nothing() -> None:
    plots = routing_plots(full_routing(EVIL).to_dict())
    assert list(plots) == ["Confusion matrix", "Confidence"]
    bins = full_routing(EVIL).routes[0].bins
    for one in bins:
        assert f"{one.right} of {one.n} right at {100 * one.low:.0f} to" in plots["Confidence"].alternative
    for plot in plots.values():
        svg = ElementTree.fromstring(base64.b64decode(plot.image.partition(",")[2]))
        names = {element.tag.rpartition("}")[2] for element in svg.iter()}
        assert "path" in names and not {"script", "foreignObject"} & names
    assert routing_plots(full_routing(EVIL).to_dict()) == plots
