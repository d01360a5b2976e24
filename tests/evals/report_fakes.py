"""A forgetting report with every part filled, by hand, and text that means ill in most places."""

from __future__ import annotations

import random
from collections.abc import Sequence

from evals_fakes import WEIGHTS

from inlay.evals.drift import Drift
from inlay.evals.forgetting import Flip, ForgettingReport, Graded, Skill, Slice, Target
from inlay.evals.means import PairedMeans
from inlay.evals.overhead import Cell, Overhead, Ratio
from inlay.evals.rigidity import Part, Rigidity, Row
from inlay.evals.routing import BASE, Choices, Routed, RoutingReport, Task
from inlay.evals.statistics import Paired

EVIL = (
    "<script>document.title='owned'</script>\"'&</td></style></textarea></title>"
    "<img src=x onerror=\"document.title='owned'\"> \u202egnp\u202c \x1b[31mred\x07 \ud800 $\\frac{1}{0}$"
)


def full_report(label: str = f"acme@v2 {EVIL}") -> ForgettingReport:
    """Held out: 45 of 360 lost, 8 gained; every table, both kinds of flips, a very long answer."""
    skills = [("extract_field", True, 31, 1), (f"copy {EVIL}", True, 14, 7), ("past_tense", False, 4, 1)]
    rows = tuple(
        Skill(name, held_out, Paired(120, lost, gained, 110 - lost - gained), 0.01, 0.03)
        for name, held_out, lost, gained in skills
    )
    kinds = tuple(
        Row(kind, Paired(150, b, 1, 130 - b), Paired(150, m, 2, 120 - m), Paired(150, m, b, 100 - m))
        for kind, b, m in (("all kinds", 10, 30), ("typo", 8, 22), (f"scots {EVIL}", 2, 8))
    )
    ratio = Ratio(1.25, 1.2, 1.31, 1.29)
    cells = tuple(Cell(batch, 0.01, 0.0125, ratio, 0.004, 0.005, ratio) for batch in (1, 8))
    answers = [
        ("the red car", "the blue car"),
        (EVIL, "x" * 100_000),
        ("two", ""),
        ("three", None),
        ("a\nb", EVIL),
    ]
    flips = tuple(
        Flip(f"general-v1 {EVIL}", f"item-{k} {EVIL}", "copy", k % 2 == 0, f"Say {k} {EVIL}", was, now, was)
        for k, (was, now) in enumerate(answers)
    )
    weighed = {"relative": 0.021, "effective_rank": 9.3, "rank": 16, "largest": f"layers.5 {EVIL}"}
    return ForgettingReport(
        subject=label,
        base_weights=WEIGHTS,
        suites=("general-v1",),
        held_out=Paired(360, 45, 8, 300),
        protected=Paired(120, 4, 1, 105),
        skills=rows,
        targets=(Target(f"tickets {EVIL}", Paired(400, 3, 210, 120)),),
        flips=flips,
        drift=Drift(96, 1200, 0.113, 0.21, 0.11, 0.34),
        slices=(Slice(f"scots {EVIL}", True, Paired(80, 9, 0, 60), 0.004, 0.008),),
        graded=(Graded(f"notes {EVIL}", "target", "rouge_l/1", PairedMeans(120, 0.3, 0.4, 0.01, 0.1, 120)),),
        gained=(
            Flip("general-v1", "item-9", "copy", True, "What?", "the red car", "the red car", "a red boat"),
        ),
        unreached=("multiply", EVIL),
        rigidity=Rigidity(label, WEIGHTS, (Part("general", ("general-v1",), 150, kinds),)).to_dict(),
        overhead=Overhead(label, WEIGHTS, "cpu", "float32", 1, 15, 24, cells).to_dict(),
        weights={
            "whole": {"ref": label, **weighed},
            "members": [{"ref": "tickets@v3", **weighed, "relative": None}],
            "lines": ["acme@v2 is large", "tickets@v3 is larger", f"tickets@v3 was never trained {EVIL}"],
        },
        alarm={"raised": True, "said": f"Alarm: disagreement is 11.0% {EVIL}"},
        routing=full_routing(label).to_dict(),
        created="2026-03-04T12:00:00+00:00",
    )


def full_routing(label: str) -> RoutingReport:
    """Three experts, one of an evil name and one without a suite: every group, a graded task, one that does
    not count."""
    experts = ["tickets@v3", f"faq@v1 {EVIL}", "style@v2"]
    tasks = (
        Task(f"tickets {EVIL}", experts[0], 0.1, 0.81, 0.82, 0.2, Paired(120, 3, 2, 95)),
        Task("faq", experts[1], 0.4, 0.41, 0.42, 0.5, Paired(120, 3, 2, 47)),
        Task("notes", experts[1], 0.3, 0.4, 0.41, None, None),
    )
    return RoutingReport(label, (Choices.of("stack.1", "probe", experts, routed(experts[:2], 120)),), tasks)


def routed(experts: Sequence[str], each: int, *, right: float = 0.95, seed: int = 0) -> list[Routed]:
    """`each` prompts of every expert's task and twice as many of the other groups, `right` of them where they
    should be; the confidences of those are the higher ones."""
    rng = random.Random(seed)
    groups = [("task", expert, each) for expert in experts]
    groups += [(group, BASE, 2 * each) for group in ("general", "protected", "out-of-scope")]
    found = []
    for group, expected, count in groups:
        others = [label for label in (*experts, BASE) if label != expected]
        for k in range(count):
            well = rng.random() < right
            confidence = rng.uniform(0.6, 1.0) if well else rng.uniform(0.3, 0.8)
            chosen = expected if well else rng.choice(others)
            found.append(Routed(group, expected, f"i{k}", expected, chosen, confidence))
    return found
