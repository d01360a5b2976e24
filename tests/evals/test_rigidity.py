"""Rigidity against counts made by hand, and on real data against the figures its own noisy suite has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evals_fakes import FakeModel, result_of

from inlay.errors import InputError
from inlay.evals.perturbing import KINDS, Given, perturbed
from inlay.evals.rigidity import ALL, Measured, Rigidity, rigidity
from inlay.evals.scoring import EvalResult, evaluate_model
from inlay.evals.suites import Item, Suite

OURS = {ALL: 0.331, "typo": 0.327, "case": 0.445, "spaces": 0.093, "wording": 0.455}
"""What our own noise costs mini-instruct on the 200 clean questions."""


def measured(role: str = "general") -> Measured:
    """Ten questions; the model fails typos of 0…5 and case of 0…1, the base typos of 0; both fail clean 9."""
    suite = Suite("s", tuple(Item(f"i{k}", f"Please name colour {k}", f"a{k}") for k in range(10)))
    noisy = perturbed(suite, ("typo", "case"))
    assert len(noisy) == 20

    def outcomes(of: Suite, failing: dict[str, int]) -> list[bool]:
        return [
            not (int(i.id[1]) == 9 or (i.slice is not None and int(i.id[1]) < failing.get(i.slice, 0)))
            for i in of.items
        ]

    return Measured(
        role,
        result_of(suite, outcomes(suite, {})),
        result_of(suite, outcomes(suite, {}), subject="acme@v1"),
        result_of(noisy, outcomes(noisy, {"typo": 1})),
        result_of(noisy, outcomes(noisy, {"typo": 6, "case": 2}), subject="acme@v1"),
    )


def test_rows_are_paired_by_source() -> None:
    found = rigidity([measured()])
    (part,) = found.parts
    assert (found.subject, part.role, part.suites, part.sources) == ("acme@v1", "general", ("s",), 10)
    rows = {row.kind: row for row in part.rows}
    assert list(rows) == [ALL, "typo", "case"]
    counts = {
        (kind, side): (c.n, c.lost, c.gained, c.both)
        for kind, row in rows.items()
        for side, c in (("base", row.base), ("model", row.model), ("between", row.between))
    }
    assert counts == {
        (ALL, "base"): (20, 1, 0, 17),
        (ALL, "model"): (20, 8, 0, 10),
        (ALL, "between"): (20, 7, 0, 10),
        ("typo", "base"): (10, 1, 0, 8),
        ("typo", "model"): (10, 6, 0, 3),
        ("typo", "between"): (10, 5, 0, 3),
        ("case", "base"): (10, 0, 0, 9),
        ("case", "model"): (10, 2, 0, 7),
        ("case", "between"): (10, 2, 0, 7),
    }


def test_roles_stay_apart_and_the_report_comes_back() -> None:
    found = rigidity([measured(), measured("target")])
    assert [part.role for part in found.parts] == ["general", "target"]
    assert Rigidity.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    with pytest.raises(InputError, match="must have schema 1, got 7"):
        Rigidity.from_dict({"schema": 7})


def test_bad_input() -> None:
    with pytest.raises(InputError, match="at least one suite"):
        rigidity([])
    one = measured()
    foreign = Suite("s--rigid", (Item("other~typo", "q", "a", slice="typo"),))
    result = result_of(foreign, [True])
    with pytest.raises(InputError, match="'other~typo' comes from none of s"):
        rigidity([Measured("general", one.base, one.model, result, result)])


def test_a_model_that_reads_only_neat_prompts_is_found_rigid() -> None:
    """End to end without a network: a table of prompts answers the clean ones and nothing else."""
    suite = Suite("s", tuple(Item(f"i{k}", f"Name the colour of thing {k}", f"a{k}") for k in range(8)))
    noisy = perturbed(suite)
    table = FakeModel({item.text: item.answer for item in suite.items})
    everything = FakeModel({item.text: item.answer for item in (*suite.items, *noisy.items)})

    def score(model: FakeModel, of: Suite, label: str) -> EvalResult:
        return evaluate_model(model, of, subject=label)

    found = rigidity(
        [
            Measured(
                "general",
                score(everything, suite, "base"),
                score(table, suite, "acme"),
                score(everything, noisy, "base"),
                score(table, noisy, "acme"),
            )
        ]
    )
    assert {row.kind: (row.base.loss, row.model.loss) for row in found.parts[0].rows} == dict.fromkeys(
        (ALL, *KINDS), (0.0, 1.0)
    )


@pytest.mark.slow
@pytest.mark.data
def test_mini_instruct_on_the_real_rigidity_suite(data_dir: Path) -> None:
    """Clean 93.5%, noisy 63.0%, as the data's own description says; and what our own noise does to it."""
    from inlay.evals.inference import Chat, load_base

    folder = data_dir / "suites" / "rigidity"
    clean = Suite.load(folder / "clean_200.jsonl")
    rows = [json.loads(line) for line in (folder / "noisy_200.jsonl").read_text().splitlines()]
    given = Given(variants={row["id"]: ((row["noise"], row["prompt"]),) for row in rows})
    noisy, ours = perturbed(clean, (), given=given), perturbed(clean)
    assert len(clean) == len(noisy) == 200
    model = Chat(load_base(data_dir / "models" / "mini-instruct"))
    before, after, own = (evaluate_model(model, suite) for suite in (clean, noisy, ours))
    assert (before.score, after.score) == (0.935, 0.63)
    theirs = rigidity([Measured("general", before, before, after, after)]).parts[0]
    kinds = {row.kind: row.base for row in theirs.rows}
    assert kinds.keys() == {ALL, "typo", "case", "whitespace"} and kinds[ALL].loss == pytest.approx(0.305)
    assert all(row.between.lost == row.between.gained == 0 for row in theirs.rows)
    mine = rigidity([Measured("general", before, before, own, own)]).parts[0]
    losses = {row.kind: row.base.loss for row in mine.rows}
    assert losses == {kind: pytest.approx(loss, abs=0.02) for kind, loss in OURS.items()}
