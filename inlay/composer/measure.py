"""Measuring composed models: scores and forgetting, by reference or on one that is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from inlay.composer.model import BaseLike, ComposedModel, compose
from inlay.composer.routing_report import aims_of, measure_routing
from inlay.composer.weights import weigh
from inlay.errors import InputError
from inlay.evals.decoding import Decoding
from inlay.evals.forgetting import ForgettingReport, reached_part
from inlay.evals.ledger import How, Say, measure, paired, scored
from inlay.evals.load_time import at_load
from inlay.evals.perturbing import Given
from inlay.evals.prompts import read_prompts
from inlay.evals.scoring import EvalResult
from inlay.evals.suites import Suite
from inlay.registry import Registry
from inlay.registry.fingerprint import cache_dir

GENERAL = "general-v1"
"""The suite that forgetting is measured on where no other is named."""

SuiteLike = Suite | str | Path


def suite_of(suite: SuiteLike, store: Registry | None = None) -> Suite:
    """A suite as it is, or loaded from a file, a folder, the store or what ships."""
    return suite if isinstance(suite, Suite) else Suite.load(suite, store=store)


def evaluate(
    model: ComposedModel | str,
    suite: SuiteLike,
    *,
    store: Registry | None = None,
    base: BaseLike = None,
    sample: Decoding | Mapping[str, Any] | None = None,
    embedding: str | Path | None = None,
    say: Say | None = None,
) -> EvalResult:
    """Score a composed model, or what a reference names, on a suite; kept in the store.

    The base is scored on the same suite, so that the two can be compared item by item. Answers are greedy, or
    drawn as `sample` says: {"temperature": 0.7, "top_p": 0.9, "seed": 0}; guards count greedy scores only
    unless they ask for others. `embedding`: the folder of the embedding model, for the metric similarity.
    `say` hears as well, as "note: …", what makes scores on the suite mean something else than they say.
    """
    how = How(Decoding.of(sample), embedding)
    if isinstance(model, str):
        model = compose(model, store=store, base=base)
    store = store or model.store
    suite = suite_of(suite, store)
    if say is not None:
        for line in _remarks(suite, store):
            say(f"note: {line}", 1, 1)
    _, after = paired(
        model.base_chat,
        model.chat,
        suite,
        subject=model.target.digest,
        label=model.target.ref,
        store=store,
        how=how,
        say=say,
    )
    return after


def _remarks(suite: Suite, store: Registry) -> list[str]:
    """What a check of the suite calls an error, and whether the store knows another suite of its name."""
    from inlay.evals.suite_check import check

    found = check(suite, store=store).findings
    return [f.sentence() for f in found if f.level == "error" or f.kind == "other-digest"]


def forgetting(
    model: ComposedModel | str,
    *,
    general: Sequence[SuiteLike] = (GENERAL,),
    target: Sequence[SuiteLike] = (),
    store: Registry | None = None,
    base: BaseLike = None,
    rigidity: Given | bool = False,
    overhead: bool = False,
    routing: bool | Mapping[str, str] = False,
    out_of_scope: str | Path | Sequence[str] | None = None,
    level: str = "registration",
    say: Say | None = None,
) -> ForgettingReport:
    """What a composed model forgot of the general skills and gained on its targets; kept in the store.

    Losses on protected skills stand beside those on held-out ones; the verdict is about the latter.
    `rigidity`: ask the suites with typos, other letter case, spaces and wordings as well; `Given` adds
    misspellings, wordings and variants of one's own. `overhead`: time the model against its base as well.
    `routing`: say how well a route chooses and what that costs on the targets; {name of a target suite: the
    expert it is for} where that is not plain (`routing_report.aims_of`). `out_of_scope`: prompts that no
    expert is for, as a list or a JSONL file of {"prompt"}.
    With `level="load"` the model is not scored and no report is kept: one pass over a fixed probe says how
    far it drifted and whether that is an alarm. Which skills the base has, and so what the probe asks, is
    measured once for each base and suite.
    """
    if level not in ("load", "registration"):
        raise InputError(f"the level must be load or registration, and is {level[:40]!r}")
    if level == "load" and (target or overhead or rigidity is not False or routing is not False):
        raise InputError(
            "a report at load is one pass over general prompts: no targets, rigidity, overhead or routing",
            fix="leave those away, or measure in full",
        )
    if out_of_scope is not None and routing is False:
        raise InputError(
            "prompts out of scope are asked of a router, and routing is not measured",
            fix="measure it with routing=True",
        )
    if isinstance(model, str):
        model = compose(model, store=store, base=base)
    store = store or model.store
    if level == "load":
        model.report = at_load(
            model.base_chat,
            model.chat,
            label=model.target.ref,
            general=_probed(model, [suite_of(s, store) for s in general], store, say),
            store=store,
            cache=cache_dir(),
        )
        return model.report
    targets = [suite_of(s, store) for s in target]
    routed = None
    if routing is not False:
        routed = partial(
            measure_routing,
            model,
            aims_of(model, targets, routing if isinstance(routing, Mapping) else {}, store=store),
            out_of_scope=[]
            if out_of_scope is None
            else read_prompts(out_of_scope, what="prompts out of scope"),
            store=store,
            say=say,
        )
    model.report = measure(
        model.base_chat,
        model.chat,
        subject=model.target.digest,
        label=model.target.ref,
        general=[suite_of(s, store) for s in general],
        target=targets,
        store=store,
        cache=cache_dir(),
        rigidity=rigidity,
        overhead=overhead,
        weights=weigh(model).to_dict(modules=False),
        routing=routed,
        say=say,
    )
    return model.report


def _probed(model: ComposedModel, suites: Sequence[Suite], store: Registry, say: Say | None) -> list[Suite]:
    """What a probe is dealt from: the held-out items of skills that the base has."""
    bases = [
        scored(model.base_chat, suite, subject="base", label="base", store=store, say=say) for suite in suites
    ]
    return [part.suite for part in reached_part(bases)]
