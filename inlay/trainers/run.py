"""One training run, from a file to a registered version that says what it gained and what it forgot.

Everything that can be wrong is checked before the first step; what the run was judged by is declared before
it starts and kept with the version.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.composer.bases import check_base, whereabouts
from inlay.composer.factors import read_adapter
from inlay.composer.measure import GENERAL, SuiteLike, suite_of
from inlay.composer.model import compose
from inlay.composer.weights import weigh
from inlay.errors import InputError
from inlay.evals.inference import Base, Chat, base_answers, load_base
from inlay.evals.ledger import Say, keep_suite, measure
from inlay.evals.prompts import read_prompts
from inlay.evals.scoring import evaluate_model, library_versions
from inlay.registry import Registry
from inlay.registry.fingerprint import cache_dir
from inlay.trainers import processes
from inlay.trainers.baselines import measure_baselines
from inlay.trainers.data import Dataset
from inlay.trainers.going_on import Start, measured, parent_of
from inlay.trainers.held_out import declared, held_apart
from inlay.trainers.imported import read_imported
from inlay.trainers.kept_data import keep
from inlay.trainers.kinds import config_of
from inlay.trainers.methods import method_named
from inlay.trainers.orthogonal import others_of
from inlay.trainers.presets import method_of
from inlay.trainers.quality import Finding, refuse_bad_data
from inlay.trainers.quantised import ground
from inlay.trainers.reading import Data, read
from inlay.trainers.remembering import in_words, needs_answers
from inlay.trainers.run_report import RunReport
from inlay.trainers.settings import Settings, settings_for
from inlay.trainers.texts import Texts

if TYPE_CHECKING:
    from inlay.evals.forgetting import ForgettingReport
    from inlay.evals.suites import Suite
    from inlay.registry import Version
    from inlay.trainers.checkpoints import Checkpoints

EXAMPLES_KEPT = 256
"""Training prompts kept in the run's record: what a router learns this adapter's requests from."""
RUNS = "runs"
"""Where in a store the checkpoints of its unfinished runs lie."""
ANSWER_TOKENS = 32
"""Length of the base's own answers to general prompts, in tokens; longer ones are cut there."""


@dataclass(frozen=True)
class TrainResult:
    """What a run made. `report`: what was forgotten; `run`: the record kept in the registry; `whole`: all of
    it, with what stands beside the adapter and the verdict. `score` and `base_score` are on the first target
    suite, None where none was declared."""

    version: Version
    report: ForgettingReport
    run: dict[str, Any]
    whole: RunReport

    @property
    def score(self) -> float | None:
        return self.report.targets[0].counts.model_score if self.report.targets else None

    @property
    def base_score(self) -> float | None:
        return self.report.targets[0].counts.base_score if self.report.targets else None

    @property
    def verdict(self) -> str:
        """Was it worth it, in a few sentences: ship or not and why, what was gained, what was forgotten."""
        return " ".join([*self.whole.verdict.sentences, *self.said])

    @property
    def said(self) -> list[str]:
        """What only some runs have to say: of held-out data, of how a method's rows came to be; a sentence or
        two each."""
        method, parts = method_named(self.run["settings"]["method"]), []
        if held := self.run.get("held_out"):
            parts.append(method.said(held))
        if hasattr(method, "told"):
            parts.append(method.told(self.run["method"]))
        if whole := self.run["method"].get("whole"):
            scores = ", ".join(f"{100 * score:.1f}% on {suite}" for suite, score in whole.items())
            parts.append(f"The fully trained model that it was extracted from scores {scores}.")
        return parts

    @property
    def remembering(self) -> list[str]:
        """What kept it from forgetting and what that took, a sentence each."""
        return in_words(self.run.get("remembering", {}))


