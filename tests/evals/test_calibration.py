"""The threshold of the drift alarm, from models of known loss; all by hand, without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from evals_fakes import WEIGHTS

from inlay.errors import InputError
from inlay.evals.calibration import (
    DEFAULT_THRESHOLD,
    MIN_HARMFUL,
    Alarm,
    Calibration,
    Known,
    alarm,
    alarm_of,
    calibration_of,
    keep,
)
from inlay.evals.drift import Drift
from inlay.evals.statistics import Paired
from inlay.registry import Registry

PROBE = "sha256:" + "c" * 64


def drift(disagreement: float, probe: str = PROBE) -> Drift:
    return Drift(96, 600, 0.1, 0.2, disagreement, 0.1, probe=probe)


def known(disagreement: float, lost: int, n: int = 400) -> Known:
    """A model that lost `lost` of `n` items that the base answered."""
    return Known(f"{disagreement}/{lost}", "synthetic", drift(disagreement), Paired(n, lost, 0, n - lost))


HARMFUL = [known(d, lost) for d, lost in ((0.03, 20), (0.05, 30), (0.06, 100), (0.2, 200), (0.9, 400))]
OTHERS = [known(d, lost) for d, lost in ((0.0, 0), (0.01, 4), (0.02, 9), (0.035, 12))]
CALIBRATION = Calibration(WEIGHTS, PROBE, (*OTHERS, *HARMFUL))


def test_the_threshold_is_the_most_that_is_known_to_be_harmless() -> None:
    assert [k.harmful for k in OTHERS] == [False] * 4 and all(k.harmful for k in HARMFUL)
    assert (CALIBRATION.threshold, CALIBRATION.least) == (0.02, 0.03)
    assert CALIBRATION.false_alarms == (1, 4)
    assert CALIBRATION.missed_at_most == pytest.approx(1 / 6)
    assert all(alarm(k.drift, CALIBRATION).raised for k in HARMFUL)
    said = CALIBRATION.said()
    assert (
        "above 2%" in said
        and "the 5 models" in said
        and "3% and more" in said
        and "1 of the 4 others" in said
        and "17%" in said
    )


def test_harm_is_a_bound_and_not_an_estimate() -> None:
    """12 of 400 is an estimate of three points lost, whose lower bound is under two."""
    assert known(0.1, 12).held_out.loss > 0.02 > known(0.1, 12).held_out.loss_lower
    assert known(0.1, 20).held_out.loss_lower > 0.02


def test_another_harmful_model_can_only_lower_the_threshold() -> None:
    assert Calibration(WEIGHTS, PROBE, (*CALIBRATION.known, known(0.015, 50))).threshold == 0.01
    assert Calibration(WEIGHTS, PROBE, (*CALIBRATION.known, known(0.5, 50))).threshold == 0.02
    assert Calibration(WEIGHTS, PROBE, tuple(HARMFUL)).threshold == 0.0
    with pytest.raises(InputError, match="tells nothing"):
        Calibration(WEIGHTS, PROBE, (*CALIBRATION.known, known(0.0, 50)))


def test_too_few_harmful_models_are_no_calibration() -> None:
    with pytest.raises(InputError, match=f"needs {MIN_HARMFUL} models"):
        Calibration(WEIGHTS, PROBE, (*OTHERS, *HARMFUL[1:]))
    with pytest.raises(InputError, match="one probe"):
        Calibration(
            WEIGHTS, PROBE, (*HARMFUL, Known("x", "registry", drift(0.1, "other"), Paired(9, 0, 0, 9)))
        )


@pytest.mark.parametrize(
    ("value", "raised"), [(0.0, False), (0.02, False), (0.0201, True), (0.03, True), (1.0, True)]
)
def test_the_alarm(value: float, raised: bool) -> None:
    found = alarm(drift(value), CALIBRATION)
    assert (found.raised, found.threshold, found.calibrated) == (raised, 0.02, True)
    assert found.said.startswith("Alarm: " if raised else "No alarm, which is no pass: ")
    assert found.to_dict()["said"] == found.said and Alarm(**found.__dict__) == found


def test_an_uncalibrated_base_has_a_threshold_that_says_so() -> None:
    found = alarm(drift(DEFAULT_THRESHOLD + 0.001), None)
    assert (found.raised, found.threshold, found.calibrated) == (True, DEFAULT_THRESHOLD, False)
    assert "a study of the built-in base" in found.said and "--calibrate" in found.said
    assert not alarm(drift(DEFAULT_THRESHOLD), None).raised


def test_an_alarm_is_about_one_probe() -> None:
    with pytest.raises(InputError, match="same probe"):
        alarm(drift(0.1, "another"), CALIBRATION)


def test_kept_and_found_by_base_and_probe(store: Registry) -> None:
    assert calibration_of(store, WEIGHTS, PROBE) is None and calibration_of(None, WEIGHTS, PROBE) is None
    keep(store, CALIBRATION)
    keep(store, Calibration("sha256:" + "e" * 64, PROBE, tuple(HARMFUL)))
    assert calibration_of(store, WEIGHTS, PROBE) == CALIBRATION
    assert calibration_of(store, WEIGHTS, "another") is None
    assert alarm_of(store, WEIGHTS, drift(0.02)).calibrated
    assert alarm_of(store, WEIGHTS, drift(0.02, "another")).threshold == DEFAULT_THRESHOLD
    newer = Calibration(WEIGHTS, PROBE, (*CALIBRATION.known, known(0.01, 50)))
    keep(store, newer)
    assert calibration_of(store, WEIGHTS, PROBE) == newer


def test_read_as_written_and_not_otherwise() -> None:
    data = json.loads(json.dumps(CALIBRATION.to_dict()))
    assert Calibration.from_dict(data) == CALIBRATION and data["threshold"] == 0.02
    for change in ({"schema": 2}, {"signal": "norm"}):
        with pytest.raises(InputError, match="schema 1 and signal disagreement"):
            Calibration.from_dict({**data, **change})


def test_judging_needs_no_torch() -> None:
    code = "import sys, inlay.evals.calibration; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
