"""The composer: recipes to plans, plans to a bank on the device.

factors/       every adapter as factors, delta = B @ A, one file a kind
conversion.py  adapters whose start changed the base become plain ones
truncation.py  what a rank keeps of adapters that are no products of factors
alone.py       one of those by itself, run by PEFT
plan.py        a lock laid out: slots, gates, costs; no torch
slots.py       what a plan puts into the bank: a version's factors, or several merged into one
bank.py        the one layer that runs composed adapters: slots, loaded and unloaded while the model stays
gate.py        how much of each adapter a row gets, and what each layer prepares for it
paths.py       ways through the bank to the same numbers
costs.py       which of them is the fastest
site.py        a layer as its gate knows it
token_routes.py  routers of tokens: checked, and prepared for a layer
token_paths.py ways through the bank where every token chooses
observed.py    what tokens chose
model.py       a reference or a recipe becomes a model that answers
routing.py     what the routes of a plan choose, who may be chosen, and the gate that comes of it
prefill.py     the pass that chose, kept as the first step of answering
experts.py     a recipe with an expert more or less
bases.py       is this the base that it was made for, and where does it lie
locking.py     a recipe becomes a lock, its routers fitted
measure.py     scores and forgetting of composed models
routing_report.py  where their routers send prompts, and what that costs
calibrating.py a base's drift alarm, found on deltas that make it forget
blaming.py     which member costs what: each alone, and the whole without it
choosing/      which composition of adapters measures best, and why: candidates, scans, policy
removal.py     a pinned tree of which one member speaks alone, or is taken away
ablations.py   several compositions in one loaded model, asked together
ablation_scores.py  their outcomes on suites, each from where it is known
export.py      a stack or a merge leaves as one plain PEFT adapter
lint.py        what serving engines would say about it
folding.py     or leaves in the weights of its base
overlaps.py    how much of each other's directions two members use
weights.py     how large adapters are beside the weights they change
stacking.py    a stack as one adapter
merging/       one adapter out of several: methods, core space, truncation
difference.py  what differs between two versions or locks, norms of deltas among it
routers/       what chooses an expert for a request
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inlay.composer.blaming import blame
    from inlay.composer.choosing.auto import auto
    from inlay.composer.conversion import add_converted, convert
    from inlay.composer.difference import diff
    from inlay.composer.factors import Adapter, read_adapter
    from inlay.composer.locking import lock
    from inlay.composer.measure import evaluate, forgetting
    from inlay.composer.merging.cat import cat
    from inlay.composer.merging.learned import add_cat
    from inlay.composer.merging.merge import merge
    from inlay.composer.model import ComposedModel, compose
    from inlay.composer.plan import Plan, make_plan
    from inlay.composer.truncation import add_truncated, truncate
    from inlay.composer.weights import weigh

_HOMES = {
    "Adapter": "factors",
    "ComposedModel": "model",
    "Plan": "plan",
    "add_cat": "merging.learned",
    "add_converted": "conversion",
    "add_truncated": "truncation",
    "auto": "choosing.auto",
    "blame": "blaming",
    "cat": "merging.cat",
    "compose": "model",
    "convert": "conversion",
    "truncate": "truncation",
    "diff": "difference",
    "evaluate": "measure",
    "forgetting": "measure",
    "lock": "locking",
    "make_plan": "plan",
    "merge": "merging.merge",
    "read_adapter": "factors",
    "weigh": "weights",
}

__all__ = [
    "Adapter",
    "ComposedModel",
    "Plan",
    "add_cat",
    "add_converted",
    "add_truncated",
    "auto",
    "blame",
    "cat",
    "compose",
    "convert",
    "diff",
    "evaluate",
    "forgetting",
    "lock",
    "make_plan",
    "merge",
    "read_adapter",
    "truncate",
    "weigh",
]


def __getattr__(name: str) -> Any:
    """Names load on first use: a plan needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'inlay.composer' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"inlay.composer.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