def train(
    base: str | Path | Base | None,
    data: str | Path | Sequence[Any] | Data,
    *,
    name: str | None = None,
    start: str | Version | None = None,
    store: Registry | str | Path | None = None,
    general: Sequence[SuiteLike] = (GENERAL,),
    target: Sequence[SuiteLike] = (),
    held_out: str | Path | Sequence[Any] | Data | None = None,
    general_prompts: str | Path | Sequence[str] | None = None,
    orthogonal_to: Sequence[str] = (),
    minimum: float | None = None,
    imported: str | Path | Sequence[str | Mapping[str, Any]] | None = None,
    few_shot: bool = True,
    rigidity: bool = False,
    why: str = "",
    device: str = "auto",
    fresh: bool = False,
    keep_data: bool = False,
    rebased: Mapping[str, Any] | None = None,
    say: Say | None = None,
    **settings: Any,
) -> TrainResult:
    """Train an adapter on `data`, register it as the next version of `name`, measure gain and forgetting.

    `settings`: the fields of `Settings`; what is not given comes from the preset, then from `inlay.json`
    beside the base, then from Inlay's defaults. `general_prompts`: a JSONL file of {"prompt"} or a list, for
    KL, replay and early stop; by default those that ship. None of them may stand in a general suite.
    `orthogonal_to`: references of adapters, or of variants for their members, to which it begins orthogonal.
    `minimum`: the target score below which the verdict says that the run failed. `held_out`: raw text or
    pairs, as `data`, on which before and after are measured where the method reads such; by default a share
    of the data, which is not trained on then. Raises InputError before anything is trained or stored, for
    data with errors as well (docs/data.md); what else is found in it is said and kept.

    What else would do is measured before training (docs/verdict.md): a bag of words where the task is
    classification, with `few_shot` the base with the best prompt of examples from the data. `imported`:
    scores from elsewhere, a JSON file or "NAME=SCORE[:N]" each. `rigidity`: ask the suites with typos, other
    letter case, spaces and wordings as well, which takes several times as long.

    `start`: a version to go on from (see `inlay.trainers.going_on`); without a name the next version is of
    its name, without a base on its base. `keep_data`: keep the rows in the store, not their digests alone.
    `rebased`: the version whose run is trained again, for the record; `inlay.trainers.rebase` sets it.

    A run that was ended before its time goes on from its last checkpoint when the same is asked for again,
    `fresh` begins anew; StoreBusy where another process trains the same. Where several processes train
    together (`accelerate launch`), all but the main one leave with SystemExit once the weights are there.
    """
    say = say if processes.is_main() else None
    plan = _planned(
        base, data, name, start, store if isinstance(store, Registry) else Registry.open(store),
        general=general, target=target, held_out=held_out, general_prompts=general_prompts,
        orthogonal_to=orthogonal_to, minimum=minimum, device=device, say=say, settings=settings,
    )  # fmt: skip
    elsewhere = read_imported(imported)

    from inlay.trainers.checkpoints import Checkpoints

    checkpoints = Checkpoints.of(plan.store.path / RUNS, plan.run, plan.prompts, plan.base.model.device.type)
    with checkpoints.held(fresh=fresh) if processes.is_main() else contextlib.nullcontext():
        with processes.main_first(device):
            answers = _answers(plan.base, plan.prompts, say) if needs_answers(plan.settings) else None
        run = {
            **plan.run,
            "findings": [{"level": f.level, "kind": f.kind, "said": f.sentence()} for f in plan.findings],
        }
        if processes.is_main() and isinstance(plan.data, Dataset):
            run["baselines"] = measure_baselines(
                Chat(plan.base), list(plan.data), plan.targets, store=plan.store, cache=cache_dir(),
                imported=elsewhere, with_few_shot=few_shot, seed=plan.settings.seed, say=say,
            ).to_dict()  # fmt: skip
        if rebased is not None:
            run["rebased"] = dict(rebased)
        version, run = _registered(plan, run, answers, checkpoints, why, say)
        keep(plan.store, version, plan.data, plan.read if keep_data else None)
        report = _measured(plan, version, rigidity, say)
        checkpoints.discard()
    return TrainResult(version, report, run, RunReport.of(version, plan.store))


@dataclass(frozen=True)
class _Plan:
    """What is fixed before the first step. `read`: the data as it was given; `data`: what of it is trained
    on, `held` what before and after are measured on; `asked`: the settings that were given; `run`: the record
    of all this, which decides what an unfinished run is a run of."""

    store: Registry
    name: str
    base: Base
    settings: Settings
    asked: tuple[str, ...]
    read: Data
    data: Data
    held: Data | None
    findings: tuple[Finding, ...]
    generals: list[Suite]
    targets: list[Suite]
    prompts: list[str]
    others: list[Version]
    parent: Version | None
    start: Start | None
    run: dict[str, Any]


