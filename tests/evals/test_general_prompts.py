"""General prompts: every skill gets its share of what a router is fitted on."""

from __future__ import annotations

from inlay.evals.prompts import GeneralPrompt, evenly


def test_skills_are_dealt_evenly_whatever_their_order() -> None:
    many = [GeneralPrompt(f"copy {n}", "copy") for n in range(9)]
    few = [GeneralPrompt(f"sort {n}", "sort") for n in range(2)]
    plain = [GeneralPrompt(f"plain {n}") for n in range(3)]
    found = evenly([*many, *few, *plain], 8)
    assert [each.prompt for each in found] == [
        "copy 0", "sort 0", "plain 0", "copy 1", "sort 1", "plain 1", "copy 2", "plain 2",
    ]  # fmt: skip
    assert sorted(each.prompt for each in evenly([*many, *few, *plain], 100)) == sorted(
        each.prompt for each in [*many, *few, *plain]
    )
