"""Planted defects are found, clean files are not accused. The thresholds were set on seeds from 9001 on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from quality_fakes import CLEAN, PLANTED, clean_rows, suite_of, written

from inlay.evals.inference import Base
from inlay.trainers.quality import DataCheck, check

SEEDS = (1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3)))
"""One to three rows of five hundred are bad."""


def accusations(found: DataCheck) -> list[str]:
    return [f"{f.kind}: {f.sentence()} {f.examples}" for f in found.findings if f.level != "note"]


def test_at_least_twelve_kinds_are_planted() -> None:
    assert len({kind for kind, _, _ in PLANTED.values()}) >= 12
    assert len(CLEAN) == len(set(CLEAN)) == 20


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("defect", PLANTED)
def test_a_planted_defect_is_found(defect: str, seed: int, base: Base, tmp_path: Path) -> None:
    kind, level, plant = PLANTED[defect]
    planted = plant(Random(f"{defect}/{seed}"), seed)
    needs_base = kind in ("too-long", "surprisal")
    found = check(
        written(tmp_path / "data.jsonl", planted.lines),
        base=base if needs_base else None,
        surprisal=kind == "surprisal",
        against=planted.suites,
    )
    lines = [line for f in found.findings if f.kind == kind and f.level == level for line in f.lines]
    assert kind in {f.kind for f in found.findings if f.level == level}, found.findings
    assert set(planted.bad) <= set(lines), (planted.bad, lines)
    if kind != "conflict":  # which names the contradicted row as well
        assert set(lines) <= set(planted.bad)
    if level == "warning":
        assert found.ok
    else:
        assert not found.ok


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_file_is_not_accused(name: str, seed: int, tmp_path: Path) -> None:
    file = written(tmp_path / "data.jsonl", list(clean_rows(name, seed)))
    found = check(file, against=[suite_of(name, seed)])
    assert accusations(found) == []
    assert found.clean and found.figures.rows == 500


@pytest.mark.slow
@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_file_is_not_accused_by_its_base(name: str, base: Base, tmp_path: Path) -> None:
    file = written(tmp_path / "data.jsonl", list(clean_rows(name, 4)))
    found = check(file, base=base)
    assert accusations(found) == []
    assert found.figures.nats is not None and found.figures.tokens is not None


TRUE_OF_REAL_FILES = {
    # All real tasks have one instruction: what is learnt answers to that wording.
    "banking77_intent": {"monotony", "near-duplicate"},  # "Where can I …?" and "where can I …?"
    "banking_topics": {"monotony", "near-duplicate"},  # "My Google pay top up isn't working." twice
    "clinc_domain": {"monotony", "near-duplicate"},  # "yes, that is correct" and "yes that is correct"
    "gsm8k": {"monotony"},
    # The help line and the addresses of an institute, lists where others have sentences.
    "medquad_answer": {"monotony", "near-duplicate", "personal", "style"},
    "pubmedqa_short": {"monotony"},
    # The same greeting many times; "people this coming Saturday" is a date in one row and nothing in another.
    "restaurant8k_slots": {"monotony", "near-duplicate", "conflict"},
    # UTF-8 read as Latin-1: "clichÃ©s".
    "review_polarity": {"monotony", "near-duplicate", "encoding"},
}
"""What was found in the real files, each looked at: these are defects, not false accusations."""


@pytest.mark.data
@pytest.mark.parametrize("task", TRUE_OF_REAL_FILES)
def test_real_files_are_accused_of_what_is_true(task: str, data_dir: Path) -> None:
    found = check(data_dir / "tasks" / task / "train.jsonl")
    assert found.ok
    assert {f.kind for f in found.of_level("warning")} == TRUE_OF_REAL_FILES[task]
    assert found.provenance["licence"][next(iter(found.provenance["licence"]))] == found.figures.rows


@pytest.fixture(scope="module")
def real_rows(data_dir: Path) -> Iterator[list[str]]:
    yield (data_dir / "tasks" / "banking_topics" / "train.jsonl").read_text().splitlines()


@pytest.mark.data
def test_near_duplicates_are_found_among_real_ones(real_rows: list[str], tmp_path: Path) -> None:
    row = json.loads(real_rows[500])
    assert row["input"] == "went somewhere else, need to change details"
    copies = [
        {**row, "input": text}
        for text in (
            "Went somewhere else; need to change details!",
            "went somewhere else, need to change detials",
            "went somewhere else, need to change details please",
        )
    ]
    before, after = (
        check(written(tmp_path / f"{len(more)}.jsonl", [*real_rows, *more])) for more in ([], copies)
    )
    lines = [{n for f in c.findings if f.kind == "near-duplicate" for n in f.lines} for c in (before, after)]
    assert lines[1] - lines[0] == {1060, 1061, 1062}
