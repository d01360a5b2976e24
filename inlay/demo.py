"""The main job, end to end, on the built-in base: nothing is scripted but the order of the steps.

Two adapters for two tasks that the base cannot do; a variant composed of both; what was gained and what was
forgotten; a careless retraining that the guard refuses, that is forced all the same and rolled back; and the
proof that what answers afterwards is what answered before, bit for bit. Every number is computed in the run.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import inlay
from inlay.builtin import base_path
from inlay.builtin.tasks import rows
from inlay.composer import compose, forgetting, lock
from inlay.composer.measure import GENERAL
from inlay.composer.model import ComposedModel
from inlay.errors import GuardRefused
from inlay.evals.forgetting import ForgettingReport
from inlay.evals.inference import Base, load_base
from inlay.evals.ledger import Say
from inlay.evals.report_html import Subject, write_report
from inlay.registry import Registry
from inlay.trainers import TrainResult, train

TASKS = ("ticket-queue", "order-slip")
TRAIN_ROWS, TEST_ROWS, SEED = 1600, 400, 7
GUARD = {"forget": 0.05, "gain": 0.5, "suites": {"general": [GENERAL]}}
CARELESS = {"kl": 0.0, "rate_factor": 3.0, "epochs": 2.0}
"""How one trains badly: nothing that holds the base, three times the rate that was found for it."""
WITNESSES = 24
"""Prompts whose answers and logits are compared before and after."""


@dataclass
class Demo:
    """What the story produced."""

    folder: Path
    page: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    refusal: str = ""
    journal: list[str] = field(default_factory=list)
    identical: bool = False
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "page": str(self.page),
            "rows": self.rows,
            "refusal": self.refusal,
            "journal": self.journal,
            "bit_identical_after_rollback": self.identical,
            "seconds": round(self.seconds, 1),
        }


def run_demo(folder: Path, *, tell: Callable[[str], None], say: Say | None = None) -> Demo:
    """Run the story in `folder`, which must not exist yet. `tell` gets one line a step, `say` progress."""
    start = time.perf_counter()
    folder.mkdir(parents=True)
    store = inlay.Registry.open(folder / "adapters_store", create=True)
    base = load_base(base_path())
    demo = Demo(folder, folder / "report.html")

    tell(f"The base: {base.fingerprint.name}, {base.model.num_parameters():,} parameters.")
    data = {task: _write_data(folder, task) for task in TASKS}
    tests = [str(test) for _, test in data.values()]
    trained = {task: _train(base, store, task, data[task], say, "first training") for task in TASKS}
    for task, result in trained.items():
        tell(
            f"Trained and registered {result.version.ref} in {result.run['seconds']:.0f} s: "
            f"{_gains(result.report)}. {result.report.verdict}"
        )
        store.set_guard(f"{task}@prod", _guard([task]), why="what every adapter here must keep")
        store.promote(result.version.ref, "prod", why="beats the base, keeps what the base knew")

    stacked = lock(store, "acme-stacked", {"stack": [f"{task}@prod" for task in TASKS]}, base=base)
    stack_report = _measure(stacked.ref, store, base, tests, say)
    tell(f"Composed both by stacking, to compare: {stack_report.verdict}")

    recipe = {"route": {"by": "probe", "experts": [f"{task}@prod" for task in TASKS], "fallback": "base"}}
    acme = lock(store, "acme", recipe, base=base, why="both skills for acme, the base for everything else")
    report = _measure(acme.ref, store, base, tests, say)
    tell(f"Composed {acme.ref} out of both, routed by a probe: {_gains(report)}. {report.verdict}")
    store.set_guard("acme@prod", _guard(TASKS), why="acme's contract")
    store.promote(acme.ref, "prod", why="both tasks learned, nothing of note forgotten")
    tell("The guard of acme@prod is met: promoted.")
    witnesses = _witnesses(tests)
    before = _fingerprint(compose("acme@prod", store=store, base=base), witnesses)

    careless = _train_carelessly(base, store, data[TASKS[0]], trained[TASKS[0]], say)
    tell(f"Trained {careless.version.ref} carelessly (no KL, a rate far too high). {careless.report.verdict}")
    try:
        store.promote(careless.version.ref, "prod", why="newer is better")
        demo.refusal = ""
        tell("The guard let it pass.")
    except GuardRefused as refused:
        demo.refusal = refused.message
        tell(f"The guard refuses it: {refused.message}")
        store.promote(careless.version.ref, "prod", why="the deadline is today", force=True)
        tell(f"Forced by name: {TASKS[0]}@prod is {careless.version.ref}.")
    bad = lock(store, "acme", recipe, base=base, why="takes up the newest adapters")
    bad_report = _measure(bad.ref, store, base, tests, say)
    try:
        store.promote(bad.ref, "prod", why="takes up the newest adapters")
    except GuardRefused as refused:
        tell(f"The guard of acme@prod refuses {bad.ref} as well: {refused.message}")
        store.promote(bad.ref, "prod", why="the deadline is today", force=True)
    tell(f"Live for acme now: {bad.ref}. {_gains(bad_report)}. {bad_report.verdict}")

    for event in store.rollback(
        f"{TASKS[0]}@prod", why="answers customers' other questions with queue names", dependents=True
    ):
        tell(f"Rolled back: {event.sentence()}")
    after = _fingerprint(compose("acme@prod", store=store, base=base), witnesses)
    demo.identical = after == before
    tell(
        f"acme@prod answers {len(witnesses)} prompts "
        + ("bit for bit as before, logits and text." if demo.identical else "DIFFERENTLY from before.")
    )

    demo.journal = [event.sentence() for event in reversed(store.journal())]
    reports = [
        *((result.report, "adapter", "trained with KL to the base") for result in trained.values()),
        (stack_report, "variant", "both adapters, always on"),
        (report, "variant", "both adapters, a probe chooses or abstains"),
        (careless.report, "refused", "no KL, a rate far too high"),
        (bad_report, "refused", "contains the careless adapter"),
    ]
    subjects = [Subject.base(report), *(Subject.of(r, kind=k, note=note) for r, k, note in reports)]
    demo.rows = [_row("base", report, base_side=True), *(_row(r.subject, r) for r, _, _ in reports)]
    write_report(
        demo.page,
        "Inlay: what acme learned, and what it cost",
        subjects,
        intro=[
            "Everything on this page was trained and measured in one run on the built-in base.",
            "Forgetting is judged on held-out general skills: no prompt of theirs was used in any training.",
            f"The guard's answer to the careless retraining: {demo.refusal or 'it passed.'}",
            "After the rollback, acme@prod answers "
            + ("bit for bit as before." if demo.identical else "differently from before."),
        ],
        journal=demo.journal,
        allowed=GUARD["forget"],  # type: ignore[arg-type]
    )
    (folder / "result.json").write_text(json.dumps(demo.to_dict(), indent=1))
    store.close()
    demo.seconds = time.perf_counter() - start
    return demo


def _write_data(folder: Path, task: str) -> tuple[Path, Path]:
    """Training rows and the test suite as files, as a user would have them."""
    paths = []
    for split, n in (("train", TRAIN_ROWS), ("test", TEST_ROWS)):
        path = folder / "data" / (f"{task}.jsonl" if split == "test" else f"{task}-train.jsonl")
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(task, split, n, SEED)))
        paths.append(path)
    return paths[0], paths[1]


def _train(
    base: Base,
    store: Registry,
    task: str,
    data: tuple[Path, Path],
    say: Say | None,
    why: str,
    **settings: Any,
) -> TrainResult:
    return train(
        base, data[0], name=task, store=store, target=[data[1]], few_shot=False, why=why, say=say, **settings
    )


def _train_carelessly(
    base: Base, store: Registry, data: tuple[Path, Path], good: TrainResult, say: Say | None
) -> TrainResult:
    rate = good.run["settings"]["learning_rate"] * CARELESS["rate_factor"]
    return _train(
        base, store, TASKS[0], data, say, "a quick retraining",
        learning_rate=rate, kl=CARELESS["kl"], epochs=CARELESS["epochs"], max_steps=-1,
    )  # fmt: skip


def _measure(
    ref: str, store: Registry, base: Base, tests: Sequence[str], say: Say | None
) -> ForgettingReport:
    composed = compose(ref, store=store, base=base)
    try:
        return forgetting(composed, target=tests, say=say)
    finally:
        composed.detach()


def _guard(tasks: Sequence[str]) -> dict[str, Any]:
    return {**GUARD, "suites": {"general": [GENERAL], "target": list(tasks)}}


def _witnesses(tests: Sequence[str]) -> list[str]:
    prompts = []
    for test in tests:
        for line in Path(test).read_text().splitlines()[: WITNESSES // len(tests)]:
            row = json.loads(line)
            prompts.append(row["instruction"] + "\n" + row["input"])
    return prompts


def _fingerprint(composed: ComposedModel, prompts: Sequence[str]) -> tuple[list[str], str]:
    """Answers, and a digest over the bits of the final hidden states and logits along them."""
    try:
        answers = composed.generate(prompts, max_new_tokens=24)
        digest = hashlib.sha256()
        for _, hidden, _, _ in composed.chat.states(prompts, answers):
            digest.update(hidden.cpu().numpy().tobytes())
            digest.update(composed.chat.head(hidden).cpu().numpy().tobytes())
        return answers, digest.hexdigest()
    finally:
        composed.detach()


def _gains(report: ForgettingReport) -> str:
    return ", ".join(
        f"{t.suite} {100 * t.counts.base_score:.1f} → {100 * t.counts.model_score:.1f}%"
        for t in report.targets
    )


def _row(label: str, report: ForgettingReport, *, base_side: bool = False) -> dict[str, Any]:
    """One row of the closing table; the base's side where `base_side`."""
    return {
        "subject": label,
        "targets": {
            t.suite: t.counts.base_score if base_side else t.counts.model_score for t in report.targets
        },
        "general": report.held_out.base_score if base_side else report.held_out.model_score,
        "lost": 0.0 if base_side else report.lost,
        "upper": 0.0 if base_side else report.upper,
        "n": report.held_out.n,
    }
