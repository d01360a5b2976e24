"""The main job on real data: mini-instruct, two real tasks, the real general suites.

Forgetting is judged on `suites/general/held_out`; no prompt of those skills is in the replay prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import inlay
from inlay.composer import compose, forgetting, lock
from inlay.evals import ForgettingReport, Suite
from inlay.evals.inference import Base, load_base
from inlay.evals.prompts import read_prompts
from inlay.registry import Registry

pytestmark = [pytest.mark.slow, pytest.mark.data, pytest.mark.timeout(1800)]

TASKS = ("banking_topics", "clinc_domain")


@dataclass
class Story:
    """What the whole run left behind."""

    store: Registry
    base: Base
    trained: dict[str, inlay.TrainResult]
    routed: ForgettingReport
    stacked: ForgettingReport


@pytest.fixture(scope="module")
def story(data_dir: Path, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Story:
    torch.set_num_threads(2)
    store = inlay.Registry.open(tmp_path_factory.mktemp("real") / "adapters_store", create=True)
    base = load_base(data_dir / "models" / "mini-instruct")
    general = Suite.load(data_dir / "suites" / "general")
    prompts = data_dir / "replay" / "general_prompts.jsonl"
    tests = {
        task: Suite.load(data_dir / "tasks" / task / "test.jsonl", name=task.replace("_", "-"))
        for task in TASKS
    }
    # The rate that was chosen on dev accuracy (benchmarks/RESULTS.md); at most twice plain LoRA's steps.
    settings = {"rank": 8, "alpha": 16.0, "learning_rate": 5e-3, "kl": 1.0, "kl_batch_size": 8}
    steps = {"banking_topics": {"epochs": 10}, "clinc_domain": {"max_steps": 300}}
    trained = {}
    for task in TASKS:
        trained[task] = inlay.train(
            base,
            data_dir / "tasks" / task / "train.jsonl",
            name=task.replace("_", "-"),
            store=store,
            general=[general],
            target=[tests[task]],
            general_prompts=prompts,
            **settings,
            **steps[task],
        )
        store.promote(trained[task].version.ref, "prod", why="beats the base")
    members = [f"{task.replace('_', '-')}@prod" for task in TASKS]
    reports = []
    for name, recipe in (
        ("routed", {"route": {"by": "probe", "experts": members}}),
        ("stacked", {"stack": members}),
    ):
        lock(store, name, recipe, base=base, general_prompts=prompts)
        model = compose(f"{name}@v1", store=store, base=base)
        reports.append(forgetting(model, general=[general], target=list(tests.values())))
        model.detach()
    terminal = pytestconfig.pluginmanager.getplugin("terminalreporter")
    assert terminal is not None
    for report in [*(result.report for result in trained.values()), *reports]:
        gains = ", ".join(f"{t.suite} {100 * t.counts.model_score:.1f}%" for t in report.targets)
        terminal.write_line(f"{gains}: {report.verdict}")
    return Story(store, base, trained, *reports)


def test_no_skill_and_no_prompt_is_both_protected_and_held_out(data_dir: Path) -> None:
    general = Suite.load(data_dir / "suites" / "general")
    prompts = set(read_prompts(data_dir / "replay" / "general_prompts.jsonl"))
    skills = {held: {item.skill for item in general.items if item.held_out is held} for held in (True, False)}
    assert skills[True] == {"last_word", "pros_cons", "sort_words", "subjectivity"}
    assert not skills[True] & skills[False]
    assert not prompts & {item.text for item in general.items}


def test_banking_topics_is_learned_and_little_forgotten(story: Story) -> None:
    """Asked: at least 82% on the task (n=400), at most 4 points of the held-out skills lost."""
    result = story.trained["banking_topics"]
    assert result.report.targets[0].counts.n == 400
    assert result.report.held_out.n == 1600
    assert result.base_score == 0.0
    assert result.score is not None and result.score >= 0.82
    assert result.report.lost <= 0.04
    assert result.run["steps"] <= 2 * 335


def test_clinc_domain_gains(story: Story) -> None:
    report = story.trained["clinc_domain"].report
    assert report.targets[0].counts.gain_lower > 0.15
    assert report.lost <= 0.05


def test_routing_keeps_each_members_score_and_the_base(story: Story) -> None:
    """Asked: at least 95% of each member's own score; at most 1 point of the held-out skills lost."""
    for target, task in zip(story.routed.targets, TASKS, strict=True):
        own = story.trained[task].score
        assert own is not None and target.counts.model_score >= 0.95 * own
    assert story.routed.lost <= 0.01


def test_stacking_is_measured_beside_it(story: Story) -> None:
    assert story.stacked.held_out.n == 1600
    assert {t.suite for t in story.stacked.targets} == {"banking-topics", "clinc-domain"}
    assert story.stacked.lost >= story.routed.lost


def test_promote_and_roll_back(story: Story) -> None:
    store = story.store
    suites = {"general": ["general"], "target": ["banking-topics"]}
    store.set_guard("routed@prod", {"forget": 0.05, "gain": 0.5, "suites": suites})
    assert store.promote("routed@v1", "prod", why="both tasks").verdict["passed"] is True  # type: ignore[index]
    if story.stacked.upper > 0.05:
        store.set_guard("stacked@prod", {"forget": 0.05, "suites": {"general": ["general"]}})
        with pytest.raises(inlay.GuardRefused, match="held-out"):
            store.promote("stacked@v1", "prod")
    model = compose("routed@prod", store=store, base=story.base)
    prompts = ["Which topic is this message to the bank about?\nI lost my card yesterday"]
    before = model.generate(prompts, max_new_tokens=16)
    model.detach()
    lock(store, "routed", {"stack": ["clinc-domain@prod"]}, base=story.base)
    store.promote("routed@v2", "prod", why="a mistake", force=True)
    (event,) = store.rollback("routed@prod", why="wrong recipe")
    assert event.to_ref == "routed@v1"
    model = compose("routed@prod", store=store, base=story.base)
    assert model.generate(prompts, max_new_tokens=16) == before
    model.detach()
    assert store.fsck() == []
