"""Early stop: what is held apart, when it ends a training, and that the weights are those of the last good
look."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inlay.builtin.tasks import rows
from inlay.errors import InputError
from inlay.evals.inference import Base, base_answers
from inlay.evals.prompts import read_prompts
from inlay.evals.statistics import tango_interval
from inlay.trainers.data import read_dataset
from inlay.trainers.early_stop import ForgettingStop
from inlay.trainers.fit import fit, release
from inlay.trainers.protected import LEAST, Protected, hold_apart
from inlay.trainers.remembering import Remembering, in_words
from inlay.trainers.settings import Settings


@pytest.fixture(scope="module")
def general(shared_base: Base) -> tuple[list[str], list[str]]:
    prompts = read_prompts(None)[::9]
    return prompts, base_answers(shared_base, prompts, max_new_tokens=16)


def test_a_seeded_sample_is_held_apart_from_kl_and_replay(
    base: Base, general: tuple[list[str], list[str]]
) -> None:
    held, (prompts, answers) = hold_apart(base, *general, seed=0, items=30)
    assert hold_apart(base, *general, seed=0, items=30) == (held, (prompts, answers))
    assert hold_apart(base, *general, seed=1, items=30)[0] != held
    assert set(held.prompts) | set(prompts) <= set(general[0])
    assert not set(held.prompts) & set(prompts)
    assert dict(zip(prompts, answers, strict=True)).items() <= dict(zip(*general, strict=True)).items()
    assert all(held.kept(base))
    made = Remembering.of(base, Settings().replaced(stop_forgetting=5.0, replay=0.5), general)
    assert made.general is not None and made.protected is not None and made.anchor is not None
    assert len(made.anchor.pairs) == len(made.general[0]) == len(general[0]) - len(general[0]) // 2
    assert not set(made.general[0]) & set(made.protected.prompts)


def test_an_answer_that_was_cut_off_is_in_neither(base: Base, general: tuple[list[str], list[str]]) -> None:
    prompts, answers = general
    cut = [f"{answer} and" if i % 3 == 0 else answer for i, answer in enumerate(answers)]
    held, (rest, _) = hold_apart(base, prompts, cut, seed=0, items=60)
    whole = {p for i, p in enumerate(prompts) if i % 3}
    assert set(held.prompts) <= whole and LEAST <= len(held) < 60 and len(rest) == len(prompts) - 42


def test_too_few_prompts_are_refused(base: Base, general: tuple[list[str], list[str]]) -> None:
    with pytest.raises(InputError, match="of 12 there are 6"):
        hold_apart(base, general[0][:12], general[1][:12], seed=0)


class Scripted(Protected):
    """Protected prompts of which the n-th look finds so many kept."""

    def kept(self, base: Any, model: Any = None, *, progress: Any = None) -> list[bool]:
        lost = LOST[int(model.weight.detach())]
        return [i >= lost for i in range(100)]


LOST = {1: 0, 2: 3, 3: 8, 4: 14, 5: 0}


def run_through(stop: ForgettingStop, model: torch.nn.Linear, steps: range, last: int) -> int | None:
    """What a trainer does: a step makes the weight its number. The step at which it was stopped."""
    for step in steps:
        with torch.no_grad():
            model.weight.fill_(step)
        control = SimpleNamespace(should_training_stop=False)
        stop.on_step_end(None, SimpleNamespace(global_step=step, max_steps=last), control)
        if control.should_training_stop:
            return step
    return None


def scripted(limit: float, every: int = 1) -> tuple[ForgettingStop, torch.nn.Linear]:
    model = torch.nn.Linear(1, 1, bias=False)
    return ForgettingStop(None, model, Scripted((), ()), limit=limit, every=every), model  # type: ignore[arg-type]


def test_stops_where_the_lower_bound_is_above_the_limit_and_keeps_the_last_good() -> None:
    stop, model = scripted(0.05)
    assert run_through(stop, model, range(1, 6), 5) == 4
    assert model.weight.item() == 3.0
    lower = [-tango_interval(100, lost, 0, z=1.6448536269514722)[1] for lost in (0, 3, 8, 14)]
    assert [look["lower"] for look in stop.looks] == pytest.approx(lower, abs=1e-9)
    assert lower[2] <= 0.05 < lower[3]  # eight of a hundred may be five; fourteen are more
    record = stop.record()
    assert (record["stopped"], record["kept"], record["limit"], record["every"]) == (4, 3, 0.05, 1)
    assert in_words({"stop": record}) == [
        "Stopped after step 4: 14 of 100 protected prompts are answered otherwise than the base does "
        f"(at least {100 * lower[3]:.1f} points, 5 allowed). The weights of step 3 are kept."
    ]


def test_looks_every_so_many_steps_and_after_the_last() -> None:
    stop, model = scripted(0.5, every=2)
    assert run_through(stop, model, range(1, 6), 5) is None
    assert [look["step"] for look in stop.looks] == [2, 4, 5]
    assert (stop.kept, stop.stopped, model.weight.item()) == (5, None, 5.0)
    assert in_words({"stop": stop.record()})[0].startswith("After the last step 0 of 100 protected prompts")


def test_nothing_good_is_an_error_not_an_adapter() -> None:
    stop, model = scripted(0.01, every=4)
    with pytest.raises(InputError, match="by the first look, after step 4, 14 of 100"):
        run_through(stop, model, range(1, 6), 5)


def test_taken_up_it_goes_on_as_if_unbroken() -> None:
    first, model = scripted(0.05)
    run_through(first, model, range(1, 4), 5)
    second, other = scripted(0.05)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.load_tensors(first.tensors())
    assert run_through(second, other, range(4, 6), 5) == 4
    assert other.weight.item() == 3.0 and [look["step"] for look in second.looks] == [1, 2, 3, 4]


def test_a_training_that_forgets_is_stopped_with_weights_within_the_limit(
    base: Base, general: tuple[list[str], list[str]]
) -> None:
    """Without KL at a high rate; the adapter that comes out answers as it did at the last good look."""
    data = read_dataset(rows("ticket-queue", "train", 64, 0))
    settings = Settings().replaced(
        max_steps=24, batch_size=4, rank=4, kl=0.0, learning_rate=5e-3, stop_forgetting=10.0, stop_every=2
    )
    held, _ = hold_apart(base, *general, seed=0)
    fitted = fit(base, data, settings, general=general)
    record = fitted.remembering["stop"]
    assert record["stopped"] is not None and record["stopped"] < 24 and fitted.steps == record["stopped"]
    assert record["looks"][-1]["lower"] > 0.1 >= record["looks"][-2]["lower"]
    assert record["kept"] == record["looks"][-2]["step"] == record["stopped"] - 2
    assert held.kept(base, fitted.model).count(False) == record["looks"][-2]["lost"]
    release(fitted)