def _planned(
    base: str | Path | Base | None,
    data: str | Path | Sequence[Any] | Data,
    name: str | None,
    start: str | Version | None,
    store: Registry,
    *,
    general: Sequence[SuiteLike],
    target: Sequence[SuiteLike],
    held_out: str | Path | Sequence[Any] | Data | None,
    general_prompts: str | Path | Sequence[str] | None,
    orthogonal_to: Sequence[str],
    minimum: float | None,
    device: str,
    say: Say | None,
    settings: dict[str, Any],
) -> _Plan:
    """Everything that can be wrong is, here, before anything is trained; suites go into the store."""
    from inlay.registry import check_name

    parent = parent_of(start, store) if start is not None else None
    base, name = _named(base, name, parent)
    check_name(name)
    asked = {key: value for key, value in settings.items() if value is not None}
    settings = {**settings, "method": settings.get("method") or method_of(settings.get("preset"))}
    given = read(data, settings["method"], name=None if isinstance(data, str | Path) else name)
    generals = [suite_of(s, store) for s in general]
    targets = [suite_of(s, store) for s in target]
    if not generals:
        raise InputError("a run declares at least one general suite to be judged on", fix=f"leave {GENERAL}")
    prompts = read_prompts(general_prompts)
    refuse_overlap(prompts, generals)
    findings = refuse_bad_data(given, against=targets)
    if say is not None:
        for each in findings:
            say(f"note: {each.sentence()}", 1, 1)
    loaded = base if isinstance(base, Base) else load_base(base, device=processes.device(device))
    chosen = settings_for(loaded.fingerprint.path, **settings)
    begin = None
    if parent is not None:
        check_base(parent.base, loaded, parent.ref)
        begin = Start.of(parent, store, asked)
        chosen = begin.shaped(chosen)
    elif chosen.keep_parent > 0:
        raise InputError("a parent that is kept is one that training goes on from", fix="name it with --from")
    else:
        config_of(chosen, loaded.model)  # refuses now what cannot be trained
    dataset, held = held_apart(given, chosen, held_out)
    others = others_of(store, orthogonal_to, loaded)
    for suite in [*generals, *targets] if processes.is_main() else ():
        keep_suite(store, suite)
    run = _declaration(dataset, chosen, generals, targets, prompts, minimum, loaded)
    run["orthogonal_to"] = [each.digest for each in others]
    if parent is not None:
        run["parent"] = {"ref": parent.ref, "digest": parent.digest}
        if begin is not None and chosen.keep_parent > 0:
            begin.refuse_keeping_nothing()
            run["parent"]["kept"] = [
                {"ref": each.ref, "digest": each.digest, "prompts": len(prompts)}
                for each, prompts in begin.prompts
            ]
    if held is not None:
        run["held_out"] = declared(held, dataset)
    return _Plan(
        store, name, loaded, chosen, tuple(sorted(asked)), given, dataset, held, findings, generals, targets,
        prompts, others, parent, begin, run,
    )  # fmt: skip


def _registered(
    plan: _Plan,
    run: dict[str, Any],
    answers: list[str] | None,
    checkpoints: Checkpoints,
    why: str,
    say: Say | None,
) -> tuple[Version, dict[str, Any]]:
    """Train, and register what came of it with its record: (version, record). SystemExit for a process that
    only helps the main one."""
    from inlay.trainers.fit import fit, release, save_adapter

    method, base = method_named(plan.settings.method), plan.base
    newest = checkpoints.newest()
    if newest is not None and say:
        say(f"note: going on from step {newest.step} of {newest.record['steps']}", 1, 1)
    held = plan.held if processes.is_main() else None
    before = method.figures(Chat(base), held) if held is not None else None
    with contextlib.ExitStack() as training:
        fitted = fit(
            training.enter_context(ground(base, plan.settings)),
            plan.data,
            plan.settings,
            general=(plan.prompts, answers) if answers is not None else None,
            others=[read_adapter(each, store=plan.store) for each in plan.others],
            start=plan.start,
            preparing=(lambda d, n: say("the base's own wording of the answers", d, n)) if say else None,
            answering=(lambda d, n: say("what the parent answers", d, n)) if say else None,
            progress=(lambda d, n, row: say(f"training {plan.name}, {_figures(row)}", d, n)) if say else None,
            checkpoints=checkpoints,
        )
        training.callback(release, fitted)
        if not processes.is_main():
            raise SystemExit(0)
        run = {
            **run,
            "asked": list(plan.asked),
            "curve": _thinned(fitted.curve),
            "steps": fitted.steps,
            "seconds": round(fitted.seconds, 3),
            "resumed": fitted.resumed,
            "tokens": {"task": fitted.task_tokens, "general": fitted.general_tokens},
            "cost": fitted.cost.to_dict(),
            "remembering": fitted.remembering,
            "method": fitted.method,
            "finished": datetime.now(UTC).isoformat(),
        }
        if before is not None:
            after = method.figures(Chat(base, model=fitted.model), held)
            run["held_out"] = {**run["held_out"], **method.compared(before, after)}
        if fitted.whole is not None:
            whole = Chat(base, model=fitted.whole)
            suites = (*plan.targets, *plan.generals)
            scores = {s.name: evaluate_model(whole, s, subject=f"{plan.name}, whole").score for s in suites}
            run["method"] = {**run["method"], "whole": scores}
        with tempfile.TemporaryDirectory(prefix="inlay-adapter-") as folder:
            save_adapter(fitted, Path(folder))
            return plan.store.add(plan.name, folder, base=base.fingerprint, run=run, why=why), run


