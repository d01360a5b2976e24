"""Licence, origin and consent, and what forbids training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inlay.errors import InputError
from inlay.trainers.data import read_dataset
from inlay.trainers.provenance import NAMED, Provenance, beside, summary

ROW = {"prompt": "a", "completion": "b"}


@pytest.mark.parametrize(
    ("stated", "forbidden"),
    [
        ({"train": False}, "train: no"),
        ({"train": "No"}, "train: No"),
        ({"do_not_train": True}, "do_not_train: yes"),
        ({"do_not_train": "yes"}, "do_not_train: yes"),
        ({"opt_out": 1}, "opt_out: 1"),
        ({"consent": "withdrawn"}, "consent: withdrawn"),
        ({"consent": False}, "consent: no"),
        ({"split": "TEST"}, "split: TEST"),
        ({"meta": {"split": "dev"}}, "split: dev"),
        ({"metadata": {"no_train": "true"}}, "no_train: true"),
        ({"train": True}, None),
        ({"do_not_train": False}, None),
        ({"consent": "given"}, None),
        ({"consent": None}, None),
        ({"split": "train"}, None),
        ({"split": ["test"]}, None),
        ({"text": "do not train"}, None),
    ],
)
def test_marks(stated: dict[str, Any], forbidden: str | None) -> None:
    assert Provenance.of({**ROW, **stated}).forbidden == forbidden


def test_rows_go_before_the_file_beside_them(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    rows = [{**ROW, "license": "MIT", "consent": "given"}, {**ROW, "source": "forum"}, ROW]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "meta.json").write_text(json.dumps({"licence": "CC-BY-4.0", "source_repo": "clinc/oos-eval"}))
    data = read_dataset(file)
    assert data.stated == (
        Provenance("MIT", "clinc/oos-eval", "given"),
        Provenance("CC-BY-4.0", "forum"),
        Provenance("CC-BY-4.0", "clinc/oos-eval"),
    )
    assert data.provenance == {
        "licence": {"CC-BY-4.0": 2, "MIT": 1},
        "origin": {"clinc/oos-eval": 2, "forum": 1},
        "consent": {"": 2, "given": 1},
    }
    (tmp_path / "d.jsonl.meta.json").write_text('{"consent": "revoked"}')
    assert [row.forbidden for row in read_dataset(file).stated] == ["consent: revoked"] * 3
    (tmp_path / "d.jsonl.meta.json").write_text("[1]")
    assert beside(file) == Provenance()
    (tmp_path / "d.jsonl.meta.json").write_text("{")
    with pytest.raises(InputError, match="stands beside the data and must be JSON"):
        read_dataset(file)


def test_a_summary_is_bounded() -> None:
    found = summary([Provenance(origin=f"https://example.org/{n:03}/" + "x" * 500) for n in range(300)])
    assert len(found["origin"]) == NAMED + 1 and found["origin"]["(others)"] == 300 - NAMED
    assert max(map(len, found["origin"])) <= 120
    assert read_dataset([ROW]).provenance == {"licence": {"": 1}, "origin": {"": 1}, "consent": {"": 1}}


def test_row_digests_say_what_two_runs_shared() -> None:
    one = read_dataset([ROW, {"prompt": "c", "completion": "d"}])
    two = read_dataset([{"instruction": "c", "output": " d "}, {"prompt": "e", "completion": "f"}])
    assert set(one.row_digests) & set(two.row_digests) == {one.row_digests[1]}
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in one.row_digests)
    assert len(one.row_digests) == 2
