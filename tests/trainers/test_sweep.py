"""Sweeps: the grid, the rows held back, the choice, and a sweep that goes on where it was interrupted."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from inlay.errors import InputError
from inlay.evals import Suite
from inlay.evals.forgetting import Target
from inlay.evals.frontier import Point
from inlay.evals.inference import Base
from inlay.evals.prompts import read_prompts
from inlay.evals.statistics import Paired
from inlay.registry import Registry
from inlay.trainers import fit as fitting
from inlay.trainers.data import read_dataset
from inlay.trainers.grid import points_of, read_grid
from inlay.trainers.protected import hold_apart
from inlay.trainers.settings import Settings
from inlay.trainers.sweep import choose, explain, held_back, metric_of, sweep
from inlay.trainers.sweep_html import write_sweep


def test_a_grid_is_read_by_flag_or_field_and_every_combination_is_a_point() -> None:
    grid = read_grid(["lr=1e-3,3e-3", "kl=0,1", "max_steps=5", "gradient-checkpointing=true"])
    assert grid == {
        "learning_rate": (1e-3, 3e-3),
        "kl": (0.0, 1.0),
        "max_steps": (5,),
        "gradient_checkpointing": (True,),
    }
    points = points_of({k: grid[k] for k in ("learning_rate", "kl")}, Settings(rank=3))
    assert list(points) == ["lr 0.001, kl 0", "lr 0.001, kl 1", "lr 0.003, kl 0", "lr 0.003, kl 1"]
    assert points["lr 0.003, kl 0"] == Settings(rank=3, learning_rate=3e-3, kl=0.0)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["speed=1"], "'speed' is none"),
        (["lr"], "NAME=VALUE"),
        (["lr="], "NAME=VALUE"),
        (["lr=fast"], "learning_rate must be of the type float, and a value is 'fast'"),
        (["rank=1.5"], "rank must be of the type int"),
        (["lr=1e-3", "learning_rate=2e-3"], "named twice"),
        (["lr=1e-3,0.001"], "lr 0.001 is there twice"),
        (["lr=-1"], "learning_rate must be above zero"),
        ([], "needs a setting"),
    ],
)
def test_what_is_no_grid(given: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        points_of(read_grid(given), Settings())


def test_rows_of_one_prompt_stay_together_and_all_rows_are_somewhere() -> None:
    data = read_dataset([{"prompt": f"p{i % 150}", "completion": f"a{i}"} for i in range(300)])
    train, dev = held_back(data, 0.2, seed=4)
    assert len(dev.items) == 60 and len(train) == 240
    asked = {item.prompt for item in dev.items}
    assert len(asked) == 30 and not asked & {e.prompt for e in train}
    assert {(i.prompt, i.answer) for i in dev.items} | {(e.prompt, e.answer) for e in train} == {
        (e.prompt, e.answer) for e in data
    }
    assert [e for e in data if e.prompt not in asked] == list(train)
    assert held_back(data, 0.2, seed=4)[1] == dev != held_back(data, 0.2, seed=5)[1]
    with pytest.raises(InputError, match="15 prompts would be held back"):
        held_back(data, 0.1, seed=0)


def test_dev_rows_are_scored_as_the_target_where_answers_decide() -> None:
    def suite(metric: str, **more: Any) -> Suite:
        return Suite.of_rows("t", [{"prompt": "a", "answer": "b", **more}], metric=metric)

    assert metric_of([]) == metric_of([suite("exact_match")]) == "exact_match"
    assert metric_of([suite("contains")]) == "contains"
    assert metric_of([suite("token_f1")]) == "exact_match"  # graded
    assert metric_of([suite("multiple_choice", choices=["b", "c"])]) == "exact_match"


def point(name: str, learned: int, lost: int, n: int = 100, kind: str = "point", shift: int = 0) -> Point:
    """Right on `learned` dev rows of `n`, from row `shift` on."""
    return Point(
        name,
        kind,
        Paired(n, lost, 0, n - lost),
        (Target("dev", Paired(n, 0, learned, 0)),),
        outcomes=(tuple((i - shift) % n < learned for i in range(n)),),
    )


BARE = point("base", 5, 0, kind="base")


@pytest.mark.parametrize(
    ("points", "taken", "says"),
    [
        (
            [point("a", 50, 1), point("b", 90, 4), point("c", 99, 20)],
            "b",
            "Most was learned at too high a price: c",
        ),
        (
            [point("a", 89, 1, shift=5), point("b", 90, 4)],
            "a",
            "by no more than chance, and forgets more: b answers 90.0%",
        ),
        ([point("a", 40, 1), point("b", 90, 5)], "b", "No point learned more."),
        ([point("a", 40, 9), point("b", 90, 6)], None, "Try lower rates"),
        ([point("a", 5, 0), point("b", 2, 0)], None, "Try higher rates"),
    ],
)
def test_of_what_learned_most_within_the_limit_the_one_that_forgot_least(
    points: list[Point], taken: str | None, says: str
) -> None:
    choice = choose(points, BARE, 0.05)
    assert (choice.name if choice else None) == taken
    first, second = explain(points, BARE, choice, 0.05)
    assert says in second
    assert (f"{taken} answers" in first) if taken else first.count("nothing is registered") == 1


QUICK: dict[str, Any] = {"max_steps": 12, "batch_size": 8, "rank": 4, "kl_batch_size": 4}


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("INLAY_CACHE", str(tmp_path / "cache"))
    task = [
        {"prompt": f"Say {word} number {i}", "completion": "yes"} for i in range(30) for word in ("a", "the")
    ]
    return {
        "data": task,
        "name": "tickets",
        "general": [Suite("small", Suite.load("general-v1").items[::100])],
        "target": [
            Suite.of_rows("t", [{"prompt": f"Say a number {i}", "answer": "yes"} for i in range(40, 50)])
        ],
        "general_prompts": read_prompts(None)[::15],
        "dev": 0.4,
        "forget": 0.3,
        **QUICK,
    }


@pytest.mark.slow
def test_interrupted_it_goes_on_and_registers_the_winner_alone(
    base: Base, store: Registry, ready: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = {"learning_rate": (1e-6, 1e-2), "kl": (1.0,)}
    begun: list[str] = []

    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith("point 2 of 2, lr 0.01, kl 1, loss"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(base, over=grid, store=store, say=interrupt, **ready)
    assert store.names() == []
    plain = fitting.fit

    def counted(base: Base, data: Any, settings: Settings, **named: Any) -> Any:
        begun.append(f"{settings.learning_rate:g} on {len(data)}")
        prompts, _ = named["general"]
        held, _ = hold_apart(base, ready["general_prompts"], _answers(base, ready["general_prompts"]), seed=0)
        assert bool(set(prompts) & set(held.prompts)) is (
            len(data) == 60
        )  # points never train on what they are asked
        return plain(base, data, settings, **named)

    monkeypatch.setattr(fitting, "fit", counted)
    found = sweep(base, over=grid, store=store, **ready)
    assert begun == ["0.01 on 36", "0.01 on 60"]
    report = found.report
    assert [(t.name, t.remembered) for t in report.trials] == [
        ("lr 1e-06, kl 1", True),
        ("lr 0.01, kl 1", False),
    ]
    assert report.choice == "lr 0.01, kl 1" and report.registered == "tickets@v1"
    by_name = {p.name: p for p in report.points}
    assert by_name[report.choice].learned > by_name["base"].learned == by_name["lr 1e-06, kl 1"].learned
    assert found.trained is not None and found.trained.score is not None
    assert found.trained.score > 0.5 > found.trained.base_score  # type: ignore[operator]
    assert [v.ref for v in store.versions("tickets")] == ["tickets@v1"]
    run = store.run_of(found.trained.version)
    assert run is not None and run["settings"]["learning_rate"] == 1e-2 and run["dataset"]["rows"] == 60
    (kept,) = store.reports(found.trained.version.digest, "sweep")
    assert kept == json.loads(json.dumps(report.to_dict()))
    assert report.notes == ("1 of 2 points were known.",)
    out = StringIO()
    report.print(Console(file=out, width=60))
    assert "lr 0.01, kl 1" in out.getvalue() and "taken" in out.getvalue()
    page = write_sweep(tmp_path / "sweep.html", report).read_text()
    assert "How the settings of tickets@v1 were chosen" in page and "data:image/" in page
    assert "lr 1e-06, 0.01; kl 1" in page and "<script" not in page


def _answers(base: Base, prompts: list[str]) -> list[str]:
    from inlay.evals.inference import base_answers
    from inlay.registry.fingerprint import cache_dir

    return base_answers(base, prompts, max_new_tokens=32, cache_dir=cache_dir())


def test_a_point_that_fails_says_so_and_all_failing_is_an_error(
    base: Base, store: Registry, ready: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = fitting.fit

    def broken(base: Base, data: Any, settings: Settings, **named: Any) -> Any:
        if settings.learning_rate > 1e-3:
            raise InputError("the loss must stay finite, and at step 3 it is nan")
        return plain(base, data, settings, **named)

    monkeypatch.setattr(fitting, "fit", broken)
    found = sweep(base, over={"learning_rate": (1e-6, 1.0)}, store=store, **{**ready, "max_steps": 1})
    assert found.trained is None and found.report.choice is None and store.names() == []
    assert found.report.notes == ("lr 1 failed: the loss must stay finite, and at step 3 it is nan.",)
    assert [p.name for p in found.report.points] == ["base", "lr 1e-06"]
    assert "nothing is registered" in found.report.explanation[0]
    with pytest.raises(InputError, match="finite"):
        sweep(base, over={"learning_rate": (1.0, 2.0)}, store=store, **ready)


def test_the_verb_prints_the_frontier_and_leaves_with_one_where_nothing_is_taken(
    store: Registry, ready: dict[str, Any], tmp_path: Path
) -> None:
    from click.testing import CliRunner

    from inlay.cli.train import train_verb

    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ready["data"]))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ready["general_prompts"]))
    said = [str(data), "--base", "builtin", "--name", "t", "--store", str(store.path), "--steps", "1"]
    said += ["--general-prompts", str(prompts), "--sweep", "lr=1e-6", "--sweep-dev", "0.4"]
    page = tmp_path / "page.html"
    found = CliRunner().invoke(train_verb, [*said, "--sweep-html", str(page)], standalone_mode=False)
    assert found.exception is None and found.return_value == 1, found.output
    assert "so nothing is registered." in " ".join(found.output.split()) and page.is_file()
    asked = CliRunner().invoke(train_verb, [*said, "--json"], standalone_mode=False)
    result = json.loads(asked.stdout)["result"]
    assert result["choice"] is None and [p["name"] for p in result["points"]] == ["base", "lr 1e-06"]
    assert CliRunner().invoke(train_verb, [*said, "--held-out", "x"]).exit_code == 2


def test_a_method_without_answers_is_refused(base: Base, store: Registry, ready: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="domain trains on none"):
        sweep(
            base,
            over={"kl": (0.0,)},
            store=store,
            **{**ready, "data": ["some text", "more"], "method": "domain"},
        )
    with pytest.raises(InputError, match="dpo wants pairs"):
        sweep(base, over={"method": ("sft", "dpo")}, store=store, **ready)