def _measured(plan: _Plan, version: Version, rigidity: bool, say: Say | None) -> ForgettingReport:
    """What it gained, what it forgot, and what it kept of the tasks of the line that it goes on."""
    composed = compose(version, store=plan.store, base=plan.base)
    try:
        return measure(
            composed.base_chat,
            composed.chat,
            subject=version.digest,
            label=version.ref,
            general=plan.generals,
            target=plan.targets,
            store=plan.store,
            cache=cache_dir(),
            weights=weigh(composed).to_dict(modules=False),
            rigidity=rigidity,
            earlier=partial(measured, composed, plan.parent, plan.targets, plan.store, say)
            if plan.parent
            else None,
            say=say,
        )
    finally:
        composed.detach()


def _named(
    base: str | Path | Base | None, name: str | None, parent: Version | None
) -> tuple[str | Path | Base, str]:
    """Base and name of a run; what is not given are those of the version that it goes on from."""
    if parent is not None:
        base = whereabouts(parent.base) if base is None else base
        name = parent.name if name is None else name
    if base is None or name is None:
        raise InputError(
            f"a run needs a base and a name, and the {'base' if base is None else 'name'} is not given",
            fix="give --base and --name, or go on from a version with --from",
        )
    return base, name


def _answers(base: Base, prompts: Sequence[str], say: Say | None) -> list[str]:
    return base_answers(
        base,
        prompts,
        max_new_tokens=ANSWER_TOKENS,
        cache_dir=cache_dir(),
        progress=(lambda d, n: say("the base's own answers to general prompts", d, n)) if say else None,
    )


def _figures(row: dict[str, float]) -> str:
    """What a step's progress shows: loss, kl where there is one, learning rate."""
    kl = f", kl {row['kl']:.3f}" if "kl" in row else ""
    return f"loss {row['loss']:.3f}{kl}, lr {row['learning_rate']:.0e}"


def refuse_overlap(prompts: Sequence[str], suites: Sequence[Suite]) -> None:
    """InputError if a general prompt stands in a suite: what is protected must not be what is measured."""
    held = set(prompts)
    for suite in suites:
        for item in suite.items:
            if item.text in held:
                raise InputError(
                    f"general prompts and suites must be apart, and {item.id} of {suite.name} is in both",
                    fix="remove it from the general prompts",
                )


def _declaration(
    dataset: Data,
    settings: Settings,
    generals: Sequence[Suite],
    targets: Sequence[Suite],
    prompts: Sequence[str],
    minimum: float | None,
    base: Base,
) -> dict[str, Any]:
    """What is fixed before the first step."""
    texts = list(dict.fromkeys(dataset.texts))
    sample = random.Random(settings.seed).sample(texts, min(EXAMPLES_KEPT, len(texts)))
    trained = "\n\n".join(dataset) if isinstance(dataset, Texts) else set(texts)
    leaked = [text for text in {item.text for suite in targets for item in suite.items} if text in trained]
    return {
        "base": {
            "name": base.fingerprint.name,
            "prompt": base.fingerprint.prompt,
            "weights": base.fingerprint.weights,
        },
        "dataset": {
            **dataset.manifest,
            "provenance": dataset.provenance,
            "leaked_into_target": len(leaked),
        },
        "declared": {
            "general": [{"name": s.name, "digest": s.digest} for s in generals],
            "minimum": minimum,
            "target": [{"name": s.name, "digest": s.digest} for s in targets],
        },
        "examples": sample,
        "general_prompts": len(prompts) if needs_answers(settings) else 0,
        "processes": processes.count(),
        "rows_a_step": settings.batch_size * settings.accumulate * processes.count(),
        "settings": settings.to_dict(),
        "started": datetime.now(UTC).isoformat(),
        "versions": library_versions(),
    }


def _thinned(curve: list[dict[str, float]], rows: int = 200) -> list[dict[str, float]]:
    """At most about `rows` rows of the loss curve, the last one among them."""
    step = max(1, len(curve) // rows)
    return [
        {k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}
        for row in [*curve[:-1:step], *curve[-1:]]
    ]
