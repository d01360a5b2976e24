"""Evals: suites, metrics, paired statistics and forgetting. Numbers about models, given as callables.

    suites.py          items with answers, known by digest; held-out and protected skills
    suite_check.py     what is wrong with a suite, and what a guard can tell with it
    contamination.py   items of a suite that stand in training data
    metrics/           how one answer is scored, one file a family
    statistics.py      paired statistics in plain Python: Tango, McNemar, Wilson, Holm; clusters
    means.py           the same for graded metrics
    student.py         Student's t
    asking.py          from a suite to questions, and from what was said to outcomes
    decoding.py        greedy, or sampled with a seed
    partial.py         what an interrupted evaluation had found
    inference.py       the one place that turns prompts into tensors
    prompts.py         general prompts for staying near the base
    scoring.py         a model asked a suite
    ledger.py          measuring with the registry as memory
    drift.py           KL and disagreement with the base, whose side is cached
    cache.py           what measuring keeps to be faster: bounded, verified when read
    calibration.py     from which drift on a base's alarm is raised
    load_time.py       the report at load: one pass over a fixed probe
    forgetting.py      the report: what was lost and gained, and how sure that is
    blame.py           which member of a variant costs what, from outcomes
    blame_text.py      a blame report on a terminal
    blame_html.py      and as one page
    frontier.py        what candidates learned and forgot, and which no other beats
    frontier_tables.py as tables
    frontier_text.py   on a terminal
    frontier_html.py   and as one page
    page.py            a report as one file of HTML, everything in it escaped
    score_changes.py   two subjects on the same items, suite by suite
    difference.py      what differs between two versions or locks: the records
    comparing.py       how it is read out of the registry
    difference_text.py a difference on a terminal
    changelog.py       the story of a name, for readers who are no engineers
    lines.py           a line of versions out of the registry: what each scores on each skill
    line_records.py    the record of it, and its sentences
    line_tests.py      at which version a skill fell or rose by more than chance
    line_text.py       a line on a terminal
    line_html.py       and as one page
    transfer.py        average accuracy, BWT, FWT and the forgetting measure
    guards.py          a guard's thresholds against evidence
    guard_general.py   what is asked of general suites: all held-out skills, and each
    guard_targets.py   of target suites: gain, regress, rigidity, retention
    guard_figures.py   what these checks share
    perturbing.py      the same questions with typos, other case, spaces and wordings
    rigidity.py        what a model loses by them, beside its base
    overhead.py        what composing costs in time, in pairs
    routing.py         how well a router chooses, what that costs, how honest its confidences are
    routing_tables.py  as tables
    routing_plots.py   and as plots
    table.py           a table of plain text
    report_tables.py   the report as tables and sentences
    report_flips.py    two answers word by word
    report_text.py     the report on a terminal
    report_html.py     the report as one self-contained page
    report_plots.py    its plots

Names load on first use: judging a promotion imports neither torch nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inlay.evals.drift import Drift, measure_drift
    from inlay.evals.forgetting import ForgettingReport, compare, uninformative
    from inlay.evals.guards import judge
    from inlay.evals.inference import Chat
    from inlay.evals.metrics import METRICS, Metric
    from inlay.evals.scoring import EvalResult, evaluate_model, from_record, to_record
    from inlay.evals.statistics import Paired
    from inlay.evals.suites import Item, Suite

_HOMES = {
    "METRICS": "metrics",
    "Chat": "inference",
    "Drift": "drift",
    "EvalResult": "scoring",
    "ForgettingReport": "forgetting",
    "Item": "suites",
    "Metric": "metrics",
    "Paired": "statistics",
    "Suite": "suites",
    "compare": "forgetting",
    "evaluate_model": "scoring",
    "from_record": "scoring",
    "judge": "guards",
    "measure_drift": "drift",
    "to_record": "scoring",
    "uninformative": "forgetting",
}

__all__ = [
    "METRICS",
    "Chat",
    "Drift",
    "EvalResult",
    "ForgettingReport",
    "Item",
    "Metric",
    "Paired",
    "Suite",
    "compare",
    "evaluate_model",
    "from_record",
    "judge",
    "measure_drift",
    "to_record",
    "uninformative",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'inlay.evals' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"inlay.evals.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
